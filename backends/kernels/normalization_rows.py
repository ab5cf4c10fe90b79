"""Compiled kernels of batch normalization: rows of numbers for `normalization_loops.py` and `feature_loops.py`.

The formulas are in `normalization_kernels.py`. Samples are images, or rows of features. Mean and variance need the
whole batch, so that a stretch of calls on images ends after them. So does the gradient, which needs two sums over the
batch. Of features a thread has some columns of the whole batch, and nothing has to end.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from xnn import ops
from xnn.backends.kernels import feature_loops as by_feature
from xnn.backends.kernels import normalization_loops as loops
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.image_calls import ImageCall, new_call
from xnn.backends.kernels.normalization_kernels import serves_backward, serves_moments, serves_normalize
from xnn.backends.kernels.normalization_numbers import Numbers, store_moments
from xnn.backends.kernels.rows import Rows, Writer, grain_of

__all__ = ["NORMALIZATION_ROWS"]


def _applies_relu(call: Call) -> bool:
    """Whether the activation that follows is ReLU, or none."""
    return (call.forward or call).activation in (None, ops.relu)


def _planes(x: np.ndarray) -> tuple[int, int]:
    """The number of channels, and of elements in a plane."""
    return x.shape[1], x[0, 0].size


def _moments(call: Call) -> ImageCall | Rows:
    x, m = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    if x.ndim == 2:
        out, (n, features) = Writer(x.dtype, heavy=True), x.shape
        columns = x, m, x.itemsize, n, features, len(m) > 2, np.empty(features)
        out.loop(by_feature.moments_of_features, features, *columns, grain=grain_of(n))
        return out.made
    made, (channels, count) = new_call(call, loops.moments), _planes(x)
    stats = np.zeros((len(x), 2, channels))

    def finish() -> None:
        store_moments(m, stats[:, 0], stats[:, 1], count, call)

    made.row += [made.address(x), made.address(stats), x.itemsize, channels, count]
    made.after, made.ends = finish, True
    return made


def _normalize(call: Call) -> ImageCall | Rows:
    x, y = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    if x.ndim == 2:
        return _normalize_features(call, x, y)
    made, found = new_call(call, loops.normalize), Numbers(call)
    call.saved, made.before = found, found.compute
    made.late = tuple(slot.array for slot in call.reads[1:])
    made.row += [
        made.address(x), made.address(y), x.itemsize, *_planes(x), call.activation is not None,
        made.address(found.about),
    ]  # fmt: skip
    return made


def _normalize_features(call: Call, x: np.ndarray, y: np.ndarray) -> Rows:
    _, m, *affine = (slot.array for slot in call.reads)
    out, (n, features), (weight, bias) = Writer(x.dtype, heavy=True), x.shape, affine or (None, None)
    about, roots = np.empty((4, features), x.dtype), np.empty(features)
    call.saved = about, roots, weight
    epsilon = np.asarray([call.options.get("epsilon", 1e-5)], float)
    out.loop(
        by_feature.normalize_features, features, x, y, x.itemsize, n, features, call.activation is not None, m,
        len(m) > 2, weight, bias, epsilon, about, roots, grain=grain_of(n),
    )  # fmt: skip
    return out.made


def _features_backward(call: Call, x: np.ndarray, y: np.ndarray | None) -> Rows:
    dy, (dx, _, *affine) = call.reads[0].array, (None if slot is None else slot.array for slot in call.writes)
    out, (n, features), (dweight, dbias) = Writer(x.dtype, heavy=True), x.shape, affine or (None, None)
    about, roots, weight = call.forward.saved  # type: ignore[union-attr]
    out.loop(
        by_feature.features_backward, features, x, y, dy, dx, x.itemsize, n, features, about, roots, weight, dweight,
        dbias, np.empty((2, features)), np.empty((4, features), x.dtype), grain=grain_of(n),
    )  # fmt: skip
    return out.made


def _normalize_backward(call: Call) -> list[ImageCall] | Rows:
    forward = call.forward
    assert forward is not None
    x, y, dy = forward.reads[0].array, forward.writes[0].array, call.reads[0].array  # type: ignore[union-attr]
    shown = None if forward.activation is None else y
    if x.ndim == 2:
        return _features_backward(call, x, shown)
    dx, _, *affine = (None if slot is None else slot.array for slot in call.writes)
    adding, (channels, count) = new_call(call, loops.sums), _planes(x)
    stats, about = np.zeros((len(x), 2, channels)), np.empty((5, channels), x.dtype)
    adding.row += [
        adding.address(x), adding.address(shown), adding.address(dy),
        adding.address(stats), x.itemsize, channels, count, adding.address(forward.saved.about),
    ]  # fmt: skip
    adding.ends = True
    adding.after = partial(forward.saved.finish, stats, len(x) * count, affine, about)
    if dx is None:
        return [adding]
    through = new_call(call, loops.through_moments)
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
