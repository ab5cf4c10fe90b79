"""A program: the graph of a model and its loss, flattened into a list of calls that trains on one batch shape.

    gather the batch, draw masks -> forward, in topological order -> keep running statistics
        -> backward, in the reverse of it -> clip -> update -> average

The list is made once and run for every step. `xnn.fusion` rewrites it by a few named rules, and the backend binds
each call to a kernel over fixed buffers, or to the op itself where it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xnn.backends import Backend
from xnn.backends.calls import Call, Cursor, KernelTable, Slot, as_number, bind
from xnn.errors import DTypeError
from xnn.fusion import fuse
from xnn.graph import Drawn, Input, Kept, Node, Weight, topological_sort
from xnn.ops import Op, updates
from xnn.ops.op import apply_rule
from xnn.recorded import Recorded

if TYPE_CHECKING:
    from xnn.store import Store

__all__ = ["Program", "flatten"]


class Program:
    """Training steps on batches of one size: step(rows).

    flat: the list from `flatten`, whose gather calls read `cursor`. keep_gradients: whether something reads
    gradients, so that none may be folded away.
    """

    def __init__(
        self,
        lib: Backend,
        table: KernelTable,
        store: Store,
        flat: Sequence[Call],
        cursor: Cursor,
        keep_gradients: bool = False,
    ) -> None:
        self.store, self.cursor = store, cursor
        self.calls = fuse(list(flat), table, keep_gradients)
        folded = {
            id(slot) for call in self.calls if call.kind == "backward" and call.rule for slot in call.writes
        }
        store.folded.update(p for p, slot in store.values.items() if id(slot) in folded)
        #: Whether a step draws random numbers, or runs a layer that may.
        self.draws = any(call.kind == "draw" or (isinstance(call.op, Op) and call.op.opaque) for call in flat)
        self._steps = tuple(bind(lib, table, self.calls))

    def begin(self, rows: np.ndarray) -> None:
        """What a step needs to know before its calls: its rows of the data, and the optimizer's numbers."""
        if self.store.running is not self:
            self.store.running = self
            self.store.touch()
        np.copyto(self.cursor.rows, rows)
        self.store.advance()

    def step(self, rows: np.ndarray) -> None:
        """Train on these rows of the data."""
        self.begin(rows)
        for run in self._steps:
            run()
        if not self.store.in_place:
            self.store.publish()

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.calls))


def flatten(
    lib: Backend,
    store: Store,
    feeds: Mapping[Input, Any],
    outputs: Node,
    cost: Node,
    metrics: Sequence[Callable[..., Any]],
    cursor: Cursor,
    records: list[list[Any]],
    total: Callable[..., Any] | None = None,
) -> list[Call]:
    """The unfused list: one call for each op's forward, each op's backward, clipping, each group's update.

    feeds: the Inputs of samples, of targets and perhaps of sample weights, each with the data its batches are rows
    of. cost, outputs: the nodes of the loss and of the model's outputs, whose graph holds values for one batch of
    that size. metrics: functions of outputs and targets, tried here. total: of outputs, targets and weights, what
    the loss was divided by, where it is asked for. records: where the loss, each metric and the total of every step
    are added.
    """
    order = topological_sort(dict.fromkeys(feeds))
    for node in order:
        if node.op is not None and node.op.opaque:
            node.op.training = True  # type: ignore[attr-defined]
    _check_dtypes(order)
    slots = {node: _slot(node, store) for node in order}
    calls = [
        Call("gather", None, (), (slots[node],), {"source": source, "cursor": cursor})
        for node, source in feeds.items()
    ]
    calls += [
        Call("draw", None, (), (slots[node],), {"make": node.make})
        for node in order
        if isinstance(node, Drawn)
    ]
    forward = {
        node: Call(
            "forward",
            node.op,
            tuple(slots[source] for source in node.inbound_nodes),
            (slots[node],),
            node.options,
        )
        for node in order
        if node.op is not None
    }
    calls += forward.values()
    for node in order:
        if isinstance(node, Kept):
            kept = tuple(store.keep(buffer) for buffer in node.buffers)
            calls.append(Call("keep", node.rule, (*kept, slots[node.inbound_nodes[0]]), kept, node.options))
    _, targets, *weights = feeds
    counts = []
    for number, metric in enumerate(metrics):
        value = apply_rule(metric, lib.math, (outputs.value, targets.value), {})
        shape, dtype = as_number(lib, value).shape, getattr(value, "dtype", outputs.value.dtype)
        counts.append(Slot(f"metric {number}", tuple(shape), dtype))
    calls += [
        Call("metric", metric, (slots[outputs], slots[targets]), (count,))
        for metric, count in zip(metrics, counts, strict=True)
    ]
    if total is not None:
        counts.append(Slot("total", (), outputs.value.dtype))
        reads = tuple(slots[node] for node in (outputs, targets, *weights))
        calls.append(Call("total", total, reads, (counts[-1],)))
    calls += _backward(lib, store, order, cost, slots, forward)
    for rule, limit in store.clipping if store.gradients else ():
        gradients = tuple(store.gradients[p] for p in store.parameters if p in store.gradients)
        calls.append(Call("clip", rule, gradients, gradients, {"limit": limit}))
    if store.asks_optimizer and not store.optimizer.minimizes:
        reads, writes = tuple(store.gradients.values()), tuple(store.values.values())
        calls.append(Call("optimizer", None, reads, writes, {"step": store.ask_optimizer}))
    for group in () if store.asks_optimizer else store.groups:
        values, gradients, *state = (tuple(column) for column in group.slots)
        reads = values + gradients + sum(state, ())
        calls.append(Call("update", type(group.optimizer).rule, reads, values + sum(state, ()), rule=group))
    calls += [
        Call(
            "keep",
            updates.moving_average,
            (slot, store.values[p]),
            (slot,),
            {"decay": store.optimizer.average},
        )
        for p, slot in store.averages.items()
    ]
    calls += [
        Call("record", None, (slot,), (), {"records": record})
        for slot, record in zip((slots[cost], *counts), records, strict=True)
    ]
    return calls


