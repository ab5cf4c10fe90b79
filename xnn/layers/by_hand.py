"""Layers whose `forward` and `backward` are written by hand, as one op wherever they run."""

from __future__ import annotations

from typing import Any

from xnn.errors import GraphError, OptionError
from xnn.graph.node import Recorded
from xnn.graph.scope import by_hand, current_scope
from xnn.ops import Array, Namespace, Op

__all__ = ["ByHand", "run_by_hand", "written_by_hand"]


def written_by_hand(cls: type, base: Any) -> bool:
    """Whether a subclass of Layer or Loss, the `base`, has a `forward` and `backward` of its own.

    Raises OptionError for one without the other, and for the pair together with a `compute`.
    """
    forward, backward = (getattr(cls, name) is not getattr(base, name) for name in ("forward", "backward"))
    if forward != backward:
        has, lacks = ("forward", "backward") if forward else ("backward", "forward")
        raise OptionError(
            f"{cls.__name__} has a {has} of its own and no {lacks}: write both, or only `compute`, from which both "
            "follow"
        )
    if forward and "compute" in vars(cls):
        raise OptionError(
            f"{cls.__name__} has a `compute` and, its own or a base class's, a `forward` and `backward` by hand: "
            "write only one of them"
        )
    return forward


class ByHand(Op):
    """A layer as one op that calls the layer's own forward and backward, which read its parameters themselves."""

    opaque = takes_stored = True

    def __init__(self, layer: Any, training: bool, trial: bool = False) -> None:
        self.owner, self.training, self.trial = layer, training, trial

    def forward(self, xp: Namespace, x: Array, *weights: Array) -> tuple[Array, Any]:
        """The layer's output. Saved for backward: whether the gradient for x is needed, and which pass this was.

        The layer gets a copy of x, which it may keep: a program writes the next step's numbers into the same buffer.
        """
        with by_hand(self.owner.forward):
            y = self.owner.forward(xp.asarray(x, copy=True), self.training and not self.trial)
        return y, (True, new_pass(self.owner))

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        """The layer's gradient for x, and the `grad` of its parameters, which its backward has set."""
        input_gradient, number = saved
        check_pass(self.owner, number)
        with by_hand(self.owner.backward):
            dx = self.owner.backward(xp.asarray(grad, copy=True), input_gradient=input_gradient)
        return (dx, *(parameter.grad for parameter in self.owner.parameters()))

    def without_input_gradient(self, saved: Any) -> Any:
        return False, saved[1]

    @property
    def name(self) -> str:
        return type(self.owner).__name__


def new_pass(owner: Any) -> object:
    """Remember that a layer or loss written by hand has run forward; returns what stands for this pass."""
    owner.__dict__["_pass"] = number = object()
    return number


def check_pass(owner: Any, number: object) -> None:
    """Raise GraphError if another forward pass came between: the owner's backward would use what that one kept."""
    if owner.__dict__.get("_pass") is not number:
        raise GraphError(
            f"{type(owner).__name__}, which is written by hand, ran forward once more before its backward, which "
            "would give the gradients of the wrong pass: build a second one, or write a `compute`"
        )


def run_by_hand(layer: Any, x: Any, training: bool) -> Any:
    """The output of a layer written by hand, for an array or a recorded value.

    While a program is made, the layer runs with training=False, since a trial must not change what training counts.
    """
    scope, parameters = current_scope(), layer.parameters()
    recorded = isinstance(x, Recorded) or (scope is not None and scope.records and parameters)
    if not recorded:
        new_pass(layer)
        with by_hand(layer.forward):
            return layer.forward(x, training)
    return ByHand(layer, training, scope is not None and scope.program)(x, *parameters)
