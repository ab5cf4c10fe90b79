"""Sharing: how the ranks of a training share the rows of each batch, and what they send one another in a step.

Rank r has the rows from n r // N to n (r + 1) // N of a batch of n rows, and computes their forward and backward
pass. What is a sum over the batch is added over all ranks:

    fast     the gradients of all parameters and the loss, in one message after the backward pass; BatchNorm sends
             three messages besides, two for its mean and variance and one for their gradients
    exact    the largest exponents, then the sums, by two messages after the backward pass for what kernels and some
             ops add up (`backends/exact/kernels/shared_table.py`), and by two or more in its place for each other op

What lies on a GPU goes by way of the host (`Backend.exchanged`). A batch of fewer rows than ranks is computed whole
by every rank. With each step the ranks agree on whether to end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xnn.backends import Backend, current_numerics
from xnn.backends.exact.kernels.exact_kernels import ExactTable
from xnn.backends.exact.kernels.shared_table import Agreement, SharedExactTable
from xnn.backends.kernels.calls import Call, KernelTable, Slot
from xnn.backends.ranks.group import Message, Ranks, Shard, Trial
from xnn.backends.ranks.tables import FastTable
from xnn.errors import RankError
from xnn.layers import Parameter
from xnn.metrics import Metric
from xnn.optimizers import Optimizer
from xnn.training.groups import HEAD, Common
from xnn.training.parameters import Store

__all__ = ["Sharing"]

#: At the head of a message with the gradients: the loss, and who wishes to end.
_LOSS, _WISHES = 0, slice(1, 3)


class Sharing:
    """What the programs of a fit do together with other ranks.

    ranks: those of the training. keep_gradients: whether callbacks read gradients. wish: tells whether this rank was
        interrupted, and whether its time is over.
    agreed: the same two, as of the last step, for all ranks: whether any was interrupted; whether rank 0's time is
        over.
    """

    def __init__(self, ranks: Ranks, keep_gradients: bool = False) -> None:
        self.ranks, self.keep_gradients = ranks, keep_gradients
        self.wish: Callable[[], tuple[bool, bool]] = lambda: (False, False)
        self.agreed = False, False
        self._messages: dict[str, Message] = {}
        self._exact: SharedExactTable | None = None
        self._alone: KernelTable | None = None  # the kernels of one process, in exact numerics

    def shard(self, size: int) -> Shard | None:
        """This rank's rows of a batch of so many; None for a batch that every rank computes whole."""
        return Shard(self.ranks, size) if size >= self.ranks.size else None

    def own(self, size: int) -> slice:
        """Which rows of a batch of so many this rank computes."""
        shard = self.shard(size)
        return slice(0, size) if shard is None else shard.own

    def trial(self, size: int) -> Trial | None:
        """As `shard`, without messages."""
        return Trial(self.ranks, size) if size >= self.ranks.size else None

    def table(self, table: KernelTable) -> KernelTable:
        """The kernels of this table that compute rows alone, or that agree with other ranks on what they add up.

        All ranks keep gradients if one does. There are no kernels unless all ranks have some: where ops compute, they
        send other messages than kernels do. Raises RankError, on all ranks, if they have different ones in fast
        numerics.
        """
        self.keep_gradients = not self.all_say(not self.keep_gradients)
        fast = current_numerics() == "fast"
        own = table.in_place if fast else type(table) is ExactTable
        names = self.ranks.gather_objects(table.name if own else "")
        if not all(names):
            return KernelTable()
        if fast and len({*names}) > 1:
            raise RankError(
                f"some ranks compute by the kernels {' and others by '.join(dict.fromkeys(names))}, which round "
                "differently: install the same packages for all, or choose --kernels numpy (kernels='numpy') or "
                "exact numerics"
            )
        if fast:
            return FastTable(table)
        assert isinstance(table, ExactTable)
        self._exact = SharedExactTable(table.lib, table.passes, table.name)
        self._alone = table
        return self._exact

    def common(self, lib: Backend, table: KernelTable, of_users: bool) -> Common | None:
        """What ranks do together in the memory of their host, where kernels change parameters in place.

        In fast numerics gradients are added up where they lie. of_users: whether code of users runs between steps. It
        may write to parameters, which all ranks would do in turn if they were shared.
        """
        if not (table.in_place and lib.is_host):
            return None
        return Common(
            None if of_users else self.ranks, self.message if current_numerics() == "fast" else None
        )

    def message(self, count: int, dtype: str) -> Message:
        """A Message of so many numbers. It lies in the memory of the last one of that dtype, and overwrites it.

        All ranks call this together, unless an earlier message was at least as long.
        """
        known = self._messages.get(dtype)
        if known is None or known.array.size < count:
            known = self._messages[dtype] = self.ranks.message(count, dtype)
        return known if known.array.size == count else known.part(count)

    @property
    def plan(self) -> dict[str, Any]:
        """What the execution plan says of the ranks: how many there are, and what adds up their numbers."""
        return {"ranks": self.ranks.size, "sums": self.ranks.way}

    def all_say(self, so: bool) -> bool:
        """Whether it is so on all ranks."""
        return all(self.ranks.gather_objects(so))

    def check_programs(
        self, fit: bool, dropped: bool, parameters: Sequence[Parameter], optimizer: Optimizer
    ) -> None:
        """Raise RankError, on all ranks, unless callbacks have left the programs of all in the same state.

        fit: whether programs and their memory fit these parameters and this optimizer. dropped: whether programs were
        dropped, since they would compute something else.
        """
        if fit:
            self.check_changes("options of a layer, the loss or a metric" if dropped else "")
        else:
            layout = [(p.name, p.shape, p.dtype, p.frozen, optimizer.decay_of(p)) for p in parameters]
            self.check_changes("parameters or options of the optimizer", layout)

    def check_changes(self, changed: str, layout: object = None) -> None:
        """Raise RankError, on all ranks, unless the callbacks of all ranks have changed the same.

        The ranks would go on to send messages that do not fit one another.

        changed: what callbacks have changed on this rank, in words; "" for nothing. layout: that from which the
        lengths of messages follow; None (default) if it has not changed.
        """
        every = self.ranks.gather_objects((changed, layout))
        for rank, (other, _) in enumerate(every):
            if every[rank] != every[0]:
                first = every[0][0]
                alike = "them in another way" if other == first else first or "nothing"
                raise RankError(
                    f"on rank {rank} of {self.ranks.size} callbacks have changed {other or 'nothing'}, on rank 0 "
                    f"{alike}: a callback must change model, loss, metrics and optimizer on all ranks alike"
                )

    def whole_table(self, table: KernelTable) -> KernelTable:
        """The kernels for a batch that every rank computes whole, on the same memory."""
        if isinstance(table, FastTable):
            return table.inner if table.inner.name != "cuda" else table  # its kernels would record the loss
        return self._alone if table is self._exact and self._alone is not None else table

    def added(
        self, calls: Sequence[Call], store: Store, metrics: Sequence[Metric], shard: Shard | None
    ) -> list[Call]:
        """The calls of a program, and those by which ranks exchange what they have computed."""
        if store.is_shared:
            calls = _with_waits(calls, Call("share", None, (), (), {"compute": store.wait}), shard is None)
        if shard is None:
            return [*calls, Call("share", None, (), (), {"compute": self._agree})]
        loss = next(call.reads[0] for call in calls if call.kind == "collect")
        compute = self._adding(store, loss) if current_numerics() == "fast" else self._agreeing(store, shard)
        found, counting = list[Call](), iter(metrics)
        last = max(n for n, call in enumerate(calls) if call.kind in ("backward", "add"))
        for n, call in enumerate(calls):
            if call.kind == "metric" and not next(counting).adds_up:
                gathering, call = self._on_all_rows(call, shard, store.lib)
                found.append(gathering)
            found.append(call)
            if n == last:
                slots = loss, *store.gradients.values()
                found.append(Call("share", None, slots, slots, {"compute": compute}))
        return found

    def add_counts(
        self, columns: Sequence[np.ndarray], metrics: Sequence[Metric], counted: np.ndarray
    ) -> None:
        """Add to what this rank has counted in each step what the others have, by a message for each metric.

        columns: of each metric, the counts of the steps; they change. counted: for each step 1 if this rank's counts
        are part of the sum, 0 if another rank has counted the same rows.
        """
        for column, metric in zip(columns, metrics, strict=False):
            if metric.adds_up and len(column):
                column *= counted.reshape(-1, *(1,) * (column.ndim - 1))
                self.ranks.total(column)

    def _agree(self) -> None:
        """Tell one another whether to end."""
        wishes = np.array(self._own_wishes())
        self.ranks.total(wishes)
        self._take(wishes)

    def _agreeing(self, store: Store, shard: Shard) -> Callable[[], None]:
        """A function that adds what exact kernels leave to be added, and the wishes of all ranks."""
        if self._exact is None:
            return self._agree
        self._exact.direct = frozenset(store.gradients.values())
        self._exact.agreement = Agreement(shard, self.message, self._own_wishes, self._take)
        return self._exact.agreement.run

    def _own_wishes(self) -> tuple[float, float]:
        interrupted, over = self.wish()
        return float(interrupted), float(over and self.ranks.rank == 0)

    def _take(self, wishes: np.ndarray) -> None:
        self.agreed = bool(wishes[0] > 0.0), bool(wishes[1] > 0.0)

    def _adding(self, store: Store, loss: Slot) -> Callable[[], None]:
        """A function that adds the gradients, the loss and the wishes of all ranks."""
        first = store.messages.get(str(_plain(loss.dtype)))
        if first is not None:
            others = [message for message in store.messages.values() if message is not first]
            head, parts = first.array[:HEAD], None if others else self._own_parts(store)

            def in_place() -> None:
                head[_LOSS], head[_WISHES] = loss.array, self._own_wishes()
                if parts is not None:
                    sums = first.total_parts(parts, HEAD)
                else:
                    for message in (first, *others):
                        message.total()
                    sums = head
                loss.put(np.array(sums[_LOSS]))
                self._take(sums[_WISHES])

            return in_place
        lib, xp, groups = store.lib, store.lib.xp, store.groups
        slots: dict[np.dtype, list[Slot]] = {_plain(loss.dtype): []}
        flat = [group.flat[1] for group in groups if group.in_place]
        joined = [Slot("gradients", array.shape, array.dtype, array, fixed=True) for array in flat]
        for slot in joined or store.gradients.values():
            slots.setdefault(_plain(slot.dtype), []).append(slot)
        no_wishes = xp.zeros(_WISHES.stop - _WISHES.start, dtype=loss.dtype, device=lib.device)

        def with_wishes(numbers: np.ndarray) -> None:
            numbers[_WISHES] = self._own_wishes()
            self.ranks.total(numbers)
            self._take(numbers[_WISHES])

        def copied() -> None:
            for number, own in enumerate(slots.values()):
                head = () if number else (loss.array, no_wishes)
                flat = xp.concat([xp.reshape(x, (-1,)) for x in (*head, *(slot.array for slot in own))])
                flat = lib.exchanged(flat, self.ranks.total if number else with_wishes)
                start = 0 if number else _WISHES.stop
                for slot in own:
                    size = math.prod(slot.shape)
                    slot.put(xp.reshape(flat[start : start + size], slot.shape))
                    start += size
                if not number:
                    loss.put(xp.reshape(flat[:1], loss.shape))

        return copied

    def _own_parts(self, store: Store) -> list[slice] | None:
        """What this rank updates, in the message with the gradients; None if somebody needs the others' parts.

        So plain SGD keeps gradients only if a callback reads them; in one process some are kept all the same.
        """
        groups = store.groups
        if self.keep_gradients or store.clipping or not all(g.is_shared and g.plain for g in groups):
            return None
        store.folded.update(store.gradients)
        starts = HEAD + np.cumsum([0, *(group.length for group in groups)])
        return [
            slice(int(start) + g.part.start, int(start) + g.part.stop)
            for start, g in zip(starts, groups, strict=False)
        ]

    def _on_all_rows(self, call: Call, shard: Shard, lib: Backend) -> tuple[Call, Call]:
        """The call that gathers what a metric reads from all ranks, and the metric's call on these rows."""
        given = call.reads
        whole = tuple(Slot(f"all {s.name}", (shard.rows, *s.shape[1:]), s.dtype) for s in given)
        size, rows = self.ranks.size, shard.rows
        counts = [rows * (r + 1) // size - rows * r // size for r in range(size)]
        dtypes = [_plain(s.dtype) for s in given]
        widths = [d.itemsize * math.prod(s.shape[1:]) for d, s in zip(dtypes, given, strict=True)]
        message = np.zeros((max(counts), sum(widths)), np.uint8)

        def gather() -> None:
            start = 0
            for slot, width in zip(given, widths, strict=True):
                rows_of = np.ascontiguousarray(lib.to_host(slot.array)).reshape(shard.here, -1).view(np.uint8)
                message[: shard.here, start : start + width] = rows_of
                start += width
            found = self.ranks.gather(message)
            flat = np.concatenate([part[:count] for part, count in zip(found, counts, strict=True)])
            start = 0
            for slot, dtype, width in zip(whole, dtypes, widths, strict=True):
                piece = np.ascontiguousarray(flat[:, start : start + width])
                slot.put(lib.to_device(piece.reshape(-1).view(dtype).reshape(slot.shape)))
                start += width

        counted = Call("metric", call.op, whole, call.writes, call.options)
        return Call("share", None, given, whole, {"compute": gather}), counted


def _with_waits(calls: Sequence[Call], wait: Call, before: bool) -> list[Call]:
    """The calls, and a wait after the last update: the next step reads what other ranks have updated.

    before: whether to wait before the first update as well. Where gradients are added up, this is done there.
    """
    updates = [n for n, call in enumerate(calls) if call.kind == "update"]
    first, last = updates[0], updates[-1] + 1
    return [*calls[:first], *([wait] if before else []), *calls[first:last], wait, *calls[last:]]


def _plain(dtype: Any) -> np.dtype:
    """NumPy's dtype for that of a backend's arrays."""
    return np.dtype(str(dtype).rpartition(".")[2])
