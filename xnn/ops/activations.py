"""Activation functions, and two more layers without weights: rescale and dropout."""

from __future__ import annotations

from typing import Any, Literal

from xnn.errors import OptionError
from xnn.ops.op import Array, Namespace, Op
from xnn.ops.special import erf
from xnn.options import shown

__all__ = [
    "dropout", "elu", "gelu", "leaky_relu", "log_softmax", "relu", "rescale", "selu", "sigmoid", "silu", "softmax",
    "softplus", "tanh",
]  # fmt: skip


_ROOT_HALF, _ROOT_2_OVER_PI = 0.7071067811865476, 0.7978845608028654


class Rescale(Op):
    """Scale and shift: y = x * scale + offset; dy/dx = scale. It turns integer pixels into network inputs.

    scale, offset: numbers or arrays; offset is 0 by default.
    dtype: the dtype of y; None (default) for that of x * scale.
    """

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
    """Rectified linear unit: y = max(x, 0); dy/dx = 1 where x > 0, else 0. NaN stays NaN.

    Source: Nair and Hinton, ICML 2010.
    """

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return xp.maximum(x, 0.0), x

    def backward(self, xp: Namespace, grad: Array, x: Any) -> tuple[Array | None, ...]:
        return (xp.where(x > 0.0, grad, 0.0),)


class LeakyReLU(Op):
    """Leaky rectified linear unit: y = x where x > 0, else negative_slope * x; dy/dx = 1 or negative_slope.

    negative_slope: a number; default 0.01.

    Source: Maas, Hannun and Ng, ICML 2013.
    """

    positional = ("negative_slope",)

    def forward(self, xp: Namespace, x: Array, *, negative_slope: float = 0.01) -> tuple[Array, Any]:
        return xp.where(x > 0.0, x, x * negative_slope), (x, negative_slope)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        x, negative_slope = saved
        return (xp.where(x > 0.0, grad, grad * negative_slope),)


class ELU(Op):
    """Exponential linear unit: y = x where x > 0, else alpha (e^x - 1); dy/dx = 1 or alpha e^x.

    alpha: a number; default 1.

    Source: Clevert, Unterthiner and Hochreiter, ICLR 2016.
    """

    positional = ("alpha",)

    def forward(self, xp: Namespace, x: Array, *, alpha: float = 1.0) -> tuple[Array, Any]:
        return xp.where(x > 0.0, x, alpha * xp.expm1(xp.minimum(x, 0.0))), (x, alpha)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        x, alpha = saved
        return (xp.where(x > 0.0, grad, grad * (alpha * xp.exp(xp.minimum(x, 0.0)))),)


class SELU(Op):
    """Scaled exponential linear unit: y = 1.0507... elu(x, alpha=1.6732...).

    With these constants, layer after layer, means tend to 0 and variances to 1 if the weights were initialized by
    LeCun("normal"). Source: Klambauer et al., NeurIPS 2017.
    """

    scale, alpha = 1.0507009873554804934, 1.6732632423543772848

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        y, saved = elu.forward(xp, x, alpha=self.alpha)
        return self.scale * y, saved

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        return elu.backward(xp, self.scale * grad, saved)


class GELU(Op):
    """Gaussian error linear unit: y = x P(x); dy/dx = P(x) + x p(x).

    P is the cumulative distribution function of the normal distribution, p its density, or approximations:

        approximate="none": P(x) = (1 + erf(x / sqrt 2)) / 2,       p(x) = e^(-x^2/2) / sqrt(2 pi)
        approximate="tanh": P(x) = (1 + tanh u) / 2,                p(x) = (1 - tanh^2 u) u' / 2
                            u = sqrt(2 / pi) (x + 0.044715 x^3),    u' = sqrt(2 / pi) (1 + 0.134145 x^2)

    approximate: "none" (default) or "tanh".

    Raises OptionError for another `approximate`.
    Source: Hendrycks and Gimpel, 2016 (arXiv 1606.08415).
    """

    def forward(
        self, xp: Namespace, x: Array, *, approximate: Literal["none", "tanh"] = "none"
    ) -> tuple[Array, Any]:
        if approximate == "none":
            share = 0.5 * (1.0 + erf(xp, x * _ROOT_HALF))
            return x * share, (x, share, None)
        if approximate != "tanh":
            raise OptionError(
                f"gelu got approximate={shown(approximate)}: approximate must be 'none' or 'tanh'"
            )
        t = xp.tanh(_ROOT_2_OVER_PI * (x + 0.044715 * (x * x * x)))
        share = 0.5 * (1.0 + t)
        return x * share, (x, share, t)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        x, share, t = saved
        if t is None:
            density = (0.5 * _ROOT_2_OVER_PI) * xp.exp(-0.5 * (x * x))
        else:
            density = 0.5 * (1.0 - t * t) * (_ROOT_2_OVER_PI * (1.0 + 0.134145 * (x * x)))
        return (grad * (share + x * density),)


