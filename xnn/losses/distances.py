"""Losses of distances: between outputs and targets, and to a margin."""

from __future__ import annotations

import numpy as np

from xnn import ops
from xnn.errors import LabelError, OptionError
from xnn.losses.loss import Loss
from xnn.options import check_real

__all__ = ["L1", "MSE", "Hinge", "Huber", "MSELoss"]


class Hinge(Loss):
    """max(1 - output target, 0), targets -1 or 1 of the outputs' shape; as Keras's Hinge, but 0 is no target."""

    op = ops.hinge
    usual_metrics = ("accuracy",)
    binary = True

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        """Targets -1 or 1."""
        super().check(targets, output_shape)
        if not np.isin(targets, (-1, 1)).all():
            raise LabelError("Hinge needs targets -1 or 1; 2 * targets - 1 if they are 0 or 1")


class MSE(Loss):
    """Mean squared error over all elements; its gradient is 2/n (outputs - targets)."""

    op = ops.mse


#: The blocks article's name.
MSELoss = MSE


class L1(Loss):
    """Mean absolute error over all elements."""

    op = ops.l1


class Huber(Loss):
    """Half the squared error up to `delta`, linear beyond; PyTorch's SmoothL1Loss(beta) is Huber(beta) / beta."""

    op = ops.huber

    def __init__(self, delta: float = 1.0, reduction: str = "mean") -> None:
        if not check_real("delta", delta, 0.0):
            raise OptionError("delta must be a finite number above 0, got 0: that is a multiple of L1")
        super().__init__(reduction, delta=float(delta))
