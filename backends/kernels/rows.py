"""Rows of numbers that `compiled_loops.run` executes: how they are written, and what runs them.

A row is the address of a loop's machine code, then addresses of buffers, sizes and flags.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn.backends.kernels.blas import blas_routine, operand
from xnn.backends.kernels.compiled_loops import WIDTH, gemm, run
from xnn.backends.kernels.jit import address_of, load

__all__ = ["Rows", "Stretch", "Writer", "several"]

_NO_MOVES = np.empty((0, 3), np.int64)


@dataclass
class Rows:
    """The rows of one call.

    numbers: the rows. arrays: the arrays whose addresses are in the rows. dtype: the dtype that the rows compute in,
    or None if they serve any dtype.
    """

    numbers: list[tuple[int, ...]]
    arrays: list[Any]
    dtype: Any


class Writer:
    """Collects the rows of one call. An array given as a column becomes its address, None becomes 0."""

    def __init__(self, dtype: Any) -> None:
        self.made = Rows([], [], None if dtype is None else np.dtype(dtype))

    def loop(self, loop: Any, count: int, *columns: Any) -> None:
        """Add the row of a loop, for the elements or samples 0 .. count - 1, if the loop asks for their count."""
        self.made.arrays.extend(c for c in columns if isinstance(c, np.ndarray))
        given = [_address(c) if c is None or isinstance(c, np.ndarray) else int(c) for c in columns]
        address = address_of(loop, np.float32 if self.made.dtype is None else self.made.dtype)
        self.made.numbers.append((address, *given, *(0,) * (WIDTH - 2 - len(given)), count))

    def gemm(self, a: np.ndarray, b: np.ndarray, c: np.ndarray, rate: np.ndarray | None = None) -> None:
        """Add the row of c <- a b, or of c <- c - rate a b if `rate` is given: an array with the learning rate."""
        routine = blas_routine(str(c.dtype))
        named = operand(a), operand(b)
        assert routine is not None
        assert named[0] is not None
        assert named[1] is not None
        (flag_a, lead_a), (flag_b, lead_b) = named[0], named[1]
        (m, k), n = a.shape, b.shape[1]
        self.loop(
            gemm, 0, routine.address, routine.wide, flag_a, flag_b, m, n, k, a, lead_a, b, lead_b, c, rate,
            rate is not None,
        )  # fmt: skip


def _address(array: Any) -> int:
    return 0 if array is None else int(array.ctypes.data)


class Stretch:
    """Rows that one call runs, in order: a step of a program, or a part of one."""

    def __init__(self, parts: list[Rows]) -> None:
        rows = [row for part in parts for row in part.numbers]
        self.table = np.asarray(rows, np.int64).reshape(-1, WIDTH)
        self.arrays = [array for part in parts for array in part.arrays]  # keeps them alive
        dtype = next((part.dtype for part in parts if part.dtype is not None), np.float32)
        self.like = np.dtype(dtype).type(1)
        load(lambda: run(self.table[:0], _NO_MOVES, 1, self.like), run)

    def __call__(self) -> None:
        run(self.table, _NO_MOVES, 1, self.like)


def several(
    turns: Sequence[tuple[Stretch, Sequence[tuple[np.ndarray, np.ndarray]]]],
) -> Callable[[int], None] | None:
    """See `KernelTable.several`."""
    tables, moves, above = list[np.ndarray](), list[tuple[int, int, int]](), 0
    for stretch, moving in turns:
        table = stretch.table.copy()
        for array, parts in moving:
            places = np.argwhere(stretch.table[:, 1:] == _address(array))
            if not len(places):
                return None
            for row, column in places:
                table[row, 1 + column] = _address(parts)
                moves.append((above + row, 1 + column, parts.strides[0]))
        tables.append(table)
        above += len(table)
    whole, steps, like = np.concatenate(tables), np.asarray(moves, np.int64), turns[0][0].like
    arrays = [(stretch.arrays, moving) for stretch, moving in turns]

    def run_several(count: int, kept: Any = arrays) -> None:  # whose addresses are in the table
        run(whole, steps, count, like)

    return run_several
