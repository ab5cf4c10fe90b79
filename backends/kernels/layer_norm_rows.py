"""Compiled kernels of layer normalization: each call becomes one row of numbers for `feature_loops.py`.

The last axes are normalized; what the other axes count are rows. A sample has one row or several.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels import feature_loops as loops
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.image_calls import ImageCall, new_call
from xnn.backends.kernels.image_kernels import fits
from xnn.backends.kernels.normalization_kernels import are_ordinary
from xnn.ops.apply import forward_of

__all__ = ["LAYER_NORM_ROWS"]


def _first_axis(call: Call) -> int | None:
    """The first of the normalized axes; None if they are not the last ones, or all."""
    extents = len(call.reads[0].shape)
    axes = sorted(axis % max(1, extents) for axis in call.options["axis"])
    return axes[0] if axes and axes[0] > 0 and axes == [*range(axes[0], extents)] else None


def _serves_moments(call: Call) -> bool:
    return call.kind == "forward" and fits(call) and _first_axis(call) is not None


def _serves_normalize(call: Call) -> bool:
    first, (x, moments, *affine) = _first_axis(call), (slot.shape for slot in call.reads)
    along = all(shape == x[first:] for shape in affine) and (
        not affine or call.options.get("along", 1) == first
    )
    whole = first is not None and moments[0] in (2, 3) and np.prod(moments[1:]) == np.prod(x[:first])
    return fits(call) and bool(whole) and along and call.activation in (None, ops.relu)


def _serves_backward(call: Call) -> bool:
    """Whether the call is the gradient through the moments too, or only that of weight and bias."""
    forward, (dx, dmoments, *_) = call.forward, call.writes
    assert forward is not None
    whole = dx is None or "moments" in call.options
    return whole and dmoments is None and fits(call) and _serves_normalize(forward)


def _extents(call: Call) -> tuple[int, int]:
    """The elements of a row, and the rows of a sample."""
    shape, first = call.reads[0].shape, _first_axis(call)
    return int(np.prod(shape[first:])), int(np.prod(shape[1:first]))


def _moments(call: Call) -> ImageCall:
    x, m = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    made = new_call(call, loops.moments_of_rows)

    def finish() -> None:
        m[2:] = 1.0
        if not are_ordinary(m[1]).all():
            m[...] = forward_of(call.op, np, (x,), call.options)[0]

    made.row += [made.address(x), made.address(m[0]), made.address(m[1]), x.itemsize, *_extents(call)]
    made.after, made.ends = finish, True
    return made


def _normalize(call: Call) -> ImageCall:
    x, m, *affine = (slot.array for slot in call.reads)
    y: Any = call.writes[0].array  # type: ignore[union-attr]
    made, (count, many) = new_call(call, loops.normalize_rows), _extents(call)
    rows, epsilon = m.reshape(len(m), -1), call.options.get("epsilon", 1e-5)
    about = np.empty((3, rows.shape[1]), x.dtype)
    weight, bias = affine or (np.ones(count, x.dtype), np.zeros(count, x.dtype))

    def numbers() -> None:
        with np.errstate(all="ignore"):
            mean, variance, *scaled = rows.astype(np.float64)
            s = scaled[0] if scaled else 1.0
            about[0], about[1], about[2] = s, mean * s, 1.0 / np.sqrt(variance + epsilon * s * s)

    call.saved = about, weight
    made.before, made.late = numbers, (m, weight, bias)
    made.row += [
        made.address(x), made.address(y), x.itemsize, count, many, call.activation is not None, made.address(about),
        about.shape[1], made.address(weight), made.address(bias),
    ]  # fmt: skip
    return made


def _normalize_backward(call: Call) -> ImageCall:
    forward = call.forward
    assert forward is not None
    x, y, dy = forward.reads[0].array, forward.writes[0].array, call.reads[0].array  # type: ignore[union-attr]
    dx, _, *affine = (None if slot is None else slot.array for slot in call.writes)
    made, (count, many), (about, weight) = (
        new_call(call, loops.rows_backward),
        _extents(forward),
        forward.saved,
    )
    sums = np.zeros((made.parts, 2, count))

    def finish() -> None:
        dbias, dweight = sums.sum(axis=0, dtype=np.float64)
        for target, gradient in zip(affine, (dweight, dbias), strict=False):
            if target is not None:
                np.copyto(target, gradient.reshape(target.shape), casting="unsafe")

    made.after, made.late = finish, (weight, *affine)
    made.row += [
        made.address(x), 0 if forward.activation is None else made.address(y), made.address(dy), made.address(dx),
        x.itemsize, count, made.address(about), many, about.shape[1], made.address(weight), made.address(sums),
    ]  # fmt: skip
    return made


LAYER_NORM_ROWS = {
    ("forward", ops.moments): (_moments, _serves_moments),
    ("forward", ops.normalize): (_normalize, _serves_normalize),
    ("backward", ops.normalize): (_normalize_backward, _serves_backward),
}
