"""Losses as ops: each gives one number, the mean over the batch, and the true gradient of that number."""

from __future__ import annotations

from typing import Any

from xnn.errors import DTypeError, ShapeError
from xnn.ops.activations import logistic
from xnn.ops.op import Array, Namespace, Op, batch_count, batch_mean

__all__ = ["binary_cross_entropy", "column_mse", "mse", "softmax_cross_entropy"]


def _check(xp: Namespace, predicted: Array, target: Array) -> None:
    """Equal shapes only: (n,) against (n, 1) would broadcast to n * n differences without a word."""
    if predicted.shape != target.shape:
        raise ShapeError(
            f"the loss got predictions of shape {predicted.shape} and targets of shape {target.shape}; "
            "they must be equal (nothing is broadcast): reshape one of them"
        )
    if not xp.isdtype(predicted.dtype, "real floating"):
        raise DTypeError(f"the loss needs floating-point predictions, got {predicted.dtype}")


class SoftmaxCrossEntropy(Op):
    """Softmax and cross-entropy from logits z (n, classes) and integer labels t (n,).

        L = (1/n) sum_i (log sum_j e^(z_ij) - z_i,t_i);  dL/dz_ij = (softmax(z_i)_j - [j = t_i]) / n

    The row's largest logit is subtracted first, so nothing overflows. A label outside 0 .. classes - 1
    makes the loss and that row's gradient NaN: an op cannot look at device memory to raise, and a
    wrapped label would train quietly. `losses.SoftmaxCrossEntropy` and `Trainer` do raise.
    """

    def forward(self, xp: Namespace, logits: Array, labels: Array) -> tuple[Array, Any]:
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise ShapeError(
                "softmax cross-entropy needs logits of shape (n, classes) and labels of shape (n,), "
                f"got {logits.shape} and {labels.shape}"
            )
        if not xp.isdtype(labels.dtype, "integral"):
            raise DTypeError(f"softmax cross-entropy needs integer labels, got {labels.dtype}")
        classes = xp.arange(
            logits.shape[1], device=labels.device
        )  # int64: uint8 labels could not count to 300
        labels = xp.expand_dims(xp.astype(labels, classes.dtype), axis=1)
        chosen = labels == classes
        valid = xp.logical_and(labels >= 0, labels < logits.shape[1])
        shifted = logits - xp.max(logits, axis=1, keepdims=True)
        e = xp.exp(shifted)
        total = xp.where(valid, xp.sum(e, axis=1, keepdims=True), float("nan"))
        picked = xp.sum(xp.where(chosen, shifted, 0.0), axis=1, keepdims=True)
        return batch_mean(xp, xp.log(total) - picked), (e, total, chosen)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        e, total, chosen = saved
        error = e / total - xp.astype(chosen, e.dtype)
        return error * (grad / (batch_count(xp, e.shape[:1]) or 1)), None


class BinaryCrossEntropy(Op):
    """Sigmoid and binary cross-entropy from logits z and targets t in [0, 1], of one shape.

    L = mean(max(z, 0) - z t + log(1 + e^-|z|));  dL/dz = (sigmoid(z) - t) / n,  dL/dt = -z / n
    """

    def forward(self, xp: Namespace, logits: Array, target: Array) -> tuple[Array, Any]:
        _check(xp, logits, target)
        target = xp.astype(target, logits.dtype)
        loss = xp.maximum(logits, 0.0) - logits * target + xp.log1p(xp.exp(-xp.abs(logits)))
        return batch_mean(xp, loss), (logits, target)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        logits, target = saved
        share = grad / (batch_count(xp, logits.shape) or 1)
        return (logistic(xp, logits) - target) * share, -logits * share


class MSE(Op):
    """Mean squared error L = (1/n) sum (p - t)^2 over all n elements; dL/dp = (2/n) (p - t) = -dL/dt.

    The articles differ on the factor: MiniFlow has 1/n with gradient 2/n, as here and in PyTorch; the
    blocks article halves the loss, or leaves the 2 out of the gradient alone, which is not its gradient.
    """

    def forward(self, xp: Namespace, predicted: Array, target: Array) -> tuple[Array, Any]:
        _check(xp, predicted, target)
        difference = predicted - xp.astype(target, predicted.dtype)
        return batch_mean(xp, difference * difference), difference

    def backward(self, xp: Namespace, grad: Array, difference: Any) -> tuple[Array | None, ...]:
        dp = difference * (grad * (2.0 / (batch_count(xp, difference.shape) or 1)))
        return dp, -dp


class ColumnMSE(Op):
    """MSE(y, a) as MiniFlow's node has it: target first, both flattened to columns before they meet.

    So targets (n,) and outputs (n, 1) fit, which the losses refuse. Gradients have their inputs' shapes.
    """

    def forward(self, xp: Namespace, target: Array, predicted: Array) -> tuple[Array, Any]:
        columns = xp.reshape(predicted, (-1, 1)), xp.reshape(target, (-1, 1))
        loss, saved = mse.forward(xp, *columns)
        return loss, (saved, target.shape, predicted.shape)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        inner, target_shape, predicted_shape = saved
        dp, dt = mse.backward(xp, grad, inner)
        return xp.reshape(dt, target_shape), xp.reshape(dp, predicted_shape)


softmax_cross_entropy = SoftmaxCrossEntropy()
binary_cross_entropy = BinaryCrossEntropy()
mse = MSE()
column_mse = ColumnMSE()
