"""Metrics of classifications: accuracy, top-k, confusion matrix, precision, recall and F1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from xnn.errors import LabelError, OptionError, ShapeError
from xnn.metrics.metric import Count, Metric
from xnn.ops import Array, Namespace
from xnn.ops import metrics as rules
from xnn.options import check_count, check_flag, check_real, checked, is_one_of, shown

__all__ = ["F1", "Accuracy", "ConfusionMatrix", "Decisions", "Precision", "Recall", "TopK"]


@dataclass(frozen=True)
class Decisions:
    """A formula of `xnn.ops.metrics` and its options, which a program gives to kernels."""

    formula: Callable[..., Array]
    binary: bool
    threshold: float

    def __call__(self, xp: Namespace, outputs: Array, targets: Array) -> Array:
        return self.formula(xp, outputs, targets, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        return {"binary": self.binary, "threshold": self.threshold}


class _OfDecisions(Metric):
    """Base class of metrics of classes, or of binary outputs, each of which says yes or no."""

    adds_up = True
    #: What counts a batch, with the options binary and threshold.
    formula: ClassVar[Callable[..., Array]]
    binary: bool = checked(check_flag)
    threshold: float = checked(check_real)

    def __init__(self, binary: bool, threshold: float, name: str | None) -> None:
        super().__init__(name)
        self.binary, self.threshold = binary, threshold

    def count(self, xp: Namespace, outputs: Array, targets: Array) -> Array:
        return type(self).formula(xp, outputs, targets, binary=self.binary, threshold=self.threshold)

    def counter(self) -> Count:
        """The formula itself, and its options if there are any, because kernels know that one."""
        formula = type(self).formula
        return Decisions(formula, self.binary, self.threshold) if self.binary or self.threshold else formula

    def check(self, targets: np.ndarray) -> None:
        check_classes(self.name, targets)


def check_classes(name: str, targets: np.ndarray) -> None:
    """Raise LabelError for targets of a regression.

    Floating-point targets must be probabilities, in [0, 1], or the -1 and 1 of a hinge loss.
    """
    if targets.dtype.kind == "f" and targets.size:
        least, most = float(targets.min()), float(targets.max())
        signs = least < 0.0 and bool(np.isin(targets, (-1.0, 1.0)).all())  # Hinge's
        if most > 1.0 or not (least >= 0.0 or signs):
            raise LabelError(
                f"{name} counts classes, got targets from {least:g} to {most:g}: take metrics such as mae or r2, or "
                "give classes as integers from 0"
            )


class Accuracy(_OfDecisions):
    """The share of samples whose class is predicted correctly.

    binary: whether each output is a decision of its own, yes or no. Default False: the outputs are classes.
    threshold: an output above it says yes: 0 for logits (default), 0.5 for probabilities, as after a Sigmoid.
    name: the key in the history. Default "accuracy".

    Outputs and targets:

        (n, classes)       labels (n,), integers; or probabilities (n, classes), of which the largest is the class
        (n, classes, ...)  labels (n, ...) or probabilities (n, classes, ...): each place of a sample has a class
        (n, 1)             (n, 1), yes above 0.5: the one output says yes or no
        (n, ...), binary   (n, ...), yes above 0.5: each output says yes or no

    The prediction is the class of the largest output, the first of equal ones. A metric that is given to a Trainer by
    name takes both options from the loss and the model.
    Raises ShapeError, DTypeError or LabelError for other outputs and targets, OptionError for other options.

        >>> from xnn import metrics
        >>> accuracy = metrics.Accuracy()
        >>> accuracy.update([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], [1, 0, 0])
        >>> round(accuracy.compute(), 4)
        0.6667
    """

    name = "accuracy"
    formula = staticmethod(rules.accuracy)

    def __init__(self, binary: bool = False, threshold: float = 0.0, name: str | None = None) -> None:
        super().__init__(binary, threshold, name)


class TopK(Metric):
    """The share of samples whose class is among the k largest outputs.

    k: a positive integer. Default 5. With k classes or fewer the result is 1.
    name: the key in the history. Default "top5" for k=5, and so on.

    Outputs are (n, classes) or (n, classes, ...), targets as for Accuracy. Of equal outputs the first counts as the
    larger, so that TopK(1) is Accuracy.
    Raises ShapeError, DTypeError or LabelError for other outputs and targets, OptionError for another k.

        >>> from xnn import metrics
        >>> top2 = metrics.TopK(2)
        >>> top2.update([[0.1, 0.6, 0.3], [0.5, 0.4, 0.1]], [2, 2])
        >>> top2.compute()
        0.5
    """

    def __init__(self, k: int = 5, name: str | None = None) -> None:
        super().__init__(name)
        self.k = k

    @property
    def k(self) -> int:
        """How many of the largest outputs count; the metric is named after it, unless it was given a name."""
        return self._k

    @k.setter
    def k(self, k: int) -> None:
        self._k = check_count("k", k)
        if not self._named:
            self.name = f"top{self._k}"

    def count(self, xp: Namespace, outputs: Array, targets: Array) -> Array:
        return rules.in_top(xp, outputs, targets, k=self.k)

    def check(self, targets: np.ndarray) -> None:
        check_classes(self.name, targets)


class ConfusionMatrix(_OfDecisions):
    """The confusion matrix: how many samples of each class (row) were predicted as each class (column).

    binary, threshold: as for Accuracy.
    name: the key in the history. Default "confusion_matrix".

    The result is a list of lists of integers. A single output, which says yes or no, gives
    [[true no, false yes], [false no, true yes]]. Outputs and targets, and errors, are those of Accuracy.

        >>> from xnn import metrics
        >>> matrix = metrics.ConfusionMatrix()
        >>> matrix.update([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], [1, 0, 0])
        >>> matrix.compute()
        [[1, 1], [0, 1]]
    """

    name = "confusion_matrix"
    formula = staticmethod(rules.confusion)

    def __init__(self, binary: bool = False, threshold: float = 0.0, name: str | None = None) -> None:
        super().__init__(binary, threshold, name)

    def result(self, total: np.ndarray, samples: int) -> np.ndarray:
        return total.astype(np.int64)


_AVERAGES = ("macro", "micro", "weighted", "binary", None)


def _check_average(name: str, average: Any) -> str | None:
    if not is_one_of(average, _AVERAGES):
        raise OptionError(
            f"got {name}={shown(average)}; choose {', '.join(map(repr, _AVERAGES[:-1]))} or None"
        )
    return average  # type: ignore[no-any-return]


class _OfClasses(_OfDecisions):
    """Base class of Precision, Recall and F1: a score of each class, and its average."""

    average: str | None = checked(_check_average)

    def __init__(
        self,
        average: str | None = "macro",
        binary: bool = False,
        threshold: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__(binary, threshold, name)
        self.average = average

    def counter(self) -> Count:
        return self.count

    def count(self, xp: Namespace, outputs: Array, targets: Array) -> Array:
        """Count the samples of each class: predicted correctly, predicted, and present; shape (3, classes)."""
        counts = rules.class_counts(xp, outputs, targets, binary=self.binary, threshold=self.threshold)
        if self.average == "binary" and counts.shape[1] > (1 if self.binary else 2):
            raise ShapeError(
                f"average='binary' got outputs {outputs.shape}, and is for two classes or a single output: choose "
                "another average"
            )
        return counts

    def result(self, total: np.ndarray, samples: int) -> float | np.ndarray:
        """The averaged score, or with average=None the scores of all classes."""
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
        # A class that was neither predicted nor present is left out; a binary output always counts.
        scores = scores if self.binary else scores[said + true > 0]
        return float(np.mean(scores)) if scores.size else 0.0

    def _scores(self, hits: np.ndarray, said: np.ndarray, true: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def _ratio(a: Any, b: Any) -> np.ndarray:
    """a / b, or 0 where b is 0."""
    return np.where(b > 0, a, 0.0) / np.where(b > 0, b, 1.0)


class Precision(_OfClasses):
    """The share of the samples predicted as a class that belong to it: tp / (tp + fp), 0 if there are none.

    average: how the scores of the classes become one. Default "macro".
        "macro": their mean, over the classes that occur in predictions or targets.
        "weighted": their mean, weighted by the number of samples of each class.
        "micro": the score of all classes counted together.
        "binary": the score of the last of two classes.
        None: no average; the result is the list of the scores, 0 for a class that does not occur.
    binary, threshold: as for Accuracy. A binary output is one class, of which yes is counted.
    name: the key in the history. Default "precision".

    Averages are those of scikit-learn with zero_division=0. Outputs and targets, and errors, are those of Accuracy.

        >>> from xnn import metrics
        >>> precision = metrics.Precision(average=None)
        >>> precision.update([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], [1, 0, 0])
        >>> precision.compute()
        [1.0, 0.5]
    """

    name = "precision"

    def _scores(self, hits: np.ndarray, said: np.ndarray, true: np.ndarray) -> np.ndarray:
        return _ratio(hits, said)


class Recall(_OfClasses):
    """The share of the samples of a class that are predicted as it: tp / (tp + fn), 0 if there are none.

    average: how the scores of the classes become one. Default "macro".
        "macro": their mean, over the classes that occur in predictions or targets.
        "weighted": their mean, weighted by the number of samples of each class.
        "micro": the score of all classes counted together.
        "binary": the score of the last of two classes.
        None: no average; the result is the list of the scores, 0 for a class that does not occur.
    binary, threshold: as for Accuracy. A binary output is one class, of which yes is counted.
    name: the key in the history. Default "recall".

    Averages are those of scikit-learn with zero_division=0. Outputs and targets, and errors, are those of Accuracy.

        >>> from xnn import metrics
        >>> recall = metrics.Recall(average=None)
        >>> recall.update([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], [1, 0, 0])
        >>> recall.compute()
        [0.5, 1.0]
    """

    name = "recall"

    def _scores(self, hits: np.ndarray, said: np.ndarray, true: np.ndarray) -> np.ndarray:
        return _ratio(hits, true)


class F1(_OfClasses):
    """The F1 score, 2 tp / (2 tp + fp + fn): the harmonic mean of precision and recall, 0 if a class does not occur.

    average: how the scores of the classes become one. Default "macro".
        "macro": their mean, over the classes that occur in predictions or targets.
        "weighted": their mean, weighted by the number of samples of each class.
        "micro": the score of all classes counted together.
        "binary": the score of the last of two classes.
        None: no average; the result is the list of the scores, 0 for a class that does not occur.
    binary, threshold: as for Accuracy. A binary output is one class, of which yes is counted.
    name: the key in the history. Default "f1".

    Averages are those of scikit-learn with zero_division=0. Outputs and targets, and errors, are those of Accuracy.

        >>> from xnn import metrics
        >>> f1 = metrics.F1(average=None)
        >>> f1.update([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], [1, 0, 0])
        >>> [round(score, 4) for score in f1.compute()]
        [0.6667, 0.6667]
    """

    name = "f1"

    def _scores(self, hits: np.ndarray, said: np.ndarray, true: np.ndarray) -> np.ndarray:
        return _ratio(2.0 * hits, said + true)
