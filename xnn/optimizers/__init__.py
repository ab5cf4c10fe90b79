"""Optimizers: what changes parameters by their gradients. Names, formulas and defaults are PyTorch's."""

from xnn.optimizers.adaptive import AdaDelta, AdaGrad, Adam, AdamW, Nadam, RMSProp
from xnn.optimizers.descent import SGD, Lion
from xnn.optimizers.lbfgs import LBFGS
from xnn.optimizers.optimizer import Optimizer, State, WeightDecay

__all__ = [
    "LBFGS",
    "SGD",
    "AdaDelta",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Lion",
    "Nadam",
    "Optimizer",
    "RMSProp",
    "State",
    "WeightDecay",
]
