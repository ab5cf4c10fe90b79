"""What functions compute with besides their arguments: the defaults of arguments, and variables of their closures."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

__all__ = ["enclosed"]


def enclosed(function: Any) -> dict[str, Any]:
    """The default arguments of a function or bound method, and the variables of its closure, by name.

    Anything else, such as an object or a built-in function, has none. A variable that has no value yet is left out.

        >>> def power(n, *, scale=2.0):
        ...     def function(x, shift=1.0):
        ...         return scale * x**n + shift
        ...     return function
        >>> enclosed(power), enclosed(power(3))
        ({'scale': 2.0}, {'shift': 1.0, 'n': 3, 'scale': 2.0})
    """
    code = getattr(function, "__code__", None)
    if code is None:
        return {}
    defaults = function.__defaults__ or ()
    by_position = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    found = dict(zip(by_position, defaults, strict=True)) | (function.__kwdefaults__ or {})
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it has no value yet
            found[name] = cell.cell_contents
    return found
