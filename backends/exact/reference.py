"""Computes exact results with Python's integers; the self-check compares a backend's results with them.

CPython converts an integer to float, and divides two long integers, in integer arithmetic: the result is rounded to
nearest, ties to even, whatever the processor does.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "ARGUMENTS", "KNOWN", "OPERATIONS", "float32_bits", "near_maximal", "nearest", "noise", "number", "pairs",
    "root", "rounded",
]  # fmt: skip

#: The operations, besides sqrt, whose results IEEE 754 defines to the last bit.
OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip


def noise(count: int, seed: int) -> np.ndarray:
    """Return `count` random uint64 by the splitmix64 generator: integer arithmetic, the same on every machine."""
    x = (np.arange(count, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(x ^ (x >> np.uint64(31)))


def near_maximal(bits: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return an int64 array of this shape whose elements are 2^bits - 1, 2^bits - 2 or 2^bits - 3, at random."""
    words = noise(math.prod(shape), seed).view(np.int64)
    return np.asarray((1 << bits) - 1 - (words & 1) - (words >> 1 & 1)).reshape(shape)


def nearest(x: int, step: int) -> int:
    """Return the multiple of `step` nearest to x; at a tie, the even multiple."""
    quotient, rest = divmod(x, step)
    return step * (quotient + (2 * rest > step or (2 * rest == step and quotient & 1)))


def rounded(sign: str, a: int, b: int) -> float:
    """Return a + b, a - b, a * b or a / b as a float, rounded once."""
    # The shift makes a long: CPython divides two short integers by the processor.
    return math.ldexp((a << 256) / b, -256) if sign == "/" else float(OPERATIONS[sign](a, b))


