"""Metrics by name, by function, or as objects: what a Trainer takes."""

from __future__ import annotations

import re
from collections.abc import Callable

from xnn.errors import OptionError, ShapeError
from xnn.metrics.classes import F1, Accuracy, ConfusionMatrix, Precision, Recall, TopK
from xnn.metrics.metric import Count, Metric
from xnn.metrics.regression import MAE, MSE, R2, RMSE
from xnn.ops import Array, Namespace
from xnn.ops.boundary import Boundary
from xnn.ops.metrics import accuracy
from xnn.ops.portable import check_portable
from xnn.options import shown, takes

__all__ = ["get"]


class _OfFunction(Metric):
    """The metric of a plain function: the mean over the samples of what it returns, a sum or a number for each."""

    def __init__(self, function: Count) -> None:
        super().__init__(getattr(function, "__name__", None))
        self.function = function

    def count(self, xp: Namespace, outputs: Array, targets: Array) -> Array:
        if isinstance(xp, Boundary):
            check_portable(self.function, self.name)
        value = self.function(xp, outputs, targets)
        if not getattr(value, "ndim", 0):
            return value
        if tuple(value.shape) != tuple(outputs.shape[:1]):
            raise ShapeError(
                f"the metric {self.name} returned an array {tuple(value.shape)} for {outputs.shape[0]} samples; a "
                "function must return the batch's sum, one number, or a number for each sample, (n,) (a class "
                "derived from xnn.metrics.Metric may count arrays)"
            )
        return xp.sum(xp.astype(value, outputs.dtype))


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
    """A metric object, from an object, a name or a function.

    metric: a Metric; or a name: accuracy, top5 (or top1, top2, ...), precision, recall, f1, confusion_matrix, mae,
        mse, rmse, r2; or a function (xp, outputs, targets) -> the sum over the batch, or a number for each sample.
    binary, threshold: the options of Accuracy, for metrics of classes that are given by name. Defaults False and 0.

    Raises OptionError for an unknown name, or an object that is not a metric.

        >>> from xnn import metrics
        >>> metrics.get("top3"), metrics.get("f1")
        (TopK(k=3), F1())
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, type) and issubclass(metric, Metric):
        raise OptionError(f"got the class {metric.__name__} as a metric: pass an object, {metric.__name__}()")
    if callable(metric):
        return Accuracy() if metric is accuracy else _OfFunction(_checked(metric))
    if isinstance(metric, str) and metric in _NAMED:
        return _NAMED[metric](binary, threshold)
    if isinstance(metric, str) and re.fullmatch("top[1-9][0-9]*", metric):
        return TopK(int(metric[3:]))
    raise OptionError(
        f"there is no metric {shown(metric)}; choose {', '.join(_NAMED)} (top and any number), an object of "
        "xnn.metrics or a function"
    )


def _checked(function: Count) -> Count:
    """A function, if it takes what a metric is given. Raises OptionError for one that takes something else."""
    if not takes(function, None, None, None):
        name = getattr(function, "__name__", "function")
        raise OptionError(
            f"the metric {name} must take three arguments: def {name}(xp, outputs, targets), where xp is the array "
            "library, as in xp.sum"
        )
    return function
