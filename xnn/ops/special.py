"""Functions that ops need and the Array API does not have: the error function, polynomials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xnn.ops.apply import Boundary
from xnn.ops.op import Array, Namespace

__all__ = ["erf", "erf_by", "erfc", "erfc_by", "polynomial", "rational"]

# W. J. Cody, Rational Chebyshev approximations for the error function, Math. Comp. 23 (1969), with the digits
# of his CALERF (netlib, specfun): erf(x) / x in x^2 up to 0.46875, erfc(x) e^(x^2) in x from there to 4, and beyond
# 1 / sqrt pi - x e^(x^2) erfc(x), divided by 1 / x^2, in 1 / x^2.
_JOINT, _FAR, _END, _ROOT_INVERSE_PI = 0.46875, 4.0, 6.0, 5.6418958354775628695e-1
_CENTRE = (
    (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2,
     3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)  # fmt: skip
_SHOULDER = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1,
     2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
     1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
     3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
)  # fmt: skip
_TAIL = (
    (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
     1.60837851487422766e-2, 6.58749161529837803e-4),
    (1.0, 2.56852019228982242, 1.87295284992346725, 5.27905102951428412e-1, 6.05183413124413191e-2,
     2.33520497626869185e-3),
)  # fmt: skip
#: There erfc is 0 in float64: e^(-28^2) is below the smallest number.
_LAST = 28.0


def erf(xp: Namespace, x: Array) -> Array:
    """The error function, element by element: (2 / sqrt pi) times the integral of e^(-t^2) from 0 to x."""
    return xp.erf(x) if isinstance(xp, Boundary) else erf_by(xp, xp.exp, x)


def erf_by(xp: Namespace, exp: Callable[[Array], Array], x: Array) -> Array:
    """The error function, computed with the exponential function `exp`.

    It is x P(x^2) / Q(x^2) for |x| <= 0.46875, and 1 - exp(-x^2) P(|x|) / Q(|x|) beyond, with other polynomials. The
    second approximation was fitted for |x| <= 4. It can be used for larger x as well, up to where erf is 1: its
    error grows more slowly than erfc = 1 - erf shrinks. Source: Cody 1969.
    """
    size = xp.abs(x)
    size = xp.where(size <= _END, size, _END)
    square = size * size
    centre = size * rational(_CENTRE, square)
    outside = 1.0 - exp(-square) * rational(_SHOULDER, size)
    y = xp.where(size <= _JOINT, centre, outside)
    y = xp.where(x < 0.0, -y, y)
    return xp.where(x != x, float("nan"), y)


def erfc(xp: Namespace, x: Array) -> Array:
    """The complementary error function 1 - erf(x), element by element, with small relative errors for large x too."""
    return xp.erfc(x) if isinstance(xp, Boundary) else erfc_by(xp, xp.exp, x)


def erfc_by(xp: Namespace, exp: Callable[[Array], Array], x: Array) -> Array:
    """The complementary error function, computed with the exponential function `exp`.

    For |x| <= 0.46875 it is 1 - erf(x), as in `erf_by`. Beyond, the size of x gives e^(-x^2) P / Q, by one pair of
    polynomials up to 4 and by another from there on; for x below 0 that is subtracted from 2. Source: Cody 1969.
    """
    size = xp.minimum(xp.abs(x), _LAST)
    outside = _scaled_erfc(xp, size) * exp(-(size * size))
    # 1 + (1 - outside) and not 2 - outside: the bits of 1 + erf(-x).
    y = xp.where(x < 0.0, 1.0 + (1.0 - outside), outside)
    return xp.where(size <= _JOINT, 1.0 - x * rational(_CENTRE, size * size), y)


def _scaled_erfc(xp: Namespace, size: Array) -> Array:
    """erfc(size) e^(size^2), for sizes from 0.46875."""
    above = xp.maximum(size, _FAR)
    inverse = 1.0 / (above * above)
    far = (_ROOT_INVERSE_PI - inverse * rational(_TAIL, inverse)) / above
    return xp.where(size <= _FAR, rational(_SHOULDER, size), far)


def rational(coefficients: tuple[tuple[float, ...], tuple[float, ...]], r: Any) -> Array:
    """The quotient of two polynomials of r."""
    above, below = (polynomial(powers, r) for powers in coefficients)
    return above / below


def polynomial(powers: tuple[float, ...], r: Array) -> Array:
    """c_0 r^k + c_1 r^(k - 1) + ... + c_k by Horner's rule, for two or more coefficients `powers`."""
    y = (r if powers[0] == 1.0 else r * powers[0]) + powers[1]
    for c in powers[2:]:
        y = y * r + c
    return y
