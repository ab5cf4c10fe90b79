"""Trainer: trains a model with a loss and an optimizer, and evaluates it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from typing import Any, Never, cast

import numpy as np

from xnn.backends import Backend, current_numerics, numerics
from xnn.backends.kernels.calls import TABLES, KernelTable
from xnn.backends.threads import Threads, check_threads, choose_threads, execution_plan, limit_threads
from xnn.callbacks import Callback, ProgressBar, call_back
from xnn.data import Batches, Stream
from xnn.data.reader import read_batches
from xnn.errors import DeviceMemoryError, OptionError
from xnn.files import notice
from xnn.graph.habits import Habitual
from xnn.graph.scope import Scope
from xnn.history import History
from xnn.layers import Layer, Sequential
from xnn.losses import Lambda, Loss, LossOverBatches
from xnn.metrics import Count, Metric, Totals, count_on_device
from xnn.metrics import get as get_metric
from xnn.optimizers import Optimizer
from xnn.options import check_count, check_flag, refuse_unknown, shown
from xnn.training.alone import alone
from xnn.training.divergence import check_start
from xnn.training.fit import Fit
from xnn.training.full_batch import FullBatchFit
from xnn.training.host_copy import kept_on_host
from xnn.training.inputs import check_last_batch, check_trainable, check_weights, prepare, prepare_validation
from xnn.training.interrupt import interruptible
from xnn.training.placement import put_together
from xnn.training.room import with_batch_size
from xnn.training.steps import Stepper
from xnn.training.trace import check_reduces

__all__ = ["Trainer"]

_EVALUATION_BATCH = 1024


class Trainer(Habitual):
    """Trains a model by a loss and an optimizer (`fit`), and measures it on other data (`evaluate`).

    model: a Sequential.
    loss: a Loss, or a function of outputs and targets that returns one number (`losses.Lambda`).
    optimizer: an Optimizer.
    metrics: names ("accuracy", "f1"), objects (`xnn.metrics.F1()`) or functions (xp, outputs, targets); the loss's
        usual ones by default.
    callbacks: a list of `xnn.callbacks.Callback`.
    threads: how many threads BLAS may use for steps and evaluation, never more than a limit already set. None takes
        what OMP_NUM_THREADS or a similar variable says, or else follows a fixed rule from batch size and weights
        (`xnn.backends.threads.choose_threads`). "auto" measures, which may give other bits each time.
    kernels: "auto" takes the fastest kernels installed, "ops" runs the ops alone; on the CPU also "numpy" and
        "compiled" (the extra `fast`), on a GPU "cuda".
    numerics: "fast" or "exact" for this trainer's runs; by default those in force.

    Each fit goes on where the last one ended: two fits of one epoch give the bits of one fit of two epochs. An epoch
    that Ctrl-C cut short is not counted; the next fit begins it again. Raises OptionError for arguments that do not
    go together.

        >>> import numpy as np, xnn
        >>> from xnn import layers, losses, optimizers
        >>> x = np.linspace(-1.0, 1.0, 64).reshape(-1, 1)
        >>> model = xnn.Sequential(layers.Dense(1, 8), layers.Tanh(), layers.Dense(8, 1), seed=0)
        >>> trainer = xnn.Trainer(model, losses.MSE(), optimizers.Adam(0.03))
        >>> history = trainer.fit((x, x * x), epochs=100, progress=False)
        >>> trainer.evaluate((x, x * x))["loss"] < 0.01
        True
    """

    _habits = "trainer"

    def __init__(
        self,
        model: Sequential,
        loss: Loss | Callable[..., Any],
        optimizer: Optimizer,
        metrics: Sequence[str | Metric | Count] | str | Metric | Count | None = None,
        callbacks: Sequence[Callback] = (),
        threads: int | str | None = None,
        kernels: str = "auto",
        numerics: str | None = None,
        **unknown: Never,
    ) -> None:
        refuse_unknown(Trainer, unknown)
        self.model, self.loss, self.optimizer = model, cast(Loss, loss), optimizer
        self.metrics, self.callbacks = cast(list[Metric], metrics), cast(list[Callback], callbacks)
        self._check_parts()
        if kernels not in TABLES:
            model.backend.kernels(kernels)  # raises, now rather than in fit
        self.threads, self.kernels = check_threads(threads), kernels
        self.numerics = numerics if numerics is None else current_numerics(numerics)
        self.epoch = self.step = 0  # done so far, over all fits
        #: The History of the last fit, also of one that an exception ended.
        self.history: History | None = None

    def _check_parts(self) -> None:
        """Raise OptionError for parts that do not go together: when they are given, and before each use of them."""
        given: Any = self.loss
        if callable(given) and not isinstance(given, (Loss, type)):
            self.loss = Lambda(given)
        model, loss = self.model, self.loss
        for name, value, kind, example in (
            ("model", model, Sequential, "a Sequential, such as xnn.Sequential(layers.Dense(784, 10))"),
            ("loss", loss, Loss, "a Loss, such as losses.MSE(), or a function of outputs and targets"),
            (
                "optimizer",
                self.optimizer,
                Optimizer,
                "an Optimizer, such as optimizers.SGD(learning_rate=0.1)",
            ),
        ):
            if not isinstance(value, kind):
                hint = ": wrap it, as in xnn.Sequential(Net())" if isinstance(value, Layer) else ""
                raise OptionError(f"Trainer needs {example}, as {name}, got {shown(value)}{hint}")
        check_reduces(loss)
        if loss.already_includes is not None and model.last_op is loss.already_includes:
            raise OptionError(
                f"the model ends in {model.last_op.name}, which {type(loss).__name__} computes itself from logits: "
                "remove that layer"
            )
        self.metrics = _metrics(loss, model, self.metrics)
        self.callbacks = _callbacks(self.callbacks)

    def __repr__(self) -> str:
        return (
            f"<Trainer of {type(self.model).__name__}, {self.loss!r}, {self.optimizer!r}: {self.epoch} epochs, "
            f"{self.step} steps>"
        )

    def fit(
        self,
        data: tuple[Any, Any] | Stream,
        validation: tuple[Any, ...] | Stream | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        sample_weight: Any = None,
        seed: int = 0,
        progress: bool = True,
        shuffle: bool = True,
        **unknown: Never,
    ) -> History:
        """Train, and return the History of what was done.

        data: a pair (x, y) of samples (n, ...) and what the loss needs, on the host or on the model's backend; or a
            `data.Stream`. Memory maps and `data.Shards` are read from disk batch by batch, ahead of the steps. From
            the host they are moved batch by batch. CUDA kernels copy all of them at the beginning, if half of the
            GPU's free memory is enough, and before each epoch if there are callbacks of your own, which may write
            to them. Larger data are streamed: the rows of some steps at a time are copied, as they are then.
        validation: a pair (x, y), or three with sample weights, or a `data.Stream`; evaluated after each epoch.
        epochs: passes over the data. For an optimizer that minimizes (LBFGS) its iterations, each over all the data
            in their given order.
        batch_size: samples in a step; the last batch of an epoch may be smaller.
        sample_weight: (n,), how much each sample counts in the loss (`xnn.ops.LossOp`). Metrics count every sample
            alike.
        seed: draws the shuffles and the layers' random numbers.
        progress: whether to show progress on standard error: a bar on a terminal, in Jupyter a line that changes,
            elsewhere a line after each epoch.
        shuffle: whether to take the samples in a new order in each epoch.

        The loss of an epoch in the history is the mean over all its samples, each batch with the weights from
        before its step. (In general each batch's mean counts by what its sum was divided by, such as the sum of the
        sample weights.) With reduction="sum" it is the sum. In batches of one sample the weights of samples and
        classes cancel, unless the loss has reduction="sum_over_batch_size"; a WeightWarning says so. Ctrl-C ends
        after the current step, on a GPU after up to 100 steps that were handed over, and returns what was done, with
        `history.interrupted` set; a second one ends at once.

        Raises ShapeError, DTypeError, LabelError or OptionError before training for data or options that do not fit,
        for a model with nothing to train, or whose weights are not finite, and if another fit of this trainer, its
        optimizer or, in another thread, its model has not ended. Raises DivergenceError when a loss, a
        weight or the optimizer's state is not finite any more: its `history` is what was done, and model and
        optimizer are as they were before the step that failed. Any other exception, such as a callback's, leaves them
        as they were after a step, at most 100 steps or half a second earlier, and `trainer.history` is what was done
        until then. Raises DeviceError when a GPU refuses a call, and DeviceMemoryError when its memory is full, with
        a batch size that would fit. Raises DeviceLostError when a GPU does not answer any more: model and optimizer
        are then on the host, as they were after the last whole epoch, and the history has every loss that was seen.
        """
        refuse_unknown(Trainer.fit, unknown)
        self._check_parts()
        before, on_host = self.history, self.model.backend.is_host
        try:
            return self._fit(
                data, validation, epochs, batch_size, sample_weight, seed, progress=progress, shuffle=shuffle
            )
        except BaseException as error:
            said = error
            if isinstance(error, DeviceMemoryError):
                said = with_batch_size(self, error, data, batch_size, sample_weight)
            history = self.history
            if history is not None and history is not before and not (on_host and history.error):
                history.error = _named(said)
            if said is error:
                raise
            raise said from error.__cause__

    def _fit(
        self,
        data: tuple[Any, Any] | Stream,
        validation: tuple[Any, ...] | Stream | None,
        epochs: int,
        batch_size: int,
        sample_weight: Any,
        seed: int,
        *,
        progress: bool,
        shuffle: bool,
    ) -> History:
        lib = self.model.backend
        epochs = check_count("epochs", epochs)
        progress, shuffle = check_flag("progress", progress), check_flag("shuffle", shuffle)
        check_trainable(self.model)
        with ExitStack() as stack:
            stack.enter_context(alone(self))
            put_together(lib, self.model, self.optimizer)
            on_host = stack.enter_context(kept_on_host(lib, self))
            check_start(self.model, self.optimizer)
            chosen = stack.enter_context(numerics(self.numerics or current_numerics()))
            parts = self.model, self.loss, self.metrics
            minimizes = self.optimizer.minimizes
            prepared = prepare(*parts, data, "training", sample_weight)
            batches = Batches(prepared, batch_size, shuffle and not minimizes, seed)
            check_weights(self.loss, min(batches.batch_size, batches.rows), sample_weight is not None)
            held_out = None if validation is None else prepare_validation(*parts, validation)
            begun = time.perf_counter()
            table = lib.kernels(self.kernels)
            stack.enter_context(lib.guard())
            stack.enter_context(lib.stream())
            # Making the first program raises for what does not fit, before anything has begun.
            with lib.starting():
                stepper = self.stepper(batches, table)
            made = time.perf_counter() - begun
            if streaming := stepper.streaming:
                notice(f"xnn: {streaming}")
            check_last_batch(stepper, batches)
            threads = self._choose_threads(batches, stepper)
            interrupted = stack.enter_context(interruptible())
            watchers = [*self.callbacks, *([ProgressBar()] if progress else [])]

            def validate() -> dict[str, Any]:
                if held_out is None:
                    return {}
                return self._evaluate(lib, Batches(held_out, _EVALUATION_BATCH, shuffle=False))

            history = self.history = History()
            history.first_step_seconds = made
            kind = FullBatchFit if minimizes else Fit
            fit = kind(self, stepper, batches, threads.count, watchers, interrupted, validate, history)
            fit.on_host = on_host
            self.model.numerics = chosen if self.model.numerics in (None, chosen) else "mixed"
            plan = execution_plan(lib, self.model.dtype, batches.batch_size, threads, table.name)
            history.plan = {**plan, **stepper.plan}
            if streaming:
                history.plan["data"] = "streamed from the host"
            stack.callback(self.model.forget)
            for watcher in watchers:
                watcher.model = self.model
                call_back(watcher.on_fit_start, history, epochs, fit.steps_per_epoch)
                stack.callback(call_back, watcher.on_fit_end, history)
            try:
                with lib.guard() if lib.can_be_lost else nullcontext():
                    try:
                        fit.run(epochs)
                    finally:
                        stepper.store.hand_out()
            except BaseException as error:
                history.error = _named(error)  # which callbacks may read when the fit ends
                raise
            finally:
                cut_short = len(history.epochs) < epochs and not history.stopped
                history.interrupted = interrupted() and cut_short
        return history

    def evaluate(
        self,
        data: tuple[Any, Any] | Stream,
        batch_size: int = _EVALUATION_BATCH,
        sample_weight: Any = None,
        **unknown: Never,
    ) -> dict[str, Any]:
        """The loss and the metrics over all the data, by name; dropout and augmentation are off.

        data: a pair (x, y), as `fit` takes it. batch_size: samples at a time. sample_weight: (n,), how much each
        sample counts in the loss. Raises as `fit` does.
        """
        refuse_unknown(Trainer.evaluate, unknown)
        self._check_parts()
        lib = self.model.backend
        with numerics(self.numerics), lib.guard():
            prepared = prepare(self.model, self.loss, self.metrics, data, "evaluation", sample_weight)
            batches = Batches(prepared, batch_size, shuffle=False)
            return self._evaluate(lib, batches)

    def stepper(self, batches: Batches, table: KernelTable | None = None) -> Stepper:
        """The Stepper that takes the steps of a fit over these batches. table: by default that of `kernels`."""
        lib = self.model.backend
        return Stepper(
            lib,
            table or lib.kernels(self.kernels),
            self.model,
            self.loss,
            self.optimizer,
            self.metrics,
            batches,
            any(callback.needs_gradients for callback in self.callbacks),
        )

    def _choose_threads(self, batches: Batches, stepper: Stepper | None = None) -> Threads:
        """How many threads for batches of this size. Only training is measured, where its steps can be undone."""
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

    def _evaluate(self, lib: Backend, batches: Batches) -> dict[str, Any]:
        mean, counts = LossOverBatches(self.loss), Totals(self.metrics)
        even = self.loss.counts_samples(weighted=len(batches.arrays) > 2)
        sizes: list[int] = []

        def numbers() -> Iterator[Any]:
            """Of each batch the loss, what it was divided by unless that is the number of rows, and the counts."""
            with closing(read_batches(batches, 0)) as read:
                for x, *rest in read:
                    sizes.append(x.shape[0])
                    outputs = self.model.run(lib.to_device(x), training=False)
                    targets, *weights = map(lib.to_device, rest)
                    self.loss.recognize(outputs, targets, *weights)
                    yield self.loss.run(outputs, targets, *weights)
                    if not even:
                        yield lib.number_on_device(self.loss.total(outputs, targets, *weights))
                    yield from count_on_device(lib, self.metrics, outputs, targets)

        with limit_threads(self._choose_threads(batches).count), Scope(records=False):
            found = iter(lib.to_host_all(numbers()))  # read once, at the end
        for size in sizes:
            mean.add(next(found), size if even else next(found))
            counts.add([next(found).astype(np.float64) for _ in self.metrics], size)
        return {"loss": mean.value, **counts.results()}


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _metrics(loss: Loss, model: Sequential, metrics: Any) -> list[Metric]:
    """Turn names, functions and objects into Metric objects. Raises OptionError if two have the same name."""
    chosen = loss.usual_metrics if metrics is None else metrics
    given = chosen if isinstance(chosen, Iterable) and not isinstance(chosen, str) else (chosen,)
    found = [get_metric(m, loss.binary, model.threshold) for m in given]
    names = [metric.name for metric in found]
    if len({*names, "loss", "epoch"}) < len(names) + 2:
        raise OptionError(
            f"metrics must have different names, got {', '.join(names)}: give an object name=..., or define "
            "the function with def"
        )
    if taken := [name for name in names if name.startswith("val_")]:
        raise OptionError(
            f"the metric's name {taken[0]!r} begins with val_, as results on validation data do: rename it"
        )
    return found


def _callbacks(callbacks: Any) -> list[Callback]:
    """The callbacks as a list. Raises OptionError for anything else."""
    for callback in callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]:
        if not isinstance(callbacks, (list, tuple)) or not isinstance(callback, Callback):
            raise OptionError(
                f"callbacks must be a list of xnn.callbacks.Callback objects, got {shown(callback)}"
            )
    return list(callbacks)
