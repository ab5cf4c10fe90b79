"""Kernels of batch normalization in plain NumPy, and the numbers that compiled kernels share with them.

Samples are images, or rows of features. Mean and variance need the whole batch. So does the gradient, which needs two
sums over the batch: with z = (x - mean) r, r = 1 / sqrt(variance + epsilon), N elements for each channel,

    dbias = sum dy,   dweight = sum dy z,   dx = weight r (dy - dbias / N - z dweight / N)

Sums are made for each plane (one channel of one image), or for each column of features; the few numbers that result
are added in float64. Images go through a few at a time, while they are in the processor's cache.

Numbers so large or so small that their squares are beyond float32 are rare: the op computes their moments, and gives
a power of two s, by which x and the mean are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels.batch_parts import PartedCall, slices_of
from xnn.backends.kernels.calls import Call, Runnable, nothing
from xnn.backends.kernels.image_kernels import fits
from xnn.ops.apply import forward_of
from xnn.ops.sums import pairwise_sum

__all__ = [
    "NORMALIZATION_KERNELS", "Numbers", "applies_nothing", "are_ordinary", "goes_through_moments", "serves_backward",
    "serves_moments", "serves_normalize", "store_moments",
]  # fmt: skip

_CACHE = 1 << 18  #: bytes of images that are worked on together, at most, unless one has more


def _is_over_batch(call: Call) -> bool:
    """Whether mean and variance are those of each channel, over all samples and places: batch normalization."""
    x = call.reads[0]
    axes = {axis % max(1, len(x.shape)) for axis in call.options["axis"]}
    return len(x.shape) > 1 and axes == {0, *range(2, len(x.shape))}


def serves_moments(call: Call) -> bool:
    """Whether a call of moments is of batch normalization."""
    return fits(call) and call.kind == "forward" and _is_over_batch(call)


def serves_normalize(call: Call) -> bool:
    """Whether a call of normalize is of batch normalization."""
    moments, *affine = (slot.shape for slot in call.reads[1:])
    channels = call.reads[0].shape[1]
    whole = moments[0] in (2, 3) and np.prod(moments[1:]) == channels
    along = all(shape == (channels,) for shape in affine) and call.options.get("along", 1) == 1
    return fits(call) and _is_over_batch(call) and whole and along


def goes_through_moments(call: Call) -> bool:
    """Whether a backward call is the gradient through the moments too, or only that of weight and bias."""
    dx, dmoments, *_ = call.writes
    return (dx is None or "moments" in call.options) and dmoments is None and fits(call)


def serves_backward(call: Call) -> bool:
    """Whether the call is such a gradient of batch normalization."""
    assert call.forward is not None
    return goes_through_moments(call) and serves_normalize(call.forward)


def are_ordinary(variances: np.ndarray) -> np.ndarray:
    """Which variances are so far from the limits of float32 that their numbers need no scaling."""
    return (variances > 2.0**-100) & (variances < 2.0**100)


def store_moments(m: np.ndarray, mean: np.ndarray, variance: np.ndarray, call: Call) -> None:
    """Write moments; if a variance is not an ordinary number, those that the op computes."""
    x, rows = call.reads[0].array, m.reshape(len(m), -1)
    unusual = ~are_ordinary(variance)
    if unusual.any() and (x[:, unusual] != 0).any():
        m[...] = forward_of(call.op, np, (x,), call.options)[0]
    else:
        rows[0], rows[1], rows[2:] = mean, variance, 1.0


class Numbers:
    """The numbers of each channel that forward and backward need, in float64.

    s, m: so that x s - m is what the root divides. root: 1 / sqrt(variance + epsilon) of scaled numbers. weight,
    bias: of the layer, or 1 and 0. about: s, m, root weight, bias in the dtype of x.
    """

    def __init__(self, call: Call) -> None:
        moments, *self._affine = (slot.array for slot in call.reads[1:])
        self._plain: list[Any] = [1.0, 0.0]
        self.weight: Any = None
        self._rows, self._epsilon = moments.reshape(len(moments), -1), call.options.get("epsilon", 1e-5)
        self.about = np.empty((4, self._rows.shape[1]), moments.dtype)

    def compute(self) -> None:
        """Compute them for the batch whose moments were computed last."""
        mean, variance, *scaled = self._rows.astype(np.float64)
        self.s = scaled[0] if scaled else np.ones_like(mean)
        self.m = mean * self.s
        with np.errstate(all="ignore"):
            self.root = 1.0 / np.sqrt(variance + self._epsilon * self.s * self.s)
            self.weight, bias = self._affine or self._plain
            self.about[0], self.about[1] = self.s, self.m
            self.about[2], self.about[3] = self.root * self.weight, bias

    def finish(self, stats: np.ndarray, total: int, affine: list[Any], about: np.ndarray) -> None:
        """Make dweight and dbias from sums, and numbers for dx = about[2] dy + about[3] (x s - m) + about[4].

        stats: sums of dy and of dy (x s - m), of shape (parts, 2, channels). total: N.
        """
        dbias, dweight = stats.sum(axis=0, dtype=np.float64)
        with np.errstate(all="ignore"):
            dweight *= self.root
            for target, gradient in zip(affine, (dweight, dbias), strict=False):
                if target is not None:
                    np.copyto(target, gradient, casting="unsafe")
            slope = self.weight * self.root * self.s
            about[0], about[1], about[2] = self.s, self.m, slope
            about[3], about[4] = -slope * self.root * dweight / total, -slope * dbias / total


class _Pieces:
    """Cuts arrays like x into pieces: a few images of shape (n, channels, places), or all rows of features.

    parts: sums of a channel, one for each image, or one for all rows. count: elements of each.
    """

    def __init__(self, x: np.ndarray) -> None:
        n, channels = x.shape[:2]
        #: The images of each part of the batch, of which threads take one at a time; features are one part.
        self.cuts = slices_of(n) if x.ndim == 4 else [slice(0, n)]
        self._flat = x.ndim == 2
        self._together = n if self._flat else max(1, min(n, _CACHE // x[0].nbytes))
        self._shape = (n, channels) if self._flat else (n, channels, -1)
        self.parts: int = 1 if self._flat else n
        self.count: int = n if self._flat else x[0, 0].size
        self.total = self.parts * self.count
        scratch = (len(self.cuts), self._together, *x.reshape(self._shape).shape[1:])
        self.scratch = np.empty(scratch, x.dtype)

    def of(self, number: int, *arrays: Any) -> Iterator[tuple[Any, ...]]:
        """For each piece of a part of the batch: the sums that it has, scratch memory of its shape, and the piece of
        each array.
        """
        whole = [array.reshape(self._shape) for array in arrays]
        cut = self.cuts[number]
        for first in range(cut.start, cut.stop, self._together):
            images = slice(first, min(first + self._together, cut.stop))
            pieces = [array[images] for array in whole]
            parts = slice(0, 1) if self._flat else images
            yield parts, self.scratch[number, : len(pieces[0])], *pieces

    def call(
        self,
        run: Callable[[int], None],
        before: Runnable = nothing,
        after: Runnable = nothing,
        written: Sequence[np.ndarray] = (),
    ) -> PartedCall:
        """A call that runs a function for each part of the batch, without warnings of NaN and infinity."""

        def part(number: int) -> None:
            with np.errstate(all="ignore"):
                run(number)

        parts = [partial(part, number) for number in range(len(self.cuts))]
        return PartedCall(parts, before, after, written=written)

    def sum(self, piece: np.ndarray) -> np.ndarray:
        """The sums of a piece, of shape (parts, channels)."""
        found: np.ndarray = (
            pairwise_sum(np, piece, axis=0, keepdims=True) if self._flat else piece.sum(axis=2)
        )
        return found

    def spread(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers of each channel, in the last axis, in a shape that goes with a piece."""
        return numbers if self._flat else numbers[..., None]


