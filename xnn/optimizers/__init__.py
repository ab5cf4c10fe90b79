"""Optimizers: what changes parameters by their gradients. Names, formulas and defaults are PyTorch's."""

from xnn.optimizers.adaptive import Adadelta, Adagrad, Adam, AdamW, NAdam, RMSprop
from xnn.optimizers.descent import SGD, Lion
from xnn.optimizers.lbfgs import LBFGS
from xnn.optimizers.optimizer import Optimizer, State, WeightDecay

__all__ = [
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Lion",
    "NAdam",
    "Optimizer",
    "RMSprop",
    "State",
    "WeightDecay",
]
