"""Elementary functions of float64 arrays that give the same bits on every machine.

The exponential functions of two C libraries, or of a CPU and a GPU, differ in their last bits. The functions here use
only operations that IEEE 754 defines to the last bit: `+ - * /`, sqrt, comparisons, `where`, integers and their bits.
Each operation is an array call of its own, so that no compiler fuses two into one. The price is time: an exponential
takes some forty passes over the array.

Each function is given a backend `lib`. It uses the Array API namespace `lib.xp` and `lib.bits(x, dtype)`, which reads
the bits of x as "int64" or "float64". It returns a new float64 array. The bits of a result depend only on the bits of
its argument.

- NaN gives NaN, always with the same bits. (The sign of NaN from the hardware varies.) The only warning from NumPy is
  of squares beyond the range of float64.
- The sign of a zero has no influence, and the sign of a resulting zero is not defined.
- Subnormal numbers (below 2^-1022) count as 0 in `log` and `power`. In the other functions hardware may flush them
  to 0, which makes no difference that matters.
- "Error" is the largest relative error of float64 results, compared with mpmath on some 10^5 arguments each, over the
  range of float32 and around the points where formulas change. Rounded to float32, each result is within 0.5 + 1e-6
  units in the last place.

The constants are public: a compiled loop with the same operations in the same order gives the same bits. Polynomials
are computed by Horner's rule from the highest power, `y = y * r + c`, with two roundings. Nothing is divided by a
Python number, because PyTorch on a GPU would multiply by its inverse.
"""

from __future__ import annotations

import math
from typing import Any

from xnn.ops.special import erf_by, erfc_by, polynomial

__all__ = [
    "EXP_LIMIT", "EXP_TAYLOR", "FRACTION_MASK", "INVERSE_LN2", "LN2_HIGH", "LN2_LOW", "LOG_SERIES", "ONE_BITS",
    "ROUND", "ROUND_BITS", "SMALLEST", "SQRT_HALF_BITS", "WHOLE", "WHOLE_BITS", "cos", "erf", "erfc", "exp",
    "exp_inside", "expm1", "log", "log1p", "log_inside", "power", "sin", "tanh",
]  # fmt: skip

#: Adding ROUND to |t| < 2^51 rounds t to the nearest whole number, ties to even. The low bits of the sum hold it.
ROUND, ROUND_BITS = 1.5 * 2.0**52, 0x4338000000000000
#: The bits of WHOLE, or-ed with a whole number below 2^52, are the sum of both: an integer as float without a cast.
WHOLE, WHOLE_BITS = 2.0**52, 0x4330000000000000
ONE_BITS, SQRT_HALF_BITS, FRACTION_MASK = 0x3FF0000000000000, 0x3FE6A09E667F3BCD, 0x000FFFFFFFFFFFFF
#: The smallest normal number.
SMALLEST = 2.0**-1022

#: For |x| > EXP_LIMIT, e^x is 0 or inf. So the product of two results is never subnormal.
EXP_LIMIT = 350.0
INVERSE_LN2 = 1.4426950408889634
#: ln 2 = LN2_HIGH + LN2_LOW within 2^-101. LN2_HIGH has 42 bits, so its product with |n| <= 1024 is exact.
LN2_HIGH, LN2_LOW = 0.6931471805598903, 5.497923018708371e-14
#: 1/13! ... 1/1!, 1/0!. The rest of the series is below (ln 2 / 2)^14 / 14! = 2^-57.
EXP_TAYLOR = tuple(1.0 / math.factorial(k) for k in range(13, -1, -1))
#: 1/21, 1/19 ... 1/3, 1: artanh s = s (1 + s^2/3 + ...). The rest is below 2^-60 for |s| < 0.1716.
LOG_SERIES = tuple(1.0 / k for k in range(21, 0, -2))

#: pi/2 as the sum of three parts of 27, 25 and 53 bits. Products of the first two with |n| < 2^25 are exact.
_HALF_PI = (1.570796325802803, 9.920935739593517e-10, 5.721188726109832e-18)
_TWO_OVER_PI, _ANGLE_LIMIT = 0.6366197723675814, 2.0**25
_SIN_TAYLOR = tuple((1 - (k & 2)) / math.factorial(k) for k in range(17, 0, -2))
_COS_TAYLOR = tuple((1 - (k & 2)) / math.factorial(k) for k in range(16, -1, -2))


def exp(lib: Any, x: Any) -> Any:
    """The exponential e^x = 2^n e^r, where x = n ln 2 + r and |r| <= ln 2 / 2; 0 below -350 and inf above 350.

    e^r is computed by Taylor's polynomial of degree 13. Source: Cody and Waite, Software Manual for the Elementary
    Functions, 1980. Error: 2^-52.2.
    """
    xp = lib.xp
    y = exp_inside(lib, xp.where(xp.abs(x) <= EXP_LIMIT, x, 0.0))
    y = xp.where(x < -EXP_LIMIT, 0.0, y)
    y = xp.where(x > EXP_LIMIT, math.inf, y)
    return xp.where(x != x, math.nan, y)


