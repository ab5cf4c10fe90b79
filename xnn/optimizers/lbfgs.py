"""L-BFGS: SciPy's search for the minimum of the loss over all the data, in place of steps by batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from xnn.errors import MissingExtraError, OptionError
from xnn.layers import Parameter
from xnn.ops import Array
from xnn.optimizers.common import WeightDecay
from xnn.optimizers.optimizer import Optimizer
from xnn.options import check_count, check_real, checked, explained_class
from xnn.schedules import Schedule

__all__ = ["LBFGS"]

_NO_LIMIT = 2**31 - 1
# The relative decrease of the loss below which SciPy stops; with SciPy's default it stops long before `tolerance`.
_SMALLEST_DECREASE = 64 * np.finfo(np.float64).eps


def _check_none(name: str, value: Any) -> None:
    """Raise OptionError for an option of the other optimizers."""
    if value is not None:
        raise OptionError(f"LBFGS has no option {name!r}; it takes tolerance, memory, weight_decay")


@explained_class
class LBFGS(Optimizer):
    """L-BFGS: minimizes the loss over all the data at once; for small data and networks. Needs SciPy.

    tolerance: it stops when no element of the gradient is larger than this, or the loss gets no smaller. Default
        1e-5.
    memory: from how many past iterations it learns the curvature. Default 10.
    weight_decay: an L2 penalty, weight_decay / 2 * |w|^2, on what is minimized; the loss that is reported is without
        it. A number >= 0, by name, or a function; see Optimizer. Default 0.

    An epoch of the Trainer is one iteration, which needs one or a few passes over the data. A pass sums the gradients
    of batches of batch_size. Each fit learns the curvature from the beginning. float64 models reach lower losses,
    because in float32 rounding hides the last decreases.

    Raises OptionError for options outside these, MissingExtraError without SciPy, and NumericsError when it trains in
    exact numerics.

        >>> import numpy as np
        >>> from xnn import Sequential, Trainer, layers, losses, optimizers
        >>> x = np.linspace(-1.0, 1.0, 20).reshape(20, 1)
        >>> model = Sequential(layers.Dense(1, 1, dtype="float64"), seed=0)
        >>> trainer = Trainer(model, losses.MSE(), optimizers.LBFGS())
        >>> history = trainer.fit((x, 2.0 * x + 1.0), epochs=50, progress=False)
        >>> round(float(model.layers[0].weight.value[0, 0]), 4), len(history.epochs) < 50
        (2.0, True)

    Source: Liu and Nocedal, Mathematical Programming 45, 1989; Byrd, Lu, Nocedal and Zhu, SIAM J. Sci. Comput. 16,
    1995.
    """

    minimizes = True
    #: Whether the search is told of a loss that is not finite, and may go on from there. False: that is an error.
    passes_infinity = False
    tolerance: float = checked(check_real, 0.0)
    memory: int = checked(check_count)
    clip_norm: float | None = checked(_check_none)
    clip_value: float | None = checked(_check_none)
    average: float | None = checked(_check_none)

    def __init__(self, tolerance: float = 1e-5, memory: int = 10, weight_decay: WeightDecay = 0.0) -> None:
        super().__init__(1.0, weight_decay)
        self.tolerance, self.memory = tolerance, memory
        try:
            import scipy.optimize  # noqa: F401
        except ImportError as error:
            raise MissingExtraError('LBFGS needs SciPy: pip install ".[scipy]"') from error

    @property
    def learning_rate(self) -> float | Schedule:
        """1: the search finds how far to go. Raises OptionError when another rate is assigned."""
        return 1.0

    @learning_rate.setter
    def learning_rate(self, learning_rate: float | Schedule) -> None:
        _check_none("learning_rate", None if learning_rate == 1.0 else learning_rate)

    @property
    def rate(self) -> float:
        return 1.0

    def minimize(
        self,
        function: Callable[[np.ndarray], tuple[float, np.ndarray]],
        start: np.ndarray,
        iterations: int,
        after_each: Callable[[np.ndarray], None],
    ) -> np.ndarray:
        """Find the x at which a function is smallest.

        function: function(x) -> its value and gradient at x, float64 (n,).
        start: the x to start from. iterations: how many are made at most.
        after_each: after_each(x) is called after each iteration, and may end the search by raising StopIteration.
        """
        from scipy.optimize import minimize

        options = {"maxiter": iterations, "gtol": self.tolerance, **self.search_options()}
        found = minimize(function, start, jac=True, method="L-BFGS-B", callback=after_each, options=options)
        self.searched(found)
        return np.asarray(found.x)

    def search_options(self) -> dict[str, Any]:
        """Further options of SciPy's search, by its names."""
        return {"maxfun": _NO_LIMIT, "maxcor": self.memory, "ftol": _SMALLEST_DECREASE}

    def searched(self, found: Any) -> None:
        """Is called with what SciPy's search returned."""

    def step(self, parameters: Iterable[Parameter], gradients: Iterable[Array] | None = None) -> None:
        """Raise OptionError: L-BFGS needs the loss over all the data, not only a gradient."""
        raise OptionError(
            "LBFGS cannot step by gradients, it needs the loss of all the data: give it to a Trainer"
        )
