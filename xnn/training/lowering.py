"""Goes back to the last checkpoint after a divergence, and goes on with half the learning rate."""

from __future__ import annotations

import contextlib
from typing import Any

from xnn.callbacks import Checkpoint, call_back, checkpoints_in
from xnn.data.stream import StreamRows
from xnn.errors import DivergenceError, OptionError, XnnError
from xnn.files import notice
from xnn.training.checkpoint import attributes_of_parts, checkpoint_bytes
from xnn.training.resuming import Checkpoint as Content
from xnn.training.resuming import go_on, newest, read, restore, restore_history

__all__ = ["begin_lowering", "goes_on_slower"]

_MOST = 3  # halvings


def begin_lowering(fit: Any) -> None:
    """Write the checkpoint to which a fit can go back before it has written another one, if it is to go back.

    Raises OptionError for an optimizer or data with which it could not.
    """
    lowering = _lowering(fit)
    if lowering is None:
        return
    if fit.trainer.optimizer.minimizes:
        raise OptionError(
            f"on_nan='lower-lr' lowers the learning rate, and {type(fit.trainer.optimizer).__name__} has none: use "
            "another optimizer, or on_nan='stop'"
        )
    if any(isinstance(array, StreamRows) and array.windows.stream.once for array in fit.batches.arrays):
        raise OptionError(
            "on_nan='lower-lr' goes back in the data, and this Stream can be read once: give it a function that "
            "returns the batches, or use on_nan='stop'"
        )
    if fit.trainer.rank:  # rank 0 writes
        lowering.skip(fit.trainer.step)
    else:
        lowering.write(fit.trainer.step, checkpoint_bytes(fit.trainer, fit), best=False)


def goes_on_slower(fit: Any, error: DivergenceError) -> bool:
    """Put a fit back to its last checkpoint, and halve the learning rate. Returns False if it shall end instead.

    The error then has a note of the last checkpoint.
    """
    checkpoint, trainer, history = _lowering(fit), fit.trainer, fit.history
    factor, before = trainer.optimizer.rate_factor / 2, [*history.lowered]
    if checkpoint is None or len(before) >= _MOST:
        _note(fit, error, len(before))
        return False
    fault, resumed = str(error).partition(". ")[0], history.resumed
    found = _went_back_to(trainer, checkpoint, before)
    if found is None:  # none could be written, as on a full disk
        return False
    restore_history(trainer, found)
    history.resumed = resumed
    go_on(fit, found)
    trainer.optimizer.rate_factor = factor
    fit.stepper.begin_anew()
    if fit.on_host is not None:
        fit.on_host.take()
    checkpoint.went_back(trainer.step)
    if not trainer.rank:
        with contextlib.suppress(XnnError):  # it is missing or damaged
            if read(checkpoint.best).about["step"] > trainer.step:
                checkpoint.give_up_best()
    lowered = {
        "step": trainer.step,
        "rate_factor": factor,
        "learning_rate": trainer.optimizer.rate,
        "because": fault,
    }
    known = len(history.lowered)
    history.lowered = [*before, lowered]
    for entry in history.lowered[known:]:  # those that the log of the checkpoint does not have
        for watcher in fit.watchers:
            call_back(watcher.on_lower_rate, history, entry)
    if trainer.rank:
        return True
    notice(
        f"xnn: {fault}; going on from {found.path.name} with half the learning rate, {lowered['learning_rate']:g}, "
        f"for the {('first', 'second', 'third')[len(before)]} time of at most {_MOST}"
    )
    return True


def _went_back_to(trainer: Any, checkpoint: Checkpoint, before: list[Any]) -> Content | None:
    """Put a trainer back to its newest checkpoint; None if there is none. Of several ranks, all take rank 0's file.

    before: the entries of the history for the times that the rate was halved already.
    """
    found, ranks = None, trainer.ranks
    if not trainer.rank:
        checkpoint.wait()
        if before:
            checkpoint.set_aside(before[-1]["step"])
        found = newest(trainer, checkpoint.folder, _put_back)
    if ranks is not None:
        path = ranks.of_first(None if found is None else found.path.absolute())
        if ranks.rank and path is not None:
            _put_back(trainer, found := read(path))
    return found


def _lowering(fit: Any) -> Checkpoint | None:
    return next((checkpoint for checkpoint in fit.checkpoints if checkpoint.on_nan == "lower-lr"), None)


def _note(fit: Any, error: DivergenceError, halved: int) -> None:
    """Add to an error which checkpoint is from before, and that the rate was halved already."""
    for checkpoint in fit.checkpoints:
        checkpoint.wait()
        if there := checkpoints_in(checkpoint.folder):
            error.add_note(f"{there[0]} is the last checkpoint before that")
    if halved:
        error.add_note(f"the learning rate was halved before: {halved} of at most {_MOST} times")


def _put_back(trainer: Any, checkpoint: Content) -> None:
    """Restore a checkpoint of this very fit: attributes that came after it are removed."""
    for name, (thing, attributes) in attributes_of_parts(trainer).items():
        for later in attributes.keys() - checkpoint.about["state"].get(name, attributes).keys():
            vars(thing).pop(later, None)
    restore(trainer, checkpoint)
