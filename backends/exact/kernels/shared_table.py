"""Exact kernels for ranks that share a batch: a step sends two messages, whatever the number of layers.

A rank computes the forward pass, the gradient of the loss and that of each layer's input from its own rows. What is
added up over the batch comes after them, in three turns that all layers take together:

    look     each layer's largest exponents of its columns   -> one message, the maximum of all ranks
    cut      slices on that common scale, and their sums     -> one message, the sum of all ranks
    finish   the sums, rounded to float32

The sums of slices are exact, so that they are those of one process (`backends/exact/slices.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.exact.kernels.exact_kernels import ExactTable, splitters
from xnn.backends.exact.kernels.image_kernels import WeightSums, gradient_of_images
from xnn.backends.exact.slices import FLUSH, exponent, slice_one, sum_bits
from xnn.backends.kernels.blas import gemm
from xnn.backends.kernels.calls import Call, Runnable, chain, nothing
from xnn.backends.ranks.group import Shard
from xnn.ops import LossOp

__all__ = ["Agreement", "SharedExactTable"]

#: Kernels that add up no rows, with those that this file replaces.
_ROWS_ALONE = {ops.dense, ops.conv2d, ops.max_pool2d, ops.flatten, ops.reshape, ops.identity}
#: Of these, the ops whose backward kernels leave the gradients of weights for later.
_LATER = {("backward", ops.dense), ("backward", ops.conv2d)}


class Agreement:
    """What the layers of a program add up over the batch, in two messages: `run`.

    shard: this rank's rows. wishes: gives numbers that are added in the same message; take: gets their sums.
    """

    def __init__(
        self, shard: Shard, wishes: Callable[[], tuple[float, float]], take: Callable[[np.ndarray], None]
    ) -> None:
        self.shard, self._wishes, self._take = shard, wishes, take
        self._parts: list[Any] = []
        self._fields = np.zeros(0, np.int32)
        self._sums = np.zeros(0)

    def add(self, part: Any) -> None:
        """Add a part. Its `fields` and `sums` say how many numbers it needs in each message; `attach` gives them."""
        self._parts.append(part)

    def _lay_out(self) -> None:
        self._fields = np.zeros(sum(part.fields for part in self._parts), np.int32)
        self._sums = np.zeros(2 + sum(part.sums for part in self._parts))
        field, number = 0, 2
        for part in self._parts:
            part.attach(self._fields[field : field + part.fields], self._sums[number : number + part.sums])
            field, number = field + part.fields, number + part.sums

    def run(self) -> None:
        """Exchange both messages, and finish all sums."""
        if self._parts and not self._fields.size:
            self._lay_out()
        ranks = self.shard.ranks
        if self._parts:
            for part in self._parts:
                part.look()
            ranks.maximum(self._fields)
        sums = self._sums if self._parts else np.zeros(2)
        for part in self._parts:
            part.cut()
        sums[:2] = self._wishes()
        ranks.total(sums)
        self._take(sums[:2])
        for part in self._parts:
            part.finish()


def _largest_fields(x: np.ndarray, out: np.ndarray) -> None:
    """The largest exponent field of each column of float32 numbers; 255 for NaN and infinity."""
    out[...] = np.abs(x).max(axis=0).view(np.int32) >> 23


def _rounded(x: np.ndarray, s: np.ndarray, out: np.ndarray) -> None:
    """out <- (x + s) - s."""
    np.add(x, s, out=out)
    np.subtract(out, s, out=out)


class _DensePart:
    """dW = x^T dz and db, the sum of dz, over the rows of all ranks."""

    def __init__(self, table: SharedExactTable, call: Call, agreement: Agreement) -> None:
        lib, forward = table.lib, call.forward
        assert forward is not None
        self.kept = kept = forward.saved
        self.x, self.dz = forward.reads[0].array, call.reads[0].array
        _, self.dw, *rest = (None if slot is None else slot.array for slot in call.writes)
        self.db = rest[0] if rest else None
        rows, bits = agreement.shard.count(len(self.dz)), kept["bits"]
        inputs, outputs = self.x.shape[1], self.dz.shape[1]
        self.inputs, self.outputs, self.cuts_x = inputs, outputs, bits.integers is None
        columns = bits.dy_column(rows)
        self.high, self.table = splitters(lib, columns), splitters(lib, sum_bits(rows))
        self.one = kept["wide"]
        self.wide = lib.buffer((len(self.dz), outputs * (2 if self.cuts_x else 1)), np.float64)
        if self.cuts_x:
            self.low, self.x_table = splitters(lib, 2 * columns + 1), splitters(lib, bits.x_column(rows))
            self.one = lib.buffer(self.x.shape, np.float64)
        self.scratch = np.empty(self.dz.shape)
        self.fields = outputs + (inputs if self.cuts_x else 0)
        self.size = 0 if self.dw is None else inputs * self.wide.shape[1]
        self.sums = self.size + (0 if self.db is None else outputs)
        self.passes = table.passes

    def attach(self, fields: np.ndarray, sums: np.ndarray) -> None:
        """Take the parts of the messages that are this layer's."""
        self.of_dz, self.of_x = fields[: self.outputs], fields[self.outputs :]
        self.bias = sums[self.size :]
        if self.dw is None:
            self.product = self.weights = nothing
            return
        products = sums[: self.size].reshape(self.inputs, -1)
        self.product = gemm(self.one.T, self.wide, products)
        kept = self.kept
        update = kept["table"], kept["one"], kept["next_slice"].state
        self.weights = self.passes.weight_gradient(products, kept["scale"], self.dw, None, *update)

    def look(self) -> None:
        """Find the largest exponents of this rank's rows."""
        _largest_fields(self.dz, self.of_dz)
        if self.cuts_x:
            _largest_fields(self.x, self.of_x)

    def cut(self) -> None:
        """Cut to slices on the common scale, and add them."""
        high = self.wide[:, : self.outputs]
        _rounded(self.dz, self.high[self.of_dz], high)
        if self.cuts_x:
            low = self.wide[:, self.outputs :]
            np.subtract(self.dz, high, out=self.scratch)
            _rounded(self.scratch, self.low[self.of_dz], low)
            _rounded(self.x, self.x_table[self.of_x], self.one)
        if self.db is not None:
            _rounded(self.dz, self.table[self.of_dz], self.scratch)
            np.sum(self.scratch, axis=0, out=self.bias)
        self.product()

    def finish(self) -> None:
        """Round what all ranks have added."""
        self.weights()
        if self.db is not None:
            self.db[...] = (self.bias + FLUSH) - FLUSH


