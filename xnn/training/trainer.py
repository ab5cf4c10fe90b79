"""Trainer: trains a model with a loss and an optimizer, and evaluates it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Never, cast

from xnn.backends import current_numerics, numerics
from xnn.backends.kernels.calls import TABLES, KernelTable
from xnn.backends.threads import Threads, check_threads, execution_plan
from xnn.callbacks import Callback, progress_of
from xnn.data import Batches, Stream
from xnn.errors import DeviceMemoryError, OptionError
from xnn.files import as_path, check_writable, notice
from xnn.graph.habits import Habitual
from xnn.history import History
from xnn.layers import Sequential
from xnn.losses import Loss
from xnn.metrics import Count, Metric
from xnn.optimizers import Optimizer
from xnn.options import check_count, check_flag, refuse_unknown
from xnn.training.again import Programs, named_error, note_numerics, run
from xnn.training.alone import alone
from xnn.training.checkpoint import built, save
from xnn.training.divergence import check_start
from xnn.training.evaluation import EVALUATION_BATCH, evaluated
from xnn.training.fit import Fit
from xnn.training.full_batch import FullBatchFit
from xnn.training.host_copy import kept_on_host
from xnn.training.inputs import check_last_batch, check_trainable, check_weights, prepare, prepare_validation
from xnn.training.interrupt import interruptible
from xnn.training.parts import check_parts
from xnn.training.placement import put_together
from xnn.training.predicting import Predicting, check_same_data
from xnn.training.reporting import Reporting
from xnn.training.resuming import Checkpoint, check_fit, go_on, newest, restore_history
from xnn.training.room import check_room, with_batch_size
from xnn.training.sharing import Sharing
from xnn.training.steps import Stepper
from xnn.training.thread_choice import threads_for
from xnn.training.together import SharedEnding, agreed, check_alike, check_workers, joined, watchers_here

__all__ = ["Trainer"]


class Trainer(Predicting, Reporting, Habitual):
    """Trains a model by a loss and an optimizer (`fit`), and measures it on other data (`evaluate`).

    model: a Sequential.
    loss: a Loss, or a function of outputs and targets that returns one number (`losses.Lambda`).
    optimizer: an Optimizer.
    metrics: names ("accuracy", "f1"), objects (`xnn.metrics.F1()`) or functions (xp, outputs, targets); the loss's
        usual ones by default.
    callbacks: a list of `xnn.callbacks.Callback`.
    threads: how many threads BLAS, or compiled kernels of convolutions, may use for steps and evaluation, never more
        than a limit already set. None takes what OMP_NUM_THREADS or a similar variable says, or else follows a fixed
        rule from batch size and weights (`xnn.backends.threads.choose_threads`). "auto" measures, which may give
        other bits each time.
    kernels: "auto" takes the fastest kernels installed, "ops" runs the ops alone; on the CPU also "numpy" and
        "compiled" (the extra `fast`), on a GPU "cuda". On the CPU they serve validation and evaluation, too.
    numerics: "fast" or "exact" for this trainer's runs; by default those in force.
    workers: "mpi" trains together with the other processes that mpirun, mpiexec or srun has started (needs the extra
        `mpi`; docs/several_machines.md): each has its rows of every batch. "auto" does so if a launcher has started
        several, and else trains in this process alone, as "none" does. None (default) does so too, except inside
        `xnn train` that was started in this way.

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
    #: Whether `programs` has those of the last fit, for `again.fit_again`.
    keeps_programs = False
    programs: Programs | None = None

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
        workers: str | None = None,
        **unknown: Never,
    ) -> None:
        refuse_unknown(Trainer, unknown)
        self.workers = check_workers(workers)
        self.model, self.loss, self.optimizer = model, cast(Loss, loss), optimizer
        self.metrics, self.callbacks = cast(list[Metric], metrics), cast(list[Callback], callbacks)
        self.asked: list[str | os.PathLike[str]] = []  # checkpoints to write
        self._running: Fit | None = None
        self._built: Any = None
        self._resumed: tuple[Checkpoint, bool] | None = None  # the next fit goes on from it
        check_parts(self)
        if kernels not in TABLES:
            model.backend.kernels(kernels)  # raises, now rather than in fit
        self.threads, self.kernels = check_threads(threads), kernels
        self.numerics = numerics if numerics is None else current_numerics(numerics)
        self.epoch = self.step = 0  # done so far, over all fits
        #: The History of the last fit, also of one that an exception ended.
        self.history: History | None = None

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
        progress: bool | None = None,
        shuffle: bool | Callable[[int], Any] = True,
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
        progress: whether to show progress: in a notebook a line that changes and curves that grow; else on standard
            error, on a terminal a bar, elsewhere a line after each epoch. Default None: unless a callback does it.
        shuffle: whether to take the samples in a new order in each epoch; or a function that gives it, see `Batches`.

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
        check_parts(self)
        before, on_host = self.history, self.model.backend.is_host
        given = data, validation, epochs, batch_size, sample_weight, seed
        try:
            with joined(self.ranks):
                return self._fit(*given, progress=progress, shuffle=shuffle)
        except BaseException as error:
            said = error
            self.asked.clear()
            if isinstance(error, DeviceMemoryError):
                said = with_batch_size(self, error, data, batch_size, sample_weight)
            history = self.history
            if history is not None and history is not before and not (on_host and history.error):
                history.error = named_error(said)
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
        progress: bool | None,
        shuffle: bool | Callable[[int], Any],
    ) -> History:
        lib = self.model.backend
        epochs = check_count("epochs", epochs)
        shown = progress_of(self.callbacks, progress)
        shuffle = shuffle if callable(shuffle) else check_flag("shuffle", shuffle)
        check_trainable(self.model)
        with ExitStack() as stack:
            stack.enter_context(alone(self))
            put_together(lib, self.model, self.optimizer)
            on_host = stack.enter_context(kept_on_host(lib, self))
            check_start(self.model, self.optimizer)
            self._built = self.built
            resumed, any_plan = self._resumed or (None, False)
            buffers = [(buffer, buffer.value) for buffer in self.model.buffers() if resumed is not None]
            chosen = stack.enter_context(numerics(self.numerics or current_numerics()))
            parts = self.model, self.loss, self.metrics
            minimizes = self.optimizer.minimizes
            prepared = prepare(*parts, data, "training", sample_weight)
            batches = Batches(prepared, batch_size, False if minimizes else shuffle, seed)
            check_weights(self.loss, min(batches.batch_size, batches.rows), sample_weight is not None)
            held_out = None if validation is None else prepare_validation(*parts, validation)
            begun, ranks = time.perf_counter(), self.ranks
            if ranks is not None:
                check_alike(ranks, self, batches, held_out, epochs)
            table = lib.kernels(self.kernels)
            stack.enter_context(lib.guard())
            stack.enter_context(lib.stream())
            agreed(ranks, lambda: check_room(self, batches))
            # Making the first program raises for what does not fit, before anything has begun.
            with lib.starting():
                stepper = self.stepper(batches, table)
            made = time.perf_counter() - begun
            if (streaming := stepper.streaming) and self.rank == 0:
                notice(f"xnn: {streaming}")
            check_last_batch(stepper, batches)
            if resumed is None or self.threads != "auto":
                threads = self.choose_threads_for(batches, stepper)
            else:
                threads = Threads(resumed.about["fit"]["plan"]["threads"], "as in the checkpoint")
            interrupted = stack.enter_context(interruptible())
            watchers = watchers_here(ranks, [*self.callbacks, *shown])

            def validate() -> dict[str, Any]:
                if held_out is None:
                    return {}
                return evaluated(self, Batches(held_out, EVALUATION_BATCH, shuffle=False))

            history = self.history = History(first_step_seconds=made)
            if resumed is not None:
                restore_history(self, resumed)
            kind = FullBatchFit if minimizes else Fit
            fit = kind(self, stepper, batches, threads.count, watchers, interrupted, validate, history)
            fit.on_host, fit.held_out = on_host, held_out
            if stepper.sharing is not None:
                fit.ending, fit.look_seconds = SharedEnding(stepper.sharing, fit.ending), math.inf
                fit.undisturbed = stepper.sharing.all_say(fit.undisturbed)
            note_numerics(self.model, chosen)
            plan = execution_plan(lib, self.model.dtype, batches.batch_size, threads, stepper.table.name)
            streamed = {"data": "streamed from the host"} if streaming else {}
            history.plan = {**plan, **stepper.plan, **streamed}
            if resumed is not None:
                check_fit(self, resumed, fit, history.plan, any_plan)

            def resume() -> None:
                assert resumed is not None
                for buffer, value in buffers:  # a layer may have changed it when the program was made
                    buffer.value = value
                go_on(fit, resumed)
                self._resumed = None

            run(fit, epochs, stack, None if resumed is None else resume)
        if self.keeps_programs:
            self.programs = Programs(stepper, batches, history.plan)
        self.save_asked()
        return history

    @property
    def built(self) -> Any:
        """How the parts were built, for checkpoints: as the first fit finds them."""
        return built(self) if self._built is None else self._built

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint: everything that a training needs to go on as if it had never stopped.

        path: the .safetensors file; an older one is replaced, whole or not at all.

        Called by a callback, it writes the file once all callbacks were called, and at the end of an epoch after its
        validation. `resume` goes on from it. `model.save` writes the model alone.

        Raises OptionError for a place that cannot be written, for what a checkpoint cannot hold, such as an open file
        that a callback keeps, and between `resume` and the fit that goes on. Raises DiskError when the disk is full.
        """
        if self._running is not None:
            self.asked.append(check_writable(path, (".safetensors",)))
        elif self._resumed is None:
            if self.rank == 0:
                save(self, path)
        else:
            raise OptionError(
                f"{self._resumed[0].path} is a checkpoint in the middle of a fit, which has not gone on yet: call "
                "fit before save, or copy the file"
            )

    def save_asked(self, fit: Fit | None = None) -> None:
        """Write the checkpoints that callbacks asked for. fit: the one that goes on."""
        asked, self.asked = self.asked, []
        for path in asked if self.rank == 0 else ():
            save(self, path, fit)

    def resume(self, path: str | os.PathLike[str], allow_different_plan: bool = False) -> Path | None:
        """Put everything back as it was when `save` wrote a checkpoint. The next `fit` goes on from there.

        path: the file; or a folder of `callbacks.Checkpoint`, of which the newest checkpoint that is whole is taken.
        allow_different_plan: whether in fast numerics the fit may run in another way than before, such as with other
            threads, and then with other bits. Default False.

        Returns the file. In a folder without checkpoints nothing is done, and None is returned.

        Build the trainer as the run did that wrote the file, and call `fit` with the same arguments. If the
        checkpoint was written during a fit, this fit goes on at the very step, until it has `epochs` epochs in all;
        its history is that of the whole run. Weights, losses, history and the best model are then the same bits as
        those of a run that never stopped. In exact numerics this holds on another backend and with other threads.

        Raises DataNotFoundError or CorruptFileError for a file that cannot be read, and OptionError for a trainer
        that was built differently; `fit` raises it for other data, options, or another plan. Nothing is changed then.

            >>> import pathlib, tempfile
            >>> import numpy as np, xnn
            >>> from xnn import layers, losses, optimizers
            >>> x = np.linspace(-1.0, 1.0, 64).reshape(-1, 1)
            >>> def build():
            ...     model = xnn.Sequential(layers.Dense(1, 8), layers.Tanh(), layers.Dense(8, 1), seed=0)
            ...     return xnn.Trainer(model, losses.MSE(), optimizers.Adam(0.03))
            >>> path = pathlib.Path(tempfile.mkdtemp(), "run.safetensors")
            >>> first, second, whole = build(), build(), build()
            >>> _ = first.fit((x, x * x), epochs=5, progress=False)
            >>> first.save(path)
            >>> _ = second.resume(path)
            >>> second
            <Trainer of Sequential, MSE(), Adam(learning_rate=0.03): 5 epochs, 10 steps>
            >>> _ = second.fit((x, x * x), epochs=5, progress=False)
            >>> _ = whole.fit((x, x * x), epochs=10, progress=False)
            >>> second.evaluate((x, x * x)) == whole.evaluate((x, x * x))
            True
        """
        check_parts(self)
        check_flag("allow_different_plan", allow_different_plan)
        if self._running is not None:
            raise OptionError("resume was called during a fit: call it before, and fit goes on from there")
        checkpoint = newest(self, as_path(path))
        if checkpoint is None:
            return None
        self._built = checkpoint.about["built"], self.built[1]
        fit = checkpoint.about["fit"]
        self._resumed = None if fit is None else (checkpoint, allow_different_plan)
        return checkpoint.path

    def evaluate(
        self,
        data: tuple[Any, Any] | Stream,
        batch_size: int = EVALUATION_BATCH,
        sample_weight: Any = None,
        **unknown: Never,
    ) -> dict[str, Any]:
        """The loss and the metrics over all the data, by name; dropout and augmentation are off.

        data: a pair (x, y), as `fit` takes it. batch_size: samples at a time. sample_weight: (n,), how much each
        sample counts in the loss. Where a GPU's memory is short, fewer samples go through the model at a time, and
        loss and metrics are still those of batches of this size. Raises as `fit` does; RankError if a process that
        shares the work has other data, weights or options.
        """
        refuse_unknown(Trainer.evaluate, unknown)
        check_parts(self)
        lib = self.model.backend
        with joined(self.ranks), numerics(self.numerics), lib.guard():
            prepared = prepare(self.model, self.loss, self.metrics, data, "evaluation", sample_weight)
            batches = Batches(prepared, batch_size, shuffle=False)
            if (ranks := self.ranks) is not None:
                check_same_data(
                    ranks, self.model, batches.arrays, batch_size, current_numerics(), built(self)[0]
                )
            return evaluated(self, batches)

    def stepper(self, batches: Batches, table: KernelTable | None = None) -> Stepper:
        """The Stepper that takes the steps of a fit over these batches. table: by default that of `kernels`."""
        lib = self.model.backend
        parts = self.model, self.loss, self.optimizer, self.metrics
        keep_gradients = any(callback.needs_gradients for callback in self.callbacks)
        sharing = None if self.ranks is None else Sharing(self.ranks, keep_gradients)
        return Stepper(lib, table or lib.kernels(self.kernels), *parts, batches, keep_gradients, sharing)

    def choose_threads_for(self, batches: Batches, stepper: Stepper | None = None) -> Threads:
        """How many threads for batches of this size. Only training is measured, where its steps can be undone."""
        return threads_for(self, batches, stepper)
