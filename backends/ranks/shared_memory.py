"""Sums in memory that all ranks of a training see, where they run on one machine: faster than by MPI's messages.

Each rank has a row of this memory. It adds up its part of all rows, and writes the sum to that part of each row:
before, all ranks have written their rows, and after, each finds the whole sum in its own. Source: the reduce-scatter
and all-gather of R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of collective communication operations in
MPICH", 2005.
"""

from __future__ import annotations

import gc
import mmap
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from xnn.backends.ranks.group import Message, Ranks

__all__ = ["LEAST", "PIECE_BYTES", "SharedMemory", "SharedMessage", "mapped"]

#: Messages of fewer numbers go by MPI.
LEAST = 2**14
#: What lies elsewhere is copied in pieces of so many bytes, which stay in the processor's cache.
PIECE_BYTES = 2**20
_AT_ONCE = 2**18  # bytes of a row that are added up while they are in the cache
_FOLDER = "/dev/shm"
_OPERATIONS = {"sum": np.add, "maximum": np.maximum}


class SharedMemory:
    """Memory that all ranks see, a row for each, and sums of what they have written there.

    rank: the number of this one. rows: the memory, (size, bytes). wait: returns when all ranks have called it.
    """

    def __init__(self, rank: int, rows: np.ndarray, wait: Callable[[], Any]) -> None:
        self.rank, self.rows, self._wait = rank, rows, wait

    def reduce(self, numbers: np.ndarray, kind: str) -> None:
        """See `Ranks.reduce`. The numbers are copied to this rank's row, and back."""
        each = self.rows.shape[1] // numbers.itemsize
        for start in range(0, numbers.size, each):
            piece = numbers[start : start + each]
            rows = self.as_numbers(piece.size, piece.dtype)
            rows[self.rank][...] = piece
            self.reduce_rows(rows, kind)
            piece[...] = rows[self.rank]

    def as_numbers(self, count: int, dtype: Any) -> np.ndarray:
        """The beginning of each row, as (size, count) numbers."""
        return self.rows[:, : count * np.dtype(dtype).itemsize].view(dtype)

    def as_one(self, count: int, dtype: Any) -> np.ndarray:
        """All rows, one after the other, as so many numbers."""
        return self.rows.reshape(-1)[: count * np.dtype(dtype).itemsize].view(dtype)

    def reduce_rows(self, rows: np.ndarray, kind: str) -> None:
        """Write the elementwise sum of all rows, or their maximum, to each row. All ranks call this together.

        Rows are added in the order of ranks, so that the rounding does not depend on which one comes first.
        """
        size, n = rows.shape
        own = slice(n * self.rank // size, n * (self.rank + 1) // size)
        self._wait()
        for part, total in _reduced(rows[:, own], _OPERATIONS[kind]):
            part[...] = total
        self._wait()

    def add_parts(self, rows: np.ndarray, parts: Sequence[slice], first: int) -> np.ndarray:
        """See `Message.total_parts`: only this rank's row changes."""
        self._wait()
        ((_, sums),) = _reduced(rows[:, :first], np.add)
        for own in parts:
            for part, total in _reduced(rows[:, own], np.add):
                part[self.rank] = total
        self._wait()
        return sums


def _reduced(rows: np.ndarray, operation: np.ufunc) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut the rows in parts that fit the cache. Of each, the rows and their sum, or their maximum.

    The sum is good until the next part, which takes its memory.
    """
    step = _AT_ONCE // rows.itemsize
    found = np.empty(min(step, rows.shape[1]), rows.dtype)
    for start in range(0, rows.shape[1], step):
        part = rows[:, start : start + step]
        total = operation(part[0], part[1], out=found[: part.shape[1]])
        for row in part[2:]:
            operation(total, row, out=total)
        yield part, total


class SharedMessage(Message):
    """A Message that lies in such memory, so that nothing is copied."""

    def __init__(self, ranks: Ranks, memory: SharedMemory, count: int, dtype: Any) -> None:
        self._memory, self._rows = memory, memory.as_numbers(count, dtype)
        super().__init__(ranks, self._rows[memory.rank])

    def total(self) -> None:
        self.ranks.messages["sum"] += 1
        self._memory.reduce_rows(self._rows, "sum")

    def total_parts(self, parts: Sequence[slice], first: int) -> np.ndarray:
        self.ranks.messages["sum"] += 1
        return self._memory.add_parts(self._rows, parts, first)

    def part(self, count: int) -> Message:
        if count < LEAST:  # it goes by MPI, as if there had been no longer one
            return super().part(count)
        return SharedMessage(self.ranks, self._memory, count, self.array.dtype)


def mapped(rank: int, size: int, width: int, communicator: Any) -> SharedMemory | None:
    """Make memory with a row of at least so many bytes for each rank, by a file that is removed at once.

    None, on all ranks, if there is no room or no folder. communicator: of mpi4py; all ranks call this together.
    """
    width = -(-width // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = _mapped(rank, size, width, communicator)
    if memory is None:
        gc.collect()  # what fits that have ended had there may still be waiting for this
        memory = _mapped(rank, size, width, communicator)
    if memory is None:
        return None
    return SharedMemory(rank, np.frombuffer(memory, np.uint8).reshape(size, width), communicator.Barrier)


def _mapped(rank: int, size: int, width: int, communicator: Any) -> mmap.mmap | None:
    path = f"{_FOLDER}/xnn-{secrets.token_hex(16)}" if rank == 0 else ""
    try:
        file = _opened(path, size * width) if rank == 0 else None
        shared = communicator.bcast("" if file is None else path)
        if rank and shared:
            file = _opened(shared)
        communicator.Barrier()
    finally:
        if rank == 0:
            with suppress(OSError):
                os.unlink(path)
    memory = None if file is None else _memory_of(file, rank, size, width)
    everywhere = all(communicator.allgather(memory is not None))
    return memory if everywhere else None


def _opened(path: str, length: int | None = None) -> int | None:
    """Open a file; None if that fails. length: make a new file of so many bytes; None (default) opens an old one."""
    try:
        file = os.open(path, os.O_RDWR | (0 if length is None else os.O_CREAT | os.O_EXCL), 0o600)
    except OSError:
        return None
    try:
        if length is not None:
            os.truncate(file, length)
    except OSError:
        os.close(file)
        return None
    return file


def _memory_of(file: int, rank: int, size: int, width: int) -> mmap.mmap | None:
    """The file's memory. This rank reserves the room of its row, near its processor: writing cannot fail later."""
    try:
        os.posix_fallocate(file, rank * width, width)
        return mmap.mmap(file, size * width)
    except (OSError, ValueError):
        return None
    finally:
        os.close(file)
