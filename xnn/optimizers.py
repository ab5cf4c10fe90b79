"""Optimizers: the state of an update rule, and one step over a list of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from xnn.backends import backend_of
from xnn.errors import OptionError
from xnn.layers import Parameter
from xnn.ops import Array, updates
from xnn.ops.op import apply_rule
from xnn.options import check_real
from xnn.schedules import Schedule, check_rate

__all__ = ["SGD", "Adam", "Optimizer", "State"]


@dataclass(frozen=True)
class State:
    """What a rule remembers of one parameter: arrays like it, and numbers (Adam's beta^t)."""

    arrays: tuple[Array, ...] = ()
    numbers: tuple[float, ...] = ()


class Optimizer:
    """Changes parameters by their gradients. `state` maps each parameter to what its rule remembers.

    A subclass names its rule and says how many arrays and which numbers it remembers, how the numbers advance
    each step, and what options the rule gets. A program does the same to all parameters at once.
    """

    rule: ClassVar[Callable[..., Any]]
    #: The numbers before the first step.
    first: ClassVar[tuple[float, ...]] = ()

    def __init__(self, learning_rate: float | Schedule, weight_decay: float) -> None:
        self.learning_rate = check_rate(learning_rate)
        self.weight_decay = check_real("weight_decay", weight_decay, 0.0)
        self.state: dict[Parameter, State] = {}
        self.steps = 0

    @property
    def arrays(self) -> int:
        """How many arrays the rule remembers of each parameter."""
        return 0

    @property
    def rate(self) -> float:
        """The learning rate of the next step: `learning_rate`, or what the schedule says."""
        return self.learning_rate(self.steps) if callable(self.learning_rate) else self.learning_rate

    def advance(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """The numbers one step on."""
        return numbers

    def options(self, numbers: tuple[float, ...]) -> dict[str, Any]:
        """The rule's options, in the order in which it takes them."""
        raise NotImplementedError

    def state_of(self, parameter: Parameter) -> State:
        """What is remembered of a parameter: zeros before its first step, or if the rule now needs other arrays."""
        state = self.state.get(parameter)
        if state is None or len(state.arrays) != self.arrays:
            value = parameter.value
            xp = backend_of(value).xp
            zeros = (
                xp.zeros(value.shape, dtype=value.dtype, device=value.device) for _ in range(self.arrays)
            )
            state = State(tuple(zeros), self.first)
        return state

    def step(self, parameters: Iterable[Parameter]) -> None:
        """One update of every parameter that has a gradient and is not frozen."""
        for parameter in parameters:
            if not parameter.frozen and parameter.grad is not None:
                self.update(parameter)
        self.steps += 1

    def update(self, parameter: Parameter) -> None:
        """Apply the rule to one parameter; its value and state become fresh arrays."""
        state = self.state_of(parameter)
        numbers = self.advance(state.numbers)
        xp = backend_of(parameter.value, parameter.grad, *state.arrays).math
        given = parameter.value, parameter.grad, *state.arrays
        parameter.value, *arrays = apply_rule(type(self).rule, xp, given, self.options(numbers))
        self.state[parameter] = State(tuple(arrays[: self.arrays]), numbers)

    def snapshot(self) -> Any:
        """What `restore` needs to come back here. Updates make fresh arrays, so references are enough."""
        return {key: dict(value) if isinstance(value, dict) else value for key, value in vars(self).items()}

    def restore(self, snapshot: Any) -> None:
        """Back to a snapshot."""
        for key in vars(self).keys() - snapshot.keys():
            delattr(self, key)
        for key, value in snapshot.items():
            setattr(self, key, dict(value) if isinstance(value, dict) else value)


class SGD(Optimizer):
    """Gradient descent with momentum, Nesterov momentum and weight decay; formulas in ops.updates.sgd."""

    rule = staticmethod(updates.sgd)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self.momentum = check_real("momentum", momentum, 0.0, 1.0)
        self.nesterov = bool(nesterov)
        if nesterov and not momentum:
            raise OptionError("nesterov=True needs a momentum above 0, such as 0.9")

    @property
    def arrays(self) -> int:
        """The velocity, if there is momentum."""
        return 1 if self.momentum else 0

    def options(self, numbers: tuple[float, ...]) -> dict[str, Any]:
        """As ops.updates.sgd takes them."""
        return {
            "learning_rate": self.rate,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self.weight_decay,
        }


class Adam(Optimizer):
    """Adam; formulas in ops.updates.adam. `betas` are the decay rates of the mean and the square.

    Each parameter counts its own steps, as in PyTorch, so that one unfrozen late starts afresh; beta^t is a
    running product, since C libraries disagree on pow.
    """

    rule = staticmethod(updates.adam)
    first = (1.0, 1.0)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self.beta1 = check_real("betas[0]", betas[0], 0.0, 1.0)
        self.beta2 = check_real("betas[1]", betas[1], 0.0, 1.0)
        self.epsilon = check_real("epsilon", epsilon, 0.0)

    @property
    def arrays(self) -> int:
        """Mean and square."""
        return 2

    def advance(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """beta1^t and beta2^t."""
        return numbers[0] * self.beta1, numbers[1] * self.beta2

    def options(self, numbers: tuple[float, ...]) -> dict[str, Any]:
        """As ops.updates.adam takes them."""
        return {
            "learning_rate": self.rate,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "beta1_power": numbers[0],
            "beta2_power": numbers[1],
            "epsilon": self.epsilon,
            "weight_decay": self.weight_decay,
        }
