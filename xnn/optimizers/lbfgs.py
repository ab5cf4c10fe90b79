"""L-BFGS: not steps by a gradient, but a search for the minimum of a loss, which SciPy does."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from xnn.errors import MissingExtraError, OptionError
from xnn.layers import Parameter
from xnn.optimizers.optimizer import Optimizer, WeightDecay
from xnn.options import check_count, check_real

__all__ = ["LBFGS"]

_NO_LIMIT = 2**31 - 1
_SMALLEST_DECREASE = (
    64 * np.finfo(np.float64).eps
)  # of the loss, relative: SciPy's own ends long before `tolerance`


class LBFGS(Optimizer):
    """Limited-memory BFGS over all the data at once, for small data and networks; SciPy's L-BFGS-B (extra `scipy`).

    An epoch is an iteration: Trainer(model, loss, LBFGS()).fit(data, epochs=200) takes at most 200, each of one or a
    few passes over the data, in batches of batch_size whose gradients are summed. It ends before where no element of
    the gradient is beyond `tolerance`, or where the loss gets no smaller. Each fit learns the curvature anew, from
    the last `memory` iterations. weight_decay adds weight_decay / 2 * |w|^2 to what is minimized, not to the
    loss that is reported. float64 models get further: rounding hides the last decreases in float32.

    Raises MissingExtraError without SciPy. Source: Liu and Nocedal, Mathematical Programming 45, 1989; Byrd, Lu,
    Nocedal and Zhu, SIAM J. Sci. Comput. 16, 1995.
    """

    minimizes = True

    def __init__(self, tolerance: float = 1e-5, memory: int = 10, weight_decay: WeightDecay = 0.0) -> None:
        super().__init__(1.0, weight_decay)
        self.tolerance, self.memory = check_real("tolerance", tolerance, 0.0), check_count("memory", memory)
        try:
            import scipy.optimize  # noqa: F401
        except ImportError as error:
            raise MissingExtraError('LBFGS is SciPy\'s: pip install ".[scipy]"') from error

    def minimize(
        self,
        function: Callable[[np.ndarray], tuple[float, np.ndarray]],
        start: np.ndarray,
        iterations: int,
        after_each: Callable[[np.ndarray], None],
    ) -> np.ndarray:
        """Where function(x) -> (value, gradient) is smallest. after_each(x): called after each iteration, may end it
        by raising StopIteration.
        """
        from scipy.optimize import minimize

        options = {
            "maxiter": iterations,
            "maxfun": _NO_LIMIT,
            "maxcor": self.memory,
            "gtol": self.tolerance,
            "ftol": _SMALLEST_DECREASE,
        }
        found = minimize(function, start, jac=True, method="L-BFGS-B", callback=after_each, options=options)
        return np.asarray(found.x)

    def step(self, parameters: Iterable[Parameter]) -> None:
        """Raises OptionError: a gradient is not enough."""
        raise OptionError("LBFGS has no steps, it needs the loss of all the data: give it to a Trainer")
