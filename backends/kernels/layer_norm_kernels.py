"""Kernels of layer normalization in plain NumPy.

The last axes are normalized; what the other axes count are rows. A sample has one row or several. With
r = 1 / sqrt(variance + epsilon), z = (x - mean) r, g = dy weight, and means over the elements of a row,

    dx = r (g - mean g - z mean(g z)),   dweight = sum dy z,   dbias = sum dy      the sums over all rows

Numbers so large or so small that their squares are beyond float32 are rare: the op computes their moments, and gives
a power of two s for each row, by which x and the mean are multiplied.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels.calls import Call, Runnable
from xnn.backends.kernels.image_kernels import fits
from xnn.backends.kernels.normalization_kernels import applies_nothing, goes_through_moments
from xnn.backends.kernels.normalization_numbers import are_ordinary
from xnn.ops.apply import forward_of
from xnn.ops.sums import pairwise_sum

__all__ = ["LAYER_NORM_KERNELS", "extents", "serves_backward", "serves_moments", "serves_normalize"]


def _first_axis(call: Call) -> int | None:
    """The first of the normalized axes; None if they are not the last ones, or all."""
    count = len(call.reads[0].shape)
    axes = sorted(axis % max(1, count) for axis in call.options["axis"])
    return axes[0] if axes and axes[0] > 0 and axes == [*range(axes[0], count)] else None


def serves_moments(call: Call) -> bool:
    """Whether a call of moments is of layer normalization."""
    return call.kind == "forward" and fits(call) and _first_axis(call) is not None


def serves_normalize(call: Call) -> bool:
    """Whether a call of normalize is of layer normalization."""
    first, (x, moments, *affine) = _first_axis(call), (slot.shape for slot in call.reads)
    along = all(shape == x[first:] for shape in affine) and (
        not affine or call.options.get("along", 1) == first
    )
    whole = first is not None and moments[0] in (2, 3) and np.prod(moments[1:]) == np.prod(x[:first])
    return fits(call) and bool(whole) and along and call.activation in (None, ops.relu)


def serves_backward(call: Call) -> bool:
    """Whether the call is such a gradient of layer normalization."""
    assert call.forward is not None
    return goes_through_moments(call) and serves_normalize(call.forward)


def extents(call: Call) -> tuple[int, int]:
    """The elements of a row, and the rows of a sample."""
    shape, first = call.reads[0].shape, _first_axis(call)
    return int(np.prod(shape[first:])), int(np.prod(shape[1:first]))


def _complete_moments(call: Call) -> None:
    """After mean and variance: write the power of two; of rows whose variance is not ordinary, what the op computes.

    Other rows stay as they are, whatever is in these.
    """
    x, m = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    m[2:] = 1.0
    unusual = ~are_ordinary(m[1]).reshape(-1)
    if unusual.any():
        rows, options = x.reshape(len(unusual), -1)[unusual], {**call.options, "axis": (1,)}
        if (rows != 0).any():
            m.reshape(len(m), -1)[:, unusual] = forward_of(call.op, np, (rows,), options)[0][..., 0]


class _RowNumbers:
    """The numbers of each row that forward and backward need, and the layer's weight and bias, or 1 and 0.

    about: s, mean s, and r of the scaled numbers, in the dtype of x.
    """

    def __init__(self, call: Call) -> None:
        x, moments, *affine = (slot.array for slot in call.reads)
        count, _ = extents(call)
        self._rows, self._epsilon = moments.reshape(len(moments), -1), call.options.get("epsilon", 1e-5)
        self.about = np.empty((3, self._rows.shape[1]), x.dtype)
        self.weight: Any = affine[0] if affine else np.ones(count, x.dtype)
        self.bias: Any = affine[1] if affine else np.zeros(count, x.dtype)

    def compute(self) -> None:
        """Fill `about` with the numbers of the batch whose moments were computed last."""
        with np.errstate(all="ignore"):
            mean, variance, *scaled = self._rows.astype(np.float64)
            s = scaled[0] if scaled else 1.0
            self.about[0], self.about[1] = s, mean * s
            self.about[2] = 1.0 / np.sqrt(variance + self._epsilon * s * s)


def _store_sums(sums: tuple[np.ndarray, np.ndarray], affine: list[Any]) -> None:
    """Write dweight and dbias, where they are wanted. sums: of dy z and of dy, over all rows."""
    for target, gradient in zip(affine, sums, strict=False):
        if target is not None:
            np.copyto(target, gradient.reshape(target.shape), casting="unsafe")


def _moments(call: Call) -> Runnable:
    count, _ = extents(call)
    x = call.reads[0].array.reshape(-1, count)
    mean, variance = call.writes[0].array[:2].reshape(2, -1)  # type: ignore[union-attr]
    away, column = np.empty_like(x), mean[:, None]

    def run() -> None:
        with np.errstate(all="ignore"):
            np.add.reduce(x, axis=1, out=mean)
            np.divide(mean, count, out=mean)
            np.subtract(x, column, out=away)
            np.multiply(away, away, out=away)
            np.add.reduce(away, axis=1, out=variance)
            np.divide(variance, count, out=variance)
            _complete_moments(call)

    return run


def _normalize(call: Call) -> Runnable:
    count, _ = extents(call)
    x, y = (array.reshape(-1, count) for array in (call.reads[0].array, call.writes[0].array))  # type: ignore[union-attr]
    found = _RowNumbers(call)
    z, weight, bias = np.empty_like(y), found.weight.reshape(-1), found.bias.reshape(-1)
    s, mean, root = found.about[:, :, None]
    call.saved = found, z, np.empty_like(z)

    def run() -> None:
        found.compute()
        with np.errstate(all="ignore"):
            if (s == 1.0).all():
                np.subtract(x, mean, out=z)
            else:
                np.multiply(x, s, out=z)
                np.subtract(z, mean, out=z)
            np.multiply(z, root, out=z)
            np.multiply(z, weight, out=y)
            np.add(y, bias, out=y)

    return run


def _normalize_backward(call: Call) -> Runnable:
    assert call.forward is not None
    found, z, product = call.forward.saved
    dy = call.reads[0].array.reshape(z.shape)
    dx, _, *affine = (None if slot is None else slot.array for slot in call.writes)
    flat = None if dx is None else dx.reshape(z.shape)
    s, _, root = found.about[:, :, None]
    count, weight, about = z.shape[1], found.weight.reshape(-1), np.empty((2, len(z)), z.dtype)
    of_g, of_gz = about[:, :, None]

    def run() -> None:
        with np.errstate(all="ignore"):
            np.multiply(dy, z, out=product)
            if affine:
                _store_sums((pairwise_sum(np, product, axis=0), pairwise_sum(np, dy, axis=0)), affine)
            if flat is None:
                return
            np.multiply(product, weight, out=product)
            np.add.reduce(product, axis=1, out=about[1])
            np.multiply(dy, weight, out=flat)
            np.add.reduce(flat, axis=1, out=about[0])
            np.divide(about, count, out=about)
            np.multiply(z, of_gz, out=product)
            np.subtract(flat, product, out=flat)
            np.subtract(flat, of_g, out=flat)
            np.multiply(flat, root * s, out=flat)

    return run


LAYER_NORM_KERNELS = {
    ("forward", ops.moments): (_moments, serves_moments),
    ("forward", ops.normalize): (_normalize, lambda call: serves_normalize(call) and applies_nothing(call)),
    ("backward", ops.normalize): (
        _normalize_backward,
        lambda call: serves_backward(call) and applies_nothing(call),
    ),
}
