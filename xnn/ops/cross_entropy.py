"""Losses of probabilities: cross-entropies from logits, focal loss, Kullback-Leibler divergence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.ops.activations import logistic, softplus_of
from xnn.ops.apply import may_look
from xnn.ops.losses import LossOp, constant
from xnn.ops.op import Array, Namespace
from xnn.ops.sums import pairwise_sum
from xnn.options import check_integer, check_real, shown

__all__ = ["binary_cross_entropy", "focal", "kl_divergence", "softmax_cross_entropy"]


class SoftmaxCrossEntropy(LossOp):
    """Softmax and cross-entropy from logits z, with all options of PyTorch's cross_entropy.

        term = sum_j a_j (log sum_k e^(z_k) - z_j);  d/dz_j = softmax(z)_j sum_k a_k - a_j
        a_j = class_weight_j ((1 - label_smoothing) q_j + label_smoothing / classes)

    logits: shape (n, classes, ...).
    targets: integer labels (n, ...): q is 1 at the label and 0 elsewhere; or probabilities q of the logits' shape,
        with the gradient d/dq_j = class_weight_j (1 - label_smoothing) (log sum_k e^(z_k) - z_j).
    class_weight: a finite number of at least 0 for each class; default 1 for all.
    ignore_index: a label that is left out, an integer; default None for no label.
    label_smoothing: a number in [0, 1); default 0.

    In the mean, a label counts as much as the weight of its class, an ignored label counts 0, and probabilities count
    1 for each sample, whatever class_weight is. The largest logit is subtracted first, so that nothing overflows.
    A logit of infinity has the whole probability (several share it); if all logits are -infinity, the loss is NaN.
    Raises OptionError for other options.

    A label outside 0 .. classes - 1 makes the loss and the gradient of its row NaN: an op cannot read a GPU's memory
    to raise an error, and a label that wraps around would train unnoticed. `losses.SoftmaxCrossEntropy` and `Trainer`
    check the labels on the host and raise. Source of label smoothing: Szegedy et al., CVPR 2016.
    """

    over_classes = True

    def check_options(
        self, *, label_smoothing: Any = 0.0, class_weight: Any = None, ignore_index: Any = None, **others: Any
    ) -> None:
        check_real("label_smoothing", 0.0 if label_smoothing is None else label_smoothing, 0.0, 1.0)
        _check_weights("class_weight", class_weight)
        if ignore_index is not None:
            check_integer("ignore_index", ignore_index)

    def fit(self, xp: Namespace, logits: Array, targets: Array) -> Array:
        """Check and convert the targets: probabilities to the dtype of the logits, labels to int64."""
        self.check_floating(xp, logits)
        if logits.ndim < 2 or targets.shape not in (
            logits.shape,
            (*logits.shape[:1], *logits.shape[2:]),
        ):
            raise ShapeError(
                f"softmax cross-entropy got logits of shape {logits.shape} and targets of shape {targets.shape}: it "
                "needs logits (n, classes, ...) and labels (n, ...), or probabilities of the logits' shape"
            )
        if targets.shape == logits.shape:
            return xp.astype(targets, logits.dtype, copy=False)
        if not xp.isdtype(targets.dtype, "integral"):
            raise DTypeError(
                f"softmax cross-entropy got labels of {targets.dtype}: it needs integer labels, as "
                "labels.astype('int64')"
            )
        # as int64, since uint8 labels could not be compared with class 300
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
        shifted = _below_largest(xp, logits)
        e = xp.exp(shifted)
        total = pairwise_sum(xp, e, axis=1, keepdims=True)
        aims, labels, kept = targets, targets.shape != logits.shape, None
        scale: Any = 1.0 - label_smoothing
        if labels:
            aims, valid, kept = _one_hot(xp, logits, targets, ignore_index)
            total = xp.where(valid, total, float("nan"))
            if not (label_smoothing or class_weight is not None or ignore_index is not None):
                picked = xp.sum(xp.where(aims, shifted, 0.0), axis=1, keepdims=True)
                return xp.log(total) - picked, (e, total, aims, None, None, None)
            aims = xp.astype(aims, logits.dtype)
        elif ignore_index is not None:
            raise OptionError(
                "ignore_index is for integer labels, and the targets are probabilities: omit it"
            )
        if label_smoothing:
            aims = aims * scale + label_smoothing / logits.shape[1]
        if class_weight is not None:
            weights = _class_weights(xp, class_weight, logits)
            aims, scale = aims * weights, scale * weights
        if kept is not None:
            aims = xp.where(kept, aims, 0.0)
        mass, far = pairwise_sum(xp, aims, axis=1, keepdims=True), xp.log(total)
        # 0 log 0 is 0, also where a logit is -infinity
        picked = pairwise_sum(xp, aims * xp.where(aims == 0.0, 0.0, shifted), axis=1, keepdims=True)
        terms, of_targets = mass * far - picked, None
        if kept is not None:
            terms = xp.where(kept, terms, 0.0)
        if not labels:
            surprise = far - shifted
            of_targets = scale * (surprise if class_weight is None else xp.where(scale == 0.0, 0.0, surprise))
        return terms, (e, total, aims, mass, kept, of_targets)

    def slopes(self, xp: Namespace, share: Array, saved: Any) -> tuple[Array, Array | None]:
        e, total, aims, mass, kept, of_targets = saved
        if mass is None:
            return (e / total - xp.astype(aims, e.dtype)) * share, None
        dz = (e / total * mass - aims) * share
        if kept is not None:
            dz = xp.where(kept, dz, 0.0)
        return dz, None if of_targets is None else of_targets * share

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
        """A label counts as much as the weight of its class, an ignored label 0."""
        if targets.shape == outputs.shape or (class_weight is None and ignore_index is None):
            return None
        chosen, _, kept = _one_hot(xp, outputs, targets, ignore_index)
        ones = 1.0 if class_weight is None else _class_weights(xp, class_weight, outputs)
        chosen = xp.astype(chosen if kept is None else xp.logical_and(chosen, kept), outputs.dtype)
        return xp.sum(chosen * ones, axis=1, keepdims=True)  # of at most one weight


def _below_largest(xp: Namespace, logits: Array) -> Array:
    """The logits minus the largest of their row. Infinity minus infinity is 0 here."""
    largest = xp.max(logits, axis=1, keepdims=True)
    if may_look(xp, logits) and xp.max(largest) < float("inf"):
        return logits - largest
    infinite = logits == float("inf")
    finite = xp.where(infinite, 0.0, logits)
    return xp.where(infinite, 0.0, finite - largest)


def _check_weights(name: str, weights: Any) -> None:
    """Raise OptionError for a text or dictionary, and for a number in a tuple or list that is not finite or below 0.

    Arrays are not looked at, since they may be in a GPU's memory; `xnn.losses` checks them before they go there.
    """
    if isinstance(weights, (str, Mapping)):
        raise OptionError(
            f"{name} must be a sequence of numbers, got {shown(weights)}{weights_hint(name, weights)}"
        )
    for weight in weights if isinstance(weights, (tuple, list)) else ():
        check_real(f"{name}: each number", weight, 0.0)


def weights_hint(name: str, weights: Any) -> str:
    """How to compute weights for what other libraries take, "balanced" or a dictionary; "" for anything else."""
    if isinstance(weights, Mapping):
        return f": [{name}[c] for c in range(classes)] makes one of a dictionary"
    if not isinstance(weights, str):
        return ""
    if name == "pos_weight":
        return ": balanced weights of targets y are (y == 0).sum(axis=0) / (y == 1).sum(axis=0)"
    return ": balanced weights of labels y are len(y) / (classes * numpy.bincount(y))"


def _near(xp: Namespace, logits: Array) -> tuple[Array | None, Array]:
    """Where logits are infinite, or None for nowhere; and the logits with 1 and -1 in place of infinities."""
    far = xp.isinf(logits)
    if may_look(xp, logits) and not xp.any(far):
        return None, logits
    return far, xp.where(far, xp.sign(logits), logits)


def _limit(xp: Namespace, far: Array | None, doubt: Array, finite: Array) -> Array:
    """The binary cross-entropy: `finite`, and for infinite logits 0 if there is no doubt, else infinity."""
    return finite if far is None else xp.where(far, xp.where(doubt > 0.0, float("inf"), doubt), finite)


def _one_hot(
    xp: Namespace, logits: Array, labels: Array, ignore_index: int | None
) -> tuple[Array, Array, Array | None]:
    """Three masks: which class is the label (n, classes, ...), valid labels and labels not ignored (n, 1, ...).

    The last is None if no label is ignored.
    """
    count = logits.shape[1]
    classes = xp.arange(count, device=labels.device)
    if logits.ndim > 2:
        classes = xp.reshape(classes, (count, *(1 for _ in logits.shape[2:])))
    labels = xp.reshape(labels, (labels.shape[0], 1, *labels.shape[1:]))
    valid = xp.logical_and(labels >= 0, labels < count)
    if ignore_index is None:
        return labels == classes, valid, None
    kept = labels != ignore_index
    return labels == classes, xp.logical_or(valid, xp.logical_not(kept)), kept


def _class_weights(xp: Namespace, class_weight: Any, logits: Array) -> Array:
    """The weights of the classes, with shape (classes, 1, ...), so that they broadcast to the logits."""
    weights, count = constant(xp, class_weight, logits), logits.shape[1]
    if getattr(weights, "shape", ()) != (count,):
        raise ShapeError(
            f"class_weight of shape {getattr(weights, 'shape', ())}: it must hold a number for each of the {count} "
            "classes"
        )
    return xp.reshape(weights, (count, *(1 for _ in logits.shape[2:])))


class BinaryCrossEntropy(LossOp):
    """Sigmoid and binary cross-entropy from logits z. As PyTorch's binary_cross_entropy_with_logits.

        term = max(z, 0) - z t + log(1 + e^-|z|);  d/dz = sigmoid(z) - t,  d/dt = -z

    target: t, numbers from 0 to 1, of the logits' shape.
    pos_weight: the weight of positive targets; a number, or one number for each element of the last axis; default 1.
        It adds (pos_weight - 1) t log(1 + e^-z) to the terms. It does not change the divisor of the mean. Each number
        is finite and at least 0; OptionError is raised for others.

    At infinite logits the loss is its limit: 0 if the target agrees, else infinity.
    """

    def check_options(self, *, pos_weight: Any = None, **others: Any) -> None:
        if pos_weight is None or isinstance(pos_weight, (tuple, list, str, Mapping)):
            _check_weights("pos_weight", pos_weight)
        elif getattr(pos_weight, "shape", ()) == ():
            check_real("pos_weight", pos_weight, 0.0)

    def terms(
        self, xp: Namespace, logits: Array, target: Array, *, pos_weight: Any = None
    ) -> tuple[Array, Any]:
        far, near = _near(xp, logits)
        doubt = xp.maximum(near, 0.0) - near * target  # of an infinite logit: 1 - t or t
        terms = doubt + xp.log1p(xp.exp(-xp.abs(near)))
        if pos_weight is None:
            return _limit(xp, far, doubt, terms), (logits, target, None)
        more = constant(xp, pos_weight, logits) - 1.0
        if getattr(more, "shape", ()) not in ((), logits.shape[-1:]):
            raise ShapeError(
                f"pos_weight of shape {more.shape}: it must be a number or have shape {logits.shape[-1:]}"
            )
        terms = terms + more * target * softplus_of(xp, -near)
        doubt = xp.where(near > 0.0, doubt, doubt * (more + 1.0))
        return _limit(xp, far, doubt, terms), (logits, target, more)

    def slopes(self, xp: Namespace, share: Array, saved: Any) -> tuple[Array, Array | None]:
        logits, target, more = saved
        dz, dt = logistic(xp, logits) - target, -logits
        if more is not None:
            dz = dz - more * target * logistic(xp, -logits)
            far, near = _near(xp, logits)
            dt = -near + more * softplus_of(xp, -near)
            if far is not None:
                limit = xp.where(xp.logical_and(logits < 0.0, more + 1.0 == 0.0), 0.0, -logits)
                dt = xp.where(far, limit, dt)
        return dz * share, dt * share


class Focal(LossOp):
    """Focal loss: a binary cross-entropy c in which samples that are classified well count less; from logits z.

        p = sigmoid(z),  q = p (1 - t) + (1 - p) t,  a = alpha t + (1 - alpha) (1 - t)
        term = a q^gamma c;  d/dz = a q^gamma (p - t + gamma c (1 - 2 t) p (1 - p) / q)

    target: t, numbers from 0 to 1, of the logits' shape.
    gamma: a finite number of at least 0; default 2. The larger it is, the less the well classified samples count.
    alpha: the weight of positive targets, 1 - alpha being that of negative ones; a number from 0 to 1, or None for
        no weights; default 0.25.

    At infinite logits the loss is its limit, and has no gradient for the targets (NaN). Raises OptionError for other
    options.

    Formula and defaults are those of torchvision's sigmoid_focal_loss, whose default reduction is "none".
    Source: Lin et al., ICCV 2017, equation 5; there the sum is divided by the number of positive anchors.
    """

    def check_options(self, *, gamma: Any = 2.0, alpha: Any = 0.25, **others: Any) -> None:
        check_real("gamma", gamma, 0.0)
        if alpha is not None and check_real("alpha", alpha, 0.0) > 1.0:
            raise OptionError(f"alpha must be a number from 0 to 1, or None, got {alpha!r}")

    def terms(
        self, xp: Namespace, logits: Array, target: Array, *, gamma: float = 2.0, alpha: float | None = 0.25
    ) -> tuple[Array, Any]:
        p, rest = logistic(xp, logits), logistic(xp, -logits)
        away = p * (1.0 - target) + rest * target
        far, near = _near(xp, logits)
        doubt = xp.maximum(near, 0.0) - near * target
        entropy = _limit(xp, far, doubt, softplus_of(xp, near) - near * target)
        factor = xp.pow(away, gamma)
        if alpha is not None:
            factor = factor * (alpha * target + (1.0 - alpha) * (1.0 - target))
        saved = far, near, target, p, rest, away, entropy, factor, gamma, alpha
        return factor * xp.where(factor == 0.0, 0.0, entropy), saved  # 0 times infinity is 0 here

    def slopes(self, xp: Namespace, share: Array, saved: Any) -> tuple[Array, Array | None]:
        far, near, target, p, rest, away, entropy, factor, gamma, alpha = saved
        if far is not None:
            entropy = xp.where(far, 0.0, entropy)  # it is multiplied by p (1 - p), which falls faster
        # q is 0 only where p equals the target, and there p (1 - p) and the entropy are 0 as well.
        divisor = xp.where(away == 0.0, 1.0, away)
        dz = factor * (p - target + gamma * entropy * (1.0 - 2.0 * target) * (p * rest / divisor))
        dt = factor * (gamma * (entropy / divisor) * (rest - p) - near)
        if alpha is not None:
            dt = dt + (2.0 * alpha - 1.0) * xp.pow(away, gamma) * entropy
        return dz * share, (dt if far is None else xp.where(far, float("nan"), dt)) * share


class KLDivergence(LossOp):
    """Kullback-Leibler divergence of probabilities t from log-probabilities y, such as the outputs of LogSoftmax.

        term = sum_j t_j (log t_j - y_j);  d/dy_j = -t_j,  d/dt_j = log t_j + 1 - y_j

    outputs: y, shape (n, classes, ...).
    target: t, of the same shape.

    Where t_j is 0, its part of the sum is 0 (0 log 0 = 0), and so are both derivatives. A term is the divergence of
    one sample, or of one place of it, and the mean is over samples and places. For outputs (n, classes) that is
    PyTorch's kl_div with reduction "batchmean", which divides by n for outputs with more axes, too. PyTorch's "mean"
    divides by the number of all elements.
    Source: Kullback and Leibler, Ann. Math. Statist. 22 (1951).
    """

    over_classes = True

    def fit(self, xp: Namespace, outputs: Array, targets: Array) -> Array:
        """The targets, checked as for other losses. Raises ShapeError also for outputs without an axis of classes."""
        if outputs.ndim < 2:
            raise ShapeError(
                f"the divergence got outputs of shape {outputs.shape}: it needs (n, classes, ...)"
            )
        return super().fit(xp, outputs, targets)

    def terms(self, xp: Namespace, outputs: Array, target: Array) -> tuple[Array, Any]:
        none = target == 0.0
        ignored = xp.logical_and(none, xp.isinf(outputs))  # 0 times infinity is 0 here
        apart = xp.log(xp.where(none, 1.0, target)) - xp.where(ignored, 0.0, outputs)
        return pairwise_sum(xp, target * apart, axis=1, keepdims=True), (target, none, apart)

    def slopes(self, xp: Namespace, share: Array, saved: Any) -> tuple[Array, Array | None]:
        target, none, apart = saved
        return -target * share, xp.where(none, 0.0, apart + 1.0) * share


softmax_cross_entropy = SoftmaxCrossEntropy()
binary_cross_entropy = BinaryCrossEntropy()
focal = Focal()
kl_divergence = KLDivergence()
