"""Values that are computed at once and recorded, and `apply`, which is called when an op is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xnn import ops
from xnn.backends import backend_of, current_backend, current_numerics
from xnn.backends.host_arrays import as_host_array
from xnn.errors import DTypeError, GraphError
from xnn.graph.node import Recorded, array_of, next_created
from xnn.graph.scope import current_scope
from xnn.ops import Array, Op
from xnn.ops.apply import forward_of, fresh_arrays
from xnn.ops.op import install
from xnn.options import shown

__all__ = ["Constant", "Drawn", "Kept", "Value", "apply", "as_array", "drawn"]

# A repr of more elements than this shows dtype and shape.
_SHOWN = 6


class Value(Recorded):
    """A recorded value that is computed at once. Value(array) is an input.

    Raises GraphError for what would lose the gradient: float(), NumPy's functions, another value as the array.
    """

    __slots__ = ("array", "created", "inbound_nodes", "op", "options", "saved")

    def __init__(self, array: Any) -> None:
        if isinstance(array, Value):
            raise GraphError(
                "got a recorded value where an array is needed: in `compute` and under xnn.grad call model(x) and "
                "loss(outputs, targets), not their forward; xnn.grad inside xnn.grad has no second derivatives"
            )
        self.created, self.array = next_created(), as_array(array)
        self.op, self.inbound_nodes, self.options, self.saved = None, (), {}, None

    @classmethod
    def result_of(cls, op: Op, inputs: Sequence[Any], options: Mapping[str, Any]) -> Value:
        """The op's result. Python numbers stay Python numbers: an array of float64 would widen the result."""
        sources = [x if isinstance(x, Recorded) else Constant(x) for x in inputs]
        arrays = [source.array for source in sources]
        value = object.__new__(cls)
        value.array, saved = forward_of(op, backend_of(*arrays).math, arrays, options)
        value.created = next_created()  # after its inputs
        scope = current_scope()
        if scope is None or scope.records:
            saved = None if scope is not None and scope.program else saved  # a program has its own backward
            value.op, value.inbound_nodes, value.options, value.saved = op, sources, options, saved
        else:
            value.op, value.inbound_nodes, value.options, value.saved = None, (), {}, None
        return value

    @property
    def value(self) -> Any:
        """The array, without its gradient. Raises GraphError while a program is made, which would keep it."""
        _refuse_in_a_program("reading .value")
        return self.array

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> Any:
        return ops.equal(self, other)

    def __ne__(self, other: object) -> Any:
        return ops.not_equal(self, other)

    def __float__(self) -> float:
        raise GraphError("float() of a recorded value would lose its gradient: use ops inside the function")

    def __bool__(self) -> bool:
        if not backend_of(self.array).xp.isdtype(self.array.dtype, "bool") or self.shape != ():
            raise GraphError("a recorded value has no truth value: compare it, or choose with ops.where")
        _refuse_in_a_program("a branch on it")
        return bool(self.array)

    def __repr__(self) -> str:
        if self.size > _SHOWN:
            return f"<{type(self).__name__} {self.dtype} {tuple(self.shape)}>"
        return f"{type(self).__name__}({self.array!r})"


def _refuse_in_a_program(what: str) -> None:
    scope = current_scope()
    if scope is not None and scope.program:
        raise GraphError(
            f"{what} would fix the first batch's numbers, since a Trainer runs this code once: choose with "
            "ops.where, compute with ops, or write `forward` and `backward` by hand"
        )


class Constant(Recorded):
    """An array or a Python number that an op was called with, besides recorded values. It is not differentiated."""

    __slots__ = ("array", "created", "inbound_nodes", "op", "options", "saved")
    is_constant = True

    def __init__(self, value: Any) -> None:
        self.created, self.array = next_created(), value
        self.op, self.inbound_nodes, self.options, self.saved = None, (), {}, None

    @property
    def value(self) -> Any:
        """The array or the Python number that was given."""
        return self.array


class Drawn(Value):
    """A random input, such as a dropout mask. `make` draws it, and a program calls `make` at each step.

    layer: the layer that draws, whose seed and step a Trainer sets.
    recipe: what a kernel can draw it from instead; None if none can.
    """

    is_constant = True

    def __init__(self, make: Callable[[], Array], layer: Any) -> None:
        super().__init__(make())
        self.make, self.layer, self.recipe = make, layer, layer.recipe


def drawn(make: Callable[[], Array], layer: Any) -> Any:
    """The array that `make` draws for a layer; while ops are recorded, as a `Drawn`."""
    scope = current_scope()
    return Drawn(make, layer) if scope is not None and scope.records else make()


@dataclass(frozen=True)
class Kept:
    """A change of buffers after a forward pass: their new arrays are rule(xp, *arrays, source, **options)."""

    buffers: Sequence[Any]
    rule: Callable[..., Any]
    source: Any
    options: Mapping[str, Any]

    def apply(self) -> None:
        """Give the buffers their new values now."""
        arrays = (*(buffer.array for buffer in self.buffers), array_of(self.source))
        fresh = fresh_arrays(self.rule, backend_of(*arrays).math, arrays, self.options, arrays[:-1])
        for buffer, array in zip(self.buffers, fresh, strict=True):
            buffer.value = array


def apply(op: Op, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """Apply an op to its inputs. The result is a node for nodes, a recorded value for such values, or an array."""
    for name, option in options.items():
        if isinstance(option, Recorded):
            raise GraphError(
                f"{op.name}: the option {name} is not differentiated: give it an array or a number"
            )
    highest = -1  # rank of the inputs; of arrays and numbers -1
    for x in inputs:
        if isinstance(x, Recorded) and x.rank > highest:
            highest = x.rank
    # A value is among the inputs, or only parameters and arrays are, where what they give is to be recorded.
    if highest == Value.rank or (highest == 0 and _records()):
        return Value.result_of(op, inputs, options)
    # Arrays, and parameters that stand for theirs.
    if highest < Value.rank:
        arrays = [array_of(x) for x in inputs]
        return forward_of(op, backend_of(*arrays).math, arrays, options)[0]
    if any(isinstance(x, Value) for x in inputs):
        raise GraphError(
            f"{op.name} got graph nodes and recorded values: a computation uses one or the other"
        )
    return next(x for x in inputs if getattr(x, "rank", None) == highest).result_of(op, inputs, options)


def _records() -> bool:
    scope = current_scope()
    return scope is not None and scope.records


install(apply)


def as_array(value: Any) -> Array:
    """Return arrays as they are; convert numbers and lists to float64 on the current backend (float32 if exact)."""
    if isinstance(value, (list, tuple)) or type(value) in (int, float, bool):
        numbers = as_host_array(value, "a list that is to be an array")
        if numbers.dtype.kind in "US":
            raise DTypeError(f"a list that is to be an array holds text, {shown(value)}: give numbers")
        return current_backend().to_device(
            numbers, dtype="float64" if current_numerics() == "fast" else "float32"
        )
    if value is None:
        raise DTypeError("got None in place of an array: give an array, a number or a list of numbers")
    backend_of(value)  # raises if it is not an array
    return value
