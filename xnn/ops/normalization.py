"""Normalization by means and variances, of a batch (batch normalization) or of each sample (layer normalization)."""

from __future__ import annotations

from typing import Any

from xnn.ops.apply import batch_count, batch_sum
from xnn.ops.op import Array, Namespace, Op, positive_axis, size_of

__all__ = ["count_over", "moments", "normalize", "running_moments"]


def count_over(xp: Namespace, shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """How many elements are reduced over `axes`; at least 1. Axis 0 is the batch: the rows of all workers count."""
    inside = size_of([shape[a] for a in axes if a])
    return (batch_count(xp, (shape[0], inside)) if 0 in axes else inside) or 1


def _positive(axis: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return tuple(positive_axis(a, ndim) for a in axis)


class Moments(Op):
    """Mean and variance over `axis`, as y[0] and y[1]; the axes stay, with extent 1.

        mean = (1/n) sum x,   variance = (1/n) sum (x - mean)^2;   dx = dmean / n + dvariance 2 (x - mean) / n

    axis: a tuple of integers. Axis 0 is the batch: if workers share it, the rows of all count.
    """

    def forward(self, xp: Namespace, x: Array, *, axis: tuple[int, ...]) -> tuple[Array, Any]:
        axis = _positive(axis, x.ndim)
        n = float(count_over(xp, x.shape, axis))
        mean = batch_sum(xp, x, axis=axis, keepdims=True) / n
        away = x - mean
        variance = batch_sum(xp, away * away, axis=axis, keepdims=True) / n
        return xp.stack((mean, variance)), (away, n)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        away, n = saved
        return (grad[0, ...] / n + away * (grad[1, ...] * (2.0 / n)),)


class Normalize(Op):
    """Normalize by given mean and variance: y = (x - mean) / sqrt(variance + epsilon) * weight + bias.

    x: any shape.
    moments: mean and variance as `ops.moments` returns them.
    weight, bias: both or neither; their axes are those of x from axis `along` on. Batch normalization has (C,) along
        axis 1, layer normalization (features, ...) along the last axes.
    axis: the axes over which the moments were computed; a tuple of integers.
    along: integer; default 1.
    epsilon: a number; default 1e-5.

    Gradients, with r = 1 / sqrt(variance + epsilon), z = (x - mean) r, g = grad * weight:

        dx = g r,  dmean = -sum g r,  dvariance = -1/2 r^2 sum g z,  dweight = sum grad z,  dbias = sum grad

    Source: Ioffe and Szegedy, ICML 2015; Ba, Kiros and Hinton, 2016 (arXiv 1607.06450).
    """

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
        axis = _positive(axis, x.ndim)
        root = 1.0 / xp.sqrt(moments[1, ...] + epsilon)
        z = (x - moments[0, ...]) * root
        if weight is None:
            return z, (z, root, axis, None, None)
        lying = (1,) * along + tuple(weight.shape) + (1,) * (x.ndim - along - weight.ndim)
        spread = xp.reshape(weight, lying)
        return z * spread + xp.reshape(bias, lying), (z, root, axis, spread, tuple(weight.shape))

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        z, root, axis, weight, shape = saved
        g = grad if weight is None else grad * weight
        dx = g * root
        dmean = -batch_sum(xp, dx, axis=axis, keepdims=True)
        dvariance = batch_sum(xp, g * z, axis=axis, keepdims=True) * (root * root) * -0.5
        dmoments = xp.stack((dmean, dvariance))
        if weight is None:
            return dx, dmoments
        others = tuple(a for a, extent in enumerate(weight.shape) if extent == 1)
        dweight, dbias = (xp.reshape(batch_sum(xp, d, axis=others), shape) for d in (grad * z, grad))
        return dx, dmoments, dweight, dbias


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

    `moments` are those of the batch, over `axis` of an array of this `shape`. The new variance is the unbiased one:
    n / (n - 1) times the batch's, or just the batch's if n = 1.
    """
    n = count_over(xp, shape, axis)
    new_mean, new_variance = (xp.reshape(moments[k, ...], mean.shape) for k in (0, 1))
    keep, unbiased = 1.0 - momentum, n / max(n - 1, 1)
    return keep * mean + momentum * new_mean, keep * variance + (momentum * unbiased) * new_variance


moments = Moments()
normalize = Normalize()
