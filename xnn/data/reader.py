"""Reads the rows of the coming batches into memory while steps are computed."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
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

    `numbers` gives the row numbers of each batch, and `places` where the rows of that batch lie in the buffers, one
    for each array. A buffer has two parts, which are filled in turn, and room for a batch besides: `places` reads
    the rows of any other batch there, such as one that is taken again.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        size = min(batches.batch_size, batches.rows)
        each = size * sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in batches.arrays)
        #: How many batches are read together.
        self.together = min(len(batches), max(1, _BYTES // max(1, each)))
        if batches.window is not None:  # a chunk lies in two windows at most
            self.together = min(self.together, max(1, batches.window // size))
        self.capacity = self.together * size
        rows = _PARTS * self.capacity + size
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
                        start += len(rows)
        finally:
            self._current = None, 0

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where these rows lie in the buffers: those that `numbers` gave last, or others, which are read now."""
        known, start = self._current
        if rows is not known:
            start = _PARTS * self.capacity
            self._read(rows, start)
        return self._all[start : start + len(rows)]

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
        self._read(np.concatenate(chunk), part * self.capacity)
        return part * self.capacity, chunk

    def _read(self, rows: np.ndarray, start: int) -> None:
        for array, buffer in zip(self.batches.arrays, self.buffers, strict=True):
            read_rows(array, rows, buffer[start : start + len(rows)])


def read_batches(batches: Batches, epoch: int) -> Generator[tuple[Any, ...], None, None]:
    """The batches of an epoch, as `Batches.epoch` gives them; those that come from files are read ahead."""
    given = batches.epoch(epoch)
    return read_ahead(given) if any(map(reads_rows, batches.arrays)) and not batches.window else given
