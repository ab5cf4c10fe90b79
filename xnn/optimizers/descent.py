"""Optimizers that follow the gradient or its moving average: SGD and Lion."""

from __future__ import annotations

from typing import Unpack

from xnn.errors import OptionError
from xnn.ops import updates
from xnn.optimizers.common import Common, WeightDecay
from xnn.optimizers.moments import OfMoments
from xnn.optimizers.optimizer import Optimizer
from xnn.options import check_flag, check_real, checked
from xnn.schedules import Schedule

__all__ = ["SGD", "Lion"]


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov momentum; the formulas of PyTorch's SGD.

    learning_rate: a number >= 0, or a schedule of xnn.schedules. Default 0.01.
    momentum: how much of the last step's direction is kept, in [0, 1). Default 0.
    nesterov: whether the gradient is taken as if the momentum had moved the weights already. Default False.
    weight_decay: an L2 penalty, a number >= 0, by name, or a function; see Optimizer. Default 0.
    common: clip_norm, clip_value and average; see Optimizer.

    Formulas: xnn.ops.updates.sgd. Raises OptionError for options outside these, and for nesterov without momentum.

        >>> from xnn import optimizers
        >>> optimizers.SGD(0.1, momentum=0.9)
        SGD(learning_rate=0.1, momentum=0.9)

    Source: Polyak, 1964; Nesterov, 1983, as rewritten by Sutskever et al., ICML 2013.
    """

    rule = staticmethod(updates.sgd)
    momentum: float = checked(check_real, 0.0, 1.0)
    nesterov: bool = checked(check_flag)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: WeightDecay = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, weight_decay, **common)
        self.momentum, self.nesterov = momentum, nesterov
        self.derived(())

    @property
    def array_names(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()

    def derived(self, numbers: tuple[float, ...]) -> dict[str, float]:
        """Check that there is a momentum for Nesterov's formula: both may be assigned, one after the other."""
        if self.nesterov and not self.momentum:
            raise OptionError("nesterov=True needs a momentum above 0, such as 0.9, got 0")
        return {}


class Lion(OfMoments):
    """Lion: steps of equal size in each element, by the sign of an average of the gradients.

    learning_rate: a number >= 0, or a schedule of xnn.schedules. Default 0.0001.
    betas: two decay rates in [0, 1), of the average whose sign is taken and of the one that is kept. Default
        (0.9, 0.99).
    weight_decay: decoupled from the gradient; a number >= 0, by name, or a function; see Optimizer. Default 0.001.
    common: clip_norm, clip_value and average; see Optimizer.

    Formulas: xnn.ops.updates.lion; defaults are optax's. The paper takes learning rates 3 to 10 times smaller than
    AdamW's, and weight decays larger by the same factor. Raises OptionError for options outside these.

        >>> from xnn import optimizers
        >>> optimizers.Lion(3e-4, weight_decay=0.01)
        Lion(learning_rate=0.0003, weight_decay=0.01)

    Source: Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023.
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
        self.betas = betas

    @property
    def array_names(self) -> tuple[str, ...]:
        return ("mean of the gradients",)