def expm1(lib: Any, x: Any) -> Any:
    """e^x - 1 = 2^n (e^r - 1) + (2^n - 1), with n and r as in `exp`; inf above 350.

    e^r - 1 = r (1 + r/2! + ...). Near x = 0, n is 0, and no digit is lost. Error: 2^-51.6.
    """
    xp = lib.xp
    y = _expm1(lib, xp.where(xp.abs(x) <= EXP_LIMIT, x, 0.0))
    y = xp.where(x < -EXP_LIMIT, -1.0, y)
    y = xp.where(x > EXP_LIMIT, math.inf, y)
    return xp.where(x != x, math.nan, y)


def log(lib: Any, x: Any) -> Any:
    """The natural logarithm ln x = k ln 2 + 2 artanh s, where x = 2^k m and s = (m - 1) / (m + 1).

    m is from sqrt(1/2) to sqrt(2). At 0 the result is -inf, below 0 it is NaN. Error: 2^-51.2.
    """
    xp = lib.xp
    y = log_inside(lib, xp.where((x >= SMALLEST) & (x < math.inf), x, 1.0))
    y = xp.where(x < SMALLEST, -math.inf, y)
    y = xp.where(x == math.inf, math.inf, y)
    return xp.where((x != x) | (x <= -SMALLEST), math.nan, y)


def log1p(lib: Any, x: Any) -> Any:
    """ln(1 + x) = ln(u) x / (u - 1), where u is 1 + x, rounded; x itself where u is 1.

    The rounding of u does not matter, because ln(u) / (u - 1) changes slowly with u. At -1 the result is -inf, below
    it is NaN. Source: Kahan, in Hewlett-Packard's HP-15C Advanced Functions Handbook, 1982. Error: 2^-51.0.
    """
    xp = lib.xp
    z = xp.where((x > -1.0) & (x < math.inf), x, 0.0)
    u = z + 1.0
    step = u - 1.0
    y = xp.where(step == 0.0, z, log_inside(lib, u) * (z / xp.where(step == 0.0, 1.0, step)))
    y = xp.where(x == -1.0, -math.inf, y)
    y = xp.where(x == math.inf, math.inf, y)
    return xp.where((x != x) | (x < -1.0), math.nan, y)


def tanh(lib: Any, x: Any) -> Any:
    """The hyperbolic tangent: tanh |x| = -t / (t + 2), where t = e^(-2|x|) - 1. No digit is lost. Error: 2^-51.0."""
    xp = lib.xp
    size = xp.abs(x)
    t = _expm1(lib, xp.where(size <= 32.0, size, 32.0) * -2.0)  # tanh 32 is 1
    y = t / (t + 2.0)
    y = xp.where(x > 0.0, -y, y)
    return xp.where(x != x, math.nan, y)


def erf(lib: Any, x: Any) -> Any:
    """The error function, by the formula of `xnn.ops.special` with the `exp` of this file. Error: 2^-50.5."""
    return erf_by(lib.xp, lambda y: exp_inside(lib, y), x)


def erfc(lib: Any, x: Any) -> Any:
    """1 - erf(x), by the formula of `xnn.ops.special` with the `exp` of this file.

    Error: 2^-46.5 where the result is above 2^-126.
    """
    xp = lib.xp
    return xp.where(x != x, math.nan, erfc_by(xp, lambda y: exp(lib, y), x))


def sin(lib: Any, x: Any) -> Any:
    """The sine, by Taylor's polynomials of sin and cos at x - n pi/2; NaN for |x| > 2^25.

    The polynomials have degree 17 and 16. pi/2 is subtracted in three parts (Cody and Waite 1980). Error: 2^-51.4 for
    float32 arguments. For float64 arguments near a zero of sin only the absolute error is small: 2^-52.2.
    """
    return _wave(lib, x, 0)


def cos(lib: Any, x: Any) -> Any:
    """The cosine: sin(x + pi/2), with the range and the errors of `sin`."""
    return _wave(lib, x, 1)


def power(lib: Any, a: Any, p: Any) -> Any:
    """The power a^p = e^(p ln |a|), with the sign of a for odd p. One of a and p may be a Python number.

    For p = 0, 1, 2, -1 and 0.5 it is 1, a, a * a, 1 / a and sqrt(a), with at most one rounding. a^0 and 1^p are 1,
    even if the other number is NaN. 0^p is inf for p < 0. A negative base gives NaN unless p is whole; -inf gives inf
    or 0 then, as in IEEE 754.
    Beyond e^-350 and e^350, results are 0 and inf, as in `exp`. Error: 2^-45.3 for results in the range of float32.
    (p ln |a| is up to 88 there. Its absolute error becomes the relative error of the result.)
    """
    xp = lib.xp
    if isinstance(p, (int, float)):
        if p in _EXACT:
            return _EXACT[p](xp, a)
        p = xp.full_like(a, float(p))
    elif isinstance(a, (int, float)):
        a = xp.full_like(p, float(a))
    y = _power(lib, a, p)
    for value, exact in _EXACT.items():
        y = xp.where(p == value, exact(xp, xp.where(p == value, a, 1.0)), y)
    return y


