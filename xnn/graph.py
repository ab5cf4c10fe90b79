"""A static graph in the manner of MiniFlow: define once, feed many times.

    x, w, b, y = Input(), Input(), Input(), Input()
    cost = MSE(y, Sigmoid(Linear(x, w, b)))
    graph = topological_sort({x: X_, w: W_, b: b_, y: y_})
    forward_and_backward(graph)
    cost.value, w.gradients[w]
    sgd_update([w, b], learning_rate=0.01)

Any op called on a node makes a node, `ops.tanh(x)`, and so do `+ - * / ** @`. The gradients are computed
by `backpropagate`, which autograd uses as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from xnn import ops
from xnn.backends import backend_of, current_backend, current_numerics
from xnn.errors import GraphError
from xnn.ops import Array, Op
from xnn.ops.op import apply_rule, backward_of, check_gradients, forward_of
from xnn.recorded import Recorded

__all__ = [
    "MSE",
    "Add",
    "Drawn",
    "Input",
    "Linear",
    "Mul",
    "Node",
    "Sigmoid",
    "Weight",
    "backpropagate",
    "forward_and_backward",
    "forward_pass",
    "sgd_update",
    "topological_sort",
]


def backpropagate(
    order: Sequence[Recorded], outputs: Mapping[Recorded, Array]
) -> dict[Recorded, list[Array | None]]:
    """Backward over `order` (inputs first), from the gradients of `outputs`: the one implementation.

    Returns for each value the gradients it hands to its inputs, in their order; for an input (no op)
    a list with its own gradient. A value that several others read gets the sum of their gradients,
    added in the order in which the readers were created. None stands for no gradient.
    """
    readers: dict[Recorded, list[Recorded]] = {node: [] for node in order}
    for node in sorted(order, key=lambda node: node.created):
        for source in dict.fromkeys(node.inbound_nodes):
            readers[source].append(node)
    handed: dict[Recorded, list[Array | None]] = {}
    for node in reversed(order):
        total = outputs.get(node)
        for reader in readers[node]:
            for source, gradient in zip(reader.inbound_nodes, handed[reader], strict=True):
                if source is node and gradient is not None:
                    total = gradient if total is None else total + gradient
        if node.op is None:
            handed[node] = [total]
        elif total is None:
            handed[node] = [None] * len(node.inbound_nodes)
        else:
            saved = node.saved
            if node.inbound_nodes[0].is_constant:
                saved = node.op.without_input_gradient(saved)
            gradients = backward_of(node.op, backend_of(total).math, total, saved)
            shapes = [getattr(source.value, "shape", None) for source in node.inbound_nodes]
            check_gradients(node.op.name, gradients, shapes)
            handed[node] = list(gradients)
    return handed


class Node(Recorded):
    """One op of a graph and the nodes it reads.

    inbound_nodes, outbound_nodes: whom it reads, who reads it. value: its output after a forward pass.
    gradients: after a backward pass, what it hands to each node it reads, `gradients[node]`; an
    Input's own gradient is `gradients[itself]`.
    """

    #: Whether ops that read it compute at once, as where a layer is traced.
    eager = False

    def __init__(
        self, op: Op | None, inputs: Iterable[Any], options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(op, (x if isinstance(x, Node) else Constant(x) for x in inputs))
        self.outbound_nodes: list[Node] = []
        self.options = dict(options or {})
        self.gradients: dict[Node, Array | None] = {}
        for node in dict.fromkeys(self.inbound_nodes):
            node.outbound_nodes.append(self)

    def forward(self) -> None:
        """Compute `value` from the values of the nodes this one reads."""
        assert self.op is not None
        values = [node.value for node in self.inbound_nodes]
        if any(value is None for value in values):
            raise GraphError(
                f"{self!r} reads an Input without a value: feed it to topological_sort or set .value"
            )
        self.value, self.saved = forward_of(self.op, backend_of(*values).math, values, self.options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} node{'' if self.op is None else ' ' + self.op.name}>"


class Input(Node):
    """A value fed from outside: data, weights, targets. Assign `.value` between passes to change it.

    Arrays keep their dtype and are not copied; Python numbers and lists become float64 arrays of the
    current backend.
    """

    def __init__(self, value: Any = None) -> None:
        super().__init__(None, ())
        self.value = value

    @property
    def value(self) -> Any:
        """The array, or None before it is fed."""
        return self._value

    @value.setter
    def value(self, value: Any) -> None:
        self._value = None if value is None else as_array(value)

    def forward(self) -> None:
        """Nothing to compute, but something must be there."""
        if self.value is None:
            raise GraphError("an Input has no value: feed it to topological_sort or set .value")


class Constant(Input):
    """What an op was called with beside nodes or recorded values: ops.mul(node, 2.0).

    It is not differentiated, and a Python number stays one, so that it widens no dtype.
    """

    is_constant = True

    @property
    def value(self) -> Any:
        """What was given."""
        return self._value

    @value.setter
    def value(self, value: Any) -> None:
        self._value = value


class Drawn(Input):
    """An input that is made anew for each step of training, such as a dropout mask; `make` draws it."""

    def __init__(self, make: Callable[[], Array]) -> None:
        self.make = make
        super().__init__(make())


class Kept(Node):
    """What a layer keeps of a node's value in each training step: buffers = rule(xp, *buffers, value, **options)."""

    def __init__(
        self, source: Node, buffers: Sequence[Any], rule: Callable[..., Any], options: Mapping[str, Any]
    ) -> None:
        super().__init__(None, (source,), options)
        self.buffers, self.rule = tuple(buffers), rule

    def forward(self) -> None:
        """Nothing: a program makes a call of it."""


