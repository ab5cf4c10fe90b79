"""Runs an iterator in a thread of its own, one item ahead of the code that uses its items."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

from xnn.files import notice

__all__ = ["read_ahead"]

T = TypeVar("T")

_END = object()
#: How long the end of a fit waits for a read that does not return, in seconds.
_PATIENCE = 5.0


def read_ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The items of an iterator, which runs in a thread of its own: the next item is made while one is used.

    No more than one item is made ahead. An error of the iterator is raised by `next`, in place of an item. The thread
    ends when this iterator ends or is closed: close it where reading may stop early. The given iterator runs with the
    numerics and the backend that were chosen where the first item was asked for.

    A read that does not return, as of a disk that does not answer, cannot be ended. Closing waits five seconds; then
    a line says so, and the thread ends with the read or with the program.

        >>> from xnn.data.ahead import read_ahead
        >>> list(read_ahead(iter([1, 2, 3])))
        [1, 2, 3]
    """
    made: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    wanted, ended = threading.Semaphore(1), threading.Event()

    def run() -> None:
        try:
            while True:
                wanted.acquire()
                if ended.is_set():
                    return
                item = next(items, _END)
                made.put((item, None))
                if item is _END:
                    return
        except BaseException as error:
            made.put((_END, error))
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
            wanted.release()
            yield item
    finally:
        ended.set()
        wanted.release()
        thread.join(_PATIENCE)
        if thread.is_alive():
            notice(f"xnn: a read of data has not returned for {_PATIENCE:g} s: its thread is left to itself")
