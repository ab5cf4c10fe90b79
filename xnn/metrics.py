"""Metrics: counted on the device batch by batch, added on the host, one number at the end.

    trainer = xnn.Trainer(model, loss, optimizer, metrics=["accuracy", "top5", metrics.F1(average="weighted")])

    f1 = metrics.F1()                  # or alone, on arrays of any backend
    for x, y in batches:
        f1.update(model(x), y)
    f1.compute()

Batches may differ in size: what is added are counts and sums, so that many batches give what one of all samples
would. Sample weights do not enter: every sample counts once, whatever its loss weighs.

One of your own is a function (xp, outputs, targets) -> the batch's sum, which is divided by the samples, or a class:

    class Bias(metrics.Metric):
        name = "bias"
        def count(self, xp, outputs, targets): return xp.sum(outputs - targets, axis=0)
        def result(self, total, samples): return float(abs(total / samples).max())
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from xnn.backends import Backend, backend_of
from xnn.backends.calls import as_number
from xnn.errors import LabelError, OptionError, ShapeError
from xnn.ops import Array, Namespace
from xnn.ops import metrics as counted
from xnn.ops.metrics import accuracy
from xnn.ops.op import apply_rule
from xnn.options import check_count, check_real

__all__ = [
    "F1", "MAE", "MSE", "R2", "RMSE", "Accuracy", "ConfusionMatrix", "Count", "Metric", "Precision", "Recall", "TopK",
    "Totals", "accuracy", "count_batch", "get",
]  # fmt: skip

#: count(xp, outputs, targets) -> an array of one shape for batches of every size, on the device.
Count: TypeAlias = Callable[[Namespace, Array, Array], Array]


class Metric:
    """What is counted in each batch, how two counts become one, and the number that comes out.

    count(xp, outputs, targets) -> an array of one shape for batches of every size. It runs on the device, written
    as an op is (Array API functions of `xp`), so that exact numerics can run it too; it may be a plain function.

    A Trainer keeps totals of its own: one object can be in several, and be updated by hand besides.
    """

    #: Its key in the history.
    name: str = "metric"
    count: Count
    _totals: Totals | None = None

    def __init__(self, name: str | None = None) -> None:
        if name is not None and (not isinstance(name, str) or not name):
            raise OptionError(f"a metric's name must be a string, got {name!r}")
        self.name = name or self.name

    def merge(self, total: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """Two counts as one, float64 on the host; their sum unless it is overridden."""
        return np.asarray(total + counted)

    def result(self, total: np.ndarray, samples: int) -> Any:
        """The number for all samples, or an array; the total's mean over its elements, divided by the samples."""
        return float(np.mean(total)) / samples

    def update(self, outputs: Any, targets: Any) -> None:
        """Count a batch: arrays of one backend, in the numerics in force.

        Raises ShapeError or DTypeError for what it cannot count, LabelError for labels outside 0 .. classes - 1.
        """
        outputs, targets = (x if hasattr(x, "dtype") else np.asarray(x) for x in (outputs, targets))
        lib = backend_of(outputs, targets)
        if 0 in (outputs.ndim, targets.ndim) or outputs.shape[0] != targets.shape[0]:
            raise ShapeError(
                f"{self.name} needs a row of outputs and a target a sample, got {outputs.shape} and {targets.shape}"
            )
        if outputs.shape[0]:
            with lib.guard():
                counts = count_batch(lib, [self], outputs, targets)
                if targets.ndim == 1 and outputs.ndim == 2 and lib.xp.isdtype(targets.dtype, "integral"):
                    low, high = (int(lib.to_host(f(targets))) for f in (lib.xp.min, lib.xp.max))
                    if low < 0 or high >= outputs.shape[1]:
                        raise LabelError(
                            f"{self.name}: labels run from {low} to {high} and there are {outputs.shape[1]} outputs: "
                            f"labels must lie in 0 .. {outputs.shape[1] - 1}; a single output takes targets (n, 1)"
                        )
            self._totals = self._totals or Totals([self])
            self._totals.add(counts, outputs.shape[0])

    def compute(self) -> Any:
        """The result over all updates since the last reset. Raises OptionError if there was none."""
        if self._totals is None:
            raise OptionError(f"{self.name}.compute needs samples: call update(outputs, targets) first")
        return self._totals.results()[self.name]

    def reset(self) -> None:
        """Forget all updates."""
        self._totals = None


