"""Losses of probabilities: cross-entropies from logits, the focal loss, the Kullback-Leibler divergence."""

from __future__ import annotations

from typing import Any

from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.ops.activations import logistic, softplus_of
from xnn.ops.losses import LossOp, constant
from xnn.ops.op import Array, Namespace

__all__ = ["binary_cross_entropy", "focal", "kl_divergence", "softmax_cross_entropy"]


class SoftmaxCrossEntropy(LossOp):
    """Softmax and cross-entropy from logits z (n, classes, ...), PyTorch's cross_entropy in all its options.

        term = sum_j a_j (log sum_k e^(z_k) - z_j);  d/dz_j = softmax(z)_j sum_k a_k - a_j
        a_j = class_weight_j ((1 - label_smoothing) q_j + label_smoothing / classes)

    targets: integer labels (n, ...), for which q is 1 at the label and 0 elsewhere, or probabilities q of the
    logits' shape, whose gradient is d/dq_j = class_weight_j (1 - label_smoothing) (log sum_k e^(z_k) - z_j).
    class_weight: a number for each class. ignore_index: a label that takes no part. In the mean a label counts
    class_weight of its class, 0 if it is ignored; probabilities count 1 a sample, whatever class_weight is.

    The row's largest logit is subtracted first, so nothing overflows. A label outside 0 .. classes - 1
    makes the loss and that row's gradient NaN: an op cannot look at device memory to raise, and a
    wrapped label would train quietly. `losses.SoftmaxCrossEntropy` and `Trainer` do raise.
    Label smoothing: Szegedy et al., CVPR 2016.
    """

    over_classes = True

    def fit(self, xp: Namespace, logits: Array, targets: Array) -> Array:
        """Probabilities in the logits' dtype, or labels as int64."""
        self.check_floating(xp, logits)
        if logits.ndim < 2 or targets.shape not in (
            logits.shape,
            (*logits.shape[:1], *logits.shape[2:]),
        ):
            raise ShapeError(
                "softmax cross-entropy needs logits of shape (n, classes, ...) and labels of shape (n, ...) or "
                f"probabilities like the logits, got {logits.shape} and {targets.shape}"
            )
        if targets.shape == logits.shape:
            return xp.astype(targets, logits.dtype, copy=False)
        if not xp.isdtype(targets.dtype, "integral"):
            raise DTypeError(f"softmax cross-entropy needs integer labels, got {targets.dtype}")
        # int64: uint8 labels could not count to 300
        return xp.astype(targets, xp.arange(0, device=targets.device).dtype, copy=False)

    def terms(
        self,
        xp: Namespace,
        logits: Array,
        targets: Array,
        *,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        ignore_index: int | None = None,
    ) -> tuple[Array, Any]:
        shifted = logits - xp.max(logits, axis=1, keepdims=True)
        e = xp.exp(shifted)
        total = xp.sum(e, axis=1, keepdims=True)
        aims, labels, kept = targets, targets.shape != logits.shape, None
        scale: Any = 1.0 - label_smoothing
        if labels:
            aims, valid, kept = _one_hot(xp, logits, targets, ignore_index)
            total = xp.where(valid, total, float("nan"))
            if not (label_smoothing or class_weight is not None or ignore_index is not None):
                picked = xp.sum(xp.where(aims, shifted, 0.0), axis=1, keepdims=True)
                return xp.log(total) - picked, (e, total, aims, None, None)
            aims = xp.astype(aims, logits.dtype)
        elif ignore_index is not None:
            raise OptionError("ignore_index is a label's: probabilities as targets have none")
        if label_smoothing:
            aims = aims * scale + label_smoothing / logits.shape[1]
        if class_weight is not None:
            weights = _class_weights(xp, class_weight, logits)
            aims, scale = aims * weights, scale * weights
        if kept is not None:
            aims = xp.where(kept, aims, 0.0)
        mass, far = xp.sum(aims, axis=1, keepdims=True), xp.log(total)
        # 0 log 0 = 0, also where a logit is -infinity
        picked = xp.sum(aims * xp.where(aims == 0.0, 0.0, shifted), axis=1, keepdims=True)
        return mass * far - picked, (e, total, aims, mass, None if labels else (scale, far - shifted))

    def slopes(self, xp: Namespace, share: Array, saved: Any) -> tuple[Array, Array | None]:
        e, total, aims, mass, of_targets = saved
        if mass is None:
            return (e / total - xp.astype(aims, e.dtype)) * share, None
        dz = (e / total * mass - aims) * share
        return dz, None if of_targets is None else of_targets[0] * of_targets[1] * share

    def counts(
        self,
        xp: Namespace,
        outputs: Array,
        targets: Array,
        *,
        class_weight: Any = None,
        ignore_index: int | None = None,
        **options: Any,
    ) -> Array | None:
        """Of a label its class's weight, of an ignored one 0."""
        if targets.shape == outputs.shape or (class_weight is None and ignore_index is None):
            return None
        chosen, _, kept = _one_hot(xp, outputs, targets, ignore_index)
        ones = 1.0 if class_weight is None else _class_weights(xp, class_weight, outputs)
        chosen = xp.astype(chosen if kept is None else xp.logical_and(chosen, kept), outputs.dtype)
        return xp.sum(chosen * ones, axis=1, keepdims=True)


