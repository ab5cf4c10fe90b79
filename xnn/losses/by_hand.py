"""Losses whose `forward` and `backward` are written by hand, as ops, and the check that a loss is one number."""

from __future__ import annotations

from typing import Any

from xnn.backends import backend_of
from xnn.errors import GraphError, ShapeError
from xnn.graph.scope import by_hand
from xnn.layers.by_hand import check_pass, new_pass
from xnn.ops import Array, Namespace, Op

__all__ = ["LossByHand", "one_number"]


def one_number(loss: Any, cost: Any, outputs: Array) -> Any:
    """The loss of a batch, a Python number as an array. Raises ShapeError unless it is one number."""
    if isinstance(cost, (int, float)):
        lib = backend_of(outputs)
        cost = lib.xp.asarray(float(cost), dtype=outputs.dtype, device=lib.device)
    shape = getattr(cost, "shape", None)
    if shape != () and (shape is None or loss.reduction != "none"):
        got = type(cost).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ShapeError(f"{loss!r} must be one number a batch, got {got}: ops.mean makes one of an array")
    return cost


class LossByHand(Op):
    """A loss as one op that calls the loss's own forward and backward."""

    takes_stored = True

    def __init__(self, loss: Any) -> None:
        self.owner = loss

    def forward(
        self, xp: Namespace, outputs: Array, targets: Array, *sample_weight: Array
    ) -> tuple[Array, Any]:
        # Copies, which the loss may keep: a program writes the next step's numbers into the same buffers.
        given = [xp.asarray(array, copy=True) for array in (outputs, targets, *sample_weight)]
        with by_hand(self.owner.forward):
            cost = one_number(self.owner, self.owner.forward(*given), outputs)
        return cost, (len(sample_weight), new_pass(self.owner))

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        weights, number = saved
        check_pass(self.owner, number)
        with by_hand(self.owner.backward):
            gradient = self.owner.backward()
        if not hasattr(gradient, "shape"):
            raise GraphError(
                f"the backward of {self.name} returned {type(gradient).__name__}: it must return the gradient of the "
                "outputs, an array of their shape"
            )
        return gradient * grad, None, *(None,) * weights

    @property
    def name(self) -> str:
        return type(self.owner).__name__
