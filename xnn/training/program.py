"""A program: model, loss and optimizer as a list of calls that trains on batches of one shape.

    gather the batch, draw masks -> forward, in the order of the trace -> keep running statistics
        -> backward, in the reverse order -> clip -> update -> average

The list is made once, of what `xnn.training.trace` recorded, and run for every step. `xnn.training.fusion` shortens
it by a few named rules. The backend binds each call to a kernel over fixed buffers, or to the op itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from xnn.backends import Backend
from xnn.backends.kernels.binding import bind
from xnn.backends.kernels.calls import Call, Cursor, Feed, KernelTable, Slot, Whole
from xnn.errors import DTypeError
from xnn.graph.backward import reverse
from xnn.graph.node import Recorded
from xnn.graph.scope import assignments
from xnn.graph.value import Constant, Drawn
from xnn.layers import Buffer, Parameter
from xnn.ops import Op, updates
from xnn.ops.apply import apply_rule
from xnn.training.fusion import fuse
from xnn.training.parameters import Store
from xnn.training.trace import Trace

__all__ = ["Program", "flatten"]


class Program:
    """Training steps on batches of one size: `steps`.

    flat: the list from `flatten`. cursor: the row numbers of the step, which its gather calls read. keep_gradients:
    whether callbacks read gradients, so that every gradient must be computed. feed: what brings the numbers of steps
    to a GPU, or None.

    by_ops: the calls without a kernel, if the table is a GPU's. A program with some takes one step at a time.
    whole: whether one kernel runs all steps of a chunk, and why; None if the table has no such kernel.
    """

    def __init__(
        self,
        lib: Backend,
        table: KernelTable,
        store: Store,
        flat: Sequence[Call],
        cursor: Cursor,
        keep_gradients: bool = False,
        feed: Feed | None = None,
    ) -> None:
        self.store, self.cursor, self.feed = store, cursor, feed
        self.calls = fuse(list(flat), table, keep_gradients)
        folded = {
            id(slot) for call in self.calls if call.kind == "backward" and call.rule for slot in call.writes
        }
        store.folded.update(p for p, slot in store.values.items() if id(slot) in folded)
        #: Whether a step draws random numbers, or runs a layer that may.
        self.draws = any(call.kind == "draw" or (isinstance(call.op, Op) and call.op.opaque) for call in flat)
        by_ops: list[Call] = []
        self._steps = tuple(bind(lib, table, self.calls, by_ops))
        self.by_ops = by_ops if feed is not None else []
        #: How many steps it takes at once, at most.
        self.most = 1 if feed is None or self.by_ops else feed.most
        self.whole = self._whole(table, keep_gradients)
        self._loop: Callable[[int], None] | None = None
        if self.whole is not None and self.whole.run is not None:
            self._loop = self.whole.run
            store.folded.update(store.gradients)
        elif feed is not None:
            self._loop = feed.loop(self._steps, captures=not self.by_ops)

    def _whole(self, table: KernelTable, keep_gradients: bool) -> Whole | None:
        if self.feed is None:
            return None
        if keep_gradients:
            return Whole(None, "callbacks read gradients")
        if self.by_ops:
            return Whole(None, "some calls have no CUDA kernel")
        return table.whole(self.calls)

    def begin(self, rows: np.ndarray) -> None:
        """Set the rows of the data and the options of the optimizer for the next step."""
        if self.store.running is not self:
            self.store.running = self
            self.store.touch()
        self.store.go_live()
        np.copyto(self.cursor.rows, rows)
        self.store.advance()

    def steps(self, batches: Sequence[np.ndarray], number: int) -> int:
        """Train on the first of these batches, and return on how many: on several only on a GPU.

        batches: rows of the data, equally many. number: of the first step, counted over all fits.
        """
        if self._loop is None or self.feed is None:
            self.begin(batches[0])
            for run in self._steps:
                run()
            if not self.store.in_place:
                self.store.publish()
            return 1
        count, seen = 0, assignments[0]
        for rows in batches[: self.most]:
            self.begin(rows)
            self.feed.put(rows)
            count += 1
            if assignments[0] != seen:  # a schedule has changed a layer: the next step needs another program
                break
        self.feed.send(number, len(batches[0]))
        self._loop(count)
        return count

    @property
    def calls_per_step(self) -> int:
        """The number of functions that a step calls; with CUDA kernels, of launches and products.

        It is 0 where one kernel runs all steps of a chunk.
        """
        return len(self._steps) if self.whole is None or self.whole.run is None else 0

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.calls))


def flatten(
    lib: Backend,
    store: Store,
    trace: Trace,
    sources: Sequence[Any],
    cursor: Cursor,
    metrics: Sequence[Callable[..., Any]],
    collected: Sequence[list[Any]],
    total: Callable[..., Any] | None = None,
) -> list[Call]:
    """The unfused list of calls of one training step.

    trace: a batch of the right size through model and loss. sources: the arrays whose rows are samples, targets and
    perhaps sample weights. cursor: where the step's row numbers will be. metrics: functions of outputs and targets,
    tried here. total: gives, from outputs, targets and weights, what the loss was divided by, where that is needed.
    collected: the lists to which the loss, each metric and the total of every step are added.
    """
    for node in trace.order:
        if node.op is not None and node.op.opaque:
            node.op.trial = False  # type: ignore[attr-defined]
    _check_dtypes(trace.order)
    store.moving.update(buffer for change in trace.kept for buffer in change.buffers)
    slots = {node: _slot(node, place, store) for place, node in enumerate(trace.order)}
    forward = _forward(trace, slots)
    counting, counts = _counting(lib, trace, slots, metrics, total)
    return [
        *_inputs(trace, slots, sources, cursor),
        *forward.values(),
        *_keeping(trace, slots, store),
        *counting,
        *_backward(lib, store, trace, slots, forward),
        *_updating(store),
        *(
            Call("collect", None, (slot,), (), {"into": numbers})
            for slot, numbers in zip((slots[trace.cost], *counts), collected, strict=True)
        ),
    ]


Slots = dict[Recorded, Slot]


def _slot(node: Recorded, place: int, store: Store) -> Slot:
    """Make the slot of a value of the trace; `place` is its number there."""
    if isinstance(node, Buffer):
        return store.keep(node)
    if isinstance(node, Parameter):
        return store.read(node)
    value = node.array
    shape, dtype = tuple(getattr(value, "shape", ())), getattr(value, "dtype", object)
    name = type(node).__name__.lower() if node.op is None else node.op.name
    scaled = value if hasattr(value, "integers") else None
    kept = value if isinstance(node, Constant) else None
    return Slot(f"{name} {place}", shape, dtype, kept, scaled=scaled)


def _inputs(trace: Trace, slots: Slots, sources: Sequence[Any], cursor: Cursor) -> list[Call]:
    """The calls that gather the batch and draw its random inputs."""
    gather = [
        Call("gather", None, (), (slots[node],), {"source": source, "cursor": cursor})
        for node, source in zip(trace.inputs, sources, strict=True)
    ]
    return gather + [
        Call("draw", None, (), (slots[node],), {"make": node.make, "recipe": node.recipe})
        for node in trace.order
        if isinstance(node, Drawn)
    ]


def _forward(trace: Trace, slots: Slots) -> dict[Recorded, Call]:
    """The forward call of each op in the trace."""
    return {
        node: Call(
            "forward",
            node.op,
            tuple(slots[source] for source in node.inbound_nodes),
            (slots[node],),
            dict(node.options),
        )
        for node in trace.order
        if node.op is not None
    }


def _keeping(trace: Trace, slots: Slots, store: Store) -> list[Call]:
    """The calls that update buffers from the batch, such as running statistics."""
    calls = []
    for change in trace.kept:
        buffers = tuple(store.keep(buffer) for buffer in change.buffers)
        source = change.source
        read = (
            slots[source]
            if isinstance(source, Recorded)
            else Slot("kept", source.shape, source.dtype, source)
        )
        calls.append(Call("keep", change.rule, (*buffers, read), buffers, dict(change.options)))
    return calls


def _counting(
    lib: Backend,
    trace: Trace,
    slots: Slots,
    metrics: Sequence[Callable[..., Any]],
    total: Callable[..., Any] | None,
) -> tuple[list[Call], list[Slot]]:
    """The calls that count for metrics and compute the loss's divisor, and the slots of their numbers."""
    outputs, (_, targets, *weights) = trace.outputs, trace.inputs
    calls, counts = [], []
    for number, metric in enumerate(metrics):
        value = apply_rule(metric, lib.math, (outputs.array, targets.array), {})
        shape, dtype = lib.number_on_device(value).shape, getattr(value, "dtype", outputs.array.dtype)
        counts.append(Slot(f"metric {number}", tuple(shape), dtype))
        calls.append(Call("metric", metric, (slots[outputs], slots[targets]), (counts[-1],)))
    if total is not None:
        counts.append(Slot("total", (), outputs.array.dtype))
        reads = tuple(slots[node] for node in (outputs, targets, *weights))
        calls.append(Call("total", total, reads, (counts[-1],)))
    return calls, counts


