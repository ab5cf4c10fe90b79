"""Runs all steps of a chunk in one launch, where the program is that of a multilayer perceptron: `Perceptron`.

`read` looks at a program's calls. It finds the layers, the loss, what is recorded and the rule of the optimizer, or
says why the kernel cannot run them. `persistent_rule.choose` then looks at the sizes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels.calls import Call, Slot, Whole
from xnn.backends.kernels.cuda.activation_kernels import CURVES, number_of_curve
from xnn.backends.kernels.cuda.data_kernels import rescale
from xnn.backends.kernels.cuda.dense_kernels import KINDS
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.launch import Launch, compiled, cupy, driver, structure
from xnn.backends.kernels.cuda.persistent_rule import OFF, Cluster, choose, is_on
from xnn.backends.kernels.cuda.update_kernels import RULES
from xnn.ops import updates
from xnn.ops.metrics import accuracy

__all__ = ["Perceptron", "cluster_of", "definitions", "launch", "read", "whole"]

_FIRST_CURVE = 16  # persistent.cu has it too
_PLACES = 4  # of a parameter: the value, and up to three arrays of state


@dataclass(eq=False)
class Perceptron:
    """What the calls of a program train.

    x, labels: the calls that gather the batch. layers: the slots of W and b, the number of the activation and its
    option. groups, state: of each parameter, by the id of its slot. rule: of the optimizer. loss, right: the lists
    for which numbers are collected, or None.
    """

    x: Call
    labels: Call
    layers: list[tuple[Slot, Slot, int, float]] = field(default_factory=list)
    groups: dict[int, Any] = field(default_factory=dict)
    state: dict[int, tuple[Slot, ...]] = field(default_factory=dict)
    rule: Any = None
    loss: Any = None
    right: Any = None

    @property
    def widths(self) -> list[int]:
        """The number of inputs, followed by the number of outputs of each layer."""
        return [self.layers[0][0].shape[0], *(w.shape[1] for w, *_ in self.layers)]

    @property
    def parameters(self) -> list[Slot]:
        """W and b of each layer."""
        return [slot for w, b, *_ in self.layers for slot in (w, b)]

    @property
    def states(self) -> int:
        """The number of arrays of the optimizer's state."""
        return len(self.state[id(self.parameters[0])])


_KINDS = {"gather", "forward", "backward", "loss", "metric", "collect", "update"}


def read(calls: Sequence[Call]) -> Perceptron | str:
    """What a program's calls train, or why the kernel cannot do it. Each call must have a CUDA kernel."""
    of = {kind: [call for call in calls if call.kind == kind] for kind in _KINDS}
    if any(call.kind == "total" for call in calls):
        return "there are sample weights, or weights of classes"
    if others := dict.fromkeys(call.name for call in calls if call.kind not in _KINDS):
        return f"the kernel has no {', '.join(others)}"
    gathers = {id(call.writes[0]): call for call in of["gather"]}
    if len(of["loss"]) != 1 or len(gathers) != 2:
        return "there are sample weights, or another kind of loss"
    (cost,) = of["loss"]
    if cost.op is not ops.softmax_cross_entropy:
        return f"the loss is {cost.name}"
    if cost.options:
        return f"the loss has options: {', '.join(cost.options)}"
    logits, labels = cost.reads
    if id(labels) not in gathers:
        return "the labels are computed"
    target = gathers.pop(id(labels))
    (samples,) = gathers.values()
    found = Perceptron(samples, target)
    reason = _read_layers(found, of["forward"], logits)
    if not reason and len(of["backward"]) != len(of["forward"]):
        reason = "a gradient is not computed, or is by several calls"
    reason = reason or _read_updates(found, of["backward"], of["update"])
    return reason or _read_record(found, cost, of["metric"], of["collect"]) or found


def _read_layers(found: Perceptron, calls: list[Call], logits: Slot) -> str:
    """Follow the chain of layers from the samples to the logits. Returns why it is another one, or ""."""
    x = found.x.writes[0]
    if x is None or len(x.shape) != 2:
        return "samples have more than one axis"
    for call in calls:
        if call.reads[0] is not x or call.writes[0] is None:
            return "the layers are not one behind the other"
        x = call.writes[0]
        if call.op is ops.dense:
            if len(call.reads) != 3:
                return "a layer has no bias"
            w, b = call.reads[1:]
            found.layers.append((w, b, KINDS[call.activation], 0.0))
        elif not found.layers or found.layers[-1][2] != KINDS[None] or call.op not in {*KINDS, *CURVES}:
            return f"a layer is {call.name}"
        else:
            found.layers[-1] = (*found.layers[-1][:2], *_number_of(call))
    if not found.layers or x is not logits:
        return "the layers are not one behind the other"
    if found.layers[-1][2] != KINDS[None]:
        return "the last layer has an activation"
    alike = all(np.dtype(slot.dtype) == np.float32 for slot in [x, *found.parameters])
    return "" if alike else "the dtype is not float32"


def _number_of(call: Call) -> tuple[int, float]:
    """The number of an activation in persistent.cu, and its option."""
    if call.op in KINDS:
        return KINDS[call.op], 0.0
    curve = number_of_curve(call)
    assert curve is not None  # the call has a kernel
    return _FIRST_CURVE + curve[0], curve[1]


