"""Tools for tests of exact numerics: extreme numbers, comparing bits, a backend that checks every product, workers as
threads, and the definition of a sliced product in fractions.
"""

from __future__ import annotations

import math
import threading
from fractions import Fraction
from typing import Any

import numpy as np

import xnn
from xnn.backends.communicator import with_communicator
from xnn.backends.exact import ExactNamespace
from xnn.backends.exact.ops import ROLES
from xnn.backends.numpy_backend import NumpyBackend
from xnn.ops.apply import backward_of, forward_of

f4, f8 = np.float32, np.float64

#: float32 numbers that break careless code: zeros, subnormals, the smallest and the largest normal numbers.
HOSTILE = np.array(
    [0, -0.0, 1e-45, -1e-40, 1.1754942e-38, 2.0**-126, -(2.0**-125), 1e-38, -3e-38, 7e-20,
     1, -2.5, 1e38, -3.4028235e38],
    f4,
)  # fmt: skip
NOT_FINITE = np.array([np.inf, -np.inf, np.nan], f4)


def any_bits(rng: np.random.Generator, shape: Any) -> np.ndarray:
    """Return float32 numbers of random bit patterns."""
    return rng.integers(0, 2**32, shape, dtype=np.uint32).view(f4)


def bits_of(x: Any) -> bytes:
    """Return an array's shape, dtype and bits as bytes; all NaNs are equal."""
    x = np.asarray(x)
    one_nan = np.where(np.isnan(x), x.dtype.type(np.nan), x) if x.dtype.kind == "f" else x
    return repr((x.shape, x.dtype)).encode() + one_nan.astype(x.dtype).tobytes()


def is_stored(x: Any) -> bool:
    """Whether an array is as exact numerics store it: float32, no subnormal, no -0."""
    x = np.asarray(x)
    subnormal = (np.abs(x) < 2.0**-126) & (x != 0)
    return x.dtype == f4 and not subnormal.any() and not (np.signbit(x) & (x == 0)).any()


def run(
    lib: Any, op: Any, inputs: Any, options: dict[str, Any], gradient: Any = None, xp: Any = None
) -> list[Any]:
    """Return an op's output and gradients as NumPy arrays.

    gradient: of the output, ones if None. xp: the namespace; that of the numerics in force if None.
    """
    xp = xp or lib.math
    there = [lib.to_device(x) if isinstance(x, (np.ndarray, np.generic)) else x for x in inputs]
    y, saved = forward_of(op, xp, there, options)
    dtype = lib.to_host(y).dtype
    seed = np.ones(y.shape, dtype) if gradient is None else np.asarray(gradient, dtype)
    gradients = backward_of(op, xp, lib.to_device(seed), saved)
    return [None if a is None else np.asarray(lib.to_host(a)) for a in (y, *gradients)]


