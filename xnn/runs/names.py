"""The plain names of optimizers, losses, activations and kernels, as the command line and records write them.

Each name stands in one of these tables and nowhere else. Networks as TOML files (xnn.runs.architecture) use the names
of the classes instead.
"""

from __future__ import annotations

from xnn import losses, optimizers
from xnn.backends.kernels.calls import TABLES
from xnn.data import Dataset
from xnn.layers import Layer
from xnn.layers.activations import elementwise
from xnn.losses import Loss
from xnn.optimizers import Optimizer

__all__ = [
    "ACTIVATIONS",
    "KERNELS",
    "LOSSES",
    "LOSSES_OF_CLASSES",
    "LOSSES_OF_NUMBERS",
    "LOSSES_OF_TWO_CLASSES",
    "MOST_THREADS",
    "OPTIMIZERS",
    "losses_for",
    "thread_count",
]

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": optimizers.SGD,
    "adam": optimizers.Adam,
    "adamw": optimizers.AdamW,
    "nadam": optimizers.Nadam,
    "rmsprop": optimizers.RMSProp,
    "adagrad": optimizers.AdaGrad,
    "adadelta": optimizers.AdaDelta,
    "lion": optimizers.Lion,
    "lbfgs": optimizers.LBFGS,
}

# In each table of losses the first one is the default.
LOSSES_OF_CLASSES: dict[str, type[Loss]] = {"cross-entropy": losses.SoftmaxCrossEntropy}
#: These take one output and tell two classes apart by it.
LOSSES_OF_TWO_CLASSES: dict[str, type[Loss]] = {
    "bce": losses.BinaryCrossEntropy,
    "focal": losses.Focal,
    "hinge": losses.Hinge,
}
LOSSES_OF_NUMBERS: dict[str, type[Loss]] = {"mse": losses.MSE, "l1": losses.L1, "huber": losses.Huber}
LOSSES: dict[str, type[Loss]] = LOSSES_OF_CLASSES | LOSSES_OF_TWO_CLASSES | LOSSES_OF_NUMBERS

#: Every activation that works element by element: relu, leaky-relu, elu, ...
ACTIVATIONS: dict[str, type[Layer]] = {name.replace("_", "-"): kind for name, kind in elementwise().items()}


#: What a run of `xnn train` or `xnn verify` may be executed with: see the option `kernels` of xnn.Trainer.
KERNELS = TABLES


#: The largest number of threads that a command takes.
MOST_THREADS = 999


def thread_count(text: str) -> int | None:
    """The number of threads that a text stands for, None if it is not one from 1 to 999.

    >>> thread_count("4"), thread_count("0"), thread_count("9" * 5000)
    (4, None, None)
    """
    digits = text.isascii() and text.isdecimal() and len(text) <= len(str(MOST_THREADS))
    return int(text) or None if digits else None


def losses_for(data: Dataset) -> dict[str, type[Loss]]:
    """The losses that a network can be trained with on these data, the default first."""
    if data.task == "regression":
        return LOSSES_OF_NUMBERS
    return LOSSES_OF_CLASSES | LOSSES_OF_TWO_CLASSES if data.classes == 2 else LOSSES_OF_CLASSES
