"""Optimizers with scikit-learn's formulas, by its names: sgd, adam, lbfgs; and what they keep, as NumPy arrays."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xnn.errors import OptionError
from xnn.layers import Parameter
from xnn.optimizers import LBFGS, SGD, Adam, Optimizer
from xnn.optimizers.state import State
from xnn.options import check_real, checked, explained_class
from xnn.runs.names import OPTIMIZERS
from xnn.runs.schedule_text import read_schedule

__all__ = ["LBFGSOfSciPy", "continued", "kept", "new_optimizer", "set_rate"]


class SGDOfSklearn(SGD):
    """SGD whose momentum may be 1."""

    momentum: float = checked(check_real, 0.0, math.nextafter(1.0, 2.0))


class AdamOfSklearn(Adam):
    """Adam that adds epsilon to the root of the second average before its correction.

        w = w - learning_rate sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon)

    Source: Kingma and Ba, ICLR 2015, end of section 2.
    """

    def derived(self, numbers: tuple[float, ...]) -> dict[str, float]:
        corrected = self.epsilon / math.sqrt(1.0 - numbers[1]) if numbers[1] < 1.0 else self.epsilon
        return {**super().derived(numbers), "epsilon": corrected}


@explained_class
class LBFGSOfSciPy(LBFGS):
    """L-BFGS that stops by SciPy's own rule for the decrease of the loss, as scikit-learn's does.

    tolerance, weight_decay: as for LBFGS. max_fun: how often the loss may be evaluated. found: is called with what
    SciPy returns. (An attribute would not stay: a Trainer sets all of them back to those of the last iteration.)
    """

    def __init__(
        self, tolerance: float, weight_decay: Any, max_fun: int, found: Callable[[Any], None]
    ) -> None:
        super().__init__(tolerance, weight_decay=weight_decay)
        self.max_fun, self.found = max_fun, found

    def minimize(
        self,
        function: Callable[[np.ndarray], tuple[float, np.ndarray]],
        start: np.ndarray,
        iterations: int,
        after_each: Callable[[np.ndarray], None],
    ) -> np.ndarray:
        from scipy.optimize import minimize

        options = {"maxiter": iterations, "maxfun": self.max_fun, "gtol": self.tolerance}
        result = minimize(function, start, jac=True, method="L-BFGS-B", callback=after_each, options=options)
        self.found(result)
        return np.asarray(result.x)


def new_optimizer(
    estimator: Any,
    penalized: Sequence[Parameter],
    size: float,
    steps: int,
    found: Callable[[Any], None],
) -> Optimizer:
    """The optimizer that an estimator's parameters ask for.

    penalized: the parameters on which alpha is a penalty. size: the number of samples, or the sum of their weights.
    steps: in an epoch. found: is called with what SciPy returns to L-BFGS.
    """
    e = estimator
    if e.optimizer is not None:
        return _scheduled(e, _of_users(e), steps)
    if e.solver == "lbfgs":
        decayed = {id(parameter) for parameter in penalized}
        return LBFGSOfSciPy(e.tol, lambda p: e.alpha / size if id(p) in decayed else 0.0, e.max_fun, found)
    if e.solver == "sgd":
        momentum = float(e.momentum)
        nesterov = bool(e.nesterovs_momentum) and momentum > 0.0
        return _scheduled(e, SGDOfSklearn(e.learning_rate_init, momentum, nesterov), steps)
    return _scheduled(e, AdamOfSklearn(e.learning_rate_init, (e.beta_1, e.beta_2), e.epsilon), steps)


def _of_users(estimator: Any) -> Optimizer:
    """A copy of the optimizer that was given, or the one that a name stands for."""
    given = estimator.optimizer
    if isinstance(given, Optimizer):
        return copy.deepcopy(given)
    if given not in OPTIMIZERS:
        raise OptionError(
            f"optimizer={given!r} is not an optimizer of xnn.optimizers, nor one of {', '.join(OPTIMIZERS)}"
        )
    if given == "lbfgs":
        raise OptionError("optimizer='lbfgs' is the parameter solver='lbfgs': set that instead")
    return OPTIMIZERS[given](estimator.learning_rate_init)


def _scheduled(estimator: Any, optimizer: Optimizer, steps: int) -> Optimizer:
    """The optimizer with the estimator's schedule, if it has one."""
    schedule = estimator.schedule
    if isinstance(schedule, str):
        schedule = read_schedule(schedule, optimizer.rate, estimator.max_iter * steps, steps)
    if schedule is not None:
        optimizer.learning_rate = schedule
    return optimizer


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Change the learning rate; the momentum keeps the steps that were made with the old one.

    scikit-learn's velocity is a sum of steps, and xnn's one of gradients: so the velocity is divided by what the
    learning rate is multiplied with.
    """
    if isinstance(optimizer, SGD) and rate:
        for state in optimizer.state.values():
            for velocity in state.arrays:
                velocity *= optimizer.rate / rate
    optimizer.learning_rate = rate


def kept(optimizer: Optimizer, parameters: Sequence[Parameter], to_host: Callable[[Any], np.ndarray]) -> dict[str, Any]:
    """What an optimizer needs to go on: numbers and NumPy arrays, in the order of the parameters."""
    states = [optimizer.state.get(parameter) for parameter in parameters]
    return {
        "learning_rate": float(optimizer.rate),
        "steps": optimizer.steps,
        "arrays": [[] if state is None else [np.array(to_host(a)) for a in state.arrays] for state in states],
        "numbers": [None if state is None else [float(n) for n in state.numbers] for state in states],
    }


def continued(
    optimizer: Optimizer, known: dict[str, Any], parameters: Sequence[Parameter], to_device: Callable[[Any], Any]
) -> None:
    """Let a new optimizer go on from what `kept` returned."""
    optimizer.steps = known["steps"]
    if not callable(optimizer.learning_rate):
        optimizer.learning_rate = known["learning_rate"]
    for parameter, arrays, numbers in zip(parameters, known["arrays"], known["numbers"], strict=True):
        if numbers is not None:
            there = tuple(to_device(np.array(array)) for array in arrays)
            optimizer.state[parameter] = State(there, tuple(numbers), optimizer.array_names)