def _backward(
    lib: Backend, store: Store, trace: Trace, slots: Slots, forward: dict[Recorded, Call]
) -> list[Call]:
    """The calls of the backward pass."""
    calls: list[Call] = []
    read = Counter(source for node in trace.order for source in node.inbound_nodes)

    def total(node: Recorded, gradients: list[Slot]) -> Slot:
        own = store.gradients.get(node) if isinstance(node, Parameter) else None
        if len(gradients) == 1 and (own is None or gradients[0] is own):
            return gradients[0]
        added = own or Slot(f"d {slots[node].name}", gradients[0].shape, gradients[0].dtype)
        calls.append(Call("add", None, tuple(gradients), (added,)))
        return added

    def pull(node: Recorded, gradient: Slot, needed: Collection[Recorded]) -> list[Slot | None]:
        writes: list[Slot | None] = []
        for source in node.inbound_nodes:
            slot, wanted = None, source in needed
            if wanted and isinstance(source, Parameter) and read[source] == 1:
                slot = store.gradients[source]
            elif wanted:
                slot = Slot(f"d {slots[source].name}", slots[source].shape, slots[source].dtype)
            writes.append(slot)
        calls.append(Call("backward", node.op, (gradient,), tuple(writes), forward=forward[node]))
        return writes

    dtype = trace.cost.array.dtype
    one = Slot("one", (), dtype, lib.xp.ones((), dtype=dtype, device=lib.device))
    reverse(trace.order, {trace.cost: one}, store.gradients, total, pull)
    return calls


