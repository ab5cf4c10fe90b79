"""BLAS's matrix product with its factors alpha and beta: C <- alpha A B + beta C, from the BLAS inside NumPy.

`numpy.matmul` has no alpha and beta. With beta = 1 a bias is added in the forward product, and plain SGD's update
W <- W - rate x^T dy in the product that computes the gradient. The routine is looked up in the libraries that NumPy's
own extension module is linked with. So a step never uses two BLAS libraries, whose idle threads would slow each other
down. The routine is used only if it computes a small product correctly. Where there is none (Accelerate, some builds,
Windows) `gemm` uses `matmul`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

__all__ = ["Routine", "blas_routine", "gemm"]

# Prefix and suffix of a routine's name, and its integer type, in NumPy's wheels and in Debian's and conda's builds.
_SPELLINGS = (
    ("scipy_cblas_", "64_", ctypes.c_int64),
    ("cblas_", "64_", ctypes.c_int64),
    ("scipy_cblas_", "", ctypes.c_int32),
    ("cblas_", "", ctypes.c_int32),
)
ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112  # CBLAS_ORDER and CBLAS_TRANSPOSE


@dataclass(frozen=True)
class Routine:
    """cblas_sgemm or cblas_dgemm.

    name: of the symbol. call: to call it from Python. address: to call it from compiled code. wide: whether its
    integers have 64 bits.
    """

    name: str
    call: Any
    address: int
    wide: bool


@cache
def blas_routine(dtype: str) -> Routine | None:
    """Return the matrix product of NumPy's BLAS for "float32" or "float64", or None if it cannot be called."""
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
    """Whether a product of small integers, with a transpose, alpha and beta, comes out exactly."""
    a, b = np.arange(6.0).reshape(2, 3).astype(dtype), np.arange(12.0).reshape(4, 3).astype(dtype)
    c = np.ones((2, 4), dtype)
    expected = -2.0 * (a @ b.T) + c
    _prepared(routine, a, b.T, c, 1.0)(-2.0)
    return bool(np.array_equal(c, expected))


def operand(x: np.ndarray) -> tuple[int, int] | None:
    """Return a matrix's two arguments for CBLAS in row-major order: its transpose flag and its leading dimension.

    Returns None for a matrix that CBLAS could take only as a copy.
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
    """Return the product with its 14 arguments converted once: converting them costs as much as a small product."""
    (flag_a, lead_a), (flag_b, lead_b), (_, lead_c) = operand(a), operand(b), operand(c)  # type: ignore[misc]
    (m, k), n, call = a.shape, b.shape[1], routine.call
    at, bt, ct = a.ctypes.data, b.ctypes.data, c.ctypes.data
    values = ROW_MAJOR, flag_a, flag_b, m, n, k, 1.0, at, lead_a, bt, lead_b, beta, ct, lead_c
    arguments = tuple(kind(value) for kind, value in zip(call.argtypes, values, strict=True))
    factor = arguments[6]

    def product(alpha: float = 1.0) -> None:
        factor.value = alpha
        call(*arguments)

    product.arrays = a, b, c  # type: ignore[attr-defined] # keeps the memory behind the addresses alive
    return product


def gemm(a: np.ndarray, b: np.ndarray, c: np.ndarray, accumulate: bool = False) -> Callable[..., None]:
    """Return a function of alpha that computes c <- alpha a b, plus c if `accumulate`.

    a, b: buffers of shape (m, k) and (k, n), float32 or float64; either may be a transposed view.
    c: a buffer of shape (m, n).
    accumulate: whether the product is added to c.

    The function keeps the buffers' addresses. It calls NumPy's own BLAS, or `matmul` where BLAS cannot be called.

    >>> import numpy as np
    >>> from xnn.backends.kernels.blas import gemm
    >>> a, b, c = np.eye(2), np.ones((2, 2)), np.ones((2, 2))
    >>> product = gemm(a, b, c, accumulate=True)
    >>> product(-3.0)
    >>> c
    array([[-2., -2.],
           [-2., -2.]])
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
