"""Compiled kernels of sums of branches, and of means over images: rows of numbers for `branch_loops.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels import branch_loops as loops
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.image_calls import ImageCall, new_call
from xnn.backends.kernels.image_kernels import fits

__all__ = ["BRANCH_ROWS"]


def _serves_sum(call: Call) -> bool:
    """Whether all arrays have one shape, with a sample's axis before others."""
    slots = call.slots()
    return fits(call) and len(slots[0].shape) > 1 and all(slot.shape == slots[0].shape for slot in slots)


def _serves_total(call: Call) -> bool:
    slots = [slot for slot in (*call.reads, *call.writes) if slot is not None]
    alike = {(tuple(slot.shape), np.dtype(slot.dtype)) for slot in slots}
    shape, dtype = next(iter(alike))
    return len(alike) == 1 and len(shape) > 1 and 0 not in shape and dtype in (np.float32, np.float64)


def _table(made: ImageCall, arrays: list[Any]) -> tuple[int, int]:
    """The address of the addresses of arrays, and how many there are."""
    return made.address(np.array([made.address(array) for array in arrays], np.int64)), len(arrays)


def _add(call: Call) -> ImageCall:
    y: Any = call.writes[0].array  # type: ignore[union-attr]
    made = new_call(call, loops.add)
    terms, count = _table(made, [slot.array for slot in call.reads])
    made.row += [made.address(y), terms, y[0].size, y.itemsize, count]
    return made


def _add_backward(call: Call) -> ImageCall:
    made, dy = new_call(call, loops.copy), call.reads[0].array
    targets, count = _table(made, [slot.array for slot in call.writes if slot is not None])
    made.row += [made.address(dy), targets, dy[0].size, dy.itemsize, count]
    return made


def _serves_mean(call: Call) -> bool:
    """Whether the mean of images (n, channels, height, width) is over height and width."""
    forward = call.forward or call
    x, axis = forward.reads[0], forward.options.get("axis")
    axes = axis if isinstance(axis, tuple) else ()
    return (
        fits(call)
        and len(x.shape) == 4
        and {a % 4 for a in axes if isinstance(a, int)} == {2, 3}
        and len(axes) == 2
    )


def _mean(call: Call) -> ImageCall:
    forward = call.forward or call
    image, pooled = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    if call.kind == "backward":
        image, pooled = pooled, image
    made = new_call(call, loops.mean_backward if forward is not call else loops.mean)
    made.row += [made.address(image), made.address(pooled), image.itemsize, image.shape[1], image[0, 0].size]
    return made


BRANCH_ROWS = {
    ("forward", ops.add): (_add, _serves_sum),
    ("backward", ops.add): (_add_backward, _serves_sum),
    ("add", None): (_add, _serves_total),
    ("forward", ops.mean): (_mean, _serves_mean),
    ("backward", ops.mean): (_mean, _serves_mean),
}
