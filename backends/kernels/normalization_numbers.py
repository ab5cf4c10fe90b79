"""The few numbers of each channel that batch normalization needs, which the kernels of NumPy and Numba share.

`normalization_kernels.py` has the formulas.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call
from xnn.ops.apply import forward_of

__all__ = ["LEAST", "MOST", "Numbers", "are_ordinary", "complete_moments", "store_moments"]

LEAST, MOST = 2.0**-100, 2.0**100  #: between which a variance is an ordinary number


def are_ordinary(variances: np.ndarray) -> np.ndarray:
    """Which variances are so far from the limits of float32 that their numbers need no scaling."""
    return (variances > LEAST) & (variances < MOST)


def complete_moments(m: np.ndarray, call: Call) -> None:
    """After mean and variance: write the power of two; of channels of unusual variance, what the op computes.

    Other channels stay as they are, whatever is in these.
    """
    x, rows = call.reads[0].array, m.reshape(len(m), -1)
    rows[2:] = 1.0
    unusual = ~are_ordinary(rows[1])
    if unusual.any():
        theirs = x[:, unusual]
        if (theirs != 0).any():
            rows[:, unusual] = forward_of(call.op, np, (theirs,), call.options)[0].reshape(len(m), -1)


def store_moments(m: np.ndarray, means: np.ndarray, squares: np.ndarray, count: int, call: Call) -> None:
    """Write the moments of each channel, from those of its parts, which have `count` elements each.

    means: of the parts, of shape (parts, channels). squares: the sums of squares about these means.
    """
    rows = m.reshape(len(m), -1)
    with np.errstate(all="ignore"):
        mean = means.mean(axis=0)
        rows[0], rows[1] = mean, (squares + count * (means - mean) ** 2).sum(axis=0) / (len(means) * count)
        complete_moments(m, call)


class Numbers:
    """The numbers of each channel that forward and backward need, in float64.

    s, m: so that x s - m is what the root divides. is_scaled: whether an s is not 1. root: 1 / sqrt(variance +
    epsilon) of scaled numbers. weight, bias: of the layer, or 1 and 0. about: s, m, root weight, bias in x's dtype.
    """

    def __init__(self, call: Call) -> None:
        moments, *self._affine = (slot.array for slot in call.reads[1:])
        self._plain: list[Any] = [1.0, 0.0]
        self.weight: Any = None
        self._rows, self._epsilon = moments.reshape(len(moments), -1), call.options.get("epsilon", 1e-5)
        self.about = np.empty((4, self._rows.shape[1]), moments.dtype)

    def compute(self) -> None:
        """Compute them for the batch whose moments were computed last."""
        mean, variance, *scaled = self._rows.astype(np.float64)
        self.s = scaled[0] if scaled else np.ones_like(mean)
        self.is_scaled = bool(scaled) and not (self.s == 1.0).all()
        self.m = mean * self.s
        with np.errstate(all="ignore"):
            self.root = 1.0 / np.sqrt(variance + self._epsilon * self.s * self.s)
            self.weight, bias = self._affine or self._plain
            self.about[0], self.about[1] = self.s, self.m
            self.about[2], self.about[3] = self.root * self.weight, bias

    def finish(self, stats: np.ndarray, total: int, affine: list[Any], about: np.ndarray) -> None:
        """Make dweight and dbias from sums, and numbers for dx = about[2] dy + about[3] (x s - m) + about[4].

        stats: sums of dy and of dy (x s - m), of shape (parts, 2, channels). total: N.
        """
        dbias, dweight = stats.sum(axis=0, dtype=np.float64)
        with np.errstate(all="ignore"):
            dweight *= self.root
            for target, gradient in zip(affine, (dweight, dbias), strict=False):
                if target is not None:
                    np.copyto(target, gradient, casting="unsafe")
            slope = self.weight * self.root * self.s
            about[0], about[1], about[2] = self.s, self.m, slope
            about[3], about[4] = -slope * self.root * dweight / total, -slope * dbias / total
