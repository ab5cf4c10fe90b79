"""Activation functions, and two more layers without weights: rescale and dropout."""

from __future__ import annotations

from typing import Any, Literal

from xnn.errors import OptionError
from xnn.ops.axes import reduced_axes
from xnn.ops.op import Array, Namespace, Op
from xnn.ops.special import erfc
from xnn.options import check_integer, check_real, is_one_of, shown

__all__ = [
    "dropout", "elu", "gelu", "leaky_relu", "log_softmax", "relu", "rescale", "selu", "sigmoid", "silu", "softmax",
    "softplus", "tanh",
]  # fmt: skip


_ROOT_HALF, _ROOT_2_OVER_PI = 0.7071067811865476, 0.7978845608028654
#: For |x| > 40, e^(-x^2 / 2) is 0, and the normal distribution function is 0 or 1.
_FLAT = 40.0
#: Above 60, the logistic function is 1, and e^x does not overflow yet. Below -800 it is 0, as e^x is.
_LOGISTIC_FLAT, _LOGISTIC_ZERO = 60.0, -800.0


class Rescale(Op):
    """Scale and shift: y = x * scale + offset; dy/dx = scale. It turns integer pixels into network inputs.

    scale, offset: numbers or arrays; offset is 0 by default.
    dtype: the dtype of y; None (default) for that of x * scale.
    shift: a number or array; y = (x - shift) * scale + offset is then computed in the dtype `wide`, such as float64,
        and rounded to `dtype` at the end. Default None: nothing is subtracted, and x is rounded to `dtype` first.
    wide: see shift; None (default) for the dtype of x.
    """

    def forward(
        self,
        xp: Namespace,
        x: Array,
        *,
        scale: Any,
        offset: Any = 0.0,
        dtype: Any = None,
        shift: Any = None,
        wide: Any = None,
    ) -> tuple[Array, Any]:
        first = dtype if shift is None else wide
        moved = x if first is None else xp.astype(x, first)
        y = (moved if shift is None else moved - shift) * scale
        y = y if isinstance(offset, float) and offset == 0.0 else y + offset
        rounds = shift is not None and dtype is not None
        return (xp.astype(y, dtype, copy=False) if rounds else y), (scale, x.dtype)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        scale, dtype = saved
        dx = grad * scale
        return (xp.astype(dx, dtype, copy=False) if xp.isdtype(dtype, "real floating") else dx,)


class ReLU(Op):
    """Rectified linear unit: y = max(x, 0); dy/dx = 0 where x <= 0, else 1. At NaN, y is NaN and dy/dx is 1.

    Source: Nair and Hinton, ICML 2010.
    """

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return xp.maximum(x, 0.0), x

    def backward(self, xp: Namespace, grad: Array, x: Any) -> tuple[Array | None, ...]:
        return (xp.where(x <= 0.0, 0.0, grad),)


class LeakyReLU(Op):
    """Leaky rectified linear unit: y = x where x > 0, else negative_slope * x; dy/dx = 1 or negative_slope.

    negative_slope: a number; default 0.01.

    Source: Maas, Hannun and Ng, ICML 2013.
    """

    positional = ("negative_slope",)

    def check_options(self, *, negative_slope: Any = 0.01, **others: Any) -> None:
        check_real("negative_slope", negative_slope)

    def forward(self, xp: Namespace, x: Array, *, negative_slope: float = 0.01) -> tuple[Array, Any]:
        return xp.maximum(x, 0.0) + negative_slope * xp.minimum(x, 0.0), (x, negative_slope)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        x, negative_slope = saved
        return (xp.where(x <= 0.0, grad * negative_slope, grad),)


