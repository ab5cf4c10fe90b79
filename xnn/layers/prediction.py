"""Predicts by the backend's kernels: a model's forward pass as a list of calls over fixed buffers.

A program is made for a number of samples of one shape and dtype, as a Trainer makes its own (`xnn/training`). It is
kept for the next prediction, and reads the arrays that the parameters have when it runs. When an attribute of a layer
was assigned, or a layer was added, all programs of the model are made again.

Ops run instead where a program could compute something else than they would: for layers and functions of users, in
exact numerics, and on other backends than NumPy's. So they do where a program would not be faster: for dense layers,
normalization and plain activations alone, whose time is that of the products.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from xnn import ops
from xnn.backends import Backend, current_numerics
from xnn.backends.kernels.binding import bind
from xnn.backends.kernels.calls import Call, Cursor, Runnable
from xnn.backends.kernels.fusion import fuse
from xnn.backends.threads import limit_threads
from xnn.errors import XnnError
from xnn.graph.backward import made_from
from xnn.graph.calls import forward_calls, slot_of
from xnn.graph.node import Recorded
from xnn.graph.scope import Scope, assignments
from xnn.graph.value import Constant, Drawn, Value
from xnn.layers.containers import Container
from xnn.layers.parameter import Parameter

__all__ = ["predicted", "takes"]

#: The bytes of a program's values: preferred, so that they stay in cache; and at most, to have `_SHARED` samples.
_CACHE, _LARGEST = 1 << 22, 1 << 25
_WRONG = -1  #: in the place of a number of samples, for those that do not fit
_SHARED = 16  #: samples in a program that threads can share
_MOST = 256  #: samples in a program
_KEPT = 1 << 26  #: bytes of the programs that a model keeps
#: Ops that kernels alone do not make faster: a product or less.
_LIGHT = frozenset({
    ops.add, ops.concat, ops.dense, ops.dropout, ops.embedding, ops.flatten, ops.identity, ops.log_softmax,
    ops.moments, ops.normalize, ops.relu, ops.rescale, ops.reshape, ops.sigmoid, ops.softmax, ops.tanh,
})  # fmt: skip


def predicted(model: Any, x: Any, kernels: str = "auto") -> np.ndarray | None:
    """The outputs of a Sequential for samples, by kernels; None if ops must compute them.

    x: an array of the model's backend (n, ...), as `Sequential.prepare` returns it. kernels: the name of the table.
    """
    if not isinstance(x, np.ndarray) or not x.ndim or not len(x) or current_numerics() != "fast":
        return None
    programs = _programs_of(model)
    return None if programs is None else programs.outputs(model, x, kernels)


def takes(model: Any, x: Any) -> bool:
    """Whether samples like those of x have gone through the model as it is now."""
    programs = _programs_of(model)
    return programs is not None and programs.most.get(("auto", tuple(x.shape[1:]), x.dtype), _WRONG) != _WRONG


class _Programs:
    """The programs of a model, as long as no attribute of a layer is assigned.

    A program is taken out while it runs, so that two threads never share its buffers.
    """

    def __init__(self, model: Any) -> None:
        self.seen = assignments[0]  # read first: another thread may assign
        layers = [*model.all_layers()]
        gains = any(getattr(layer, "op", ops.identity) not in _LIGHT for layer in layers)
        self.known = gains and all(map(_is_known, layers))
        self.lists = [(part.layers, [*part.layers]) for part in layers if isinstance(part, Container)]
        self.most: dict[Any, int] = {}
        self.idle: OrderedDict[Any, _Program] = OrderedDict()

    def are_current(self) -> bool:
        return self.seen == assignments[0] and all(now == then for now, then in self.lists)

    def outputs(self, model: Any, x: np.ndarray, kernels: str) -> np.ndarray | None:
        """As `predicted`: the samples go through programs a few at a time."""
        form, y = (kernels, x.shape[1:], x.dtype), None
        if form not in self.most:
            self.most[form] = _samples_together(model, x, kernels)
        most = self.most[form]
        for start in range(0, len(x), most) if most > 0 else ():
            part = x[start : start + most]
            key = *form, _size(len(part))
            program = self.idle.pop(key, None) or _Program(model, part, *key)
            found = program.run(part)
            if found is None:
                return None
            if y is None:
                y = np.empty((len(x), *found.shape[1:]), found.dtype)
            y[start : start + most] = found
            self._keep(key, program)
        return y

    def _keep(self, key: Any, program: _Program) -> None:
        self.idle[key] = program
        while len(self.idle) > 1 and sum(kept.nbytes for kept in [*self.idle.values()]) > _KEPT:
            self.idle.popitem(last=False)


#: No part of the model, so that copies and pickles of it do not have the programs.
_of_model: WeakKeyDictionary[Any, _Programs] = WeakKeyDictionary()


def _programs_of(model: Any) -> _Programs | None:
    """The programs of a model as it is now; None for a model that ops compute."""
    if not type(model).__module__.startswith("xnn."):  # such a class may have no hash
        return None
    programs = _of_model.get(model)
    if programs is None or not programs.are_current():
        programs = _of_model[model] = _Programs(model)
    return programs if programs.known else None


class _Program:
    """The forward pass of a model for `rows` samples like those of x."""

    def __init__(
        self, model: Any, x: np.ndarray, kernels: str, shape: tuple[int, ...], dtype: Any, rows: int
    ) -> None:
        self.lib: Backend = model.backend
        self.table = self.lib.kernels(kernels)
        self.given = _blank(self.lib, x, rows)
        order, output = _recorded(model, self.given)
        self.nbytes = _nbytes(order)
        self.parameters = [node for node in order if isinstance(node, Parameter)]
        slots = {node: slot_of(node, place) for place, node in enumerate(order)}
        self.places, self.output = [slots[p] for p in self.parameters], slots[output]
        first = slots[next(node for node in order if type(node) is Value and node.op is None)]
        options = {"source": self.given, "cursor": Cursor(np.arange(rows))}
        gather = Call("gather", None, (), (first,), options)
        self.calls = fuse([gather, *forward_calls(order, slots).values()], self.table)
        if gather in self.calls:  # no Rescale was fused with it: the samples are read where they are
            self.calls.remove(gather)
            first.array, first.fixed = self.given, True
        self._bind()

    def _bind(self) -> None:
        """Bind the calls to the arrays that the parameters have now; no calls if some are not on the host."""
        self.arrays = [parameter.array for parameter in self.parameters]
        self.copied: list[tuple[np.ndarray, np.ndarray]] = []
        self.steps: list[Runnable] | None = None
        if not all(isinstance(array, np.ndarray) for array in self.arrays):
            return
        for slot in [slot for call in self.calls for slot in call.writes if slot is not None]:
            slot.array, slot.fixed = None, False
        for slot, array in zip(self.places, self.arrays, strict=True):
            slot.array, slot.fixed = array, True
            if not (array.flags.c_contiguous and array.flags.aligned):
                slot.array = self.lib.buffer(array.shape, array.dtype)
                self.copied.append((slot.array, array))
        self.steps = bind(self.lib, self.table, self.calls)
        # Threads of BLAS and of xnn's own would wait for one another.
        ours = [step for step in self.steps if getattr(step, "is_shared", False)]
        shared = any(len(self.given) > 1 or getattr(step, "threads", 1) > 1 for step in ours)
        one: Callable[[], AbstractContextManager[Any]] = partial(limit_threads, None, 1)
        self.limit = one if shared else nullcontext

    def run(self, x: np.ndarray) -> np.ndarray | None:
        """The outputs for samples, at most `rows`, in a buffer that the next run overwrites; None as `_bind` says."""
        if any(p.array is not array for p, array in zip(self.parameters, self.arrays, strict=True)):
            self._bind()
        if self.steps is None:
            return None
        for copy, array in self.copied:
            np.copyto(copy, array)
        self.given[: len(x)] = x
        self.given[len(x) :] = 0
        with self.limit():
            for step in self.steps:
                step()
        found: np.ndarray = self.output.array[: len(x)]
        return found


def _samples_together(model: Any, x: np.ndarray, kernels: str) -> int:
    """How many samples like those of x go through a program at a time; 0 if ops must compute the outputs.

    _WRONG for samples that the model does not take.
    """
    lib = model.backend
    if not lib.is_host:
        return 0
    try:
        order, output = _recorded(model, _blank(lib, x, 1))
    except XnnError:
        return _WRONG  # ops raise the error again, for the samples themselves
    slots = {node: slot_of(node, place) for place, node in enumerate(order)}
    calls = [call for call in forward_calls(order, slots).values() if call.op not in _LIGHT]
    if not calls or not _is_fixed(order, output):
        return 0
    table = lib.kernels(kernels)  # not before it is needed: it may import Numba
    if not (table.in_place and any(map(table.accepts, calls))):
        return 0
    each = _nbytes(order)
    count = max(1, _CACHE // each, min(_SHARED, _LARGEST // each))
    return int(min(_MOST, 1 << count.bit_length() - 1))


def _size(count: int) -> int:
    """The number of samples of the program for these: up to 16 as many, then an eighth more at most."""
    step = max(1, 1 << (count - 1).bit_length() >> 4)
    return -(-count // step) * step


def _blank(lib: Backend, x: np.ndarray, rows: int) -> np.ndarray:
    """Zeros in the place of samples like those of x."""
    given: np.ndarray = lib.buffer((rows, *x.shape[1:]), x.dtype.newbyteorder("="))
    given[...] = 0
    return given


def _recorded(model: Any, x: np.ndarray) -> tuple[Sequence[Recorded], Any]:
    """All values of a forward pass, inputs first, and the output."""
    value = Value(x)
    with Scope(program=True) as scope:
        output = model.run(value, training=False)
    changed = [buffer for change in scope.kept for buffer in change.buffers]
    return made_from(output, value, *changed), None if changed else output


def _nbytes(order: Sequence[Recorded]) -> int:
    """The bytes of the values that are neither parameters nor numbers."""
    return 1 + sum(getattr(node.array, "nbytes", 0) for node in order if not isinstance(node, Parameter))


def _is_known(layer: Any) -> bool:
    """Whether a layer computes what xnn's code says: its class is xnn's, and the object has no methods of its own."""
    kind = type(layer)
    replaced = any(callable(getattr(kind, name, None)) for name in vars(layer))
    return kind.__module__.startswith("xnn.") and not hasattr(layer, "function") and not replaced


def _is_fixed(order: Sequence[Recorded], output: Any) -> bool:
    """Whether a forward pass for one sample is made of xnn's ops, of the input, parameters and numbers alone."""
    if output is None or isinstance(output, Parameter) or tuple(output.shape[:1]) != (1,):
        return False
    return all(map(_is_plain, order))


def _is_plain(node: Recorded) -> bool:
    """Whether a value is an input, a parameter, a number, or made by an op of xnn's with plain options."""
    if isinstance(node, Parameter):
        return True
    if node.op is None:
        return not isinstance(node, Drawn) and not (type(node) is Constant and hasattr(node.array, "shape"))
    if not type(node.op).__module__.startswith("xnn.") or node.op.opaque:
        return False
    try:
        hash(tuple(node.options.values()))
    except TypeError:  # arrays and lists can be written to; those of a Rescale are read-only
        return node.op is ops.rescale
    return True
