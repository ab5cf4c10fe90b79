"""Kernels of ops whose result has the elements of their input in the same order: mostly, nothing is left to do."""

from __future__ import annotations

import numpy as np

from xnn import ops
from xnn.backends.kernels.calls import Call, Runnable, nothing

__all__ = ["SHAPES", "SHAPE_KERNELS"]

SHAPES = frozenset({ops.flatten, ops.reshape, ops.identity})


def _serves(call: Call) -> bool:
    """Whether the elements stay as they are."""
    source, target = call.reads[0], call.writes[0]
    return target is not None and source.dtype == target.dtype and len(source.shape) > 0


def _shape(call: Call) -> Runnable:
    """Nothing is left to do if the result has the memory of the input (`KernelTable.views`)."""
    source, target = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    if np.shares_memory(source, target):
        return nothing
    return lambda: np.copyto(target, source.reshape(target.shape))


SHAPE_KERNELS = {(kind, op): (_shape, _serves) for kind in ("forward", "backward") for op in SHAPES}
