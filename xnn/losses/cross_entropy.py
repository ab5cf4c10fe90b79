"""Losses of probabilities: cross-entropies and the focal loss from logits, the Kullback-Leibler divergence."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.host_arrays import as_host_array
from xnn.errors import LabelError, OptionError, ShapeError
from xnn.losses.batches import inside
from xnn.losses.loss import Loss
from xnn.ops.cross_entropy import weights_hint
from xnn.options import check_real, shown

__all__ = ["BinaryCrossEntropy", "Focal", "KLDivergence", "SoftmaxCrossEntropy"]

# How far from 1 the sum of probabilities may be: those stored in half precision are this far off.
_SUM_TOLERANCE = 1e-3


class SoftmaxCrossEntropy(Loss):
    """Cross-entropy of classes, from logits: -ln of the probability that softmax gives to the right class.

    outputs: logits (n, classes), or (n, classes, height, width) and the like; the model ends without a Softmax.
    targets: integer labels (n,) in 0 .. classes - 1, or (n, height, width); or probabilities of the outputs' shape.
    label_smoothing: the part of each label that is spread evenly over all classes, in [0, 1); 0 by default.
    class_weight: a sequence of finite numbers of at least 0, one for each class; all alike by default.
    ignore_index: an integer; samples with this label do not count, nor in the mean (metrics still count them). None
        by default.
    reduction: "mean" (the default), "sum_over_batch_size", "sum" or "none"; see `Loss`.

    All options are those of PyTorch's cross_entropy, whose ignore_index is -100 by default. Raises OptionError for
    other options; ShapeError, LabelError or DTypeError for targets that do not fit.

        >>> import numpy as np
        >>> from xnn import losses
        >>> loss = losses.SoftmaxCrossEntropy(label_smoothing=0.1)
        >>> loss
        SoftmaxCrossEntropy(label_smoothing=0.1)
        >>> round(float(loss(np.array([[0.0, 0.0]]), np.array([1]))), 4)  # ln 2
        0.6931
    """

    op = ops.softmax_cross_entropy
    usual_metrics = ("accuracy",)
    already_includes = ops.softmax

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            reduction,
            label_smoothing=check_real("label_smoothing", label_smoothing, 0.0, 1.0) or None,
            class_weight=None if class_weight is None else _numbers("class_weight", class_weight),
            ignore_index=ignore_index,
        )

    def weights_cancel(self, weighted: bool) -> bool:
        return super().weights_cancel(weighted or "class_weight" in self.options)

    def counts_samples(self, weighted: bool) -> bool:
        even = "class_weight" not in self.options and "ignore_index" not in self.options
        return super().counts_samples(weighted or not even)

    def prepare(self, targets: np.ndarray, dtype: str) -> np.ndarray:
        return np.asarray(targets, dtype=np.int64 if targets.dtype.kind in "iu" else dtype)

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        weights = self.options.get("class_weight")
        if not output_shape:
            raise ShapeError("SoftmaxCrossEntropy needs outputs (n, classes), got (n,)")
        if output_shape[0] == 1:
            raise ShapeError(
                f"SoftmaxCrossEntropy got outputs (n, {inside(output_shape)}), one class, whose probability is "
                "always 1: a model needs one for each class; BinaryCrossEntropy takes one output, and targets 0 or 1"
            )
        if weights is not None and len(weights) != output_shape[0]:
            raise ShapeError(
                f"class_weight has {len(weights)} numbers, and the model {output_shape[0]} outputs: give one for each"
            )
        if tuple(targets.shape[1:]) == output_shape:
            if "ignore_index" in self.options:
                raise OptionError(
                    "ignore_index is for integer labels, and the targets are probabilities: omit it, or give labels"
                )
            super().check(targets, output_shape)
            _check_probabilities("SoftmaxCrossEntropy", targets)
            return
        if targets.dtype.kind not in "iu":
            raise LabelError(
                f"SoftmaxCrossEntropy needs integer labels, got {targets.dtype}: labels.astype('int64') if they are "
                "whole numbers"
            )
        if tuple(targets.shape[1:]) != output_shape[1:]:
            labels = f"(n, {inside(output_shape[1:])})" if output_shape[1:] else "(n,)"
            raise ShapeError(
                f"SoftmaxCrossEntropy got targets of shape {tuple(targets.shape)} for outputs "
                f"(n, {inside(output_shape)}), whose axis 1 is the classes: give it labels of shape {labels}, or "
                "probabilities of the outputs' shape"
            )
        ignored = self.options.get("ignore_index")
        counted = targets if ignored is None else targets[targets != ignored]
        if counted.size:
            low, high, classes = int(counted.min()), int(counted.max()), output_shape[0]
            if low < 0 or high >= classes:
                raise LabelError(
                    f"labels run from {low} to {high}, the model has {classes} outputs: labels must lie in "
                    f"0 .. {classes - 1}; number the classes from 0, or widen the last layer"
                )


class BinaryCrossEntropy(Loss):
    """Binary cross-entropy from logits, where each output answers its own yes-or-no question.

    outputs: logits; the model ends without a Sigmoid.
    targets: numbers in [0, 1], of the outputs' shape.
    pos_weight: how much a target of 1 counts, compared with one of 0: a finite number of at least 0, or a sequence of
        them, one for each output; 1 by default.
    reduction: "mean" (the default), "sum_over_batch_size", "sum" or "none"; see `Loss`.

    Raises OptionError for another pos_weight; ShapeError, LabelError or DTypeError for targets that do not fit.

        >>> import numpy as np
        >>> from xnn import losses
        >>> round(float(losses.BinaryCrossEntropy()(np.array([[0.0]]), np.array([[1.0]]))), 4)  # ln 2
        0.6931
    """

    op = ops.binary_cross_entropy
    usual_metrics = ("accuracy",)
    binary = True
    already_includes = ops.sigmoid

    def __init__(self, pos_weight: Any = None, reduction: str = "mean") -> None:
        if pos_weight is not None:
            single = isinstance(pos_weight, Real) or getattr(pos_weight, "shape", None) == ()
            pos_weight = pos_weight if single else _numbers("pos_weight", pos_weight)
        super().__init__(reduction, pos_weight=pos_weight)

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        super().check(targets, output_shape)
        _check_range(type(self).__name__, targets)
        weights = self.options.get("pos_weight")
        if isinstance(weights, tuple) and (len(weights),) != output_shape[-1:]:
            raise ShapeError(
                f"pos_weight has {len(weights)} numbers for outputs (n, {inside(output_shape)}): give one for each "
                "output"
            )


class Focal(Loss):
    """Focal loss: binary cross-entropy in which samples that are already right count less, from logits.

    outputs: logits; the model ends without a Sigmoid.
    targets: numbers in [0, 1], of the outputs' shape.
    gamma: how much less they count, a finite number of at least 0; 0 is plain cross-entropy, 2 the default.
    alpha: the weight of targets of 1, in [0, 1], while those of 0 have 1 - alpha; 0.25 by default, None for none.
    reduction: "mean" (the default), "sum_over_batch_size", "sum" or "none"; see `Loss`.

    `xnn.ops.focal` has the formula. Raises OptionError for other options, LabelError for other targets.
    Source: Lin et al., ICCV 2017.

        >>> import numpy as np
        >>> from xnn import losses
        >>> float(losses.Focal()(np.array([[9.0]]), np.array([[1.0]]))) < 1e-9
        True
    """

    op = ops.focal
    usual_metrics = ("accuracy",)
    binary = True
    already_includes = ops.sigmoid

    def __init__(self, gamma: float = 2.0, alpha: float | None = 0.25, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.options = {"gamma": gamma, "alpha": alpha}  # here, since an alpha of None is not the default

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        super().check(targets, output_shape)
        _check_range(type(self).__name__, targets)


class KLDivergence(Loss):
    """Kullback-Leibler divergence of the targets from the outputs: the sum of t (ln t - output) over the classes.

    outputs: log-probabilities (n, classes, ...), such as those of LogSoftmax(axis=1).
    targets: probabilities, of the outputs' shape, which sum to 1 along axis 1.
    reduction: "mean" (the default), "sum_over_batch_size", "sum" or "none"; see `Loss`. The mean is over samples, as
        that of PyTorch's KLDivLoss(reduction="batchmean") for outputs (n, classes). With more axes it is over samples
        and places, where PyTorch divides by the samples alone.

    Raises ShapeError, LabelError or DTypeError for targets that do not fit.
    Source: Kullback and Leibler, Ann. Math. Statist. 22 (1951).

        >>> import numpy as np
        >>> from xnn import losses
        >>> float(losses.KLDivergence()(np.log([[0.5, 0.5]]), np.array([[0.5, 0.5]])))
        0.0
    """

    op = ops.kl_divergence

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction)

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        if not output_shape:
            raise ShapeError("KLDivergence needs outputs (n, classes), got (n,)")
        super().check(targets, output_shape)
        _check_probabilities("KLDivergence", targets)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    """An option that is a sequence of finite numbers of at least 0, as a tuple."""
    try:
        numbers = np.asarray(as_host_array(values, name))
        fits = numbers.dtype.kind in "fiu" and numbers.ndim == 1 and bool(numbers.size)
    except (TypeError, ValueError):
        fits = False
    if not (fits and np.isfinite(numbers).all() and (numbers >= 0).all()):
        raise OptionError(
            f"{name} must be a sequence of finite numbers of at least 0, got {shown(values)}"
            f"{weights_hint(name, values)}"
        )
    return tuple(float(number) for number in numbers)


def _check_range(name: str, targets: np.ndarray) -> None:
    if targets.size and (targets.min() < 0 or targets.max() > 1):
        raise LabelError(f"{name} needs targets in [0, 1], got some from {targets.min()} to {targets.max()}")


def _check_probabilities(name: str, targets: np.ndarray) -> None:
    """Raise LabelError for numbers that are not probabilities of classes, along axis 1."""
    if targets.size and targets.min() < 0:
        raise LabelError(f"{name} needs probabilities as targets, which are at least 0, got {targets.min()}")
    sums = np.sum(targets, axis=1, dtype=np.float64)
    worst = float(sums.reshape(-1)[np.argmax(np.abs(sums - 1.0))]) if sums.size else 1.0
    if abs(worst - 1.0) > _SUM_TOLERANCE:
        raise LabelError(
            f"{name} needs probabilities as targets, which sum to 1 over the classes (axis 1), got some that sum to "
            f"{worst:g}: divide by the sum, or give integer labels"
        )
