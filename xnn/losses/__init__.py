"""Losses: what training makes small. Each is an op of `xnn.ops` with its options and a look at the targets.

Adding one is its op and two lines here: a class of Loss with that `op`.
"""

from xnn.losses.cross_entropy import BinaryCrossEntropy, Focal, KLDivergence, SoftmaxCrossEntropy
from xnn.losses.distances import L1, MSE, Hinge, Huber, MSELoss
from xnn.losses.loss import Lambda, Loss, LossOverBatches, check_sample_weight

__all__ = [
    "L1", "MSE", "BinaryCrossEntropy", "Focal", "Hinge", "Huber", "KLDivergence", "Lambda", "Loss", "LossOverBatches",
    "MSELoss", "SoftmaxCrossEntropy", "check_sample_weight",
]  # fmt: skip