class Watched(NumpyBackend):
    """NumPy with a check of every float64 matrix product: no partial sum may be rounded, in any order.

    Each row and each column is measured in units of its last bit. Then the sums of |a| |b| must be at most 2^53.

    products: how many products there were. fullest: the largest sum of all of them.
    """

    def __init__(self) -> None:
        self.xp = self
        self.products = 0
        self.fullest = 0.0
        self.watched = ExactNamespace(self, ROLES)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def matmul(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        assert a.dtype == b.dtype == f8
        rows, columns = _in_units(a, -1), _in_units(b, -2 if b.ndim > 1 else 0)
        assert max(rows.max(initial=0), columns.max(initial=0)) <= 2.0**53
        # This product may itself be rounded, but only slightly: sums that are clearly above 2^53 are noticed.
        most = float(np.max(np.matmul(rows, columns), initial=0.0))
        assert most <= 2.0**53, f"{a.shape} times {b.shape}: sums up to 2^{math.log2(most):.2f}"
        self.products += 1
        self.fullest = max(self.fullest, most)
        return np.matmul(a, b)


def _in_units(x: np.ndarray, axis: int) -> np.ndarray:
    """Return |x| in units of the lowest bit that is set in any number along `axis`: whole numbers."""
    fraction, exponent = np.frexp(x)
    whole = np.abs(np.ldexp(fraction, 53)).astype(np.int64)
    last = exponent - 53 + np.log2(np.maximum(whole & -whole, 1)).astype(np.int64)
    lowest = np.min(np.where(x == 0, 5000, last), axis=axis, keepdims=True, initial=5000)
    return np.abs(np.ldexp(x, np.where(lowest == 5000, 0, -lowest)))


# Workers as threads.


class Meeting:
    """Workers that exchange values at a barrier. `calls` counts the exchanges of each worker."""

    def __init__(self, size):
        self.barrier, self.given, self.calls = threading.Barrier(size, timeout=20), [None] * size, [0] * size

    def member(self, rank):
        meeting = self

        class Member:
            def _all(self, value):
                meeting.calls[rank] += 1
                meeting.given[rank] = value
                meeting.barrier.wait()
                values = list(meeting.given)
                meeting.barrier.wait()
                return values

            def maximum(self, x):
                return np.maximum.reduce(self._all(x))

            def total(self, x):
                return np.add.reduce(self._all(x))

            def count(self, rows):
                return sum(self._all(rows))

        return Member()


def by_workers(bounds: list[int], work: Any) -> list[Any]:
    """Run work(rows) in exact numerics by several workers, each in a thread, and return their results.

    bounds: worker i has the rows from bounds[i] to bounds[i + 1].
    """
    meeting, found = Meeting(len(bounds) - 1), {}

    def one(rank: int) -> None:
        with xnn.numerics("exact"), with_communicator(meeting.member(rank)):
            found[rank] = work(slice(bounds[rank], bounds[rank + 1]))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(bounds) - 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(threads)
    assert len(set(meeting.calls)) == 1
    return [found[rank] for rank in sorted(found)]


# The definition of a sliced product, in fractions.


def ceil_log2(count: int) -> int:
    return next(n for n in range(64) if count <= 2**n)


def split(terms: int) -> tuple[int, int]:
    """Return the bits of the operand with one slice, and of each slice of the other operand."""
    total = 53 - ceil_log2(terms)
    one = min(27, total - (total - 1) // 3)
    return one, total - one


def fractions(x: Any) -> list[list[Fraction]]:
    """Return a matrix of float32 or integers as fractions, rounded to multiples of 2^-125 as stored numbers are."""
    step = Fraction(2) ** -125
    return [[round(Fraction(float(v)) / step) * step for v in row] for row in np.asarray(x)]


def top(numbers: Any) -> int:
    """Return the least e with |v| < 2^e for all numbers v."""
    return max((math.frexp(float(v))[1] for v in numbers if v), default=-2000)


def cut(x: Fraction, e: int, bits: int) -> Fraction:
    """Round x to a multiple of 2^(e - bits), ties to even."""
    step = Fraction(2) ** max(e - bits, -500)
    return round(x / step) * step


def cut_one(matrix: list[list[Fraction]], exponents: list[int], bits: int) -> list[list[Fraction]]:
    """Return the slice of each row, on the scale of its exponent."""
    return [[cut(v, e, bits) for v in row] for row, e in zip(matrix, exponents, strict=True)]


def cut_two(matrix: list[list[Fraction]], exponents: list[int], bits: int) -> tuple[Any, Any]:
    """Return the two slices of each row."""
    high = cut_one(matrix, exponents, bits)
    left = [[v - h for v, h in zip(row, hs, strict=True)] for row, hs in zip(matrix, high, strict=True)]
    return high, cut_one(left, exponents, 2 * bits + 1)


def transposed(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    return [list(column) for column in zip(*matrix, strict=True)]


def product(a: list[list[Fraction]], b: list[list[Fraction]]) -> np.ndarray:
    """Return the product of two matrices; fails if a result is not a float64 number and would be rounded."""
    sums = [[sum((v * w for v, w in zip(row, column, strict=True)), Fraction(0)) for column in zip(*b, strict=True)]
            for row in a]  # fmt: skip
    found = np.array([[float(v) for v in row] for row in sums])
    assert [[Fraction(v) for v in row] for row in found.tolist()] == sums, (
        "a product that needs more than 53 bits"
    )
    return found


def stored(y: np.ndarray) -> np.ndarray:
    """Round float64 numbers to what exact numerics store: multiples of 2^-125, then float32."""
    return ((y + 1.5 * 2.0**-73) - 1.5 * 2.0**-73).astype(f4)
