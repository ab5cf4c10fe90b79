"""What a model and its loss compute for one batch, and whether they would compute the same once more.

A program is made of a trace once. What Python code reads while it computes - attributes, globals, closures - may
change later. Then a second trace differs from the first, and the program is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn.backends import backend_of
from xnn.errors import OptionError
from xnn.graph.backward import made_from
from xnn.graph.node import Recorded
from xnn.graph.scope import Scope
from xnn.graph.value import Constant, Drawn, Kept, Value
from xnn.layers import Parameter, Sequential
from xnn.layers.parameter import check_all_known
from xnn.losses import Loss

__all__ = ["Trace", "runs_code_of_the_users", "trace"]


@dataclass(frozen=True)
class Trace:
    """One batch through model and loss.

    inputs: samples, targets and perhaps sample weights. outputs, cost: of the model and of the loss. kept: what the
    step does to buffers. order: all values, inputs first.
    """

    inputs: Sequence[Value]
    outputs: Recorded
    cost: Recorded
    kept: Sequence[Kept]
    order: Sequence[Recorded]
    constants: Sequence[Any]

    def is_like(self, other: Trace) -> bool:
        """Whether both compute the same from other inputs: ops, options, constants and what is kept."""
        place = {node: n for n, node in enumerate(self.order)}
        other_place = {node: n for n, node in enumerate(other.order)}
        return (
            len(self.order) == len(other.order)
            and all(
                type(a) is type(b)
                and (a is b if isinstance(a, Parameter) else True)
                and _same_op(a.op, b.op)
                and (a.layer is b.layer if isinstance(a, Drawn) and isinstance(b, Drawn) else True)
                and _same(a.options, b.options)
                and [place[x] for x in a.inbound_nodes] == [other_place[x] for x in b.inbound_nodes]
                for a, b in zip(self.order, other.order, strict=True)
            )
            and all(map(_same, self.constants, other.constants))
            and place[self.outputs] == other_place[other.outputs]
            and place[self.cost] == other_place[other.cost]
            and len(self.kept) == len(other.kept)
            and all(
                a.buffers == b.buffers
                and _same_rule(a.rule, b.rule)
                and _same(a.options, b.options)
                and _same(_place_or_array(a.source, place), _place_or_array(b.source, other_place))
                for a, b in zip(self.kept, other.kept, strict=True)
            )
        )


def trace(model: Sequential, loss: Loss, arrays: Sequence[Any]) -> Trace:
    """Run model and loss on a batch, in training, without changing anything that training counts.

    Raises OptionError for a parameter that the loss does not depend on, or one that is not the model's.
    """
    inputs = [Value(array) for array in arrays]
    scope = Scope(training=True, program=True)
    with scope:
        outputs = model.run(inputs[0], training=True)
        cost = loss.run(outputs, *inputs[1:])
    sources = [kept.source for kept in scope.kept if isinstance(kept.source, Recorded)]
    order = made_from(cost, outputs, *inputs, *sources)
    parameters = model.parameters()
    check_all_known(f"{type(model).__name__} or {type(loss).__name__}", order, parameters)
    used = set(made_from(cost))
    for name, parameter in model.named_parameters():
        if parameter not in used and not parameter.frozen:
            raise OptionError(
                f"the loss does not depend on the model's {name} {parameter.shape}, so that training would never "
                "change it: use it in `compute`, remove it, or set its frozen = True"
            )
    constants = [_copy(node.array) for node in order if type(node) is Constant]
    return Trace(inputs, outputs, cost, scope.kept, order, constants)


def runs_code_of_the_users(model: Sequential, loss: Loss) -> bool:
    """Whether anything but xnn's own layers and losses computes."""
    classes = [type(layer) for layer in model.all_layers()]
    functions: list[Callable[..., Any]] = [
        part.function for part in (*model.all_layers(), loss) if hasattr(part, "function")
    ]
    return bool(functions) or any(
        not cls.__module__.startswith(("xnn.layers.", "xnn.losses.")) for cls in (*classes, type(loss))
    )


def _same_op(a: Any, b: Any) -> bool:
    """The same op, or the same layer or loss that is one."""
    return a is b or (type(a) is type(b) and getattr(a, "owner", a) is getattr(b, "owner", b))


def _same_rule(a: Any, b: Any) -> bool:
    """The same function, or one made again by the same code with the same values around it."""
    if a is b:
        return True
    return getattr(a, "__code__", a) is getattr(b, "__code__", b) and all(map(_same, _around(a), _around(b)))


def _around(rule: Any) -> tuple[Any, ...]:
    """What a function or bound method computes with besides its arguments: closure, default values, its object."""
    closure = [cell.cell_contents for cell in getattr(rule, "__closure__", None) or ()]
    defaults, named = getattr(rule, "__defaults__", None), getattr(rule, "__kwdefaults__", None)
    return closure, defaults, named, getattr(rule, "__self__", None)


def _place_or_array(source: Any, place: dict[Recorded, int]) -> Any:
    """Which value of a trace it is, or else the array or number itself."""
    return place[source] if isinstance(source, Recorded) else source


def _same(a: Any, b: Any) -> bool:
    """Equal, arrays element by element."""
    if a is b:
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if hasattr(a, "shape") and hasattr(b, "shape") and not isinstance(a, type):
        if tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype:
            return False
        lib = backend_of(a, b)
        return bool(np.array_equal(lib.to_host(a), lib.to_host(b), equal_nan=a.dtype.kind == "f"))
    return type(a) is type(b) and bool(a == b)


def _copy(x: Any) -> Any:
    """A host array's copy, since it may be written to; anything else as it is."""
    return x.copy() if isinstance(x, np.ndarray) else x
