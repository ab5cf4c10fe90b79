"""Normalization by means and variances, of a batch (batch normalization) or of each sample (layer normalization)."""

from __future__ import annotations

from typing import Any

from xnn.ops.apply import (
    Boundary,
    SharedBatch,
    batch_count,
    batch_largest,
    batch_part,
    batch_sum,
    batch_sums,
    may_look,
)
from xnn.ops.axes import reduced_axes
from xnn.ops.op import Array, Namespace, Op, size_of
from xnn.options import check_count, check_real

__all__ = ["count_over", "moments", "normalize", "running_moments"]

# Squares of float32 numbers overflow above 2^64 and are subnormal below 2^-63. Numbers whose size is outside 2^-50 to
# 2^50 are multiplied by 2^100 or 2^-80, so that the squares of the largest ones lie within 2^-100 to 2^100.
_SMALL, _LARGE, _MULTIPLY, _DIVIDE = (
    8.881784197001252e-16, 1.125899906842624e15, 1.2676506002282294e30, 8.271806125530277e-25,
)  # fmt: skip


def count_over(xp: Namespace, shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """How many elements are reduced over `axes`. Axis 0 is the batch: the rows of all workers count."""
    inside = size_of([shape[a] for a in axes if a])
    return batch_count(xp, (shape[0], inside)) if 0 in axes else inside


def _scale(xp: Namespace, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """A power of two for each mean and variance, by which the numbers are multiplied so that no square overflows.

    It is 1 unless all numbers are tiny or one is huge. The second result is the size of the largest number.
    """
    if 0 in x.shape:
        kept = tuple(1 if a in axes else extent for a, extent in enumerate(x.shape))
        size = xp.zeros(kept, dtype=x.dtype, device=x.device)
    else:
        size = xp.maximum(xp.max(x, axis=axes, keepdims=True), -xp.min(x, axis=axes, keepdims=True))
    if 0 in axes:
        size = batch_largest(xp, size)
    tiny = xp.logical_and(size < _SMALL, size > 0.0)
    return xp.where(size > _LARGE, _DIVIDE, xp.where(tiny, _MULTIPLY, xp.ones_like(size))), size


class Moments(Op):
    """Mean and variance over `axis`, as y[0] and y[1]; the axes stay, with extent 1.

        mean = (1/n) sum x,   variance = (1/n) sum (x - mean)^2;   dx = dmean / n + dvariance 2 (x - mean) / n

    axis: a tuple of integers. Axis 0 is the batch: if workers share it, the rows of all count.
    scaled: whether there is a y[2], a power of two s, and y[1] is s^2 times the variance. s is 1, unless numbers are
        so large or so small that their squares are beyond the range of float32. `ops.normalize` takes both forms;
        default False.

    The mean and variance of no elements are 0.
    """

    def forward(
        self, xp: Namespace, x: Array, *, axis: tuple[int, ...], scaled: bool = False
    ) -> tuple[Array, Any]:
        axes = reduced_axes(axis, x.ndim)
        n = float(count_over(xp, x.shape, axes) or 1)
        agreed = 0 in axes and isinstance(xp, SharedBatch) and not isinstance(xp, Boundary)
        if agreed or (may_look(xp, x) and xp.min(x) >= -_LARGE and xp.max(x) <= _LARGE):
            # Nothing can overflow. This is the usual case, and a look at the numbers costs less than scaling them.
            # Workers that share the batch look at the variance, which is the same for all of them.
            mean, variance, away = _moments(xp, x, axes, n)
            usual = xp.min(variance) > _SMALL * _SMALL
            if usual and (not agreed or xp.max(variance) < _LARGE * _LARGE):
                rows = (mean, variance, xp.ones_like(mean))
                return xp.stack(rows if scaled else rows[:2]), (away, n, 2.0 / n)
        scale, size = _scale(xp, x, axes)
        mean, variance, away = _moments(xp, x * scale, axes, n, size * scale)
        rows = (mean / scale, variance if scaled else variance / scale / scale, scale)
        slope = 2.0 / n * (scale if scaled else 1.0 / scale)
        return xp.stack(rows if scaled else rows[:2]), (away, n, slope)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        away, n, slope = saved
        return (grad[0, ...] / n + away * (grad[1, ...] * slope),)


def _moments(
    xp: Namespace, x: Array, axes: tuple[int, ...], n: float, size: Array | None = None
) -> tuple[Array, Array, Array]:
    """Mean, variance, and x less the mean. size: of the largest numbers of the whole batch, where it is known."""
    if isinstance(xp, Boundary) and 0 in axes:
        mean = xp.batch_sum(x, axis=axes, keepdims=True, largest=size) / n
    else:
        mean = batch_sum(xp, x, axis=axes, keepdims=True) / n
    away = x - mean
    return mean, batch_sum(xp, away * away, axis=axes, keepdims=True) / n, away


class Normalize(Op):
    """Normalize by given mean and variance: y = (x - mean) / sqrt(variance + epsilon) * weight + bias.

    x: any shape.
    moments: mean and variance as `ops.moments` returns them, scaled or not.
    weight, bias: both or neither; their axes are those of x from axis `along` on. Batch normalization has (C,) along
        axis 1, layer normalization (features, ...) along the last axes.
    axis: the axes over which the moments were computed; a tuple of integers.
    along: integer; default 1.
    epsilon: a number; default 1e-5.

    Gradients, with r = 1 / sqrt(variance + epsilon), z = (x - mean) r, g = grad * weight:

        dx = g r,  dmean = -sum g r,  dvariance = -1/2 r^2 sum g z,  dweight = sum grad z,  dbias = sum grad

    Source: Ioffe and Szegedy, ICML 2015; Ba, Kiros and Hinton, 2016 (arXiv 1607.06450).
    """

    def check_options(self, *, epsilon: Any = 1e-5, **others: Any) -> None:
        check_real("epsilon", epsilon, 0.0)

    def forward(
        self,
        xp: Namespace,
        x: Array,
        moments: Array,
        weight: Array | None = None,
        bias: Array | None = None,
        *,
        axis: tuple[int, ...],
        along: int = 1,
        epsilon: float = 1e-5,
    ) -> tuple[Array, Any]:
        axes = reduced_axes(axis, x.ndim)
        mean, root, scale = moments[0, ...], 1.0 / xp.sqrt(moments[1, ...] + epsilon), None
        if moments.shape[0] > 2 and not (may_look(xp, x) and xp.all(moments[2, ...] == 1.0)):
            scale = moments[2, ...]
            root = xp.where(scale == 1.0, root, _scaled_root(xp, moments[1, ...], scale, epsilon))
            z = (x * scale - mean * scale) * root
        else:
            z = (x - mean) * root
        kept = z, root, scale, axes, moments.shape[0]
        if weight is None:
            return z, (*kept, None, None)
        along = check_count("normalize: along", along, least=0)
        lying = (1,) * along + tuple(weight.shape) + (1,) * (x.ndim - along - weight.ndim)
        spread = xp.reshape(weight, lying)
        return z * spread + xp.reshape(bias, lying), (*kept, spread, tuple(weight.shape))

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        z, root, scale, axes, rows, weight, shape = saved
        g = grad if weight is None else grad * weight
        dx = g * (root if scale is None else root * scale)
        others = () if weight is None else tuple(a for a, extent in enumerate(weight.shape) if extent == 1)
        together = isinstance(xp, Boundary) and others == axes  # by one message, if workers share the batch
        terms = (dx, g * z, grad * z, grad) if together else (dx, g * z)
        sums = batch_sums(xp, terms, axes)
        dmean, dvariance = -sums[0], sums[1] * (root * root) * -0.5
        dmoments = xp.stack((dmean, dvariance, xp.zeros_like(dmean))[:rows])
        if weight is None:
            return dx, dmoments
        last = sums[2:] if together else [batch_part(xp, d, axis=others) for d in (grad * z, grad)]
        return dx, dmoments, *(xp.reshape(d, shape) for d in last)


def _scaled_root(xp: Namespace, variance: Array, scale: Array, epsilon: float) -> Array:
    """1 / sqrt(variance + epsilon scale^2) for a variance that is scaled; epsilon scale^2 itself may overflow.

    With a = sqrt(variance) and b = sqrt(epsilon) scale, the larger of the two is taken out of the root.
    """
    a, b = xp.sqrt(variance), xp.sqrt(xp.full_like(variance, epsilon)) * scale
    larger = xp.maximum(a, b)
    ratio = xp.minimum(a, b) / larger
    return 1.0 / (larger * xp.sqrt(1.0 + ratio * ratio))


def running_moments(
    xp: Namespace,
    mean: Array,
    variance: Array,
    moments: Array,
    *,
    momentum: float,
    axis: tuple[int, ...],
    shape: tuple[int, ...],
) -> tuple[Array, Array]:
    """Update running statistics by a batch: running = (1 - momentum) running + momentum new, as in PyTorch.

    `moments` are those of the batch, scaled or not, over `axis` of an array of this `shape`. The new variance is the
    unbiased one: n / (n - 1) times the batch's. A single element has no unbiased variance, and no elements have no
    mean either: what they lack does not change.
    """
    n = count_over(xp, shape, axis)
    if n == 0:
        return mean, variance
    new_mean = (1.0 - momentum) * mean + momentum * xp.reshape(moments[0, ...], mean.shape)
    if n == 1:
        return new_mean, variance
    batch = xp.reshape(moments[1, ...], mean.shape)
    if moments.shape[0] > 2:
        scale = xp.reshape(moments[2, ...], mean.shape)
        batch = batch / scale / scale
    return new_mean, (1.0 - momentum) * variance + (momentum * (n / (n - 1))) * batch


moments = Moments()
normalize = Normalize()
