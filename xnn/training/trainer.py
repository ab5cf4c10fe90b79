"""Trainer: the loop that turns data into weights, and the doors around it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from xnn.backends import Backend, current_numerics, numerics
from xnn.backends.kernels.calls import KernelTable, as_number
from xnn.backends.threads import Threads, check_threads, choose_threads, execution_plan, limit_threads
from xnn.callbacks import Callback, ProgressBar
from xnn.data import Batches
from xnn.errors import DivergenceError, OptionError
from xnn.graph.scope import Scope
from xnn.history import History
from xnn.layers import Sequential
from xnn.losses import Loss, LossOverBatches
from xnn.metrics import Count, Metric, Totals, count_batch
from xnn.metrics import get as get_metric
from xnn.optimizers import Optimizer
from xnn.options import check_count
from xnn.training.divergence import Step, diagnose, finite
from xnn.training.full_batch import FullBatch
from xnn.training.inputs import check_trainable, prepare, prepare_validation
from xnn.training.steps import Stepper

__all__ = ["Trainer"]

# Losses stay on the device and are looked at every so many steps or seconds: looking waits for the device.
_CHECK_STEPS, _CHECK_SECONDS = 100, 0.5
_EVALUATION_BATCH = 1024


class Trainer:
    """Trains a model: fit, evaluate.

    metrics: names ("accuracy", "f1"), objects (xnn.metrics.F1()) or functions; the loss's usual ones if not given.
    callbacks: xnn.callbacks.Callback. threads: how many BLAS may use for steps and evaluation, never more than a
    limit already set; None takes what OMP_NUM_THREADS or its like says, or else a fixed rule from batch size and
    weights (xnn.backends.threads.choose_threads); "auto" measures, which may give other bits each time.
    kernels: "auto" takes the fastest that are installed, "ops" runs the ops alone; on the CPU also "numpy" and
    "compiled" (the extra `fast`). numerics: "fast" or "exact" for this trainer's runs; those in force if not given.
    Each fit goes on where the last one ended: two of one epoch are one of two, bit for bit. An epoch that
    Ctrl-C cut short is not counted: the next fit begins it again.
    """

    def __init__(
        self,
        model: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        metrics: Sequence[str | Metric | Count] | str | Metric | Count | None = None,
        callbacks: Sequence[Callback] = (),
        threads: int | str | None = None,
        kernels: str = "auto",
        numerics: str | None = None,
    ) -> None:
        for name, value, kind, example in (
            ("model", model, Sequential, "a Sequential, such as xnn.Sequential(layers.Dense(784, 10))"),
            ("loss", loss, Loss, "a Loss, such as losses.MSE()"),
            ("optimizer", optimizer, Optimizer, "an Optimizer, such as optimizers.SGD(learning_rate=0.1)"),
        ):
            if not isinstance(value, kind):
                raise OptionError(f"Trainer needs {example}, as {name}, got {repr(value)[:60]}")
        self.model, self.loss, self.optimizer = model, loss, optimizer
        if loss.reduction == "none":
            raise OptionError(
                f"a Trainer needs one number a batch: {type(loss).__name__}(reduction='mean') or 'sum', not 'none'"
            )
        chosen = loss.usual_metrics if metrics is None else metrics
        given = chosen if isinstance(chosen, Iterable) and not isinstance(chosen, str) else (chosen,)
        self.metrics = [get_metric(m, loss.binary, model.threshold) for m in given]
        names = [metric.name for metric in self.metrics]
        if len({*names, "loss", "epoch"}) < len(names) + 2:
            raise OptionError(
                f"metrics need names of their own, got {', '.join(names)}; def gives a function one, name= an object"
            )
        for callback in callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]:
            if not isinstance(callbacks, (list, tuple)) or not isinstance(callback, Callback):
                raise OptionError(
                    f"callbacks must be a list of xnn.callbacks.Callback objects, got {repr(callback)[:60]}"
                )
        self.callbacks = list(callbacks)
        if loss.already_includes is not None and model.last_op is loss.already_includes:
            raise OptionError(
                f"the model ends in {model.last_op.name}, which {type(loss).__name__} computes itself from logits: "
                "take that layer away"
            )
        if kernels not in ("auto", "ops", "numpy", "compiled"):
            model.backend.kernels(kernels)  # raises, now rather than in fit
        self.threads, self.kernels = check_threads(threads), kernels
        self.numerics = numerics if numerics is None else current_numerics(numerics)
        self.epoch = self.step = 0  # done so far, over all fits

    def fit(
        self,
        data: tuple[Any, Any],
        validation: tuple[Any, ...] | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        sample_weight: Any = None,
        seed: int = 0,
        progress: bool = True,
        shuffle: bool = True,
    ) -> History:
        """Train on data = (x, y) for so many epochs; returns the History.

        x: (n, ...), y: what the loss needs; host arrays (moved batch by batch) or arrays of the model's
        backend. sample_weight: (n,), how much each sample counts in the loss (`xnn.ops.LossOp`); metrics count
        every sample alike. validation: (x, y) or (x, y, sample_weight). The history's loss is over the epoch what
        a batch's is over the batch: each mean counts by what it was divided by. `seed` draws the shuffles and
        the dropout masks. Ctrl-C ends after the step in hand and returns what was done, with
        history.interrupted set; a second one ends at once.
        An optimizer that minimizes (LBFGS) takes the data as they lie, and an epoch is one of its iterations.
        Raises ShapeError, DTypeError, LabelError or OptionError before training for data or options that
        do not fit, or a model without a parameter to train. Raises DivergenceError when a loss, gradient or
        weight is no longer finite: its `history` is what was done, and the model is as it was before the
        step that failed.
        """
        lib = self.model.backend
        epochs = check_count("epochs", epochs)
        check_trainable(self.model)
        history = History()
        with ExitStack() as stack:
            chosen = stack.enter_context(numerics(self.numerics or current_numerics()))
            shuffle = shuffle and not self.optimizer.minimizes  # a function of the weights alone
            asked = self.model, self.loss, self.metrics
            batches = Batches(prepare(*asked, data, "training", sample_weight), batch_size, shuffle, seed)
            held_out = None if validation is None else prepare_validation(*asked, validation)
            table = lib.kernels(self.kernels)
            stack.enter_context(lib.guard())
            # What does not fit is heard of now, before anything has begun.
            stepper = self.stepper(batches, table)
            whole = FullBatch(stepper, batches, self.metrics) if self.optimizer.minimizes else None
            self.model.numerics = chosen if self.model.numerics in (None, chosen) else "mixed"
            threads = self._choose_threads(batches, stepper)
            plan = execution_plan(lib, self.model.dtype, batches.batch_size, threads, table.name)
            history.plan = {**plan, "folded": bool(stepper.store.folded)}
            interrupted = stack.enter_context(_interruptible())
            stack.callback(self.model.forget)
            watchers = [*self.callbacks, *([ProgressBar()] if progress else [])]
            for watcher in watchers:
                watcher.model = self.model
                watcher.on_fit_start(history, epochs, 1 if whole else len(batches))
                stack.callback(watcher.on_fit_end, history)

            def finish(entry: dict[str, Any]) -> None:
                if held_out is not None:
                    results = self._evaluate(lib, Batches(held_out, _EVALUATION_BATCH, shuffle=False))
                    entry.update({f"val_{name}": value for name, value in results.items()})
                history.epochs.append(entry)
                self.epoch += 1
                for watcher in watchers:
                    watcher.on_epoch_end(history, entry)

            try:
                for _ in range(0 if whole else epochs):
                    with limit_threads(threads.count):
                        entry = self._epoch(lib, stepper, batches, history, watchers, interrupted)
                    if entry is None:
                        break
                    finish(entry)
                    if history.stopped:
                        break
                if whole:
                    with limit_threads(threads.count):
                        self._minimize(whole, epochs, history, watchers, interrupted, finish)
            except BaseException as error:
                history.error = f"{type(error).__name__}: {error}"
                raise
            finally:
                cut_short = len(history.epochs) < epochs and not history.stopped
                history.interrupted = interrupted() and cut_short
        return history

    def evaluate(
        self, data: tuple[Any, Any], batch_size: int = _EVALUATION_BATCH, sample_weight: Any = None
    ) -> dict[str, Any]:
        """The loss and metrics over all of data = (x, y), with the layers' inference behaviour.

        sample_weight: (n,), how much each sample counts in the loss.
        """
        lib = self.model.backend
        with numerics(self.numerics), lib.guard():
            prepared = prepare(self.model, self.loss, self.metrics, data, "evaluation", sample_weight)
            batches = Batches(prepared, batch_size, shuffle=False)
            return self._evaluate(lib, batches)

    def stepper(self, batches: Batches, table: KernelTable | None = None) -> Stepper:
        """What takes the steps of a fit over these batches; `table` is by default the one of `kernels`."""
        lib = self.model.backend
        return Stepper(
            lib,
            table or lib.kernels(self.kernels),
            self.model,
            self.loss,
            self.optimizer,
            [metric.count for metric in self.metrics],
            batches,
            any(callback.needs_gradients for callback in self.callbacks),
        )

    def _choose_threads(self, batches: Batches, stepper: Stepper | None = None) -> Threads:
        """For batches of this size. Only training is measured, and only if each step can be taken back."""
        weights = sum(p.size for p in self.model.parameters() if len(p.shape) > 1)
        work = min(batches.batch_size, batches.rows) * weights

        def measure(threads: int) -> float:
            assert stepper is not None
            with limit_threads(threads):
                return stepper.seconds_per_step(self.step)

        can_measure = stepper is not None and not stepper.store.asks_optimizer
        return choose_threads(
            self.threads, work, measure if can_measure else None, self.model.backend.is_host
        )

    def _epoch(
        self,
        lib: Backend,
        stepper: Stepper,
        batches: Batches,
        history: History,
        watchers: Sequence[Callback],
        interrupted: Callable[[], bool],
    ) -> dict[str, Any] | None:
        """One pass over the data: its mean loss and metrics, or None if Ctrl-C cut it short."""
        mean, counts, done = LossOverBatches(self.loss), Totals(self.metrics), 0
        taken: list[np.ndarray] = []
        each_step = [w for w in watchers if type(w).on_step is not Callback.on_step]
        stepper.refresh()
        start = time.perf_counter()
        for rows in batches.numbers(self.epoch):
            if interrupted() and not taken:
                break
            done += 1
            stepper.step(rows, self.step)
            taken.append(rows)
            self.step += 1
            if each_step:
                loss = stepper.last_loss()
                for watcher in each_step:
                    watcher.on_step(history, self.epoch, done, loss)
                stepper.store.touch()  # they may write where they please
                stepper.look_again(called_back=True)
            last = done == len(batches) or interrupted()
            if last or len(taken) == _CHECK_STEPS or time.perf_counter() - start > _CHECK_SECONDS:
                losses, *columns = stepper.take()
                if not (np.isfinite(losses).all() and finite(lib, *stepper.values())):
                    raise self._diagnose(lib, stepper, batches, taken, done, losses, history)
                sizes = [len(step_rows) for step_rows in taken]
                totals, samples = columns.pop() if stepper.total else sizes, sum(sizes)
                # One step after the other: how many are looked at together must not move the last bit.
                for size, total, value, *counted in zip(sizes, totals, losses, *columns, strict=True):
                    mean.add(value, total)
                    counts.add(counted, size)
                history.add(losses, samples, time.perf_counter() - start)
                taken.clear()
                for watcher in watchers:
                    watcher.on_check(history, self.epoch, done, mean.value, counts.results())
                stepper.refresh()
                start = time.perf_counter()
        if done < len(batches):
            return None
        return {"epoch": self.epoch + 1, "loss": mean.value, **counts.results()}

    def _minimize(
        self,
        whole: FullBatch,
        iterations: int,
        history: History,
        watchers: Sequence[Callback],
        interrupted: Callable[[], bool],
        finish: Callable[[dict[str, Any]], None],
    ) -> None:
        """In the place of epochs: iterations of an optimizer that minimizes, each an epoch of one step."""

        def evaluated(loss: float, seconds: float) -> None:
            history.add(np.array([loss]), whole.batches.rows, seconds)
            self.step += 1

        def iterated() -> bool:
            loss, metrics = whole.mean.value, whole.counts.results()
            for watcher in watchers:
                watcher.on_step(history, self.epoch, 1, loss)
                watcher.on_check(history, self.epoch, 1, loss, metrics)
            finish({"epoch": self.epoch + 1, "loss": loss, **metrics})
            return interrupted() or bool(history.stopped)

        try:
            whole.minimize(self.optimizer, iterations, evaluated, iterated)
        except DivergenceError as error:
            error.history = history
            raise

    def _diagnose(
        self,
        lib: Backend,
        stepper: Stepper,
        batches: Batches,
        taken: Sequence[np.ndarray],
        done: int,
        losses: Any,
        history: History,
    ) -> Exception:
        """Go back to the last check, replay layer by layer, and name step, layer and tensor."""
        stepper.restore()
        first = self.step - len(taken)
        steps = [
            Step(first + n, self.epoch + 1, done - len(taken) + n + 1, rows) for n, rows in enumerate(taken)
        ]

        def batch(step: Step) -> list[Any]:
            return [lib.to_device(part) for part in batches.gather(step.rows)]

        error, self.step = diagnose(self.model, self.loss, self.optimizer, steps, batch, batches.seed)
        good = self.step - first  # these are in the weights
        history.add(losses[:good], sum(len(step.rows) for step in steps[:good]), 0.0)
        error.history = history
        return error

    def _evaluate(self, lib: Backend, batches: Batches) -> dict[str, Any]:
        mean, counts = LossOverBatches(self.loss), Totals(self.metrics)
        even = self.loss.counts_samples(weighted=len(batches.arrays) > 2)
        with limit_threads(self._choose_threads(batches).count), Scope(records=False):
            for x, *rest in batches.epoch(0):
                outputs = self.model.run(lib.to_device(x), training=False)
                targets, *weights = map(lib.to_device, rest)
                value = self.loss.run(outputs, targets, *weights)
                total = x.shape[0] if even else self.loss.total(outputs, targets, *weights)
                mean.add(lib.to_host(value), lib.to_host(as_number(lib, total)))
                counts.add(count_batch(lib, self.metrics, outputs, targets), x.shape[0])
        return {"loss": mean.value, **counts.results()}


@contextmanager
def _interruptible() -> Iterator[Any]:
    """Ctrl-C inside the block sets a flag, so that the step in hand is finished; a second one interrupts.

    Yields a function that tells the flag. Only the main thread can do so; elsewhere nothing changes.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def remember(signum: int, frame: Any) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    signal.signal(signal.SIGINT, remember)
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGINT, before)
