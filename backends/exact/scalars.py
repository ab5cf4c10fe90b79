"""Elementary functions of one Python float, with the bits that `functions.py` gives an array's element.

They are its functions, run over a backend of single numbers: Python's floats are float64, and their `+ - * /` are
correctly rounded. A call takes some microseconds, where arrays of one element would take fifty.
"""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

from xnn.backends.exact import functions

__all__ = ["exp", "log", "power", "sin"]


class _Scalars:
    """What the functions ask of a backend."""

    xp = SimpleNamespace(abs=abs, where=lambda condition, a, b: a if condition else b)

    @staticmethod
    def bits(x: Any, dtype: str) -> Any:
        """The bits of a float as an int, or of an int as a float."""
        given, wanted = ("<d", "<q") if dtype == "int64" else ("<q", "<d")
        return struct.unpack(wanted, struct.pack(given, x))[0]


def exp(x: float) -> float:
    """e^x."""
    return float(functions.exp(_Scalars, float(x)))


def log(x: float) -> float:
    """ln x."""
    return float(functions.log(_Scalars, float(x)))


def sin(x: float) -> float:
    """The sine."""
    return float(functions.sin(_Scalars, float(x)))


def power(base: float, exponent: float) -> float:
    """base^exponent: products, by squaring, if it is whole (and at least 0), and e^(exponent ln base) if not."""
    n = int(exponent)
    if n != exponent:
        return exp(exponent * log(base))
    result = 1.0
    while n:
        result = result * base if n & 1 else result
        base, n = base * base, n >> 1
    return result
