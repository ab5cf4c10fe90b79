"""Turns the record of a batch into the calls of a training step, in the order in which they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from types import MethodType
from typing import Any

from xnn import ops
from xnn.backends import Backend
from xnn.backends.kernels.calls import Call, Cursor, Slot
from xnn.errors import DTypeError
from xnn.graph.backward import reverse
from xnn.graph.calls import forward_calls, slot_of
from xnn.graph.node import Recorded
from xnn.graph.value import Drawn
from xnn.layers import Buffer, Parameter
from xnn.losses import Loss
from xnn.metrics.classes import Decisions
from xnn.ops import updates
from xnn.ops.apply import apply_rule
from xnn.training.parameters import Store
from xnn.training.trace import Trace

__all__ = ["flatten"]


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
    forward = forward_calls(trace.order, slots)
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
    return slot_of(node, place)


def _inputs(trace: Trace, slots: Slots, sources: Sequence[Any], cursor: Cursor) -> list[Call]:
    """The calls that gather the batch and draw its random inputs."""
    gather = [
        Call("gather", None, (), (slots[node],), {"source": source, "cursor": cursor})
        for node, source in zip(trace.inputs, sources, strict=True)
    ]
    draws, before = [], Counter[Any]()
    for node in trace.order:
        if isinstance(node, Drawn):
            # A layer that draws several times in a step takes the numbers of the next steps, as `make` does.
            options = {"make": node.make, "recipe": node.recipe, "layer": node.layer}
            options |= {"again": before[node.layer], "cursor": cursor}
            draws.append(Call("draw", None, (), (slots[node],), options))
            before[node.layer] += 1
    return gather + draws


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
        rule, options = (metric.formula, metric.options) if isinstance(metric, Decisions) else (metric, {})
        calls.append(Call("metric", rule, (slots[outputs], slots[targets]), (counts[-1],), options))
    if total is not None:
        counts.append(Slot("total", (), outputs.array.dtype))
        reads, cost = tuple(slots[node] for node in (outputs, targets, *weights)), trace.cost
        plain = isinstance(total, MethodType) and total.__func__ is Loss.total
        plain = plain and cost.op is getattr(total.__self__, "op", None)  # type: ignore[attr-defined]
        if plain and reads == tuple(slots[node] for node in cost.inbound_nodes):
            calls.append(Call("total", cost.op, reads, (counts[-1],), dict(cost.options)))
        else:
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
        if gradient is one and node.op is ops.add and not any(slots[n].shape for n in node.inbound_nodes):
            return [one if source in needed else None for source in node.inbound_nodes]
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
