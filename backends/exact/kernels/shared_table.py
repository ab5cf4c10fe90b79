"""Exact kernels for ranks that share a batch: a step sends two messages, whatever the number of layers.

A rank computes the forward pass, the gradient of the loss and that of each layer's input from its own rows. What is
added up over the batch comes after them, in three turns that all layers take together:

    look     each layer's largest exponents of its columns   -> one message, the maximum of all ranks
    cut      slices on that common scale, and their sums     -> one message, the sum of all ranks
    finish   the sums, rounded to float32

Some ops without kernels take part as well (`shared_sums.py`). The sums of slices are exact, so that they are those of
one process (`backends/exact/slices.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.exact.kernels.exact_kernels import ExactTable, splitters
from xnn.backends.exact.kernels.image_kernels import WeightSums, gradient_of_images, round_to
from xnn.backends.exact.kernels.shared_sums import (
    KernelLoss,
    OpSums,
    SharedLoss,
    puts_off,
    serves_loss,
    weight_gradients,
)
from xnn.backends.exact.slices import sum_bits
from xnn.backends.kernels.binding import interpret
from xnn.backends.kernels.blas import gemm
from xnn.backends.kernels.calls import Call, Runnable, Slot, chain, nothing
from xnn.backends.ranks.group import Message, Shard

__all__ = ["Agreement", "SharedExactTable"]

#: Kernels that add up no rows, with those that this file replaces.
_ROWS_ALONE = {ops.dense, ops.conv2d, ops.max_pool2d, ops.flatten, ops.reshape, ops.identity}
#: Of these, the ops whose backward kernels leave the gradients of weights for later.
_LATER = {("backward", ops.dense), ("backward", ops.conv2d)}


class Agreement:
    """What the layers of a program add up over the batch, in two messages: `run`.

    shard: this rank's rows. message: makes the Message of so many sums. wishes: gives numbers that are added in the
    same message; take: gets their sums.
    """

    def __init__(
        self,
        shard: Shard,
        message: Callable[[int, str], Message],
        wishes: Callable[[], tuple[float, float]],
        take: Callable[[np.ndarray], None],
    ) -> None:
        self.shard, self._new_message, self._wishes, self._take = shard, message, wishes, take
        self._parts: list[Any] = []
        self._fields = np.zeros(0, np.int32)
        self._message = Message(shard.ranks, np.zeros(2))  # the wishes, and after them the sums

    def add(self, part: Any) -> None:
        """Add a part. Its `fields` and `sums` say how many numbers it needs in each message; `attach` gives them."""
        self._parts.append(part)

    def _lay_out(self) -> None:
        self._fields = np.zeros(sum(part.fields for part in self._parts), np.int32)
        self._message = self._new_message(2 + sum(part.sums for part in self._parts), "float64")
        sums, field, number = self._message.array, 0, 2
        for part in self._parts:
            part.attach(self._fields[field : field + part.fields], sums[number : number + part.sums])
            field, number = field + part.fields, number + part.sums

    def run(self) -> None:
        """Exchange both messages, and finish all sums."""
        if self._parts and not self._fields.size:
            self._lay_out()
        if self._parts:
            for part in self._parts:
                part.look()
            self.shard.ranks.maximum(self._fields)
        for part in self._parts:
            part.cut()
        wishes = self._message.array[:2]
        wishes[:] = self._wishes()
        self._message.total()
        self._take(wishes)
        for part in self._parts:
            part.finish()


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
        self.low, self.one, width = None, kept["wide"], 0 if self.dw is None else outputs
        if self.cuts_x:
            self.low, self.x_table = splitters(lib, 2 * columns + 1), splitters(lib, bits.x_column(rows))
            self.one, width = lib.buffer(self.x.shape, np.float64), 2 * width
        self.wide = lib.buffer((len(self.dz) if width else 0, width or outputs), np.float64)
        needed = self.dw is not None or self.db is not None
        self.fields = (outputs if needed else 0) + (inputs if self.cuts_x and self.dw is not None else 0)
        self.size = 0 if self.dw is None else inputs * width
        self.sums = self.size + (0 if self.db is None else outputs)
        self.passes = table.passes

    def attach(self, fields: np.ndarray, sums: np.ndarray) -> None:
        """Take the parts of the messages that are this layer's, and make its turns."""
        self.look = self.cut = self.finish = nothing
        if not self.fields:
            return
        p, of_dz, of_x = self.passes, fields[: self.outputs], fields[self.outputs :]
        look, totals = [p.largest_fields(self.dz, of_dz)], None if self.db is None else sums[self.size :]
        cut = [p.cut_gradient(self.dz, of_dz, self.high, self.low, self.wide, self.table, totals)]
        finish = []
        if self.dw is not None:
            if self.cuts_x:
                look.append(p.largest_fields(self.x, of_x))
                cut.append(p.cut_columns(self.x, of_x, self.x_table, self.one))
            kept, products = self.kept, sums[: self.size].reshape(self.inputs, -1)
            cut.append(gemm(self.one.T, self.wide, products))
            update = kept["table"], kept["one"], kept["next_slice"].state
            finish.append(p.weight_gradient(products, kept["scale"], self.dw, None, *update))
        if self.db is not None and totals is not None:
            finish.append(round_to(totals, self.db))
        self.look, self.cut, self.finish = chain(*look), chain(*cut), chain(*finish)


