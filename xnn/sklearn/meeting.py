"""Where the fits of many threads wait for one another, so that alike ones are trained as one network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from xnn.sklearn.stack import OwnFit, train_stacked
from xnn.sklearn.together import Workplace, kind_of
from xnn.training import Trainer
from xnn.training.interrupt import ending_of_thread

__all__ = ["STACKED", "Meeting"]

#: The backends whose networks are trained together: a small network leaves most of a GPU idle.
STACKED = ("cupy",)
#: How many threads there are at most: so many fits are prepared at a time.
_MOST_THREADS = 512
#: Seconds: after these a thread looks whether it is to end; and for so long it waits for fits that do not come.
_LOOK, _PATIENCE = 0.5, 3.0


class Meeting(Workplace):
    """The place of all threads whose fits a GPU computes. One thread goes on at a time.

    A fit that is prepared waits here. When the fits of all threads do, one thread trains them, alike ones together.
    Then each thread goes on with its own fit.

    fits: how many there will be. threads: how many there must be.
    """

    def __init__(self, fits: int) -> None:
        super().__init__()
        self.threads = min(max(fits, 1), _MOST_THREADS)
        self._left, self._turn = fits, threading.Lock()
        self._waiting = list[tuple[Any, OwnFit, _Outcome]]()
        self._holder: int | None = None  # the thread whose turn it is
        self._last = time.monotonic()  # when a turn ended

    @contextmanager
    def attended(self) -> Iterator[None]:
        """One of the fits, with all that is done before and after it."""
        self._take_turn()
        try:
            yield
        finally:
            if self._holder == threading.get_ident():  # not after Ctrl-C
                self._left -= 1
                self._train_if_all_wait()
                self._give_turn()

    def _take_turn(self) -> None:
        while not self._turn.acquire(timeout=_LOOK):
            ending_of_thread.get()()
        self._holder = threading.get_ident()

    def _give_turn(self) -> None:
        self._holder, self._last = None, time.monotonic()
        self._turn.release()

    def fit(
        self,
        e: Any,
        trainer: Trainer,
        data: tuple[Any, Any],
        epochs: int,
        batch_size: int,
        orders: Callable[[], Callable[[int], Any] | bool],
        watcher: Any,
    ) -> None:
        """Train as `trainer.fit` does, together with the alike fits of other threads if there are some."""
        kind = kind_of(e, trainer, *data, batch_size, STACKED)
        if kind is not None:
            trainer.loss.check(data[1], (e.n_outputs_,))
            own = OwnFit(e, trainer, data, epochs, batch_size, orders, watcher)
            self._wait((kind, own, _Outcome()))
            if own.trained:
                return
        super().fit(e, trainer, data, epochs, batch_size, orders, watcher)

    def _wait(self, entry: tuple[Any, OwnFit, _Outcome]) -> None:
        """Let others go on until this fit is trained, or is to be trained alone."""
        _, own, outcome = entry
        own.trainer.model.backend.synchronize()  # another thread will read its arrays
        self._waiting.append(entry)
        self._train_if_all_wait()
        self._give_turn()
        while not outcome.known.wait(_LOOK):
            ending_of_thread.get()()
            if time.monotonic() - self._last > _PATIENCE and self._turn.acquire(blocking=False):
                if not outcome.known.is_set():
                    self._train_all()  # fewer fits came than were announced
                self._turn.release()
        self._take_turn()
        if outcome.error is not None:
            raise outcome.error

    def _train_if_all_wait(self) -> None:
        if len(self._waiting) >= min(self.threads, self._left):
            self._train_all()

    def _train_all(self) -> None:
        """Train the fits that wait, each kind together."""
        waiting, self._waiting = self._waiting, []
        kinds = dict[Any, list[OwnFit]]()
        for kind, own, _ in waiting:
            kinds.setdefault(kind, []).append(own)
        error: BaseException | None = None
        try:
            for fits in kinds.values():
                train_stacked(fits)
        except BaseException as raised:  # each thread raises it
            error = raised
        for _, _, outcome in waiting:
            outcome.error = error
            outcome.known.set()


class _Outcome:
    """How a fit that waits has ended. known: is set when it has. error: what was raised, or None."""

    error: BaseException | None = None

    def __init__(self) -> None:
        self.known = threading.Event()
