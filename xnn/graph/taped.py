"""A layer or a loss as one op of a static graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xnn.graph.backward import backpropagate, made_from
from xnn.graph.node import Recorded
from xnn.graph.scope import Scope
from xnn.graph.value import Value
from xnn.ops import Array, Namespace, Op

__all__ = ["Taped"]


class Taped(Op):
    """A function of recorded values as one op. Each forward pass records it; backward runs back through the record.

    named: the op's name.
    function: takes the op's inputs as values, and returns a value.
    parameters: those that the function reads. They are the op's last inputs, so that each gets a gradient.
    training: what the function's layers are called with.
    """

    takes_stored = True

    def __init__(
        self, named: str, function: Callable[..., Any], parameters: Sequence[Any] = (), training: bool = False
    ) -> None:
        self.named, self.function, self.parameters, self.training = (
            named,
            function,
            list(parameters),
            training,
        )

    def forward(self, xp: Namespace, *arrays: Array) -> tuple[Array, Any]:
        """The function's output. The recorded inputs and the recorded output are saved."""
        given = [Value(x) for x in arrays[: len(arrays) - len(self.parameters)]]
        with Scope(self.training):
            output = self.function(*given)
        return output.array, (given, output)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        """The gradients of inputs and parameters."""
        given, output = saved
        leaves: list[Recorded] = [*given, *self.parameters]
        handed = backpropagate(made_from(output), {output: grad}, set(leaves))
        return tuple(handed[leaf][0] if leaf in handed else None for leaf in leaves)

    @property
    def name(self) -> str:
        """The layer's or loss's name."""
        return self.named