class SharedExactTable(ExactTable):
    """The exact kernels with which a rank computes its rows of a batch.

    agreement: of the program that is being bound. direct: the slots that get gradients as kernels make them; a
    gradient that is added to another one in the same step is left to the ops.
    """

    agreement: Agreement
    direct: frozenset[Any] = frozenset()

    def __init__(self, lib: Any, passes: Any, name: str) -> None:
        super().__init__(lib, passes, name)
        #: The slots of divisors of losses that no loss has claimed yet, by what both read.
        self._totals: dict[tuple[Slot, ...], Slot] = {}

    def own(self, call: Call) -> bool:
        """Whether this table has a kernel for the call that computes rows alone, or agrees on what it adds up."""
        if call.kind in ("loss", "total"):
            return serves_loss(call)
        if call.kind not in ("forward", "backward"):
            return super().own(call)
        later = puts_off(call)
        if call.kind == "backward" and (later or call.key in _LATER) and not self._leaves(call):
            return False
        return later or (call.op in _ROWS_ALONE and super().own(call))

    def _leaves(self, call: Call) -> bool:
        """Whether nothing reads the gradients of weights of a backward call before the sums are made."""
        return not self.direct or (call.rule is None and self.direct.issuperset(weight_gradients(call)))

    def bind(self, call: Call) -> Any:
        """Return the kernel of an accepted call."""
        if call.kind == "total":
            return self._total(call)
        if call.kind == "loss":
            terms = getattr(self.passes, "cross_entropy_terms", None)
            if terms is not None and super().own(call):
                return self._added(KernelLoss(self.lib, call, self.agreement.shard.rows, terms))
            divisor = call.options.get("reduction", "mean") == "mean"
            return self._added(
                SharedLoss(self.lib, call, self._totals.pop(call.reads, None) if divisor else None)
            )
        if puts_off(call):
            return (
                interpret(self.lib, call) if call.kind == "forward" else self._added(OpSums(self.lib, call))
            )
        if call.key not in _LATER:
            return super().bind(call)
        return self._shared_dense(call) if call.op is ops.dense else self._shared_images(call)

    def _added(self, part: Any) -> Runnable:
        self.agreement.add(part)
        return part.run  # type: ignore[no-any-return]

    def _total(self, call: Call) -> Runnable:
        """The divisor of a loss: the loss computes it, if its kernel is bound after this call."""
        slot, alone = call.writes[0], interpret(self.lib, call)
        assert slot is not None
        self._totals[call.reads] = slot

        def run() -> None:
            if self._totals.get(call.reads) is slot:
                alone()

        return run

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