def root(a: int) -> float:
    """Return the square root of a positive integer as a float, rounded once."""
    shift = max(112 - a.bit_length(), 0) & ~1
    found = math.isqrt(a << shift)
    # One more bit, 1 if `found` is not the whole root, keeps float() from seeing a tie where there is none.
    return math.ldexp(float(found << 1 | (found * found != a << shift)), -1 - shift // 2)


def number(word: int) -> int:
    """Turn 64 random bits into an integer that float64 holds: a sign, 53 bits, times 2^0 to 2^94."""
    size = (word >> 11 | 1 << 52) << (word & 63) + (word >> 1 & 31)
    return size if word & 1024 else -size


def pairs(count: int) -> list[tuple[int, int]]:
    """Return pairs of integers that float64 holds: some with results close to a tie, then `count` random ones."""
    one, tie = 1 << 52, 1 << 53
    # Products and quotients within 2^-104 of a tie; numbers whose square roots are within 2^-97 of one.
    near = [(one + i, tie - j) for i in (1, 2, 3, 5, 14, 31) for j in (1, 3, 5, 7)]
    near += [(one + i, 1) for i in range(-33, 34, 2)]
    # Products that are ties; sums and differences that are ties.
    near += [(3 * one // 2, one + i) for i in (1, 3, 5)]
    near += [(tie + 2 * i, j) for i in (0, 1, 2, 3) for j in (1, -1, 3)]
    # Sums and differences that differ from a tie in a bit far below those that a 64-bit extended format holds.
    near += [((tie + 2 * i) << 70, (one << 18) + j) for i in (0, 1, 2) for j in (1 << 18, -(1 << 18), 0)]
    words = zip(noise(count, 6).tolist(), noise(count, 7).tolist(), strict=True)
    return near + [(number(a), number(b)) for a, b in words]


def float32_bits(x: int, power: int) -> int:
    """Return the bits, as an int, of the float32 nearest to x * 2^power.

    x has 53 bits; the result must be a normal number or too large for float32 (infinity).
    """
    near = nearest(abs(x), 1 << 29)
    size = near.bit_length()
    field = size + power + 126
    bits = 0x7F800000 if field >= 255 else field << 23 | (near >> size - 24) & 0x7FFFFF
    return bits - (1 << 31) * (x < 0)


#: Arguments at which the elementary functions are tried: both signs, and each range for which they have a formula.
ARGUMENTS = (-20.7, -1.3, -1e-5, 0.2, 0.7, 3.9, 80.2)
#: The functions' values at ARGUMENTS; log, log1p and pow take |x|, and pow's exponent is x / 2. After a change of
#: the functions, this prints the new values:
#:     python -c "import pprint, xnn.backends as b, xnn.backends.exact as e, xnn.backends.exact.selfcheck as s;
#:                pprint.pp(s.known_values(e.ExactNamespace(b.get_backend('numpy'))))"
KNOWN: dict[str, str] = {
    "exp": "0x1.195920309b9dap-30 0x1.17129308ce281p-2 0x1.fffeb07515653p-1 0x1.38add9e58ac8dp+0 "
    "0x1.01c2a61268987p+1 0x1.8b38373c9473cp+5 0x1.a111aa1a5683ep+115",
    "expm1": "-0x1.fffffff735370p-1 -0x1.7476b67b98ec0p-1 -0x1.4f8aea9acf2cap-17 0x1.c56ecf2c56467p-3 "
    "0x1.03854c24d130dp+0 0x1.8338373c9473cp+5 0x1.a111aa1a5683ep+115",
    "tanh": "-0x1.0000000000000p+0 -0x1.b933c726e9b39p-1 -0x1.4f8b588e06854p-17 0x1.9439830b3a590p-3 "
    "0x1.356fb17af2e92p-1 0x1.ff94a269aef87p-1 0x1.0000000000000p+0",
    "erf": "-0x1.0000000000000p+0 -0x1.de364a1372d3ap-1 -0x1.7a9f084b5e44cp-17 0x1.c8184b8b25f1cp-3 "
    "0x1.5b08c21171646p-1 0x1.fffffed523094p-1 0x1.0000000000000p+0",
    "erfc": "0x1.0000000000000p+1 0x1.ef1b2509b969dp+0 0x1.0000bd4f8425bp+0 0x1.8df9ed1d36839p-1 "
    "0x1.49ee7bdd1d373p-2 0x1.2adcf6ba2c079p-25 0x0.0p+0",
    "sin": "-0x1.ec1c35bc6551ap-1 -0x1.ed577f9c51e4bp-1 -0x1.4f8b588e1e8a2p-17 0x1.96dff233dd2bcp-3 "
    "0x1.49d6e694619b8p-1 -0x1.6022e2d1fb3cbp-1 -0x1.fdf4b5ad5c27ap-1",
    "cos": "-0x1.1aa43a1c03421p-2 0x1.11eb3682a4c5fp-2 0x1.ffffffff920c8p-1 0x1.f5cb49577627ap-1 "
    "0x1.87996529f9d93p-1 -0x1.73ad66234c8eap-1 0x1.6da4a504a02aap-4",
    "log": "0x1.83db6bcc961e5p+1 0x1.0ca937be1b9ddp-2 -0x1.7069e2aa2aa5bp+3 -0x1.9c041f7ed8d33p+0 "
    "-0x1.6d3c324e13f4fp-2 0x1.5c68f59a57181p+0 0x1.189c08843ae4fp+2",
    "log1p": "0x1.89e55e3f50370p+1 0x1.aa73108717b6bp-1 0x1.4f8aea9ae7317p-17 0x1.7565011e49675p-3 "
    "0x1.0fae81914a991p-1 0x1.96d81e4fa0a83p+0 0x1.19670f3577996p+2",
    "pow": "0x1.afd803614045ep-46 0x1.afb97e7c3ea08p-1 0x1.0003c5cd4ed87p+0 0x1.b3e2d38a030b1p-1 "
    "0x1.c3e99432f8ccfp-1 0x1.c6b3785a058c9p+3 0x1.92c1d2d97f649p+253",
}  # fmt: skip
