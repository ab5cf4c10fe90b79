"""The probabilities of classes that a model's outputs stand for."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops

__all__ = ["class_probabilities"]


def class_probabilities(last: Any, outputs: np.ndarray) -> np.ndarray | None:
    """The probabilities of the classes, float64 (n, classes), in the memory of the host.

    last: the op of the model's last layer, `Sequential.last_op`. outputs: (n, columns), on the host.

    Outputs of a Softmax or Sigmoid are taken as they are; others are logits, or log-probabilities, whose softmax is
    taken. A single column is the logit or the probability of class 1, and gives two classes. Infinite logits have no
    probabilities: NaN. The result is None for several columns of a Sigmoid: a sample may then have several classes.

        >>> import numpy as np
        >>> from xnn.layers.probabilities import class_probabilities
        >>> class_probabilities(None, np.zeros((1, 4))).tolist(), class_probabilities(None, np.zeros((1, 1))).tolist()
        ([[0.25, 0.25, 0.25, 0.25]], [[0.5, 0.5]])
    """
    values = np.asarray(outputs, np.float64)
    if values.shape[1] == 1:
        one = values if last is ops.sigmoid else np.asarray(ops.sigmoid.forward(np, values)[0])
        return np.concatenate([1.0 - one, one], axis=1)
    if last is ops.sigmoid:
        return None
    if last is ops.softmax:
        return values
    with np.errstate(invalid="ignore"):
        return np.asarray(ops.softmax.forward(np, values)[0])
