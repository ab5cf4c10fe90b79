"""The backward pass: how gradients flow from a value to everything it was made of.

`reverse` is the only one. `backpropagate` computes with it, for layers by hand, autograd and static graphs;
`xnn.training.program` writes down with it the calls that a training step makes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from xnn.backends import backend_of
from xnn.graph.node import Recorded
from xnn.ops import Array
from xnn.ops.apply import backward_of, check_gradients

__all__ = ["Gradients", "backpropagate", "made_from", "reverse"]

_Gradient = TypeVar("_Gradient")
#: For each value the gradients that it hands to its inputs, in their order; for an input its own gradient.
Gradients = dict[Recorded, list[Array | None]]


def reverse(
    order: Sequence[Recorded],
    outputs: Mapping[Recorded, _Gradient],
    wanted: Collection[Recorded],
    total: Callable[[Recorded, list[_Gradient]], _Gradient],
    pull: Callable[[Recorded, _Gradient, list[bool]], Sequence[_Gradient | None]],
) -> dict[Recorded, list[_Gradient | None]]:
    """Walk `order` (inputs first) backward, from the gradients of `outputs` to the inputs that are `wanted`.

    total(value, gradients): the sum of what a value's readers hand to it, in the order in which the readers were
    created. pull(value, gradient, needed): the gradients for the value's inputs; `needed` says for each whether
    anything wanted leads to it. Values that lead to nothing wanted are left out. None stands for no gradient.
    """
    needed: set[Recorded] = set()
    for node in order:
        if node in wanted if node.op is None else not needed.isdisjoint(node.inbound_nodes):
            needed.add(node)
    arriving: dict[Recorded, list[tuple[int, _Gradient]]] = {node: [] for node in order}
    for node, gradient in outputs.items():
        arriving[node].append((-1, gradient))
    handed: dict[Recorded, list[_Gradient | None]] = {}
    for node in reversed(order):
        arrived = sorted(arriving[node], key=_created)  # stable: a reader's own gradients keep their order
        own = total(node, [gradient for _, gradient in arrived]) if arrived and node in needed else None
        if node.op is None:
            handed[node] = [own]
            continue
        inputs = node.inbound_nodes
        if own is None:
            handed[node] = [None] * len(inputs)
            continue
        gradients = list(pull(node, own, [source in needed for source in inputs]))
        for source, given in zip(inputs, gradients, strict=True):
            if given is not None:
                arriving[source].append((node.created, given))
        handed[node] = gradients
    return handed


def _created(pair: tuple[int, Any]) -> int:
    return pair[0]


def backpropagate(
    order: Sequence[Recorded], outputs: Mapping[Recorded, Array], wanted: Collection[Recorded] | None = None
) -> Gradients:
    """The gradients of sum(outputs[v] * v) for the values of `order`; see `reverse`.

    wanted: the inputs whose gradients are needed; by default all that are not constant. Raises GraphError for an op
    whose backward returns gradients that do not fit its inputs.
    """
    if wanted is None:
        wanted = {node for node in order if node.op is None and not node.is_constant}
    return reverse(order, outputs, wanted, _sum, _pull)


def _sum(node: Recorded, gradients: list[Array]) -> Array:
    result = gradients[0]
    for gradient in gradients[1:]:
        result = result + gradient
    return result


def _pull(node: Recorded, gradient: Array, needed: list[bool]) -> Sequence[Array | None]:
    op = node.op
    assert op is not None
    saved = node.saved if needed[0] else op.without_input_gradient(node.saved)
    gradients = backward_of(op, backend_of(gradient).math, gradient, saved)
    check_gradients(
        op.name, gradients, [getattr(source.array, "shape", None) for source in node.inbound_nodes]
    )
    return gradients


def made_from(*outputs: Recorded) -> list[Recorded]:
    """Everything that the outputs were made of, and themselves, in order of creation."""
    found = dict.fromkeys(outputs)
    queue = list(found)
    for node in queue:  # grows while it is walked
        for source in node.inbound_nodes:
            if source not in found:
                found[source] = None
                queue.append(source)
    return sorted(found, key=lambda node: node.created)
