"""What ends a training after the current step: Ctrl-C, and a time limit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from xnn.callbacks import Callback, Checkpoint, TimeLimit
from xnn.history import History

__all__ = ["Ending", "ending_of_thread", "interruptible"]

#: In a thread other than the main one: tells whether a training is to end. Who starts the thread may set it there.
ending_of_thread: ContextVar[Callable[[], bool]] = ContextVar("xnn_ending", default=lambda: False)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Inside the block Ctrl-C sets a flag, so that the current step can be finished; a second one interrupts.

    Yields a function that tells whether the flag is set. Only the main thread can do so; in another one
    `ending_of_thread` tells it.
    """
    pressed = False
    if threading.current_thread() is not threading.main_thread():
        yield ending_of_thread.get()
        return

    def remember(signum: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


class Ending:
    """Whether a fit ends before its last epoch, and why.

    interrupted: tells whether Ctrl-C was pressed. watchers: the callbacks, among which may be time limits.
    """

    def __init__(self, interrupted: Callable[[], bool], watchers: Sequence[Callback]) -> None:
        self._interrupted = interrupted
        self._checkpoints = [w for w in watchers if isinstance(w, Checkpoint)]
        self._limits = [w for w in watchers if isinstance(w, TimeLimit)]
        self._reached: TimeLimit | None = None

    def has_come(self) -> bool:
        """Whether the training ends after the current step."""
        if self._limits and self._reached is None:
            writing = max((checkpoint.slowest for checkpoint in self._checkpoints), default=0.0)
            self._reached = next((limit for limit in self._limits if limit.is_over(writing)), None)
        return self._reached is not None or self._interrupted()

    def settle(self, fit: Any) -> None:
        """Do nothing after an epoch: a single process has nobody to agree with (`together.SharedEnding`)."""

    def note(self, history: History, epochs: int) -> None:
        """Say in the history of a fit why it has fewer epochs. Its last checkpoint, which goes on, does not."""
        if len(history.epochs) < epochs and not history.stopped:
            history.interrupted = self._interrupted()
            if self._reached is not None and not (history.interrupted or history.error):
                history.stopped = self._reached.reason