def _one_hot(
    xp: Namespace, logits: Array, labels: Array, ignore_index: int | None
) -> tuple[Array, Array, Array | None]:
    """Where a class is the label, (n, classes, ...); where the label is one, and where not ignored, (n, 1, ...)."""
    count = logits.shape[1]
    classes = xp.reshape(xp.arange(count, device=labels.device), (count, *(1 for _ in logits.shape[2:])))
    labels = xp.expand_dims(labels, axis=1)
    valid = xp.logical_and(labels >= 0, labels < count)
    if ignore_index is None:
        return labels == classes, valid, None
    kept = labels != ignore_index
    return labels == classes, xp.logical_or(valid, xp.logical_not(kept)), kept


def _class_weights(xp: Namespace, class_weight: Any, logits: Array) -> Array:
    """As (classes, 1, ...) beside the logits."""
    weights, count = constant(xp, class_weight, logits), logits.shape[1]
    if getattr(weights, "shape", ()) != (count,):
        raise ShapeError(
            f"class_weight must hold a number for each of the {count} classes, got "
            f"{getattr(weights, 'shape', weights)}"
        )
    return xp.reshape(weights, (count, *(1 for _ in logits.shape[2:])))


class BinaryCrossEntropy(LossOp):
    """Sigmoid and binary cross-entropy from logits z and targets t in [0, 1], of one shape.

        term = max(z, 0) - z t + log(1 + e^-|z|);  d/dz = sigmoid(z) - t,  d/dt = -z

    pos_weight: how many negative ones a positive target is worth, a number or one for each along the last axis, as
    in PyTorch's binary_cross_entropy_with_logits: (pos_weight - 1) t log(1 + e^-z) is added. It counts in the
    sum, not in the mean's count. (PyTorch's other option, weight, is not in its count either; sample weights are.)
    """

    def terms(
        self, xp: Namespace, logits: Array, target: Array, *, pos_weight: Any = None
    ) -> tuple[Array, Any]:
        terms = xp.maximum(logits, 0.0) - logits * target + xp.log1p(xp.exp(-xp.abs(logits)))
        if pos_weight is None:
            return terms, (logits, target, None)
        more = constant(xp, pos_weight, logits) - 1.0
        if getattr(more, "shape", ()) not in ((), logits.shape[-1:]):
            raise ShapeError(f"pos_weight must be a number or {logits.shape[-1:]} of them, got {more.shape}")
        return terms + more * target * softplus_of(xp, -logits), (logits, target, more)

    def slopes(self, xp: Namespace, share: Array, saved: Any) -> tuple[Array, Array | None]:
        logits, target, more = saved
        dz, dt = logistic(xp, logits) - target, -logits
        if more is not None:
            dz = dz - more * target * logistic(xp, -logits)
            dt = dt + more * softplus_of(xp, -logits)
        return dz * share, dt * share