class Totals:
    """The counts of several metrics over the batches so far."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics, self.samples = metrics, 0
        self._totals: list[np.ndarray] = []

    def add(self, counts: Sequence[np.ndarray], samples: int) -> None:
        """A batch's counts, float64 on the host, and its samples."""
        if self.samples:
            pairs = zip(self.metrics, self._totals, counts, strict=True)
            self._totals = [metric.merge(total, counted) for metric, total, counted in pairs]
        else:
            self._totals = list(counts)
        self.samples += samples

    def results(self) -> dict[str, Any]:
        """Each metric's result by its name: plain numbers and lists, as logs need them."""
        pairs = zip(self.metrics, self._totals, strict=True)
        found = {metric.name: metric.result(total, self.samples) for metric, total in pairs}
        return {
            name: x.tolist() if isinstance(x, (np.ndarray, np.generic)) else x for name, x in found.items()
        }


def count_batch(lib: Backend, metrics: Sequence[Metric], outputs: Array, targets: Array) -> list[np.ndarray]:
    """What each metric counts in a batch, float64 on the host."""
    found = (apply_rule(metric.count, lib.math, (outputs, targets), {}) for metric in metrics)
    return [lib.to_host(as_number(lib, count)).astype(np.float64) for count in found]


class _OfDecisions(Metric):
    """A metric of classes, or of outputs that say yes or no."""

    def __init__(self, binary: bool, threshold: float, name: str | None) -> None:
        super().__init__(name)
        if not isinstance(binary, bool):
            raise OptionError(f"binary must be True or False, got {binary!r}")
        self.binary, self.threshold = binary, check_real("threshold", threshold, -math.inf)

    def _on_device(self, function: Callable[..., Array]) -> Count:
        """The function with its options; without any it stays itself, which kernels know."""
        if not self.binary and not self.threshold:
            return function
        return partial(function, binary=self.binary, threshold=self.threshold)


class Accuracy(_OfDecisions):
    """The share of samples that are right; of several yes or no, the share of right ones among all of them.

    outputs (n, classes) with labels (n,) or class probabilities (n, classes): the largest output is right where it
    is the label, or the largest probability. outputs (n, 1) with targets (n, 1), or with `binary` both of any one
    shape (n, ...): each output says yes where it is above `threshold`, 0 for logits and 1/2 after a Sigmoid, and
    the target is yes above 1/2. By name in a Trainer both options follow the loss and the model.
    """

    name = "accuracy"

    def __init__(self, binary: bool = False, threshold: float = 0.0, name: str | None = None) -> None:
        super().__init__(binary, threshold, name)
        self.count = self._on_device(accuracy)


class TopK(Metric):
    """The share of samples whose class is among the k largest of the outputs (n, classes).

    Targets as for Accuracy; of equal outputs the first counts as the larger, so that TopK(1) is Accuracy. With k
    classes or fewer it is 1.
    """

    def __init__(self, k: int = 5, name: str | None = None) -> None:
        self.k = check_count("k", k)
        super().__init__(name or f"top{self.k}")
        self.count = partial(counted.in_top, k=self.k)


class ConfusionMatrix(_OfDecisions):
    """How often each class (row) was taken for each (column), as a list of lists of integers.

    Inputs as for Accuracy; a single yes or no gives [[true no, false yes], [false no, true yes]].
    """

    name = "confusion_matrix"

    def __init__(self, binary: bool = False, threshold: float = 0.0, name: str | None = None) -> None:
        super().__init__(binary, threshold, name)
        self.count = self._on_device(counted.confusion)

    def result(self, total: np.ndarray, samples: int) -> np.ndarray:
        """The matrix."""
        return total.astype(np.int64)


_AVERAGES = ("macro", "micro", "weighted", "binary", None)


