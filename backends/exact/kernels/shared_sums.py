"""Ops of exact numerics whose sums over the batch ranks make later, with those of the kernels (`shared_table.py`).

An op runs as it is written, in a namespace that keeps the terms of its sums and gives zeros in their place. So it
computes the gradient of its input at once. What it does with a sum must be a reshape at most: for a loss it is a
division, which is made up for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.exact.batch_sums import BatchSum, ProductSum, RowSum, ScatteredSum
from xnn.backends.exact.namespace import ExactNamespace
from xnn.backends.kernels.binding import interpret
from xnn.backends.kernels.calls import Call, Runnable, Slot
from xnn.ops import LossOp
from xnn.ops.apply import backward_of, forward_of
from xnn.ops.losses import divided
from xnn.ops.portable import is_own

__all__ = ["KernelLoss", "OpSums", "SharedLoss", "puts_off", "serves_loss", "weight_gradients"]


#: Ops that spread weights over the rows.
_SPREADING = (ops.add, ops.mul)


class _Later(ExactNamespace):
    """The exact namespace, in which the first sums over the batch are put off: `kept` gets their terms.

    count: how many of them. Others are made at once, by messages of their own.
    """

    def __init__(self, lib: Any, count: int, kept: list[BatchSum]) -> None:
        super().__init__(lib, lib.exact.roles)
        self.count, self.kept = count, kept

    def row_sum(self, summed: RowSum, keepdims: bool, largest: Any = None) -> Any:
        if len(self.kept) == self.count:
            return super().row_sum(summed, keepdims, largest)
        self.kept.append(summed)
        kept = tuple(1 if a in summed.axes else extent for a, extent in enumerate(summed.x.shape))
        shape = kept if keepdims else tuple(n for a, n in enumerate(kept) if a not in summed.axes)
        return self.base.zeros(shape)

    def scattered_sum(self, summed: ScatteredSum) -> Any:
        self.kept.append(summed)
        return self.base.zeros((summed.count, *summed.rows.shape[1:]))

    def product_sum(self, summed: ProductSum) -> Any:
        self.kept.append(summed)
        return self.base.zeros(summed.shape)


class _Part:
    """Sums that are put off, as a part of an Agreement.

    sizes: of each sum, how many exponents and how many numbers it has; none if nothing needs it. kept: their terms.
    """

    def __init__(self, lib: Any, sizes: Sequence[tuple[int, int]]) -> None:
        self.kept: list[BatchSum] = []
        self.later, self.sizes = _Later(lib, len(sizes), self.kept), sizes
        self.fields, self.sums = (sum(column) for column in zip(*sizes, strict=True))

    def attach(self, fields: np.ndarray, sums: np.ndarray) -> None:
        """Take the parts of the messages that are these sums'."""
        self.of_fields, self.of_sums = list[np.ndarray](), list[np.ndarray]()
        for many, numbers in self.sizes:
            self.of_fields.append(fields[:many])
            self.of_sums.append(sums[:numbers])
            fields, sums = fields[many:], sums[numbers:]

    def look(self) -> None:
        """Find the largest exponents of this rank's rows."""
        self.found = [
            summed.largest() if own.size else None
            for summed, own in zip(self.kept, self.of_fields, strict=True)
        ]
        for found, own in zip(self.found, self.of_fields, strict=True):
            if found is not None:
                own[...] = found.reshape(-1)

    def cut(self) -> None:
        """Cut to slices on the common scale, and add them."""
        each = zip(self.kept, self.found, self.of_fields, self.of_sums, strict=True)
        for summed, found, fields, sums in each:
            if found is not None:
                common = fields.astype(found.dtype).reshape(found.shape)
                sums[...] = summed.partial(common).reshape(-1)


class OpSums(_Part):
    """The gradients of weights that are sums over the batch, of an op's backward pass: `run`."""

    def __init__(self, lib: Any, call: Call) -> None:
        assert call.forward is not None
        self.xp, self.slots = lib.exact, [call.writes[n] for n in _places(call)]
        sizes = zip(self.slots, _sizes(call), strict=True)
        super().__init__(lib, [(0, 0) if slot is None else size for slot, size in sizes])
        self._run = interpret(SimpleNamespace(math=self.later, xp=lib.xp, device=lib.device), call)

    def run(self) -> None:
        """Compute the gradients of this rank's rows, and keep the terms of the sums."""
        self.kept.clear()
        self._run()

    def finish(self) -> None:
        """Round what all ranks have added."""
        for slot, summed, sums in zip(self.slots, self.kept, self.of_sums, strict=True):
            if slot is not None:
                slot.put(self.xp.leave(summed.whole(sums).reshape(slot.shape)))


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _places(call: Call) -> list[int]:
    """Which of an op's gradients are sums over the batch, in the order in which it makes them; none if none is."""
    forward = call.forward or call
    if call.op is ops.normalize:
        axes, ndim = forward.options["axis"], len(forward.reads[0].shape)
        return [] if any(a % ndim == 0 for a in axes) else [*range(2, len(forward.reads))]
    if call.op not in _SPREADING:
        return [*range(1, len(forward.reads))]
    y = forward.writes[0]
    assert y is not None
    return [n for n, slot in enumerate(forward.reads) if len(slot.shape) < len(y.shape)]


