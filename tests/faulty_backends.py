"""NumPy backends with one fault each, which the self-check of exact numerics must find, and correct ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xnn.backends.base import Backend
from xnn.backends.numpy_backend import NumpyBackend

f4, f8 = np.float32, np.float64


class Replaced:
    """NumPy's namespace with some functions replaced."""

    def __init__(self, **functions: Any) -> None:
        self.functions = functions

    def __getattr__(self, name: str) -> Any:
        return self.functions[name] if name in self.functions else getattr(np, name)


class Faulty(NumpyBackend):
    """The NumPy backend with some functions of its namespace replaced."""

    def __init__(self, **functions: Any) -> None:
        self.xp: Any = Replaced(**functions)


Ufunc = Callable[..., Any]


class Other(np.ndarray):
    """An array whose operators compute by `rule(ufunc, *inputs)`, or as NumPy does if the rule returns None."""

    rule: Any = None
    made_of: Any = None

    def __array_finalize__(self, source: Any) -> None:
        self.rule = getattr(source, "rule", None)

    def __array_ufunc__(self, ufunc: Ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [np.asarray(x) if isinstance(x, np.ndarray) else x for x in inputs]
        y = self.rule(ufunc, *inputs) if method == "__call__" and not options else None
        y = getattr(ufunc, method)(*plain, **options) if y is None else y
        if not isinstance(y, np.ndarray):
            return y
        result = y.view(Other)
        result.rule, result.made_of = self.rule, (ufunc, inputs)
        return result


class FaultyOperators(NumpyBackend):
    """The NumPy backend with arrays whose operators follow a rule."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.xp: Any = Replaced(asarray=np.asanyarray)

    def marked(self, x: np.ndarray) -> Any:
        y = np.asarray(x).view(Other)
        y.rule = self.rule
        return y

    def to_device(self, x: Any, dtype: str | None = None) -> Any:
        return self.marked(np.asarray(x, dtype=dtype))

    def bits(self, x: Any, dtype: str) -> Any:
        return self.marked(np.asarray(x).view(dtype))


def is_float(x: Any) -> bool:
    return getattr(x, "dtype", None) == f8 or isinstance(x, float)


# Products.


def in_float32(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.matmul(a.astype(f4), b.astype(f4)).astype(f8)


def kept_bits(x: np.ndarray, bits: int) -> np.ndarray:
    """Truncate the fractions of float64 numbers to their highest bits."""
    return (np.ascontiguousarray(x).view(np.int64) & -(1 << 52 - bits)).view(f8)


def largest(x: np.ndarray, axis: int | None) -> Any:
    return 2.0 ** np.ceil(np.log2(np.max(np.abs(x), axis=axis, keepdims=True)))


def emulated(slices: int, axes: tuple[Any, Any] = (-1, -2)) -> Any:
    """Emulate a product by 8-bit slices in fixed point, omitting products of two low ones, as GPU libraries do."""

    def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if a.ndim < 2 or b.ndim < 2:
            return np.matmul(a, b)
        scales, parts = (largest(a, axes[0]), largest(b, axes[1])), []
        for x, scale in zip((a, b), scales, strict=True):
            rest, cut = x / scale, []
            for k in range(1, slices + 1):
                cut.append(np.trunc(rest * 2.0 ** (8 * k)) / 2.0 ** (8 * k))
                rest = rest - cut[-1]
            parts.append(cut)
        total = sum(parts[0][i] @ parts[1][j] for i in range(slices) for j in range(slices - i))
        return total * scales[0] * scales[1]

    return matmul


def prescaled(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.matmul(a * 0.1, b) * 10.0


def strassen(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.ndim != 2 or b.ndim != 2 or any(n % 2 for n in (*a.shape, *b.shape)):
        return np.matmul(a, b)
    (m, k), n = (s // 2 for s in a.shape), b.shape[1] // 2
    a11, a12, a21, a22 = a[:m, :k], a[:m, k:], a[m:, :k], a[m:, k:]
    b11, b12, b21, b22 = b[:k, :n], b[:k, n:], b[k:, :n], b[k:, n:]
    p1, p2, p3 = (a11 + a22) @ (b11 + b22), (a21 + a22) @ b11, a11 @ (b12 - b22)
    p4, p5 = a22 @ (b21 - b11), (a11 + a12) @ b22
    p6, p7 = (a21 - a11) @ (b11 + b12), (a12 - a22) @ (b21 + b22)
    return np.block([[p1 + p4 - p5 + p7, p3 + p5], [p2 + p4, p1 - p2 + p3 + p6]])


def only(when: Callable[..., bool], then: Any, otherwise: Any) -> Any:
    return lambda *args, **options: (then if when(*args) else otherwise)(*args, **options)


def in_blocks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A product whose sums over blocks are stored with 52 bits."""
    size = 256
    blocks = [np.matmul(a[..., k : k + size], b[k : k + size]) for k in range(0, a.shape[-1], size)]
    return sum(kept_bits(np.atleast_1d(block), 51).reshape(np.shape(block)) for block in blocks)


PRODUCTS = {
    "float32": in_float32,
    "bfloat16 operands": lambda a, b: np.matmul(kept_bits(a, 7), kept_bits(b, 7)),
    "TF32 operands": lambda a, b: np.matmul(kept_bits(a, 10), kept_bits(b, 10)),
    "one operand of 24 bits": lambda a, b: np.matmul(a, kept_bits(b, 23)),
    "emulated with 40 bits": emulated(5),
    "emulated with 48 bits": emulated(6),
    "emulated with one scale for all rows": emulated(8, (None, None)),
    "operands scaled by 0.1": prescaled,
    "Strassen's": strassen,
    "blocks of 52 bits": in_blocks,
    "float32 for long sums": only(lambda a, b: a.shape[-1] > 5000, in_float32, np.matmul),
    "float32 for many rows": only(lambda a, b: a.shape[0] > 500, in_float32, np.matmul),
    "float32 for vectors": only(lambda a, b: b.ndim == 1, in_float32, np.matmul),
    "float32 for stacks": only(lambda a, b: a.ndim == 3, in_float32, np.matmul),
    "float32 for what is large": only(lambda a, b: a.size * b.shape[-1] > 500_000, in_float32, np.matmul),
    "float32 for what is transposed": only(
        lambda a, b: a.ndim == 2 and not a.flags.c_contiguous, in_float32, np.matmul
    ),
}


# Sums.


def sum_in_float32(x: np.ndarray, **options: Any) -> Any:
    return np.sum(x.astype(f4), **options).astype(f8) if is_float(x) else np.sum(x, **options)


def sum_of_scaled(x: np.ndarray, **options: Any) -> Any:
    return np.sum(x * 0.1, **options) * 10.0 if is_float(x) else np.sum(x, **options)


SUMS = {
    "float32": sum_in_float32,
    "float32 for large arrays": only(lambda x: x.size > 65000, sum_in_float32, np.sum),
    "terms scaled by 0.1": sum_of_scaled,
}


# Functions of the namespace.


def some_a_bit_off(x: Any, /) -> Any:
    """sqrt, but one unit in the last place too large for one number in a thousand."""
    y = np.sqrt(x)
    return np.where(np.asarray(x).view(np.int64) % 1000003 % 1000 == 7, np.nextafter(y, math.inf), y)


def cast(change: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Make a conversion to float32 that changes the numbers first."""

    def asarray(x: Any, dtype: Any = None, **options: Any) -> Any:
        return np.asarray(change(x) if dtype is f4 and is_float(x) else x, dtype=dtype, **options)

    return {"asarray": asarray}


def last_of_equals(x: np.ndarray, axis: Any = None, keepdims: bool = False) -> Any:
    """min, but of integers the largest below the array's length, so that argmax returns the last index."""
    if is_float(x):
        return np.min(x, axis=axis, keepdims=keepdims)
    return np.max(np.where(x < x.shape[axis], x, -1), axis=axis, keepdims=keepdims)


def no_nan(function: Any) -> Any:
    return lambda x, **options: function(np.where(np.isnan(x), -np.inf, x) if is_float(x) else x, **options)


FUNCTIONS = {
    "sqrt, one in a thousand off": ({"sqrt": some_a_bit_off}, "sqrt"),
    "sqrt in float32": ({"sqrt": lambda x: np.sqrt(x.astype(f4)).astype(f8)}, "sqrt"),
    "sqrt of long arrays off": (
        {"sqrt": lambda x: np.sqrt(x) * (1.0 if x.size < 100 else 1.0 + 2.0**-52)},
        "sqrt",
    ),
    "float32 truncated": (cast(lambda x: kept_bits(x, 23)), "float64 to float32"),
    "float32 saturated": (cast(lambda x: np.clip(x, -3.4e38, 3.4e38)), "to32 at the ends"),
    "max without NaN": ({"max": no_nan(np.max)}, "max with nan"),
    "maximum without NaN": ({"maximum": np.fmax}, "maximum with nan"),
    "minimum without NaN": ({"minimum": np.fmin}, "minimum with nan"),
    "argmax of the last": ({"min": last_of_equals}, "argmax with equal numbers"),
    "max of int64 by float64": (
        {"max": lambda x, **o: np.max(x.astype(f8), **o).astype(x.dtype)},
        "int64 max(w)",
    ),
    "where as a product": ({"where": lambda c, a, b: c * a + (1 - c) * b}, "where"),
    "round half up": ({"round": lambda x: np.floor(x + 0.5)}, "round at ties"),
    "a function missing": ({"matmul": None}, "products: TypeError"),
}


# Operators.


def by_inverse(ufunc: Ufunc, *x: Any) -> Any:
    return np.asarray(x[0]) * (1.0 / np.asarray(x[1])) if ufunc is np.divide and is_float(x[0]) else None


def number_by_inverse(ufunc: Ufunc, *x: Any) -> Any:
    """A number divided by an array as the number times the inverse, as PyTorch does on a GPU."""
    return np.asarray(x[0]) * (1.0 / x[1]) if ufunc is np.divide and isinstance(x[1], float) else None


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """Return a + b and its rounding error (Knuth's two-sum)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def two_product(a: Any, b: Any) -> tuple[Any, Any]:
    """Return a * b and its rounding error (Dekker's product, with Veltkamp's splitting)."""
    p, parts = a * b, []
    for x in (a, b):
        y = x * 134217729.0
        high = y - (y - x)
        parts.append((high, x - high))
    (a1, a2), (b1, b2) = parts
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


def fused(ufunc: Ufunc, *x: Any) -> Any:
    """a * b + c with one rounding, as by a compiler that joins the two operations."""
    if ufunc not in (np.add, np.subtract):
        return None
    for k in (0, 1):
        made = getattr(x[k], "made_of", None)
        if made and made[0] is np.multiply and is_float(x[k]) and all(map(is_float, made[1])):
            a, b = map(np.asarray, made[1])
            c = np.asarray(x[1 - k])
            if ufunc is np.subtract:
                a, c = (a, -c) if k == 0 else (-a, c)
            p, left_out = two_product(a, b)
            s, more = two_sum(p, c)
            return s + (left_out + more)
    return None


def extended(ufunc: Ufunc, *x: Any) -> Any:
    """Operations that are rounded to the 64 bits of x87 first."""
    if ufunc not in (np.add, np.subtract, np.multiply, np.divide, np.sqrt) or not all(map(is_float, x)):
        return None
    return ufunc(*(np.asarray(v).astype(np.longdouble) for v in x)).astype(f8)


def to_zero(ufunc: Ufunc, *x: Any) -> Any:
    if ufunc not in (np.add, np.subtract) or not all(map(is_float, x)):
        return None
    a, b = np.asarray(x[0]), np.asarray(x[1])
    s, left_out = two_sum(a, b if ufunc is np.add else -b)
    return np.where((s > 0) & (left_out < 0) | (s < 0) & (left_out > 0), np.nextafter(s, 0.0), s)


def simplified(ufunc: Ufunc, *x: Any) -> Any:
    """(x + s) - s simplified to x, as by a compiler that treats floating-point numbers as real ones."""
    made = getattr(x[0], "made_of", None)
    if ufunc is np.subtract and made and made[0] is np.add and is_float(x[0]):
        a, s = made[1]
        return np.asarray(a) + 0.0 if x[1] is s or np.array_equal(x[1], s) else None
    return None


def always_equal(ufunc: Ufunc, *x: Any) -> Any:
    return np.zeros(x[0].shape, bool) if ufunc is np.not_equal and x[0] is x[1] else None


def unsigned_shift(ufunc: Ufunc, *x: Any) -> Any:
    if ufunc is not np.right_shift:
        return None
    return (np.asarray(x[0]).view(np.uint64) >> np.uint64(x[1])).view(np.int64)


OPERATORS = {
    "division by the inverse": (by_inverse, "x / y"),
    "division of a number by the inverse": (number_by_inverse, "x / 49.0, a Python number"),
    "fused multiply-add": (fused, "as if fused"),
    "extended precision": (extended, "x * y"),
    "rounding to zero": (to_zero, "x + y"),
    "simplified sums": (simplified, "at ties"),
    "no NaN": (always_equal, "x != x"),
    "logical shifts": (unsigned_shift, "int64 w >> 52"),
}


# All faults, then backends that compute in another correct way.

CONTROLS: dict[str, tuple[Callable[[], Backend], str]] = {
    **{f"product: {k}": (lambda f=f: Faulty(matmul=f), "product of") for k, f in PRODUCTS.items()},
    **{f"sum: {k}": (lambda f=f: Faulty(sum=f), "sum of") for k, f in SUMS.items()},
    **{k: (lambda f=f: Faulty(**f), message) for k, (f, message) in FUNCTIONS.items()},
    **{k: (lambda f=f: FaultyOperators(f), message) for k, (f, message) in OPERATORS.items()},
}


def shuffled(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    order = np.random.default_rng(3).permutation(a.shape[-1])
    return np.matmul(a[..., order], b[order])


def rank_by_rank(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] > 100:
        return np.matmul(a, b)
    return sum(a[..., k, None] * b[k] for k in range(a.shape[-1]))


def flushing(ufunc: Ufunc, *x: Any) -> Any:
    """float64 arithmetic with subnormal inputs and results replaced by zero."""
    if ufunc not in (np.add, np.subtract, np.multiply, np.divide) or not all(map(is_float, x)):
        return None
    return flushed(ufunc(*map(flushed, x)))


def flushed(x: Any) -> Any:
    x = np.asarray(x)
    return np.where(np.abs(x) < 2.0**-1022, 0.0 * x, x)


SOUND = {
    "numpy": NumpyBackend,
    "operators of an array class": lambda: FaultyOperators(lambda *_: None),
    "any order": lambda: Faulty(matmul=shuffled),
    "rank by rank": lambda: Faulty(matmul=rank_by_rank),
    "sums from the end": lambda: Faulty(sum=lambda x, **options: np.sum(np.flip(x), **options)[..., ::-1]
                                        if options.get("axis") == 0 and x.ndim == 2 else np.sum(x, **options)),
    "subnormals flushed": lambda: FaultyOperators(flushing),
}  # fmt: skip
