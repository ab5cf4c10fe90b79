"""Metrics: how many samples of a batch are right, counted on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from xnn.errors import OptionError, ShapeError
from xnn.ops import Array, Namespace

__all__ = ["Metric", "accuracy", "get"]

#: metric(xp, outputs, targets) -> the sum over the batch, a 0-d array; the trainer divides by the samples.
Metric: TypeAlias = Callable[[Namespace, Array, Array], Array]


def accuracy(xp: Namespace, outputs: Array, targets: Array) -> Array:
    """The number of samples whose largest output is the label, or whose single output > 0 means target > 1/2."""
    if targets.ndim == 1 and outputs.ndim == 2:
        right = xp.astype(xp.argmax(outputs, axis=1), targets.dtype) == targets
    elif targets.shape == outputs.shape and outputs.shape[1:] == (1,):
        right = (outputs > 0.0) == (targets > 0.5)
    else:
        raise ShapeError(
            f"accuracy needs outputs (n, classes) with labels (n,), or both (n, 1); "
            f"got {outputs.shape} and {targets.shape}"
        )
    return xp.sum(xp.astype(right, outputs.dtype))


_NAMED: dict[str, Metric] = {"accuracy": accuracy}


def get(metric: str | Metric) -> tuple[str, Metric]:
    """Name and function of a metric given as either. Raises OptionError for an unknown name."""
    if callable(metric):
        return getattr(metric, "__name__", "metric"), metric
    if metric not in _NAMED:
        raise OptionError(f"no metric is called {metric!r}; choose {', '.join(_NAMED)} or pass a function")
    return metric, _NAMED[metric]
