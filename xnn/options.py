"""Checks of options where they come in, and how an object shows its options: one rule for every class."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from xnn.errors import OptionError

__all__ = [
    "arguments_of",
    "check_count",
    "check_dtype",
    "check_integer",
    "check_known",
    "check_pair",
    "check_real",
    "check_shape",
    "shown",
]


def check_count(name: str, value: Any, least: int = 1) -> int:
    """The value as an int. Raises OptionError unless it is an integer (NumPy's too) of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        allowed = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise OptionError(f"{name} must be {allowed}, got {repr(value)[:60]}")
    return int(value)


def check_integer(name: str, value: Any) -> int:
    """The value as an int. Raises OptionError unless it is an integer (NumPy's too)."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise OptionError(f"{name} must be an integer, got {repr(value)[:60]}")
    return int(value)


def check_pair(name: str, value: Any, least: int = 1) -> tuple[int, int]:
    """A pair of ints, for rows and columns; one integer stands for both.

    Raises OptionError unless each is an integer of at least `least`.
    """
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    try:
        first, second = (check_count(name, item, least) for item in pair)
    except ValueError:
        allowed = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise OptionError(f"{name} must be {allowed} or a pair of them, got {repr(value)[:60]}") from None
    return first, second


def check_real(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """The value as a float. Raises OptionError unless it is a finite number (NumPy's too) in [low, high)."""
    real = not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(float(value))
    if not (real and low <= float(value) < high):
        allowed = f" at least {low:g}" if high == math.inf else f" in [{low:g}, {high:g})"
        allowed = "" if low == -math.inf else allowed
        raise OptionError(f"{name} must be a finite number{allowed}, got {repr(value)[:60]}")
    return float(value)


def check_shape(name: str, value: Any) -> tuple[int, ...]:
    """A shape as a tuple; one integer stands for one axis. Raises OptionError unless each extent is at least 0."""
    extents = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(check_count(f"{name}: each extent of the shape", extent, least=0) for extent in extents)


def check_known(name: str, received: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise OptionError, in the name of a class, if an option received is not among those allowed."""
    known = list(dict.fromkeys(allowed))
    if unknown := [option for option in received if option not in known]:
        raise OptionError(f"{name} has no option {unknown[0]!r}; it takes {', '.join(known)}")


def check_dtype(dtype: str) -> str:
    """The dtype's name. Raises OptionError unless it is "float32" or "float64"."""
    if dtype not in ("float32", "float64"):
        raise OptionError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return dtype


def arguments_of(kind: type) -> dict[str, Any]:
    """The arguments that a class takes, with their defaults. *args and **kwargs are left out."""
    found = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def shown(thing: Any, *always: str, omit: Collection[str] = (), others: Iterable[str] = ()) -> str:
    """The text of an object for its __repr__: its class, and the arguments that are not at their defaults.

    thing: an object that keeps each argument as an attribute of the same name.
    always: arguments that are shown at their defaults too.
    omit: arguments that are never shown. Default none.
    others: arguments that the class takes as **kwargs, whose default is None. Default none.

        >>> from fractions import Fraction
        >>> shown(Fraction(3, 4))
        'Fraction(numerator=3, denominator=4)'
    """
    parts = []
    for name, default in {**arguments_of(type(thing)), **dict.fromkeys(others)}.items():
        value = getattr(thing, name, default)
        if name in omit:
            continue
        if repr(value) != repr(default) or (name in always and hasattr(thing, name)):
            parts.append(f"{name}={_short(value)}")
    return f"{type(thing).__name__}({', '.join(parts)})"


def _short(value: Any) -> str:
    text = repr(str(value) if isinstance(value, Path) else value)
    name = getattr(value, "__name__", "")  # a function's repr is its address
    return name or (text if len(text) <= 200 else f"{text[:200]}...")
