"""One call of Trainer.fit: the loop over epochs and batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xnn.backends.threads import limit_threads
from xnn.callbacks import Callback
from xnn.data import Batches
from xnn.errors import DivergenceError
from xnn.history import History
from xnn.losses import LossOverBatches
from xnn.metrics import Totals
from xnn.training.divergence import TakenStep, diagnose, finite
from xnn.training.steps import Stepper

__all__ = ["Fit"]

# Losses stay on the device and are checked only after a number of steps or seconds: a check waits for the device.
_CHECK_STEPS, _CHECK_SECONDS = 100, 0.5


class Fit:
    """Trains for some epochs: `run`. The trainer's model, optimizer, `epoch` and `step` are changed.

    stepper: takes the steps. batches: the training data. threads: how many BLAS may use. watchers: the callbacks.
    interrupted: tells whether Ctrl-C was pressed. validate: gives the results on the validation data, by name.
    history: what was done is added to it.
    """

    def __init__(
        self,
        trainer: Any,
        stepper: Stepper,
        batches: Batches,
        threads: int | None,
        watchers: Sequence[Callback],
        interrupted: Callable[[], bool],
        validate: Callable[[], dict[str, Any]],
        history: History,
    ) -> None:
        self.trainer, self.stepper, self.batches, self.threads = trainer, stepper, batches, threads
        self.watchers, self.interrupted, self.validate, self.history = (
            watchers,
            interrupted,
            validate,
            history,
        )
        self.each_step = [w for w in watchers if type(w).on_step is not Callback.on_step]
        self.steps_per_epoch = len(batches)
        #: Over the epoch so far: the loss, the metrics, the batches done; and the rows of the steps not yet checked.
        self.loss, self.counts = LossOverBatches(trainer.loss), Totals(trainer.metrics)
        self.batch, self.unchecked = 0, list[np.ndarray]()
        self.assigned = False  # whether callbacks assigned parameters or options since the last check

    def run(self, epochs: int) -> None:
        """Train for this many epochs, or until Ctrl-C, or until a callback stops it."""
        for _ in range(epochs):
            with limit_threads(self.threads):
                results = self.epoch()
            if results is None:
                return
            self.end_epoch(results)
            if self.history.stopped:
                return

    def epoch(self) -> dict[str, Any] | None:
        """One pass over the data: its mean loss and metrics, or None if Ctrl-C cut it short."""
        self.loss, self.counts = LossOverBatches(self.trainer.loss), Totals(self.trainer.metrics)
        self.batch = 0
        self.stepper.refresh()
        self.checked_at = time.perf_counter()
        for rows in self.batches.numbers(self.trainer.epoch):
            if self.interrupted() and not self.unchecked:
                return None
            self.step(rows)
            if self.is_time_to_check():
                self.check()
        if self.batch < len(self.batches):
            return None
        return {"epoch": self.trainer.epoch + 1, "loss": self.loss.value, **self.counts.results()}

    def step(self, rows: np.ndarray) -> None:
        """One step on these rows of the data; then the callbacks that want to see each step."""
        self.batch += 1
        self.stepper.step(rows, self.trainer.step)
        self.unchecked.append(rows)
        self.trainer.step += 1
        if self.each_step:
            loss = self.stepper.last_loss()
            for watcher in self.each_step:
                watcher.on_step(self.history, self.trainer.epoch, self.batch, loss)
            self.assigned = self.stepper.after_callbacks()

    def is_time_to_check(self) -> bool:
        """Whether enough steps or seconds have passed since the last check of the losses."""
        return (
            self.batch == len(self.batches)
            or self.interrupted()
            or self.assigned
            or len(self.unchecked) == _CHECK_STEPS
            or time.perf_counter() - self.checked_at > _CHECK_SECONDS
        )

    def check(self) -> None:
        """Check the losses of the steps since the last check, add them up, and tell the callbacks.

        Raises DivergenceError unless they, the weights and the buffers are finite.
        """
        losses, *columns = self.stepper.take()
        if not (np.isfinite(losses).all() and finite(self.stepper.lib, *self.stepper.values())):
            raise self.diagnosis(losses)
        sizes = [len(rows) for rows in self.unchecked]
        totals, samples = columns.pop() if self.stepper.total else sizes, sum(sizes)
        # One step after the other: how many are checked together must not change the last bit.
        for size, total, value, *counted in zip(sizes, totals, losses, *columns, strict=True):
            self.loss.add(value, total)
            self.counts.add(counted, size)
        self.history.add(losses, samples, time.perf_counter() - self.checked_at)
        self.unchecked.clear()
        self.assigned = False
        for watcher in self.watchers:
            watcher.on_check(
                self.history, self.trainer.epoch, self.batch, self.loss.value, self.counts.results()
            )
        self.stepper.refresh()
        self.checked_at = time.perf_counter()

    def end_epoch(self, results: dict[str, Any]) -> None:
        """Validate, add the epoch to the history, and tell the callbacks."""
        results.update({f"val_{name}": value for name, value in self.validate().items()})
        self.history.epochs.append(results)
        self.trainer.epoch += 1
        for watcher in self.watchers:
            watcher.on_epoch_end(self.history, results)

    def diagnosis(self, losses: np.ndarray) -> DivergenceError:
        """Go back to the last check, replay layer by layer, and name step, layer and tensor."""
        trainer, batches, lib = self.trainer, self.batches, self.stepper.lib
        self.stepper.restore()
        first = trainer.step - len(self.unchecked)
        steps = [
            TakenStep(first + n, trainer.epoch + 1, self.batch - len(self.unchecked) + n + 1, rows)
            for n, rows in enumerate(self.unchecked)
        ]

        def batch(step: TakenStep) -> list[Any]:
            return [lib.to_device(part) for part in batches.gather(step.rows)]

        error, trainer.step = diagnose(
            trainer.model, trainer.loss, trainer.optimizer, steps, batch, batches.seed
        )
        good = trainer.step - first  # these are in the weights
        self.history.add(losses[:good], sum(len(step.rows) for step in steps[:good]), 0.0)
        error.history = self.history
        return error
