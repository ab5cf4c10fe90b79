"""`xnn train` that nobody watches: the callback for its checkpoints, and what is said where a time limit ends it."""

from __future__ import annotations

from xnn.callbacks import Checkpoint, TimeLimit
from xnn.errors import OptionError
from xnn.files import notice
from xnn.training import Trainer

__all__ = ["checkpoints", "say_if_stopped"]


def checkpoints(
    folder: str | None,
    every: str,
    keep: int,
    on_nan: str,
    resume: bool,
    allow_different_plan: bool,
    recorded: bool,
) -> Checkpoint | None:
    """The callback that writes checkpoints, or None. Raises OptionError for options that do not go together.

    recorded: whether there is a --record.
    """
    if recorded and on_nan == "lower-lr":
        raise OptionError(
            "--record says what a run with one learning rate did, and --on-nan lower-lr changes it: omit one of them"
        )
    if folder:
        return Checkpoint(folder, every, keep, on_nan=on_nan)
    if resume or allow_different_plan or (every, keep, on_nan) != ("1epoch", 3, "stop"):
        raise OptionError(
            "--resume, --every, --keep, --on-nan lower-lr and --allow-different-plan need --checkpoint DIR, a folder "
            "for checkpoints"
        )
    return None


def say_if_stopped(trainer: Trainer, limit: TimeLimit | None, begun: int, checkpoint: str | None) -> None:
    """Say on standard error that the time limit ended a training, and how it goes on.

    limit: that of --time-limit. begun: the step at which this command began. checkpoint: the folder.

    Raises OptionError if no step was taken: a chain of jobs would never end.
    """
    history = trainer.history
    if limit is None or history is None or history.stopped != limit.reason:
        return
    if trainer.step == begun:
        raise OptionError(
            f"stopped by --time-limit {limit.limit} before a step was taken, so that the next job would not get any "
            "further: allow more time"
        )
    done = f"after step {trainer.step:,}, {len(history.epochs)} whole epochs"
    if checkpoint:
        done += f"; --checkpoint {checkpoint} --resume goes on"
    notice(f"xnn: stopped by --time-limit {limit.limit} {done}")
