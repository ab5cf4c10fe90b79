"""What an optimizer keeps for a parameter from one step to the next."""

from __future__ import annotations

from dataclasses import dataclass

from xnn.ops import Array
from xnn.options import written

__all__ = ["State"]


@dataclass(frozen=True, repr=False)
class State:
    """What an update rule keeps for one parameter between steps.

    arrays: arrays of the parameter's shape and dtype, such as SGD's velocity or Adam's mean and square.
    numbers: numbers that change with each step, such as Adam's beta1^t and beta2^t.
    names: what each array is (`Optimizer.array_names`); () if that is not known.
    """

    arrays: tuple[Array, ...] = ()
    numbers: tuple[float, ...] = ()
    names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return written(self, vars(self))
