"""What a Trainer is given as a metric: a name, a function or an object."""

from __future__ import annotations

import re
from collections.abc import Callable

from xnn.errors import OptionError, ShapeError
from xnn.metrics.classes import F1, Accuracy, ConfusionMatrix, Precision, Recall, TopK
from xnn.metrics.metric import Count, Metric
from xnn.metrics.regression import MAE, MSE, R2, RMSE
from xnn.ops import Array, Namespace
from xnn.ops.metrics import accuracy

__all__ = ["get"]


class _OfFunction(Metric):
    """A function's sum over the batch, divided by the samples."""

    def __init__(self, function: Count) -> None:
        super().__init__(getattr(function, "__name__", None))
        self.function = function

    def count(self, xp: Namespace, outputs: Array, targets: Array) -> Array:
        """The function's number; a vector is a sum that was forgotten."""
        value = self.function(xp, outputs, targets)
        if getattr(value, "ndim", 0):
            raise ShapeError(
                f"the metric {self.name} must give the batch's sum, one number, got shape {tuple(value.shape)}; "
                "a class derived from xnn.metrics.Metric may count arrays"
            )
        return value


_NAMED: dict[str, Callable[[bool, float], Metric]] = {
    "accuracy": Accuracy,
    "top5": lambda binary, threshold: TopK(5),
    "precision": lambda *options: Precision("macro", *options),
    "recall": lambda *options: Recall("macro", *options),
    "f1": lambda *options: F1("macro", *options),
    "confusion_matrix": ConfusionMatrix,
    "mae": lambda binary, threshold: MAE(),
    "mse": lambda binary, threshold: MSE(),
    "rmse": lambda binary, threshold: RMSE(),
    "r2": lambda binary, threshold: R2(),
}


def get(metric: str | Metric | Count, binary: bool = False, threshold: float = 0.0) -> Metric:
    """A metric given as such, by its name or as a function; for names, `binary` and `threshold` as in Accuracy.

    Raises OptionError for an unknown name, or for what is no metric.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, type) and issubclass(metric, Metric):
        raise OptionError(f"a metric is an object: pass metrics.{metric.__name__}()")
    if callable(metric):
        return Accuracy() if metric is accuracy else _OfFunction(metric)
    if isinstance(metric, str) and metric in _NAMED:
        return _NAMED[metric](binary, threshold)
    if isinstance(metric, str) and re.fullmatch("top[1-9][0-9]*", metric):
        return TopK(int(metric[3:]))
    raise OptionError(
        f"no metric is called {metric!r}; choose {', '.join(_NAMED)} (top and any number), or pass an object of "
        "xnn.metrics or a function"
    )
