"""The backward pass: how gradients flow from a value to all values that it was computed from.

`reverse` is the only one. `backpropagate` computes with it, for layers by hand, autograd and static graphs;
`xnn.training.flatten` uses it to list the calls of a training step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import TypeVar

from xnn.backends import backend_of
from xnn.backends.registry import explaining
from xnn.graph.node import Recorded
from xnn.ops import Array
from xnn.ops.apply import backward_of, check_gradients

__all__ = ["Gradients", "backpropagate", "made_from", "reverse"]

_Gradient = TypeVar("_Gradient")
#: For each value the gradients of its inputs, in their order; for an input its own gradient.
Gradients = dict[Recorded, list[Array | None]]


def reverse(
    order: Sequence[Recorded],
    outputs: Mapping[Recorded, _Gradient],
    wanted: Collection[Recorded],
    total: Callable[[Recorded, list[_Gradient]], _Gradient],
    pull: Callable[[Recorded, _Gradient, Collection[Recorded]], Sequence[_Gradient | None]],
) -> dict[Recorded, list[_Gradient | None]]:
    """Walk `order` (inputs first) backward, from the gradients of `outputs` to the inputs that are `wanted`.

    total(value, gradients): adds the gradients that a value gets from its readers, in the order in which the readers
        were created. It is called for inputs, and for values with several readers.
    pull(value, gradient, needed): the gradients for the value's inputs; those that are not in `needed` may be None.
    Values that do not depend on a wanted input are left out. None stands for no gradient.
    """
    needed: set[Recorded] = set()
    for node in order:
        reached = node in wanted if node.op is None else not needed.isdisjoint(node.inbound_nodes)
        if reached:
            needed.add(node)
    arriving: dict[Recorded, list[tuple[int, _Gradient]]] = {
        node: [(-1, gradient)]
        for node, gradient in outputs.items()  # before those of all readers
    }
    handed: dict[Recorded, list[_Gradient | None]] = {}
    for node in reversed(order):
        own = None
        if node in needed and node in arriving:
            arrived = arriving[node]
            if len(arrived) > 1:
                arrived.sort(key=itemgetter(0))  # stable: a reader's own gradients keep their order
            own = arrived[0][1]
            if len(arrived) > 1 or node.op is None:
                own = total(node, [gradient for _, gradient in arrived])
        inputs = node.inbound_nodes
        if node.op is None:
            handed[node] = [own]
        elif own is None:
            handed[node] = [None] * len(inputs)
        else:
            gradients = handed[node] = list(pull(node, own, needed))
            for source, given in zip(inputs, gradients, strict=True):
                if given is not None:
                    arriving.setdefault(source, []).append((node.created, given))
    return handed


def backpropagate(
    order: Sequence[Recorded], outputs: Mapping[Recorded, Array], wanted: Collection[Recorded] | None = None
) -> Gradients:
    """The gradients of sum(outputs[v] * v) for the values of `order`; see `reverse`.

    wanted: the inputs whose gradients are needed; by default all that are not constant. Raises GraphError for an op
    whose backward returns gradients that do not fit its inputs.
    """
    if wanted is None:
        wanted = {node for node in order if node.op is None and not node.is_constant}
    with explaining(*outputs.values()):
        return reverse(order, outputs, wanted, _sum, _pull)


def _sum(node: Recorded, gradients: list[Array]) -> Array:
    result = gradients[0]
    for gradient in gradients[1:]:
        result = result + gradient
    return result


def _pull(node: Recorded, gradient: Array, needed: Collection[Recorded]) -> Sequence[Array | None]:
    op, inputs = node.op, node.inbound_nodes
    assert op is not None
    saved = node.saved if inputs[0] in needed else op.without_input_gradient(node.saved)
    gradients = backward_of(op, backend_of(gradient).math, gradient, saved)
    check_gradients(op, gradients, [getattr(source.array, "shape", None) for source in inputs])
    return gradients


def made_from(*outputs: Recorded) -> list[Recorded]:
    """The values that the outputs were computed from, and the outputs, in order of creation."""
    found = dict.fromkeys(outputs)
    queue = list(found)
    for node in queue:  # grows while it is walked
        for source in node.inbound_nodes:
            if source not in found:
                found[source] = None
                queue.append(source)
    return sorted(found, key=attrgetter("created"))
