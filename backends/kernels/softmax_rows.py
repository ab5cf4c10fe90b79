"""Compiled kernels of softmax and log-softmax over the last axis: each call becomes one row of numbers.

`image_loops.py` explains the loops' arguments. The formulas are those of `xnn.ops.activations`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.image_calls import ImageCall, new_call
from xnn.backends.kernels.image_kernels import fits
from xnn.backends.kernels.image_loops import numbers, reals
from xnn.backends.kernels.intrinsics import exp_low
from xnn.backends.kernels.jit import inner

__all__ = ["SOFTMAX_ROWS"]


@inner
def _arrays(row: Any, first: Any, last: Any, like: Any) -> Any:
    """What the call reads, y, and what it writes, which is y in a forward call; and the length of a row."""
    r = numbers(row)
    width, many = r[5], r[6]
    begin, count = first * many * width * r[4], (last - first) * many * width
    return (
        reals(r[1] + begin, count, like), reals(r[2] + begin, count, like), reals(r[3] + begin, count, like), width
    )  # fmt: skip


@inner
def _below_largest(x: Any, y: Any, start: Any, width: Any) -> None:
    """y <- x minus the largest x of its row."""
    top = x[start]
    for j in range(1, width):
        if not x[start + j] <= top:  # NaN counts as the largest
            top = x[start + j]
    for j in range(width):
        y[start + j] = x[start + j] - top


def softmax(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """y = e^x / sum e^x, for each row by itself."""
    x, _, y, width = _arrays(row, first, last, like)
    for start in range(0, x.size, width):
        _below_largest(x, y, start, width)
        total = np.float64(0)
        for j in range(start, start + width):
            y[j] = exp_low(y[j])
        for j in range(start, start + width):
            total += y[j]
        share = x.dtype.type(total)
        for j in range(start, start + width):
            y[j] /= share


def softmax_backward(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """dx = y (dy - sum dy y)."""
    dy, y, dx, width = _arrays(row, first, last, like)
    for start in range(0, dy.size, width):
        total = np.float64(0)
        for j in range(start, start + width):
            total += dy[j] * y[j]
        mean = dy.dtype.type(total)
        for j in range(start, start + width):
            dx[j] = y[j] * (dy[j] - mean)


def log_softmax(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """y = x - ln sum e^x."""
    x, _, y, width = _arrays(row, first, last, like)
    for start in range(0, x.size, width):
        _below_largest(x, y, start, width)
        total = np.float64(0)
        for j in range(start, start + width):
            total += exp_low(y[j])
        size = np.log(x.dtype.type(total))
        for j in range(start, start + width):
            y[j] -= size


def log_softmax_backward(
    row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> None:
    """dx = dy - e^y sum dy."""
    dy, y, dx, width = _arrays(row, first, last, like)
    for start in range(0, dy.size, width):
        total = np.float64(0)
        for j in range(start, start + width):
            total += dy[j]
        sum_ = dy.dtype.type(total)
        for j in range(start, start + width):
            dx[j] = dy[j] - exp_low(y[j]) * sum_


_LOOPS: dict[Any, tuple[Any, Any]] = {
    ops.softmax: (softmax, softmax_backward),
    ops.log_softmax: (log_softmax, log_softmax_backward),
}


def _serves(call: Call) -> bool:
    """Whether the axis is the last of several."""
    forward = call.forward or call
    axis, axes = forward.options.get("axis", -1), len(forward.reads[0].shape)
    return fits(call) and axes > 1 and type(axis) is int and axis in (-1, axes - 1)


def _softmax(call: Call) -> ImageCall:
    forward = call.forward or call
    given, y, out = call.reads[0].array, forward.writes[0].array, call.writes[0].array  # type: ignore[union-attr]
    made, (*many, width) = new_call(call, _LOOPS[call.op][call.kind == "backward"]), given.shape[1:]
    addresses = [made.address(array) for array in (given, y, out)]
    made.row += [*addresses, given.itemsize, width, int(np.prod(many))]
    return made


SOFTMAX_ROWS = {(kind, op): (_softmax, _serves) for kind in ("forward", "backward") for op in _LOOPS}
