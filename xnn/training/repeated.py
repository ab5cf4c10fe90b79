"""Trains networks of one shape one after the other, by the programs of a fit that has ended.

A fit of a small network takes longer in Python than in its kernels: its parts are checked, programs are made, and
callbacks are told. Here the programs and their memory stay, and some epochs are one call of native code.
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

#: An epoch has at most so many steps, and so many are taken at once: between them Ctrl-C is looked at.
_STEPS = 100
#: The orders of the epochs of a call have so many numbers at most.
_NUMBERS = 2**20


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
        #: The options of every step so far, and the optimizer's numbers before the first step and after each.
        self._known, self._numbers = list[tuple[float, ...]](), [self._optimizer.first]
        size, rows = self._batches.batch_size, self._batches.rows
        self._sizes = [min(size, rows - start) for start in range(0, rows, size)]
        several = [stepper.program(n).several for n in self._sizes]
        most = min([_STEPS, *(steps.most for steps in several if steps is not None)])
        at_once = max(1, min(most // len(several), _NUMBERS // rows))
        #: For each epoch of a call the order of the rows, each step's options, and what each step's loss was.
        self._in_order, self._orders = np.arange(rows), np.empty((at_once, rows), np.int64)
        self._options = np.empty((at_once, len(several), len(self._group.numbers)))
        self._losses = np.empty((at_once, len(several)), self._batches.arrays[0].dtype)
        turns = list[Any]()
        for number, (steps, n) in enumerate(zip(several, self._sizes, strict=True)):
            assert steps is not None
            places = (
                self._orders[:, number * size :][:, :n],
                self._options[:, number],
                self._losses[:, number],
            )
            changing = steps.cursor.rows, self._group.numbers, *steps.counted
            turns.append((steps.native, list(zip(changing, places, strict=True))))
        self._run = stepper.table.several(turns)
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
        short = len(batches) <= _STEPS and len(store.groups) == 1
        programs = [stepper.program(n) for n in sizes] if short else []
        native = all(program.several is not None and not program.draws for program in programs)
        return Repeated(trainer) if short and plain and native else None

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
        when the fit begins and of each epoch; its `at_least` says for how many epochs more the fit goes on.
        """
        model, optimizer = trainer.model, trainer.optimizer
        self._begin(model, data, strength)
        history, done = History(), 0
        watcher.model = model
        watcher.on_fit_start(history, epochs, len(self._sizes))
        with interruptible() as interrupted, limit_threads(self._threads):
            while len(history.epochs) < epochs and not history.stopped:
                history.interrupted = interrupted()
                if history.interrupted:
                    break
                count = min(len(self._orders), epochs - len(history.epochs), watcher.at_least)
                for row, numbers in enumerate(self._orders[:count]):
                    numbers[:] = order(len(history.epochs) + row) if callable(order) else self._in_order
                losses = self._epochs(count, done, optimizer.rate)
                if not (np.isfinite(losses).all() and self._store.is_finite()):
                    return False
                done += losses.size
                for values in losses.tolist():
                    loss = LossOverBatches(self._loss)
                    for value, n in zip(values, self._sizes, strict=True):
                        loss.add(value, n)
                    history.epochs.append({"epoch": len(history.epochs) + 1, "loss": loss.value})
                    watcher.on_epoch_end(history, history.epochs[-1])
        trainer.history = history
        self._end(model, optimizer, done)
        return True

    def _begin(self, model: Sequential, data: Sequence[np.ndarray], strength: Callable[[int], float]) -> None:
        for ours, theirs in zip(self._batches.arrays, data, strict=True):
            np.copyto(ours, theirs, casting="no")
        for (_, value, _, state), parameter in zip(self._group.columns, model.parameters(), strict=True):
            np.copyto(value.array, parameter.value)
            for slot in state:
                slot.array[...] = 0.0
        for numbers, rows in self._strengths:
            numbers[...] = strength(rows)

    def _epochs(self, count: int, done: int, rate: float) -> np.ndarray:
        """Train for some epochs at once, after so many steps; return the loss of each step (epochs, steps)."""
        steps = count * len(self._sizes)
        while len(self._known) < done + steps:
            self._numbers.append(self._optimizer.advance(self._numbers[-1]))
            options = self._optimizer.ordered_options(self._numbers[-1], self._group.decay)
            self._known.append(tuple(options.values()))
        given = self._options[:count]
        given.reshape(steps, -1)[...] = self._known[done : done + steps]
        given[..., self._rate] = rate
        assert self._run is not None
        self._run(count)
        return self._losses[:count]

    def _end(self, model: Sequential, optimizer: Optimizer, steps: int) -> None:
        """Give the network and its optimizer copies of what the steps have made."""
        optimizer.steps = steps
        note_numerics(model, "fast")
        for (_, value, _, state), parameter in zip(self._group.columns, model.parameters(), strict=True):
            parameter.value = value.array.copy()
            arrays = tuple(slot.array.copy() for slot in state)
            optimizer.state[parameter] = State(arrays, self._numbers[steps], self._group.names)
