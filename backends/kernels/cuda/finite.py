"""Looks for numbers that are not finite, in one launch for up to 16 arrays and with one copy to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xnn.backends.kernels.cuda.launch import THREADS, Launch, compiled, cupy, structure

__all__ = ["all_finite", "can_count"]

_MOST_BLOCKS, _EACH = 512, 4096  # blocks for an array; elements for a block, up to this number of blocks
_ARRAYS = 16  # of a launch; numbers.cu has it too


def can_count(array: Any) -> bool:
    """Whether the kernel can read the array."""
    return str(array.dtype) in ("float32", "float64") and bool(array.flags.c_contiguous)


def all_finite(arrays: Sequence[Any]) -> bool:
    """Whether every element of every array is finite. Waits for the GPU."""
    parts = []
    for dtype in ("float32", "float64"):
        ours = [array for array in arrays if array.dtype == dtype and array.size]
        parts += [ours[start : start + _ARRAYS] for start in range(0, len(ours), _ARRAYS)]
    if not parts:
        return True
    blocks = [min(-(-max(int(array.size) for array in part) // _EACH), _MOST_BLOCKS) for part in parts]
    stream, start = cupy().cuda.get_current_stream(), 0
    counts = cupy().empty(sum(len(part) * grid for part, grid in zip(parts, blocks, strict=True)), "int32")
    for part, grid in zip(parts, blocks, strict=True):
        padded = [*part, *[None] * (_ARRAYS - len(part))]
        places = {f"at{number}": array for number, array in enumerate(padded)}
        sizes = {
            f"size{number}": 0 if array is None else int(array.size) for number, array in enumerate(padded)
        }
        arguments = structure("Arrays", **places, **sizes), counts[start:]
        module = compiled("numbers", part[0].dtype)
        Launch(module, "count_not_finite", (grid, len(part)), (THREADS,), arguments, stream)()
        start += len(part) * grid
    return not counts.get(stream=stream).any()
