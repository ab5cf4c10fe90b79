"""Compiled kernels of update rules, of clipping, of averages of weights and running statistics, as rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xnn.backends.kernels import update_loops as loops
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.compiled_loops import LANES
from xnn.backends.kernels.rows import Rows, Writer, grain_of
from xnn.backends.kernels.update_kernels import serves_update
from xnn.ops import updates
from xnn.ops.normalization import running_moments

__all__ = ["UPDATE_ROWS"]

_RULES: dict[Any, Any] = {
    updates.adadelta: loops.adadelta, updates.adagrad: loops.adagrad, updates.adam: loops.adam,
    updates.adamw: loops.adamw, updates.lion: loops.lion, updates.nadam: loops.nadam, updates.rmsprop: loops.rmsprop,
    updates.sgd: loops.sgd,
}  # fmt: skip


def _update(call: Call) -> Rows:
    group, out = call.rule, Writer(call.reads[0].dtype)
    for w, g, *state in group.stretches(call):
        kept = [*state, *[None] * (3 - len(state))]
        out.loop(_RULES[call.op], w.size, w, g, *kept, group.numbers, grain=grain_of(1))
    return out.made


def _alike(call: Call) -> bool:
    """Whether all arrays are of one dtype, float32 or float64."""
    dtypes = {np.dtype(slot.dtype) for slot in call.slots()}
    return len(dtypes) == 1 and dtypes <= {np.dtype("f4"), np.dtype("f8")}


def _serves_clip(call: Call) -> bool:
    return _alike(call) and call.reads == call.writes and bool(call.reads)


def _clip_by_value(call: Call) -> Rows:
    out, limit = Writer(call.reads[0].dtype), np.asarray([call.options["limit"]], float)
    for slot in call.reads:
        out.loop(loops.clip_by_value, slot.array.size, slot.array, *[None] * 4, limit, grain=grain_of(1))
    return out.made


def _clip_by_norm(call: Call) -> Rows:
    out, limit = Writer(call.reads[0].dtype), np.asarray([call.options["limit"]], float)
    gradients, sums, factor = [slot.array for slot in call.reads], np.zeros(LANES), np.empty(1)
    for g in gradients:
        out.loop(loops.add_squares, g.size, g, *[None] * 4, sums)
    out.loop(loops.clip_by_norm, 1, *[None] * 4, limit, sums, factor)
    for g in gradients:
        out.loop(loops.scale, g.size, g, *[None] * 5, factor, grain=grain_of(1))
    return out.made


def _moving_average(call: Call) -> Rows:
    average, value = (slot.array for slot in call.reads)
    out = Writer(average.dtype)
    decay = np.asarray([call.options["decay"]], float)
    out.loop(loops.moving_average, average.size, average, value, *[None] * 3, decay, grain=grain_of(1))
    return out.made


def _serves_running(call: Call) -> bool:
    mean, variance, moments = (slot.shape for slot in call.reads)
    fits = moments[0] in (2, 3) and math.prod(moments[1:]) == math.prod(mean)
    return _alike(call) and mean == variance and fits and call.options["momentum"] != 0.0


def _running_moments(call: Call) -> Rows:
    mean, variance, moments = (slot.array for slot in call.reads)
    axes, shape = call.options["axis"], call.options["shape"]
    n, momentum = math.prod(shape[axis] for axis in axes), call.options["momentum"]
    shares = [1.0 - momentum, momentum if n else 0.0, momentum * (n / (n - 1)) if n > 1 else 0.0]
    out = Writer(mean.dtype)
    columns = mean, variance, moments, len(moments) > 2, None, np.asarray(shares, float)
    out.loop(loops.running_moments, mean.size, *columns)
    return out.made


UPDATE_ROWS = {
    **{("update", rule): (_update, serves_update) for rule in _RULES},
    ("clip", updates.clip_by_value): (_clip_by_value, _serves_clip),
    ("clip", updates.clip_by_norm): (_clip_by_norm, _serves_clip),
    ("keep", updates.moving_average): (_moving_average, _alike),
    ("keep", running_moments): (_running_moments, _serves_running),
}
