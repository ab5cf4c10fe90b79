"""Sums in memory that all ranks of a training see, where they run on one machine: faster than by MPI's messages.

Each rank adds up its part of the numbers. Before, it has brought the other parts of its own; after, it takes the
other parts of the sum:

    bring    the parts that others add up, to this rank's row of the memory
    add      this rank's part, over all ranks in their order
    take     the parts of the result that others have added up

Between two of these turns the ranks wait for one another. Source: the reduce-scatter and all-gather of R. Thakur,
R. Rabenseifner, W. Gropp, "Optimization of collective communication operations in MPICH", 2005.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["LEAST", "SharedMemory", "mapped"]

#: Messages of fewer numbers go by MPI.
LEAST = 2**14
#: Numbers go in pieces of so many bytes, which stay in the processor's cache.
PIECE = 2**20
_FOLDER = "/dev/shm"
_OPERATIONS = {"sum": np.add, "maximum": np.maximum}


class SharedMemory:
    """Adds up numbers of several ranks: `reduce`.

    memory: (size + 1, PIECE) bytes that all ranks see. wait: returns when all ranks have called it.
    """

    def __init__(self, rank: int, size: int, memory: np.ndarray, wait: Callable[[], Any]) -> None:
        self.rank, self.size, self._memory, self._wait = rank, size, memory, wait

    def reduce(self, numbers: np.ndarray, kind: str) -> None:
        """See `Ranks.reduce`."""
        each = PIECE // numbers.itemsize
        for start in range(0, numbers.size, each):
            self._reduce(numbers[start : start + each], _OPERATIONS[kind])

    def _reduce(self, own: np.ndarray, operation: np.ufunc) -> None:
        n, rank, size = own.size, self.rank, self.size
        *brought, result = self._memory[:, : own.nbytes].view(own.dtype)
        first, last = n * rank // size, n * (rank + 1) // size
        brought[rank][:first], brought[rank][last:] = own[:first], own[last:]
        self._wait()
        parts = [(own if r == rank else row)[first:last] for r, row in enumerate(brought)]
        added = result[first:last]
        operation(parts[0], parts[1], out=added)
        for part in parts[2:]:
            operation(added, part, out=added)
        self._wait()
        own[...] = result


def mapped(rank: int, size: int, communicator: Any) -> SharedMemory | None:
    """Make the memory, by a file that is removed at once; None, on all ranks, if there is no room or no folder.

    communicator: of mpi4py; all ranks call this together.
    """
    name, length = f"{_FOLDER}/xnn-{secrets.token_hex(16)}" if rank == 0 else "", (size + 1) * PIECE
    memory = _opened(name, length, True) if rank == 0 else None
    name = communicator.bcast(name if memory is not None else "")
    if rank and name:
        memory = _opened(name, length, False)
    everywhere = all(communicator.allgather(memory is not None))
    if rank == 0 and name:
        os.unlink(name)
    if memory is None or not everywhere:
        return None
    rows = np.frombuffer(memory, np.uint8).reshape(size + 1, PIECE)
    return SharedMemory(rank, size, rows, communicator.Barrier)


def _opened(name: str, length: int, makes: bool) -> mmap.mmap | None:
    """A file's memory. makes: whether to make the file; its room is reserved, so that writing cannot fail later."""
    try:
        file = os.open(name, os.O_RDWR | (os.O_CREAT | os.O_EXCL if makes else 0), 0o600)
    except OSError:
        return None
    try:
        if makes:
            os.posix_fallocate(file, 0, length)
        return mmap.mmap(file, length)
    except (OSError, ValueError):
        if makes:
            os.unlink(name)
        return None
    finally:
        os.close(file)
