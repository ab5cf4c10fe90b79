"""Reductions: sum, mean, variance, maximum and minimum over one axis, several, or all; and the L2 penalty.

All but the penalty take the same options:

axis: an integer, a tuple of integers, or None (default) for all axes. A single number may be reduced over axis 0 or
    -1, which changes nothing.
keepdims: whether the reduced axes stay, with extent 1; default False.

Of no elements, the sum is 0, as in NumPy and PyTorch. Mean, variance, maximum and minimum raise ShapeError then,
unless the result has no elements either. Each raises OptionError for other options and ShapeError for an axis that x
does not have.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from xnn.errors import OptionError, ShapeError
from xnn.ops.axes import reduced_axes
from xnn.ops.op import Array, Namespace, Op, size_of
from xnn.ops.sums import pairwise_mean, pairwise_sum
from xnn.options import check_real

__all__ = ["l2_penalty", "max", "mean", "min", "sum", "var"]

Axis: TypeAlias = int | tuple[int, ...] | None


def _kept(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape after the reduction, with extent 1 for the reduced axes."""
    return tuple(1 if a in axes else extent for a, extent in enumerate(shape))


def _count(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """How many elements are reduced to one."""
    return size_of([shape[a] for a in axes])


def _spread(xp: Namespace, grad: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """The gradient of the result, copied to every element that was reduced."""
    zeros = xp.zeros(shape, dtype=grad.dtype, device=grad.device)
    return zeros + xp.reshape(grad, _kept(shape, axes))


class _Reduction(Op):
    positional = ("axis",)

    def axes(self, x: Array, axis: Axis) -> tuple[int, ...]:
        """The axes to reduce. Raises ShapeError if a result would be computed from no elements."""
        axes = reduced_axes(axis, x.ndim)
        if not _count(x.shape, axes) and size_of(_kept(x.shape, axes)):
            raise ShapeError(
                f"{self.name} of no elements, axis={axis} of an array of shape {tuple(x.shape)}: give it at least one"
            )
        return axes


class Sum(_Reduction):
    """Sum of x over `axis`; dy/dx = 1.

    >>> import numpy as np
    >>> sum(np.ones((2, 3)), axis=1)
    array([3., 3.])
    """

    def forward(
        self, xp: Namespace, x: Array, *, axis: Axis = None, keepdims: bool = False
    ) -> tuple[Array, Any]:
        axes = reduced_axes(axis, x.ndim)
        return pairwise_sum(xp, x, axes, keepdims), (x.shape, axes)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        shape, axes = saved
        return (_spread(xp, grad, shape, axes),)


class Mean(_Reduction):
    """Mean of x over `axis`: y = (1/n) sum x, where n is the number of elements averaged; dy/dx = 1/n."""

    def forward(
        self, xp: Namespace, x: Array, *, axis: Axis = None, keepdims: bool = False
    ) -> tuple[Array, Any]:
        axes = self.axes(x, axis)
        return pairwise_mean(xp, x, axes, keepdims), (x.shape, axes)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        shape, axes = saved
        return (_spread(xp, grad / (_count(shape, axes) or 1), shape, axes),)


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

    def check_options(self, *, correction: Any = 0, **others: Any) -> None:
        check_real("correction", correction)

    def forward(
        self, xp: Namespace, x: Array, *, axis: Axis = None, keepdims: bool = False, correction: float = 0
    ) -> tuple[Array, Any]:
        axes = self.axes(x, axis)
        n = _count(x.shape, axes)
        if n <= correction:
            raise OptionError(
                f"var over {n} elements with correction {correction}: there must be more elements than that"
            )
        divisor = float(n - correction)
        away = x - pairwise_mean(xp, x, axes, keepdims=True)
        return pairwise_sum(xp, away * away, axes, keepdims) / divisor, (away, divisor, axes)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        away, divisor, axes = saved
        return (away * (xp.reshape(grad, _kept(away.shape, axes)) * (2.0 / divisor)),)


class Max(_Reduction):
    """Maximum of x over `axis`; NaN if there is a NaN.

    Elements that tie for it share the gradient evenly, as in PyTorch's amax. If there are NaNs, these share it.
    """

    def forward(
        self, xp: Namespace, x: Array, *, axis: Axis = None, keepdims: bool = False
    ) -> tuple[Array, Any]:
        return self.extreme(xp, xp.max, x, axis, keepdims)

    def extreme(
        self, xp: Namespace, function: Any, x: Array, axis: Axis, keepdims: bool
    ) -> tuple[Array, Any]:
        """The maximum or minimum, by a function of `xp`."""
        axes = self.axes(x, axis)
        y = function(x, axis=axes, keepdims=keepdims)
        return y, (x, y, axes)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        x, y, axes = saved
        kept = _kept(x.shape, axes)
        chosen = xp.logical_or(x == xp.reshape(y, kept), x != x)
        ties = pairwise_sum(xp, xp.astype(chosen, x.dtype), axes, keepdims=True)
        return (xp.where(chosen, xp.reshape(grad, kept) / ties, 0.0),)


class Min(Max):
    """Minimum of x over `axis`; NaN if there is a NaN.

    Elements that tie for it share the gradient evenly, as in PyTorch's amin. If there are NaNs, these share it.
    """

    def forward(
        self, xp: Namespace, x: Array, *, axis: Axis = None, keepdims: bool = False
    ) -> tuple[Array, Any]:
        return self.extreme(xp, xp.min, x, axis, keepdims)


class L2Penalty(Op):
    """Half the sum of the squares of one or several arrays, times a strength.

    y = strength / 2 (sum a^2 + sum b^2 + ...); dy/da = strength a. strength: a finite number, default 1.

    >>> import numpy as np
    >>> float(l2_penalty(np.array([[3.0, 4.0]]), np.array([1.0]), strength=0.1))
    1.3
    """

    name = "l2_penalty"

    def forward(self, xp: Namespace, *arrays: Array, strength: float = 1.0) -> tuple[Array, Any]:
        if not arrays:
            raise ShapeError("l2_penalty of no arrays: give it at least one, such as a layer's weight")
        check_real("strength", strength)
        flat = [xp.reshape(a, (-1,)) for a in arrays]
        total = xp.matmul(flat[0], flat[0])
        for a in flat[1:]:
            total = total + xp.matmul(a, a)
        return total * (0.5 * strength), (arrays, strength)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        arrays, strength = saved
        return tuple((grad * strength) * a for a in arrays)


sum = Sum()
mean = Mean()
var = Var()
max = Max()
min = Min()
l2_penalty = L2Penalty()
