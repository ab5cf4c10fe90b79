"""Runs a fit that is prepared, and runs it again on other data of the same shapes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple

import numpy as np

from xnn.backends import current_numerics, numerics
from xnn.callbacks import call_back
from xnn.data import Batches
from xnn.history import History
from xnn.training.alone import alone
from xnn.training.divergence import check_start
from xnn.training.fit import Fit
from xnn.training.inputs import prepare
from xnn.training.interrupt import interruptible
from xnn.training.steps import Stepper

__all__ = ["Programs", "fit_again", "named_error", "note_numerics", "run"]


def run(
    fit: Fit,
    epochs: int,
    stack: ExitStack,
    resume: Callable[[], None] | None = None,
    leave: Callable[[], None] | None = None,
) -> None:
    """Run a fit, and tell the callbacks when it begins and ends.

    stack: what is to be undone after the fit. resume: puts the state of a checkpoint back, after on_fit_start.
    leave: is called at the end. By default model and optimizer get arrays of their own (`Store.hand_out`).
    """
    trainer, history, model, lib = fit.trainer, fit.history, fit.trainer.model, fit.stepper.lib
    stack.callback(model.forget)
    trainer._running = fit
    for writer in fit.checkpoints:
        writer.open(trainer.step, resume is not None, writes=trainer.rank == 0)
        stack.callback(writer.close)
    stack.callback(setattr, trainer, "_running", None)
    for watcher in fit.watchers:
        watcher.model = model
        call_back(watcher.on_fit_start, history, epochs, fit.steps_per_epoch)
        stack.callback(call_back, watcher.on_fit_end, history)
    if resume is not None:
        resume()
    try:
        with lib.guard() if lib.can_be_lost else nullcontext():
            try:
                fit.run(epochs)
            finally:
                (leave or fit.stepper.store.hand_out)()
    except BaseException as error:
        history.error = named_error(error)  # which callbacks may read when the fit ends
        raise
    finally:
        fit.ending.note(history, epochs)


class Programs(NamedTuple):
    """What another fit needs of the last one: its stepper, its data, and how it was executed."""

    stepper: Stepper
    batches: Batches
    plan: dict[str, Any]


def fit_again(
    trainer: Any,
    data: tuple[Any, Any],
    sample_weight: Any,
    seed: int,
    shuffle: bool | Callable[[int], Any],
) -> None:
    """Train for one epoch on other data, on the host, by the trainer's `programs`. Steps and epochs begin at 0.

    Afterwards the model has the arrays that the next such fit changes: assign others to its parameters.
    The data have the shapes and dtypes of those of the last fit. They are copied into the arrays that it was given,
    which nobody else may use. The parts of the trainer are those of the last fit (`Stepper.fits`). The arguments, and
    what it raises, are those of `Trainer.fit`.
    """
    stepper, batches, plan = trainer.programs
    with ExitStack() as stack:
        stack.enter_context(alone(trainer))
        stack.enter_context(numerics(trainer.numerics or current_numerics()))
        given = prepare(trainer.model, trainer.loss, trainer.metrics, data, "training", sample_weight)
        for ours, theirs in zip(batches.arrays, given, strict=True):
            np.copyto(ours, theirs, casting="no")
        batches.shuffle, batches.seed = shuffle, seed
        trainer.epoch = trainer.step = 0
        stack.enter_context(stepper.lib.guard())
        stack.enter_context(stepper.lib.stream())
        stepper.take_in()
        if not stepper.store.is_finite():
            check_start(trainer.model, trainer.optimizer)
        threads = trainer.choose_threads_for(batches, stepper)
        interrupted = stack.enter_context(interruptible())
        history = trainer.history = History()
        history.plan = {**plan, "threads": threads.count, "threads_because": threads.reason}
        parts = trainer, stepper, batches, threads.count, trainer.callbacks, interrupted, dict, history
        fit = Fit(*parts)
        fit.begins = False  # what was changed is taken in, and nothing is compiled
        run(fit, 1, stack, leave=stepper.store.release)


def note_numerics(model: Any, numerics: str) -> None:
    """Note in a model by which numerics it was trained; not by assignment: the model would be looked at again."""
    if model.numerics != numerics:
        vars(model)["numerics"] = numerics if model.numerics is None else "mixed"


def named_error(error: BaseException) -> str:
    """An exception in words, for a history."""
    return f"{type(error).__name__}: {error}"