class Focal(LossOp):
    """Binary cross-entropy c that looks away from what is easy, from logits z and targets t in [0, 1], of one shape.

        p = sigmoid(z),  q = p (1 - t) + (1 - p) t,  a = alpha t + (1 - alpha) (1 - t)
        term = a q^gamma c;  d/dz = a q^gamma (p - t + gamma c (1 - 2 t) p (1 - p) / q)

    alpha: the weight of positive targets, of negative ones 1 - alpha; None weighs neither. torchvision's
    sigmoid_focal_loss, also in its defaults (but for its reduction, "none"). Source: Lin et al., ICCV 2017, (5);
    there the sum is divided by the number of positive anchors.
    """

    def terms(
        self, xp: Namespace, logits: Array, target: Array, *, gamma: float = 2.0, alpha: float | None = 0.25
    ) -> tuple[Array, Any]:
        p, rest = logistic(xp, logits), logistic(xp, -logits)
        away = p * (1.0 - target) + rest * target
        entropy = softplus_of(xp, logits) - logits * target
        factor = xp.pow(away, gamma)
        if alpha is not None:
            factor = factor * (alpha * target + (1.0 - alpha) * (1.0 - target))
        return factor * entropy, (logits, target, p, rest, away, entropy, factor, gamma, alpha)

    def slopes(self, xp: Namespace, share: Array, saved: Any) -> tuple[Array, Array | None]:
        logits, target, p, rest, away, entropy, factor, gamma, alpha = saved
        # q = 0 only where p has reached the target, and there p (1 - p) and the entropy are 0 as well.
        divisor = xp.where(away == 0.0, 1.0, away)
        dz = factor * (p - target + gamma * entropy * (1.0 - 2.0 * target) * (p * rest / divisor))
        dt = factor * (gamma * (entropy / divisor) * (rest - p) - logits)
        if alpha is not None:
            dt = dt + (2.0 * alpha - 1.0) * xp.pow(away, gamma) * entropy
        return dz * share, dt * share


class KLDivergence(LossOp):
    """How far log-probabilities y (n, classes, ...), a LogSoftmax's, are from probabilities t of the same shape.

        term = sum_j t_j (log t_j - y_j);  d/dy_j = -t_j,  d/dt_j = log t_j + 1 - y_j

    Where t_j = 0 its part is 0 (0 log 0 = 0), and so are both derivatives. A term is a sample's (or position's)
    divergence, so the mean is PyTorch's kl_div of reduction "batchmean", and Keras's KLDivergence; PyTorch's "mean"
    divides by the number of classes as well. Source: Kullback and Leibler, Ann. Math. Statist. 22 (1951).
    """

    over_classes = True

    def fit(self, xp: Namespace, outputs: Array, targets: Array) -> Array:
        """As for other losses, but there must be an axis of classes."""
        if outputs.ndim < 2:
            raise ShapeError(f"the divergence needs outputs of shape (n, classes, ...), got {outputs.shape}")
        return super().fit(xp, outputs, targets)

    def terms(self, xp: Namespace, outputs: Array, target: Array) -> tuple[Array, Any]:
        none = target == 0.0
        apart = xp.log(xp.where(none, 1.0, target)) - xp.where(none, 0.0, outputs)
        return xp.sum(target * apart, axis=1, keepdims=True), (target, none, apart)

    def slopes(self, xp: Namespace, share: Array, saved: Any) -> tuple[Array, Array | None]:
        target, none, apart = saved
        return -target * share, xp.where(none, 0.0, apart + 1.0) * share


softmax_cross_entropy = SoftmaxCrossEntropy()
binary_cross_entropy = BinaryCrossEntropy()
focal = Focal()
kl_divergence = KLDivergence()
