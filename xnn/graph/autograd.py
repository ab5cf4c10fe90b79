"""Computes the gradients of functions that you write: grad and value_and_grad.

    from xnn import grad, ops, value_and_grad

    def f(w, x):
        return ops.sum(ops.sigmoid(x @ w))

    grad(f)(w, x)                               # df/dw
    value_and_grad(f, argnums=(0, 1))(w, x)     # f, (df/dw, df/dx)

Inside f the arguments are `Value`s: use ops, `+ - * / ** @`, `v[:, 1:]`, layers, models and losses. Arrays and Python
numbers mix in as constants. An argument may be a tuple, list or dict of arrays, and may hold parameters:

    value_and_grad(lambda parameters: loss(model(x), y))(model.parameters())

`float(v)`, NumPy's functions and writing into a value raise GraphError, since they could not be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from numbers import Real
from typing import Any

from xnn.backends import backend_of
from xnn.backends.registry import explaining
from xnn.errors import DTypeError, GraphError, OptionError
from xnn.graph.backward import backpropagate, made_from
from xnn.graph.node import Recorded
from xnn.graph.scope import Scope
from xnn.graph.value import Value
from xnn.ops import Array

__all__ = ["Value", "grad", "gradients_of", "value_and_grad"]


def value_and_grad(
    f: Callable[..., Any], argnums: int | tuple[int, ...] = 0
) -> Callable[..., tuple[Array, Any]]:
    """A function that returns f's value and its gradient with respect to the arguments at `argnums`.

    f: a function that returns one number (a value of shape ()), computed with ops, layers or losses.
    argnums: the position of an argument, or several in a tuple; 0 is the first. The argument is an array, a number, a
        `xnn.layers.Parameter`, or a tuple, list or dict of them, nested as you like.

    The gradient has the argument's structure. Each of its arrays has the shape and dtype of the array that it belongs
    to, and is zeros if f does not use that array. Several argnums give a tuple of gradients.

    Raises OptionError for a position without an argument, DTypeError for integers, and GraphError for a result that
    is not one number computed from the arguments.

        >>> import numpy as np, xnn
        >>> from xnn import ops
        >>> value, gradient = xnn.value_and_grad(lambda p: ops.sum(p["w"] * p["w"]))({"w": np.array([1.0, 3.0])})
        >>> float(value), gradient["w"].tolist()
        (10.0, [2.0, 6.0])
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
            values[i] = _mapped(arguments[i], partial(_differentiable, f"argument {i}"))
        inputs = [leaf for i in wanted for leaf in _leaves(values[i])]
        with Scope(guarded=any(not isinstance(x, Value) for x in inputs)):
            result = f(*values, **keywords)
        if not isinstance(result, Value) or result.shape != ():
            got = f"shape {tuple(result.shape)}" if hasattr(result, "shape") else type(result).__name__
            hint = "ops.sum or ops.mean makes one of an array"
            if not isinstance(result, Value):
                got += ", which was not computed from them"
                hint = "use ops, model(x) and loss(outputs, targets), not NumPy's functions or a forward"
            raise GraphError(
                f"the function must return one number computed from its arguments with ops, got {got}; {hint}"
            )
        found = dict(zip(inputs, gradients_of(result, None, inputs), strict=True))
        gradients = tuple(_mapped(values[i], found.__getitem__) for i in wanted)
        return result.value, gradients if several else gradients[0]

    return differentiated


def grad(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Callable[..., Any]:
    """A function that returns f's gradient with respect to the arguments at `argnums`; see `value_and_grad`.

    >>> import numpy as np, xnn
    >>> from xnn import ops
    >>> xnn.grad(lambda x: ops.sum(x * x * x))(np.array([1.0, 2.0])).tolist()
    [3.0, 12.0]
    """
    both = value_and_grad(f, argnums)
    return lambda *arguments, **keywords: both(*arguments, **keywords)[1]


def gradients_of(output: Value, dout: Array | None, inputs: list[Any]) -> list[Array]:
    """The gradients of sum(dout * output) with respect to `inputs`. `dout` is an array, by default of ones."""
    order, wanted = made_from(output), set(inputs)
    for node in order:
        if type(node) is Value and node.op is None and node not in wanted:
            raise GraphError(
                "the function uses a value of another grad; gradients cannot be nested: pass its .value"
            )
    xp = backend_of(output.array).xp
    with explaining(output.array):
        if dout is None:
            dout = xp.ones(output.shape, dtype=output.dtype, device=output.array.device)
        handed = backpropagate(order, {output: dout}, wanted)
        gradients = []
        for x in inputs:
            own = handed[x][0] if x in handed else None
            if own is None:
                gradients.append(xp.zeros(x.shape, dtype=x.array.dtype, device=x.array.device))
            else:
                gradients.append(xp.astype(own, x.array.dtype, copy=True))
    return gradients


def _differentiable(name: str, leaf: Any) -> Recorded:
    """A parameter as it is, anything else as an input. Raises DTypeError unless it is floating-point."""
    value = leaf if isinstance(leaf, Recorded) and not isinstance(leaf, Value) else Value(leaf)
    if not backend_of(value.array).xp.isdtype(value.array.dtype, "real floating"):
        raise DTypeError(
            f"{name} is {value.array.dtype}: gradients are of floating-point numbers; "
            "convert it, or leave it out of argnums"
        )
    return value


def _mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to each leaf of tuples (named ones too), lists and dicts, and keep their structure.

    A list of numbers, nested or not, is one leaf: an array.
    """
    if _is_numbers(tree):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _mapped(part, function) for key, part in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_mapped(part, function) for part in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(_mapped(part, function) for part in tree)
    return function(tree)


def _leaves(tree: Any) -> Iterator[Any]:
    """The leaves of a structure, in the order in which `_mapped` visits them."""
    found: list[Any] = []
    _mapped(tree, found.append)
    return iter(found)


def _is_numbers(tree: Any) -> bool:
    """Whether a value is a list or tuple of numbers, or of such lists."""
    return (
        isinstance(tree, (list, tuple))
        and bool(tree)
        and all(isinstance(part, Real) or _is_numbers(part) for part in tree)
    )
