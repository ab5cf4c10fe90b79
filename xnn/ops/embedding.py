"""Embedding: a table's rows, looked up by number."""

from __future__ import annotations

from typing import Any

from xnn.errors import DTypeError, ShapeError
from xnn.ops.op import Array, Namespace, Op, size_of
from xnn.ops.shaping import scatter_add

__all__ = ["embedding"]


class Embedding(Op):
    """Rows of weight (num, dim) for integer indices of any shape: y[..., :] = weight[indices[...], :].

    A row's gradient is the sum over the places where it was taken, over the whole batch. An index outside
    0 .. num - 1 gives a row of NaN and adds to no gradient: an op cannot look at device memory to raise, and a
    wrapped index would train quietly. `layers.Embedding` does raise, on the host. As PyTorch's embedding.
    """

    def forward(self, xp: Namespace, indices: Array, weight: Array) -> tuple[Array, Any]:
        if weight.ndim != 2:
            raise ShapeError(f"embedding needs a weight of shape (num, dim), got {tuple(weight.shape)}")
        if not xp.isdtype(indices.dtype, "integral"):
            raise DTypeError(f"embedding needs integer indices, got {indices.dtype}")
        counting = xp.arange(1, device=indices.device).dtype  # int64: uint8 could not count the rows
        numbers = xp.astype(xp.reshape(indices, (size_of(indices.shape),)), counting)
        valid = xp.logical_and(numbers >= 0, numbers < weight.shape[0])
        numbers, valid = xp.where(valid, numbers, 0), xp.expand_dims(valid, axis=1)
        rows = xp.where(valid, xp.take(weight, numbers, axis=0), float("nan"))
        y = xp.reshape(rows, (*indices.shape, weight.shape[1]))
        return y, (numbers, valid, weight.shape)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        numbers, valid, (count, width) = saved
        rows = xp.where(valid, xp.reshape(grad, (numbers.shape[0], width)), 0.0)
        return None, scatter_add(xp, count, numbers, rows, batch=True)


embedding = Embedding()
