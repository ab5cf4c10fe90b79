"""Compiled kernels of metrics of outputs and targets of one shape: binary accuracy, absolute and squared errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.image_loops import numbers, reals
from xnn.backends.kernels.intrinsics import pointer
from xnn.backends.kernels.jit import inner
from xnn.backends.kernels.rows import Rows, Writer
from xnn.ops.metrics import absolute_error, accuracy, squared_error

__all__ = ["METRIC_ROWS", "count_classes"]


@inner
def _arrays(row: Any, last: Any, like: Any) -> Any:
    """What a row names: outputs and targets (last * columns,); float64 zeros (columns,), to add up in; the result."""
    r = numbers(row)
    m = r[5]
    sums = reals(r[4], m, np.float64(0))
    sums[:] = 0.0
    return reals(r[1], last * m, like), reals(r[2], last * m, like), sums, reals(r[3], m, like)


@inner
def _leave(sums: Any, out: Any) -> None:
    """out <- sums. Not written as out[:] = sums, which Numba compiles for five seconds."""
    for i in range(sums.size):
        out[i] = sums[i]


def _count_right(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """For each column, how often p > threshold where t > 1/2, and not elsewhere."""
    p, t, sums, out = _arrays(row, last, like)
    threshold, half = reals(numbers(row)[6], 1, np.float64(0))[0], 0.5
    for i in range(p.size):
        sums[i % sums.size] += (p[i] > threshold) == (t[i] > half)
    _leave(sums, out)


def _add_sizes(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """For each column, the sum of |p - t|."""
    p, t, sums, out = _arrays(row, last, like)
    for i in range(p.size):
        sums[i % sums.size] += abs(p[i] - t[i])
    _leave(sums, out)


def _add_squares(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """For each column, the sum of (p - t)^2."""
    p, t, sums, out = _arrays(row, last, like)
    for i in range(p.size):
        difference = p[i] - t[i]
        sums[i % sums.size] += difference * difference
    _leave(sums, out)


def count_classes(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Count the rows whose largest output (the first of several equal ones) is at the label."""
    r = numbers(row)
    n, m, count = r[4], r[5], 0
    outputs, labels = carray(pointer(r[1], like), (n, m)), carray(pointer(r[2], np.int64(0)), n)
    for i in range(n):
        best = 0
        for j in range(1, m):
            x, y = outputs[i, j], outputs[i, best]
            if x > y or (np.isnan(x) and not np.isnan(y)):
                best = j
        count += best == labels[i]
    carray(pointer(r[3], like), 1)[0] = count


_LOOPS: dict[Any, Any] = {accuracy: _count_right, absolute_error: _add_sizes, squared_error: _add_squares}


def _serves(call: Call) -> bool:
    """Whether outputs and targets have one shape, other than (0, ...), and one dtype, float32 or float64."""
    outputs, targets = call.reads
    real = outputs.dtype == targets.dtype and np.dtype(outputs.dtype) in (np.float32, np.float64)
    return real and outputs.shape == targets.shape and bool(outputs.shape) and outputs.shape[0] > 0


def _serves_decisions(call: Call) -> bool:
    columns = np.prod(call.reads[0].shape[1:])
    return _serves(call) and (call.options.get("binary", False) or columns == 1)


def _metric(call: Call) -> Rows:
    (p, t), target = (slot.array for slot in call.reads), call.writes[0]
    assert target is not None
    n, out = len(p), Writer(p.dtype)
    columns, threshold = p.size // n, np.asarray([call.options.get("threshold", 0.0)], float)
    out.loop(_LOOPS[call.op], n, p, t, target.array, np.empty(columns), columns, threshold)
    return out.made


METRIC_ROWS = {("metric", op): (_metric, _serves_decisions if op is accuracy else _serves) for op in _LOOPS}
