"""Compiled kernels of embeddings: each call becomes one row. `image_loops.py` explains the loops' arguments.

The gradient of the table is added row by row, in the order of the batch, so that its bits do not depend on threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.image_loops import integers, numbers, reals
from xnn.backends.kernels.intrinsics import pointer
from xnn.backends.kernels.jit import inner
from xnn.backends.kernels.rows import Rows, Writer

__all__ = ["EMBEDDING_ROWS"]


@inner
def _arrays(row: Any, last: Any, like: Any) -> Any:
    """The table (rows * width,), the vectors (last * width,), and the extents of the table."""
    r = numbers(row)
    count, width = r[4], r[5]
    return reals(r[2], count * width, like), reals(r[3], last * width, like), count, width


@inner
def _index(row: Any, i: Any) -> Any:
    """Index i of those at r[1], which are int64, int32 or uint8, as the number of bytes at r[6] says."""
    r = numbers(row)
    if r[6] == 8:
        return integers(r[1], i + 1)[i]
    return np.int64(pointer(r[1], np.int32(0))[i] if r[6] == 4 else pointer(r[1], np.uint8(0))[i])


def _embed(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Copy a vector for each of `last` indices; NaN for one that the table does not have."""
    table, vectors, count, width = _arrays(row, last, like)
    for i in range(last):
        index = _index(row, i)
        place = index * width
        if 0 <= index < count:
            for j in range(width):
                vectors[i * width + j] = table[place + j]
        else:
            vectors[i * width : (i + 1) * width] = np.nan


def _add(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Add to the table, which begins with zeros, the vector of each index that it has."""
    table, vectors, count, width = _arrays(row, last, like)
    table[:] = like - like
    for i in range(last):
        index = _index(row, i)
        place = index * width
        if 0 <= index < count:
            for j in range(width):
                table[place + j] += vectors[i * width + j]


def _serves(call: Call) -> bool:
    """Whether there is a table of float32 or float64, and only its gradient is asked for; indices as for `_index`."""
    indices, table = (call.forward or call).reads
    real = np.dtype(table.dtype) in (np.float32, np.float64) and len(table.shape) == 2
    alone = call.forward is None or (call.writes[0] is None and call.writes[1] is not None)
    return real and np.dtype(indices.dtype) in (np.int64, np.int32, np.uint8) and alone


def _embedding(call: Call) -> Rows:
    (indices, table), vectors = (slot.array for slot in call.reads), call.writes[0]
    assert vectors is not None
    out = Writer(table.dtype)
    out.loop(_embed, indices.size, indices, table, vectors.array, *table.shape, indices.itemsize)
    return out.made


def _embedding_backward(call: Call) -> Rows:
    forward, table = call.forward, call.writes[1]
    assert forward is not None
    assert table is not None
    out, indices = Writer(table.dtype), forward.reads[0].array
    out.loop(_add, indices.size, indices, table.array, call.reads[0].array, *table.shape, indices.itemsize)
    return out.made


EMBEDDING_ROWS = {
    ("forward", ops.embedding): (_embedding, _serves),
    ("backward", ops.embedding): (_embedding_backward, _serves),
}
