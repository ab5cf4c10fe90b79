"""Gradients of functions that you write: values that record what was done to them.

    from xnn import grad, ops

    def f(w, x):
        return ops.sum(ops.sigmoid(x @ w))

    grad(f)(w, x)                               # df/dw
    value_and_grad(f, argnums=(0, 1))(w, x)     # f, (df/dw, df/dx)

Inside f, arguments are `Value`s: use ops, `+ - * / ** @ -` and v[:, 1:]. Arrays and Python numbers mix in as
constants. `float(v)`, NumPy functions and writing into a value are refused, since they could not be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from xnn.backends import backend_of
from xnn.errors import DTypeError, GraphError, OptionError
from xnn.graph import Constant, Node, as_array, backpropagate
from xnn.ops import Array, Op
from xnn.ops.op import forward_of, install
from xnn.recorded import Recorded

__all__ = ["Value", "apply", "grad", "value_and_grad"]


def apply(op: Op, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """What calling an op does: make a node if any input is one, record if any is a Value, else compute."""
    if any(isinstance(x, Node) for x in inputs):
        if any(isinstance(x, Value) for x in inputs):
            raise GraphError(f"{op.name} got graph nodes and recorded values: a function is one or the other")
        node = Node(op, inputs, options)
        if any(source.eager for source in node.inbound_nodes):
            node.eager = True
            node.forward()
        return node
    if any(isinstance(x, Value) for x in inputs):
        return Value.recorded(op, inputs, options)
    return forward_of(op, backend_of(*inputs).math, inputs, options)[0]


install(apply)


class Value(Recorded):
    """An array together with the op and the inputs it came from."""

    def __init__(self, value: Any) -> None:
        if isinstance(value, Value):
            raise GraphError("grad of a grad: gradients are not recorded, so there are no second derivatives")
        super().__init__()
        self.value = as_array(value)

    @classmethod
    def recorded(cls, op: Op, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Value:
        """The op applied to values and constants. A Python number stays one, so it widens no dtype."""
        sources = [x if isinstance(x, Value) else Constant(x) for x in inputs]
        raw = [source.value for source in sources]
        y, saved = forward_of(op, backend_of(*raw).math, raw, options)
        result = cls(y)  # after its inputs: `created` orders a recording
        result.op, result.saved, result.inbound_nodes = op, saved, sources
        return result

    # Comparisons give plain boolean arrays, for ops.where: they have no gradient to record.
    def __lt__(self, other: Any) -> Any:
        return self.value < _raw(other)

    def __le__(self, other: Any) -> Any:
        return self.value <= _raw(other)

    def __gt__(self, other: Any) -> Any:
        return self.value > _raw(other)

    def __ge__(self, other: Any) -> Any:
        return self.value >= _raw(other)

    def __eq__(self, other: object) -> Any:
        return self.value == _raw(other)

    def __ne__(self, other: object) -> Any:
        return self.value != _raw(other)

    __hash__ = object.__hash__

    def __float__(self) -> float:
        raise GraphError(
            "float() of a recorded value would lose its gradient: keep to ops inside the function"
        )

    def __bool__(self) -> bool:
        raise GraphError("a recorded value has no truth value: compare it, or choose with ops.where")

    def __repr__(self) -> str:
        return f"Value({self.value!r})"


def _raw(x: Any) -> Any:
    return x.value if isinstance(x, Value) else x


def value_and_grad(
    f: Callable[..., Any], argnums: int | tuple[int, ...] = 0
) -> Callable[..., tuple[Array, Any]]:
    """A function that returns f's value and its gradient with respect to the arguments at `argnums`.

    f must return one number (a 0-d value) that depends on at least one of them. One index gives one
    gradient, a tuple a tuple, each a fresh array with its argument's shape and dtype; zeros for one that
    f does not use. Raises GraphError otherwise, OptionError for a bad index, DTypeError for integers.
    """
    several = isinstance(argnums, tuple)
    wanted: tuple[int, ...] = argnums if isinstance(argnums, tuple) else (argnums,)

    def differentiated(*arguments: Any, **keywords: Any) -> tuple[Array, Any]:
        if any(not -len(arguments) <= i < len(arguments) for i in wanted):
            raise OptionError(
                f"argnums={argnums} but the function was called with {len(arguments)} arguments"
            )
        values = list(arguments)
        for i in wanted:
            values[i] = Value(arguments[i])
            if not backend_of(values[i].value).xp.isdtype(values[i].dtype, "real floating"):
                raise DTypeError(
                    f"argument {i} is {values[i].dtype}: gradients are of floating-point numbers; "
                    "convert it, or leave it out of argnums"
                )
        result = f(*values, **keywords)
        if not isinstance(result, Value) or result.shape != ():
            got = f"shape {result.shape}" if hasattr(result, "shape") else type(result).__name__
            raise GraphError(
                f"the function must return one number computed from its arguments with ops, got {got}; "
                "ops.sum or ops.mean makes one of an array"
            )
        gradients = gradients_of(result, None, [values[i] for i in wanted])
        return result.value, tuple(gradients) if several else gradients[0]

    return differentiated


def grad(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Callable[..., Any]:
    """A function that returns f's gradient; see value_and_grad."""
    both = value_and_grad(f, argnums)
    return lambda *arguments, **keywords: both(*arguments, **keywords)[1]


def gradients_of(output: Value, seed: Array | None, inputs: list[Value]) -> list[Array]:
    """The gradients of sum(seed * output) with respect to `inputs`; a seed of ones if None."""
    found: dict[Recorded, None] = {output: None}
    queue: list[Recorded] = [output]
    for node in queue:  # grows while it is walked
        for source in node.inbound_nodes:
            if source not in found:
                found[source] = None
                queue.append(source)
    wanted = {*inputs}
    for node in found:
        if node.op is None and not node.is_constant and node not in wanted:
            raise GraphError("the function uses a value of another grad: there are no nested gradients")
    order = sorted(found, key=_age)
    xp = backend_of(output.value).xp
    if seed is None:
        seed = xp.ones(output.shape, dtype=output.dtype, device=output.value.device)
    handed = backpropagate(order, {output: seed})
    gradients = []
    for x in inputs:
        own = handed[x][0] if x in handed else None
        if own is None:
            gradients.append(xp.zeros(x.shape, dtype=x.dtype, device=x.value.device))
        else:
            gradients.append(xp.astype(own, x.dtype, copy=True))
    return gradients


def _age(node: Recorded) -> int:
    return node.created