class _LossPart:
    """A loss over the rows of all ranks, and at once the gradient of this rank's rows: `run`."""

    fields = sums = 1

    def __init__(self, table: SharedExactTable, call: Call, agreement: Agreement) -> None:
        self.xp, self.lib, self.op = table.lib.exact, table.lib, call.op
        self.options = {name: x for name, x in call.options.items() if name != "reduction"}
        self.slots, self.loss, self.slope = call.reads, call.writes[0], call.writes[1]
        self.rows = agreement.shard.rows
        self.mean = call.options.get("reduction", "mean") == "mean"
        self.terms = np.zeros(0)

    def run(self) -> None:
        """Compute the terms of this rank's rows, and their gradient."""
        xp, op = self.xp, self.op
        outputs, targets = (xp.enter(slot.array) for slot in self.slots)
        targets = op.fit(xp, outputs, targets)
        self.terms, saved = op.terms(xp, outputs, targets, **self.options)
        one, each = np.ones(()), outputs[0, ...].size if not op.over_classes else outputs[0, :1, ...].size
        self.count = float(self.rows * each)
        share = one / self.count if self.mean else one
        assert self.slope is not None
        self.slope.put(xp.leave(op.slopes(xp, share, saved)[0]))

    def attach(self, fields: np.ndarray, sums: np.ndarray) -> None:
        """Take the parts of the messages that are the loss's."""
        self.field, self.total = fields, sums

    def look(self) -> None:
        """Find the largest exponent of this rank's terms."""
        self.field[0] = exponent(self.lib, self.terms).max()

    def cut(self) -> None:
        """Cut the terms to slices, and add them."""
        bits = sum_bits(int(self.count))
        cut = slice_one(self.lib, self.terms, self.field.astype(np.int64), bits)
        self.total[0] = np.sum(cut)

    def finish(self) -> None:
        """Round what all ranks have added."""
        assert self.loss is not None
        value = self.total[0] + 0.0
        self.loss.put(self.xp.leave(np.asarray(value / self.count if self.mean else value)))


class SharedExactTable(ExactTable):
    """The exact kernels with which a rank computes its rows of a batch.

    agreement: of the program that is being bound. direct: the slots that get gradients as kernels make them; a
    gradient that is added to another one in the same step is left to the ops.
    """

    agreement: Agreement
    direct: frozenset[Any] = frozenset()

    def own(self, call: Call) -> bool:
        """Whether this table has a kernel for the call that computes rows alone, or agrees on what it adds up."""
        if call.kind == "loss":
            return self._serves_loss(call)
        if call.kind in ("forward", "backward") and call.op not in _ROWS_ALONE:
            return False
        if call.key in _LATER and self.direct:
            gradients = [slot for slot in call.writes[1:] if slot is not None]
            if call.rule is not None or not self.direct.issuperset(gradients):
                return False
        return super().own(call)

    def bind(self, call: Call) -> Any:
        """Return the kernel of an accepted call."""
        if call.kind == "loss":
            part = _LossPart(self, call, self.agreement)
            self.agreement.add(part)
            return part.run
        if call.key not in _LATER:
            return super().bind(call)
        return self._shared_dense(call) if call.op is ops.dense else self._shared_images(call)

    def _serves_loss(self, call: Call) -> bool:
        """Whether a loss has no weights, so that it is a sum divided by the number of its terms."""
        op, options = call.op, call.options
        if not isinstance(op, LossOp) or len(call.reads) != 2:
            return False
        counts = type(op).counts is LossOp.counts or (
            type(op).__module__.startswith("xnn.") and not {"class_weight", "ignore_index"} & options.keys()
        )
        plain = all(np.dtype(slot.dtype) in (np.float32, np.int64) for slot in call.reads)
        return plain and counts and options.get("reduction", "mean") in ("mean", "sum")

    def _shared_dense(self, call: Call) -> Runnable:
        """Compute dz from dy in place, then dx, from the weights as they are; the sums over rows come later."""
        steps = self._gradient_of_input(call)
        self.agreement.add(_DensePart(self, call, self.agreement))
        return chain(nothing, *steps)

    def _shared_images(self, call: Call) -> Runnable:
        """As for dense; the sums over images come later."""
        given = self.lib, self.passes, splitters, call
        self.agreement.add(WeightSums(*given, self.agreement.shard.count(len(call.reads[0].array))))
        return chain(nothing, *gradient_of_images(*given))