def _sizes(call: Call) -> list[tuple[int, int]]:
    """How many exponents, and how many numbers, each of these sums has."""
    assert call.forward is not None
    reads = call.forward.reads
    sizes = [(_size(reads[n].shape), _size(reads[n].shape)) for n in _places(call)]
    if call.op is ops.embedding:
        sizes[0] = reads[1].shape[1], sizes[0][1]
    elif call.op in (ops.dense, ops.matmul):  # pixels are not cut, and need one slice of dy
        (x, w, *_), cuts_x = reads, reads[0].scaled is None
        outputs = _size(w.shape[1:])
        sizes[0] = outputs + (x.shape[-1] if cuts_x else 0), (2 if cuts_x else 1) * _size(w.shape)
    return sizes


def puts_off(call: Call) -> bool:
    """Whether a call is of an op that this file serves: with gradients of weights that are sums over the batch."""
    forward = call.forward or call
    if call.kind not in ("forward", "backward") or call.parts or forward.parts:
        return False
    x, y, *others = forward.reads[0], forward.writes[0], *forward.reads[1:]
    marked = call is forward or bool(call.options.get("over_rows"))
    if call.op is ops.dense:  # of matrices there are kernels
        return len(x.shape) > 2 and y is not None and all(0 < len(b.shape) < len(y.shape) for b in others[1:])
    if call.op is ops.matmul:
        return marked and len(x.shape) == len(others[0].shape) == 2
    if call.op in _SPREADING:  # an array of rows, and weights that have fewer axes
        spread = [slot.shape for slot in forward.reads if y is None or slot.shape != y.shape]
        return marked and y is not None and bool(spread) and all(0 < len(s) < len(y.shape) for s in spread)
    return call.op in (ops.normalize, ops.embedding) and bool(_places(call))


def weight_gradients(call: Call) -> list[Slot]:
    """The gradients of weights that a backward call writes."""
    places = _places(call) if puts_off(call) else range(1, len(call.writes))
    return [slot for n in places if (slot := call.writes[n]) is not None]


class SharedLoss(_Part):
    """A loss over the rows of all ranks, and at once the gradient of this rank's rows: `run`.

    total: the slot of the divisor of the mean, where a call wants it.
    """

    def __init__(self, lib: Any, call: Call, total: Slot | None) -> None:
        super().__init__(lib, [(1, 1)])
        self.lib, self.xp, self.call, self.slot = lib, lib.exact, call, total
        self.loss, self.slope = call.writes

    def run(self) -> None:
        """Compute the terms of this rank's rows, and their gradient."""
        self.kept.clear()
        op, arrays = self.call.op, [slot.array for slot in self.call.reads]
        _, saved = forward_of(op, self.later, arrays, self.call.options)
        self.total = saved[2]
        if self.slot is not None:
            self.slot.put(self.lib.number_on_device(self.xp.leave(self.total)))
        assert self.slope is not None
        self.slope.put(backward_of(op, self.later, np.ones((), np.float32), saved)[0])

    def finish(self) -> None:
        """Round what all ranks have added, after the division."""
        assert self.loss is not None
        value = self.of_sums[0].reshape(())
        self.loss.put(self.xp.leave(value if self.total is None else divided(self.xp, value, self.total)))


class KernelLoss(_Part):
    """Mean softmax cross-entropy over the rows of all ranks by a kernel, and the gradient of this rank's rows: `run`.

    rows: of the whole batch. terms: of the module of passes.
    """

    def __init__(self, lib: Any, call: Call, rows: int, terms: Callable[..., Runnable]) -> None:
        super().__init__(lib, [(1, 1)])
        z, labels = (slot.array for slot in call.reads)
        each = np.empty(len(z))
        self.kept.append(RowSum(lib, each, (0,), rows))
        self.xp, self.rows, (self.loss, slope) = lib.exact, rows, call.writes
        assert slope is not None
        self.run = terms(z, labels, each, slope.array, 1.0 / rows)

    def finish(self) -> None:
        """Round the mean of what all ranks have added."""
        assert self.loss is not None
        self.loss.put(self.xp.leave(self.of_sums[0].reshape(()) / self.rows))


#: What computes a loss. A method of a user may add up the batch by itself, and need the sum at once.
_OF_LOSSES = "forward", "backward", "terms", "slopes", "fit", "counts"


def serves_loss(call: Call) -> bool:
    """Whether a loss is one of xnn's: a sum over the batch, perhaps divided by another one."""
    op, options = call.op, call.options
    plain = all(np.dtype(slot.dtype) in (np.float32, np.int64) for slot in call.reads)
    own = isinstance(op, LossOp) and all(is_own(getattr(op, name)) for name in _OF_LOSSES)
    return plain and own and options.get("reduction", "mean") != "none"
