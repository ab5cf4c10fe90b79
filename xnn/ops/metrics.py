"""Counts over a batch that metrics are made of; nothing here is differentiated."""

from __future__ import annotations

from xnn.errors import ShapeError
from xnn.ops.op import Array, Namespace

__all__ = ["accuracy"]


def accuracy(xp: Namespace, outputs: Array, targets: Array) -> Array:
    """The number of samples whose largest output is the label, or whose single output > 0 means target > 1/2."""
    if targets.ndim == 1 and outputs.ndim == 2:
        right = xp.astype(xp.argmax(outputs, axis=1), targets.dtype) == targets
    elif targets.shape == outputs.shape and outputs.shape[1:] == (1,):
        right = (outputs > 0.0) == (targets > 0.5)
    else:
        raise ShapeError(
            f"accuracy needs outputs (n, classes) with labels (n,), or both (n, 1); "
            f"got {outputs.shape} and {targets.shape}"
        )
    return xp.sum(xp.astype(right, outputs.dtype))
