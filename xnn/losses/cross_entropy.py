"""Losses of probabilities: cross-entropies and the focal loss from logits, the Kullback-Leibler divergence."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np

from xnn import ops
from xnn.errors import DTypeError, LabelError, OptionError, ShapeError
from xnn.losses.loss import Loss, inside
from xnn.options import check_count, check_real

__all__ = ["BinaryCrossEntropy", "Focal", "KLDivergence", "SoftmaxCrossEntropy"]

# How far from 1 probabilities may sum that were stored in half precision.
_SUM_TOLERANCE = 1e-3


class SoftmaxCrossEntropy(Loss):
    """From logits (n, classes) and integer labels (n,); the model ends without a Softmax layer.

    label_smoothing in [0, 1): how much of a label is spread over all classes. class_weight: a number for each class.
    ignore_index: a label that takes no part, in the mean's count neither (metrics still count it). All as
    PyTorch's cross_entropy has them, whose ignore_index is -100 where none is given. Targets may also be
    probabilities, like the outputs, and both may have more axes: (n, classes, height, width) with
    (n, height, width).
    Raises LabelError for labels that are not integers in 0 .. classes - 1, or probabilities that are none.
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
        **unknown: Any,
    ) -> None:
        super().__init__(
            reduction,
            label_smoothing=check_real("label_smoothing", label_smoothing, 0.0, 1.0) or None,
            class_weight=None if class_weight is None else _numbers("class_weight", class_weight),
            ignore_index=None
            if ignore_index is None
            else check_count("ignore_index", ignore_index, least=-(2**63)),
            **unknown,
        )

    def counts_samples(self, weighted: bool) -> bool:
        """Not where classes have weights or labels are ignored."""
        even = "class_weight" not in self.options and "ignore_index" not in self.options
        return super().counts_samples(weighted or not even)

    def prepare(self, targets: np.ndarray, dtype: str) -> np.ndarray:
        """Labels as int64, probabilities in the model's dtype."""
        return np.asarray(targets, dtype=np.int64 if targets.dtype.kind in "iu" else dtype)

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        """One integer label a sample, each below the number of classes; or probabilities."""
        weights = self.options.get("class_weight")
        if not output_shape:
            raise ShapeError("SoftmaxCrossEntropy needs outputs (n, classes), got (n,)")
        if weights is not None and len(weights) != output_shape[0]:
            raise ShapeError(
                f"class_weight has {len(weights)} numbers, the model {output_shape[0]} outputs: one for each class"
            )
        if tuple(targets.shape[1:]) == output_shape:
            if "ignore_index" in self.options:
                raise OptionError("ignore_index is a label's: give labels as targets, not probabilities")
            _check_probabilities("SoftmaxCrossEntropy", targets)
            return
        if targets.dtype.kind not in "iu":
            raise LabelError(
                f"SoftmaxCrossEntropy needs integer labels, got {targets.dtype}; "
                "labels.astype('int64') if they are whole numbers"
            )
        if tuple(targets.shape[1:]) != output_shape[1:]:
            shape = f"(n, {inside(output_shape)})"
            raise ShapeError(
                f"SoftmaxCrossEntropy needs, for outputs {shape}, labels of shape "
                f"{f'(n, {inside(output_shape[1:])})' if output_shape[1:] else '(n,)'}, or probabilities {shape}; "
                f"got {tuple(targets.shape)}; axis 1 of the outputs is the classes"
            )
        ignored = self.options.get("ignore_index")
        counted = targets if ignored is None else targets[targets != ignored]
        if counted.size:
            low, high, classes = int(counted.min()), int(counted.max()), output_shape[0]
            if low < 0 or high >= classes:
                raise LabelError(
                    f"labels run from {low} to {high}, the model has {classes} outputs: "
                    f"labels must lie in 0 .. {classes - 1}; number the classes from 0 or widen the last layer"
                )


