"""Optimizers that scale each weight's step by its past gradients: AdaGrad, RMSProp, AdaDelta, Adam, AdamW, Nadam."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, Unpack

from xnn.ops import updates
from xnn.optimizers.common import Common, WeightDecay
from xnn.optimizers.moments import OfMoments
from xnn.optimizers.optimizer import Optimizer
from xnn.options import check_flag, check_real, checked
from xnn.schedules import Schedule

__all__ = ["AdaDelta", "AdaGrad", "Adam", "AdamW", "Nadam", "RMSProp"]


class AdaGrad(Optimizer):
    """AdaGrad: divides each step by the root of the sum of all squared gradients, so that steps shrink.

    learning_rate: a number >= 0, or a schedule of xnn.schedules. Default 0.01.
    epsilon: is added to the root, so that it is not 0. Default 1e-10.
    weight_decay: an L2 penalty, a number >= 0, by name, or a function; see Optimizer. Default 0.
    common: clip_norm, clip_value and average; see Optimizer.

    Formulas: xnn.ops.updates.adagrad. Raises OptionError for options outside these.

        >>> from xnn import optimizers
        >>> optimizers.AdaGrad(0.1)
        AdaGrad(learning_rate=0.1)

    Source: Duchi, Hazan and Singer, JMLR 12, 2011.
    """

    rule = staticmethod(updates.adagrad)
    epsilon: float = checked(check_real, 0.0)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        epsilon: float = 1e-10,
        weight_decay: WeightDecay = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **common)
        self.epsilon = epsilon

    @property
    def array_names(self) -> tuple[str, ...]:
        return ("sum of squared gradients",)


class RMSProp(Optimizer):
    """RMSProp: divides each step by the root of a moving average of the squared gradients.

    learning_rate: a number >= 0, or a schedule of xnn.schedules. Default 0.01.
    alpha: the decay rate of that average, in [0, 1). Default 0.99.
    epsilon: is added to the root, so that it is not 0. Default 1e-8.
    momentum: how much of the last step's direction is kept, in [0, 1). Default 0.
    centered: whether to divide by the standard deviation of the gradients, and not by their root mean square.
        Default False.
    weight_decay: an L2 penalty, a number >= 0, by name, or a function; see Optimizer. Default 0.
    common: clip_norm, clip_value and average; see Optimizer.

    Formulas: xnn.ops.updates.rmsprop. Raises OptionError for options outside these.

        >>> from xnn import optimizers
        >>> optimizers.RMSProp(0.001, centered=True)
        RMSProp(learning_rate=0.001, centered=True)

    Source: Hinton, lecture 6e of "Neural Networks for Machine Learning", 2012; centered: Graves, 2013.
    """

    rule = staticmethod(updates.rmsprop)
    epsilon: float = checked(check_real, 0.0)
    alpha: float = checked(check_real, 0.0, 1.0)
    momentum: float = checked(check_real, 0.0, 1.0)
    centered: bool = checked(check_flag)

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
        self.alpha = alpha
        self.epsilon = epsilon
        self.momentum = momentum
        self.centered = centered

    @property
    def array_names(self) -> tuple[str, ...]:
        return (
            "mean square of the gradients",
            *(("mean of the gradients",) if self.centered else ()),
            *(("velocity",) if self.momentum > 0.0 else ()),
        )


class AdaDelta(Optimizer):
    """AdaDelta: scales each step by the ratio of two moving averages, of past steps and of past gradients.

    learning_rate: a number >= 0, or a schedule of xnn.schedules. Default 1.0.
    rho: the decay rate of both averages, which are of squares, in [0, 1). Default 0.9.
    epsilon: is added to both averages before their root is taken. Default 1e-6.
    weight_decay: an L2 penalty, a number >= 0, by name, or a function; see Optimizer. Default 0.
    common: clip_norm, clip_value and average; see Optimizer.

    Formulas: xnn.ops.updates.adadelta. Raises OptionError for options outside these.

        >>> from xnn import optimizers
        >>> optimizers.AdaDelta(rho=0.95)
        AdaDelta(learning_rate=1.0, rho=0.95)

    Source: Zeiler, arXiv 1212.5701, 2012.
    """

    rule = staticmethod(updates.adadelta)
    epsilon: float = checked(check_real, 0.0)
    rho: float = checked(check_real, 0.0, 1.0)

    def __init__(
        self,
        learning_rate: float | Schedule = 1.0,
        rho: float = 0.9,
        epsilon: float = 1e-6,
        weight_decay: WeightDecay = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **common)
        self.rho = rho
        self.epsilon = epsilon

    @property
    def array_names(self) -> tuple[str, ...]:
        return ("mean square of the gradients", "mean square of the steps")


class Adam(OfMoments):
    """Adam: steps by moving averages of the gradients and of their squares, corrected for their start at 0.

    learning_rate: a number >= 0, or a schedule of xnn.schedules. Default 0.001.
    betas: two decay rates in [0, 1), of the moving averages of the gradients and of their squares. Default
        (0.9, 0.999).
    epsilon: is added to the root of the second average, so that it is not 0. Default 1e-8.
    amsgrad: whether to divide by the largest average of squares so far (AMSGrad). Default False.
    weight_decay: an L2 penalty, a number >= 0, by name, or a function; see Optimizer. Default 0.
    common: clip_norm, clip_value and average; see Optimizer.

    Each parameter counts its own steps t, as in PyTorch, so that a parameter that is unfrozen later starts at t = 1.
    beta^t is a running product, because the `pow` of C libraries differs between machines.
    Formulas: xnn.ops.updates.adam. Raises OptionError for options outside these.

        >>> from xnn import optimizers
        >>> optimizers.Adam(betas=(0.9, 0.99))
        Adam(learning_rate=0.001, betas=(0.9, 0.99))

    Source: Kingma and Ba, ICLR 2015; AMSGrad: Reddi, Kale and Kumar, ICLR 2018.
    """

    rule: ClassVar[Callable[..., Any]] = staticmethod(updates.adam)
    epsilon: float = checked(check_real, 0.0)
    amsgrad: bool = checked(check_flag)
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
        self.betas = betas
        self.epsilon = epsilon
        self.amsgrad = amsgrad

    @property
    def array_names(self) -> tuple[str, ...]:
        return ("first moment", "second moment", *(("largest second moment",) if self.amsgrad else ()))

    def advance(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """The State's numbers for the next step t: beta1^t and beta2^t."""
        return numbers[0] * self.beta1, numbers[1] * self.beta2

    def derived(self, numbers: tuple[float, ...]) -> dict[str, float]:
        return {"beta1_power": numbers[0], "beta2_power": numbers[1]}


