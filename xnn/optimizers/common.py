"""The options that all optimizers share: their types and checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypedDict

from xnn.errors import OptionError
from xnn.layers import Parameter
from xnn.options import check_real, shown

__all__ = ["Common", "WeightDecay", "check_average", "check_decay", "check_limit"]

#: One number for all parameters; or numbers by the parameters' names, where {"weight": 1e-4} means 0 for all others;
#: or a function of the parameter, such as lambda p: 1e-4 if len(p.shape) > 1 else 0.0 (no decay of biases).
WeightDecay: TypeAlias = float | Mapping[str, float] | Callable[[Parameter], float]


class Common(TypedDict, total=False):
    """The options that every optimizer but LBFGS takes besides its own; `Optimizer` describes them."""

    clip_norm: float | None
    clip_value: float | None
    average: float | None


def check_limit(name: str, limit: Any) -> float | None:
    """Check a limit of clipping and return it as a float; None means no clipping.

    Raises OptionError for anything but None or a number above 0.
    """
    if limit is not None and not check_real(name, limit, 0.0):
        raise OptionError(f"{name} must be above 0, or None for no clipping, got {shown(limit)}")
    return None if limit is None else float(limit)


def check_average(name: str, average: Any) -> float | None:
    """Check the decay of a moving average and return it as a float; None means no average.

    Raises OptionError for anything but None or a number in [0, 1).
    """
    return None if average is None else check_real(name, average, 0.0, 1.0)


def check_decay(weight_decay: Any) -> WeightDecay:
    """Check a weight decay and return it, with its numbers as floats.

    Raises OptionError for a number below 0, and for anything but a number, a mapping or a function.
    """
    if isinstance(weight_decay, Mapping):
        return {
            name: check_real(f"weight_decay[{name!r}]", value, 0.0) for name, value in weight_decay.items()
        }
    if callable(weight_decay):
        return weight_decay  # type: ignore[no-any-return]
    return check_real("weight_decay", weight_decay, 0.0)