class ELU(Op):
    """Exponential linear unit: y = x where x > 0, else alpha (e^x - 1); dy/dx = 1 or alpha e^x.

    alpha: a number; default 1.

    Source: Clevert, Unterthiner and Hochreiter, ICLR 2016.
    """

    positional = ("alpha",)

    def check_options(self, *, alpha: Any = 1.0, **others: Any) -> None:
        check_real("alpha", alpha)

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

        approximate="none": P(x) = erfc(-x / sqrt 2) / 2,           p(x) = e^(-x^2/2) / sqrt(2 pi)
        approximate="tanh": P(x) = (1 + tanh u) / 2,                p(x) = 2 P(x) (1 - P(x)) u'
                            u = sqrt(2 / pi) (x + 0.044715 x^3),    u' = sqrt(2 / pi) (1 + 0.134145 x^2)

    erfc is 1 - erf, and (1 + tanh u) / 2 is computed as the logistic function of 2 u: both are accurate also where
    they are small, far below 0.

    approximate: "none" (default) or "tanh".

    Raises OptionError for another `approximate`.
    Source: Hendrycks and Gimpel, 2016 (arXiv 1606.08415).
    """

    def forward(
        self, xp: Namespace, x: Array, *, approximate: Literal["none", "tanh"] = "none"
    ) -> tuple[Array, Any]:
        if not is_one_of(approximate, ("none", "tanh")):
            raise OptionError(
                f"gelu got approximate={shown(approximate)}: approximate must be 'none' or 'tanh'"
            )
        low = xp.maximum(x, -_FLAT)  # below, P is 0, and -inf * 0 would be NaN
        if approximate == "none":
            share, rest = 0.5 * erfc(xp, low * -_ROOT_HALF), None
        else:
            inside = xp.minimum(low, _FLAT)  # x^3 could overflow
            u = _ROOT_2_OVER_PI * (inside + 0.044715 * (inside * inside * inside))
            e = xp.exp(xp.minimum(2.0 * u, _LOGISTIC_FLAT))
            share, rest = e / (1.0 + e), 1.0 / (1.0 + e)
        return low * share, (low, share, rest)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        low, share, rest = saved
        x = xp.minimum(low, _FLAT)  # above, p is 0, and inf * 0 would be NaN
        if rest is None:
            density = (0.5 * _ROOT_2_OVER_PI) * xp.exp(-0.5 * (x * x))
        else:
            density = 2.0 * share * rest * (_ROOT_2_OVER_PI * (1.0 + 0.134145 * (x * x)))
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
        y = xp.maximum(x, _LOGISTIC_ZERO) * s  # -inf * 0 would be NaN
        return y, (y, s)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        y, s = saved
        return (grad * (s + xp.minimum(y, _LOGISTIC_FLAT) * (1.0 - s)),)


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
        z = _times(xp, x, beta)
        return xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(z))) / beta, (z,)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        (z,) = saved
        return (grad * logistic(xp, z),)


def _times(xp: Namespace, x: Array, beta: float) -> Array:
    """beta x. Where e^-|beta x| is 0, another number for which it is 0 as well, since beta x could overflow."""
    if beta == 1.0:
        return x
    end = -_LOGISTIC_ZERO / beta
    return xp.maximum(xp.minimum(x, end), -end) * beta


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
        axes = _softmax_axis(axis, x)
        e = xp.exp(x - _largest(xp, x, axes))
        y = e / xp.sum(e, axis=axes, keepdims=True)
        return y, (y, axes)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        y, axes = saved
        return (y * (grad - xp.sum(grad * y, axis=axes, keepdims=True)),)


class LogSoftmax(Op):
    """Logarithm of softmax along `axis`: y_i = x_i - ln sum_j e^(x_j); dx = grad - e^y sum_j grad_j.

    axis: integer; default -1.

    The largest x is subtracted first, so that nothing overflows.
    """

    positional = ("axis",)

    def forward(self, xp: Namespace, x: Array, *, axis: int = -1) -> tuple[Array, Any]:
        axes = _softmax_axis(axis, x)
        shifted = x - _largest(xp, x, axes)
        if 0 in x.shape:
            return shifted, (shifted, axes)  # the logarithm of an empty sum would warn
        y = shifted - xp.log(xp.sum(xp.exp(shifted), axis=axes, keepdims=True))
        return y, (y, axes)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        y, axes = saved
        return (grad - xp.exp(y) * xp.sum(grad, axis=axes, keepdims=True),)


def _softmax_axis(axis: int, x: Array) -> tuple[int, ...]:
    """The axis of a softmax as a tuple; of a single number, which is its own softmax, no axis."""
    return reduced_axes(check_integer("axis", axis), x.ndim)


def _largest(xp: Namespace, x: Array, axes: tuple[int, ...]) -> Array:
    """The largest element along the axes, which stay; of an empty array, zeros."""
    if 0 not in x.shape:
        return xp.max(x, axis=axes, keepdims=True)
    shape = tuple(1 if a in axes else extent for a, extent in enumerate(x.shape))
    return xp.zeros(shape, dtype=x.dtype, device=x.device)


class Dropout(Op):
    """Inverted dropout: y = x / (1 - rate) where `keep` is true, else 0; dy/dx = 1 / (1 - rate) or 0.

    keep: booleans of x's shape. `layers.Dropout` draws them.
    rate: the share of elements that are dropped, in [0, 1). Raises OptionError for another.

    Source: Srivastava et al., JMLR 15 (2014).
    """

    def check_options(self, *, rate: Any = 0.0, **others: Any) -> None:
        check_real("rate", rate, 0.0, 1.0)

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
