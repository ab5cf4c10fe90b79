"""Activations that need e^x, as loops that Numba compiles. `image_loops.py` explains the loops' arguments.

The formulas are those of `xnn.ops.activations`, where their limits are explained; backward, f'(x) is computed from x
again. The constants have the dtype of the arrays, since one float64 would make the loop one of float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from xnn.backends.kernels.bell_kernels import BEND, TAIL
from xnn.backends.kernels.image_loops import numbers, reals
from xnn.backends.kernels.intrinsics import exp_low, exp_parts, log_of_one_more
from xnn.backends.kernels.jit import inner
from xnn.ops import activations, special

__all__ = [
    "elu", "elu_backward", "gelu", "gelu_backward", "gelu_by_tanh", "gelu_by_tanh_backward", "leaky_relu",
    "leaky_relu_backward", "silu", "silu_backward", "softplus", "softplus_backward",
]  # fmt: skip

_ROOT_HALF, _ROOT_2_OVER_PI = 0.7071067811865476, 0.7978845608028654
_INLINE = {"forceinline": True, "fastmath": {"contract"}}


@inner
def _elements(row: Any, first: Any, last: Any, like: Any) -> Any:
    """x, dy and the array to write, flat; dy is x in a forward call."""
    r = numbers(row)
    begin, count = first * r[4] * r[5], (last - first) * r[4]
    return (
        reals(r[1] + begin, count, like),
        reals(r[2] + begin, count, like),
        reals(r[3] + begin, count, like),
    )


@inner
def _options(row: Any) -> Any:
    """The call's options, as float64: two numbers."""
    return reals(numbers(row)[6], 2, np.float64(0))


def _erfc(x: Any) -> Any:
    """The complementary error function, by the polynomials of `xnn.ops.special.erfc_by`."""


@overload(_erfc, jit_options=_INLINE)  # type: ignore[untyped-decorator]
def _erfc_of(x: Any) -> Any:
    real: Any = np.float32 if x == types.float32 else np.float64
    (p, q), (r, s), (t, u) = (
        tuple(tuple(map(real, powers)) for powers in pair)
        for pair in (special._CENTRE, special._SHOULDER, special._TAIL)
    )
    last, joint, far, root = map(
        real, (special._LAST, special._JOINT, special._FAR, special._ROOT_INVERSE_PI)
    )
    zero, one = real(0), real(1)

    def of(x: Any) -> Any:
        size = abs(x)
        size = last if size > last else size
        square = size * size
        centre = _quotient(p, q, square)
        above = far if size < far else size
        inverse = one / (above * above)
        tail = (root - inverse * _quotient(t, u, inverse)) / above
        outside = (_quotient(r, s, size) if size <= far else tail) * exp_low(-square)
        y = one + (one - outside) if x < zero else outside
        return one - x * centre if size <= joint else y

    return of


def _quotient(above: Any, below: Any, x: Any) -> Any:
    """The quotient of two polynomials, by Horner's rule."""


@overload(_quotient, jit_options=_INLINE)  # type: ignore[untyped-decorator]
def _quotient_of(above: Any, below: Any, x: Any) -> Any:
    def of(above: Any, below: Any, x: Any) -> Any:
        a, b = above[0], below[0]
        for c in above[1:]:
            a = a * x + c
        for c in below[1:]:
            b = b * x + c
        return a / b

    return of


def _tail(a: Any) -> Any:
    """Q(a) = P(-a) and e^(-a^2 / 2) for a >= 0, by the formula of `bell_kernels.py` for float32."""


@overload(_tail, jit_options=_INLINE)  # type: ignore[untyped-decorator]
def _tail_of(a: Any) -> Any:
    real: Any = np.float32 if a == types.float32 else np.float64
    powers, bend, root = tuple(map(real, TAIL)), real(BEND), real(_ROOT_HALF)
    half, one = real(0.5), real(1)

    def short(a: Any) -> Any:
        fall, t = exp_low(-half * (a * a)), one / (one + bend * a)
        tail = powers[0] * t
        for c in powers[1:]:
            tail = (tail + c) * t
        return tail * fall, fall

    def of(a: Any) -> Any:
        return half * _erfc(a * root), exp_low(-half * (a * a))

    return short if a == types.float32 else of


