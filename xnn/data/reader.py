"""Reads the rows of the coming batches into memory while steps are computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np

from xnn.backends.row_sources import read_rows, reads_rows
from xnn.data.ahead import read_ahead
from xnn.data.batches import Batches, Rows

__all__ = ["Reader", "read_batches"]

_BYTES = 2**22  # that are read together, about
_PARTS = 2  # one that steps read, and one that is being filled


class Reader:
    """The rows of some coming batches, read by a thread ahead of the steps. They lie in `buffers`.

    batches: the data, of which at least one array is read from files; or those of a stream, whose windows a thread
        reads already.
    own: which rows of a batch of so many this process computes; the others are not read, but those of a stream are.
        Default None: all.

    `numbers` gives the row numbers of each batch, and `places` where the process's own rows of that batch lie in the
    buffers, one for each array. A buffer has two parts, which are filled in turn, and room for a batch besides:
    `places` reads the rows of any other batch there, such as one that is taken again.
    """

    def __init__(self, batches: Batches, own: Callable[[int], slice] | None = None) -> None:
        self.batches = batches
        self._own = own or (lambda rows: slice(0, rows))
        self._needed = self._own if batches.window is None else lambda rows: slice(0, rows)
        full = min(batches.batch_size, batches.rows)
        size = max(len(range(rows)[self._needed(rows)]) for rows in (full, batches.rows % batches.batch_size))
        each = size * sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in batches.arrays)
        #: How many batches are read together.
        self.together = min(len(batches), max(1, _BYTES // max(1, each)))
        if batches.window is not None:  # a chunk lies in two windows at most
            self.together = min(self.together, max(1, batches.window // size))
        self.capacity = self.together * size
        rows = _PARTS * self.capacity + full  # a batch by hand of fewer rows than ranks is read whole
        self.buffers = [np.empty((rows, *a.shape[1:]), a.dtype) for a in batches.arrays]
        self._all = np.arange(rows)
        self._current: tuple[np.ndarray | None, int] = None, 0

    def numbers(self, epoch: int, done: int = 0) -> Rows:
        """The row numbers of each batch of an epoch. Close the iterator if it is not read to its end.

        done: how many batches at the beginning are left out, and not read. Default 0.
        """
        try:
            given = self._chunks(epoch, done)  # of a stream, whose windows are read ahead already
            with closing(given if self.batches.window else read_ahead(given)) as chunks:
                for start, chunk in chunks:
                    for rows in chunk:
                        self._current = rows, start
                        yield rows
                        start += len(rows[self._needed(len(rows))])
        finally:
            self._current = None, 0

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where this process's rows of a batch lie in the buffers.

        rows: the numbers of all rows of the batch that `numbers` gave last, or of another, whose rows are read now.
        """
        known, start = self._current
        needed = rows[self._needed(len(rows))]
        if rows is not known:
            start = _PARTS * self.capacity
            self._read(needed, start)
        places = self._all[start : start + len(needed)]
        return places if len(needed) < len(rows) else places[self._own(len(rows))]

    def _chunks(self, epoch: int, done: int) -> Generator[tuple[int, list[np.ndarray]], None, None]:
        """Reads the batches of an epoch, some at a time; gives the place of the first row, and their row numbers."""
        chunk, part = list[np.ndarray](), 0
        for rows in self.batches.numbers(epoch, done):
            chunk.append(rows)
            if len(chunk) == self.together:
                yield self._filled(chunk, part)
                chunk, part = [], (part + 1) % _PARTS
        if chunk:
            yield self._filled(chunk, part)

    def _filled(self, chunk: list[np.ndarray], part: int) -> tuple[int, list[np.ndarray]]:
        self._read(np.concatenate([rows[self._needed(len(rows))] for rows in chunk]), part * self.capacity)
        return part * self.capacity, chunk

    def _read(self, rows: np.ndarray, start: int) -> None:
        for array, buffer in zip(self.batches.arrays, self.buffers, strict=True):
            read_rows(array, rows, buffer[start : start + len(rows)])


def read_batches(
    batches: Batches, epoch: int, first: int = 0, step: int = 1
) -> Generator[tuple[Any, ...], None, None]:
    """The batches of an epoch, as `Batches.epoch` gives them; those that come from files are read ahead.

    first, step: which of them are wanted; the others are not read, but those of a stream are. Default: all.
    """
    given = _every(batches, epoch, first, step)
    return read_ahead(given) if any(map(reads_rows, batches.arrays)) and not batches.window else given


def _every(batches: Batches, epoch: int, first: int, step: int) -> Generator[tuple[Any, ...], None, None]:
    with closing(batches):
        if batches.window is not None:
            yield from islice(batches.epoch(epoch), first, None, step)
        else:
            for rows in islice(batches.numbers(epoch), first, None, step):
                yield batches.gather(rows)