def _updating(store: Store) -> list[Call]:
    """The calls that clip gradients, take the optimizer's step, and average the weights."""
    calls = []
    gradients = tuple(store.gradients[p] for p in store.parameters if p in store.gradients)
    for rule, limit in store.clipping if gradients else ():
        calls.append(Call("clip", rule, gradients, gradients, {"limit": limit}))
    if store.asks_optimizer:
        if not store.optimizer.minimizes:
            reads, writes = tuple(store.gradients.values()), tuple(store.values.values())
            calls.append(Call("optimizer", None, reads, writes, {"step": store.ask_optimizer}))
    else:
        for group in store.groups:
            values, slopes, *state = (tuple(column) for column in group.slots)
            kept = sum(state, ())
            calls.append(
                Call("update", type(group.optimizer).rule, values + slopes + kept, values + kept, rule=group)
            )
    for p, slot in store.averages.items():
        options = {"decay": store.optimizer.average}
        calls.append(Call("keep", updates.moving_average, (slot, store.values[p]), (slot,), options))
    return calls


def _check_dtypes(order: Sequence[Recorded]) -> None:
    """Raise DTypeError for an op that widens float32 to float64: nobody else would notice."""
    for node in order:
        given = {_dtype_name(source) for source in node.inbound_nodes}
        if (
            node.op is not None
            and _dtype_name(node) == "float64"
            and "float32" in given
            and "float64" not in given
        ):
            raise DTypeError(
                f"{node.op.name} makes float64 of float32: a NumPy float64 array or number in its forward widens it; "
                "use Python numbers, or xp.astype(y, x.dtype)"
            )


def _dtype_name(node: Recorded) -> str:
    return str(getattr(node.array, "dtype", "")).split(".")[-1]
