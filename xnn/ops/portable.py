"""What functions of yours may not use in exact numerics, found in their code before they run.

In exact numerics an op gets plain arrays of float64. Nothing else would stop `x**3`, which a processor's or a
library's own power rounds, or `x.sum()`, which adds in an order of its own: on another machine the result would be
another one, without a word.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from weakref import WeakSet

from xnn.errors import NumericsError

__all__ = ["check_portable", "is_own"]

_OPERATORS = {"**": "pow", "@": "matmul"}
#: Methods of arrays that add up or multiply the elements.
_METHODS = {"accumulate", "cumprod", "cumsum", "dot", "mean", "prod", "reduce", "std", "sum", "trace", "var"}
#: Functions that round in a way of their own, or add up the elements. Of SciPy, all are.
_FUNCTIONS = _METHODS | {
    "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh", "average", "cbrt", "convolve",
    "correlate", "cos", "cosh", "dist", "einsum", "erf", "erfc", "exp", "exp2", "expm1", "fft", "float_power",
    "gamma", "gradient", "hypot", "inner", "kron", "lgamma", "linalg", "log", "log10", "log1p", "log2",
    "logaddexp", "logaddexp2", "matmul", "median", "nanmean", "nanprod", "nanstd", "nansum", "nanvar", "outer",
    "pow", "power", "sin", "sinc", "sinh", "special", "tan", "tanh", "tensordot", "vdot",
}  # fmt: skip
#: What to write in the place of some of them: the name among the functions of `xp` and in xnn.ops.
INSTEAD = {
    **{
        name: name
        for name in ("cos", "exp", "expm1", "log", "log1p", "matmul", "mean", "pow", "sin", "sum", "tanh")
    },
    **{"dot": "matmul", "float_power": "pow", "inner": "matmul", "power": "pow"},
}
#: What to write in functions of Python's numbers.
_NUMBERS = {
    "schedules": "a schedule of xnn.schedules, such as Exponential or Cosine, or products",
    "products": "products, one step after the other",
}
_LIBRARIES = {"_operator", "cupy", "math", "numpy", "operator", "scipy", "torch"}
#: What has been looked at and passed.
_passed: WeakSet[Callable[..., Any]] = WeakSet()


def check_portable(function: Callable[..., Any], what: str, place: str = "xp") -> None:
    """Raise NumericsError if a function computes with what rounds differently from machine to machine.

    These are the operators ** and @, methods of arrays such as x.sum(), and functions such as np.exp or math.exp. On
    integers they would do no harm, but code does not say what its numbers are.

    function: what a user wrote, such as an op's `forward`. xnn's own functions pass, and so does what has no code of
    Python. Neither functions that it calls are looked at, nor what it imports itself. what: its name in the error.
    place: what has functions without this fault, "xp" or "xnn.ops"; "schedules" for a schedule, "products" for
        the numbers of an optimizer's step, both of which are Python's.
    """
    if is_own(function):  # first, since it is asked at each call of an op
        return
    function = _plain(function)
    code = getattr(function, "__code__", None)
    if code is None and place in _NUMBERS and (library := _c_library(function)):
        used: tuple[str, str] | None = f"{library}.{getattr(function, '__name__', '')}", ""
    elif code is None or function in _passed or is_own(function):
        return
    else:
        used = _first_use(code, function.__globals__, _cells(function))
    if used:
        found, name = used
        if place in _NUMBERS:
            advice = _NUMBERS[place]
        elif found.startswith("math."):
            advice = "the number that it gives"
        elif name in INSTEAD:
            advice = f"{place}.{INSTEAD[name]}{', or x * x' if name == 'pow' else ''}"
        else:
            advice = f"it with functions of {place}"
        raise NumericsError(
            f"{what} uses {found}, whose bits depend on the machine (unless its numbers are integers, which is not "
            f"seen here): in exact numerics write {advice}, or train in fast numerics"
        )
    _passed.add(function)


def _c_library(function: Any) -> str:
    """The library of a function without code of Python, such as math.pow or np.cos; "" for others, such as abs."""
    module = str(getattr(function, "__module__", None) or type(function).__module__).partition(".")[0]
    return module if module in _LIBRARIES else ""


def is_own(function: Any) -> bool:
    """Whether a function is xnn's."""
    return str(getattr(function, "__module__", None)).startswith("xnn.")


def _plain(function: Any) -> Any:
    """The function behind a method, a partial, a decorator that says what it wraps, or an object that is called."""
    while True:
        if isinstance(function, partial):
            function = function.func
        elif hasattr(function, "__wrapped__") or hasattr(function, "__func__"):
            function = getattr(function, "__wrapped__", None) or function.__func__
        elif not hasattr(function, "__code__") and hasattr(type(function).__call__, "__code__"):
            function = type(function).__call__
        else:
            return function


def _cells(function: Any) -> dict[str, Any]:
    """What a function sees of the functions around it."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # a name that has no value yet
            continue
    return found


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _library(x: Any) -> str:
    """The library that a module or a function belongs to, if it is one of numbers; else ""."""
    place = x.__name__ if isinstance(x, types.ModuleType) else getattr(x, "__module__", None)
    top = "numpy" if type(x).__name__ == "ufunc" else str(place).partition(".")[0]
    return top.lstrip("_") if top in _LIBRARIES else ""


def _first_use(code: types.CodeType, seen: dict[str, Any], cells: dict[str, Any]) -> tuple[str, str] | None:
    """The first thing that rounds differently elsewhere, as it is called in a message and by its name; or None.

    seen, cells: the values of the names outside the function.
    """
    for one in _codes(code):
        owner, value = "", None  # the name that was read last, and what is known of it
        for step in dis.get_instructions(one):
            name = str(step.argval[-1] if isinstance(step.argval, tuple) else step.argval)
            if step.opname == "BINARY_OP" and (operator := step.argrepr.rstrip("=")) in _OPERATORS:
                return operator, _OPERATORS[operator]
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                if isinstance(value, types.ModuleType):
                    library = _library(value)
                    if library and (name in _FUNCTIONS or library == "scipy"):
                        return f"{library}.{name}", name
                    owner, value = "", getattr(value, name, None)
                    continue
                called = (
                    step.opname == "LOAD_METHOD" or step.argrepr != name
                )  # argrepr tells, from Python 3.12 on
                if called and name in _METHODS and owner not in ("xp", "self", "cls", "ops"):
                    return f"the method .{name}() of an array", name
                owner, value = "", None
            elif "LOAD_" in step.opname:  # Python 3.13 has a STORE_FAST_LOAD_FAST
                known = seen if "GLOBAL" in step.opname else cells if "DEREF" in step.opname else {}
                owner, value = name, known.get(name)
                if "GLOBAL" in step.opname and name == "pow" and value is None:
                    return "Python's pow", name
                own = getattr(value, "__name__", "")
                if (
                    callable(value)
                    and (library := _library(value))
                    and (own in _FUNCTIONS or library == "scipy")
                ):
                    return f"{library}.{own}", own
            elif step.opname not in ("CACHE", "EXTENDED_ARG", "PUSH_NULL"):
                owner, value = "", None
    return None
