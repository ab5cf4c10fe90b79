"""One call of Trainer.fit: the loop over epochs and batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from xnn.backends.threads import HeldLimits, limit_threads
from xnn.callbacks import Callback, Checkpoint, ProgressBar, call_back
from xnn.callbacks.callback import sees_steps
from xnn.data import Batches
from xnn.errors import DataError, DivergenceError, OptionError
from xnn.history import History
from xnn.losses import LossOverBatches
from xnn.metrics import Totals
from xnn.training.divergence import TakenStep, diagnose
from xnn.training.host_copy import HostCopy
from xnn.training.interrupt import Ending
from xnn.training.lowering import goes_on_slower
from xnn.training.saving import begin, save_if_asked
from xnn.training.steps import Stepper
from xnn.training.trace import runs_code_of_the_optimizer

__all__ = ["Fit"]

# Losses stay on the device and are looked at only after a number of steps or seconds: that waits for the device.
# Seconds decide only when numbers are shown, and how soon a divergence is found. Results follow from the steps.
_CHECK_STEPS, _LOOK_SECONDS = 100, 0.5


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
        self.watchers, self.validate, self.history = watchers, validate, history
        self.parts = _parts(trainer)
        self.of_users = any(not type(w).__module__.startswith("xnn.") for w in watchers)
        self.each_step = [*filter(sees_steps, watchers)]
        self.checkpoints = [w for w in watchers if isinstance(w, Checkpoint)]
        self.ending, self.steps_per_epoch = Ending(interrupted, watchers), len(batches)
        self.undisturbed, self.limits, self.look_seconds = _undisturbed(self), HeldLimits(), _LOOK_SECONDS
        #: Over the epoch so far: the loss, the metrics, and the batches done.
        self.loss, self.counts, self.batch = LossOverBatches(trainer.loss), Totals(trainer.metrics), 0
        #: The rows of steps that were not looked at yet, the step before them, and the steps since the last check.
        self.unseen, self.seen, self.since_check = list[np.ndarray](), trainer.step, 0
        #: Whether no step was taken yet, and whether the next one is in the middle of an epoch, from a checkpoint.
        self.begins, self.goes_on = True, False
        self.on_host: HostCopy | None = None
        self.held_out: tuple[Any, ...] | None = None  # the validation data

    def run(self, epochs: int) -> None:
        """Train for this many epochs, or until Ctrl-C, a time limit or a callback stops it.

        An exception leaves model and optimizer as they were when the losses were last looked at, after a whole step.
        """
        try:
            begin(self, epochs)
            while True:
                try:
                    self.epochs(epochs)
                    return
                except DivergenceError as error:
                    if not goes_on_slower(self, error):
                        raise
        except BaseException:
            if self.unseen:
                self.go_back()
            raise
        finally:
            self.limits.end()

    def epochs(self, epochs: int) -> None:
        """Train until there are this many epochs in the history, or less if something ends the training."""
        while len(self.history.epochs) < epochs and not self.history.stopped:
            results = self.epoch()
            if results is None:
                break
            self.end_epoch(results)
            self.ending.settle(self)
            save_if_asked(self, ends_epoch=True)
        save_if_asked(self, ends_fit=True)

    def epoch(self) -> dict[str, Any] | None:
        """One pass over the data: its mean loss and metrics, or None if Ctrl-C or a time limit cut it short."""
        if not self.goes_on:
            self.loss, self.counts = LossOverBatches(self.trainer.loss), Totals(self.trainer.metrics)
            self.batch = self.since_check = 0
        self.goes_on = False
        self.refresh()
        if self.of_users:
            self.stepper.reload()
        self.looked_at = time.perf_counter()
        numbers = self.stepper.numbers(self.trainer.epoch, self.batch)
        limit = self.limits.limit if self.undisturbed and self.held_out is None else limit_threads
        with limit(self.threads, self.stepper.product_threads), closing(self.batches), closing(numbers):
            for batches in self.chunks(numbers):
                if not self.unseen and self.ending.has_come():
                    return None
                self.steps(batches)
                if self.batch == len(self.batches) or self.since_check == _CHECK_STEPS:
                    self.check()
                elif self.ending.has_come() or time.perf_counter() - self.looked_at > self.look_seconds:
                    self.show()
                if self.batch < len(self.batches):
                    save_if_asked(self)
        if self.batch < len(self.batches):
            return None
        return {"epoch": self.trainer.epoch + 1, "loss": self.loss.value, **self.counts.results()}

    def chunks(self, numbers: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Group batches into chunks, which the kernels get in one piece.

        All batches of a chunk have one size. A chunk ends at the next check, at a checkpoint, or when it has as many
        batches as the kernels take at once.
        """
        chunk: list[np.ndarray] = []
        most = 1 if self.each_step else self.stepper.most
        for rows in numbers:
            if chunk and len(rows) != len(chunk[0]):
                yield chunk
                chunk = []
            chunk.append(rows)
            done = self.trainer.step + len(chunk)
            if (
                len(chunk) == most
                or self.since_check + len(chunk) == _CHECK_STEPS
                or any(checkpoint.falls_on(done) for checkpoint in self.checkpoints)
            ):
                yield chunk
                chunk = []
                if not self.since_check and not self.each_step:  # a callback may have assigned a schedule
                    most = self.stepper.most
        if chunk:
            yield chunk

    def steps(self, batches: list[np.ndarray]) -> None:
        """A step on each of these batches; then the callbacks that want to see each step."""
        self.unseen.extend(batches)
        if self.begins:
            self.first_steps(batches)
        else:
            self.stepper.steps(batches, self.trainer.step)
        self.trainer.step += len(batches)
        self.batch += len(batches)
        self.since_check += len(batches)
        if self.each_step:
            # What they change counts from the next step, and must not hide where numbers diverged.
            loss = float(self.look()[-1])
            self.stepper.store.hand_out()
            for watcher in self.each_step:
                call_back(watcher.on_step, self.history, self.trainer.epoch, self.batch, loss)
            self.refresh()
            self.looked_at = time.perf_counter()

    def first_steps(self, batches: list[np.ndarray]) -> None:
        """The first steps, in which kernels may be compiled; their time is added to the history."""
        self.begins, start = False, time.perf_counter()
        with self.stepper.lib.starting():
            self.stepper.steps(batches, self.trainer.step)
        self.stepper.lib.synchronize()
        self.history.first_step_seconds += time.perf_counter() - start

    def check(self) -> None:
        """Look at the steps since the last look, tell the callbacks, and take in what they change."""
        if self.unseen:
            self.look()
        if not self.undisturbed:
            self.stepper.store.hand_out()
        self.tell(self.watchers)
        if self.batch < len(self.batches):
            self.refresh()
        elif not self.undisturbed:  # the next epoch begins with it
            self.check_parts()
        self.since_check, self.looked_at = 0, time.perf_counter()

    def refresh(self) -> None:
        """Take in what callbacks changed, and keep a copy of everything to go back to."""
        if self.undisturbed and not self.begins:
            self.stepper.keep()
        else:
            self.check_parts()
            self.stepper.refresh()

    def check_parts(self) -> None:
        """Raise OptionError if a callback replaced a part of the trainer."""
        _check_parts(self.parts, _parts(self.trainer))

    def show(self) -> None:
        """Look at the steps since the last look, and show the numbers. It changes nothing else."""
        if self.unseen:
            self.look()
            self.stepper.keep()
        self.tell([watcher for watcher in self.watchers if isinstance(watcher, ProgressBar)])
        self.looked_at = time.perf_counter()

    def look(self) -> np.ndarray:
        """Add up the losses of the steps since the last look, and return them.

        Raises DivergenceError unless they and everything that steps change are finite.
        """
        losses, *columns = self.stepper.take()
        if not (np.isfinite(losses).all() and self.stepper.store.is_finite()):
            raise self.diagnosis(losses)
        sizes = [len(rows) for rows in self.unseen]
        totals, samples = np.array(sizes, float), sum(sizes)
        if len(columns) > len(self.counts.metrics):
            divisors = columns.pop()
            totals = np.where(np.isnan(divisors), totals, divisors)
        # One step after the other: how many are looked at together must not change the last bit.
        for size, total, value, *counted in zip(sizes, totals, losses, *columns, strict=True):
            self.loss.add(value, total)
            self.counts.add(counted, size)
        self.history.add(losses, samples, time.perf_counter() - self.looked_at)
        self.unseen.clear()
        self.seen = self.trainer.step
        return losses

    def state(self) -> Any:
        """The state of the loop itself for a checkpoint, such as what L-BFGS has seen; here there is none."""
        return None

    def restore(self, state: Any) -> None:
        """Take in what `state` returned."""

    def tell(self, watchers: Sequence[Callback]) -> None:
        """Call on_check of these callbacks."""
        for watcher in watchers:
            numbers = self.trainer.epoch, self.batch, self.loss.value, self.counts.results()
            call_back(watcher.on_check, self.history, *numbers)

    def go_back(self) -> None:
        """Undo the steps since the last look. No other step follows."""
        self.stepper.restore(alone=True)
        self.unseen.clear()
        self.trainer.step = self.seen

    def end_epoch(self, results: dict[str, Any]) -> None:
        """Add the epoch to the history, validate, and tell the callbacks."""
        self.history.epochs.append(results)
        self.trainer.epoch += 1
        if self.on_host is not None:
            self.on_host.take()
        results.update({f"val_{name}": value for name, value in self.validate().items()})
        for watcher in self.watchers:
            call_back(watcher.on_epoch_end, self.history, results)
        self.batch = self.since_check = 0

    def diagnosis(self, losses: np.ndarray) -> DivergenceError:
        """Go back to the last look, take the steps again, and name step, layer and tensor."""
        steps = [
            TakenStep(self.seen + n, self.trainer.epoch + 1, self.batch - len(self.unseen) + n + 1, rows)
            for n, rows in enumerate(self.unseen)
        ]
        self.stepper.restore()
        try:
            error, good = diagnose(self.stepper, steps, losses)
        except DataError as gone:  # a stream cannot be read again
            where = f"steps {_between(steps)}"
            error = DivergenceError(
                f"a number became NaN or infinite in {where}. {gone}: the layer is unknown"
            )
            good = 0
            self.stepper.restore()
        self.trainer.step = self.seen + good
        self.unseen.clear()
        self.history.add(losses[:good], sum(len(step.rows) for step in steps[:good]), 0.0)
        error.history = self.history
        return error