def _reduce(lib: Any, x: Any) -> tuple[Any, Any]:
    """r and 2^n, where x = n ln 2 + r, for |x| <= EXP_LIMIT."""
    shifted = x * INVERSE_LN2 + ROUND
    n = shifted - ROUND
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    return r, lib.bits((lib.bits(shifted, "int64") - (ROUND_BITS - 1023)) << 52, "float64")


def _expm1(lib: Any, x: Any) -> Any:
    """`expm1` for |x| <= EXP_LIMIT."""
    r, scale = _reduce(lib, x)
    return r * polynomial(EXP_TAYLOR[:-1], r) * scale + (scale - 1.0)


def exp_inside(lib: Any, x: Any) -> Any:
    """`exp` of numbers within +-EXP_LIMIT."""
    r, scale = _reduce(lib, x)
    return polynomial(EXP_TAYLOR, r) * scale


def log_inside(lib: Any, x: Any) -> Any:
    """`log` of positive normal numbers."""
    # Shifted so that the exponent changes at sqrt(1/2) instead of 1. Then its bits are k + 1023.
    moved = lib.bits(x, "int64") + (ONE_BITS - SQRT_HALF_BITS)
    k = lib.bits((moved >> 52) | WHOLE_BITS, "float64") - (WHOLE + 1023.0)
    m = lib.bits((moved & FRACTION_MASK) + SQRT_HALF_BITS, "float64")
    s = (m - 1.0) / (m + 1.0)
    y = (s + s) * polynomial(LOG_SERIES, s * s)
    return k * LN2_HIGH + (y + k * LN2_LOW)


def _wave(lib: Any, x: Any, turn: int) -> Any:
    """sin(x + turn * pi/2), where turn is 0 or 1."""
    xp = lib.xp
    inside = xp.abs(x) <= _ANGLE_LIMIT
    z = xp.where(inside, x, 0.0)
    shifted = z * _TWO_OVER_PI + ROUND
    n = shifted - ROUND
    r = ((z - n * _HALF_PI[0]) - n * _HALF_PI[1]) - n * _HALF_PI[2]
    square = r * r
    quarter = lib.bits(shifted, "int64") + turn
    y = xp.where((quarter & 1) == 0, r * polynomial(_SIN_TAYLOR, square), polynomial(_COS_TAYLOR, square))
    y = xp.where((quarter & 2) == 0, y, -y)
    return xp.where(inside, y, math.nan)


def _power(lib: Any, a: Any, p: Any) -> Any:
    """`power` by exponential and logarithm, for two arrays."""
    xp = lib.xp
    size = xp.abs(a)
    zero, infinite = size < SMALLEST, size == math.inf
    # Unless ln |a| is 0, it is at least 2^-53. So a larger p gives the same result; limited, its product is finite.
    limited = xp.where(p > _ENOUGH, _ENOUGH, xp.where(p < -_ENOUGH, -_ENOUGH, p))
    y = exp(lib, limited * log(lib, xp.where(zero | infinite, 1.0, size)))
    y = xp.where((zero & (p > 0.0)) | (infinite & (p < 0.0)), 0.0, y)
    y = xp.where((zero & (p < 0.0)) | (infinite & (p > 0.0)), math.inf, y)
    whole, even = _is_whole(xp.abs(p)), _is_whole(xp.abs(p) * 0.5)
    y = xp.where((a < 0.0) & whole & ~even, -y, y)
    y = xp.where(((a < 0.0) & ~whole & ~infinite) | (a != a) | (p != p), math.nan, y)
    return xp.where(a == 1.0, 1.0, y)


_ENOUGH = 2.0**64


def _is_whole(size: Any) -> Any:
    """Whether a number >= 0 is whole. From 2^52 on all are; below, adding 2^52 rounds to a whole number."""
    return (size >= WHOLE) | ((size + WHOLE) - WHOLE == size)


def _inverse(xp: Any, a: Any) -> Any:
    zero = xp.abs(a) < SMALLEST
    return xp.where(zero, math.inf, 1.0 / xp.where(zero, 1.0, a))


def _root(xp: Any, a: Any) -> Any:
    y = xp.where(a < 0.0, math.nan, xp.sqrt(xp.where(a < 0.0, 0.0, a)))
    return xp.where(a == -math.inf, math.inf, y)


def _same_nan(exact: Any) -> Any:
    return lambda xp, a: xp.where(a != a, math.nan, exact(xp, a))


#: The exponents whose power is computed with at most one rounding.
_EXACT: dict[float, Any] = {
    0.0: lambda xp, a: xp.ones_like(a),
    1.0: _same_nan(lambda xp, a: a),
    2.0: _same_nan(lambda xp, a: a * a),
    -1.0: _same_nan(_inverse),
    0.5: _same_nan(_root),
}
