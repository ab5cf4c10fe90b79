"""Kernels of dropout in plain NumPy: a mask of integers keeps or clears all bits of x / (1 - rate)."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels.batch_parts import in_parts
from xnn.backends.kernels.calls import Call, Runnable

__all__ = ["DROPOUT_KERNELS", "SIGNED", "serves_dropout"]

#: The integers that have the bytes of a floating-point number.
SIGNED = {4: np.int32, 8: np.int64}


def serves_dropout(call: Call) -> bool:
    """Whether the input is float32 or float64, and the mask is boolean and has the input's shape."""
    x, keep = (call.forward or call).reads
    return bool(
        np.dtype(x.dtype) in (np.float32, np.float64) and x.shape == keep.shape and keep.dtype == np.bool_
    )


def _dropout(call: Call) -> Runnable:
    forward = call.forward or call
    x: Any = call.reads[0].array
    y: Any = call.writes[0].array  # type: ignore[union-attr]
    flags = forward.reads[1].array.view(np.int8)
    bits = y.view(SIGNED[y.itemsize])
    small, mask = np.empty_like(flags), np.empty_like(bits)
    scale = y.dtype.type(1.0 / (1.0 - forward.options["rate"]))

    def run() -> None:
        np.negative(flags, out=small)  # True becomes -1, which is all ones
        np.copyto(mask, small)
        np.multiply(x, scale, out=y)
        np.bitwise_and(bits, mask, out=bits)

    return run


DROPOUT_KERNELS = {
    (kind, ops.dropout): (in_parts(_dropout), serves_dropout) for kind in ("forward", "backward")
}
