"""Ranks that are threads of one process: what training by several processes does can be tried without MPI."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import numpy as np

from xnn.backends.ranks.group import Message, Ranks, use_ranks
from xnn.backends.ranks.shared_memory import SharedMemory, SharedMessage

__all__ = ["ThreadRanks", "in_threads"]

#: For how many seconds a rank waits for the others.
_PATIENCE = 60.0


class _Meeting:
    """What the ranks of one group bring to a message. The last one to come computes the result."""

    def __init__(self, size: int) -> None:
        self.brought: list[Any] = [None] * size
        self.result: Any = None
        self.barrier = threading.Barrier(size, action=self._combine, timeout=_PATIENCE)

    def _combine(self) -> None:
        kinds = {(kind, x.shape, x.dtype.str) for kind, x in self.brought}
        if len(kinds) != 1:
            raise RuntimeError(f"the ranks do not send the same message: {sorted(kinds)}")
        (kind, *_), parts = kinds.pop(), [x for _, x in self.brought]
        if kind == "gather":
            self.result = np.stack(parts)
        elif kind == "memory":
            self.result = np.zeros((len(parts), int(parts[0])), np.uint8)
        else:
            self.result = {"sum": np.add, "maximum": np.maximum}[kind].reduce(np.stack(parts))


class ThreadRanks(Ranks):
    """A rank that is a thread. meeting: where it meets the others."""

    way = "shared memory"

    def __init__(self, meeting: _Meeting, rank: int, size: int) -> None:
        super().__init__(rank, size, size)
        self._meeting = meeting

    def _meet(self, kind: str, numbers: np.ndarray) -> np.ndarray:
        meeting = self._meeting
        meeting.brought[self.rank] = kind, numbers
        meeting.barrier.wait()
        result: np.ndarray = meeting.result
        meeting.barrier.wait()  # nobody brings the next message before all have this result
        return result

    def reduce(self, numbers: np.ndarray, kind: str) -> None:
        numbers[...] = self._meet(kind, numbers.copy())

    def collect(self, numbers: np.ndarray) -> np.ndarray:
        return self._meet("gather", numbers).copy()

    def memory(self, count: int, dtype: Any) -> np.ndarray | None:
        found: np.ndarray = self._meet("memory", np.array(count * np.dtype(dtype).itemsize))[0].view(dtype)
        return found

    def wait(self) -> None:
        self._meet("gather", np.zeros(1))

    def message(self, count: int, dtype: Any) -> Message:
        rows = self._meet("memory", np.array(count * np.dtype(dtype).itemsize))
        memory = SharedMemory(self.rank, rows, self._meeting.barrier.wait)
        return SharedMessage(self, memory, count, dtype)


def in_threads(size: int, work: Callable[[ThreadRanks], Any]) -> list[Any]:
    """Run work(rank) by so many ranks, each in a thread, and return their results in order.

    If one raises an exception, the others end as well, and the first exception is raised here.

    >>> import numpy as np
    >>> def work(ranks):
    ...     numbers = np.array([1.0, ranks.rank])
    ...     ranks.total(numbers)
    ...     return numbers.tolist()
    >>> in_threads(3, work)
    [[3.0, 3.0], [3.0, 3.0], [3.0, 3.0]]
    """
    meeting, results, errors = _Meeting(size), [None] * size, list[BaseException]()

    def run(rank: int) -> None:
        member = ThreadRanks(meeting, rank, size)
        try:
            with use_ranks(member):
                results[rank] = work(member)
        except BaseException as error:
            if not isinstance(error, threading.BrokenBarrierError):
                errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=copy_context().run, args=(run, rank)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
