"""Compiled kernels of batch normalization: rows of numbers for `normalization_loops.py` and `feature_loops.py`.

The formulas are in `normalization_kernels.py`. Samples are images, or rows of features, which are images of one
pixel. Mean and variance need the whole batch, so that a stretch of rows ends after them. So does the gradient, which
needs two sums over the batch.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from xnn import ops
from xnn.backends.kernels import feature_loops as features
from xnn.backends.kernels import normalization_loops as loops
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.image_calls import ImageCall, new_call
from xnn.backends.kernels.normalization_kernels import (
    Numbers,
    serves_backward,
    serves_moments,
    serves_normalize,
    store_moments,
)

__all__ = ["NORMALIZATION_ROWS"]


def _applies_relu(call: Call) -> bool:
    """Whether the activation that follows is ReLU, or none."""
    return (call.forward or call).activation in (None, ops.relu)


def _planes(x: np.ndarray) -> tuple[int, int]:
    """The number of channels, and of elements in a plane."""
    return x.shape[1], x[0, 0].size


def _moments(call: Call) -> ImageCall | list[ImageCall]:
    x, m = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    if x.ndim == 2:
        return _moments_of_features(call, x, m)
    made, (channels, count) = new_call(call, loops.moments), _planes(x)
    stats = np.zeros((len(x), 2, channels))

    def finish() -> None:
        with np.errstate(all="ignore"):
            means, squares = stats[:, 0], stats[:, 1]
            mean = means.mean(axis=0)
            variance = (squares + count * (means - mean) ** 2).sum(axis=0) / (len(x) * count)
            store_moments(m, mean, variance, call)

    made.row += [made.address(x), made.address(stats), x.itemsize, channels, count]
    made.after, made.ends = finish, True
    return made


def _moments_of_features(call: Call, x: np.ndarray, m: np.ndarray) -> list[ImageCall]:
    """First the sums, then the squares about the mean."""
    adding, squaring = new_call(call, features.add_features), new_call(call, features.add_squares)
    sums, mean = np.zeros((2, adding.parts, 2, x.shape[1])), np.empty(x.shape[1], x.dtype)
    adding.row += [adding.address(x), adding.address(sums[0]), x.itemsize, x.shape[1]]
    squaring.row += [
        squaring.address(x), squaring.address(sums[1]), x.itemsize, x.shape[1], squaring.address(mean),
    ]  # fmt: skip

    def means() -> None:
        with np.errstate(all="ignore"):
            mean[:] = sums[0, :, 0].sum(axis=0, dtype=np.float64) / len(x)

    def finish() -> None:
        with np.errstate(all="ignore"):
            store_moments(m, mean, sums[1, :, 1].sum(axis=0, dtype=np.float64) / len(x), call)

    adding.after, squaring.after, adding.ends, squaring.ends = means, finish, True, True
    return [adding, squaring]


def _normalize(call: Call) -> ImageCall:
    x, y = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    made, found = (
        new_call(call, features.normalize_features if x.ndim == 2 else loops.normalize),
        Numbers(call),
    )
    call.saved, made.before = found, found.compute
    made.late = tuple(slot.array for slot in call.reads[1:])
    made.row += [
        made.address(x), made.address(y), x.itemsize, *_planes(x), call.activation is not None,
        made.address(found.about),
    ]  # fmt: skip
    return made


def _normalize_backward(call: Call) -> list[ImageCall]:
    forward = call.forward
    assert forward is not None
    x, y, dy = forward.reads[0].array, forward.writes[0].array, call.reads[0].array  # type: ignore[union-attr]
    dx, _, *affine = (None if slot is None else slot.array for slot in call.writes)
    flat, (channels, count) = x.ndim == 2, _planes(x)
    adding = new_call(call, features.add_gradients if flat else loops.sums)
    stats = np.zeros((adding.parts if flat else len(x), 2, channels))
    about = np.empty((5, channels), x.dtype)
    adding.row += [
        adding.address(x), 0 if forward.activation is None else adding.address(y), adding.address(dy),
        adding.address(stats), x.itemsize, channels, count, adding.address(forward.saved.about),
    ]  # fmt: skip
    adding.ends = True
    adding.after = partial(forward.saved.finish, stats, len(x) * count, affine, about)
    if dx is None:
        return [adding]
    through = new_call(call, features.through_features if flat else loops.through_moments)
    through.row += [
        through.address(x), through.address(dy), through.address(dx), x.itemsize, channels, count,
        through.address(about),
    ]  # fmt: skip
    return [adding, through]


NORMALIZATION_ROWS = {
    ("forward", ops.moments): (_moments, serves_moments),
    ("forward", ops.normalize): (_normalize, lambda call: serves_normalize(call) and _applies_relu(call)),
    ("backward", ops.normalize): (
        _normalize_backward,
        lambda call: serves_backward(call) and _applies_relu(call),
    ),
}
