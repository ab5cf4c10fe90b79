"""Compiled kernels of layer normalization: each call becomes one row of numbers for `feature_loops.py`.

`layer_norm_kernels.py` has the formulas.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels import feature_loops as loops
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.image_calls import ImageCall, new_call
from xnn.backends.kernels.layer_norm_kernels import (
    RowNumbers,
    complete_moments,
    extents,
    serves_backward,
    serves_moments,
    serves_normalize,
    store_sums,
)

__all__ = ["LAYER_NORM_ROWS"]


def _moments(call: Call) -> ImageCall:
    x, m = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    made = new_call(call, loops.moments_of_rows)
    made.row += [made.address(x), made.address(m[0]), made.address(m[1]), x.itemsize, *extents(call)]
    made.after, made.ends = partial(complete_moments, call), True
    return made


def _normalize(call: Call) -> ImageCall:
    x, m, *_ = (slot.array for slot in call.reads)
    y: Any = call.writes[0].array  # type: ignore[union-attr]
    made, (count, many), found = new_call(call, loops.normalize_rows), extents(call), RowNumbers(call)
    call.saved = found
    made.before, made.late = found.compute, (m, found.weight, found.bias)
    made.row += [
        made.address(x), made.address(y), x.itemsize, count, many, call.activation is not None,
        made.address(found.about), found.about.shape[1], made.address(found.weight), made.address(found.bias),
    ]  # fmt: skip
    return made


def _normalize_backward(call: Call) -> ImageCall:
    forward = call.forward
    assert forward is not None
    x, y, dy = forward.reads[0].array, forward.writes[0].array, call.reads[0].array  # type: ignore[union-attr]
    dx, _, *affine = (None if slot is None else slot.array for slot in call.writes)
    made, (count, many), found = new_call(call, loops.rows_backward), extents(forward), forward.saved
    sums = np.zeros((made.parts, 2, count))

    def finish() -> None:
        dbias, dweight = sums.sum(axis=0, dtype=np.float64)
        store_sums((dweight, dbias), affine)

    made.after, made.late = finish, (found.weight, *affine)
    made.row += [
        made.address(x), 0 if forward.activation is None else made.address(y), made.address(dy), made.address(dx),
        x.itemsize, count, made.address(found.about), many, found.about.shape[1], made.address(found.weight),
        made.address(sums),
    ]  # fmt: skip
    return made


LAYER_NORM_ROWS = {
    ("forward", ops.moments): (_moments, serves_moments),
    ("forward", ops.normalize): (_normalize, serves_normalize),
    ("backward", ops.normalize): (_normalize_backward, serves_backward),
}