def logistic(xp: Namespace, x: Array) -> Array:
    """The logistic function 1 / (1 + e^-x), computed without overflow."""
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0.0, 1.0, e) / (1.0 + e)


class Sigmoid(Op):
    """Logistic sigmoid: y = 1 / (1 + e^-x); dy/dx = y (1 - y)."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        y = logistic(xp, x)
        return y, y

    def backward(self, xp: Namespace, grad: Array, y: Any) -> tuple[Array | None, ...]:
        return (grad * (y * (1.0 - y)),)


class SiLU(Op):
    """Sigmoid linear unit, also called swish: y = x s, where s = sigmoid(x); dy/dx = s + y (1 - s).

    Source: Elfwing, Uchibe and Doya, 2017 (arXiv 1702.03118).
    """

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        s = logistic(xp, x)
        y = x * s
        return y, (y, s)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        y, s = saved
        return (grad * (s + y * (1.0 - s)),)


class Softplus(Op):
    """Softplus, a smooth ReLU: y = ln(1 + e^(beta x)) / beta; dy/dx = sigmoid(beta x).

    beta: a number above 0; default 1.

    It is computed without overflow, so PyTorch's option `threshold` is not needed. Raises OptionError for another
    beta. Source: Dugas et al., NIPS 2000.
    """

    positional = ("beta",)

    def forward(self, xp: Namespace, x: Array, *, beta: float = 1.0) -> tuple[Array, Any]:
        if not beta > 0.0:
            raise OptionError(f"softplus got beta={shown(beta)}: beta must be above 0")
        return softplus_of(xp, x * beta) / beta, (x, beta)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        x, beta = saved
        return (grad * logistic(xp, x * beta),)


def softplus_of(xp: Namespace, x: Array) -> Array:
    """ln(1 + e^x), computed as max(x, 0) + ln(1 + e^-|x|), which does not overflow."""
    return xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(x)))


class Tanh(Op):
    """Hyperbolic tangent: y = tanh x; dy/dx = 1 - y^2."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        y = xp.tanh(x)
        return y, y

    def backward(self, xp: Namespace, grad: Array, y: Any) -> tuple[Array | None, ...]:
        return (grad * (1.0 - y * y),)


class Softmax(Op):
    """Softmax along `axis`: y_i = e^(x_i) / sum_j e^(x_j); dx = y (grad - sum_j grad_j y_j).

    axis: integer; default -1.

    The largest x is subtracted first, so that nothing overflows. That does not change the result.
    """

    positional = ("axis",)

    def forward(self, xp: Namespace, x: Array, *, axis: int = -1) -> tuple[Array, Any]:
        e = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
        y = e / xp.sum(e, axis=axis, keepdims=True)
        return y, (y, axis)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        y, axis = saved
        return (y * (grad - xp.sum(grad * y, axis=axis, keepdims=True)),)


class LogSoftmax(Op):
    """Logarithm of softmax along `axis`: y_i = x_i - ln sum_j e^(x_j); dx = grad - e^y sum_j grad_j.

    axis: integer; default -1.

    The largest x is subtracted first, so that nothing overflows.
    """

    positional = ("axis",)

    def forward(self, xp: Namespace, x: Array, *, axis: int = -1) -> tuple[Array, Any]:
        shifted = x - xp.max(x, axis=axis, keepdims=True)
        y = shifted - xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True))
        return y, (y, axis)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        y, axis = saved
        return (grad - xp.exp(y) * xp.sum(grad, axis=axis, keepdims=True),)


class Dropout(Op):
    """Inverted dropout: y = x / (1 - rate) where `keep` is true, else 0; dy/dx = 1 / (1 - rate) or 0.

    keep: booleans of x's shape. `layers.Dropout` draws them.
    rate: the share of elements that are dropped, from 0 to 1.

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
leaky_relu = LeakyReLU()
elu = ELU()
selu = SELU()
gelu = GELU()
sigmoid = Sigmoid()
silu = SiLU()
softplus = Softplus()
tanh = Tanh()
softmax = Softmax()
log_softmax = LogSoftmax()
dropout = Dropout()