def _read_updates(found: Perceptron, backward: list[Call], update: list[Call]) -> str:
    """Find the rule, and the group and the state of each parameter. Returns why the kernel cannot use them, or ""."""
    columns: dict[int, tuple[Slot, ...]] = {}  # value and state, by the id of the gradient
    for call in update:
        for value, gradient, *state in call.columns():
            columns[id(gradient)] = value, *state
            found.groups[id(value)] = call.rule
    rules = {call.op for call in update}
    for call in backward:
        for slot in call.writes[1:]:
            if slot is not None and call.rule is not None:
                rules.add(updates.sgd)
                found.groups[id(slot)], found.state[id(slot)] = call.rule, ()
            elif slot is not None and id(slot) in columns:
                value, *state = columns[id(slot)]
                found.state[id(value)] = tuple(state)
    if {id(slot) for slot in found.parameters} != found.state.keys():
        return "a parameter is frozen, or used twice"
    if len(rules) != 1 or not rules <= set(RULES) or len({len(state) for state in found.state.values()}) != 1:
        return "the optimizer has a rule of its own, or several"
    (found.rule,) = rules
    return ""


def _read_record(found: Perceptron, cost: Call, metrics: list[Call], collects: list[Call]) -> str:
    """Find what is recorded of a step. Returns why the kernel does not count it, or ""."""
    counted = [metric.writes[0] for metric in metrics]
    for metric in metrics:
        same = all(a is b for a, b in zip(metric.reads, cost.reads, strict=True))
        if len(metrics) > 1 or not same or metric.op is not accuracy:
            return f"there are metrics: {', '.join(call.name for call in metrics)}"
    for call in collects:
        if call.reads[0] is cost.writes[0]:
            found.loss = call.options["into"]
        elif call.reads[0] in counted:
            found.right = call.options["into"]
        else:
            return "something else is recorded"
    return ""


def whole(calls: Sequence[Call], feed: DeviceFeed) -> Whole:
    """What runs a program's chunks in one launch each, or why nothing does. Each call must have a CUDA kernel."""
    if not is_on():
        return Whole(None, OFF)
    if any(feed.data.streams(call.options["source"]) for call in calls if call.kind == "gather"):
        return Whole(None, "the data are streamed from the host")
    found = read(calls)
    cluster = found if isinstance(found, str) else cluster_of(found, feed.largest)
    if isinstance(found, str) or isinstance(cluster, str):
        return Whole(None, str(cluster))
    take = launch(found, cluster, feed)
    try:
        take(0)  # whether this GPU, or the part of it that we have, can run so large a cluster
    except driver().CUDADriverError as error:
        return Whole(None, f"the GPU cannot launch it: {error}")
    return Whole(take, str(cluster))


def cluster_of(found: Perceptron, rows: int) -> Cluster | str:
    """Choose the cluster of blocks that trains a network on the current GPU, or say why none can.

    rows: how many samples the largest batch has.
    """
    text = str(cupy().cuda.Device().compute_capability)
    return choose(found.widths, rows, found.states, (int(text[:-1]), int(text[-1])))


def definitions(
    cluster: Cluster,
    widths: Sequence[int],
    kinds: Sequence[int],
    options: Sequence[float],
    rule: str,
    states: int,
) -> dict[str, str]:
    """What the source is compiled with, by name.

    kinds, options: the number of each layer's activation, and its option. rule: the name of the optimizer's rule.
    states: arrays of its state.
    """
    numbers = {
        "BLOCKS": [cluster.blocks], "THREADS": [cluster.threads], "ROWS": [cluster.rows], "BYTES": [cluster.shared],
        "STATES": [states], "WIDTHS": widths, "KINDS": kinds, "OPTIONS": options,
    }  # fmt: skip
    texts = {name: ",".join(map(str, values)) for name, values in numbers.items()}
    return {**texts, "RULE": f"{rule}_step"}


def launch(found: Perceptron, cluster: Cluster, feed: DeviceFeed) -> Callable[[int], None]:
    """Return a function that takes the steps of a chunk, of which it gets the number, in one launch."""
    data, labels = (feed.data.there(call.options["source"]) for call in (found.x, found.labels))
    kinds, options = zip(*((kind, option) for _, _, kind, option in found.layers), strict=True)
    defined = definitions(cluster, found.widths, kinds, options, found.rule.__name__, found.states)
    types = {"SOURCE": str(data.dtype), "LABEL": str(labels.dtype)}
    module = compiled("persistent", np.float32, tuple(defined.items()), **types)
    steps = ctypes.c_longlong(0)
    target = found.x.writes[0]
    assert target is not None
    columns = (-1 if into is None else feed.column_of(into) for into in (found.loss, found.right))
    arguments = (
        data, labels, feed.rows, target.shape[0], steps, rescale(found.x), _network(found, feed), feed.record_of(),
        *columns,
    )  # fmt: skip
    sizes = {"shared": cluster.shared, "cluster": cluster.blocks}
    run = Launch(module, "train", (cluster.blocks,), (cluster.threads,), arguments, feed.stream, **sizes)

    def take(count: int) -> None:
        steps.value = count
        run()

    return take


def _network(found: Perceptron, feed: DeviceFeed) -> Any:
    """The kernel's structure with the addresses of all parameters, their state and their options."""
    places = {}
    for number, slot in enumerate(found.parameters):
        arrays = [slot.array, *(state.array for state in found.state[id(slot)])]
        padded = [*arrays, *[None] * (_PLACES - len(arrays))]
        places[f"place{number}"] = structure(
            "Place",
            **{f"at{n}": array for n, array in enumerate(padded)},
            options=feed.options_of(found.groups[id(slot)]),
        )
    return structure("Network", **places, stride=feed.width)
