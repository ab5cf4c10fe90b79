"""Calls as rows of numbers: how they are written, and what runs them. `row_runner.py` says what a row is.

A row whose loop has a range can be cut into rows that threads share, one for each thread. That changes no bit, but
perhaps of products, as it does where BLAS's own threads share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from xnn.backends.kernels.blas import blas_routine, operand
from xnn.backends.kernels.compiled_loops import gemm
from xnn.backends.kernels.jit import Loop, load
from xnn.backends.kernels.row_runner import FIRST, WIDTH, give_way, run, run_together
from xnn.backends.kernels.workers import share
from xnn.backends.threads import own_threads

__all__ = [
    "Row",
    "Rows",
    "Stretch",
    "Writer",
    "dtype_of",
    "grain_of",
    "run_nothing",
    "run_nothing_together",
    "several",
]  # fmt: skip

_NO_ROWS, _NO_MOVES = np.empty((0, WIDTH), np.int64), np.empty((0, 3), np.int64)
_NUMBERS = 4096  #: that a row must have to do, at least, where a loop is cut
_MULTIPLICATIONS = 1 << 19  #: that it must have to do where a product is cut
_LANES = 16  #: rows or columns of a product that its parts have a multiple of


class Row(NamedTuple):
    """A row that is not cut yet: its loop, the loop's numbers, and the end of its range.

    grain: where it may be cut, 0 for nowhere. is_product: whether cutting it may change bits.
    """

    loop: Loop
    numbers: tuple[int, ...]
    last: int
    grain: int = 0
    is_product: bool = False

    def cut(self, threads: int) -> list[tuple[int, int]]:
        """The ranges of at most so many rows: multiples of `grain`, as equal as can be."""
        grains = self.last // self.grain if self.grain else 1
        parts = max(1, min(threads, grains))
        ends = [self.grain * (grains * part // parts) for part in range(parts)]
        return [*pairwise([*ends, self.last])]


@dataclass
class Rows:
    """The rows of one call.

    rows: the rows. arrays: the arrays whose addresses are in the rows. dtype: the dtype that the rows compute in,
    or None if they serve any dtype. heavy: whether there is so much work beside products that threads of ours, and
    not of BLAS, should share the step.
    """

    rows: list[Row]
    arrays: list[Any]
    dtype: Any
    heavy: bool = False


def grain_of(size: int) -> int:
    """Where a loop may be cut whose elements have `size` numbers each."""
    return max(1, -(-_NUMBERS // max(1, size)))


class Writer:
    """Collects the rows of one call. An array given as a column becomes its address, None becomes 0."""

    def __init__(self, dtype: Any, heavy: bool = False) -> None:
        self.made = Rows([], [], None if dtype is None else np.dtype(dtype), heavy)

    def loop(self, loop: Any, count: int, *columns: Any, grain: int = 0) -> None:
        """Add the row of a loop, for its elements 0 .. count - 1. grain: as of a Row."""
        self.made.arrays.extend(c for c in columns if isinstance(c, np.ndarray))
        given = [_address(c) if c is None or isinstance(c, np.ndarray) else int(c) for c in columns]
        dtype = np.dtype(np.float32) if self.made.dtype is None else self.made.dtype
        self.made.rows.append(Row(Loop(loop, dtype), tuple(given), count, grain, loop is gemm))

    def gemm(self, a: np.ndarray, b: np.ndarray, c: np.ndarray, rate: np.ndarray | None = None) -> None:
        """Add the row of c <- a b, or of c <- c - rate a b if `rate` is given: an array with the learning rate.

        Threads share the rows of c, or its columns if these are more: each then packs a part of the larger factor.
        """
        routine = blas_routine(str(c.dtype))
        named = operand(a), operand(b)
        assert routine is not None
        assert named[0] is not None
        assert named[1] is not None
        (flag_a, lead_a), (flag_b, lead_b) = named[0], named[1]
        (m, k), n = a.shape, b.shape[1]
        least = -(-_MULTIPLICATIONS // max(1, k * min(m, n)))
        self.loop(
            gemm, max(m, n), routine.address, routine.wide, flag_a, flag_b, m, n, k, a, lead_a, b, lead_b, c, rate,
            n > m, c.itemsize, grain=_LANES * -(-least // _LANES),
        )  # fmt: skip


def _address(array: Any) -> int:
    return 0 if array is None else int(array.ctypes.data)


def _table(rows: Iterable[Row], threads: int) -> np.ndarray:
    """The rows as a table, with a range of each loop for so many threads."""
    lines = list[tuple[int, ...]]()
    for row in rows:
        before, padding = len(lines), (0,) * (FIRST - 1 - len(row.numbers))
        numbers = row.loop.compiled(), *row.numbers, *padding
        lines += [(*numbers, first, last, before) for first, last in row.cut(threads)]
    return np.asarray(lines, np.int64).reshape(-1, WIDTH)


def dtype_of(parts: Iterable[Rows]) -> np.dtype:
    """The dtype that rows compute in. Rows that no dtype concerns, such as a copy of labels, count as float32."""
    return np.dtype(next((part.dtype for part in parts if part.dtype is not None), np.float32))


def run_nothing(like: Any) -> None:
    """Run an empty table, so that what runs rows is compiled, or its machine code loaded."""
    load(lambda: run(_NO_ROWS, _NO_MOVES, 1, like), run)


def run_nothing_together(like: Any) -> None:
    """As `run_nothing`, with what shares rows over threads."""
    counters = np.zeros(16, np.int64)
    load(lambda: run_together(_NO_ROWS, _NO_MOVES, 1, like, counters, give_way), run_together)


class Stretch:
    """Rows that one call runs, in order: a step of a program, or a part of one.

    is_shared: whether threads of xnn's own share them. cuts_products: whether they share products, too.
    """

    def __init__(self, parts: list[Rows], is_shared: bool = False, cuts_products: bool = True) -> None:
        rows = [row for part in parts for row in part.rows]
        self.rows = (
            rows if cuts_products else [row._replace(grain=0) if row.is_product else row for row in rows]
        )
        self.is_shared = is_shared
        self.arrays = [array for part in parts for array in part.arrays]  # keeps them alive
        self.like = dtype_of(parts).type(1)
        self._tables: dict[int, np.ndarray] = {}
        run_nothing(self.like)
        if is_shared:
            run_nothing_together(self.like)

    @property
    def threads(self) -> int:
        """How many threads run it now: one if there is nothing to share."""
        threads = own_threads() if self.is_shared else 1
        return threads if len(self.table(threads)) > len(self.rows) else 1

    def table(self, threads: int) -> np.ndarray:
        """The table for so many threads."""
        if threads not in self._tables:
            self._tables[threads] = _table(self.rows, threads)
        return self._tables[threads]

    def __call__(self) -> None:
        threads = self.threads
        _execute(self.table(threads), _NO_MOVES, 1, self.like, threads, self)


def _execute(table: np.ndarray, moves: np.ndarray, steps: int, like: Any, threads: int, owner: Any) -> None:
    """Run a table. owner: keeps the arrays alive whose addresses are in it."""
    if threads == 1:
        run(table, moves, steps, like)
        return
    counters = np.zeros(16, np.int64)  # of this call: a thread that wakes up late finds old ones, used up

    # After Ctrl-C a thread may still be at work when nobody else has the arrays.
    def work(kept: Any = owner) -> int:
        return int(run_together(table, moves, steps, like, counters, give_way))

    share(work, steps * len(table), threads)


def several(
    turns: Sequence[tuple[Stretch, Sequence[tuple[np.ndarray, np.ndarray]]]],
) -> Callable[[int], None] | None:
    """See `KernelTable.several`."""
    if any(_moves(stretch.table(1), moving) is None for stretch, moving in turns):
        return None
    made: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    is_shared, like = all(stretch.is_shared for stretch, _ in turns), turns[0][0].like

    def run_several(count: int) -> None:
        threads = turns[0][0].threads if is_shared else 1
        if threads not in made:
            made[threads] = _turns([(stretch.table(threads), moving) for stretch, moving in turns])
        _execute(*made[threads], count, like, threads, turns)

    return run_several


def _moves(
    table: np.ndarray, moving: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[tuple[int, int, int, int]] | None:
    """Where the arrays stand in a table: row, column, the address of the parts, and the bytes to the next part.

    None if one of the arrays is nowhere.
    """
    moves = list[tuple[int, int, int, int]]()
    for array, parts in moving:
        places = np.argwhere(table[:, 1:FIRST] == _address(array))
        if not len(places):
            return None
        moves += [(int(row), 1 + int(column), _address(parts), parts.strides[0]) for row, column in places]
    return moves


def _turns(
    turns: Sequence[tuple[np.ndarray, Sequence[tuple[np.ndarray, np.ndarray]]]],
) -> tuple[np.ndarray, np.ndarray]:
    """One table of those of several programs, with the parts for the first step, and the moves."""
    tables, moves, above = list[np.ndarray](), list[tuple[int, int, int]](), 0
    for given, moving in turns:
        table = given.copy()
        table[:, WIDTH - 1] += above
        for row, column, address, stride in _moves(given, moving) or []:
            table[row, column] = address
            moves.append((above + row, column, stride))
        tables.append(table)
        above += len(table)
    return np.concatenate(tables), np.asarray(moves, np.int64).reshape(-1, 3)
