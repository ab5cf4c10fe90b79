"""Functions of one number or of several, element by element, with NumPy's broadcasting.

Inputs are arrays or Python numbers. A Python number takes the dtype of the arrays it meets: float32 stays float32. A
NumPy number such as np.float64(2.0) counts as an array of its own dtype, as in NumPy.
"""

from __future__ import annotations

from typing import Any

from xnn.errors import OptionError
from xnn.ops import special
from xnn.ops.op import Array, Namespace, Op, unbroadcast

__all__ = [
    "abs", "add", "clip", "cos", "div", "erf", "exp", "expm1", "log", "log1p", "maximum", "minimum", "mul", "pow",
    "sign", "sin", "sqrt", "stop_gradient", "sub", "where",
]  # fmt: skip

_TWO_OVER_ROOT_PI = 1.1283791670955126
#: For |x| > 28, e^(-x^2) is 0.
_ERF_FLAT = 28.0


def _copy_if_alone(xp: Namespace, inputs: tuple[Array, ...]) -> Array:
    """The first input; a copy of it if it is the only one, so that an op's output is never its input."""
    first = inputs[0]
    return xp.astype(first, first.dtype, copy=True) if len(inputs) == 1 and hasattr(first, "dtype") else first


class Add(Op):
    """Sum of one or more inputs: y = a + b + c + ..., added from left to right."""

    def forward(self, xp: Namespace, *inputs: Array) -> tuple[Array, Any]:
        total = _copy_if_alone(xp, inputs)
        for x in inputs[1:]:
            total = total + x
        return total, tuple(getattr(x, "shape", None) for x in inputs)

    def backward(self, xp: Namespace, grad: Array, shapes: Any) -> tuple[Array | None, ...]:
        return tuple(unbroadcast(xp, grad, shape) for shape in shapes)


class Sub(Op):
    """Difference: y = a - b."""

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return a - b, (getattr(a, "shape", None), getattr(b, "shape", None))

    def backward(self, xp: Namespace, grad: Array, shapes: Any) -> tuple[Array | None, ...]:
        return unbroadcast(xp, grad, shapes[0]), unbroadcast(xp, -grad, shapes[1])


class Mul(Op):
    """Product of one or more inputs: y = a * b * c * ...; dy/da = b * c * ..."""

    def forward(self, xp: Namespace, *inputs: Array) -> tuple[Array, Any]:
        product = _copy_if_alone(xp, inputs)
        for x in inputs[1:]:
            product = product * x
        return product, inputs

    def backward(self, xp: Namespace, grad: Array, inputs: Any) -> tuple[Array | None, ...]:
        grads = []
        for i, x in enumerate(inputs):
            g = grad
            for j, other in enumerate(inputs):
                if j != i:
                    g = g * other
            grads.append(unbroadcast(xp, g, x))
        return tuple(grads)


class Div(Op):
    """Quotient: y = a / b; dy/da = 1 / b, dy/db = -y / b."""

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        y = a / b
        return y, (getattr(a, "shape", None), b, y)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        shape_a, b, y = saved
        da = grad / b
        return unbroadcast(xp, da, shape_a), unbroadcast(xp, -(da * y), b)


class Pow(Op):
    """Power: y = a^p; dy/da = p a^(p-1), or 0 where p = 0; dy/dp = y ln a.

    At the ends dy/dp is the limit: 0 where y is 0, and -infinity where a is 0 and p below 0. Where a and p are both 0
    it is 0, as in PyTorch. Where a is below 0 it is NaN.
    """

    def forward(self, xp: Namespace, a: Array, p: Array) -> tuple[Array, Any]:
        y = _power(xp, a, p)
        return y, (a, p, y)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        a, p, y = saved
        if hasattr(p, "shape"):
            return _slope_of_base(xp, grad, a, p), _slope_of_exponent(xp, grad, a, p, y)
        if p == 0:
            return xp.zeros(a.shape, dtype=a.dtype, device=a.device), None
        if p * 0.0 != 0.0:  # infinite or NaN
            return _slope_of_base(xp, grad, a, xp.full_like(a, p)), None
        return unbroadcast(xp, grad * (p * _power(xp, a, p - 1)), a), None


def _power(xp: Namespace, a: Array, p: Array) -> Array:
    """a^p. NumPy takes the square root where p is the number 1/2, which is NaN at -infinity and -0 at -0."""
    if not hasattr(p, "shape") and p == 0.5:
        a = xp.where(a == 0, 0.0, xp.where(a == float("-inf"), float("inf"), a))
    return xp.pow(a, p)


