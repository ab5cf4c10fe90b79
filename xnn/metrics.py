"""Metrics: how many samples of a batch are right, counted on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from xnn.errors import OptionError
from xnn.ops import Array, Namespace
from xnn.ops.metrics import accuracy

__all__ = ["Metric", "accuracy", "get"]

#: metric(xp, outputs, targets) -> the sum over the batch, a 0-d array; the trainer divides by the samples.
Metric: TypeAlias = Callable[[Namespace, Array, Array], Array]


_NAMED: dict[str, Metric] = {"accuracy": accuracy}


def get(metric: str | Metric) -> tuple[str, Metric]:
    """Name and function of a metric given as either. Raises OptionError for an unknown name."""
    if callable(metric):
        return getattr(metric, "__name__", "metric"), metric
    if metric not in _NAMED:
        raise OptionError(f"no metric is called {metric!r}; choose {', '.join(_NAMED)} or pass a function")
    return metric, _NAMED[metric]
