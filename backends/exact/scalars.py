"""exp, log, sin and power of one Python float, with the same bits as the functions of arrays in `functions.py`.

They are those functions, given a stand-in for a backend whose arrays are Python floats: these are float64, and their
`+ - * /` are correctly rounded. A call takes a few microseconds; with an array of one element it would take fifty.
"""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

from xnn.backends.exact import functions

__all__ = ["exp", "log", "power", "sin"]


class _Scalars:
    """The part of a backend that the functions use, for Python floats in place of arrays."""

    xp = SimpleNamespace(abs=abs, where=lambda condition, a, b: a if condition else b)

    @staticmethod
    def bits(x: Any, dtype: str) -> Any:
        """Reinterpret the bits of a float as an int, or those of an int as a float."""
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
    """base^exponent.

    A whole exponent must be at least 0; the power is computed by squaring and multiplying. For any other exponent
    the base must be positive; the power is e^(exponent ln base).
    """
    n = int(exponent)
    if n != exponent:
        return exp(exponent * log(base))
    result = 1.0
    while n:
        result = result * base if n & 1 else result
        base, n = base * base, n >> 1
    return result