def _slope_of_base(xp: Namespace, grad: Array, a: Array, p: Array) -> Array | None:
    """The gradient p a^(p-1) of a power's base; 0 where p or a^(p-1) is 0. None if the base is a Python number."""
    if not hasattr(a, "shape"):
        return None
    power = xp.pow(a, xp.where(p == 0, 0.0, p - 1))
    return unbroadcast(xp, grad * (xp.where(power == 0, 0.0, p) * power), a)


def _slope_of_exponent(xp: Namespace, grad: Array, a: Array, p: Array, y: Array) -> Array | None:
    """The gradient y ln a of a power's exponent."""
    base = a if hasattr(a, "shape") else xp.full_like(p, a)
    flat = xp.logical_or(y == 0, xp.logical_and(base == 0, p == 0))
    # Where the base is 0, y is infinite or flat. There 1/2 stands for it, whose logarithm has the right sign.
    inside = xp.where(flat, 1.0, xp.where(base == 0, 0.5, base))
    growth = y * xp.log(xp.where(base < 0, float("nan"), inside))
    return unbroadcast(xp, grad * growth, p)


class Exp(Op):
    """Exponential: y = e^x; dy/dx = y."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        y = xp.exp(x)
        return y, y

    def backward(self, xp: Namespace, grad: Array, y: Any) -> tuple[Array | None, ...]:
        return (grad * y,)


class Expm1(Op):
    """Exponential less one: y = e^x - 1, accurate also near x = 0; dy/dx = e^x.

    >>> import numpy as np
    >>> expm1(np.array([1e-20]))
    array([1.e-20])
    """

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return xp.expm1(x), x

    def backward(self, xp: Namespace, grad: Array, x: Any) -> tuple[Array | None, ...]:
        return (grad * xp.exp(x),)


class Log(Op):
    """Natural logarithm: y = ln x; dy/dx = 1 / x."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return xp.log(x), x

    def backward(self, xp: Namespace, grad: Array, x: Any) -> tuple[Array | None, ...]:
        return (grad / x,)


class Log1p(Op):
    """Natural logarithm of one plus x: y = ln(1 + x), accurate also near x = 0; dy/dx = 1 / (1 + x).

    >>> import numpy as np
    >>> log1p(np.array([1e-20]))
    array([1.e-20])
    """

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return xp.log1p(x), x

    def backward(self, xp: Namespace, grad: Array, x: Any) -> tuple[Array | None, ...]:
        return (grad / (1.0 + x),)


class Sqrt(Op):
    """Square root: y = sqrt(x); dy/dx = 1 / (2 y), which is infinite at 0, as in PyTorch.

    Where 0 can occur, add a small number first: ops.sqrt(x + 1e-12).
    """

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        y = xp.sqrt(x)
        return y, y

    def backward(self, xp: Namespace, grad: Array, y: Any) -> tuple[Array | None, ...]:
        return (grad / (2.0 * y),)


class Sin(Op):
    """Sine of an angle in radians: y = sin x; dy/dx = cos x. Exact numerics give NaN for both if |x| > 2^25."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return xp.sin(x), x

    def backward(self, xp: Namespace, grad: Array, x: Any) -> tuple[Array | None, ...]:
        return (grad * xp.cos(x),)


class Cos(Op):
    """Cosine of an angle in radians: y = cos x; dy/dx = -sin x. Exact numerics give NaN for both if |x| > 2^25."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return xp.cos(x), x

    def backward(self, xp: Namespace, grad: Array, x: Any) -> tuple[Array | None, ...]:
        return (grad * -xp.sin(x),)


