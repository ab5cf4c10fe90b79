"""Reductions: sum, mean and maximum over one axis, several, or all."""

from __future__ import annotations

from typing import Any, TypeAlias

from xnn.ops.op import Array, Namespace, Op, size_of

__all__ = ["max", "mean", "sum"]

Axis: TypeAlias = int | tuple[int, ...] | None


def _kept(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """The shape after the reduction, as if its axes had been kept with extent 1."""
    if axis is None:
        return (1,) * len(shape)
    axes = {a % len(shape) for a in ((axis,) if isinstance(axis, int) else axis)}
    return tuple(1 if a in axes else extent for a, extent in enumerate(shape))


def _spread(xp: Namespace, grad: Array, shape: tuple[int, ...], axis: Axis) -> Array:
    """The reduction's gradient, copied to every element that was reduced."""
    zeros = xp.zeros(shape, dtype=grad.dtype, device=grad.device)
    return zeros + xp.reshape(grad, _kept(shape, axis))


class Sum(Op):
    """Sum: y = sum of x over `axis`."""

    def forward(
        self, xp: Namespace, x: Array, *, axis: Axis = None, keepdims: bool = False
    ) -> tuple[Array, Any]:
        return xp.sum(x, axis=axis, keepdims=keepdims), (x.shape, axis)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        shape, axis = saved
        return (_spread(xp, grad, shape, axis),)


class Mean(Op):
    """Mean: y = (1/n) sum of x over `axis`, n the number of elements averaged."""

    def forward(
        self, xp: Namespace, x: Array, *, axis: Axis = None, keepdims: bool = False
    ) -> tuple[Array, Any]:
        return xp.mean(x, axis=axis, keepdims=keepdims), (x.shape, axis)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        shape, axis = saved
        kept = _kept(shape, axis)
        n = size_of([extent for extent, one in zip(shape, kept, strict=True) if one != extent])
        return (_spread(xp, grad / n, shape, axis),)


class Max(Op):
    """Maximum of x over `axis`. Elements that tie for it share the gradient evenly, as in PyTorch's amax."""

    def forward(
        self, xp: Namespace, x: Array, *, axis: Axis = None, keepdims: bool = False
    ) -> tuple[Array, Any]:
        y = xp.max(x, axis=axis, keepdims=keepdims)
        return y, (x, y, axis)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        x, y, axis = saved
        kept = _kept(x.shape, axis)
        largest = x == xp.reshape(y, kept)
        ties = xp.sum(xp.astype(largest, x.dtype), axis=axis, keepdims=True)
        # A NaN equals nothing, so its row has no tie: maximum() keeps that from dividing by zero.
        share = xp.reshape(grad, kept) / xp.maximum(ties, 1.0)
        return (xp.where(largest, share, 0.0),)


sum = Sum()
mean = Mean()
max = Max()
