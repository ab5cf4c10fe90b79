"""Kernels of batch normalization in plain NumPy for images; `feature_kernels.py` has those for rows of features.

Mean and variance need the whole batch. So does the gradient, which needs two
sums over the batch: with z = (x - mean) r, r = 1 / sqrt(variance + epsilon), N elements for each channel,

    dbias = sum dy,   dweight = sum dy z,   dx = weight r (dy - dbias / N - z dweight / N)

Sums are made for each plane (one channel of one image); the few numbers that result are added in float64. Images go
through a few at a time, while they are in the processor's cache.

Numbers so large or so small that their squares are beyond float32 are rare: the op computes their moments, and gives
a power of two s, by which x and the mean are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels import feature_kernels
from xnn.backends.kernels.batch_parts import PartedCall, slices_of
from xnn.backends.kernels.calls import Call, Runnable, nothing
from xnn.backends.kernels.image_kernels import fits
from xnn.backends.kernels.normalization_numbers import Numbers, store_moments

__all__ = [
    "NORMALIZATION_KERNELS", "applies_nothing", "goes_through_moments", "serves_backward", "serves_moments",
    "serves_normalize",
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


class _Pieces:
    """Cuts arrays like x into pieces: a few images of shape (n, channels, places).

    parts: sums of a channel, one for each image. count: elements of each.
    """

    def __init__(self, x: np.ndarray) -> None:
        n, channels = x.shape[:2]
        #: The images of each part of the batch, of which threads take one at a time.
        self.cuts = slices_of(n) if x.ndim == 4 else [slice(0, n)]
        self._together = max(1, min(n, _CACHE // x[0].nbytes))
        self._shape = n, channels, -1
        self.parts: int = n
        self.count: int = x[0, 0].size
        self.total = self.parts * self.count
        scratch = (len(self.cuts), self._together, *x.reshape(self._shape).shape[1:])
        self.scratch = np.empty(scratch, x.dtype)

    def of(self, number: int, *arrays: Any) -> Iterator[tuple[Any, ...]]:
        """For each piece of a part of the batch: its images, scratch memory, and its part of each array."""
        whole = [array.reshape(self._shape) for array in arrays]
        cut = self.cuts[number]
        for first in range(cut.start, cut.stop, self._together):
            images = slice(first, min(first + self._together, cut.stop))
            pieces = [array[images] for array in whole]
            yield images, self.scratch[number, : len(pieces[0])], *pieces

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


def _moments(call: Call) -> PartedCall | Runnable:
    x, m = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    if x.ndim == 2:
        return feature_kernels.moments(call)
    pieces = _Pieces(x)
    means, squares = (np.empty((pieces.parts, x.shape[1])) for _ in range(2))
    count = pieces.count

    def add(number: int) -> None:
        for images, away, piece in pieces.of(number, x):
            means[images] = piece.sum(axis=2)
            means[images] /= count
            np.subtract(piece, means[images].astype(x.dtype)[..., None], out=away)
            np.multiply(away, away, out=away)
            squares[images] = away.sum(axis=2)

    def store() -> None:
        store_moments(m, means, squares, count, call)

    return pieces.call(add, after=store)


def _normalize(call: Call) -> PartedCall | Runnable:
    x, y = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    if x.ndim == 2:
        return feature_kernels.normalize(call)
    found, pieces = Numbers(call), _Pieces(x)
    call.saved = found, pieces
    s, m, slope, bias = found.about[..., None]

    def run(number: int) -> None:
        for _, away, piece, result in pieces.of(number, x, y):
            np.multiply(piece, s, out=away)
            np.subtract(away, m, out=away)
            np.multiply(away, slope, out=away)
            np.add(away, bias, out=result)

    return pieces.call(run, before=found.compute, written=[y])


def _normalize_backward(call: Call) -> list[PartedCall] | Runnable:
    forward = call.forward
    assert forward is not None
    x, dy = forward.reads[0].array, call.reads[0].array
    if x.ndim == 2:
        return feature_kernels.normalize_backward(call)
    dx, _, *affine = (None if slot is None else slot.array for slot in call.writes)
    found, pieces = forward.saved
    stats, about = np.empty((pieces.parts, 2, x.shape[1])), np.empty((5, x.shape[1]), x.dtype)
    s, m, slope, by_place, shift = about[..., None]

    def begin() -> None:
        about[0], about[1] = found.s, found.m

    def add(number: int) -> None:
        for images, away, piece, gradient in pieces.of(number, x, dy):
            np.multiply(piece, s, out=away)
            np.subtract(away, m, out=away)
            np.multiply(away, gradient, out=away)
            stats[images, 0], stats[images, 1] = gradient.sum(axis=2), away.sum(axis=2)

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
