"""The training loop, and what it is made of."""

from xnn.training.trainer import Trainer

__all__ = ["Trainer"]
