"""TimeLimit: ends a training before a given time is over, as a job of a batch system must."""

from __future__ import annotations

import time

from xnn.callbacks.callback import Callback
from xnn.callbacks.durations import seconds_of
from xnn.errors import OptionError
from xnn.history import History
from xnn.options import shown

__all__ = ["TimeLimit"]

#: The time for what follows the training: this share of the limit, and at most this many seconds.
_SHARE, _MOST = 0.05, 60.0


class TimeLimit(Callback):
    """Ends a training in the middle of an epoch, so early that what follows it ends within a time limit.

    limit: a duration such as "30s", "10min", "2h", "3h50m" or "1d12h". It counts from when this object is made, so
        make it first; `xnn train --time-limit` counts from the start of the command.

    What follows the training, such as the last checkpoint, saving the model and an evaluation, gets 5 % of the limit,
    at most a minute, and in addition twice the longest pause between two steps so far and twice the longest time that
    a checkpoint took to write: the longest pause is that for a validation or a checkpoint. The time is looked at
    after each step, on a GPU after each chunk of steps.

    `history.stopped` then says so. The last checkpoint does not, so that `Trainer.resume` goes on from there: with
    `callbacks.Checkpoint` a chain of jobs ends with the bits of one run.

    Raises OptionError for anything but a duration.

        >>> import tempfile
        >>> import numpy as np, xnn
        >>> from xnn import callbacks, layers, losses, optimizers
        >>> limit, folder = callbacks.TimeLimit("3h50m"), tempfile.mkdtemp()
        >>> x = np.linspace(-1.0, 1.0, 64).reshape(-1, 1)
        >>> model = xnn.Sequential(layers.Dense(1, 8), layers.Tanh(), layers.Dense(8, 1), seed=0)
        >>> watchers = [callbacks.Checkpoint(folder), limit]
        >>> trainer = xnn.Trainer(model, losses.MSE(), optimizers.Adam(0.03), callbacks=watchers)
        >>> trainer.resume(folder)  # goes on where the job before was stopped; the first one begins
        >>> trainer.fit((x, x * x), epochs=10, progress=False).stopped
        ''
    """

    #: It changes nothing in the training, so that the next job may have another limit.
    bystander = True

    def __init__(self, limit: str) -> None:
        seconds = seconds_of(limit)
        if seconds is None:
            raise OptionError(f"a time limit must be such as '30s', '10min' or '3h50m', got {shown(limit)}")
        self.limit, self._seconds, self._began = limit, seconds, time.monotonic()
        self._looks, self._last, self._longest = 0, self._began, 0.0

    @property
    def reason(self) -> str:
        """What `history.stopped` says when it has ended a training."""
        return f"the time limit of {self.limit}"

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        self._looks = 0

    def is_over(self, writing: float = 0.0) -> bool:
        """Whether training must end now. `fit` asks before each step, or before the next steps that it takes at once.

        writing: the longest time that a checkpoint took to write, in seconds.
        """
        now = time.monotonic()
        self._looks += 1
        if self._looks > 2:  # before, kernels were compiled
            self._longest = max(self._longest, now - self._last)
        self._last = now
        needed = min(_SHARE * self._seconds, _MOST) + 2.0 * (self._longest + writing)
        return self._seconds - (now - self._began) <= needed
