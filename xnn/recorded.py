"""What graph nodes and autograd's values have in common: they record what was done to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from xnn import ops
from xnn.errors import GraphError
from xnn.ops import Op

__all__ = ["Recorded"]

_creation = itertools.count()


class Recorded:
    """A value, and what was applied to what to make it, and when.

    op: the op that makes the value, None for an input; inbound_nodes: its inputs, in the op's order;
    value: the array; saved: what the op's backward needs; created: a number that grows with every
    Recorded, by which the readers of a value are put in order.
    """

    #: Whether nobody will ask for its gradient.
    is_constant = False
    shape = property(lambda self: self.value.shape, doc="The array's shape.")
    dtype = property(lambda self: self.value.dtype, doc="The array's dtype.")
    ndim = property(lambda self: self.value.ndim, doc="The number of axes.")

    def __init__(self, op: Op | None = None, inbound_nodes: Iterable[Any] = ()) -> None:
        self.op = op
        self.inbound_nodes: list[Any] = list(inbound_nodes)
        self.value: Any = None
        self.saved: Any = None
        self.created = next(_creation)

    def __add__(self, other: Any) -> Any:
        return ops.add(self, other)

    def __radd__(self, other: Any) -> Any:
        return ops.add(other, self)

    def __sub__(self, other: Any) -> Any:
        return ops.sub(self, other)

    def __rsub__(self, other: Any) -> Any:
        return ops.sub(other, self)

    def __mul__(self, other: Any) -> Any:
        return ops.mul(self, other)

    def __rmul__(self, other: Any) -> Any:
        return ops.mul(other, self)

    def __truediv__(self, other: Any) -> Any:
        return ops.div(self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return ops.div(other, self)

    def __pow__(self, other: Any) -> Any:
        return ops.pow(self, other)

    def __rpow__(self, other: Any) -> Any:
        return ops.pow(other, self)

    def __matmul__(self, other: Any) -> Any:
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return ops.matmul(other, self)

    def __neg__(self) -> Any:
        return ops.mul(self, -1.0)

    def __getitem__(self, index: Any) -> Any:
        return ops.getitem(self, index=index)

    __iter__ = None  # an index beyond the end is an error, not the end of a loop

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        # numpy_array + value comes here; numpy.add would go over the array's elements one by one.
        reflected = _REFLECTED.get(ufunc.__name__) if method == "__call__" and not options else None
        if reflected is None:
            raise GraphError(f"numpy.{ufunc.__name__} would lose the gradient: {_instead(ufunc.__name__)}")
        first, second = inputs
        if isinstance(first, Recorded):
            raise GraphError(f"numpy.{ufunc.__name__} of a recorded value: write it with the operator")
        return getattr(second, reflected)(first)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        raise GraphError(f"numpy.{function.__name__} would lose the gradient: {_instead(function.__name__)}")

    if not TYPE_CHECKING:  # else every name would be an attribute

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise AttributeError(
                f"a {type(self).__name__} has no .{name}, as arrays may have: {_instead(name)}"
            )


#: NumPy's function behind an operator, and the operator as the value on its right has it.
_REFLECTED = {
    "add": "__radd__",
    "subtract": "__rsub__",
    "multiply": "__rmul__",
    "divide": "__rtruediv__",
    "power": "__rpow__",
    "matmul": "__rmatmul__",
    "less": "__gt__",
    "less_equal": "__ge__",
    "greater": "__lt__",
    "greater_equal": "__le__",
    "equal": "__eq__",
    "not_equal": "__ne__",
}


def _instead(name: str) -> str:
    """What does the work of NumPy's function or method of this name."""
    name = {"T": "transpose", "concatenate": "concat", "dot": "matmul", "ravel": "reshape"}.get(name, name)
    return f"use ops.{name}" if name in ops.__all__ else "use the functions of xnn.ops and `+ - * / ** @`"
