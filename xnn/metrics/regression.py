"""Metrics of numbers: outputs and targets of one shape (n, ...)."""

from __future__ import annotations

import math

import numpy as np

from xnn.metrics.metric import Metric
from xnn.ops import metrics as rules

__all__ = ["MAE", "MSE", "R2", "RMSE"]


class MAE(Metric):
    """Mean absolute error over samples and outputs: mean |o - t|, outputs and targets of one shape (n, ...)."""

    name = "mae"
    count = staticmethod(rules.absolute_error)


class MSE(Metric):
    """Mean squared error over samples and outputs: mean (o - t)^2, outputs and targets of one shape (n, ...)."""

    name = "mse"
    count = staticmethod(rules.squared_error)


class RMSE(MSE):
    """The root of MSE."""

    name = "rmse"

    def result(self, total: np.ndarray, samples: int) -> float:
        """The number."""
        return math.sqrt(super().result(total, samples))


class R2(Metric):
    """The coefficient of determination, 1 - sum (t - o)^2 / sum (t - mean t)^2, averaged over the outputs.

    outputs and targets of one shape (n, ...). As in scikit-learn, an output whose targets are all equal counts as 1
    if it hits them, else as 0, and of fewer than two samples there is none: NaN.

    Batches are merged around the first one's pivot, a target p near its mean. With N samples in all and n in that
    batch the sum that is left, S - (sum (t - p))^2 / N, cannot cancel to less than about n / N of S, so no digits are
    lost however far from zero the targets lie.
    """

    name = "r2"
    count = staticmethod(rules.moments)

    def merge(self, total: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """Both counts' sums around the first one's pivot."""
        n, pivot, first, second, errors = counted
        moved = pivot - total[1]
        around = np.stack([n, 0.0 * n, first + n * moved, second + moved * (2.0 * first + n * moved), errors])
        return np.asarray(total + around)

    def result(self, total: np.ndarray, samples: int) -> float:
        """The number."""
        n, _, first, second, errors = total
        if samples < 2:
            return math.nan
        spread = second - first * first / n
        varied = spread > 0.0
        scores = np.where(
            varied, 1.0 - errors / np.where(varied, spread, 1.0), np.where(errors == 0.0, 1.0, 0.0)
        )
        return float(np.mean(np.where(np.isnan(spread + errors), math.nan, scores)))