class BinaryCrossEntropy(Loss):
    """From logits and targets in [0, 1] of the same shape; the model ends without a Sigmoid layer.

    pos_weight: how many negative ones a positive target is worth, a number, or one for each output.
    """

    op = ops.binary_cross_entropy
    usual_metrics = ("accuracy",)
    binary = True
    already_includes = ops.sigmoid

    def __init__(self, pos_weight: Any = None, reduction: str = "mean", **unknown: Any) -> None:
        if pos_weight is not None:
            single = isinstance(pos_weight, Real) or getattr(pos_weight, "shape", None) == ()
            pos_weight = (
                check_real("pos_weight", getattr(pos_weight, "item", lambda: pos_weight)(), 0.0)
                if single
                else _numbers("pos_weight", pos_weight)
            )
        super().__init__(reduction, pos_weight=pos_weight, **unknown)

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        """Targets in [0, 1]."""
        super().check(targets, output_shape)
        _check_range(type(self).__name__, targets)
        weights = self.options.get("pos_weight")
        if isinstance(weights, tuple) and (len(weights),) != output_shape[-1:]:
            raise ShapeError(
                f"pos_weight has {len(weights)} numbers, the outputs are (n, {inside(output_shape)})"
            )


class Focal(Loss):
    """Binary cross-entropy that looks away from easy samples: from logits, targets in [0, 1] of the same shape.

    gamma: how far, 0 not at all. alpha: the weight of positive targets, 1 - alpha that of negative ones; None weighs
    neither. The model ends without a Sigmoid layer. `ops.focal` has the formula.
    """

    op = ops.focal
    usual_metrics = ("accuracy",)
    binary = True
    already_includes = ops.sigmoid

    def __init__(self, gamma: float = 2.0, alpha: float | None = 0.25, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.options = {  # set here, since an alpha of None is a choice, not the default
            "gamma": check_real("gamma", gamma, 0.0),
            "alpha": None if alpha is None else check_real("alpha", alpha, 0.0, math.nextafter(1.0, 2.0)),
        }

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        """Targets in [0, 1]."""
        super().check(targets, output_shape)
        _check_range(type(self).__name__, targets)


class KLDivergence(Loss):
    """From log-probabilities (n, classes), a LogSoftmax's, and probabilities of the same shape; `ops.kl_divergence`.

    Its mean is over samples, as of PyTorch's KLDivLoss(reduction="batchmean").
    """

    op = ops.kl_divergence

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        """Probabilities, axis 1 being the classes."""
        if not output_shape:
            raise ShapeError("KLDivergence needs outputs (n, classes), got (n,)")
        super().check(targets, output_shape)
        _check_probabilities("KLDivergence", targets)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    """An option that is a sequence or host array of finite numbers of at least 0."""
    try:
        numbers = np.asarray(values)
        if numbers.dtype.kind not in "fiu" or numbers.ndim != 1 or not numbers.size:
            raise ValueError
        if not (np.isfinite(numbers).all() and (numbers >= 0).all()):
            raise ValueError
    except (TypeError, ValueError):
        raise OptionError(
            f"{name} must be a sequence of finite numbers of at least 0, got {repr(values)[:60]}"
        ) from None
    return tuple(float(number) for number in numbers)


def _check_range(name: str, targets: np.ndarray) -> None:
    if targets.size and (targets.min() < 0 or targets.max() > 1):
        raise LabelError(f"{name} needs targets in [0, 1], got {targets.min()} .. {targets.max()}")


def _check_probabilities(name: str, targets: np.ndarray) -> None:
    if targets.dtype.kind not in "fiub":
        raise DTypeError(f"{name} needs numbers as targets, got {targets.dtype}")
    if not np.isfinite(targets).all():
        raise LabelError(f"{name}: the targets hold NaN or infinities; clean them first")
    if targets.size and targets.min() < 0:
        raise LabelError(f"{name} needs probabilities as targets, got {targets.min()}")
    sums = np.sum(targets, axis=1, dtype=np.float64)
    worst = float(sums.reshape(-1)[np.argmax(np.abs(sums - 1.0))]) if sums.size else 1.0
    if abs(worst - 1.0) > _SUM_TOLERANCE:
        raise LabelError(
            f"{name} needs probabilities as targets, which sum to 1 over the classes (axis 1); one sample's sum to "
            f"{worst:g}: divide by the sum, or give integer labels"
        )
