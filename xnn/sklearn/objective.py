"""What scikit-learn's MLP minimizes, as a loss: the mean over a batch, and a penalty on the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xnn import losses, ops
from xnn.errors import LabelError
from xnn.layers import Parameter
from xnn.losses import Loss
from xnn.ops import Array
from xnn.ops.deviances import OF_SCIKIT_LEARN
from xnn.options import explained_class

__all__ = ["Objective", "WholeObjective", "data_loss"]


class SquaredError(Loss):
    """scikit-learn's loss "squared_error"."""

    op = OF_SCIKIT_LEARN["squared_error"]


class PoissonDeviance(Loss):
    """scikit-learn's loss "poisson", of outputs before the exponential."""

    op = OF_SCIKIT_LEARN["poisson"]

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        super().check(targets, output_shape)
        if targets.size and targets.min() < 0.0:
            raise LabelError(
                f"loss='poisson' has a target of {targets.min():g}: counts and rates are at least 0"
            )


class LabelsCrossEntropy(losses.BinaryCrossEntropy):
    """Binary cross-entropy, summed over the outputs and averaged over the samples."""

    def compute(self, outputs: Any, targets: Any, *sample_weight: Any) -> Any:
        op = self.op if outputs.shape[1] == 1 else OF_SCIKIT_LEARN["log_loss"]
        return op(outputs, targets, *sample_weight)


def data_loss(loss: str, out_activation: str) -> Loss:
    """The loss of the data alone, by the estimator's `loss` and `out_activation_`."""
    if loss == "log_loss":
        return losses.SoftmaxCrossEntropy() if out_activation == "softmax" else LabelsCrossEntropy()
    return PoissonDeviance() if loss == "poisson" else SquaredError()


@explained_class
class Objective(Loss):
    """The loss of a batch's data, plus alpha / 2 times the sum of the squared weights, divided by the batch's size.

    data: the loss of the data. weights: the parameters that are penalized. alpha: the penalty's strength.

    The size of a batch is the number of its samples, or the sum of their weights. The batches of an epoch count by
    their samples, also where these have weights.
    """

    def __init__(self, data: Loss, weights: Sequence[Parameter], alpha: float) -> None:
        super().__init__()
        self.data, self.alpha = data, alpha
        self._weights = tuple(weights)
        self.already_includes = data.already_includes

    def compute(self, outputs: Any, targets: Any, *sample_weight: Any) -> Any:
        loss = self.data(outputs, targets, *sample_weight)
        if not (self.alpha and self._weights):
            return loss
        if sample_weight:
            return loss + ops.l2_penalty(*self._weights) * self.alpha / ops.sum(sample_weight[0])
        return loss + ops.l2_penalty(*self._weights, strength=self.strength(outputs.shape[0]))

    def strength(self, rows: int) -> float:
        """The strength of the penalty, half of which multiplies the squares, for a batch of this many rows."""
        return self.alpha / rows

    def recognize(self, outputs: Array, targets: Array, *sample_weight: Array) -> None:
        """The loss is a mean, whatever its penalty is divided by."""

    def counts_samples(self, weighted: bool) -> bool:
        return True

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        self.data.check(targets, output_shape)

    def prepare(self, targets: np.ndarray, dtype: str) -> np.ndarray:
        return self.data.prepare(targets, dtype)


class WholeObjective(Objective):
    """The loss of all the data, which is computed in parts: they count by the weights of their samples."""

    def counts_samples(self, weighted: bool) -> bool:
        return not weighted