class AdamW(Adam):
    """AdamW: Adam with a weight decay that is decoupled from the gradient.

    learning_rate: a number >= 0, or a schedule of xnn.schedules. Default 0.001.
    betas: two decay rates in [0, 1), of the moving averages of the gradients and of their squares. Default
        (0.9, 0.999).
    epsilon: is added to the root of the second average, so that it is not 0. Default 1e-8.
    amsgrad: whether to divide by the largest average of squares so far (AMSGrad). Default False.
    weight_decay: w = w * (1 - learning_rate * weight_decay) before Adam's step. A number >= 0, by name, or a
        function; see Optimizer. Default 0.01.
    common: clip_norm, clip_value and average; see Optimizer.

    Formulas: xnn.ops.updates.adamw. Raises OptionError for options outside these.

        >>> from xnn import optimizers
        >>> optimizers.AdamW(weight_decay={"weight": 0.1})
        AdamW(learning_rate=0.001, weight_decay={'weight': 0.1})

    Source: Loshchilov and Hutter, ICLR 2019.
    """

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
        super().__init__(learning_rate, betas, epsilon, weight_decay, amsgrad, **common)


class Nadam(OfMoments):
    """Nadam: Adam with Nesterov momentum.

    learning_rate: a number >= 0, or a schedule of xnn.schedules. Default 0.002.
    betas: two decay rates in [0, 1), of the moving averages of the gradients and of their squares. Default
        (0.9, 0.999).
    epsilon: is added to the root of the second average, so that it is not 0. Default 1e-8.
    momentum_decay: how fast the momentum grows to betas[0]; see below. Default 0.004.
    weight_decay: an L2 penalty, a number >= 0, by name, or a function; see Optimizer. Default 0.
    common: clip_norm, clip_value and average; see Optimizer.

    The momentum of step t is

        mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2)

    The power is a running product, because the `pow` of C libraries differs between machines.
    Formulas: xnn.ops.updates.nadam. Raises OptionError for options outside these.

        >>> from xnn import optimizers
        >>> optimizers.Nadam(0.001)
        Nadam(learning_rate=0.001)

    Source: Dozat, ICLR workshop 2016.
    """

    rule = staticmethod(updates.nadam)
    epsilon: float = checked(check_real, 0.0)
    momentum_decay: float = checked(check_real, 0.0)
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
        self.betas = betas
        self.epsilon = epsilon
        self.momentum_decay = momentum_decay

    @property
    def array_names(self) -> tuple[str, ...]:
        return ("first moment", "second moment")

    def _momentum(self, power: float) -> float:
        return self.beta1 * (1.0 - 0.5 * power)

    def advance(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """The State's numbers for the next step t: 0.96^(t momentum_decay), mu_1 mu_2 ... mu_t, and beta2^t.

        mu is the momentum; the class's docstring has its formula.
        """
        power = numbers[0] * _power(0.96, self.momentum_decay)
        return power, numbers[1] * self._momentum(power), numbers[2] * self.beta2

    def derived(self, numbers: tuple[float, ...]) -> dict[str, float]:
        """Options of the rule: the momenta of this step and the next, the product of all so far, and beta2^t."""
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
    from xnn.backends.exact import scalars  # a large package: imported when needed

    return scalars.power(base, exponent)
