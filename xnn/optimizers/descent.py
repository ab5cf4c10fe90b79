"""Optimizers whose steps go by the gradient and its mean: SGD and Lion."""

from __future__ import annotations

from typing import Unpack

from xnn.errors import OptionError
from xnn.ops import updates
from xnn.optimizers.optimizer import Common, Optimizer, WeightDecay, check_betas
from xnn.options import check_real
from xnn.schedules import Schedule

__all__ = ["SGD", "Lion"]


class SGD(Optimizer):
    """Gradient descent with momentum, Nesterov momentum and weight decay; formulas in ops.updates.sgd."""

    rule = staticmethod(updates.sgd)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: WeightDecay = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **common)
        self.momentum = check_real("momentum", momentum, 0.0, 1.0)
        self.nesterov = bool(nesterov)
        if nesterov and not momentum:
            raise OptionError("nesterov=True needs a momentum above 0, such as 0.9")

    @property
    def arrays(self) -> int:
        """The velocity, if there is momentum."""
        return 1 if self.momentum else 0


class Lion(Optimizer):
    """Lion, steps of equal size by the sign of a mean; formulas in ops.updates.lion, defaults optax's.

    `betas` are the decay rates of the step's mean and of the one that is kept. The paper's learning rates are 3
    to 10 times smaller, and weight decays as much larger, than AdamW's.
    """

    rule = staticmethod(updates.lion)

    def __init__(
        self,
        learning_rate: float | Schedule = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: WeightDecay = 1e-3,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **common)
        self.beta1, self.beta2 = check_betas(betas)

    @property
    def arrays(self) -> int:
        """The mean."""
        return 1
