"""Splitting numbers into slices, so that sums and products of the slices are never rounded.

float64 holds every integer up to 2^53. Round the numbers of a row to multiples of one step, so that each is at most
2^n steps. Then a sum of K products of n_a-bit by n_b-bit numbers is a whole number of steps, at most K 2^(n_a + n_b).
If that is at most 2^53, every partial sum is exact: in any order, with any blocking, with or without fused
multiply-add, on any BLAS.

    step of a row    2^t with t = e - n, where |x| < 2^e for every x of the row
    slice            (x + s) - s with s = 1.5 * 2^(52 + t): the multiple of 2^t nearest to x, by one rounding
    second slice     the same of the rest x - slice, which is exact, with the step 2^(t - n - 1)

After Rump's ExtractVector (SIAM J. Sci. Comput. 31, 2008) and Ozaki, Ogita, Oishi and Rump, "Error-free
transformations of matrix multiplication" (Numer. Algorithms 59, 2012). docs/numerics.md has the proof and an example
with numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xnn.errors import NumericsError

__all__ = [
    "FINEST", "FLUSH", "LARGEST", "LONGEST", "ProductBits", "budget", "exponent", "factor_exponent", "log2_ceil",
    "product_bits", "slice_one", "slice_two", "splitter", "sum_bits", "to32",
]  # fmt: skip

#: Adding and then subtracting it rounds to a multiple of 2^-125. float32 numbers rounded like this are never
#: subnormal and never -0, so hardware that replaces subnormal numbers by zero computes the same.
FLUSH = 1.5 * 2.0**-73

#: The most terms of a sum: with more, too few bits would be left for each term.
LONGEST = 2**29

#: The smallest step is 2^FINEST: the product of two slices is then at least 2^-1000, and never subnormal.
FINEST = -500
#: The largest exponent field whose splitter is finite.
LARGEST = 1900
#: The largest exponent field of a factor: below 2^497, sums of 2^29 products are below 2^(2 * 497 + 29) = 2^1023.
_LARGEST_FACTOR = 1022 + 497
_NAN = 0x7FF8 << 48


@dataclass(frozen=True)
class ProductBits:
    """The bits of slices in a matrix product: one slice of `one` bits for one operand, two of `two` for the other."""

    one: int
    two: int


def log2_ceil(count: int) -> int:
    """Return the least n with count <= 2^n; 0 for a count below 1."""
    return max(int(count) - 1, 0).bit_length()


def budget(terms: int) -> int:
    """Return how many bits the two factors of a product may have together, in a sum of `terms` products.

    It is the largest number with terms * 2^budget <= 2^53. Raises NumericsError above 2^29 terms.
    """
    if terms > LONGEST:
        raise NumericsError(
            f"a sum of {terms:,} terms is too long for exact numerics, which add at most 2**29: use smaller batches "
            "or layers"
        )
    return 53 - log2_ceil(terms)


def product_bits(terms: int) -> ProductBits:
    """Divide the budget of a matrix product with sums of `terms` terms between its two operands.

    The operand with one slice gets about two thirds of it, at most 27 bits; each slice of the other gets the rest.
    """
    total = budget(terms)
    one = min(27, total - (total - 1) // 3)
    return ProductBits(one, total - one)


def sum_bits(terms: int) -> int:
    """Return how many bits each term may have in a sum of `terms` terms."""
    return min(50, budget(terms))


def exponent(lib: Any, x: Any, axis: Any = None) -> Any:
    """Return the largest exponent field of float64 numbers over `axis`; the axes are kept, with length 1.

    For an exponent field E, |x| < 2^(E - 1022). A maximum of integers is the same in any order. NaN and infinity have
    the largest field, 2047.
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
    """Return `exponent` for an operand of a product, but 2047, the field of NaN, for numbers above 2^497.

    A sum of 2^29 products of larger numbers could overflow, and be infinite in one order and finite in another. No
    float32 is that large.
    """
    found = exponent(lib, x, axis)
    return lib.xp.where(found > _LARGEST_FACTOR, 2047, found)


def splitter(lib: Any, exponents: Any, bits: int) -> Any:
    """Return the constant that rounds numbers to a slice: 1.5 * 2^(52 + t) with t = exponent - 1022 - bits.

    Adding the constant to a number and subtracting it again rounds the number to a multiple of 2^t.

    The result is NaN for the exponent of NaN and infinity, which so make their whole row NaN, and for numbers above
    2^878, where it would overflow.
    """
    xp = lib.xp
    step = xp.maximum(exponents - (1022 + bits), FINEST)
    words = ((step + (52 + 1023)) << 52) | (1 << 51)
    return lib.bits(xp.where(exponents > LARGEST, _NAN, words), "float64")


def slice_one(lib: Any, x: Any, exponents: Any, bits: int) -> Any:
    """Round x to multiples of its row's step; each result is at most 2^bits steps.

    exponents: of each row, as `exponent` gives them.

    >>> import numpy as np, xnn
    >>> from xnn.backends.exact.slices import exponent, slice_one
    >>> lib, x = xnn.backends.get_backend("numpy"), np.asarray([[3.7, -0.4, 1.2]])
    >>> slice_one(lib, x, exponent(lib, x, 1), 4)  # all are below 2^2: the step is 2^(2 - 4) = 0.25
    array([[ 3.75, -0.5 ,  1.25]])
    """
    s = splitter(lib, exponents, bits)
    return (x + s) - s


def slice_two(lib: Any, x: Any, exponents: Any, bits: int) -> tuple[Any, Any]:
    """Split x into two slices of `bits` bits each.

    Their sum has 2 * bits + 1 bits of x: the sign of the second slice is worth one more bit.
    """
    high = slice_one(lib, x, exponents, bits)
    return high, slice_one(lib, x - high, exponents, 2 * bits + 1)


def to32(lib: Any, y: Any) -> Any:
    """Round float64 to what exact numerics store: float32 that is neither subnormal nor -0; below 2^-126 it is 0."""
    return lib.xp.asarray((y + FLUSH) - FLUSH, dtype=lib.xp.float32)
