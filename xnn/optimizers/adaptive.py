"""Optimizers that scale each element's step by its past gradients: AdaGrad, RMSProp, AdaDelta, Adam and its kin."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, Unpack

from xnn.ops import updates
from xnn.optimizers.optimizer import Common, Optimizer, WeightDecay, check_betas
from xnn.options import check_real
from xnn.schedules import Schedule

__all__ = ["AdaDelta", "AdaGrad", "Adam", "AdamW", "Nadam", "RMSProp"]


class AdaGrad(Optimizer):
    """AdaGrad; formulas in ops.updates.adagrad."""

    rule = staticmethod(updates.adagrad)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        epsilon: float = 1e-10,
        weight_decay: WeightDecay = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **common)
        self.epsilon = check_real("epsilon", epsilon, 0.0)

    @property
    def arrays(self) -> int:
        """The sum of squares."""
        return 1


class RMSProp(Optimizer):
    """RMSProp; formulas in ops.updates.rmsprop. `alpha` is the decay rate of the mean square.

    centered: divide by the deviation from the mean gradient, not by its root mean square.
    """

    rule = staticmethod(updates.rmsprop)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        alpha: float = 0.99,
        epsilon: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: WeightDecay = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **common)
        self.alpha = check_real("alpha", alpha, 0.0, 1.0)
        self.epsilon = check_real("epsilon", epsilon, 0.0)
        self.momentum = check_real("momentum", momentum, 0.0, 1.0)
        self.centered = bool(centered)

    @property
    def arrays(self) -> int:
        """Mean square; mean, if centered; velocity, if there is momentum."""
        return 1 + self.centered + (self.momentum > 0.0)


class AdaDelta(Optimizer):
    """AdaDelta; formulas in ops.updates.adadelta. `rho` is the decay rate of both mean squares."""

    rule = staticmethod(updates.adadelta)

    def __init__(
        self,
        learning_rate: float | Schedule = 1.0,
        rho: float = 0.9,
        epsilon: float = 1e-6,
        weight_decay: WeightDecay = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **common)
        self.rho = check_real("rho", rho, 0.0, 1.0)
        self.epsilon = check_real("epsilon", epsilon, 0.0)

    @property
    def arrays(self) -> int:
        """Mean squares of gradients and of steps."""
        return 2


class Adam(Optimizer):
    """Adam; formulas in ops.updates.adam. `betas` are the decay rates of the mean and the square.

    amsgrad: divide by the largest mean square so far. Each parameter counts its own steps, as in PyTorch, so that
    one unfrozen late starts afresh; beta^t is a running product, since C libraries disagree on pow.
    """

    rule: ClassVar[Callable[..., Any]] = staticmethod(updates.adam)
    first = (1.0, 1.0)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: WeightDecay = 0.0,
        amsgrad: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **common)
        self.beta1, self.beta2 = check_betas(betas)
        self.epsilon = check_real("epsilon", epsilon, 0.0)
        self.amsgrad = bool(amsgrad)

    @property
    def arrays(self) -> int:
        """Mean and square; the largest square, with amsgrad."""
        return 2 + self.amsgrad

    def advance(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """beta1^t and beta2^t."""
        return numbers[0] * self.beta1, numbers[1] * self.beta2

    def derived(self, numbers: tuple[float, ...]) -> dict[str, float]:
        """The powers of beta."""
        return {"beta1_power": numbers[0], "beta2_power": numbers[1]}


class AdamW(Adam):
    """Adam with decoupled weight decay; formulas in ops.updates.adamw."""

    rule = staticmethod(updates.adamw)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: WeightDecay = 0.01,
        amsgrad: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            learning_rate,
            betas,
            epsilon,
            weight_decay,
            amsgrad,
            **common,
        )


class Nadam(Optimizer):
    """Adam with Nesterov momentum; formulas in ops.updates.nadam. The momentum of step t is

        mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2)

    whose power is a running product of one exact one, since C libraries disagree on pow.
    """

    rule = staticmethod(updates.nadam)
    first = (1.0, 1.0, 1.0)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        momentum_decay: float = 0.004,
        weight_decay: WeightDecay = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **common)
        self.beta1, self.beta2 = check_betas(betas)
        self.epsilon = check_real("epsilon", epsilon, 0.0)
        self.momentum_decay = check_real("momentum_decay", momentum_decay, 0.0)

    @property
    def arrays(self) -> int:
        """Mean and square."""
        return 2

    def _momentum(self, power: float) -> float:
        return self.beta1 * (1.0 - 0.5 * power)

    def advance(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """0.96^(t momentum_decay), mu_1 ... mu_t and beta2^t."""
        power = numbers[0] * _power(0.96, self.momentum_decay)
        return power, numbers[1] * self._momentum(power), numbers[2] * self.beta2

    def derived(self, numbers: tuple[float, ...]) -> dict[str, float]:
        """The momenta of this step and the next, their product, and beta2^t."""
        ahead = self._momentum(numbers[0] * _power(0.96, self.momentum_decay))
        return {
            "mu": self._momentum(numbers[0]),
            "next_mu": ahead,
            "mu_product": numbers[1],
            "beta2_power": numbers[2],
        }


@cache
def _power(base: float, exponent: float) -> float:
    """base^exponent with the same bits on every machine."""
    from xnn.backends.exact import scalars  # when it is asked for: it is no small package

    return scalars.power(base, exponent)
