"""A static graph in the manner of MiniFlow: define it once, feed it many times.

    x, w, b, y = Input(), Input(), Input(), Input()
    cost = MSE(y, Sigmoid(Linear(x, w, b)))
    graph = topological_sort({x: X_, w: W_, b: b_, y: y_})
    forward_and_backward(graph)
    cost.value, w.gradients[w]
    sgd_update([w, b], learning_rate=0.01)

Any op called on a node makes a node, `ops.tanh(x)`, and so do operators, layers and losses: `model(x)`, `loss(a, y)`.
A layer is one node and its parameters are inputs; a Sequential is a chain of nodes.

Outside of `compute` and `xnn.grad`, `parameter * 2` is a plain array: in `node * (parameter * 2)` the parameter gets
no gradient. Write `node * parameter * 2`, where each operation has a node:

    >>> import numpy as np
    >>> from xnn import graph, layers
    >>> x, gain = graph.Input(), layers.Dense(1, 1).bias
    >>> y = x * gain * 2
    >>> graph.forward_and_backward(graph.topological_sort({x: np.ones((3, 1), np.float32)}))
    >>> gain.grad.tolist()
    [6.0]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from xnn import ops
from xnn.backends import backend_of
from xnn.errors import GraphError
from xnn.graph.backward import backpropagate
from xnn.graph.node import Recorded, array_of
from xnn.graph.value import as_array
from xnn.ops import Array, Op
from xnn.ops.apply import apply_rule, forward_of

__all__ = [
    "MSE",
    "Add",
    "Input",
    "Linear",
    "Mul",
    "Node",
    "Sigmoid",
    "forward_and_backward",
    "forward_pass",
    "sgd_update",
    "topological_sort",
]


class Node(Recorded):
    """One op of a graph and the nodes it reads.

    inbound_nodes, outbound_nodes: the nodes it reads, and those that read it. value: its output after a forward
    pass, else None. gradients: after a backward pass, the gradient for each node it reads,
    `gradients[node]`; an Input's own gradient is `gradients[itself]`.
    """

    rank: ClassVar[int] = 2

    def __init__(
        self, op: Op | None, inputs: Iterable[Any], options: Mapping[str, Any] | None = None
    ) -> None:
        self.inbound_nodes: list[Node] = [x if isinstance(x, Node) else _Fixed(x) for x in inputs]
        super().__init__()
        self.op, self.options = op, dict(options or {})
        self.outbound_nodes: list[Node] = []
        self.value: Any = None
        self.gradients: dict[Node, Array | None] = {}
        for node in dict.fromkeys(self.inbound_nodes):
            node.outbound_nodes.append(self)

    @classmethod
    def result_of(cls, op: Op, inputs: Sequence[Any], options: Mapping[str, Any]) -> Node:
        """A node of the op; it is computed by forward_pass."""
        return Node(op, inputs, options)

    @property
    def array(self) -> Any:
        """The value."""
        return self.value

    def forward(self) -> None:
        """Compute `value` from the values of the nodes this one reads."""
        assert self.op is not None
        values = [node.array for node in self.inbound_nodes]
        if any(value is None for value in values):
            raise GraphError(
                f"{self!r} reads an Input without a value: feed it to topological_sort or set .value"
            )
        self.value, self.saved = forward_of(self.op, backend_of(*values).math, values, self.options)

    @property
    def name(self) -> str:
        """The name of the node's class, and of its op if the class has another name."""
        named = type(self) is not Node or self.op is None
        return type(self).__name__ if named else f"Node {self.op.name}"  # type: ignore[union-attr]

    def __repr__(self) -> str:
        parts = [] if self.value is None else [f"value {_short(self.value)}"]
        own = self.gradients.get(self)
        if own is not None:
            parts.append(f"gradient {_short(own)}")
        return f"<{self.name}{': ' if parts else ''}{', '.join(parts)}>"


def _short(array: Any) -> str:
    """The text of an array for a repr: its numbers if there are few, else its dtype and shape."""
    shape = tuple(getattr(array, "shape", ()))
    if ops.op.size_of(shape) > 6:
        return f"{array.dtype} {shape}"
    return " ".join(str(array).split())


class Input(Node):
    """A value fed from outside: data, weights, targets. Assign `.value` between passes to change it.

    Arrays keep their dtype and are not copied; Python numbers and lists become float64 arrays of the current
    backend.
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
        """Compute nothing. Raises GraphError if there is no value."""
        if self.array is None:
            raise GraphError("an Input has no value: feed it to topological_sort or set .value")


class _Fixed(Input):
    """A parameter, an array or a Python number that an op was called with, besides nodes.

    A parameter's value is read at each pass, and its gradient is `gradients[itself]` and the parameter's `grad`.
    Arrays and numbers are not differentiated, and a Python number stays one, so that float32 is not widened.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        super().__init__()

    @property
    def is_constant(self) -> bool:  # type: ignore[override]
        """Whether the source is an array or a number, and not a parameter."""
        return not isinstance(self.source, Recorded)

    @property
    def value(self) -> Any:
        """The source's array now."""
        return array_of(self.source)

    @value.setter
    def value(self, value: Any) -> None:
        if value is not None:
            self.source.value = value

    @property
    def name(self) -> str:
        """The parameter's name."""
        return "Constant" if self.is_constant else f"Parameter {self.source.name}"


class Add(Node):
    """The sum of one or more nodes: y = a + b + ..."""

    def __init__(self, *inputs: Node) -> None:
        super().__init__(ops.add, inputs)


