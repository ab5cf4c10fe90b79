"""Records what a model and its loss compute for one batch, and compares two such records.

A program is made from a trace once. What Python code reads while it computes - attributes, globals, closures - may
change later. Then a second trace differs from the first, and the program is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xnn.backends import backend_of
from xnn.errors import OptionError
from xnn.graph.backward import made_from
from xnn.graph.node import Recorded
from xnn.graph.scope import Scope
from xnn.graph.value import Constant, Drawn, Kept, Value
from xnn.layers import Parameter, Sequential
from xnn.layers.parameter import check_all_known
from xnn.losses import Loss
from xnn.optimizers import Optimizer
from xnn.schedules import Warmup
from xnn.training.closures import enclosed

__all__ = [
    "Trace",
    "check_reduces",
    "runs_code_between_steps",
    "runs_code_of_the_optimizer",
    "runs_code_of_the_users",
    "trace",
]


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

    def free(self) -> None:
        """Free the arrays of inputs and results. `is_like` needs none of them."""
        for node in self.order:
            if isinstance(node, Value):
                node.array = None

    def is_like(self, other: Trace, sizes: Sequence[int] = ()) -> bool:
        """Whether another trace has the same ops, options, constants and changes of buffers. Inputs may differ.

        sizes: the numbers of rows of both, if shapes among the options may begin with them.
        """
        place = {node: n for n, node in enumerate(self.order)}
        other_place = {node: n for n, node in enumerate(other.order)}
        return (
            len(self.order) == len(other.order)
            and all(
                type(a) is type(b)
                and (a is b if isinstance(a, Parameter) else True)
                and _same_op(a.op, b.op)
                and (_same_draw(a, b) if isinstance(a, Drawn) and isinstance(b, Drawn) else True)
                and _same_but_for(sizes, a.options, b.options)
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
                and _same_but_for(sizes, a.options, b.options)
                and _same(_place_or_array(a.source, place), _place_or_array(b.source, other_place))
                for a, b in zip(self.kept, other.kept, strict=True)
            )
        )


def _same_draw(a: Drawn, b: Drawn) -> bool:
    return a.layer is b.layer and a.recipe == b.recipe


def trace(model: Sequential, loss: Loss, arrays: Sequence[Any]) -> Trace:
    """Run model and loss on a batch, in training, without changing anything that training counts.

    Raises OptionError for a parameter that the loss does not depend on; for a loss without a gradient, or one that
    does not reduce its terms; for a parameter that is not the model's, a buffer that is not and would be changed, and
    a layer that is not and draws random numbers.
    """
    check_reduces(loss)
    inputs = [Value(array) for array in arrays]
    scope = Scope(training=True, program=True)
    with scope:
        outputs = model.run(inputs[0], training=True)
        cost = loss.run(outputs, *inputs[1:])
    sources = [kept.source for kept in scope.kept if isinstance(kept.source, Recorded)]
    order = made_from(cost, outputs, *inputs, *sources)
    parameters = model.parameters()
    check_all_known(f"{type(model).__name__} or {type(loss).__name__}", order, parameters)
    _check_kept(scope.kept, model)
    _check_drawn(order, model)
    used = set(made_from(cost))
    for name, parameter in model.named_parameters():
        if parameter not in used and not parameter.frozen:
            raise OptionError(
                f"the loss does not depend on the model's {name} {parameter.shape}, so that training would never "
                "change it: use it in `compute`, remove it, or set its frozen = True"
            )
    _check_slope(cost, order, parameters)
    constants = [_copy(node.array) for node in order if type(node) is Constant]
    return Trace(inputs, outputs, cost, scope.kept, order, constants)


def _check_slope(cost: Recorded, order: Sequence[Recorded], parameters: Sequence[Parameter]) -> None:
    """Raise OptionError if no parameter gets a gradient, since comparisons, signs or constants stand in between."""
    reached: set[Recorded] = {parameter for parameter in parameters if not parameter.frozen}
    names = {}
    for node in order:
        if node.op is not None and not reached.isdisjoint(node.inbound_nodes):
            if node.op.flat:
                names[node.op.name] = node
            else:
                reached.add(node)
    if cost not in reached:
        raise OptionError(
            f"the loss gives no parameter a gradient, since {', '.join(names)} has none, so that training would "
            "change nothing: take a loss with slopes, such as losses.Hinge or a sigmoid in place of a step"
        )


def check_reduces(loss: Loss) -> None:
    """Raise OptionError for a loss that leaves the terms of a batch as they are."""
    if loss.reduction == "none":
        raise OptionError(
            f"a Trainer needs one number a batch, got {type(loss).__name__}(reduction='none'): use 'mean', 'sum'"
        )


def _check_kept(kept: Sequence[Kept], model: Sequential) -> None:
    """Raise OptionError if a step would change a buffer that is not the model's."""
    own = set(model.buffers())
    for buffer in (buffer for change in kept for buffer in change.buffers if buffer not in own):
        raise OptionError(
            f"training would change {buffer!r}, which is not one of the model's buffers and would stay unsaved: "
            "assign it, or its layer, to an attribute of a layer of the model, or call that layer with training=False"
        )


