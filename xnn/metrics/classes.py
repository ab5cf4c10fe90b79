"""Metrics of classes, and of outputs that say yes or no."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from xnn.errors import LabelError, OptionError, ShapeError
from xnn.metrics.metric import Count, Metric
from xnn.ops import Array, Namespace
from xnn.ops import metrics as rules
from xnn.options import check_count, check_real

__all__ = ["F1", "Accuracy", "ConfusionMatrix", "Precision", "Recall", "TopK"]


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

    def check(self, targets: np.ndarray) -> None:
        """Labels, yes or no, or probabilities. Raises LabelError for other numbers, as a regression has them."""
        check_classes(self.name, targets)


def check_classes(name: str, targets: np.ndarray) -> None:
    """Raise LabelError for real targets beyond -1 .. 1, or between them where there are negative ones: no classes."""
    if targets.dtype.kind == "f" and targets.size:
        least, most = float(targets.min()), float(targets.max())
        signs = least < 0.0 and bool(np.isin(targets, (-1.0, 1.0)).all())  # Hinge's
        if most > 1.0 or not (least >= 0.0 or signs):
            raise LabelError(
                f"{name} counts classes, and the targets run from {least:g} to {most:g}: take metrics such as mae or "
                "r2, or number the classes from 0 as integers"
            )


class Accuracy(_OfDecisions):
    """The share of samples that are right; of several yes or no, the share of right ones among all of them.

    outputs (n, classes) with labels (n,) or class probabilities (n, classes): the largest output is right where it
    is the label, or the largest probability; with more axes, (n, classes, ...) and (n, ...), at each place. outputs
    (n, 1) with targets (n, 1), or with `binary` both of any one shape (n, ...): each output says yes where it is
    above `threshold`, 0 for logits and 1/2 after a Sigmoid, and the target is yes above 1/2. By name in a Trainer
    both options follow the loss and the model.
    """

    name = "accuracy"

    def __init__(self, binary: bool = False, threshold: float = 0.0, name: str | None = None) -> None:
        super().__init__(binary, threshold, name)
        self.count = self._on_device(rules.accuracy)


class TopK(Metric):
    """The share of samples whose class is among the k largest of the outputs (n, classes).

    Targets as for Accuracy; of equal outputs the first counts as the larger, so that TopK(1) is Accuracy. With k
    classes or fewer it is 1.
    """

    def check(self, targets: np.ndarray) -> None:
        """As Accuracy's."""
        check_classes(self.name, targets)

    def __init__(self, k: int = 5, name: str | None = None) -> None:
        self.k = check_count("k", k)
        super().__init__(name or f"top{self.k}")
        self.count = partial(rules.in_top, k=self.k)


class ConfusionMatrix(_OfDecisions):
    """How often each class (row) was taken for each (column), as a list of lists of integers.

    Inputs as for Accuracy; a single yes or no gives [[true no, false yes], [false no, true yes]].
    """

    name = "confusion_matrix"

    def __init__(self, binary: bool = False, threshold: float = 0.0, name: str | None = None) -> None:
        super().__init__(binary, threshold, name)
        self.count = self._on_device(rules.confusion)

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
        counts = rules.class_counts(xp, outputs, targets, binary=self.binary, threshold=self.threshold)
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