def gelu(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """y = x P(x) = max(x, 0) - a Q(a), a = |x|."""
    x, _, y = _elements(row, first, last, like)
    end, zero = x.dtype.type(activations._FLAT), like - like
    for i in range(x.size):
        a = end if abs(x[i]) > end else abs(x[i])
        tail, _ = _tail(a)
        y[i] = (zero if x[i] < zero else x[i]) - a * tail


def gelu_backward(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """dx = dy (P(x) + x p(x)), p(x) = e^(-x^2 / 2) / sqrt(2 pi).

    With a = |x| and w = Q(a) - a p(a) the bracket is w where x < 0, and 1 - w elsewhere.
    """
    x, dy, dx = _elements(row, first, last, like)
    real = x.dtype.type
    end, zero, scale = real(activations._FLAT), like - like, real(0.5 * _ROOT_2_OVER_PI)
    for i in range(x.size):
        a = end if abs(x[i]) > end else abs(x[i])
        tail, fall = _tail(a)
        w = tail - a * (fall * scale)
        dx[i] = dy[i] * (w if x[i] < zero else like - w)


@inner
def _logistic(x: Any, one: Any) -> Any:
    """The logistic function, 1 / (1 + e^-x)."""
    e = exp_low(-abs(x))
    return (one if x >= one - one else e) / (one + e)


def gelu_by_tanh(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """y = x P(x), P(x) = (1 + tanh u) / 2 = 1 / (1 + e^(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    x, _, y = _elements(row, first, last, like)
    real = x.dtype.type
    flat, twice, cube = real(40.0), real(2.0 * _ROOT_2_OVER_PI), real(0.044715)
    for i in range(x.size):
        low = -flat if x[i] < -flat else x[i]
        inside = flat if low > flat else low
        y[i] = low * _logistic(twice * (inside + cube * (inside * inside * inside)), like)


def gelu_by_tanh_backward(
    row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> None:
    """dx = dy (P(x) + x 2 P(x) (1 - P(x)) u')."""
    x, dy, dx = _elements(row, first, last, like)
    real = x.dtype.type
    flat, root, cube, slope = real(40.0), real(2.0 * _ROOT_2_OVER_PI), real(0.044715), real(0.134145)
    for i in range(x.size):
        low = -flat if x[i] < -flat else x[i]
        inside = flat if low > flat else low
        u = root * (inside + cube * (inside * inside * inside))
        share, rest = _logistic(u, like), _logistic(-u, like)
        dx[i] = dy[i] * (share + inside * (share * rest * (root * (like + slope * (inside * inside)))))


def silu(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """y = x s, s = 1 / (1 + e^-x)."""
    x, _, y = _elements(row, first, last, like)
    low = x.dtype.type(-800.0)
    for i in range(x.size):
        y[i] = (low if x[i] < low else x[i]) * _logistic(x[i], like)


def silu_backward(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """dx = dy (s + y (1 - s))."""
    x, dy, dx = _elements(row, first, last, like)
    low, high = x.dtype.type(-800.0), x.dtype.type(60.0)
    for i in range(x.size):
        s = _logistic(x[i], like)
        y = (low if x[i] < low else x[i]) * s
        dx[i] = dy[i] * (s + (high if y > high else y) * (like - s))


def softplus(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """y = max(x, 0) + ln(1 + e^-|beta x|) / beta."""
    x, _, y = _elements(row, first, last, like)
    beta, zero = x.dtype.type(_options(row)[0]), like - like
    for i in range(x.size):
        curve = log_of_one_more(exp_low(-abs(beta * x[i]))) / beta
        y[i] = (zero if x[i] < zero else x[i]) + curve


def softplus_backward(
    row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> None:
    """dx = dy / (1 + e^(-beta x))."""
    x, dy, dx = _elements(row, first, last, like)
    beta = x.dtype.type(_options(row)[0])
    for i in range(x.size):
        dx[i] = dy[i] * _logistic(beta * x[i], like)


def elu(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """y = scale x where x > 0, else scale alpha (e^x - 1)."""
    x, _, y = _elements(row, first, last, like)
    alpha, scale, zero = x.dtype.type(_options(row)[0]), x.dtype.type(_options(row)[1]), like - like
    for i in range(x.size):
        power, rest = exp_parts(zero if x[i] > zero else x[i])
        low = alpha * ((power - like) + power * rest)
        y[i] = scale * (x[i] if x[i] > zero else low)


def elu_backward(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """dx = scale dy where x > 0, else scale dy alpha e^x."""
    x, dy, dx = _elements(row, first, last, like)
    alpha, scale, zero = x.dtype.type(_options(row)[0]), x.dtype.type(_options(row)[1]), like - like
    for i in range(x.size):
        low = alpha * exp_low(zero if x[i] > zero else x[i])
        dx[i] = scale * dy[i] * (like if x[i] > zero else low)


def leaky_relu(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """y = x where x > 0, else slope x."""
    x, _, y = _elements(row, first, last, like)
    slope, zero = x.dtype.type(_options(row)[0]), like - like
    for i in range(x.size):
        y[i] = x[i] if x[i] > zero else slope * x[i]


def leaky_relu_backward(
    row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> None:
    """dx = dy where x > 0 or NaN, else slope dy."""
    x, dy, dx = _elements(row, first, last, like)
    slope, zero = x.dtype.type(_options(row)[0]), like - like
    for i in range(x.size):
        dx[i] = dy[i] * slope if x[i] <= zero else dy[i]
