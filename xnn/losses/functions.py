"""A loss made of a function of your own (Lambda)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xnn.errors import OptionError
from xnn.losses.loss import Loss
from xnn.options import shown, takes

__all__ = ["Lambda"]


class Lambda(Loss):
    """A function of your own as a loss.

    function: takes a batch's outputs and targets, and as a third argument, if it has one, the sample weights. It
        returns one number, computed with ops. What is averaged is up to the function.

    A Trainer takes a batch twice to find out whether the function is a mean or a sum. Sums of batches are added. All
    other numbers are averaged, each weighted by its batch's samples. Targets are checked only for outputs (n, 1) and
    targets (n,), or the other way round, that the function broadcasts to (n, n). Integer targets stay integers, other
    numbers get the model's dtype. The function's code is not part of a recorded run.
    Raises OptionError for something that is not a function, and for sample weights that it does not take; ShapeError
    for such targets or weights.

        >>> import numpy as np
        >>> from xnn import losses, ops
        >>> loss = losses.Lambda(lambda outputs, targets: ops.mean(ops.abs(outputs - targets)))
        >>> float(loss(np.array([[1.0], [3.0]]), np.array([[0.0], [0.0]])))
        2.0
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        if not callable(function) or isinstance(function, (Loss, type)):
            raise OptionError(f"losses.Lambda needs a function of outputs and targets, got {shown(function)}")
        super().__init__()
        self.function = function
        self._takes_weight = takes(function, None, None, None)  # type: ignore[misc]

    def compute(self, outputs: Any, targets: Any, *sample_weight: Any) -> Any:
        return self.function(outputs, targets, *sample_weight)

    def check(self, targets: np.ndarray, output_shape: tuple[int, ...]) -> None:
        pass

    def prepare(self, targets: np.ndarray, dtype: str) -> np.ndarray:
        return np.asarray(targets, dtype=np.int64 if targets.dtype.kind in "iu" else dtype)

    def __repr__(self) -> str:
        return f"Lambda({getattr(self.function, '__name__', getattr(self.function, 'name', 'function'))})"
