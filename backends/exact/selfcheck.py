"""The self-check of exact numerics: tests this machine's arithmetic. If a test fails, exact numerics refuse to run.

IEEE 754 defines `+ - * /` and sqrt of float64 to the last bit, and sums and products of slices are never rounded.
But a BLAS may multiply with fewer bits, a library may use a faster square root, and a compiler may compute a * b + c
with one rounding. The check tries each of these on numbers where it would show: integers that fill all 53 bits, and
numbers next to a tie. The right answers come from Python's integers and int64 (`reference.py`), never from the
library that is checked.

Subnormal float64 numbers are not tried: hardware that replaces them by zero passes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xnn.backends.communicator import with_communicator
from xnn.backends.exact.functions import ROUND
from xnn.backends.exact.namespace import ExactNamespace
from xnn.backends.exact.reference import (
    ARGUMENTS,
    KNOWN,
    OPERATIONS,
    float32_bits,
    near_maximal,
    nearest,
    noise,
    number,
    pairs,
    root,
    rounded,
)
from xnn.backends.exact.slices import exponent, product_bits, slice_one, slice_two, splitter, sum_bits, to32
from xnn.errors import NumericsError

__all__ = ["check", "failures", "known_values"]

NAN, INF = math.nan, math.inf

#: OpenBLAS uses several threads for a matrix product with more multiplications than this. On a busy machine their
#: waiting for each other would take longer than the rest of the check, so larger products are tried less often.
_THREADED = 262_144
#: Terms, rows, columns of the products: small, blocked and threaded ones, for which BLAS has different code.
_PRODUCTS = (
    (1, 33, 65), (10, 70, 40), (32, 600, 13), (130, 65, 101), (784, 17, 18), (1000, 21, 11), (4096, 5, 12),
    (20000, 3, 2),
)  # fmt: skip
#: Of each sum: the array's shape, the axes, and the number of terms.
_SUMS: tuple[tuple[tuple[int, ...], Any, int], ...] = (
    ((5, 2), 1, 2), ((1000, 40), 0, 1000), ((37, 1027), 1, 1027), ((131, 517), None, 131 * 517),
    ((65537,), 0, 65537), ((5, 301, 7), (0, 2), 35),
)  # fmt: skip
#: Start and end of short stretches: SIMD loops treat the last few elements of an array separately.
_SHORT = tuple((start, start + size) for start, size in enumerate((1, 2, 3, 5, 7, 9, 15, 17, 31)))


def check(namespace: ExactNamespace) -> None:
    """Raise NumericsError, naming what failed, unless the backend of `namespace` passes every trial."""
    found = [lines for lines in _failed_parts(namespace) if lines]
    if found:
        shown, count = [lines[0] for lines in found[:4]], sum(map(len, found))
        more = f"; and {count - len(shown)} more" if count > len(shown) else ""
        raise NumericsError(
            f"exact numerics cannot be kept on {namespace.lib.name} ({namespace.lib.describe()['library']}): "
            f"{'; '.join(shown)}{more}. Try another version or build of the array library or its BLAS "
            "(xnn info shows which are in use), or train with numerics='fast'"
        )


def failures(namespace: ExactNamespace) -> list[str]:
    """Return one line for each failed trial: what was computed, how many values are wrong, and one of them."""
    return [line for lines in _failed_parts(namespace) for line in lines]


def _failed_parts(namespace: ExactNamespace) -> list[list[str]]:
    trials, numbers = [], pairs(2000)
    # No communicator: the other workers may have been checked before, and would not answer.
    with namespace.lib.guard(), with_communicator(None):
        for part in _PARTS:
            trials.append(trial := _Trial(namespace, numbers))
            try:
                part(trial)
            except MemoryError:
                raise
            except Exception as error:
                reason = " ".join(str(error).split())
                trial.failed.append(f"{part.__name__[1:]}: {type(error).__name__}: {reason}")
    return [trial.failed for trial in trials]


class _Trial:
    """The array library that is checked, and its failures so far.

    numbers: pairs of integers, see `reference.pairs`.
    """

    def __init__(self, namespace: ExactNamespace, numbers: list[tuple[int, int]]) -> None:
        self.numbers = numbers
        self.exact, self.lib, self.xp = namespace, namespace.lib, namespace.base
        self.failed: list[str] = []

    def put(self, numbers: Any, dtype: Any = np.float64) -> Any:
        return self.lib.to_device(np.asarray(numbers, dtype=dtype))

    def same(self, what: str, got: Any, right: Any, dtype: Any = np.float64) -> None:
        """Compare an array with the right numbers, bit for bit, and note a difference. All NaNs are equal."""
        y, z = self.lib.to_host(got), np.asarray(right, dtype=dtype)
        if y.dtype != z.dtype or y.shape != z.shape:
            self.failed.append(
                f"{what}: {y.dtype} of shape {y.shape} instead of {z.dtype} of shape {z.shape}"
            )
            return
        y, z = np.ravel(y), np.ravel(z)
        wrong = y.view(f"i{y.itemsize}") != z.view(f"i{z.itemsize}")
        if z.dtype.kind == "f":
            wrong &= (y == y) | (z == z)
        if np.any(wrong):
            at = int(np.argmax(wrong))
            count = f"{np.count_nonzero(wrong)} of {wrong.size} wrong"
            self.failed.append(f"{what}: {count}, for example {y[at].item()!r} in place of {z[at].item()!r}")


# Sums and products.


def _products(t: _Trial) -> None:
    """Check products of integers whose sums fill 53 bits, in both orders and layouts, with a scale for each row."""
    for terms, rows, columns in _PRODUCTS:
        bits = product_bits(terms)
        _product(t, terms, rows, columns, bits.two, bits.one)
        if rows <= 70 and columns <= 70 and terms < 20000:
            _product(t, terms, rows, columns, bits.one, bits.two)
            _product(t, terms, rows, columns, 8, bits.one + bits.two - 8)  # pixels


def _product(t: _Trial, terms: int, rows: int, columns: int, na: int, nb: int) -> None:
    """Multiply (rows, terms) integers of na bits by (terms, columns) of nb bits; BLAS has code for each layout."""
    # Only four rows and three columns are different: the right answers, in slow int64, take little time.
    few_a, few_b = near_maximal(na, (4, terms), 1), near_maximal(nb, (3, terms), 2)
    few_a[1] *= -1
    few_a[2, ::3] *= -1
    few_b[1] *= -1
    scale_a = 2.0 ** np.asarray((0, -240, 150, 77))[:, None]
    scale_b = 2.0 ** np.asarray((0, -200, 13))[:, None]
    i, j = np.arange(rows) % 4, np.arange(columns) % 3
    right = ((few_a @ few_b.T) * scale_a * scale_b.T)[i][:, j]
    a, b = (few_a * scale_a)[i], (few_b * scale_b)[j].T

    name, matmul, flip = f"product of {terms} terms of {na} and {nb} bits", t.xp.matmul, t.xp.matrix_transpose
    x, y, x_flipped = t.put(a), t.put(b.copy()), flip(t.put(a.T.copy()))
    t.same(name, matmul(x, y), right)
    t.same(f"{name}, first transposed", matmul(x_flipped, y), right)
    if terms * rows * columns > _THREADED:
        return
    y_flipped = flip(t.put(b.T))
    t.same(f"{name}, second transposed", matmul(x, y_flipped), right)
    t.same(f"{name}, both transposed", matmul(x_flipped, y_flipped), right)
    t.same(f"{name}, one row", matmul(x[:1, :], y), right[:1])
    t.same(f"{name}, one column", matmul(x, y[:, :1]), right[:, :1])
    t.same(f"{name}, a vector and a matrix", matmul(x[2, :], y_flipped), right[2])
    t.same(f"{name}, two vectors", matmul(x[1, :], y[:, 1]), right[1, 1])
    if rows == 70:
        stack = t.xp.reshape(x, (7, 10, terms))
        t.same(f"{name}, a stack", matmul(stack, y), right.reshape(7, 10, columns))


def _sums(t: _Trial) -> None:
    """Check sums of integers that fill 53 bits: along an axis, over all axes, and by index."""
    for shape, axis, terms in _SUMS:
        integers = near_maximal(sum_bits(terms), shape, 3)
        got, right = t.xp.sum(t.put(integers), axis=axis), integers.sum(axis=axis)
        t.same(f"sum of {terms} terms of {shape} over axis {axis}", got, right)
    rows, where = near_maximal(sum_bits(90), (90, 5), 4), noise(90, 5) % np.uint64(7)
    integers = np.zeros((7, 5), np.int64)
    np.add.at(integers, where, rows)
    t.same("sum of rows by index", t.exact.scatter_add(7, t.put(where, np.int64), t.put(rows)), integers)


# Operations.


def _arithmetic(t: _Trial) -> None:
    """Check that + - * / are rounded once: in long and short arrays, with rows, columns and Python numbers."""
    a, b = zip(*t.numbers, strict=True)
    x, y = t.put(a), t.put(b)
    table = t.xp.reshape(x[:264], (8, 33))
    for sign, operation in OPERATIONS.items():
        right = np.asarray([rounded(sign, *pair) for pair in t.numbers])
        t.same(f"x {sign} y", operation(x, y), right)
        t.same(f"x {sign} y of every third number", operation(x[::3], y[::3]), right[::3])
        for start, end in _SHORT:
            t.same(
                f"x {sign} y of {end - start} numbers",
                operation(x[start:end], y[start:end]),
                right[start:end],
            )
        right = np.asarray([[rounded(sign, n, m) for m in b[-5:]] for n in a[:60]])
        t.same(f"column {sign} row", operation(x[:60, None], y[None, -5:]), right)
        for m in (3, 49, b[-1]):
            right = np.asarray([rounded(sign, n, m) for n in a[:264]]).reshape(8, 33)
            t.same(f"x {sign} {float(m)!r}, a Python number", operation(table, float(m)), right)
        t.same(f"x {sign} one number, transposed", operation(t.xp.matrix_transpose(table), y[-1]), right.T)
        right = np.asarray([rounded(sign, 49, m) for m in b[:99]])  # PyTorch multiplies by the inverse here
        t.same(f"49.0 {sign} y, a Python number", operation(49.0, y[:99]), right)
    x, y = t.put([1.7e308, -1.7e308, INF, 1.0, -1.0, 0.0]), t.put([1.7e308, -1.7e308, -INF, 0.0, 0.0, 0.0])
    t.same("x + y of infinities and zeros", x + y, [INF, -INF, NAN, 1.0, -1.0, 0.0])
    t.same("x * y of infinities and zeros", x * y, [INF, INF, -INF, 0.0, -0.0, 0.0])
    t.same("x / y of infinities and zeros", x / y, [1.0, 1.0, NAN, INF, -INF, NAN])


def _roots(t: _Trial) -> None:
    """Check that sqrt is rounded once."""
    numbers = [abs(n) for pair in t.numbers for n in pair]
    right, x, sqrt = np.asarray([root(n) for n in numbers]), t.put(numbers), t.xp.sqrt
    t.same("sqrt", sqrt(x), right)
    t.same("sqrt of every third number", sqrt(x[::3]), right[::3])
    for start, end in _SHORT:
        t.same(f"sqrt of {end - start} numbers", sqrt(x[start:end]), right[start:end])
    t.same("sqrt of 0, inf, -1 and nan", sqrt(t.put([0.0, INF, -1.0, NAN])), [0.0, INF, NAN, NAN])


def _contraction(t: _Trial) -> None:
    """Check that a * b + c is rounded twice, and is not computed as one fused multiply-add."""
    numbers = t.numbers[:500]
    products = [int(float(n * m)) for n, m in numbers]
    others = [p // 3 for p in products[::-1]]
    (x, y), z, c = map(t.put, zip(*numbers, strict=True)), t.put(products), t.put(others)
    zero, both = (
        np.zeros(len(products)),
        [float(p + int(float(q))) for p, q in zip(products, others, strict=True)],
    )
    t.same("a * b + c for c = -(a * b), as if fused", x * y + (-z), zero)
    t.same("a * b - c for c = a * b, as if fused", x * y - z, zero)
    t.same("c - a * b for c = a * b, as if fused", z - x * y, zero)
    t.same("a * b + c, as if fused", x * y + c, both)
    t.same("c + a * b, as if fused", c + x * y, both)
    t.same("a * b + 3.0, as if fused", x * y + 3.0, [float(p + 3) for p in products])


# Slices and storage.


def _rounding(t: _Trial) -> None:
    """Check that (x + c) - c is rounded to whole numbers for c = 1.5 * 2^52, and not simplified to x."""
    x = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999999999999994, 2.0**50 + 0.5, -(2.0**50) - 1.5, 3.0, -7.25]
    right = [0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 0.0, 2.0**50, -(2.0**50) - 2.0, 3.0, -7.0]
    t.same("(x + 1.5 * 2^52) - 1.5 * 2^52 at ties", (t.put(x) + ROUND) - ROUND, right)
    t.same("round at ties", t.xp.round(t.put(x)) + 0.0, right)


def _slices(t: _Trial) -> None:
    """Check that numbers are split into slices as the definition says, and that the remainder is exact."""
    rows = [[number(word) for word in row] for row in noise(3 * 151, 8).reshape(3, 151).tolist()]
    sizes = [max(map(abs, row)).bit_length() for row in rows]
    x = t.put(rows)
    fields = exponent(t.lib, x, 1)
    t.same("exponent of rows", fields, [[size + 1022] for size in sizes], np.int64)
    unit = 1 << 160  # the numbers below are in multiples of 1 / unit, in which every step is a whole number
    for bits in (13, 26, 50):
        high, rest, low = [], [], []
        for row, size in zip(rows, sizes, strict=True):
            step = 1 << 160 + size - bits
            high.append([nearest(n * unit, step) for n in row])
            rest.append([n * unit - h for n, h in zip(row, high[-1], strict=True)])
            low.append([nearest(n, step >> bits + 1) for n in rest[-1]])
        first, second = slice_two(t.lib, x, fields, bits)
        for name, got, right in (
            ("one slice", slice_one(t.lib, x, fields, bits), high),
            ("first slice", first, high),
            ("rest of a slice", x - first, rest),
            ("second slice", second, low),
        ):
            t.same(f"{name} of {bits} bits", got, np.asarray(right, np.float64) / float(unit))
    x = t.put([[1.0, INF, 2.0], [NAN, 1.0, 2.0], [0.0, 0.0, 0.0]])
    fields = exponent(t.lib, x, 1)
    t.same("exponent of inf, nan and 0", fields, [[2047], [2047], [0]], np.int64)
    t.same(
        "slice of a row with inf or nan", slice_one(t.lib, x, fields, 20), [[NAN] * 3, [NAN] * 3, [0.0] * 3]
    )


def _storage(t: _Trial) -> None:
    """Check float64 to float32 and back: rounded to nearest, ties to even, without subnormals and -0."""
    numbers, powers, float32 = [], [], t.xp.float32
    for word in noise(1021, 9).tolist():
        n = 1 << 52 | word >> 12
        # About every other number is a tie.
        numbers.append((n >> 29 << 29 | 1 << 28 if word & 4 else n) * (1 - (word & 2)))
        powers.append((word >> 3) % 176 - 151)
    x = t.put(list(map(math.ldexp, numbers, powers)))
    right = list(map(float32_bits, numbers, powers))
    for name, stored in (
        ("float64 to float32", t.xp.asarray(x, dtype=float32)),
        ("float64 to float32 by astype", t.xp.astype(x, float32)),
        ("float64 to float32 by to32", to32(t.lib, x)),
    ):
        t.same(name, t.lib.bits(stored, "int32"), right, np.int32)
    edges = {
        2.0**128 - 2.0**103: 0x7F800000, 2.0**128 - 2.0**103 - 2.0**75: 0x7F7FFFFF, 1e300: 0x7F800000,
        INF: 0x7F800000, 2.0**-126: 0, 2.0**-126 + 2.0**-177: 0x01000000, -(2.0**-126): 0, -0.0: 0,
        -(2.0**-125): -0x7F000000, 2.0**-149: 0, 1e-300: 0, -1e-300: 0, 2.0**-124 + 2.0**-126: 0x01800000,
        2.0**-124 + 2.0**-126 + 2.0**-150: 0x01C00000,
    }  # fmt: skip
    stored = to32(t.lib, t.put(list(edges)))
    t.same("to32 at the ends of float32", t.lib.bits(stored, "int32"), list(edges.values()), np.int32)
    t.same("to32 of nan", to32(t.lib, t.put([NAN, 1.0])), [NAN, 1.0], np.float32)
    kept = [0.0, 2.0**-125, -3.0 * 2.0**-125, 1.5, -INF, NAN, 3.4028234663852886e38]
    t.same("float32 to float64", t.exact.enter(t.put(kept, np.float32)), kept)
    words = np.asarray([1, 0x80000001, 0x7FFFFF, 0x807FFFFF, 0x80000000, 0x800000], np.uint32)
    entered = t.exact.enter(t.put(words.view(np.float32), np.float32))
    t.same("subnormal float32 and -0 to float64", entered, np.zeros(6))


def _bits(t: _Trial) -> None:
    """Check that the bits of float64 can be read and set as int64, and the arithmetic of int64."""
    known = {
        1.0: 0x3FF << 52, -1.0: 0x3FF << 52 | -(1 << 63), -0.0: -(1 << 63), INF: 0x7FF << 52, ROUND: 0x4338 << 48,
        -1.1: -0x400E666666666666, 2.0**-1000: 23 << 52, 0.1: 0x3FB999999999999A,
    }  # fmt: skip
    bits = t.lib.bits
    t.same("bits of float64", bits(t.put(list(known)), "int64"), list(known.values()), np.int64)
    t.same("float64 of bits", bits(t.put(list(known.values()), np.int64), "float64"), list(known))
    x = t.put([1.0, -1.5, -0.0], np.float32)
    t.same("bits of float32", bits(x, "int32"), [0x3F800000, -0x40400000, -(1 << 31)], np.int32)
    words = (noise(1001, 10).view(np.int64) & ~(1 << 62)).tolist()  # no NaN: copying one may change its bits
    w = t.put(words, np.int64)
    t.same("bits there and back", bits(bits(w, "float64"), "int64"), words, np.int64)
    for name, got, right in (
        ("w >> 52", w >> 52, [n >> 52 for n in words]),
        ("w << 52", w << 52, [((n & 0xFFF) << 52) - ((n & 0x800) << 53) for n in words]),
        ("(w >> 52) & 0x7FF", (w >> 52) & 0x7FF, [n >> 52 & 0x7FF for n in words]),
        ("w | 1 << 51", w | 1 << 51, [n | 1 << 51 for n in words]),
        ("(w >> 1) + 2^61", (w >> 1) + (1 << 61), [(n >> 1) + (1 << 61) for n in words]),
        ("maximum(w, -500)", t.xp.maximum(w, -500), [max(n, -500) for n in words]),
        ("max(w)", t.xp.max(w, axis=0, keepdims=True), [max(words)]),
    ):
        t.same(f"int64 {name}", got, right, np.int64)
    made = splitter(t.lib, t.put([0, 1023, 1900, 1901, 2047], np.int64), 20)
    t.same("splitters", made, [1.5 * 2.0**-448, 1.5 * 2.0**33, 1.5 * 2.0**910, NAN, NAN])


def _order(t: _Trial) -> None:
    """Check comparisons, maxima and where, with NaN and both zeros."""
    xp, exact = t.xp, t.exact
    x = t.put([1.0, NAN, -0.0, INF, -3.0])
    t.same("x != x", x != x, [False, True, False, False, False], np.bool)
    t.same("x < 0", x < 0.0, [False, False, False, False, True], np.bool)
    t.same("x == 0", x == 0.0, [False, False, True, False, False], np.bool)
    t.same("where", xp.where(x > 0.0, -x, 7.0), [-1.0, 7.0, 7.0, -INF, 7.0])
    t.same("abs", xp.abs(x), [1.0, NAN, 0.0, INF, 3.0])
    zeros = t.put([[-0.0, 0.0], [0.0, -0.0], [-0.0, -0.0]])
    t.same("max of zeros", exact.max(zeros, axis=1), np.zeros(3))
    t.same("min of zeros", exact.min(zeros, axis=1), np.zeros(3))
    t.same("maximum of zeros", exact.maximum(zeros, -zeros), np.zeros((3, 2)))
    t.same("minimum of zeros", exact.minimum(zeros, -zeros), np.zeros((3, 2)))
    # NaN, or the largest number, at two places of each row.
    numbers = (noise(40 * 37, 11) >> np.uint64(14)).astype(np.float64).reshape(40, 37)
    rows, places = np.arange(40), np.stack((np.arange(40) % 37, np.arange(40) % 37 // 2 + 18))
    first = places.min(axis=0)
    for name, value in (("equal numbers", 2.0**51), ("nan", NAN)):
        numbers[rows, places] = value
        y = t.put(numbers)
        t.same(f"max with {name}", exact.max(y, axis=1), np.full(40, value))
        t.same(f"min with {name}", exact.min(-y, axis=1), np.full(40, -value))
        t.same(f"maximum with {name}", exact.maximum(y, 0.0), numbers)
        t.same(f"minimum with {name}", exact.minimum(y, INF), numbers)
        t.same(f"argmax with {name}", exact.argmax(y, axis=1), first, np.int64)
        t.same(f"argmin with {name}", exact.argmin(-y, axis=1), first, np.int64)


# Functions.


def known_values(namespace: ExactNamespace) -> dict[str, str]:
    """Return the values of every function at reference.ARGUMENTS, in hexadecimal, in the form of reference.KNOWN."""
    x = namespace.lib.to_device(np.asarray(ARGUMENTS))
    size = namespace.abs(x)
    names = "exp", "expm1", "tanh", "erf", "erfc", "sin", "cos"
    values = {name: getattr(namespace, name)(x) for name in names}
    values |= {
        "log": namespace.log(size),
        "log1p": namespace.log1p(size),
        "pow": namespace.pow(size, x * 0.5),
    }
    return {name: " ".join(map(float.hex, namespace.lib.to_host(y).tolist())) for name, y in values.items()}


def _functions(t: _Trial) -> None:
    """Check exp, log, tanh and the other functions of exact numerics at a few arguments."""
    for name, got in known_values(t.exact).items():
        right = [float.fromhex(word) for word in KNOWN[name].split()]
        t.same(name, t.put([float.fromhex(word) for word in got.split()]), right)


#: Products come last: after one, BLAS's threads stay busy waiting for a while and would slow the other trials down.
_PARTS = (
    _arithmetic, _roots, _contraction, _rounding, _bits, _order, _storage, _slices, _sums, _functions, _products,
)  # fmt: skip
