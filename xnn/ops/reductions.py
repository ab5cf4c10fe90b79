"""Reductions: sum, mean, variance, maximum and minimum over one axis, several, or all.

All take the same options:

axis: an integer, a tuple of integers, or None (default) for all axes.
keepdims: whether the reduced axes stay, with extent 1; default False.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from xnn.errors import OptionError
from xnn.ops.op import Array, Namespace, Op, size_of
from xnn.ops.sums import pairwise_mean, pairwise_sum

__all__ = ["max", "mean", "min", "sum", "var"]

Axis: TypeAlias = int | tuple[int, ...] | None


def _kept(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """The shape after the reduction, with extent 1 for the reduced axes."""
    if axis is None:
        return (1,) * len(shape)
    axes = {a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))}
    return tuple(1 if a in axes else extent for a, extent in enumerate(shape))


def _count(shape: tuple[int, ...], axis: Axis) -> int:
    """How many elements are reduced to one."""
    kept = _kept(shape, axis)
    return size_of([extent for extent, one in zip(shape, kept, strict=True) if one != extent])


def _spread(xp: Namespace, grad: Array, shape: tuple[int, ...], axis: Axis) -> Array:
    """The gradient of the result, copied to every element that was reduced."""
    zeros = xp.zeros(shape, dtype=grad.dtype, device=grad.device)
    return zeros + xp.reshape(grad, _kept(shape, axis))


class _Reduction(Op):
    positional = ("axis",)


class Sum(_Reduction):
    """Sum of x over `axis`; dy/dx = 1.

    >>> import numpy as np
    >>> sum(np.ones((2, 3)), axis=1)
    array([3., 3.])
    """

    def forward(
        self, xp: Namespace, x: Array, *, axis: Axis = None, keepdims: bool = False
    ) -> tuple[Array, Any]:
        return pairwise_sum(xp, x, axis, keepdims), (x.shape, axis)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        shape, axis = saved
        return (_spread(xp, grad, shape, axis),)


class Mean(_Reduction):
    """Mean of x over `axis`: y = (1/n) sum x, where n is the number of elements averaged; dy/dx = 1/n."""

    def forward(
        self, xp: Namespace, x: Array, *, axis: Axis = None, keepdims: bool = False
    ) -> tuple[Array, Any]:
        return pairwise_mean(xp, x, axis, keepdims), (x.shape, axis)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        shape, axis = saved
        return (_spread(xp, grad / _count(shape, axis), shape, axis),)


class Var(_Reduction):
    """Variance of x over `axis`: y = sum (x - mean)^2 / (n - correction); dy/dx = 2 (x - mean) / (n - correction).

    correction: a number below n; default 0, as in NumPy (its `ddof`). PyTorch's default is 1.

    Raises OptionError unless there are more elements than `correction`.

    >>> import numpy as np
    >>> x = np.array([[1.0, 3.0], [2.0, 6.0]])
    >>> var(x, axis=1)
    array([1., 4.])
    >>> var(x, axis=1, correction=1)
    array([2., 8.])
    """

    def forward(
        self, xp: Namespace, x: Array, *, axis: Axis = None, keepdims: bool = False, correction: float = 0
    ) -> tuple[Array, Any]:
        n = _count(x.shape, axis)
        if n <= correction:
            raise OptionError(
                f"var over {n} elements with correction {correction}: there must be more elements than that"
            )
        divisor = float(n - correction)
        away = x - pairwise_mean(xp, x, axis, keepdims=True)
        return pairwise_sum(xp, away * away, axis, keepdims) / divisor, (away, divisor, axis)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        away, divisor, axis = saved
        return (away * (xp.reshape(grad, _kept(away.shape, axis)) * (2.0 / divisor)),)


class Max(_Reduction):
    """Maximum of x over `axis`. Elements that tie for it share the gradient evenly, as in PyTorch's amax."""

    def forward(
        self, xp: Namespace, x: Array, *, axis: Axis = None, keepdims: bool = False
    ) -> tuple[Array, Any]:
        y = xp.max(x, axis=axis, keepdims=keepdims)
        return y, (x, y, axis)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        x, y, axis = saved
        kept = _kept(x.shape, axis)
        chosen = x == xp.reshape(y, kept)
        ties = pairwise_sum(xp, xp.astype(chosen, x.dtype), axis, keepdims=True)
        # A NaN is not equal to itself, so where y is NaN there are no ties: maximum() avoids a division by zero.
        share = xp.reshape(grad, kept) / xp.maximum(ties, 1.0)
        return (xp.where(chosen, share, 0.0),)


class Min(Max):
    """Minimum of x over `axis`. Elements that tie for it share the gradient evenly, as in PyTorch's amin."""

    def forward(
        self, xp: Namespace, x: Array, *, axis: Axis = None, keepdims: bool = False
    ) -> tuple[Array, Any]:
        y = xp.min(x, axis=axis, keepdims=keepdims)
        return y, (x, y, axis)


sum = Sum()
mean = Mean()
var = Var()
max = Max()
min = Min()
