"""Optimizers: the state of an update rule, and one step over a list of parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from xnn.backends import backend_of
from xnn.errors import OptionError
from xnn.layers import Parameter
from xnn.ops import updates

__all__ = ["SGD", "Adam", "Optimizer"]


class Optimizer:
    """Changes parameters by their gradients. `state` maps each parameter to what its rule remembers."""

    def __init__(self, learning_rate: float, weight_decay: float) -> None:
        self.learning_rate = _in_range("learning_rate", learning_rate, 0.0, math.inf)
        self.weight_decay = _in_range("weight_decay", weight_decay, 0.0, math.inf)
        self.state: dict[Parameter, Any] = {}

    def step(self, parameters: Iterable[Parameter]) -> None:
        """One update of every parameter that has a gradient and is not frozen."""
        self.advance()
        for parameter in parameters:
            if parameter.grad is not None and not parameter.frozen:
                self.update(parameter)

    def advance(self) -> None:
        """Count the step."""

    def update(self, parameter: Parameter) -> None:
        """Apply the rule to one parameter."""
        raise NotImplementedError

    def snapshot(self) -> Any:
        """What `restore` needs to come back here. Updates make fresh arrays, so references are enough."""
        return {key: dict(value) if isinstance(value, dict) else value for key, value in vars(self).items()}

    def restore(self, snapshot: Any) -> None:
        """Back to a snapshot."""
        for key, value in snapshot.items():
            setattr(self, key, dict(value) if isinstance(value, dict) else value)


class SGD(Optimizer):
    """Gradient descent with momentum, Nesterov momentum and weight decay; formulas in ops.updates.sgd."""

    def __init__(
        self,
        learning_rate: float = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self.momentum = _in_range("momentum", momentum, 0.0, 1.0)
        self.nesterov = bool(nesterov)
        if nesterov and not momentum:
            raise OptionError("nesterov=True needs a momentum above 0, such as 0.9")

    def update(self, parameter: Parameter) -> None:
        """w <- w - learning_rate * direction."""
        parameter.value, velocity = updates.sgd(
            backend_of(parameter.value, parameter.grad).xp,
            parameter.value,
            parameter.grad,
            self.state.get(parameter),
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )
        if velocity is not None:
            self.state[parameter] = velocity


class Adam(Optimizer):
    """Adam; formulas in ops.updates.adam. `betas` are the decay rates of the mean and the square."""

    def __init__(
        self,
        learning_rate: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self.beta1 = _in_range("betas[0]", betas[0], 0.0, 1.0)
        self.beta2 = _in_range("betas[1]", betas[1], 0.0, 1.0)
        self.epsilon = _in_range("epsilon", epsilon, 0.0, math.inf)
        self.beta1_power = self.beta2_power = 1.0

    def advance(self) -> None:
        """beta^t as a running product: C libraries disagree on pow."""
        self.beta1_power *= self.beta1
        self.beta2_power *= self.beta2

    def update(self, parameter: Parameter) -> None:
        """w <- w - learning_rate * unbiased mean / (sqrt(unbiased square) + epsilon)."""
        value, xp = parameter.value, backend_of(parameter.value, parameter.grad).xp
        if parameter not in self.state:
            zeros = xp.zeros(value.shape, dtype=value.dtype, device=value.device)
            self.state[parameter] = zeros, zeros
        mean, square = self.state[parameter]
        parameter.value, mean, square = updates.adam(
            xp,
            value,
            parameter.grad,
            mean,
            square,
            learning_rate=self.learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            beta1_power=self.beta1_power,
            beta2_power=self.beta2_power,
            epsilon=self.epsilon,
            weight_decay=self.weight_decay,
        )
        self.state[parameter] = mean, square


def _in_range(name: str, value: Any, low: float, high: float) -> float:
    """A number in [low, high), or an OptionError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < high:
        allowed = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g})"
        raise OptionError(f"{name} must be a finite number {allowed}, got {value!r}")
    return float(value)
