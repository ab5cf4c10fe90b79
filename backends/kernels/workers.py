"""Threads that share the parts of a batch: the caller and a few Python threads, in compiled code without the GIL.

Each thread takes the next part that nobody has taken, until there is none. Which thread computes a part changes no
bit: each has results of its own. Parts of images do not depend on the number of threads; `rows.py` says what does.

A thread that wakes up late finds nothing left to do, and nobody waits for it. A process made by `fork` makes threads
of its own when it needs them. If two Python threads train at once, one of them has the helpers and the other works
alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["share"]

#: Runs parts until none is left, and returns how many it ran.
Work = Callable[[], int]
#: How many parts each thread has run, or its error; those that ran none say nothing.
Results = SimpleQueue[int | BaseException]


class _Helpers:
    """Waiting threads, each with an inbox of what to run, and where its result goes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inboxes: list[SimpleQueue[tuple[Work, Results]]] = []

    def grow(self, count: int) -> None:
        while len(self.inboxes) < count:
            inbox: SimpleQueue[tuple[Work, Results]] = SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), name="xnn", daemon=True).start()
            self.inboxes.append(inbox)

    def _serve(self, inbox: SimpleQueue[tuple[Work, Results]]) -> None:
        while True:
            work, results = inbox.get()
            done: int | BaseException
            try:
                done = work()
            except BaseException as error:
                done = error
            if done:
                results.put(done)
            del work, results


_helpers = _Helpers()


def _forget() -> None:
    global _helpers
    _helpers = _Helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def share(work: Work, parts: int, threads: int) -> None:
    """Run `work` here and in helper threads, until all parts are done.

    An error in a part is raised. That of a thread which took no part is nobody's: the others have done them all.
    """
    helpers, count = _helpers, min(threads, parts) - 1
    if count < 1 or not helpers.lock.acquire(blocking=False):
        work()
        return
    try:
        helpers.grow(count)
        results: Results = SimpleQueue()  # of this call alone: a thread that is late may still answer
        for inbox in helpers.inboxes[:count]:
            inbox.put((work, results))
        left = parts - work()
        while left:
            done = results.get()
            if isinstance(done, BaseException):
                raise done
            left -= done
    except BaseException:  # Ctrl-C: helpers may still be at work, and nobody would take their results
        _forget()
        raise
    finally:
        helpers.lock.release()