class _OfClasses(_OfDecisions):
    """A score of each class, averaged."""

    def __init__(
        self,
        average: str | None = "macro",
        binary: bool = False,
        threshold: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__(binary, threshold, name)
        if average not in _AVERAGES:
            raise OptionError(
                f"average={average!r} is not known; choose {', '.join(map(repr, _AVERAGES[:-1]))} or None"
            )
        self.average = average

    def count(self, xp: Namespace, outputs: Array, targets: Array) -> Array:
        """(3, classes): how often each class was said and true, was said, was true."""
        counts = counted.class_counts(xp, outputs, targets, binary=self.binary, threshold=self.threshold)
        if self.average == "binary" and counts.shape[1] > (1 if self.binary else 2):
            raise ShapeError(
                f"average='binary' is for two classes or one yes or no, and the outputs are {outputs.shape}: "
                "choose another average"
            )
        return counts

    def result(self, total: np.ndarray, samples: int) -> float | np.ndarray:
        """The averaged score, or with average=None all classes'."""
        if self.average == "micro":
            total = total.sum(axis=1, keepdims=True)
        elif self.average == "binary":
            total = total[:, -1:]
        hits, said, true = total
        scores = self._scores(hits, said, true)
        if self.average is None:
            return scores
        if self.average == "weighted":
            return float(_ratio(np.sum(scores * true), np.sum(true)))
        # A class that nobody said or meant is none of the data's; a yes that nobody meant is a column of theirs.
        scores = scores if self.binary else scores[said + true > 0]
        return float(np.mean(scores)) if scores.size else 0.0

    def _scores(self, hits: np.ndarray, said: np.ndarray, true: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def _ratio(a: Any, b: Any) -> np.ndarray:
    """a / b, and 0 where b is 0."""
    return np.where(b > 0, a, 0.0) / np.where(b > 0, b, 1.0)


class Precision(_OfClasses):
    """Of the samples put into a class, the share that belongs there: tp / (tp + fp), 0 where there are none.

    Inputs as for Accuracy. average, as in scikit-learn with zero_division=0: "macro", the mean over the classes that
    occur in outputs or targets; "weighted", the mean weighted by how often each is true; "micro", of all classes'
    tp and fp together; "binary", of the last of two classes; None, the list of all classes' (0 for one that does not
    occur). An output that says yes or no is one class, of which yes is counted.
    """

    name = "precision"

    def _scores(self, hits: np.ndarray, said: np.ndarray, true: np.ndarray) -> np.ndarray:
        return _ratio(hits, said)


class Recall(_OfClasses):
    """Of the samples of a class, the share that was put into it: tp / (tp + fn), 0 where there are none.

    Inputs and average as for Precision.
    """

    name = "recall"

    def _scores(self, hits: np.ndarray, said: np.ndarray, true: np.ndarray) -> np.ndarray:
        return _ratio(hits, true)


class F1(_OfClasses):
    """The harmonic mean of precision and recall: 2 tp / (2 tp + fp + fn), 0 where a class does not occur.

    Inputs and average as for Precision; an average is one of the classes' F1.
    """

    name = "f1"

    def _scores(self, hits: np.ndarray, said: np.ndarray, true: np.ndarray) -> np.ndarray:
        return _ratio(2.0 * hits, said + true)


class MAE(Metric):
    """Mean absolute error over samples and outputs: mean |o - t|, outputs and targets of one shape (n, ...)."""

    name = "mae"
    count = staticmethod(counted.absolute_error)


class MSE(Metric):
    """Mean squared error over samples and outputs: mean (o - t)^2, outputs and targets of one shape (n, ...)."""

    name = "mse"
    count = staticmethod(counted.squared_error)


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
    count = staticmethod(counted.moments)

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


class _OfFunction(Metric):
    """A function's sum over the batch, divided by the samples."""

    def __init__(self, function: Count) -> None:
        super().__init__(getattr(function, "__name__", None))
        self.count = function


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
        return _OfFunction(metric)
    if isinstance(metric, str) and metric in _NAMED:
        return _NAMED[metric](binary, threshold)
    if isinstance(metric, str) and re.fullmatch("top[1-9][0-9]*", metric):
        return TopK(int(metric[3:]))
    raise OptionError(
        f"no metric is called {metric!r}; choose {', '.join(_NAMED)} (top and any number), or pass an object of "
        "xnn.metrics or a function"
    )