def _between(steps: Sequence[TakenStep]) -> str:
    return f"{steps[0].number + 1} to {steps[-1].number + 1} (epoch {steps[0].epoch})"


def _undisturbed(fit: Any) -> bool:
    """Whether no code of callbacks or of the user runs in the fit that could change the training."""
    optimizer, order = fit.trainer.optimizer, fit.batches.shuffle
    theirs = runs_code_of_the_optimizer(optimizer)
    orders = callable(order) and not str(getattr(order, "__module__", "")).startswith("xnn.")
    bystanders = all(watcher.bystander for watcher in fit.watchers)
    users = theirs or orders or fit.stepper.code_of_users or fit.of_users
    return bystanders and not (users or fit.checkpoints)


def _parts(trainer: Any) -> dict[str, list[Any]]:
    """What a trainer was built of and a fit does not look at again, by name."""
    names = "model", "loss", "optimizer", "threads", "kernels", "numerics"
    lists = {"metrics": [*trainer.metrics], "callbacks": [*trainer.callbacks]}
    return {name: [getattr(trainer, name)] for name in names} | lists


def _check_parts(before: dict[str, list[Any]], now: dict[str, list[Any]]) -> None:
    for name, parts in before.items():
        if len(parts) != len(now[name]) or any(a is not b for a, b in zip(parts, now[name], strict=True)):
            raise OptionError(
                f"a callback replaced the trainer's {name}, and a fit keeps those that it began with: change the "
                "options of what is there, or replace it between two fits"
            )