def _backward(
    lib: Backend,
    store: Store,
    order: list[Node],
    cost: Node,
    slots: dict[Node, Slot],
    forward: dict[Node, Call],
) -> list[Call]:
    """Backward calls in reverse order; the gradients of several readers are added as in `backpropagate`."""
    wanted: set[Recorded] = set()
    for node in order:
        if isinstance(node, Weight):
            if not node.parameter.frozen:
                wanted.add(node)
        elif wanted.intersection(node.inbound_nodes) and not isinstance(node, Kept):
            wanted.add(node)
    one = lib.xp.ones((), dtype=cost.value.dtype, device=lib.device)
    arriving: dict[Recorded, list[tuple[int, Slot]]] = {node: [] for node in order}
    arriving[cost] = [(cost.created, Slot("one", (), cost.value.dtype, one))]
    calls = []
    for node in reversed(order):
        if node not in wanted:
            continue
        own = store.gradients[node.parameter] if isinstance(node, Weight) else None
        # Readers in order of creation; the sort is stable, so a reader's own gradients keep their positions.
        contributions = [slot for _, slot in sorted(arriving[node], key=lambda pair: pair[0])]
        gradient = contributions[0]
        if len(contributions) > 1 or (own is not None and gradient is not own):
            gradient = own or Slot(f"d {slots[node].name}", gradient.shape, gradient.dtype)
            calls.append(Call("add", None, tuple(contributions), (gradient,)))
        if node.op is None:
            continue
        writes: list[Slot | None] = []
        for source in node.inbound_nodes:
            slot = None
            if source in wanted:
                slot = Slot(f"d {slots[source].name}", slots[source].shape, slots[source].dtype)
                if isinstance(source, Weight) and source.outbound_nodes == [node]:
                    slot = store.gradients[source.parameter]
                arriving[source].append((node.created, slot))
            writes.append(slot)
        calls.append(Call("backward", node.op, (gradient,), tuple(writes), forward=forward[node]))
    return calls


def _check_dtypes(order: Sequence[Node]) -> None:
    """Raise DTypeError for an op that widens float32 to float64: in training nobody else would say so."""
    for node in order:
        given = {str(getattr(source.value, "dtype", "")).split(".")[-1] for source in node.inbound_nodes}
        widens = "float32" in given and "float64" not in given
        if widens and node.op is not None and str(node.value.dtype).endswith("float64"):
            raise DTypeError(
                f"{node.op.name} makes float64 of float32: a NumPy float64 array or number in its forward widens it; "
                "use Python numbers, or xp.astype(y, x.dtype)"
            )


def _slot(node: Node, store: Store) -> Slot:
    if isinstance(node, Weight):
        return store.values[node.parameter]
    value = node.value
    shape, dtype = tuple(getattr(value, "shape", ())), getattr(value, "dtype", object)
    name = type(node).__name__.lower() if node.op is None else node.op.name
    keeps = isinstance(node, Input) and not isinstance(node, Drawn)
    scaled = value if hasattr(value, "integers") else None
    return Slot(f"{name} {node.created}", shape, dtype, value if keeps else None, scaled=scaled)
