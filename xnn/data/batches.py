"""Batches: rows of several arrays, in a new order each epoch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, TypeAlias

import numpy as np

from xnn.backends import Purpose, Stream, backend_of
from xnn.backends.host_arrays import as_host_array
from xnn.backends.row_sources import check_file, is_on_host
from xnn.data.orders import permutation_pieces, range_pieces, window_pieces
from xnn.data.stream import StreamRows
from xnn.errors import OptionError, ShapeError
from xnn.options import check_count

__all__ = ["Batches", "Rows"]

#: The row numbers of one batch after the other.
Rows: TypeAlias = Generator[np.ndarray, None, None]


class Batches:
    """The rows of several arrays, batch by batch.

    arrays: arrays of any backend with equally many rows, such as (x, y). A batch has the same dtypes, and is on the
        host or the device as its arrays are.
    batch_size: the number of rows of a batch; the last one may be smaller. Default 32.
    shuffle: whether each epoch has an order of its own. Default True. Or a function that gives the order of an epoch:
        from the epoch's number, counted from 0, it returns the numbers of all rows as an integer array (rows,).
    seed: determines the orders, the same on every backend. Default 0.

    Raises ShapeError for arrays of different lengths, OptionError for another batch_size or seed.

        >>> import numpy as np
        >>> from xnn import data
        >>> x, y = np.arange(10.0).reshape(5, 2), np.arange(5)
        >>> batches = data.Batches((x, y), batch_size=2, shuffle=False)
        >>> for x_batch, y_batch in batches.epoch(0):
        ...     print(x_batch.shape, y_batch)
        (2, 2) [0 1]
        (2, 2) [2 3]
        (1, 2) [4]
        >>> batches
        Batches(5 rows, batch_size=2, shuffle=False, seed=0)
    """

    def __init__(
        self,
        arrays: tuple[Any, ...],
        batch_size: int = 32,
        shuffle: bool | Callable[[int], Any] = True,
        seed: int = 0,
    ) -> None:
        batch_size = check_count("batch_size", batch_size)
        Stream(seed, Purpose.SHUFFLE)  # raises for another seed
        arrays = tuple(
            as_host_array(array, f"array {number}", by_rows=True) for number, array in enumerate(arrays)
        )
        lengths = {int(a.shape[0]) for a in arrays if a.ndim}
        if len(lengths) != 1 or any(not a.ndim for a in arrays):
            rows = " and ".join(str(a.shape[0] if a.ndim else "no") for a in arrays)
            raise ShapeError(f"got arrays of {rows} rows; they must have equally many")
        self.arrays, self.batch_size, self.shuffle, self.seed = arrays, batch_size, shuffle, seed
        self.rows = lengths.pop()
        self._windows = next((a.windows for a in arrays if isinstance(a, StreamRows)), None)
        if callable(shuffle) and self._windows is not None:
            raise OptionError(
                "a stream is shuffled in its windows: give shuffle=True or False, not a function"
            )

    @property
    def window(self) -> int | None:
        """How many samples are shuffled together, if the arrays are those of a stream."""
        return None if self._windows is None else self._windows.stream.window

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __repr__(self) -> str:
        options = f"batch_size={self.batch_size}, shuffle={self.shuffle}, seed={self.seed}"
        return f"Batches({self.rows} rows, {options})"

    def order(self, epoch: int) -> np.ndarray:
        """The numbers of all rows, int64 (rows,), in the order of this epoch."""
        return np.concatenate(list(self._pieces(epoch)))

    def numbers(self, epoch: int, done: int = 0) -> Rows:
        """The row numbers of each batch of an epoch, int64. The order of many rows is made piece by piece.

        done: how many batches at the beginning are left out. Default 0.
        """
        if self._windows is not None:
            self._windows.begin(epoch)
        left, out = np.empty(0, np.int64), done * self.batch_size
        for piece in self._pieces(epoch):
            order = np.concatenate([left, piece]) if left.size else piece
            order, out = order[out:], max(0, out - len(order))
            whole = len(order) - len(order) % self.batch_size
            for start in range(0, whole, self.batch_size):
                yield order[start : start + self.batch_size]
            left = order[whole:]
        if left.size:
            yield left

    def _pieces(self, epoch: int) -> Iterator[np.ndarray]:
        """The pieces of `order`, one after the other."""
        if not self.shuffle:
            return range_pieces(self.rows)
        if callable(self.shuffle):
            return iter([_checked(self.shuffle(epoch), self.rows)])
        if self._windows is not None:
            return window_pieces(self.rows, self._windows.stream.window, self.seed, epoch)
        return permutation_pieces(Stream(self.seed, Purpose.SHUFFLE, 0, epoch), self.rows)

    def sample(self, size: int) -> tuple[Any, ...]:
        """The first rows of every array, to try out a batch of this size. Raises OptionError for a small window."""
        if self._windows is None:
            return self.gather(np.arange(size))
        if size > self._windows.stream.window:
            raise OptionError(
                f"a batch of {size} is larger than the window of {self._windows.stream!r}: give a larger window"
            )
        return tuple(array[:size] for array in self._windows.first)

    def gather(self, rows: np.ndarray) -> tuple[Any, ...]:
        """These rows of every array, on the host or the device as the array is."""
        gathered = []
        for array in self.arrays:
            if is_on_host(array):
                check_file(array)
                gathered.append(array[rows])
            else:
                lib = backend_of(array)
                gathered.append(
                    array[rows] if lib.is_host else lib.xp.take(array, lib.to_device(rows), axis=0)
                )
        return tuple(gathered)

    def epoch(self, epoch: int) -> Generator[tuple[Any, ...], None, None]:
        """The batches of an epoch, counted from 0; each is a tuple of arrays."""
        with closing(self):
            for rows in self.numbers(epoch):
                yield self.gather(rows)

    def close(self) -> None:
        """End the thread that reads the windows of a stream, after an epoch or in the middle of one."""
        if self._windows is not None:
            self._windows.end()


def _checked(order: Any, rows: int) -> np.ndarray:
    """The order that a function gave, int64. Raises OptionError unless it has each row's number once."""
    found = np.asarray(order)
    fits = found.shape == (rows,) and found.dtype.kind in "iu" and found.min() >= 0 and found.max() < rows
    if not fits or (np.bincount(found, minlength=rows) != 1).any():
        raise OptionError(
            f"the function `shuffle` returned {found.dtype}{list(found.shape)}: it must return each row number "
            f"from 0 to {rows - 1} once, as numpy.random.default_rng(epoch).permutation({rows}) does"
        )
    return found.astype(np.int64)
