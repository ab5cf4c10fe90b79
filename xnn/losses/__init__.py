"""Losses: the numbers that training makes small. Each is an op of `xnn.ops`, with its options and a check of targets.

To add one, write its op, and a subclass of Loss with that `op`.
"""

from typing import TYPE_CHECKING

from xnn.graph.habits import module_habits
from xnn.losses.batches import LossOverBatches, check_sample_weight
from xnn.losses.cross_entropy import BinaryCrossEntropy, Focal, KLDivergence, SoftmaxCrossEntropy
from xnn.losses.distances import L1, MSE, Hinge, Huber, MSELoss
from xnn.losses.functions import Lambda
from xnn.losses.loss import Loss

__all__ = [
    "L1", "MSE", "BinaryCrossEntropy", "Focal", "Hinge", "Huber", "KLDivergence", "Lambda", "Loss", "LossOverBatches",
    "MSELoss", "SoftmaxCrossEntropy", "check_sample_weight",
]  # fmt: skip

if not TYPE_CHECKING:  # a type checker would take every name for an attribute
    __getattr__ = module_habits(__name__)
