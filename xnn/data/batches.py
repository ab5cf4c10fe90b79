"""Batches: rows of several arrays, in a fresh order each epoch, gathered when they are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from xnn.backends import Purpose, Stream, backend_of
from xnn.errors import ShapeError
from xnn.options import check_count

__all__ = ["Batches"]


class Batches:
    """`for xb, yb in Batches((x, y), batch_size=32).epoch(0)`: the arrays' rows, batch by batch.

    Epoch e's order is a permutation drawn from (seed, e): the same on every backend. The last batch may
    be smaller; no row is left out. Host arrays are gathered on the host, uint8 as uint8; device arrays
    on their device.
    """

    def __init__(
        self, arrays: tuple[Any, ...], batch_size: int = 32, shuffle: bool = True, seed: int = 0
    ) -> None:
        batch_size = check_count("batch_size", batch_size)
        lengths = {int(a.shape[0]) for a in arrays}
        if len(lengths) != 1:
            raise ShapeError(
                f"the arrays have {' and '.join(str(a.shape[0]) for a in arrays)} rows; they must have equally many"
            )
        self.arrays, self.batch_size, self.shuffle, self.seed = arrays, batch_size, shuffle, seed
        self.rows = lengths.pop()

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """The rows' numbers in this epoch's order."""
        if not self.shuffle:
            return np.arange(self.rows)
        return Stream(self.seed, Purpose.SHUFFLE, 0, epoch).permutation(self.rows)

    def numbers(self, epoch: int) -> Iterator[np.ndarray]:
        """Each batch's row numbers."""
        order = self.order(epoch)
        for start in range(0, self.rows, self.batch_size):
            yield order[start : start + self.batch_size]

    def gather(self, rows: np.ndarray) -> tuple[Any, ...]:
        """These rows of every array, each where its array lives."""
        gathered = []
        for array in self.arrays:
            lib = backend_of(array)
            gathered.append(array[rows] if lib.is_host else lib.xp.take(array, lib.to_device(rows), axis=0))
        return tuple(gathered)

    def epoch(self, epoch: int) -> Iterator[tuple[Any, ...]]:
        """Every batch of one epoch."""
        for rows in self.numbers(epoch):
            yield self.gather(rows)
