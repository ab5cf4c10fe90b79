"""Metrics of a regression that trains on standardized targets, in the units of the targets."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import metrics
from xnn.layers import Rescale
from xnn.metrics import Metric

__all__ = ["metrics_in_units"]


class _MAE(metrics.MAE):
    """MAE of outputs and targets that are both multiplied by `unit`, a number for each output."""

    def __init__(self, unit: np.ndarray) -> None:
        super().__init__()
        self.unit = unit

    def result(self, total: np.ndarray, samples: int) -> Any:
        return super().result(total * self.unit, samples)


class _RMSE(metrics.RMSE):
    """RMSE of outputs and targets that are both multiplied by `unit`, a number for each output."""

    def __init__(self, unit: np.ndarray) -> None:
        super().__init__()
        self.unit = unit

    def result(self, total: np.ndarray, samples: int) -> float:
        return super().result(total * self.unit * self.unit, samples)


def metrics_in_units(scaling: Rescale) -> list[Metric]:
    """MAE and RMSE in the units of the targets that `scaling` standardized.

    >>> from xnn import data
    >>> mae, rmse = metrics_in_units(data.standardize([[100.0], [300.0]]))
    >>> mae.update([[1.0], [-1.0]], [[0.0], [0.0]])
    >>> mae.compute()
    100.0
    """
    unit = 1.0 / np.asarray(scaling.scale)
    return [_MAE(unit), _RMSE(unit)]