class Mul(Node):
    """The product of one or more nodes: y = a b ..."""

    def __init__(self, *inputs: Node) -> None:
        super().__init__(ops.mul, inputs)


class Linear(Node):
    """y = x w + b, of x (n, inputs), w (inputs, outputs) and b (outputs,); see `ops.dense`."""

    def __init__(self, x: Node, w: Node, b: Node) -> None:
        super().__init__(ops.dense, (x, w, b))


class Sigmoid(Node):
    """y = 1 / (1 + e^-x), element by element."""

    def __init__(self, x: Node) -> None:
        super().__init__(ops.sigmoid, (x,))


class MSE(Node):
    """The mean squared error of targets y and outputs a, both flattened to columns first, as in the article."""

    def __init__(self, y: Node, a: Node) -> None:
        super().__init__(ops.column_mse, (y, a))


def topological_sort(feed: Mapping[Node, Any]) -> list[Node]:
    """Feed the inputs, and return every node that depends on them, each after the nodes it reads.

    feed: an array for each Input; None leaves the value that the Input has. Inputs with a value need not be fed.

    The order depends on nothing but the graph and the order of `feed`. Raises GraphError for a key that is not an
    Input, or for a cycle.

        >>> from xnn.graph import Input, Mul, forward_pass, topological_sort
        >>> x, w = Input(), Input()
        >>> y = Mul(x, w)
        >>> float(forward_pass(y, topological_sort({x: 3.0, w: 2.0})))
        6.0

    Source: Kahn, "Topological sorting of large networks", Comm. ACM 5 (1962), first in, first out.
    """
    for node, value in feed.items():
        if not isinstance(node, Input):
            raise GraphError(f"topological_sort got {node!r} as a key: it feeds Input nodes only")
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
        raise GraphError("the graph has a cycle, in which a node depends on its own output: remove the cycle")
    return order


def _connected(start: Iterable[Node]) -> list[Node]:
    """The nodes that depend on those of `start`, and everything they need, in order of discovery."""
    found = dict.fromkeys(start)
    queue = list(found)
    for node in queue:  # grows while it is walked
        needed = [] if isinstance(node, Input) else node.inbound_nodes
        for other in (*needed, *node.outbound_nodes):
            # An Input found on the way, such as a constant, is needed, but not everything else that reads it.
            if other not in found:
                found[other] = None
                if not isinstance(other, Input):
                    queue.append(other)
    return list(found)


def forward_pass(*arguments: Any) -> Any:
    """Compute every value of a sorted graph: forward_pass(graph), or forward_pass(node, graph).

    Returns the value of the node, or of the graph's last node.
    """
    graph = arguments[-1]
    for node in graph:
        node.forward()
    return (arguments[0] if len(arguments) == 2 else graph[-1]).value


def forward_and_backward(graph: Sequence[Node]) -> None:
    """Compute every value of a sorted graph, then the gradients of its output with respect to every node.

    The output is the one node that no other node reads. If it is an array, the sum of its elements is differentiated.
    Each node gets its `gradients`; a parameter that a layer reads also gets its `grad`. Raises GraphError for several
    outputs.

        >>> from xnn.graph import Input, Mul, forward_and_backward, topological_sort
        >>> x, w = Input(), Input()
        >>> y = Mul(x, w)
        >>> forward_and_backward(topological_sort({x: 3.0, w: 2.0}))
        >>> float(w.gradients[w])
        3.0
    """
    forward_pass(graph)
    members = set(graph)
    ends = [n for n in graph if n.op is not None and not members.intersection(n.outbound_nodes)]
    if len(ends) != 1:
        raise GraphError(
            f"the graph has {len(ends)} outputs ({', '.join(map(repr, ends)) or 'only inputs'}); a graph is "
            "differentiated from one: add them with Add(...), or sort only the part that leads to the cost"
        )
    output = ends[0]
    xp = backend_of(output.value).xp
    value = output.value
    handed = backpropagate(graph, {output: xp.ones(value.shape, dtype=value.dtype, device=value.device)})
    for node in graph:
        sources: list[Node] = [node] if node.op is None else node.inbound_nodes
        gradients: dict[Node, Array | None] = {}
        for source, gradient in zip(sources, handed[node], strict=True):
            before = gradients.get(source)  # a node may read another twice, as in Mul(x, x)
            gradients[source] = gradient if before is None or gradient is None else before + gradient
        node.gradients = gradients
    _give_parameters_their_gradients([node for node in graph if isinstance(node, _Fixed)])


def _give_parameters_their_gradients(nodes: Iterable[_Fixed]) -> None:
    """Give each parameter the sum of its nodes' gradients, in the order in which the nodes were created."""
    totals: dict[Recorded, Array | None] = {}
    for node in sorted(nodes, key=lambda node: node.created):
        if not node.is_constant:
            gradient, before = node.gradients[node], totals.get(node.source)
            totals[node.source] = (
                before if gradient is None else gradient if before is None else before + gradient
            )
    for parameter, total in totals.items():
        parameter.grad = total  # type: ignore[attr-defined]


def sgd_update(trainables: Iterable[Node], learning_rate: float = 1e-2) -> None:
    """One step of gradient descent for each Input: value <- value - learning_rate gradient.

    trainables: Inputs of a graph that `forward_and_backward` ran on. The arrays that were fed stay as they were.
    Raises GraphError for a node without a gradient.
    """
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
