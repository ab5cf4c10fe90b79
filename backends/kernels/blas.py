"""The BLAS inside NumPy, called with its alpha and beta: C <- alpha A B + beta C, which `matmul` cannot say.

beta = 1 folds a bias into the forward product and plain SGD into the weight gradient's. The routine is looked
up among the libraries NumPy's own extension module is linked with, so a step never runs two BLAS libraries:
each would keep threads of its own spinning against the other's. It is believed only after a small product
has come out right; where there is none (Accelerate, some builds, Windows) `gemm` falls back to `matmul`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

__all__ = ["Routine", "blas_routine", "gemm"]

# Prefix, suffix and integer of the names in use: NumPy's wheels, Debian's and conda's builds.
_SPELLINGS = (
    ("scipy_cblas_", "64_", ctypes.c_int64),
    ("cblas_", "64_", ctypes.c_int64),
    ("scipy_cblas_", "", ctypes.c_int32),
    ("cblas_", "", ctypes.c_int32),
)
ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112  # CBLAS_ORDER and CBLAS_TRANSPOSE


@dataclass(frozen=True)
class Routine:
    """cblas_sgemm or cblas_dgemm: to be called from Python, its address, and whether its integers have 64 bits."""

    name: str
    call: Any
    address: int
    wide: bool


@cache
def blas_routine(dtype: str) -> Routine | None:
    """The gemm of NumPy's BLAS for "float32" or "float64", or None where it cannot be had."""
    real, letter = {"float32": (ctypes.c_float, "s"), "float64": (ctypes.c_double, "d")}[dtype]
    try:
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]
    except (OSError, AttributeError):
        return None
    for prefix, suffix, integer in _SPELLINGS:
        name = f"{prefix}{letter}gemm{suffix}"
        call = getattr(library, name, None)
        if call is None:
            continue
        flag, size, pointer = ctypes.c_int, integer, ctypes.c_void_p
        matrix = [pointer, size]
        call.argtypes = [*[flag] * 3, *[size] * 3, real, *matrix, *matrix, real, *matrix]
        call.restype = None
        address = ctypes.cast(call, ctypes.c_void_p).value
        routine = Routine(name, call, address or 0, integer is ctypes.c_int64)
        if _works(routine, dtype):
            return routine
    return None


def _works(routine: Routine, dtype: str) -> bool:
    """A product of small integers with transposes, alpha and beta, which every float holds exactly."""
    a, b = np.arange(6.0).reshape(2, 3).astype(dtype), np.arange(12.0).reshape(4, 3).astype(dtype)
    c = np.ones((2, 4), dtype)
    expected = -2.0 * (a @ b.T) + c
    _prepared(routine, a, b.T, c, 1.0)(-2.0)
    return bool(np.array_equal(c, expected))


def operand(x: np.ndarray) -> tuple[int, int] | None:
    """How CBLAS names a matrix in row-major order: transposed or not, and the distance between its rows.

    None for a matrix that would have to be copied first.
    """
    size = x.itemsize
    for flag, (rows, columns), (outer, inner) in (
        (PLAIN, x.shape, x.strides),
        (TRANSPOSED, x.shape[::-1], x.strides[::-1]),
    ):
        fits = outer % size == 0 and outer // size >= max(1, columns)
        if inner == size and (fits or rows == 1):
            return flag, max(1, columns, outer // size if fits else 0)
    return None


def _prepared(routine: Routine, a: Any, b: Any, c: Any, beta: float) -> Callable[..., None]:
    """The call with its arguments made beforehand: converting fourteen of them takes as long as a small product."""
    (flag_a, lead_a), (flag_b, lead_b), (_, lead_c) = operand(a), operand(b), operand(c)  # type: ignore[misc]
    (m, k), n, call = a.shape, b.shape[1], routine.call
    at, bt, ct = a.ctypes.data, b.ctypes.data, c.ctypes.data
    values = ROW_MAJOR, flag_a, flag_b, m, n, k, 1.0, at, lead_a, bt, lead_b, beta, ct, lead_c
    arguments = tuple(kind(value) for kind, value in zip(call.argtypes, values, strict=True))
    factor = arguments[6]

    def product(alpha: float = 1.0) -> None:
        factor.value = alpha
        call(*arguments)

    product.arrays = a, b, c  # type: ignore[attr-defined] # the routine knows addresses only
    return product


def gemm(a: np.ndarray, b: np.ndarray, c: np.ndarray, accumulate: bool = False) -> Callable[..., None]:
    """A call that computes c <- alpha a b (+ c if `accumulate`): `gemm(a, b, c)(alpha)`, alpha 1 if not given.

    a (m, k), b (k, n) and c (m, n), float32 or float64, are buffers that stay where they are; a and b may be
    transposed. Through NumPy's own BLAS, or through `matmul` where it cannot be called.
    """
    beta = 1.0 if accumulate else 0.0
    routine = blas_routine(str(c.dtype))
    plain = operand(c)
    if routine is None or plain is None or plain[0] != PLAIN or operand(a) is None or operand(b) is None:
        return _by_matmul(a, b, c, accumulate)
    if 0 in c.shape or a.shape[1] == 0:
        return _by_matmul(a, b, c, accumulate)
    return _prepared(routine, a, b, c, beta)


def _by_matmul(a: np.ndarray, b: np.ndarray, c: np.ndarray, accumulate: bool) -> Callable[..., None]:
    scratch = np.empty_like(c) if accumulate else c

    def product(alpha: float = 1.0) -> None:
        np.matmul(a, b, out=scratch)
        if alpha != 1.0:
            np.multiply(scratch, scratch.dtype.type(alpha), out=scratch)
        if accumulate:
            np.add(c, scratch, out=c)

    return product