class Weight(Input):
    """A layer's parameter as an input of a graph: its value is the parameter's."""

    def __init__(self, parameter: Any) -> None:
        self.parameter = parameter
        super().__init__()

    @property
    def value(self) -> Any:
        """The parameter's value now."""
        return self.parameter.value

    @value.setter
    def value(self, value: Any) -> None:
        if value is not None:
            self.parameter.value = value


def as_array(value: Any) -> Array:
    """Arrays as they are; Python numbers and lists as float64 arrays of the current backend, float32 if exact."""
    if isinstance(value, (list, tuple)) or type(value) in (int, float, bool):
        return current_backend().to_device(
            value, dtype="float64" if current_numerics() == "fast" else "float32"
        )
    backend_of(value)  # raises for what is no array
    return value


class Add(Node):
    """The sum of one or more nodes."""

    def __init__(self, *inputs: Node) -> None:
        super().__init__(ops.add, inputs)


class Mul(Node):
    """The product of one or more nodes."""

    def __init__(self, *inputs: Node) -> None:
        super().__init__(ops.mul, inputs)


class Linear(Node):
    """X W + b (ops.dense)."""

    def __init__(self, x: Node, w: Node, b: Node) -> None:
        super().__init__(ops.dense, (x, w, b))


class Sigmoid(Node):
    """1 / (1 + e^-x)."""

    def __init__(self, x: Node) -> None:
        super().__init__(ops.sigmoid, (x,))


class MSE(Node):
    """Mean squared error of targets y and outputs a, both flattened to columns as in the article."""

    def __init__(self, y: Node, a: Node) -> None:
        super().__init__(ops.column_mse, (y, a))


def topological_sort(feed: Mapping[Node, Any]) -> list[Node]:
    """Feed the inputs and return every node that depends on them, each after the nodes it reads.

    Kahn's algorithm (Comm. ACM 5, 1962), first in, first out: the order depends on nothing but the
    graph and the order of `feed`. Inputs that were given a value beforehand need not be fed.
    Raises GraphError for a key that is no Input, or a cycle.
    """
    for node, value in feed.items():
        if not isinstance(node, Input):
            raise GraphError(f"topological_sort feeds Input nodes, got {node!r}")
        if value is not None:
            node.value = value
    reached = _connected(feed)
    waiting = {node: len(set(node.inbound_nodes)) for node in reached}
    ready = [node for node in reached if not waiting[node]]
    order = []
    for node in ready:  # grows while it is walked
        order.append(node)
        for reader in node.outbound_nodes:
            if reader in waiting:
                waiting[reader] -= 1
                if not waiting[reader]:
                    ready.append(reader)
    if len(order) < len(reached):
        raise GraphError("the graph has a cycle: a node depends on its own output")
    return order


def _connected(start: Iterable[Node]) -> list[Node]:
    """The nodes that depend on those of `start`, and everything they need, in order of discovery."""
    found = dict.fromkeys(start)
    queue = list(found)
    for node in queue:  # grows while it is walked
        needed = [] if isinstance(node, Input) else node.inbound_nodes
        for other in (*needed, *node.outbound_nodes):
            # An Input met on the way (a constant) is needed, but what else reads it is not our affair.
            if other not in found:
                found[other] = None
                if not isinstance(other, Input):
                    queue.append(other)
    return list(found)


def forward_pass(*arguments: Any) -> Any:
    """forward_pass(graph), or forward_pass(node, graph): compute every value; returns the node's (the last's)."""
    graph = arguments[-1]
    for node in graph:
        node.forward()
    return (arguments[0] if len(arguments) == 2 else graph[-1]).value


def forward_and_backward(graph: Sequence[Node]) -> None:
    """Compute every value of a sorted graph, then every gradient of its one output (of the sum of its elements).

    Raises GraphError if several nodes are read by nobody: add them up, so that it is plain what is differentiated.
    """
    forward_pass(graph)
    members = set(graph)
    ends = [n for n in graph if n.op is not None and not members.intersection(n.outbound_nodes)]
    if len(ends) != 1:
        raise GraphError(
            f"the graph has {len(ends)} outputs ({', '.join(map(repr, ends)) or 'only inputs'}); gradients "
            "are of one: add them with Add(...), or sort only the part that leads to the cost"
        )
    output = ends[0]
    xp = backend_of(output.value).xp
    value = output.value
    handed = backpropagate(graph, {output: xp.ones(value.shape, dtype=value.dtype, device=value.device)})
    for node in graph:
        sources = [node] if node.op is None else node.inbound_nodes
        gradients: dict[Node, Array | None] = {}
        for source, gradient in zip(sources, handed[node], strict=True):
            before = gradients.get(source)  # a node may read another twice, as in Mul(x, x)
            gradients[source] = gradient if before is None or gradient is None else before + gradient
        node.gradients = gradients


def sgd_update(trainables: Iterable[Node], learning_rate: float = 1e-2) -> None:
    """value <- value - learning_rate * gradient for each Input; the arrays that were fed stay as they were."""
    for node in trainables:
        gradient = node.gradients.get(node)
        if gradient is None:
            raise GraphError(
                f"{node!r} has no gradient: run forward_and_backward on a graph that contains it"
            )
        arrays = node.value, gradient, None
        node.value, _ = apply_rule(
            ops.updates.sgd, backend_of(gradient).math, arrays, {"learning_rate": learning_rate}
        )
