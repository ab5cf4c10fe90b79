"""Recorded values: arrays that remember the op that made them, so that gradients can flow back.

| class | what it is | where its array comes from |
|---|---|---|
| `xnn.layers.Parameter` | an array that training changes | it is assigned |
| `xnn.graph.value.Value` | what ops return inside `xnn.grad` and `compute` | computed at once |
| `xnn.graph.Node` | a node of a static graph (miniflow.py) | computed by forward_pass |

Ops and the operators `+ - * / ** @ < <= > >=` take any of them. `xnn/graph/backward.py` computes the gradients.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from xnn import ops
from xnn.errors import GraphError
from xnn.ops import Op

__all__ = ["Recorded", "array_of", "next_created"]

#: A number that grows with each recorded value.
next_created = itertools.count().__next__


class Recorded:
    """A value, and the op and the inputs that it was made with.

    op: the op, None for an input. inbound_nodes: the op's inputs in order. options: the op's options. saved: what
    the op's backward needs. created: a number that grows with each recorded value; gradients of a value with
    several readers are added in the order in which the readers were created.
    """

    __slots__ = ()
    #: CuPy's operators leave `array * value` to the value, as NumPy's do by __array_ufunc__.
    __array_priority__ = 1000.0
    #: Parameter 0, Value 1, Node 2: the result of an op is of the class of its input with the highest rank, but of
    #: parameters alone it is a Value, or an array where nothing is recorded.
    rank: ClassVar[int] = 1
    #: Whether it is never differentiated.
    is_constant: ClassVar[bool] = False
    #: The array, for use inside xnn. Users read `value`, which raises where a gradient would be lost.
    array: Any
    op: Op | None = None
    inbound_nodes: Sequence[Recorded] = ()
    options: Mapping[str, Any] = {}
    saved: Any = None

    def __init__(self) -> None:
        self.created = next_created()  # type: ignore[misc]  # a subclass has the place for it

    @classmethod
    def result_of(cls, op: Op, inputs: Sequence[Any], options: Mapping[str, Any]) -> Recorded:
        """The result of an op that has at least one input of this class."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.array.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> Any:
        """The array's dtype."""
        return self.array.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return ops.op.size_of(self.shape)

    @property
    def T(self) -> Any:  # noqa: N802 - NumPy's name
        """The axes in reverse order."""
        return ops.transpose(self)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a value of shape () has no len()")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return True  # not what __len__ says

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise GraphError(f"a NumPy array of a {type(self).__name__} would lose the gradient: use .value")

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

    def __pos__(self) -> Self:
        return self

    def __abs__(self) -> Any:
        return ops.abs(self)

    # Comparisons have no gradient, but a program must compute them for each batch: they are ops as well.
    def __lt__(self, other: Any) -> Any:
        return ops.less(self, other)

    def __le__(self, other: Any) -> Any:
        return ops.less_equal(self, other)

    def __gt__(self, other: Any) -> Any:
        return ops.greater(self, other)

    def __ge__(self, other: Any) -> Any:
        return ops.greater_equal(self, other)

    def __getitem__(self, index: Any) -> Any:
        return ops.getitem(self, index=index)

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

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            if name in ("shape", "dtype"):
                raise AttributeError(f"{self!r} has no {name} yet: feed its Input, or run forward_pass")
            raise AttributeError(f"a {type(self).__name__} has no attribute {name}: {_instead(name)}")


def array_of(x: Any) -> Any:
    """The array of a recorded value; anything else as it is."""
    return x.array if isinstance(x, Recorded) else x


#: NumPy's function behind an operator, and the method of the value on the operator's right.
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

_OTHER_NAMES = {
    "concatenate": "concat", "hstack": "concat", "vstack": "concat", "dot": "matmul", "ravel": "reshape",
    "absolute": "abs", "amax": "max", "amin": "min", "clamp": "clip", "std": "var",
    "permute_dims": "transpose", "swapaxes": "transpose",
}  # fmt: skip


def _instead(name: str) -> str:
    """What to use instead of NumPy's function or method of this name."""
    name = _OTHER_NAMES.get(name, name)
    return (
        f"use ops.{name}"
        if name in ops.__all__
        else ("use the functions of xnn.ops and `+ - * / ** @`, or .value where no gradient is needed")
    )
