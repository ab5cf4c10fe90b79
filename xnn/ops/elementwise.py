"""Elementwise functions with NumPy's broadcasting."""

from __future__ import annotations

from typing import Any

from xnn.ops.op import Array, Namespace, Op, unbroadcast

__all__ = [
    "abs", "add", "div", "equal", "exp", "greater", "greater_equal", "less", "less_equal", "log", "maximum", "mul",
    "not_equal", "pow", "stop_gradient", "sub", "where",
]  # fmt: skip


def _copy_if_alone(xp: Namespace, inputs: tuple[Array, ...]) -> Array:
    """The first of several; the only one as a fresh array, so that no output is its own input."""
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
    """Power: y = a^p; dy/da = p a^(p-1) (0 where p = 0), dy/dp = y log a (0 where a = 0)."""

    def forward(self, xp: Namespace, a: Array, p: Array) -> tuple[Array, Any]:
        y = xp.pow(a, p)
        return y, (a, p, y)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        a, p, y = saved
        if not hasattr(p, "shape"):
            if p == 0:
                return xp.zeros(a.shape, dtype=a.dtype, device=a.device), None
            slope = p * xp.pow(a, p - 1)
            return unbroadcast(xp, grad * slope, a), None
        flat = p == 0
        slope = xp.where(flat, 0.0, p * xp.pow(a, xp.where(flat, 1.0, p - 1)))
        da = unbroadcast(xp, grad * slope, a)
        base = a if hasattr(a, "shape") else a + 0.0 * p
        zero = base == 0
        growth = y * xp.log(xp.where(zero, 1.0, base))
        return da, unbroadcast(xp, grad * growth, p)


class Exp(Op):
    """Exponential: y = e^x; dy/dx = y."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        y = xp.exp(x)
        return y, y

    def backward(self, xp: Namespace, grad: Array, y: Any) -> tuple[Array | None, ...]:
        return (grad * y,)


class Log(Op):
    """Natural logarithm: y = ln x; dy/dx = 1 / x."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return xp.log(x), x

    def backward(self, xp: Namespace, grad: Array, x: Any) -> tuple[Array | None, ...]:
        return (grad / x,)


class Maximum(Op):
    """The larger of two: y = max(a, b). Where they are equal each gets half the gradient, as in PyTorch."""

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return xp.maximum(a, b), (a, b)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        a, b = saved
        tie = xp.where(a == b, 0.5 * grad, 0.0)
        da = xp.where(a > b, grad, tie)
        db = xp.where(b > a, grad, tie)
        return unbroadcast(xp, da, a), unbroadcast(xp, db, b)


class Where(Op):
    """Choice: y = a where the condition holds, b elsewhere. The condition has no gradient."""

    def forward(self, xp: Namespace, condition: Array, a: Array, b: Array) -> tuple[Array, Any]:
        return xp.where(condition, a, b), (condition, getattr(a, "shape", None), getattr(b, "shape", None))

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        condition, shape_a, shape_b = saved
        da = unbroadcast(xp, xp.where(condition, grad, 0.0), shape_a)
        db = unbroadcast(xp, xp.where(condition, 0.0, grad), shape_b)
        return None, da, db


class Abs(Op):
    """Absolute value: y = |x|; dy/dx = sign(x), 0 at 0."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return xp.abs(x), x

    def backward(self, xp: Namespace, grad: Array, x: Any) -> tuple[Array | None, ...]:
        return (grad * xp.sign(x),)


class StopGradient(Op):
    """y = x as a constant: nothing behind it gets a gradient through it."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return _copy_if_alone(xp, (x,)), None

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        return (None,)


class _Comparison(Op):
    """True where the comparison holds, element by element. It has no gradient."""

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        return None, None


class Less(_Comparison):
    """Comparison: a < b, element by element, as booleans. It has no gradient."""

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return a < b, None


class LessEqual(_Comparison):
    """Comparison: a <= b, element by element, as booleans. It has no gradient."""

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return a <= b, None


class Greater(_Comparison):
    """Comparison: a > b, element by element, as booleans. It has no gradient."""

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return a > b, None


class GreaterEqual(_Comparison):
    """Comparison: a >= b, element by element, as booleans. It has no gradient."""

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return a >= b, None


class Equal(_Comparison):
    """Comparison: a == b, element by element, as booleans. It has no gradient."""

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return a == b, None


class NotEqual(_Comparison):
    """Comparison: a != b, element by element, as booleans. It has no gradient."""

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        return a != b, None


add = Add()
sub = Sub()
mul = Mul()
div = Div()
pow = Pow()
exp = Exp()
log = Log()
maximum = Maximum()
where = Where()
abs = Abs()
stop_gradient = StopGradient()
less = Less()
less_equal = LessEqual()
greater = Greater()
greater_equal = GreaterEqual()
equal = Equal()
not_equal = NotEqual()
