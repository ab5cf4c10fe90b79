"""Trains networks of one shape one after the other, by the programs of a fit that has ended.

A fit of a small network takes longer in Python than in its kernels: its parts are checked, programs are made, and
callbacks are told. Here the programs and their memory stay, and an epoch is a few calls of native code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.threads import limit_threads
from xnn.history import History
from xnn.layers import Sequential
from xnn.losses import LossOverBatches
from xnn.optimizers import Optimizer, State
from xnn.training.again import note_numerics
from xnn.training.interrupt import interruptible
from xnn.training.trainer import Trainer

__all__ = ["Repeated"]


class Repeated:
    """Fits of networks of one shape, on data of one shape: `fit`.

    trainer: has ended a fit, and kept its programs. Nothing else may use the arrays of that fit's data.
    """

    def __init__(self, trainer: Trainer) -> None:
        assert trainer.programs is not None
        stepper, self._batches, plan = trainer.programs
        self._loss, self._optimizer, self._threads = trainer.loss, trainer.optimizer, plan["threads"]
        self._store = stepper.store
        (self._group,) = self._store.groups
        self._rate = list(self._group.options).index("learning_rate")
        #: The options of each step, and the optimizer's numbers before the first step and after each.
        self._options, self._numbers = list[tuple[float, ...]](), [self._optimizer.first]
        size, rows = self._batches.batch_size, self._batches.rows
        several = [
            (stepper.program(n).several, n, start, stop)
            for n, start, stop in ((size, 0, rows - rows % size), (rows % size, rows - rows % size, rows))
            if start < stop
        ]
        #: The calls of native code in an epoch: what runs them, and their first and last row.
        self._calls = [
            (native, n, first, min(first + n * native.most, stop))
            for native, n, start, stop in several
            if native is not None
            for first in range(start, stop, n * native.most)
        ]
        #: The strengths of penalties on weights, which kernels read, and the rows of their batches.
        self._strengths = [
            (call.saved, n)
            for n, program in stepper.programs.items()
            for call in program.calls
            if call.key == ("forward", ops.l2_penalty)
        ]

    @staticmethod
    def of(trainer: Trainer) -> Repeated | None:
        """A Repeated; None where native code does not run whole steps, or steps do more than change the weights."""
        assert trainer.programs is not None
        stepper, batches, _ = trainer.programs
        store, sizes = stepper.store, {batches.batch_size, batches.rows % batches.batch_size} - {0}
        plain = stepper.total is None and not (trainer.metrics or store.buffers or store.averages)
        native = all(stepper.program(n).several is not None for n in sizes) and len(store.groups) == 1
        return Repeated(trainer) if plain and native else None

    def fit(
        self,
        trainer: Trainer,
        data: Sequence[np.ndarray],
        strength: Callable[[int], float],
        order: Callable[[int], np.ndarray] | bool,
        epochs: int,
        watcher: Any,
    ) -> bool:
        """Train the network of a trainer as its own fit does, and return whether all numbers stayed finite.

        If not, the trainer is as before, and the watcher was told of the epochs until then.

        trainer: like the first one, but for its network's weights and its optimizer's learning rate. It gets a
        history of the epochs. data: arrays of the shapes and dtypes of the first fit's. strength: of the penalties,
        from the rows of a batch. order: of the samples in each epoch, or False. watcher: a callback, which is told
        when the fit begins and of each epoch.
        """
        model, optimizer = trainer.model, trainer.optimizer
        self._begin(model, data, strength)
        history, whole, steps = History(), np.arange(self._batches.rows), 0
        watcher.model = model
        watcher.on_fit_start(history, epochs, len(self._batches))
        with interruptible() as interrupted, limit_threads(self._threads):
            while len(history.epochs) < epochs and not history.stopped:
                rows = order(len(history.epochs)) if callable(order) else whole
                loss = LossOverBatches(self._loss)
                steps, stopped = self._epoch(rows, steps, optimizer.rate, loss, interrupted)
                if not (np.isfinite(loss.value) and self._store.is_finite()):
                    return False
                if stopped:
                    history.interrupted = True
                    break
                history.epochs.append({"epoch": len(history.epochs) + 1, "loss": loss.value})
                watcher.on_epoch_end(history, history.epochs[-1])
        trainer.history = history
        self._end(model, optimizer, steps)
        return True

    def _begin(self, model: Sequential, data: Sequence[np.ndarray], strength: Callable[[int], float]) -> None:
        for ours, theirs in zip(self._batches.arrays, data, strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            np.copyto(ours, theirs)
        for (_, value, _, state), parameter in zip(self._group.columns, model.parameters(), strict=True):
            np.copyto(value.array, parameter.value)
            for slot in state:
                slot.array[...] = 0.0
        for numbers, rows in self._strengths:
            numbers[...] = strength(rows)

    def _epoch(
        self, rows: np.ndarray, done: int, rate: float, loss: LossOverBatches, interrupted: Callable[[], bool]
    ) -> tuple[int, bool]:
        """Take the steps of an epoch; return how many were taken in all, and whether they were interrupted."""
        for native, n, first, last in self._calls:
            if interrupted():
                return done, True
            batches = rows[first:last].reshape(-1, n)
            options = np.array(self._options_of(done, len(batches)))
            options[:, self._rate] = rate
            (values,) = native.given(batches, [options])
            for value in values.tolist():
                loss.add(value, n)
            done += len(batches)
        return done, False

    def _options_of(self, done: int, steps: int) -> list[tuple[float, ...]]:
        """The options of the steps that follow those done, which are the same for all networks but for the rate."""
        while len(self._options) < done + steps:
            self._numbers.append(self._optimizer.advance(self._numbers[-1]))
            options = self._optimizer.ordered_options(self._numbers[-1], self._group.decay)
            self._options.append(tuple(options.values()))
        return self._options[done : done + steps]

    def _end(self, model: Sequential, optimizer: Optimizer, steps: int) -> None:
        """Give the network and its optimizer copies of what the steps have made."""
        optimizer.steps = steps
        note_numerics(model, "fast")
        for (_, value, _, state), parameter in zip(self._group.columns, model.parameters(), strict=True):
            parameter.value = value.array.copy()
            arrays = tuple(slot.array.copy() for slot in state)
            optimizer.state[parameter] = State(arrays, self._numbers[steps], self._group.names)
