"""Compiled kernels of layer normalization: each call becomes rows of numbers for `feature_loops.py`.

`layer_norm_kernels.py` has the formulas.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels import feature_loops as loops
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.layer_norm_kernels import extents, serves_backward, serves_moments, serves_normalize
from xnn.backends.kernels.rows import Rows, Writer, grain_of

__all__ = ["LAYER_NORM_ROWS"]


def _moments(call: Call) -> Rows:
    x, m = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    out, (count, _) = Writer(x.dtype, heavy=True), extents(call)
    rows = x.size // count
    out.loop(
        loops.moments_of_rows, rows, x, m, x.itemsize, count, rows, len(m) > 2, grain=grain_of(count)
    )  # fmt: skip
    return out.made


def _normalize(call: Call) -> Rows:
    x, m, *affine = (slot.array for slot in call.reads)
    y: Any = call.writes[0].array  # type: ignore[union-attr]
    out, (count, _) = Writer(x.dtype, heavy=True), extents(call)
    rows = x.size // count
    about = np.empty((3, rows), x.dtype)
    weight, bias = affine or (np.ones(count, x.dtype), np.zeros(count, x.dtype))
    call.saved = about, weight
    epsilon = np.asarray([call.options.get("epsilon", 1e-5)], float)
    out.loop(
        loops.normalize_rows, rows, x, y, x.itemsize, count, call.activation is not None, m, len(m) > 2, about, rows,
        weight, bias, epsilon, grain=grain_of(count),
    )  # fmt: skip
    return out.made


def _normalize_backward(call: Call) -> Rows:
    """Two loops. The first gives the gradients of weight and bias; with ReLU it also clears dy where y is 0, and the
    second, for dx, needs dy so.
    """
    forward = call.forward
    assert forward is not None
    x, y, dy = forward.reads[0].array, forward.writes[0].array, call.reads[0].array  # type: ignore[union-attr]
    dx, _, *affine = (None if slot is None else slot.array for slot in call.writes)
    out, (count, _), (about, weight) = Writer(x.dtype, heavy=True), extents(forward), forward.saved
    rows = x.size // count
    shown, (dweight, dbias) = y if forward.activation is not None else None, affine or (None, None)
    if shown is not None or dweight is not None or dbias is not None:
        out.loop(
            loops.gradients_of_rows, count, x, shown, dy, x.itemsize, count, about, rows, dweight, dbias,
            np.empty((2, count)), grain=grain_of(rows),
        )  # fmt: skip
    if dx is not None:
        out.loop(
            loops.rows_backward, rows, x, dy, dx, x.itemsize, count, about, rows, weight, grain=grain_of(count)
        )  # fmt: skip
    return out.made


LAYER_NORM_ROWS = {
    ("forward", ops.moments): (_moments, serves_moments),
    ("forward", ops.normalize): (_normalize, serves_normalize),
    ("backward", ops.normalize): (_normalize_backward, serves_backward),
}
