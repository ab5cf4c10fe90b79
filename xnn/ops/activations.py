"""Activations and the two layers around them without weights: rescale and dropout."""

from __future__ import annotations

from typing import Any

from xnn.ops.op import Array, Namespace, Op

__all__ = ["dropout", "relu", "rescale", "sigmoid", "softmax", "tanh"]


class Rescale(Op):
    """y = x * scale + offset in `dtype`: how integer pixels become network inputs; dy/dx = scale."""

    def forward(
        self, xp: Namespace, x: Array, *, scale: Any, offset: Any = 0.0, dtype: Any = None
    ) -> tuple[Array, Any]:
        y = (x if dtype is None else xp.astype(x, dtype)) * scale
        return (y if isinstance(offset, float) and offset == 0.0 else y + offset), (scale, x.dtype)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        scale, dtype = saved
        dx = grad * scale
        return (xp.astype(dx, dtype, copy=False) if xp.isdtype(dtype, "real floating") else dx,)


class ReLU(Op):
    """Rectified linear unit y = max(x, 0); dy/dx = 1 where x > 0, else 0.

    The input is left as it is (the blocks article's ReLU zeroes its caller's array), and NaN stays NaN.
    Source: Nair and Hinton, ICML 2010.
    """

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return xp.maximum(x, 0.0), x

    def backward(self, xp: Namespace, grad: Array, x: Any) -> tuple[Array | None, ...]:
        return (xp.where(x > 0.0, grad, 0.0),)


def logistic(xp: Namespace, x: Array) -> Array:
    """1 / (1 + e^-x), written so that no exponential overflows."""
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0.0, 1.0, e) / (1.0 + e)


class Sigmoid(Op):
    """Logistic sigmoid y = 1 / (1 + e^-x); dy/dx = y (1 - y)."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        y = logistic(xp, x)
        return y, y

    def backward(self, xp: Namespace, grad: Array, y: Any) -> tuple[Array | None, ...]:
        return (grad * (y * (1.0 - y)),)


class Tanh(Op):
    """Hyperbolic tangent y = tanh x; dy/dx = 1 - y^2."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        y = xp.tanh(x)
        return y, y

    def backward(self, xp: Namespace, grad: Array, y: Any) -> tuple[Array | None, ...]:
        return (grad * (1.0 - y * y),)


class Softmax(Op):
    """y_i = e^(x_i) / sum_j e^(x_j) along `axis`; dx = y (grad - sum_j grad_j y_j).

    The largest x is subtracted first, which changes nothing but the overflow.
    """

    def forward(self, xp: Namespace, x: Array, *, axis: int = -1) -> tuple[Array, Any]:
        e = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
        y = e / xp.sum(e, axis=axis, keepdims=True)
        return y, (y, axis)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        y, axis = saved
        return (y * (grad - xp.sum(grad * y, axis=axis, keepdims=True)),)


class Dropout(Op):
    """Inverted dropout y = x / (1 - rate) where `keep` holds, else 0. `keep` is a boolean array like x.

    Who draws `keep`, and from which stream, is the layer's affair.
    Source: Srivastava et al., JMLR 15 (2014).
    """

    def forward(self, xp: Namespace, x: Array, keep: Array, *, rate: float) -> tuple[Array, Any]:
        scale = 1.0 / (1.0 - rate)
        return xp.where(keep, x * scale, 0.0), (keep, scale)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        keep, scale = saved
        return xp.where(keep, grad * scale, 0.0), None


rescale = Rescale()
relu = ReLU()
sigmoid = Sigmoid()
tanh = Tanh()
softmax = Softmax()
dropout = Dropout()
