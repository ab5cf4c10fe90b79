"""Optimizers: the state of an update rule, and one step over a list of parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xnn.backends import backend_of
from xnn.errors import OptionError
from xnn.layers import Parameter
from xnn.ops import updates
from xnn.options import check_real

__all__ = ["SGD", "Adam", "Optimizer"]


class Optimizer:
    """Changes parameters by their gradients. `state` maps each parameter to what its rule remembers."""

    def __init__(self, learning_rate: float, weight_decay: float) -> None:
        self.learning_rate = check_real("learning_rate", learning_rate, 0.0)
        self.weight_decay = check_real("weight_decay", weight_decay, 0.0)
        self.state: dict[Parameter, Any] = {}

    def step(self, parameters: Iterable[Parameter]) -> None:
        """One update of every parameter that has a gradient and is not frozen."""
        for parameter in parameters:
            if parameter.grad is not None and not parameter.frozen:
                self.update(parameter)

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
        self.momentum = check_real("momentum", momentum, 0.0, 1.0)
        self.nesterov = bool(nesterov)
        if nesterov and not momentum:
            raise OptionError("nesterov=True needs a momentum above 0, such as 0.9")

    def update(self, parameter: Parameter) -> None:
        """w <- w - learning_rate * direction."""
        parameter.value, velocity = updates.sgd(
            backend_of(parameter.value, parameter.grad, self.state.get(parameter)).xp,
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
        self.beta1 = check_real("betas[0]", betas[0], 0.0, 1.0)
        self.beta2 = check_real("betas[1]", betas[1], 0.0, 1.0)
        self.epsilon = check_real("epsilon", epsilon, 0.0)

    def update(self, parameter: Parameter) -> None:
        """w <- w - learning_rate * unbiased mean / (sqrt(unbiased square) + epsilon).

        Each parameter counts its own steps, as in PyTorch, so that one unfrozen late starts afresh; beta^t
        is a running product, since C libraries disagree on pow.
        """
        value = parameter.value
        if parameter not in self.state:
            xp = backend_of(value).xp
            zeros = xp.zeros(value.shape, dtype=value.dtype, device=value.device)
            self.state[parameter] = zeros, zeros, 1.0, 1.0
        mean, square, power1, power2 = self.state[parameter]
        power1, power2 = power1 * self.beta1, power2 * self.beta2
        parameter.value, mean, square = updates.adam(
            backend_of(value, parameter.grad, mean).xp,
            value,
            parameter.grad,
            mean,
            square,
            learning_rate=self.learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            beta1_power=power1,
            beta2_power=power2,
            epsilon=self.epsilon,
            weight_decay=self.weight_decay,
        )
        self.state[parameter] = mean, square, power1, power2