def _moments(call: Call) -> PartedCall:
    x, m = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    pieces = _Pieces(x)
    means, squares = (np.empty((pieces.parts, x.shape[1])) for _ in range(2))
    count = pieces.count

    def add(number: int) -> None:
        for parts, away, piece in pieces.of(number, x):
            means[parts] = pieces.sum(piece)
            means[parts] /= count
            np.subtract(piece, pieces.spread(means[parts].astype(x.dtype)), out=away)
            np.multiply(away, away, out=away)
            squares[parts] = pieces.sum(away)

    def store() -> None:
        with np.errstate(all="ignore"):
            mean = means.mean(axis=0)
            variance = (squares + count * (means - mean) ** 2).sum(axis=0) / pieces.total
            store_moments(m, mean, variance, call)

    return pieces.call(add, after=store)


def _normalize(call: Call) -> PartedCall:
    x, y = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    found, pieces = Numbers(call), _Pieces(x)
    call.saved = found, pieces
    s, m, slope, bias = map(pieces.spread, found.about)

    def run(number: int) -> None:
        for _, away, piece, result in pieces.of(number, x, y):
            np.multiply(piece, s, out=away)
            np.subtract(away, m, out=away)
            np.multiply(away, slope, out=away)
            np.add(away, bias, out=result)

    return pieces.call(run, before=found.compute, written=[y])


def _normalize_backward(call: Call) -> list[PartedCall]:
    forward = call.forward
    assert forward is not None
    x, dy = forward.reads[0].array, call.reads[0].array
    dx, _, *affine = (None if slot is None else slot.array for slot in call.writes)
    found, pieces = forward.saved
    stats, about = np.empty((pieces.parts, 2, x.shape[1])), np.empty((5, x.shape[1]), x.dtype)
    s, m, slope, by_place, shift = map(pieces.spread, about)

    def begin() -> None:
        about[0], about[1] = found.s, found.m

    def add(number: int) -> None:
        for parts, away, piece, gradient in pieces.of(number, x, dy):
            np.multiply(piece, s, out=away)
            np.subtract(away, m, out=away)
            np.multiply(away, gradient, out=away)
            stats[parts, 0], stats[parts, 1] = pieces.sum(gradient), pieces.sum(away)

    def finish() -> None:
        found.finish(stats, pieces.total, affine, about)

    def through(number: int) -> None:
        for _, away, piece, gradient, result in pieces.of(number, x, dy, dx):
            np.multiply(piece, s, out=away)
            np.subtract(away, m, out=away)
            np.multiply(away, by_place, out=away)
            np.multiply(gradient, slope, out=result)
            np.add(result, away, out=result)
            np.add(result, shift, out=result)

    sums = pieces.call(add, begin, finish)
    return [sums] if dx is None else [sums, pieces.call(through, written=[dx])]


def applies_nothing(call: Call) -> bool:
    """Whether no activation is fused with the call; NumPy's kernels apply none."""
    return (call.forward or call).activation is None


NORMALIZATION_KERNELS = {
    ("forward", ops.moments): (_moments, serves_moments),
    ("forward", ops.normalize): (_normalize, lambda call: serves_normalize(call) and applies_nothing(call)),
    ("backward", ops.normalize): (
        _normalize_backward,
        lambda call: serves_backward(call) and applies_nothing(call),
    ),
}
