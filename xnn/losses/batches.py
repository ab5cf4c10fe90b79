"""Checks sample weights, and adds up the loss over several batches."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn.backends.host_arrays import as_host_array
from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.options import shown

__all__ = ["LossOverBatches", "check_sample_weight", "inside", "reshaping_hint"]


class LossOverBatches:
    """The loss over several batches: the mean of means, weighted by their divisors, or the sum of sums.

    loss: a Loss, whose `over_batches` says which. Raises OptionError for something else.
    """

    def __init__(self, loss: Any) -> None:
        if not hasattr(loss, "over_batches"):
            raise OptionError(f"LossOverBatches needs a Loss, such as losses.MSE(), got {shown(loss)}")
        self._loss, self._sum, self._weighted, self._total = loss, 0.0, 0.0, 0.0

    def __repr__(self) -> str:
        return f"<LossOverBatches: {self.value:.6g}>"

    def add(self, value: Any, total: Any) -> None:
        """Add a batch's loss, and the divisor of its mean."""
        self._sum += float(value)
        self._weighted += float(value) * float(total)
        self._total += float(total)

    @property
    def value(self) -> float:
        """The loss of the batches so far; 0 if no sample counted."""
        adds = self._loss.over_batches == "sum"
        return self._sum if adds else self._weighted / (self._total or 1.0)


def check_sample_weight(sample_weight: Any, rows: int) -> np.ndarray:
    """Sample weights as a host array (rows,), one for each sample.

    Raises ShapeError for another shape, DTypeError for something that is not numbers, OptionError for numbers that
    are not finite or below 0.
    """
    weights: np.ndarray = as_host_array(sample_weight, "sample_weight")
    if weights.shape != (rows,):
        raise ShapeError(
            f"sample_weight has shape {weights.shape}; it must be one number a sample, ({rows},)"
        )
    if weights.dtype.kind not in "fiub":
        raise DTypeError(f"sample_weight must be numbers, got {weights.dtype}")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise OptionError("sample_weight must be finite and at least 0; 0 leaves a sample out")
    return weights


def inside(shape: tuple[int, ...]) -> str:
    """The sizes of a shape as text, to be put after "(n, "."""
    return ", ".join(map(str, shape))


def reshaping_hint(targets: np.ndarray, output_shape: tuple[int, ...]) -> str:
    """What to do about targets of another shape than the outputs."""
    if targets.ndim != 1 or len(output_shape) != 1:
        return "reshape the targets"
    if output_shape[0] == 1:
        return "y.reshape(-1, 1) makes a column of y"
    return (
        f"class labels are for SoftmaxCrossEntropy, or become one-hot rows by numpy.eye({output_shape[0]})[y]"
    )
