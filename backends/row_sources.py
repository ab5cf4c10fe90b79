"""Arrays whose rows are read where they are needed, and which are never in memory as a whole.

A NumPy memory map is one already, and stays a NumPy array. A `RowSource` is for rows that lie in several files, for a
selection of rows, and for rows that are converted when they are read.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from xnn.errors import DataError, ShapeError

__all__ = [
    "Converted",
    "Joined",
    "RowSource",
    "Selected",
    "check_file",
    "first_not_finite",
    "is_mapped",
    "is_on_host",
    "read_rows",
    "reads_rows",
    "row_blocks",
    "row_range",
    "take_rows",
]

_BLOCK = 2**19  # numbers in a block of rows: about as much as a processor's cache holds


class RowSource:
    """An array of the host whose rows are read on demand; the base class.

    shape: of the whole array, (n, ...). dtype: of the rows.

    `source[rows]`, with an array of row numbers, a slice or a number, reads these rows as a NumPy array.
    `numpy.asarray(source)` reads all of them into memory.
    """

    #: Whether rows can only be read in the order of `Batches.numbers`, and not twice.
    sequential = False

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = tuple(int(extent) for extent in shape), np.dtype(dtype)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers, which lie in 0 .. n - 1."""
        raise NotImplementedError

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Write the rows of these numbers into `out`."""
        out[...] = self.take(rows)

    def part(self, start: int, stop: int) -> np.ndarray:
        """The rows from `start` up to `stop`, without `stop`."""
        return self.take(np.arange(start, stop))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return int(self.size * self.dtype.itemsize)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, tuple) and len(key) == 2 and key[1] is Ellipsis:
            key = key[0]
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return (
                self.part(start, max(start, stop)) if step == 1 else self.take(np.arange(start, stop, step))
            )
        rows = np.asarray(None if isinstance(key, tuple) else key)
        if rows.dtype == bool and rows.shape == self.shape[:1]:
            rows = np.flatnonzero(rows)
        if rows.ndim > 1 or (rows.dtype.kind not in "iu" and rows.size):  # an empty list is float64
            raise IndexError(
                "of an array that is read from files only rows can be chosen: x[rows], where rows is a number, a "
                f"slice, a list of numbers, or a bool for each of the {len(self)} rows"
            )
        if rows.size and not (-len(self) <= rows.min() and rows.max() < len(self)):
            raise IndexError(
                f"rows {rows.min()} to {rows.max()} were asked for, of an array of {len(self)} rows: they are "
                "numbered from 0"
            )
        rows = np.where(rows < 0, rows + len(self), rows).astype(np.int64)
        return self.take(rows) if rows.ndim else self.take(rows[None])[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.part(0, len(self)), dtype)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.shape} {self.dtype}>"


class Joined(RowSource):
    """Several arrays as one, the rows of the first before those of the second.

    parts: NumPy arrays, memory maps or RowSources, of one dtype and one shape of a row.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        if not parts:
            raise ShapeError("no arrays to join: give at least one")
        first = parts[0]
        for number, part in enumerate(parts):
            if not part.ndim:
                raise ShapeError(f"part {number} is a single number: arrays of rows can be joined")
            if tuple(part.shape[1:]) != tuple(first.shape[1:]) or part.dtype != first.dtype:
                raise ShapeError(
                    f"part {number} holds {part.dtype}{list(part.shape)} and part 0 "
                    f"{first.dtype}{list(first.shape)}: rows of one shape and dtype can be joined"
                )
        self.parts = list(parts)
        self.starts = np.cumsum([0, *map(len, parts)])
        super().__init__((int(self.starts[-1]), *first.shape[1:]), first.dtype)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return take_rows(self, rows)

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        found = np.empty(out.shape, self.dtype)  # its beginning is used by each part, and stays in the cache
        for owner in np.unique(owners).tolist():
            here = np.flatnonzero(owners == owner)
            read_rows(self.parts[owner], rows[here] - self.starts[owner], found[: len(here)])
            out[here] = found[: len(here)]

    def part(self, start: int, stop: int) -> np.ndarray:
        taken = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for begins, part in zip(self.starts.tolist(), self.parts, strict=False):
            low, high = max(start, begins), min(stop, begins + len(part))
            if low < high:
                taken[low - start : high - start] = row_range(part, low - begins, high - begins)
        return taken


