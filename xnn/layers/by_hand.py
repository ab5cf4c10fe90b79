"""Layers whose `forward` and `backward` are written by hand, as one op wherever they run."""

from __future__ import annotations

from typing import Any

from xnn.graph.node import Recorded
from xnn.graph.scope import by_hand, current_scope
from xnn.ops import Array, Namespace, Op

__all__ = ["ByHand", "run_by_hand"]


class ByHand(Op):
    """A layer as one op, by its own forward and backward, which find its parameters by themselves."""

    opaque = takes_stored = True

    def __init__(self, layer: Any, training: bool) -> None:
        self.owner, self.training = layer, training

    def forward(self, xp: Namespace, x: Array, *weights: Array) -> tuple[Array, Any]:
        """The layer's output. Whether the input's gradient is wanted is all that backward needs."""
        with by_hand():
            return self.owner.forward(x, self.training), True

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        """The layer's gradient for x, and what it filled its parameters' grad with."""
        with by_hand():
            dx = self.owner.backward(grad, input_gradient=saved)
        return (dx, *(parameter.grad for parameter in self.owner.parameters()))

    def without_input_gradient(self, saved: Any) -> Any:
        """Tells backward that nobody wants the gradient for x."""
        return False

    @property
    def name(self) -> str:
        """The layer's class."""
        return type(self.owner).__name__


def run_by_hand(layer: Any, x: Any, training: bool) -> Any:
    """What the layer makes of x.

    While a program is made, training is off: a trial must change nothing that training counts.
    """
    if not isinstance(x, Recorded):
        with by_hand():
            return layer.forward(x, training)
    scope = current_scope()
    trial = scope is not None and scope.program
    return ByHand(layer, training and not trial)(x, *layer.parameters())
