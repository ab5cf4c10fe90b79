"""Error-free splitting: numbers cut to integers of few bits, so that products and sums of them are never rounded.

A float64 holds integers up to 2^53. Cut the numbers of a row to multiples of one step, n bits each; then a sum
of K products of n_a-bit by n_b-bit integers is an integer below K 2^(n_a + n_b), and if that is at most 2^53
every partial sum is exact: in any order, with any blocking, with or without fused multiply-add, on any BLAS.

    step of a row    2^t,  t = e - n,   where |x| < 2^e for every x of the row
    slice            (x + s) - s,   s = 1.5 * 2^(52 + t): the nearest multiple of 2^t, by one rounding
    second slice     of what is left, exactly, at 2^(t - n - 1)

After Rump's ExtractVector (SIAM J. Sci. Comput. 31, 2008) and Ozaki, Ogita, Oishi and Rump, "Error-free
transformations of matrix multiplication" (Numer. Algorithms 59, 2012). docs/numerics.md has the proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xnn.errors import NumericsError

__all__ = [
    "FINEST", "FLUSH", "LARGEST", "LONGEST", "ProductBits", "budget", "exponent", "factor_exponent", "log2_ceil",
    "product_bits", "slice_one", "slice_two", "splitter", "sum_bits", "to32",
]  # fmt: skip

#: float32 storage: adding and subtracting it rounds to a multiple of 2^-125, so that what is stored is neither
#: subnormal nor -0, and hardware that flushes subnormals to zero computes the same.
FLUSH = 1.5 * 2.0**-73

#: The longest sum whose terms still have a useful number of bits.
LONGEST = 2**29

#: Steps are no finer than 2^this: the product of two slices is then at least 2^-1000 and never subnormal.
FINEST = -500
#: The largest exponent field whose splitter is finite.
LARGEST = 1900
_LARGEST_FACTOR = 1022 + 497  # 2 * 497 + 29 = 1023
_NAN = 0x7FF8 << 48


@dataclass(frozen=True)
class ProductBits:
    """How a product of K terms is cut: one slice of `one` bits on one side, two of `two` bits on the other."""

    one: int
    two: int


def log2_ceil(count: int) -> int:
    """The least n with count <= 2^n; 0 for a count below 1."""
    return max(int(count) - 1, 0).bit_length()


def budget(terms: int) -> int:
    """The bits that the two factors of each of so many products may have together: terms * 2^budget <= 2^53.

    Raises NumericsError above 2^29 terms.
    """
    if terms > LONGEST:
        raise NumericsError(
            f"exact numerics add at most 2**29 products, got {terms:,}: use smaller batches or layers"
        )
    return 53 - log2_ceil(terms)


def product_bits(terms: int) -> ProductBits:
    """About two thirds of the budget for the operand of one slice, at most 27 bits; the rest for the other's two."""
    total = budget(terms)
    one = min(27, total - (total - 1) // 3)
    return ProductBits(one, total - one)


def sum_bits(terms: int) -> int:
    """The bits that each of so many terms of a sum may have."""
    return min(50, budget(terms))


def exponent(lib: Any, x: Any, axis: Any = None) -> Any:
    """The largest exponent field of float64 x over `axis`, kept as extents of 1: |x| < 2^(exponent - 1022).

    A maximum of integers: its order does not matter, and NaN and infinity have the largest field, 2047.
    """
    xp = lib.xp
    fields = (lib.bits(x, "int64") >> 52) & 0x7FF
    if 0 in x.shape:
        axes = (
            range(x.ndim)
            if axis is None
            else [a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis)]
        )
        shape = tuple(1 if a in axes else extent for a, extent in enumerate(x.shape))
        return xp.zeros(shape, dtype=fields.dtype, device=x.device)
    return xp.max(fields, axis=axis, keepdims=True)


def factor_exponent(lib: Any, x: Any, axis: Any = None) -> Any:
    """exponent(x) of a product's operand: that of NaN above 2^497, where sums of 2^29 products could overflow.

    Then they would be infinite in one order and finite in another. What is stored as float32 is far below.
    """
    found = exponent(lib, x, axis)
    return lib.xp.where(found > _LARGEST_FACTOR, 2047, found)


def splitter(lib: Any, exponents: Any, bits: int) -> Any:
    """1.5 * 2^(52 + t), t = exponent - 1022 - bits: adding and subtracting it rounds to multiples of 2^t.

    NaN where the exponent is that of NaN and infinity, which so spread over their row, or of numbers above 2^878,
    whose splitter would overflow.
    """
    xp = lib.xp
    step = xp.maximum(exponents - (1022 + bits), FINEST)
    words = ((step + (52 + 1023)) << 52) | (1 << 51)
    return lib.bits(xp.where(exponents > LARGEST, _NAN, words), "float64")


def slice_one(lib: Any, x: Any, exponents: Any, bits: int) -> Any:
    """x to the nearest multiple of its row's step: at most 2^bits of them."""
    s = splitter(lib, exponents, bits)
    return (x + s) - s


def slice_two(lib: Any, x: Any, exponents: Any, bits: int) -> tuple[Any, Any]:
    """x as two slices of so many bits; their sum has 2 bits + 1 bits, the second one's sign being one of them."""
    high = slice_one(lib, x, exponents, bits)
    return high, slice_one(lib, x - high, exponents, 2 * bits + 1)


def to32(lib: Any, y: Any) -> Any:
    """float64 as it is stored: float32, neither subnormal nor -0 (below 2^-126 it is 0)."""
    return lib.xp.asarray((y + FLUSH) - FLUSH, dtype=lib.xp.float32)
