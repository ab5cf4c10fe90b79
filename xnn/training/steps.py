"""The steps of one fit: a program for each batch size, over one store, and the way back to the last check."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from xnn.backends import Backend
from xnn.backends.kernels.calls import Cursor, KernelTable
from xnn.data import Batches
from xnn.errors import OptionError
from xnn.graph.scope import assignments
from xnn.layers import Sequential
from xnn.losses import Loss
from xnn.metrics import Count
from xnn.optimizers import Optimizer
from xnn.training.parameters import Store
from xnn.training.program import Program, flatten
from xnn.training.trace import Trace, runs_code_of_the_users, trace

__all__ = ["Stepper"]

_MEASURED_STEPS = 30


class Stepper:
    """Makes programs as batch sizes come up, and makes them anew when a callback has changed what they rest on."""

    def __init__(
        self,
        lib: Backend,
        table: KernelTable,
        model: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        metrics: Sequence[Count],
        batches: Batches,
        keep_gradients: bool,
    ) -> None:
        self.lib, self.table, self.batches, self.keep_gradients = lib, table, batches, keep_gradients
        self.model, self.loss, self.optimizer, self.metrics = model, loss, optimizer, metrics
        # What a step's loss counts by, where that is not its rows (the sum of weights), comes after the metrics.
        even = loss.counts_samples(weighted=len(batches.arrays) > 2)
        self.total = None if even else loss.total
        self.records: list[list[Any]] = [[] for _ in range(1 + len(metrics) + (not even))]
        self._parameters = model.parameters()
        self._code_of_the_users = runs_code_of_the_users(model, loss)
        self._seen = assignments[0]
        self._kept: Any = None
        self._begin()

    def _begin(self) -> None:
        buffers = self.model.buffers()
        self.store = Store(self.lib, self.optimizer, self._parameters, self.table.in_place, buffers)
        self.programs: dict[int, Program] = {}
        self._traces: dict[int, Trace] = {}
        self._kept = None
        self.program(min(self.batches.batch_size, self.batches.rows))

    def program(self, size: int) -> Program:
        """The program for batches of this many rows; the first of them go through it as a trial when it is made."""
        if size not in self.programs:
            traced, cursor = self._trace(size), Cursor(np.arange(size))
            if self._code_of_the_users and not traced.is_like(self._trace(size)):
                raise OptionError(
                    "a compute of the model or the loss did something else when it ran a second time, and a program "
                    "runs it once: draw random numbers with a layers.Drawing, change numbers from step to step with "
                    "Layer.keep, or write forward and backward by hand"
                )
            flat = flatten(
                self.lib,
                self.store,
                traced,
                self.batches.arrays,
                cursor,
                self.metrics,
                self.records,
                self.total,
            )
            self.programs[size] = Program(self.lib, self.table, self.store, flat, cursor, self.keep_gradients)
            self._traces[size] = traced
            self._seen = assignments[0]
            self.model.forget()
        return self.programs[size]

    def _trace(self, size: int) -> Trace:
        """The first `size` rows through model and loss."""
        rows = np.arange(size)
        return trace(self.model, self.loss, [self.lib.to_device(part) for part in self.batches.gather(rows)])

    def after_callbacks(self) -> None:
        """Callbacks ran after a step: they may have written anywhere."""
        self.store.touch()
        self.look_again(called_back=True)

    def look_again(self, called_back: bool = False) -> None:
        """Make programs anew if what model and loss compute has changed: options, or what their code reads.

        called_back: whether code of the user's ran since, which may have changed more than attributes of layers.
        """
        if self._seen == assignments[0] and not (called_back and self._code_of_the_users):
            return
        if not all(traced.is_like(self._trace(size)) for size, traced in self._traces.items()):
            self.programs.clear()
            self._traces.clear()
            self.store.folded.clear()
        self.model.forget()
        self._seen = assignments[0]

    def refresh(self) -> None:
        """Between checks: take in what callbacks assigned, and keep a copy to come back to."""
        self.look_again(called_back=True)
        if self.store.is_current(self._parameters):
            self.store.attach()
        else:
            self._begin()
        self._kept = self.store.snapshot(self._kept)

    def step(self, rows: np.ndarray, number: int) -> None:
        """One step on these rows; `number` counts the steps of all fits."""
        self.look_again()
        program = self.programs.get(len(rows)) or self.program(len(rows))
        if program.draws:
            self.model.set_stream(self.batches.seed, number)
        program.step(rows)

    def seconds_per_step(self, number: int) -> float:
        """The median time of a step on the first rows; each is taken back."""
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
            for record in self.records:
                record.clear()
        return float(np.median(times))

    def last_loss(self) -> float:
        """The last step's loss; parameters and gradients are made those of this step. Waits for the device."""
        self.store.publish()
        return float(self.lib.to_host(self.records[0][-1]))

    def take(self) -> list[np.ndarray]:
        """Loss, metrics and perhaps the loss's total of every step since the last take, on the host as float64.

        It waits for the device.
        """
        self.store.publish()
        taken = []
        for record in self.records:
            taken.append(self.lib.to_host(self.lib.xp.stack(record)).astype(np.float64))
            record.clear()
        return taken

    def values(self) -> list[Any]:
        """Every parameter's and every buffer's array."""
        return [array.array for _, array in self.model.named_state()]

    def restore(self) -> None:
        """Back to the last refresh."""
        self.store.restore(self._kept)
