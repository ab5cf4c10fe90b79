"""Metrics of regressions: errors and R2. Outputs and targets have one shape (n, ...)."""

from __future__ import annotations

import math

import numpy as np

from xnn.metrics.metric import Metric
from xnn.ops import metrics as rules

__all__ = ["MAE", "MSE", "R2", "RMSE"]


class MAE(Metric):
    """Mean absolute error, mean |o - t| over samples and outputs.

    name: the key in the history. Default "mae".

    Outputs and targets have one shape (n, ...); otherwise ShapeError is raised.

        >>> from xnn import metrics
        >>> mae = metrics.MAE()
        >>> mae.update([[1.0], [2.0]], [[1.0], [5.0]])
        >>> mae.compute()
        1.5
    """

    name = "mae"
    count = staticmethod(rules.absolute_error)


class MSE(Metric):
    """Mean squared error, mean (o - t)^2 over samples and outputs.

    name: the key in the history. Default "mse".

    Outputs and targets have one shape (n, ...); otherwise ShapeError is raised.

        >>> from xnn import metrics
        >>> mse = metrics.MSE()
        >>> mse.update([[1.0], [2.0]], [[1.0], [5.0]])
        >>> mse.compute()
        4.5
    """

    name = "mse"
    count = staticmethod(rules.squared_error)


class RMSE(MSE):
    """Root mean squared error: the square root of MSE.

    name: the key in the history. Default "rmse".

    Outputs and targets have one shape (n, ...); otherwise ShapeError is raised.

        >>> from xnn import metrics
        >>> rmse = metrics.RMSE()
        >>> rmse.update([[1.0], [2.0]], [[3.0], [4.0]])
        >>> rmse.compute()
        2.0
    """

    name = "rmse"

    def result(self, total: np.ndarray, samples: int) -> float:
        return math.sqrt(super().result(total, samples))


class R2(Metric):
    """The coefficient of determination, R2 = 1 - sum (t - o)^2 / sum (t - mean t)^2, averaged over the outputs.

    name: the key in the history. Default "r2".

    Outputs and targets have one shape (n, ...); otherwise ShapeError is raised. As in scikit-learn, an output whose
    targets are all equal scores 1 if it equals them and 0 if not, and R2 of fewer than two samples is NaN.

        >>> from xnn import metrics
        >>> r2 = metrics.R2()
        >>> r2.update([[1.0], [2.0], [4.0]], [[1.0], [2.0], [3.0]])
        >>> r2.compute()
        0.5
    """

    # Batches are merged around the pivot of the first batch, a target p near its mean. With N samples in all and n in
    # that batch, the difference S - (sum (t - p))^2 / N is not less than about n / N of S. So no digits are lost,
    # however far from zero the targets lie.

    name = "r2"
    count = staticmethod(rules.moments)

    def merge(self, total: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """Add two counts, after moving the sums of the second to the pivot of the first."""
        n, pivot, first, second, errors = counted
        moved = pivot - total[1]
        around = np.stack([n, 0.0 * n, first + n * moved, second + moved * (2.0 * first + n * moved), errors])
        return np.asarray(total + around)

    def result(self, total: np.ndarray, samples: int) -> float:
        n, _, first, second, errors = total
        if samples < 2:
            return math.nan
        spread = second - first * first / n
        varied = spread > 0.0
        scores = np.where(
            varied, 1.0 - errors / np.where(varied, spread, 1.0), np.where(errors == 0.0, 1.0, 0.0)
        )
        return float(np.mean(np.where(np.isnan(spread + errors), math.nan, scores)))
