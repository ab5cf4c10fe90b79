"""Writes the checkpoints of a fit: after the steps that `callbacks.Checkpoint` asks for, and when a callback does."""

from __future__ import annotations

import math
from typing import Any

from xnn.files import notice
from xnn.training.checkpoint import checkpoint_bytes, described
from xnn.training.disk import say_if_short
from xnn.training.lowering import begin_lowering
from xnn.training.together import agreed

__all__ = ["begin", "save_if_asked"]


def begin(fit: Any, epochs: int) -> None:
    """Refuse what a checkpoint cannot hold before the first step, rather than after the first epoch.

    Compare the room on the disk with what the fit will write in so many epochs. Of several ranks, rank 0 writes: it
    compares, and all raise the same error.
    """

    def check() -> None:
        if fit.trainer.rank == 0:
            say_if_short(fit, epochs, *(described(fit.trainer, fit) if fit.checkpoints else ("", {})))

    agreed(fit.trainer.ranks, check)
    if fit.checkpoints:
        begin_lowering(fit)
    done = len(fit.history.epochs)
    if fit.history.resumed and done >= epochs and fit.trainer.rank == 0:
        notice(
            f"xnn: the checkpoint has {done:,} epochs already, so that nothing is left to do: give more (--epochs)"
        )
    save_if_asked(fit)


def save_if_asked(fit: Any, ends_epoch: bool = False, ends_fit: bool = False) -> None:
    """Write the checkpoints of a fit that are due or that callbacks have asked for, now that all of them were called.

    ends_epoch, ends_fit: whether an epoch, or the whole fit, has just ended.
    """
    trainer = fit.trainer
    if not (fit.checkpoints or trainer.asked):
        return
    step, together = trainer.step, trainer.ranks is not None
    if together and not (ends_epoch or ends_fit):  # what goes by the clock waits for the end of the epoch
        due = [c for c in fit.checkpoints if c.falls_on(step)]
    else:
        due = [c for c in fit.checkpoints if c.is_due(step, ends_epoch) or (ends_fit and c.is_new(step))]
    best = bool(fit.checkpoints) and ends_epoch and _is_best(fit.history.epochs)
    only_best = [c for c in fit.checkpoints if best and c not in due and c.has_time()]
    if not (due or only_best or trainer.asked):
        return
    if fit.unseen:
        fit.look()
        fit.stepper.keep()
    trainer.save_asked(fit)
    if trainer.rank:
        for checkpoint in due:
            checkpoint.skip(step)
        return
    content = checkpoint_bytes(trainer, fit) if due or only_best else b""
    for checkpoint in (*due, *only_best):
        checkpoint.write(step, content, best, last=checkpoint in due)


def _is_best(epochs: list[dict[str, Any]]) -> bool:
    """Whether the last epoch is the best one by the validation loss, or by the loss if there is no other."""
    name = "val_loss" if "val_loss" in epochs[-1] else "loss"
    values = [entry.get(name, math.inf) for entry in epochs]
    return bool(values[-1] <= min(values))