class Selected(RowSource):
    """Rows of an array in an order of their own. source: any array of the host. rows: the numbers of its rows."""

    def __init__(self, source: Any, rows: np.ndarray) -> None:
        super().__init__((len(rows), *source.shape[1:]), source.dtype)
        self.source, self.rows = source, rows

    def take(self, rows: np.ndarray) -> np.ndarray:
        return take_rows(self.source, self.rows[rows])

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        read_rows(self.source, self.rows[rows], out)

    def part(self, start: int, stop: int) -> np.ndarray:
        return take_rows(self.source, self.rows[start:stop])


class Converted(RowSource):
    """Rows that a function converts each time they are read, such as from float64 to float32.

    source: any array of the host. convert: a function of an array of rows, which returns as many rows.
    """

    def __init__(self, source: Any, convert: Callable[[np.ndarray], np.ndarray]) -> None:
        sample = convert(np.asarray(source[:1]))
        super().__init__((len(source), *sample.shape[1:]), sample.dtype)
        self.source, self.convert = source, convert

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.convert(take_rows(self.source, rows))

    def part(self, start: int, stop: int) -> np.ndarray:
        return self.convert(row_range(self.source, start, stop))


def is_mapped(array: Any) -> bool:
    """Whether an array is a memory map of a file, or a view of one."""
    return _map_of(array) is not None


def _map_of(array: Any) -> Any:
    """The numpy.memmap or mmap.mmap that an array is a view of; None if it is none."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return array
        array = array.base
    array = array.obj if isinstance(array, memoryview) else array
    return array if isinstance(array, mmap.mmap) else None


def check_file(array: Any) -> None:
    """Raise DataError if an array is a map of a file that is shorter now than when it was mapped.

    The system ends a process that reads behind the end of a file (SIGBUS).
    """
    found = _map_of(array)
    pages = getattr(found, "_mmap", found)
    try:
        size = None if pages is None else pages.size()
    except OSError:  # a map without a file, as mmap.mmap(-1, 4096) makes
        return
    if size is None:
        return
    begins = getattr(found, "offset", 0) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    if size < begins + len(pages):
        name = getattr(found, "filename", None) or "a file of the data"
        raise DataError(
            f"{name} was cut short while it was in use: it has {size:,} bytes and had "
            f"{begins + len(pages):,} or more; write a new file and rename it, and start again"
        )


def row_range(array: Any, start: int, stop: int) -> np.ndarray:
    """The rows from `start` up to `stop`, without `stop`, of an array of the host; a view, if they are in memory."""
    if isinstance(array, RowSource):
        return array.part(start, max(start, min(stop, len(array))))
    check_file(array)
    return np.asarray(array[start:stop])


def read_rows(array: Any, rows: np.ndarray, out: np.ndarray) -> None:
    """Copy rows of an array of the host. rows: their numbers, which lie in 0 .. n - 1. out: takes as many rows."""
    if isinstance(array, RowSource):
        array.read(rows, out)
        return
    check_file(array)
    if array.flags.c_contiguous and array.flags.aligned and array.dtype == out.dtype:
        array.take(rows, 0, out, "clip")  # "raise" would go by way of a copy
    else:
        out[...] = array[rows]


def take_rows(array: Any, rows: np.ndarray) -> np.ndarray:
    """A copy of these rows of an array of the host. rows: their numbers, which lie in 0 .. n - 1."""
    taken = np.empty((len(rows), *array.shape[1:]), array.dtype)
    read_rows(array, rows, taken)
    return taken


def reads_rows(array: Any) -> bool:
    """Whether an array should not be read into memory as a whole: a RowSource or a memory map."""
    return isinstance(array, RowSource) or is_mapped(array)


def is_on_host(array: Any) -> bool:
    """Whether it is an array of the host: of NumPy, or a RowSource."""
    return isinstance(array, (np.ndarray, RowSource))


def row_blocks(array: Any, part: slice = slice(None)) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of an array in blocks of about half a million numbers, each with the number of its first row.

    Code that needs all numbers of an array, such as a check, reads blocks: the array may be larger than the memory.
    part: which rows, a slice without a step. Default: all.
    """
    rows = max(1, _BLOCK // max(1, math.prod(array.shape[1:])))
    first, last, _ = part.indices(len(array))
    for start in range(first, last, rows):
        yield start, row_range(array, start, min(start + rows, last))


def first_not_finite(array: Any, part: slice = slice(None)) -> int | None:
    """The first row of an array of the host that holds NaN or infinity; None if there is none. part: of its rows."""
    for start, block in row_blocks(array, part) if array.dtype.kind == "f" else ():
        finite = np.isfinite(block)
        if not finite.all():
            return start + int(np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))[0])
    return None
