"""A program: model, loss and optimizer as a list of calls that trains on batches of one shape.

    gather the batch, draw masks -> forward, in the order of the trace -> keep running statistics
        -> backward, in the reverse order -> clip -> update -> average

The list is made once by `xnn.training.flatten`, of what `xnn.training.trace` recorded, and run for every step.
`xnn.backends.kernels.fusion` shortens it by a few named rules. The backend binds each call to a kernel over fixed
buffers, or to the op itself.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xnn.backends import Backend
from xnn.backends.kernels.binding import bind
from xnn.backends.kernels.calls import Call, Cursor, Feed, KernelTable, Runnable, Whole, chain
from xnn.backends.kernels.fusion import fuse
from xnn.files import notice
from xnn.graph.scope import assignments
from xnn.ops import Op
from xnn.training.captured import Sample, carrying, held_by, needs_host, samples
from xnn.training.parameters import Store
from xnn.training.several import Several, steps_at_once

__all__ = ["Program", "tell_once"]


class Program:
    """Training steps on batches of one size: `steps`.

    flat: the list from `flatten`. cursor: the row numbers of the step, which its gather calls read.
    keep_gradients: whether callbacks read gradients, so that every gradient must be computed. feed: what brings the
    numbers of steps to a GPU, or None. tell: called with the calls that turn out to keep the steps from being
    captured. shared: adds the calls by which several ranks share the batch; None where a single process trains.
    by_ops: the calls without a kernel, if the table is a GPU's; a graph records the operations on arrays that their
    ops ask for. eager: those of them for which no graph can be made. Their steps run call by call; and one at a time,
    if that is known when the program is made.
    whole: whether one kernel runs all steps of a chunk, and why; None if the table has no such kernel.
    several: what takes several steps by one call of native code, or None.
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
        tell: Callable[[Sequence[Call]], None] = lambda calls: None,
        shared: Callable[[Sequence[Call]], list[Call]] | None = None,
    ) -> None:
        self.lib, self.store, self.cursor, self.feed, self._tell = lib, store, cursor, feed, tell
        self.calls = fuse(list(flat), table, keep_gradients or shared is not None)
        if shared is not None:
            self.calls = shared(self.calls)
        folded = {
            id(slot) for call in self.calls if call.kind == "backward" and call.rule for slot in call.writes
        }
        store.folded.update(p for p, slot in store.values.items() if id(slot) in folded)
        #: Whether a step draws random numbers, or runs a layer that may.
        self.draws = any(call.kind == "draw" or _is_opaque(call) for call in flat)
        self._options_first = not self._compute_options_late(table)
        found: dict[Any, Call] = {}
        shares = feed is None and shared is None  # ranks read the gradients of layers when all are there
        self._steps = tuple(bind(lib, table, self.calls, found, shares))
        #: Whether threads of xnn's own share much of a step, so that BLAS should have one.
        self.is_shared = any(getattr(step, "is_shared", False) for step in self._steps)
        self.several = self._in_native_code(table) if feed is None and shared is None else None
        by_ops = [*found.values()]
        #: The layers whose random numbers kernels draw, and how often in a step.
        self._drawn = Counter(
            call.options["layer"] for call in self.calls if call.kind == "draw" and call not in by_ops
        )
        self._ops = found if feed is not None else {}
        self.by_ops = [call for call in self._ops.values() if call.kind != "options"]
        carries = carrying(self.calls) if self.by_ops else set()
        self.eager = [call for call in self.by_ops if call in carries or needs_host(call)]
        self._refused = None if self.eager or not self.by_ops else self._refuse
        #: How many steps it takes at once, at most.
        self.most = 1 if feed is None or self.eager else feed.most
        if self.several is not None:
            self.most = self.several.most
        #: What the ops read that is not made in the step: a graph has the addresses of arrays, and the numbers.
        written = {id(slot) for call in self.calls for slot in call.writes}
        read = {id(slot): slot for call in self.by_ops for part in call.with_parts() for slot in part.slots()}
        self._from_outside = [slot for key, slot in read.items() if key not in written and not slot.fixed]
        self._arrays: list[Any] = []
        self._held: list[list[Any]] = []
        #: Of the users' ops, since the loop was made; None if it did not run yet.
        self._samples: list[Sample] | None = None
        self.whole = self._whole(table, keep_gradients)
        self._loop: Callable[[int], None] | None = None
        if self.whole is not None and self.whole.run is not None:
            self._loop = self.whole.run
            store.folded.update(store.gradients)
        if self.eager and shared is None:
            tell(self.eager)

    def _in_native_code(self, table: KernelTable) -> Several | None:
        """What takes several steps by one call; None if code in Python runs within a step."""
        store, most = self.store, steps_at_once(len(self.cursor.rows), self.store.parameters)
        collecting = [call for call in self.calls if call.kind == "collect"]
        by_kernels = all(call.reads[0].fixed for call in collecting) and table.in_place
        if most == 1 or store.asks_optimizer or not (self._options_first and by_kernels):
            return None
        drawn = any(call.kind == "draw" for call in self.calls)
        steps = self._steps[: len(self._steps) - len(collecting)]
        several = Several(steps, self.cursor, store.groups, collecting, most, drawn)
        several.run = table.several([(steps, several.moving)])
        return None if several.run is None else several

    def _whole(self, table: KernelTable, keep_gradients: bool) -> Whole | None:
        if self.feed is None:
            return None
        if keep_gradients:
            return Whole(None, "callbacks read gradients")
        if self.by_ops:
            return Whole(None, "some calls have no CUDA kernel")
        return table.whole(self.calls)

    def _compute_options_late(self, table: KernelTable) -> bool:
        """Add a call that computes the options of the update, behind the calls that read attributes as they are.

        Computing the options calls a schedule, which may assign attributes of a layer or of the loss. By hand it is
        called by `optimizer.step`, so that what it assigns counts from the next step. Kernels and graphs have the
        options of the trace, and see it then anyway. Returns whether there are calls that would see it at once.
        """
        live = [
            n
            for n, call in enumerate(self.calls)
            if _reads_attributes(call) and not table.accepts(call) and (self.feed is None or needs_host(call))
        ]
        if not live or self.store.asks_optimizer:
            return False
        updates = [n for n, call in enumerate(self.calls) if call.kind == "update" or call.rule is not None]
        place = min([live[-1] + 1, *updates])
        compute = self.store.advance if self.feed is None else chain(self.store.advance, self.feed.renew)
        self.calls.insert(place, Call("options", None, (), (), {"compute": compute}))
        return True

    def begin(self, rows: np.ndarray, number: int) -> None:
        """Set the rows of the data, and as a rule the options of the optimizer, for the step of this number."""
        if self.store.running is not self.cursor:
            self.store.running = self.cursor
            self.store.touch()
        self.store.go_live()
        np.copyto(self.cursor.rows, rows)
        self.cursor.stream[1] = number
        if self._options_first:
            self.store.advance()

    def steps(self, batches: Sequence[np.ndarray], number: int) -> int:
        """Train on the first of these batches, and return on how many: on several at most `most`.

        batches: rows of the data, equally many. number: of the first step, counted over all fits.
        """
        if self.several is not None and len(batches) > 1:
            return self.several.steps(batches, number, self.begin)
        if self.feed is None:
            self.begin(batches[0], number)
            for run in self._steps:
                run()
            if not self.store.in_place:
                self.store.publish()
            return 1
        count, seen = 0, assignments[0]
        for rows in batches[: min(self.most, self.feed.room(len(batches[0])))]:
            self.begin(rows, number + count)
            self.feed.put(rows)
            count += 1
            if assignments[0] != seen:  # a schedule has changed a layer: the next step needs another program
                break
        self.feed.send(number, len(batches[0]))
        self._looped(self.feed)(count)
        new = self._refused is not None and not self.eager and self._samples is None
        if new and (changing := self._changed() or self._unrepeatable()):
            self._stop_capturing(changing)
        return count

    def look_again(self) -> None:
        """Drop the graphs if ops of the users would now make something else of the same arrays."""
        if not self.eager and self._samples and not all(sample.again() for sample in self._samples):
            self._loop = None

    def leave_streams(self, seed: int, step: int) -> None:
        """Set the layers' random streams to where they would be if the layers had drawn, and not kernels."""
        for layer, times in self._drawn.items():
            layer.set_stream(seed, step + times)

    def _looped(self, feed: Feed) -> Callable[[int], None]:
        """The loop over the steps of a chunk; a new one, without graphs, if ops would now read something else."""
        arrays = [slot.array for slot in self._from_outside]
        if self._loop is None or _differ(arrays, self._arrays) or self._changed():
            self._loop, self._samples = feed.loop(self._steps, not self.eager, self._refused), None
            self._arrays, self._held = arrays, [[*held_by(call.op)] for call in self.by_ops]
        return self._loop

    def _changed(self) -> list[Call]:
        """The calls whose op has got other attributes since the loop was made."""
        pairs = zip(self.by_ops, self._held, strict=True)
        return [call for call, held in pairs if _differ([*held_by(call.op)], held)]

    def _unrepeatable(self) -> list[Call]:
        """The calls of users' ops that make something else when they run a second time on the same arrays."""
        self._samples = samples(self.lib, self.by_ops)
        return [sample.call for sample in self._samples if not sample.again()]

    def _refuse(self, step: Runnable) -> None:
        """Note which step cannot be captured."""
        self._stop_capturing([self._ops[step]] if step in self._ops else self.by_ops)

    def _stop_capturing(self, calls: Sequence[Call]) -> None:
        self.eager, self._loop, self._samples = list(calls), None, None
        self._tell(self.eager)

    @property
    def calls_per_step(self) -> int:
        """The number of functions that a step calls; with CUDA kernels, of launches and products.

        It is 0 where one kernel runs all steps of a chunk.
        """
        whole = self.whole is not None and self.whole.run is not None
        return 0 if whole else len(self._steps)

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.calls))


def _is_opaque(call: Call) -> bool:
    return isinstance(call.op, Op) and call.op.opaque


def _reads_attributes(call: Call) -> bool:
    """Whether a call that no kernel runs reads attributes of layers, losses or metrics when it runs."""
    return call.kind in ("draw", "metric", "total") or _is_opaque(call)


def _differ(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether they are not the same objects."""
    return len(some) != len(others) or any(map(operator.is_not, some, others))


def tell_once() -> Callable[[Sequence[Call]], None]:
    """A function that says once which calls keep the steps from being captured, since that costs much on a GPU."""
    told = False

    def tell(calls: Sequence[Call]) -> None:
        nonlocal told
        names = dict.fromkeys(call.name for call in calls)
        if names and not told:
            notice(f"steps run call by call, since no CUDA graph can hold: {', '.join(names)}")
            told = True

    return tell
