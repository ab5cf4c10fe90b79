"""Kernels of an embedding: rows of a table by number, and the gradient of the table, added in a fixed order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.launch import THREADS, TYPES, Launch, by_element, compiled

__all__ = ["embedding", "embedding_backward", "serves_embedding"]

_NUMBERS = 2048  # of the table's gradient that a block computes; embedding.cu has it too


def serves_embedding(call: Call) -> bool:
    """Whether the indices are integers and the table a matrix of float32 or float64, neither of them empty."""
    forward = call.forward or call
    indices, weight = forward.reads
    others = {np.dtype(slot.dtype).name for slot in call.slots() if slot is not indices}
    fits = len(others) == 1 and others <= {"float32", "float64"} and len(weight.shape) == 2
    known = np.dtype(indices.dtype).kind in "iu" and np.dtype(indices.dtype).name in TYPES
    sizes = [math.prod(slot.shape) for slot in call.slots()]
    wanted = call.kind == "forward" or (call.writes[0] is None and call.writes[1] is not None)
    return fits and known and wanted and all(sizes) and max(sizes) < 2**31


def embedding(call: Call, feed: DeviceFeed) -> Any:
    """Copy the chosen rows."""
    (indices, weight), y = (slot.array for slot in call.reads), call.writes[0].array  # type: ignore[union-attr]
    module = compiled("embedding", weight.dtype, INDEX=str(indices.dtype))
    return by_element(module, "embedding", y.size, (indices, weight, y, y.size, *weight.shape), feed.stream)


def embedding_backward(call: Call, feed: DeviceFeed) -> Any:
    """Add the gradient of each place to the row that was chosen there."""
    assert call.forward is not None
    indices, dy, dweight = call.forward.reads[0].array, call.reads[0].array, call.writes[1].array  # type: ignore[union-attr]
    count, width = dweight.shape
    columns = min(width, _NUMBERS)
    rows, lanes = _NUMBERS // columns, 1
    while lanes < min(columns, THREADS):
        lanes *= 2
    grid = -(-count // rows), -(-width // columns)
    arguments = indices, dy, dweight, indices.size, count, width, rows, columns, lanes
    module = compiled("embedding", dweight.dtype, INDEX=str(indices.dtype))
    return Launch(module, "embedding_gradient", grid, (THREADS,), arguments, feed.stream)
