"""Functions that change the shape of arrays or join them: reshape, flatten, transpose, concat, stack, identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xnn.errors import OptionError, ShapeError
from xnn.ops.axes import positive_axis
from xnn.ops.op import Array, Namespace, Op, size_of
from xnn.options import check_integer, is_integer

__all__ = ["concat", "flatten", "identity", "reshape", "stack", "transpose"]


class Identity(Op):
    """y = x, the array itself. A graph uses it where the gradients of several readers are added up."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return x, None

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        return (grad,)


class Reshape(Op):
    """The same elements in another shape. One extent may be -1, as in NumPy: it follows from the others.

    shape: a tuple of integers; an integer for one axis.

    >>> import numpy as np
    >>> reshape(np.ones((4, 3)), (6, -1)).shape
    (6, 2)
    """

    positional = ("shape",)

    def forward(self, xp: Namespace, x: Array, *, shape: tuple[int, ...]) -> tuple[Array, Any]:
        extents = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
        return xp.reshape(x, tuple(check_integer("each extent of shape", n) for n in extents)), x.shape

    def backward(self, xp: Namespace, grad: Array, shape: Any) -> tuple[Array | None, ...]:
        return (xp.reshape(grad, shape),)


class Flatten(Op):
    """Join all axes but the first: (n, a, b, ...) becomes (n, a * b * ...)."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return xp.reshape(x, (x.shape[0], size_of(x.shape[1:]))), x.shape

    def backward(self, xp: Namespace, grad: Array, shape: Any) -> tuple[Array | None, ...]:
        return (xp.reshape(grad, shape),)


class Transpose(Op):
    """The axes in another order: y.shape[i] = x.shape[axes[i]].

    axes: a tuple with each axis once; None (default) reverses the order.

    >>> import numpy as np
    >>> transpose(np.ones((2, 3, 4)), (1, 2, 0)).shape
    (3, 4, 2)
    """

    positional = ("axes",)

    def forward(self, xp: Namespace, x: Array, *, axes: tuple[int, ...] | None = None) -> tuple[Array, Any]:
        order = (
            tuple(reversed(range(x.ndim))) if axes is None else tuple(positive_axis(a, x.ndim) for a in axes)
        )
        return xp.permute_dims(x, order), order

    def backward(self, xp: Namespace, grad: Array, order: Any) -> tuple[Array | None, ...]:
        inverse = tuple(order.index(axis) for axis in range(len(order)))
        return (xp.permute_dims(grad, inverse),)


class _Joining(Op):
    """An op of several arrays, which may be given one by one or as one sequence, as in NumPy."""

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if inputs and isinstance(inputs[0], Sequence):
            inputs, rest = tuple(inputs[0]), inputs[1:]
            if len(rest) > 1 or (rest and ("axis" in options or not is_integer(rest[0]))):
                raise OptionError(
                    f"{self.name} got a sequence of arrays and {len(rest)} more positional arguments: it takes the "
                    f"axis only, as in ops.{self.name}((a, b), 1)"
                )
            options = {"axis": rest[0], **options} if rest else options
        return super().__call__(*inputs, **options)


class Concat(_Joining):
    """Arrays joined along an axis that they have: concat((a, b, ...), axis=0) or concat(a, b, ..., axis=0).

    axis: integer; default 0.

    >>> import numpy as np
    >>> concat((np.ones((2, 3)), np.ones((2, 1))), 1).shape
    (2, 4)
    """

    def forward(self, xp: Namespace, *inputs: Array, axis: int = 0) -> tuple[Array, Any]:
        if not inputs:
            raise ShapeError("concat got no arrays: give it at least one")
        axis = positive_axis(axis, inputs[0].ndim)
        return xp.concat(inputs, axis=axis), (tuple(x.shape[axis] for x in inputs), axis)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        extents, axis = saved
        grads, start = [], 0
        for extent in extents:
            grads.append(grad[(slice(None),) * axis + (slice(start, start + extent), ...)])
            start += extent
        return tuple(grads)


class Stack(_Joining):
    """Arrays of one shape joined along a new axis: stack((a, b, ...), axis=0) or stack(a, b, ..., axis=0).

    axis: where the new axis stands in the result; integer; default 0.

    >>> import numpy as np
    >>> stack((np.ones((2, 3)), np.zeros((2, 3))), axis=1).shape
    (2, 2, 3)
    """

    def forward(self, xp: Namespace, *inputs: Array, axis: int = 0) -> tuple[Array, Any]:
        if not inputs:
            raise ShapeError("stack got no arrays: give it at least one")
        axis = positive_axis(axis, inputs[0].ndim + 1)
        return xp.stack(inputs, axis=axis), (len(inputs), axis)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        count, axis = saved
        return tuple(grad[(slice(None),) * axis + (i, ...)] for i in range(count))


identity = Identity()
reshape = Reshape()
flatten = Flatten()
transpose = Transpose()
concat = Concat()
stack = Stack()
