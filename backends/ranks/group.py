"""Ranks: what the processes of a training can do together, and which rows of a batch belong to which."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from xnn.backends.registry import backend_of
from xnn.backends.row_sources import reads_rows
from xnn.errors import RankError

__all__ = ["Message", "Ranks", "Shard", "Trial", "checked_part", "current_ranks", "use_ranks"]

#: A message of more numbers is sent in pieces of so many: what does not fit the processor's cache goes through the
#: memory that processes share at a third of the speed.
PIECE = 2**20
_PIECE_BYTES = 8 * PIECE  # of what is gathered
#: In place of the size of an object: a rank has no more objects to send, since its program has ended.
_ENDED = -1


class Message:
    """Numbers that ranks add up in every step.

    array: those of this rank, flat.
    """

    def __init__(self, ranks: Ranks, array: np.ndarray) -> None:
        self.ranks, self.array = ranks, array

    def total(self) -> None:
        """Replace the numbers by the sum of those of all ranks."""
        self.ranks.total(self.array)

    def total_parts(self, parts: Sequence[slice], first: int) -> np.ndarray:
        """Add up, and put the sums of these parts into `array`. What the rest of `array` holds afterwards is open.

        Returns the sums of the first numbers.

        parts: what this rank needs; those of different ranks do not overlap. first: how many first numbers all need.
        """
        self.total()
        return self.array[:first]

    def part(self, count: int) -> Message:
        """A Message of its first numbers, in the same memory."""
        return Message(self.ranks, self.array[:count])


class Ranks:
    """The processes that train together. Each makes the same calls in the same order.

    rank: the number of this one, from 0. size: how many there are. on_this_machine: how many of them run here.
    way: what adds up numbers, in words. All ranks ask for it together.
    messages: how many reductions ("sum", "maximum") and gatherings ("gather") there were; one in pieces counts once.
    """

    way: str

    def __init__(self, rank: int, size: int, on_this_machine: int) -> None:
        self.rank, self.size, self.on_this_machine = rank, size, on_this_machine
        self.messages: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<rank {self.rank} of {self.size}>"

    def reduce(self, numbers: np.ndarray, kind: str) -> None:
        """Replace a flat array by the sum or the maximum of those of all ranks. kind: "sum" or "maximum"."""
        raise NotImplementedError

    def collect(self, numbers: np.ndarray) -> np.ndarray:
        """The flat arrays of all ranks, in their order, as (size, n)."""
        raise NotImplementedError

    def message(self, count: int, dtype: Any) -> Message:
        """Make a Message of so many zeros. All ranks call this together."""
        array = backend_of(np.empty(0)).buffer((count,), dtype)
        array[...] = 0
        return Message(self, array)

    def memory(self, count: int, dtype: Any) -> np.ndarray | None:
        """Make so many zeros that all ranks see and may change. All ranks call this together.

        None, on all ranks, if they do not share a machine, or for fewer numbers than pay.
        """
        return None

    def wait(self) -> None:
        """Return when all ranks have called it."""
        raise NotImplementedError

    def total(self, numbers: np.ndarray) -> None:
        """Replace a contiguous array by the elementwise sum of those of all ranks."""
        self._in_pieces(numbers, "sum")

    def maximum(self, numbers: np.ndarray) -> None:
        """Replace a contiguous array by the elementwise maximum of those of all ranks."""
        self._in_pieces(numbers, "maximum")

    def _in_pieces(self, numbers: np.ndarray, kind: str) -> None:
        flat = numbers.reshape(-1)
        if not np.shares_memory(flat, numbers) and flat.size:
            raise ValueError("ranks reduce contiguous arrays in place")
        self.messages[kind] += 1
        for start in range(0, flat.size, PIECE):
            self.reduce(flat[start : start + PIECE], kind)

    def gather(self, array: np.ndarray) -> np.ndarray:
        """The arrays of all ranks, which have one shape and dtype, as (size, *shape)."""
        self.messages["gather"] += 1
        own = np.ascontiguousarray(array)
        content = own.reshape(-1).view(np.uint8)
        if content.size <= _PIECE_BYTES:
            found = self.collect(content)
        else:
            found = np.empty((self.size, content.size), np.uint8)
            for start in range(0, content.size, _PIECE_BYTES):
                piece = slice(start, start + _PIECE_BYTES)
                found[:, piece] = self.collect(content[piece])
        return found.reshape(-1).view(own.dtype).reshape(self.size, *np.shape(array))

    def gather_rows(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The rows (n, ...) of all ranks in their order, on every rank.

        parts: this rank's, one array after the other; none if it has no rows. Of all arrays only axis 0 differs.
        """
        own = np.concatenate(parts) if len(parts) else None
        about = self.gather_objects(None if own is None else (own.dtype.str, own.shape))
        dtype, shape = next(one for one in about if one is not None)
        counts = [0 if one is None else one[1][0] for one in about]
        message = np.zeros((max(counts), *shape[1:]), dtype)
        if own is not None:
            message[: len(own)] = own
        return np.concatenate([rows[:n] for rows, n in zip(self.gather(message), counts, strict=True)])

    def gather_objects(self, thing: Any) -> list[Any]:
        """A Python object of each rank, in their order. Raises RankError if a rank has ended (`say_end`)."""
        content = np.frombuffer(pickle.dumps(thing), np.uint8)
        sizes = self.gather(np.array([content.size])).reshape(-1)
        for rank in np.flatnonzero(sizes == _ENDED):
            raise RankError(
                f"rank {rank} of {self.size} has ended its program, while rank {self.rank} calls fit or evaluate: "
                "every process must call them equally often, not only `if trainer.rank == 0`"
            )
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: content.size] = content
        found = self.gather(padded)
        return [pickle.loads(row[:n].tobytes()) for row, n in zip(found, sizes, strict=True)]

    def say_end(self) -> None:
        """Tell the others that this rank's program has ended. It returns when all have ended, or want to go on.

        The message is that with which `gather_objects` begins, so that fit and evaluate of others raise an error.
        """
        self.gather(np.array([_ENDED]))

    def of_first(self, thing: Any) -> Any:
        """The Python object that rank 0 has."""
        return self.gather_objects(thing if self.rank == 0 else None)[0]

    def share(self, rows: int) -> slice:
        """Which rows of a batch of so many are this rank's: those from n r // N to n (r + 1) // N."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)


class Shard:
    """The communicator of a rank while it computes its rows of a batch. See `backends/communicator.py`.

    rows: of the whole batch. own: which of them are this rank's.
    """

    def __init__(self, ranks: Ranks, rows: int) -> None:
        self.ranks, self.rows, self.own = ranks, rows, ranks.share(rows)

    @property
    def here(self) -> int:
        """The number of this rank's rows."""
        return int(self.own.stop - self.own.start)

    def maximum(self, x: Any) -> Any:
        return backend_of(x).exchanged(x, self.ranks.maximum)

    def total(self, x: Any) -> Any:
        return backend_of(x).exchanged(x, self.ranks.total)

    def count(self, rows: int) -> int:
        """The rows of the whole batch that correspond to so many of this rank's; no message is sent.

        Raises ValueError if they are not some for each row of the batch, as the windows of images are.
        """
        each, rest = divmod(rows, self.here)
        if rest:
            raise ValueError(f"{rows} rows of a sum over the batch, of which this rank has {self.here} rows")
        return each * self.rows


class Trial(Shard):
    """A Shard that sends no messages, for the first run through a model, whose numbers are not used."""

    def maximum(self, x: Any) -> Any:
        return x

    def total(self, x: Any) -> Any:
        return x


_current: ContextVar[Ranks | None] = ContextVar("xnn_ranks", default=None)


def current_ranks() -> Ranks | None:
    """The ranks with which this thread trains together; None if it trains alone."""
    return _current.get()


def checked_part(array: Any) -> slice:
    """Which rows of an array this rank checks before all use it: a share of those that are read from files, else all.

    A rank that finds a fault ends all.
    """
    ranks = current_ranks()
    return slice(None) if ranks is None or not reads_rows(array) else ranks.share(len(array))


@contextmanager
def use_ranks(ranks: Ranks | None) -> Iterator[None]:
    """Train together with these ranks inside a `with` block; None trains alone."""
    token = _current.set(ranks)
    try:
        yield
    finally:
        _current.reset(token)
