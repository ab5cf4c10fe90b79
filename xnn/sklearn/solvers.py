"""Optimizers with scikit-learn's formulas, by its names: sgd, adam, lbfgs; and what they keep, as NumPy arrays."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from xnn.errors import OptionError
from xnn.layers import Parameter
from xnn.ops import Array, updates
from xnn.ops.op import Namespace
from xnn.optimizers import LBFGS, SGD, Adam, Optimizer
from xnn.optimizers.moments import OfMoments
from xnn.optimizers.state import State
from xnn.options import check_real, checked, explained_class
from xnn.runs.names import OPTIMIZERS
from xnn.runs.schedule_text import read_schedule

__all__ = ["begun_with", "continued", "kept", "new_optimizer", "set_rate", "stacked_optimizer"]


#: The parameters that partial_fit takes from the call that began the optimizer, as scikit-learn's does.
_LASTING = (
    "solver", "learning_rate", "learning_rate_init", "power_t", "momentum", "nesterovs_momentum", "beta_1", "beta_2",
    "epsilon",
)  # fmt: skip


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

    passes_infinity = True

    def __init__(
        self, tolerance: float, weight_decay: Any, max_fun: int, found: Callable[[Any], None]
    ) -> None:
        super().__init__(tolerance, weight_decay=weight_decay)
        self.max_fun, self.found = max_fun, found

    def search_options(self) -> dict[str, Any]:
        return {"maxfun": self.max_fun}

    def searched(self, found: Any) -> None:
        self.found(found)


def new_optimizer(
    e: Any,
    penalized: Sequence[Parameter],
    size: float,
    steps: int,
    found: Callable[[Any], None] = lambda result: None,
) -> Optimizer:
    """The optimizer that the parameters of an estimator ask for.

    e: the estimator. penalized: the parameters on which alpha is a penalty. size: the number of samples, or the sum
    of their weights. steps: in an epoch. found: is called with what SciPy returns to L-BFGS.
    """
    if e.solver == "lbfgs":
        others = {name: getattr(e, name) for name in ("optimizer", "schedule", "validation_set")}
        if given := [name for name, value in others.items() if value is not None]:
            raise OptionError(f"solver='lbfgs' has no {given[0]}: set it to None, or the solver to 'adam'")
        if e.dropout:
            raise OptionError(
                f"solver='lbfgs' needs the same loss for the same weights, and dropout={e.dropout} draws random "
                "numbers: set it to 0, or the solver to 'adam'"
            )
        decayed = {id(parameter) for parameter in penalized}
        return LBFGSOfSciPy(e.tol, lambda p: e.alpha / size if id(p) in decayed else 0.0, e.max_fun, found)
    if e.optimizer is not None:
        optimizer = _of_users(e)
    elif e.solver == "sgd":
        momentum = float(e.momentum)
        nesterov = bool(e.nesterovs_momentum) and momentum > 0.0
        optimizer = SGDOfSklearn(e.learning_rate_init, momentum, nesterov)
    else:
        optimizer = AdamOfSklearn(e.learning_rate_init, (e.beta_1, e.beta_2), e.epsilon)
    schedule = e.schedule
    if schedule is not None and isinstance(optimizer, SGDOfSklearn) and e.learning_rate != "constant":
        raise OptionError(
            f"schedule={schedule!r} and learning_rate={e.learning_rate!r} both change the learning rate: give one"
        )
    if isinstance(schedule, str):
        schedule = read_schedule(schedule, optimizer.rate, e.max_iter * steps, steps)
    if schedule is not None:
        optimizer.learning_rate = schedule
    return optimizer


def _of_users(e: Any) -> Optimizer:
    """A copy of the optimizer that was given, or the one that a name stands for."""
    given = e.optimizer
    if isinstance(given, str) and given in OPTIMIZERS and given != "lbfgs":
        return OPTIMIZERS[given](e.learning_rate_init)
    if not isinstance(given, Optimizer) or given.minimizes:
        names = ", ".join(name for name in OPTIMIZERS if name != "lbfgs")
        raise OptionError(
            f"optimizer={given!r} must be an optimizer of xnn.optimizers that takes steps, or one of the names "
            f"{names}; solver='lbfgs' trains by L-BFGS"
        )
    return copy.deepcopy(given)


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


def begun_with(e: Any) -> Any:
    """The parameters of an estimator, of which those of its optimizer are as they were when this solver began."""
    if e._solver is None or e._solver["parameters"]["solver"] != e.solver:
        return e
    return SimpleNamespace(**{**vars(e), **e._solver["parameters"]})


def kept(
    asked: Any, optimizer: Optimizer, parameters: Sequence[Parameter], to_host: Callable[[Any], np.ndarray]
) -> dict[str, Any]:
    """What an optimizer needs to go on: its parameters, numbers and NumPy arrays, in the order of the parameters."""
    states = [optimizer.state.get(parameter) for parameter in parameters]
    return {
        "kind": type(optimizer).__name__,
        "parameters": {name: getattr(asked, name) for name in _LASTING},
        "learning_rate": float(optimizer.rate),
        "steps": optimizer.steps,
        "arrays": [[] if state is None else [np.array(to_host(a)) for a in state.arrays] for state in states],
        "numbers": [None if state is None else [float(n) for n in state.numbers] for state in states],
    }


def continued(
    optimizer: Optimizer,
    known: dict[str, Any],
    parameters: Sequence[Parameter],
    to_device: Callable[[Any], Any],
) -> None:
    """Let a new optimizer go on from what `kept` returned; one of another kind begins anew."""
    if known["kind"] != type(optimizer).__name__:
        return
    optimizer.steps = known["steps"]
    if not callable(optimizer.learning_rate):
        optimizer.learning_rate = known["learning_rate"]
    for parameter, arrays, numbers in zip(parameters, known["arrays"], known["numbers"], strict=True):
        if numbers is not None:
            there = tuple(to_device(np.array(array)) for array in arrays)
            optimizer.state[parameter] = State(there, tuple(numbers), optimizer.array_names)


def _sgd(
    xp: Namespace, parameter: Array, gradient: Array, *state: Array, momentum: float, nesterov: bool
) -> tuple[Array, ...]:
    """The rule of SGD, with a learning rate for each number of the parameter: the last array of the state."""
    velocity, rate = state[0] if momentum else None, state[-1]
    options: Any = {"learning_rate": rate, "momentum": momentum, "nesterov": nesterov}
    fresh = updates.sgd(xp, parameter, gradient, velocity, **options)
    return (*(array for array in fresh if array is not None), rate)


def _adam(
    xp: Namespace, parameter: Array, gradient: Array, mean: Array, square: Array, rate: Array, step: Array, *,
    beta1: float, beta2: float, epsilon: float,
) -> tuple[Array, ...]:  # fmt: skip
    """The rule of AdamOfSklearn, with a learning rate for each number of the parameter, and t in an array.

    1 - beta^t is computed as -expm1(t ln beta), which loses no digits in float32.
    """
    step = step + 1.0
    first, second = (
        -xp.expm1(step * math.log(beta)) if beta else xp.ones_like(step) for beta in (beta1, beta2)
    )
    options: Any = {"learning_rate": rate * (xp.sqrt(second) / first), "beta1_power": 0.0, "beta2_power": 0.0}
    options |= {"beta1": beta1, "beta2": beta2, "epsilon": epsilon}
    return (*updates.adam(xp, parameter, gradient, mean, square, **options), rate, step)


class _StackedSGD(Optimizer):
    """SGD with learning rates of its own for each network, in its state. own: the optimizer of one network."""

    rule = staticmethod(_sgd)
    steady = True

    def __init__(self, own: Any) -> None:
        super().__init__(learning_rate=1.0)
        self.momentum, self.nesterov, self._kept = own.momentum, own.nesterov, own.array_names

    @property
    def array_names(self) -> tuple[str, ...]:
        return (*self._kept, "rate")


class _StackedAdam(OfMoments):
    """Adam with learning rates of its own for each network, in its state. own: the optimizer of one network."""

    rule = staticmethod(_adam)
    steady = True

    def __init__(self, own: Any) -> None:
        super().__init__(learning_rate=1.0)
        self.betas, self.epsilon, self._kept = own.betas, own.epsilon, own.array_names

    @property
    def array_names(self) -> tuple[str, ...]:
        return (*self._kept, "rate", "step")


def stacked_optimizer(own: Optimizer) -> Optimizer:
    """The optimizer of networks whose weights are stacked, each with a learning rate of its own: `State` has them.

    own: that of one network, SGDOfSklearn or AdamOfSklearn. The arrays "rate" and, of Adam, "step" are set by others.
    """
    return _StackedAdam(own) if isinstance(own, AdamOfSklearn) else _StackedSGD(own)