def _check_drawn(order: Sequence[Recorded], model: Sequential) -> None:
    """Raise OptionError if a layer draws random numbers that is not the model's."""
    own = set(model.all_layers())
    for node in order:
        if isinstance(node, Drawn) and node.layer not in own:
            raise OptionError(
                f"{node.layer!r} draws random numbers and is not one of the model's layers, so that they would not "
                "follow from the seed of the fit: assign it to an attribute of a layer of the model, or call it with "
                "training=False"
            )


def runs_code_of_the_users(model: Sequential, loss: Loss) -> bool:
    """Whether the model or the loss contains a function, a layer or a loss that is not xnn's own."""
    classes = [type(layer) for layer in model.all_layers()]
    functions: list[Callable[..., Any]] = [
        part.function for part in (*model.all_layers(), loss) if hasattr(part, "function")
    ]
    return bool(functions) or any(not cls.__module__.startswith("xnn.") for cls in (*classes, type(loss)))


def _same_op(a: Any, b: Any) -> bool:
    """Whether two ops are the same op, or come from the same layer or loss."""
    return a is b or (type(a) is type(b) and getattr(a, "owner", a) is getattr(b, "owner", b))


def _same_rule(a: Any, b: Any) -> bool:
    """Whether two functions are the same, or have the same code and equal closures."""
    if a is b:
        return True
    return getattr(a, "__code__", a) is getattr(b, "__code__", b) and all(
        map(_same, (enclosed(a), getattr(a, "__self__", None)), (enclosed(b), getattr(b, "__self__", None)))
    )


def _same_but_for(sizes: Sequence[int], a: Any, b: Any) -> bool:
    """Whether options are equal, except for shapes that begin with these two numbers of rows, if there are any."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same_but_for(sizes, a[key], b[key]) for key in a)
    both = zip((a, b), sizes, strict=False)
    if sizes and all(isinstance(x, tuple) and x and type(x[0]) is int and x[0] == n for x, n in both):
        return _same(a[1:], b[1:])
    return _same(a, b)


def _place_or_array(source: Any, place: dict[Recorded, int]) -> Any:
    """Which value of a trace it is, or else the array or number itself."""
    return place[source] if isinstance(source, Recorded) else source


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal; arrays are if all elements are, compared on their device.

    Only functions that users wrote hold arrays, so that a comparison is made for them alone.
    """
    if a is b:
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if hasattr(a, "shape") and hasattr(b, "shape") and not isinstance(a, type):
        if tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype:
            return False
        lib, differ = backend_of(a, b), (a != b) & ((a == a) | (b == b))  # NaN is the same as NaN
        return not lib.to_host(lib.xp.any(differ))
    return type(a) is type(b) and bool(a == b)


def _copy(x: Any) -> Any:
    """An array's copy, on its device, since it may be written to; anything else as it is."""
    return backend_of(x).xp.asarray(x, copy=True) if hasattr(x, "shape") else x


def runs_code_between_steps(optimizer: Optimizer) -> bool:
    """Whether a schedule or an optimizer of the user's runs before each step: it may read and change anything."""
    rate = optimizer.learning_rate
    while isinstance(rate, Warmup):
        rate = rate.schedule
    parts = [optimizer, rate] if callable(rate) else [optimizer]
    return any(not type(part).__module__.startswith("xnn.") for part in parts)


def runs_code_of_the_optimizer(optimizer: Optimizer) -> bool:
    """Whether the user's code decides what an update does: a schedule, an optimizer or a function of weight decay."""
    return callable(optimizer.weight_decay) or runs_code_between_steps(optimizer)
