"""Losses as scikit-learn's multilayer perceptron counts them, for outputs (n, k); `xnn.sklearn` uses them."""

from __future__ import annotations

from typing import Any

from xnn.ops.cross_entropy import BinaryCrossEntropy
from xnn.ops.losses import LossOp
from xnn.ops.op import Array, Namespace

__all__ = ["OF_SCIKIT_LEARN"]


class HalfSquaredError(LossOp):
    """Half the squared error: terms (p - t)^2 / 2; d/dp = k (p - t) for k outputs.

    The factor k is scikit-learn's: it reports the mean over the outputs, and descends on their sum.
    """

    def terms(self, xp: Namespace, predicted: Array, target: Array) -> tuple[Array, Any]:
        difference = predicted - target
        return 0.5 * (difference * difference), difference

    def slopes(self, xp: Namespace, share: Array, difference: Any) -> tuple[Array, Array | None]:
        dp = difference * (share * float(difference.shape[1]))
        return dp, None


class HalfPoissonDeviance(LossOp):
    """Half the Poisson deviance, for outputs z that are logarithms of the predictions.

    For k outputs, whose mean is taken, the terms are k (t ln t - t z - t + e^z) and d/dz = k (e^z - t).
    """

    def terms(self, xp: Namespace, outputs: Array, target: Array) -> tuple[Array, Any]:
        rate, k = xp.exp(outputs), float(outputs.shape[1])
        entropy = target * xp.log(xp.where(target > 0.0, target, 1.0))
        return k * (entropy - target * outputs - target + rate), (rate - target, k)

    def slopes(self, xp: Namespace, share: Array, saved: Any) -> tuple[Array, Array | None]:
        difference, k = saved
        return difference * (share * k), None


class LabelsCrossEntropy(BinaryCrossEntropy):
    """Binary cross-entropy of k labels, summed over the labels: k times the terms, whose mean is taken."""

    def terms(
        self, xp: Namespace, logits: Array, target: Array, *, pos_weight: Any = None
    ) -> tuple[Array, Any]:
        terms, saved = super().terms(xp, logits, target, pos_weight=pos_weight)
        return terms * float(logits.shape[1]), saved

    def slopes(self, xp: Namespace, share: Array, saved: Any) -> tuple[Array, Array | None]:
        return super().slopes(xp, share * float(saved[0].shape[1]), saved)


#: By scikit-learn's names of losses; "log_loss" is that of several labels.
OF_SCIKIT_LEARN: dict[str, LossOp] = {
    "squared_error": HalfSquaredError(),
    "poisson": HalfPoissonDeviance(),
    "log_loss": LabelsCrossEntropy(),
}
