"""Metrics of calibration: whether a classifier is right as often as it is confident."""

from __future__ import annotations

import numpy as np

from xnn import ops
from xnn.metrics.classes import check_classes
from xnn.metrics.metric import Metric
from xnn.ops import Array, Namespace
from xnn.ops import metrics as rules
from xnn.options import check_count, check_flag, checked

__all__ = ["CalibrationError", "Reliability"]


class Reliability(Metric):
    """The reliability curve of a classifier: how often it is right where it is so and so confident.

    bins: how many intervals of equal width [0, 1] is cut into; the upper end belongs to an interval. Default 10.
    probabilities: whether outputs are probabilities, as after a Softmax or Sigmoid. Default False: they are logits,
        of which softmax is taken, or sigmoid of a single output.
    name: the key in the history. Default "reliability".

    The confidence of a prediction is the probability of the predicted class. The result is a list of three lists,
    with a number for each interval: the samples in it, their mean confidence, and the share that is right; 0 where
    there are no samples. Outputs (n, classes) take labels (n,), or probabilities (n, classes); a single output (n, 1)
    takes targets (n, 1).
    Raises ShapeError, DTypeError or LabelError for other outputs and targets, OptionError for other options.

        >>> from xnn import metrics
        >>> curve = metrics.Reliability(bins=2, probabilities=True)
        >>> curve([[0.5, 0.5], [0.9, 0.1], [0.3, 0.7]], [0, 0, 0])
        [[1, 2], [0.5, 0.8], [1.0, 0.5]]

    Source: Niculescu-Mizil and Caruana, Predicting Good Probabilities with Supervised Learning, 2005.
    """

    name = "reliability"
    bins: int = checked(check_count)
    probabilities: bool = checked(check_flag)

    def __init__(self, bins: int = 10, probabilities: bool = False, name: str | None = None) -> None:
        super().__init__(name)
        self.bins, self.probabilities = bins, probabilities

    def count(self, xp: Namespace, outputs: Array, targets: Array) -> Array:
        """Count the samples of each interval, their confidences and those that are right; shape (3, bins)."""
        if not self.probabilities and xp.isdtype(outputs.dtype, "real floating"):
            op = ops.softmax if outputs.ndim > 1 and outputs.shape[1] > 1 else ops.sigmoid
            outputs = op.forward(xp, outputs)[0]
        return rules.reliability(xp, outputs, targets, bins=self.bins)

    def result(self, total: np.ndarray, samples: int) -> list[list[float]] | float:
        count, confidence, right = total
        known = np.maximum(count, 1.0)
        return [count.astype(np.int64).tolist(), (confidence / known).tolist(), (right / known).tolist()]

    def check(self, targets: np.ndarray) -> None:
        check_classes(self.name, targets)


class CalibrationError(Reliability):
    """The expected calibration error: how far confidence and accuracy are apart, 0 for a calibrated classifier.

        sum over the intervals of |right - confidence| / n

    confidence is the sum of the confidences in an interval of Reliability, right the number of right samples there, n
    the number of all samples.

    bins: how many intervals. Default 10.
    probabilities: whether outputs are probabilities and not logits. Default False.
    name: the key in the history. Default "calibration_error".

    Outputs and targets, and errors, are those of Reliability.

        >>> from xnn import metrics
        >>> error = metrics.CalibrationError(bins=2, probabilities=True)
        >>> round(error([[0.5, 0.5], [0.9, 0.1], [0.3, 0.7]], [0, 0, 0]), 4)
        0.3667

    Source: Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, 2017, eq. 3.
    """

    name = "calibration_error"

    def result(self, total: np.ndarray, samples: int) -> float:
        _, confidence, right = total
        return float(np.abs(right - confidence).sum()) / samples
