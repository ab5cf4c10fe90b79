"""Runs an iterator in a thread of its own, a little ahead of who reads it."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

__all__ = ["read_ahead"]

T = TypeVar("T")

_END = object()
#: How long the end of a fit waits for a read that does not return, in seconds.
_PATIENCE = 5.0


def read_ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The items of an iterator, which runs in a thread of its own: the next item is made while one is used.

    When an item is yielded, the next one may be ready, and the one after it begun. An error of the iterator is raised
    here, in its place. The thread ends when this iterator ends or is closed; who may stop early must close it. The
    iterator runs with the numerics and the backend of who reads it.

        >>> from xnn.data.ahead import read_ahead
        >>> list(read_ahead(iter([1, 2, 3])))
        [1, 2, 3]
    """
    made: queue.Queue[Any] = queue.Queue(maxsize=1)
    ended = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> bool:
        while not ended.is_set():
            try:
                made.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for item in items:
                if not put(item):
                    break
            else:
                put(_END)
        except BaseException as error:
            put(_END, error)
        finally:
            if hasattr(items, "close"):
                items.close()

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name="xnn reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        ended.set()
        thread.join(_PATIENCE)