class Erf(Op):
    """Error function: y = c times the integral of e^(-t^2) from 0 to x, c = 2 / sqrt pi; dy/dx = c e^(-x^2)."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return special.erf(xp, x), x

    def backward(self, xp: Namespace, grad: Array, x: Any) -> tuple[Array | None, ...]:
        z = xp.minimum(xp.abs(x), _ERF_FLAT)  # x^2 could overflow
        return (grad * (_TWO_OVER_ROOT_PI * xp.exp(-(z * z))),)


class Maximum(Op):
    """The larger of two: y = max(a, b); NaN if one of them is NaN.

    Where they are equal, each gets half the gradient, and where one is NaN, both get all of it, as in PyTorch.
    """

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return xp.maximum(a, b), (a, b)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        a, b = saved
        return _shared(xp, grad, a, b, a < b, b < a)


class Minimum(Op):
    """The smaller of two: y = min(a, b); NaN if one of them is NaN.

    Where they are equal, each gets half the gradient, and where one is NaN, both get all of it, as in PyTorch.
    """

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return xp.minimum(a, b), (a, b)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        a, b = saved
        return _shared(xp, grad, a, b, a > b, b > a)


def _shared(
    xp: Namespace, grad: Array, a: Array, b: Array, not_a: Array, not_b: Array
) -> tuple[Array | None, ...]:
    """The gradients of a choice between a and b, each of which gets half where they are equal."""
    part = xp.where(a == b, 0.5 * grad, grad)
    da = xp.where(not_a, 0.0, part)
    db = xp.where(not_b, 0.0, part)
    return unbroadcast(xp, da, a), unbroadcast(xp, db, b)


class Clip(Op):
    """Limit x to a range: y = min if x < min, max if x > max, else x.

    dy/dx is 0 where x < min or x > max; elsewhere it is 1: at the bounds, as in PyTorch, and at NaN, where y is NaN.

    min, max: numbers or arrays, which are not differentiated; None (default) for no bound on this side.

    Raises OptionError if both are None.

    >>> import numpy as np
    >>> clip(np.array([-1.0, 0.25, 3.0]), 0.0, 1.0)
    array([0.  , 0.25, 1.  ])
    """

    positional = ("min", "max")

    def forward(self, xp: Namespace, x: Array, *, min: Any = None, max: Any = None) -> tuple[Array, Any]:
        if min is None and max is None:
            raise OptionError("clip got neither min nor max: give at least one of them")
        y = x if min is None else xp.maximum(x, min)
        return (y if max is None else xp.minimum(y, max)), (x, min, max)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        x, min, max = saved
        dx = grad if min is None else xp.where(x < min, 0.0, grad)
        dx = dx if max is None else xp.where(x > max, 0.0, dx)
        return (unbroadcast(xp, dx, x),)


class Where(Op):
    """Choice: y = a where the condition is true, b elsewhere. The condition has no gradient.

    dtype: the dtype of Python numbers among a and b; None (default) for that of the other one.

    Raises OptionError if a and b are both Python numbers and `dtype` is None. NumPy would make float64 of them, and
    a float32 model would go on in float64.

    >>> import numpy as np
    >>> x = np.array([-1.0, 2.0], dtype=np.float32)
    >>> where(x > 0.0, x, 0.5)
    array([0.5, 2. ], dtype=float32)
    >>> where(x > 0.0, 1.0, 0.5, dtype=x.dtype)
    array([0.5, 1. ], dtype=float32)
    """

    def forward(
        self, xp: Namespace, condition: Array, a: Array, b: Array, *, dtype: Any = None
    ) -> tuple[Array, Any]:
        saved = condition, getattr(a, "shape", None), getattr(b, "shape", None)
        if dtype is not None:
            a, b = (
                x if hasattr(x, "dtype") else xp.full((), x, dtype=dtype, device=condition.device)
                for x in (a, b)
            )
        elif not hasattr(a, "dtype") and not hasattr(b, "dtype"):
            raise OptionError(
                f"where got two Python numbers, {a!r} and {b!r}, which have no dtype: choose one, as in "
                "ops.where(condition, 1.0, 0.5, dtype=x.dtype)"
            )
        return xp.where(condition, a, b), saved

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        condition, shape_a, shape_b = saved
        da = unbroadcast(xp, xp.where(condition, grad, 0.0), shape_a)
        db = unbroadcast(xp, xp.where(condition, 0.0, grad), shape_b)
        return None, da, db


class Abs(Op):
    """Absolute value: y = |x|; dy/dx = sign(x), which is 0 at 0."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return xp.abs(x), x

    def backward(self, xp: Namespace, grad: Array, x: Any) -> tuple[Array | None, ...]:
        return (grad * xp.sign(x),)


class Sign(Op):
    """Sign: y = 1 where x > 0, -1 where x < 0, 0 at 0. It has no gradient: its slope is 0."""

    flat = True

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return xp.sign(x), None

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        return (None,)


class StopGradient(Op):
    """y = x, treated as a constant: no gradient flows back through it."""

    flat = True

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return _copy_if_alone(xp, (x,)), None

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        return (None,)


add = Add()
sub = Sub()
mul = Mul()
div = Div()
pow = Pow()
exp = Exp()
expm1 = Expm1()
log = Log()
log1p = Log1p()
sqrt = Sqrt()
sin = Sin()
cos = Cos()
erf = Erf()
maximum = Maximum()
minimum = Minimum()
clip = Clip()
where = Where()
abs = Abs()
sign = Sign()
stop_gradient = StopGradient()
