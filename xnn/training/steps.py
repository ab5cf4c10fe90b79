"""Takes the steps of one fit, by a program for each batch size, and can go back to the last check."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends import Backend
from xnn.backends.communicator import with_communicator
from xnn.backends.kernels.calls import Cursor, KernelTable
from xnn.backends.ranks.group import Ranks, Shard
from xnn.backends.row_sources import reads_rows
from xnn.data import Batches
from xnn.data.batches import Rows
from xnn.data.reader import Reader
from xnn.errors import OptionError
from xnn.graph.scope import assignments
from xnn.layers import Drawing, Sequential
from xnn.losses import Loss
from xnn.metrics import Metric, try_out
from xnn.optimizers import Optimizer
from xnn.training.flatten import flatten
from xnn.training.parameters import Store
from xnn.training.program import Program, tell_once
from xnn.training.rowwise import check_rows, check_sizes
from xnn.training.sharing import Sharing
from xnn.training.trace import (
    Trace,
    runs_code_between_steps,
    runs_code_of_the_optimizer,
    runs_code_of_the_users,
    trace,
)

__all__ = ["Stepper"]

_MEASURED_STEPS = 30


class Stepper:
    """Takes training steps, by a program for each batch size; makes new programs when the computation changes.

    lib, table: the backend and its kernels. model, loss, optimizer: what is trained. metrics: what is counted in
    each batch. batches: the training data. keep_gradients: whether callbacks read gradients. sharing: how several
    ranks share each batch; None (default) trains alone.
    """

    def __init__(
        self,
        lib: Backend,
        table: KernelTable,
        model: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        metrics: Sequence[Metric],
        batches: Batches,
        keep_gradients: bool,
        sharing: Sharing | None = None,
    ) -> None:
        table = table if sharing is None else sharing.table(table)
        self.lib, self.table, self.batches, self.keep_gradients = lib, table, batches, keep_gradients
        self.sharing = sharing
        self.model, self.loss, self.optimizer, self.metrics = model, loss, optimizer, metrics
        # What the loss of a step is divided by, where that is not the number of rows, is recorded after the metrics.
        self.collected: list[list[Any]] = [[] for _ in range(1 + len(metrics) + 1)]
        self._counted: list[bool] = []  # of each step not taken yet: whether this rank's counts are added up
        self._earlier: list[list[np.ndarray]] = []  # taken when the loss was no longer divided as before
        self._published = False  # whether parameters and optimizer have the arrays of the last step
        self._kept: Any = None
        self._tell = tell_once()
        self.reader: Reader | None = None
        self.begin_anew()

    def begin_anew(self) -> None:
        """Make the programs and their memory, from the model and the optimizer as they are now."""
        drawing = [layer.index for layer in self.model.all_layers() if isinstance(layer, Drawing)]
        if len(set(drawing)) < len(drawing):  # a layer was added after the model was built
            self.model.number_from(0)
        self._parameters, self._layers = self.model.parameters(), [*self.model.all_layers()]
        self.code_of_users = runs_code_of_the_users(self.model, self.loss)
        self._seen = assignments[0]
        self.total = self._divisor()
        buffers = self.model.buffers()
        of_users = runs_code_of_the_optimizer(self.optimizer)
        common = None if self.sharing is None else self.sharing.common(self.lib, self.table, of_users)
        ways = self._parameters, self.table.in_place, buffers, self.table.buffers_in_place, common
        self.store = Store(self.lib, self.optimizer, *ways)
        rows = min(self.batches.batch_size, self.batches.rows)
        data = self.batches.arrays, self.lib.free_memory
        self.feed = self.table.feed(self.store.groups, rows, self.collected, *data)
        if self.feed is not None:
            self.feed.seed = self.batches.seed
        if self.feed is None and self.reader is None and any(map(reads_rows, self.batches.arrays)):
            self.reader = Reader(self.batches, None if self.sharing is None else self.sharing.own)
        self.programs: dict[int, Program] = {}
        self._traces: dict[int, Trace] = {}
        self._shards: dict[int, Shard | None] = {}
        self._kept = None
        self.program(rows)

    def _divisor(self) -> Callable[..., Any] | None:
        """The loss's `total`, or None if the loss is divided by the number of rows."""
        even = self.loss.counts_samples(weighted=len(self.batches.arrays) > 2)
        return None if even else self.loss.total

    def program(self, size: int) -> Program:
        """The program for batches of this many rows, made at its first use."""
        if size not in self.programs:
            self._make(size)
        return self.programs[size]

    def _make(self, size: int) -> None:
        """Make a program by running the first rows through model and loss."""
        if self.feed is not None and not self.feed.room(size):
            raise OptionError(
                f"a step got a batch of {size:,} rows, and the memory on the GPU was made for batches of "
                f"{self.batches.batch_size}: make the Stepper with Batches of batch_size={size}"
            )
        stream = np.array([self.batches.seed, 0], np.uint64)
        shard = None if self.sharing is None else self.sharing.shard(size)
        rows = size if shard is None else shard.here
        traced, cursor = self._trace(size), Cursor(np.arange(rows), stream)
        if self.code_of_users and not traced.is_like(self._trace(size)):
            raise OptionError(
                "a compute of the model or the loss did something else when it ran a second time, and a program "
                "runs it once: draw random numbers with a layers.Drawing, change numbers from step to step with "
                "Layer.keep, or write forward and backward by hand"
            )
        self.loss.recognize(traced.outputs.array, *(given.array for given in traced.inputs[1:]))
        for metric in self.metrics:
            try_out(self.lib, metric, traced.outputs.array, traced.inputs[1].array)
        self._counters = [metric.counter() for metric in self.metrics]
        flat = flatten(
            self.lib,
            self.store,
            traced,
            self.batches.arrays if self.reader is None else self.reader.buffers,
            cursor,
            self._counters,
            self.collected if self.total else self.collected[:-1],
            self.total,
        )
        table, added = self.table, None
        if self.sharing is not None:
            added = partial(self.sharing.added, store=self.store, metrics=self.metrics, shard=shard)
            if shard is None:
                table = self.sharing.whole_table(table)
            else:
                check_rows(flat, rows)
                if self.code_of_users:
                    check_sizes(traced, self._trace(size, whole=True))
        traced.free()  # what a program needs is in the slots of its calls
        self.model.forget()
        parts = self.lib, table, self.store, flat, cursor
        with with_communicator(shard):
            made = Program(*parts, self.keep_gradients, self.feed, self._tell, added)
        self.programs[size], self._shards[size] = made, shard
        self._traces[size] = traced
        self._seen = assignments[0]

    @property
    def ranks(self) -> Ranks | None:
        """The processes that take the steps together, or None."""
        return None if self.sharing is None else self.sharing.ranks

    @property
    def plan(self) -> dict[str, Any]:
        """What the execution plan says of the steps.

        folded: whether gradients are not kept. product_threads: the number of BLAS's threads, where it has one and
        xnn's own threads share the batch. On a GPU, persistent: whether the steps of a chunk are one launch of
        one kernel; persistent_because: why. Of several ranks, what `Sharing.plan` says.
        """
        whole = self.program(min(self.batches.batch_size, self.batches.rows)).whole
        about = (
            {}
            if whole is None
            else {"persistent": whole.run is not None, "persistent_because": whole.because}
        )
        if self.sharing is not None:
            about |= self.sharing.plan
        if self.product_threads:
            about["product_threads"] = self.product_threads
        return {"folded": bool(self.store.folded), **about}

    @property
    def product_threads(self) -> int | None:
        """How many threads BLAS should have: 1 where xnn's own share much of a step, None where they do not."""
        return 1 if any(program.is_shared for program in self.programs.values()) else None

    @property
    def at_other_places(self) -> int:
        """How often a sample's forward pass multiplies by weights of convolutions at other places than the first."""
        calls = self.program(min(self.batches.batch_size, self.batches.rows)).calls
        shapes = [
            (call.reads[1].shape, call.writes[0].shape)  # type: ignore[union-attr]
            for call in calls
            if call.key == ("forward", ops.conv2d)
        ]
        return sum(math.prod(weights) * (math.prod(images[2:]) - 1) for weights, images in shapes)

    def _trace(self, size: int, whole: bool = False) -> Trace:
        """Record the first rows of a batch of this size going through model and loss: this rank's, or the whole."""
        trial = None if self.sharing is None or whole else self.sharing.trial(size)
        sample = self.batches.sample(size if trial is None else trial.here)
        with with_communicator(trial):
            return trace(self.model, self.loss, [self.lib.to_device(part) for part in sample])

    def _has_other_parts(self) -> bool:
        """Whether the model has other layers or parameters than those that the programs were made of."""
        known, now = (*self._layers, *self._parameters), (*self.model.all_layers(), *self.model.parameters())
        return len(known) != len(now) or any(a is not b for a, b in zip(known, now, strict=True))

    def fits(self) -> bool:
        """Whether model and optimizer still have the parts that the programs and their memory were made of."""
        return not self._has_other_parts() and self.store.is_current(self._parameters)

    def look_again(self, called_back: bool = False) -> None:
        """Drop the programs if model or loss would now compute something else.

        Without users' code, only an assignment to an attribute of a layer or loss can change that. called_back:
        whether a callback ran since, which may have changed anything that users' code reads.
        """
        counters = self._counters if not called_back else [metric.counter() for metric in self.metrics]
        others = counters != self._counters  # a callback may have changed a metric's options
        if self._seen == assignments[0] and not others and not (called_back and self.code_of_users):
            return
        total = self._divisor()
        if (total is None) != (self.total is None):
            self._earlier.append(self._take())
            self.total, others = total, True
        if others or not all(traced.is_like(self._trace(size)) for size, traced in self._traces.items()):
            self.programs.clear()
            self._traces.clear()
            self.store.folded.clear()
        self.model.forget()
        self._seen = assignments[0]

    def refresh(self) -> None:
        """After callbacks: take in what they changed, and keep a copy of everything to go back to."""
        self.lib.activate()  # callbacks may have worked with another device
        if self.sharing is not None and self.store.is_shared:  # before one rank writes where others read
            changed = self.store.changed()
            self.sharing.check_changes("weights or the optimizer's state" if changed else "", changed)
        if fits := self.fits():
            self.take_in()
        if self.sharing is not None:
            self.sharing.check_programs(fits, not self.programs, self.model.parameters(), self.optimizer)
        if not fits:
            self.begin_anew()
        self.keep()

    def take_in(self) -> None:
        """Take in what was changed between steps in the parts that the programs were made of."""
        self.look_again(called_back=True)
        self.store.attach()
        for program in self.programs.values():
            program.cursor.stream[0] = self.batches.seed
            program.look_again()

    @property
    def most(self) -> int:
        """How many steps to take at once, at most. On the host a schedule of the user's sees each step done."""
        if self.feed is not None:
            return self.table.chunk
        if self.reader is not None or runs_code_between_steps(self.optimizer):
            return 1
        return self.program(min(self.batches.batch_size, self.batches.rows)).most

    @property
    def streaming(self) -> str:
        """Why a GPU's kernels get the data in parts, in a sentence; "" if they do not."""
        return "" if self.feed is None else self.feed.streaming

    def reload(self) -> None:
        """Take in what callbacks have written to the data, of which a GPU has a copy."""
        if self.feed is not None:
            self.feed.reload()

    def numbers(self, epoch: int, done: int = 0) -> Rows:
        """The rows of each batch of an epoch, without the first `done` batches.

        Close the iterator if it is not read to its end: a thread may read.
        """
        return (self.batches if self.reader is None else self.reader).numbers(epoch, done)

    def step(self, rows: np.ndarray, number: int) -> None:
        """Take one step on these rows of the data. number: of the step, counted over all fits."""
        self.steps([rows], number)

    def steps(self, batches: Sequence[np.ndarray], number: int) -> None:
        """Take a step on each of these batches of equally many rows. number: of the first step."""
        size, done = len(batches[0]), 0
        self.lib.activate()
        while done < len(batches):
            self.look_again()
            program = self.programs.get(size) or self.program(size)
            self._published = False
            if self.sharing is not None:
                self._shared_step(program, batches[done], number + done)
                done += 1
                continue
            if program.draws:
                self.model.set_stream(self.batches.seed, number + done)
            if self.reader is None:
                done += program.steps(batches[done:], number + done)
            else:
                done += program.steps([self.reader.places(batches[done])], number + done)
            if program.draws and done > 1:  # as after single steps
                self.model.set_stream(self.batches.seed, number + done - 1)
            program.leave_streams(self.batches.seed, number + done - 1)

    def _shared_step(self, program: Program, rows: np.ndarray, number: int) -> None:
        """A step on this rank's rows of a batch; other ranks compute the others at the same time."""
        shard = self._shards[len(rows)]
        self._counted.append(shard is not None or self.sharing.ranks.rank == 0)  # type: ignore[union-attr]
        own = self.sharing.own(len(rows))  # type: ignore[union-attr]
        self.model.set_stream(self.batches.seed, number, own.start)
        with with_communicator(shard):
            program.steps([rows[own] if self.reader is None else self.reader.places(rows)], number)
        program.leave_streams(self.batches.seed, number)

    def seconds_per_step(self, number: int) -> float:
        """The median time of a step on the first rows, in seconds. The measured steps are undone."""
        rows = np.arange(min(self.batches.batch_size, self.batches.rows))
        self.refresh()
        times = []
        try:
            for _ in range(_MEASURED_STEPS):
                start = time.perf_counter()
                self.step(rows, number)
                self.lib.synchronize()
                times.append(time.perf_counter() - start)
                self.restore()
        finally:
            self.restore()
            self.store.hand_out()  # callbacks come before the first step
        return float(np.median(times))

    def take(self) -> list[np.ndarray]:
        """The losses and the metrics of all steps since the last call, each as a float64 array on the host.

        If losses are divided by something else than the number of rows, these divisors come last; NaN where it was
        the number of rows. Waits for the device.
        """
        self.lib.activate()
        self._publish()
        parts = [part for part in self._earlier if len(part[0])] + [self._take()]
        self._earlier.clear()
        if len(parts) == 1:
            return parts[0]
        for part in parts:
            part += [np.full(len(part[0]), np.nan)] * (max(map(len, parts)) - len(part))
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _take(self) -> list[np.ndarray]:
        taken = {} if self.feed is None else self.feed.take()
        columns = self.collected if self.total else self.collected[:-1]
        for column, numbers in enumerate(columns):
            if numbers:
                taken[column] = self.lib.stacked(numbers)
            numbers.clear()
        found = [taken.get(column, np.empty(0)) for column in range(len(columns))]
        if self.sharing is not None:
            self.sharing.add_counts(found[1:], self.metrics, np.array(self._counted, float))
            self._counted.clear()
        return found

    def forget(self) -> None:
        """Forget the losses and metrics that were not taken."""
        for numbers in self.collected:
            numbers.clear()
        self._earlier.clear()
        self._counted.clear()
        if self.feed is not None:
            self.feed.forget()

    def _publish(self) -> None:
        """Give parameters and optimizer the arrays of the last step; once, since callbacks may then assign others."""
        if not self._published:
            self.store.publish()
            self._published = True

    def keep(self) -> None:
        """Keep a copy of everything that steps change, for `restore`."""
        self.lib.activate()
        self._kept = self.store.snapshot(self._kept)

    def restore(self, alone: bool = False) -> None:
        """Go back to the last `refresh` or `keep`. alone: see `Store.restore`."""
        self.lib.activate()
        self.store.restore(self._kept, alone)
        self._published = True
        self.forget()
