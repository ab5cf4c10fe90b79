"""Optimizers: they change the parameters of a model by their gradients. Formulas and defaults are PyTorch's.

    trainer = xnn.Trainer(model, loss, optimizers.Adam(learning_rate=0.001, clip_norm=1.0))

The update rules themselves are functions in xnn.ops.updates.
"""

from typing import TYPE_CHECKING

from xnn.graph.habits import module_habits
from xnn.optimizers.adaptive import AdaDelta, AdaGrad, Adam, AdamW, Nadam, RMSProp
from xnn.optimizers.common import WeightDecay
from xnn.optimizers.descent import SGD, Lion
from xnn.optimizers.lbfgs import LBFGS
from xnn.optimizers.optimizer import Optimizer
from xnn.optimizers.state import State

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

if not TYPE_CHECKING:  # a type checker would take every name for an attribute
    __getattr__ = module_habits(__name__)
