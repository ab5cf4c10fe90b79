"""Losses that measure the distance between outputs and targets, or to a margin."""

from __future__ import annotations

import numpy as np

from xnn import ops
from xnn.errors import LabelError
from xnn.losses.loss import Loss

__all__ = ["L1", "MSE", "Hinge", "Huber", "MSELoss"]


class Hinge(Loss):
    """Hinge loss: the mean of max(1 - output target, 0) over all elements, as Keras's Hinge.

    targets: numbers -1 or 1, of the outputs' shape.
    reduction: "mean" (the default), "sum_over_batch_size", "sum" or "none"; see `Loss`.

    Raises LabelError for other targets, 0 among them.
    Source: Cortes and Vapnik, Machine Learning 20 (1995).

        >>> import numpy as np
        >>> from xnn import losses
        >>> float(losses.Hinge()(np.array([[0.5], [2.0]]), np.array([[1], [1]])))
        0.25
    """

    op = ops.hinge
    usual_metrics = ("accuracy",)
    binary = True

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction)

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        super().check(targets, output_shape)
        if not np.isin(targets, (-1, 1)).all():
            raise LabelError("Hinge needs targets -1 or 1: 2 * targets - 1 if they are 0 or 1")


class MSE(Loss):
    """Mean squared error: the mean of (output - target)^2 over all elements; its gradient is 2 (output - target) / n.

    targets: numbers, of the outputs' shape.
    reduction: "mean" (the default), "sum_over_batch_size", "sum" or "none"; see `Loss`.

    Also named MSELoss. Raises ShapeError for targets of another shape: nothing is broadcast.

        >>> import numpy as np
        >>> from xnn import losses
        >>> float(losses.MSE()(np.array([[1.0], [3.0]]), np.array([[0.0], [0.0]])))
        5.0
    """

    op = ops.mse

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction)


#: The name in the article on building blocks, and in PyTorch.
MSELoss = MSE


class L1(Loss):
    """Mean absolute error: the mean of |output - target| over all elements.

    targets: numbers, of the outputs' shape.
    reduction: "mean" (the default), "sum_over_batch_size", "sum" or "none"; see `Loss`.

    Raises ShapeError for targets of another shape.

        >>> import numpy as np
        >>> from xnn import losses
        >>> float(losses.L1()(np.array([[1.0], [3.0]]), np.array([[0.0], [0.0]])))
        2.0
    """

    op = ops.l1

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction)


class Huber(Loss):
    """Huber loss: half the squared error up to `delta`, linear beyond it, so that outliers count less.

    delta: a finite number above 0; 1 by default.
    targets: numbers, of the outputs' shape.
    reduction: "mean" (the default), "sum_over_batch_size", "sum" or "none"; see `Loss`.

    PyTorch's SmoothL1Loss(beta) is Huber(beta) / beta. Raises OptionError for another delta, ShapeError for targets
    of another shape.
    Source: Huber, Ann. Math. Statist. 35 (1964).

        >>> import numpy as np
        >>> from xnn import losses
        >>> losses.Huber(1.0, reduction="none")(np.array([[1.0], [3.0]]), np.array([[0.0], [0.0]])).tolist()
        [[0.5], [2.5]]
    """

    op = ops.huber

    def __init__(self, delta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction, delta=delta)
