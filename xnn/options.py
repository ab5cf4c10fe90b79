"""Options looked at once, where they come in: each check returns a plain number or says what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from xnn.errors import OptionError

__all__ = [
    "check_count",
    "check_dtype",
    "check_integer",
    "check_known",
    "check_pair",
    "check_real",
    "check_shape",
]


def check_count(name: str, value: Any, least: int = 1) -> int:
    """An integer of at least `least`, NumPy's too, as an int."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        allowed = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise OptionError(f"{name} must be {allowed}, got {repr(value)[:60]}")
    return int(value)


def check_integer(name: str, value: Any) -> int:
    """Any integer, NumPy's too, as an int."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise OptionError(f"{name} must be an integer, got {repr(value)[:60]}")
    return int(value)


def check_pair(name: str, value: Any, least: int = 1) -> tuple[int, int]:
    """An integer of at least `least` for both axes, or a pair of them (of rows, of columns), as a pair."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    try:
        first, second = (check_count(name, item, least) for item in pair)
    except ValueError:
        allowed = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise OptionError(f"{name} must be {allowed} or a pair of them, got {repr(value)[:60]}") from None
    return first, second


def check_real(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high), NumPy's too, as a float."""
    real = not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(float(value))
    if not (real and low <= float(value) < high):
        allowed = f" at least {low:g}" if high == math.inf else f" in [{low:g}, {high:g})"
        allowed = "" if low == -math.inf else allowed
        raise OptionError(f"{name} must be a finite number{allowed}, got {repr(value)[:60]}")
    return float(value)


def check_shape(name: str, value: Any) -> tuple[int, ...]:
    """Integers of at least 0 as a tuple; one alone is a shape of one axis."""
    extents = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(check_count(f"{name}: each extent of the shape", extent, least=0) for extent in extents)


def check_known(name: str, received: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise OptionError for an option that `name`, a class, does not have."""
    known = list(dict.fromkeys(allowed))
    if unknown := [option for option in received if option not in known]:
        raise OptionError(f"{name} has no option {unknown[0]!r}; it takes {', '.join(known)}")


def check_dtype(dtype: str) -> str:
    """float32 or float64."""
    if dtype not in ("float32", "float64"):
        raise OptionError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return dtype
