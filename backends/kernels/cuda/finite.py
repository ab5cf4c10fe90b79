"""Looks for numbers that are not finite, in one launch for each array and with one copy to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xnn.backends.kernels.cuda.launch import THREADS, Launch, compiled, cupy

__all__ = ["all_finite", "can_count"]

_MOST_BLOCKS, _EACH = 512, 4096  # blocks for an array; elements for a block, up to this number of blocks


def can_count(array: Any) -> bool:
    """Whether the kernel can read the array."""
    return str(array.dtype) in ("float32", "float64") and bool(array.flags.c_contiguous)


def all_finite(arrays: Sequence[Any]) -> bool:
    """Whether every element of every array is finite. Waits for the GPU."""
    blocks = [min(-(-int(array.size) // _EACH), _MOST_BLOCKS) for array in arrays]
    if not sum(blocks):
        return True
    stream, counts, start = cupy().cuda.get_current_stream(), cupy().empty(sum(blocks), "int32"), 0
    for array, grid in zip(arrays, blocks, strict=True):
        if grid:
            arguments = array, int(array.size), counts[start:]
            Launch(
                compiled("numbers", array.dtype), "count_not_finite", (grid,), (THREADS,), arguments, stream
            )()
            start += grid
    return not counts.get(stream=stream).any()
