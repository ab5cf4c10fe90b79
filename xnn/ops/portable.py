"""What functions of yours may not use in exact numerics, found in their code before they run.

In exact numerics an op gets plain arrays of float64. Nothing else would stop `x**3`, which a processor's or a
library's own power rounds, or `x.sum()`, which adds in an order of its own: on another machine the result would be
another one, without a word.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakSet

from xnn.errors import NumericsError

__all__ = ["check_portable"]

_OPERATORS = {"**": "pow, or products such as x * x", "@": "matmul"}
#: Methods of arrays that add up or multiply the elements.
_METHODS = {"accumulate", "cumsum", "dot", "mean", "prod", "reduce", "std", "sum", "trace", "var"}
#: Functions of an array library that round in a way of their own, or add up the elements.
_FUNCTIONS = _METHODS | {
    "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh", "average", "cbrt", "convolve",
    "correlate", "cos", "cosh", "cumprod", "einsum", "exp", "exp2", "expm1", "fft", "float_power", "hypot",
    "inner", "kron", "linalg", "log", "log10", "log1p", "log2", "logaddexp", "matmul", "nanmean", "nansum",
    "outer", "pow", "power", "sin", "sinh", "special", "tan", "tanh", "tensordot", "vdot",
}  # fmt: skip
_LIBRARIES = {"cupy", "math", "numpy", "scipy", "torch"}
_passed: WeakSet[types.CodeType] = WeakSet()


def check_portable(function: Callable[..., Any], what: str, instead: str = "xp") -> None:
    """Raise NumericsError if a function computes with what rounds differently from machine to machine.

    These are the operators ** and @, methods of arrays such as x.sum(), and functions such as np.exp or math.exp.

    function: what a user wrote, such as an op's `forward`. xnn's own functions pass, and so does what has no code of
    Python. what: its name in the error. instead: what has functions without this fault, "xp" or "xnn.ops". Functions
    that it calls are not looked at.
    """
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None or code in _passed or str(function.__module__).partition(".")[0] == "xnn":
        return
    used = _first_use(code, _seen_by(function, code))
    if used:
        raise NumericsError(
            f"{what} uses {used[0]}, whose bits depend on the machine: in exact numerics write {instead}.{used[1]}, "
            "or train in fast numerics"
        )
    _passed.add(code)


def _seen_by(function: Any, code: types.CodeType) -> dict[str, Any]:
    """What the names in a function mean."""
    seen = dict(function.__globals__)
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            seen[name] = cell.cell_contents
        except ValueError:  # a name that has no value yet
            seen.pop(name, None)
    return seen


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _library(x: Any) -> str:
    """The array library that a module or a function belongs to; "" for anything else."""
    place = x.__name__ if isinstance(x, types.ModuleType) else getattr(x, "__module__", None)
    top = "numpy" if type(x).__name__ == "ufunc" else str(place).partition(".")[0]
    return top if top in _LIBRARIES else ""


def _first_use(code: types.CodeType, seen: dict[str, Any]) -> tuple[str, str] | None:
    """The first thing that rounds differently elsewhere and the function to write in its place, or None."""
    for one in _codes(code):
        owner: str | None = None  # the name whose attribute is read next
        for step in dis.get_instructions(one):
            name = str(step.argval[-1] if isinstance(step.argval, tuple) else step.argval)
            if step.opname == "BINARY_OP" and (operator := step.argrepr.rstrip("=")) in _OPERATORS:
                return operator, _OPERATORS[operator]
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                library = isinstance(seen.get(owner or ""), types.ModuleType) and _library(seen[owner or ""])
                if library and name in _FUNCTIONS:
                    return f"{library}.{name}", name
                called = (
                    step.opname == "LOAD_METHOD" or step.argrepr != name
                )  # argrepr tells, from Python 3.12 on
                if called and name in _METHODS and owner not in ("xp", "self", "cls", "ops"):
                    return f"the method .{name}() of an array", name
                owner = None
            elif step.opname.startswith("LOAD_"):
                owner = name
                known = seen.get(name) if "GLOBAL" in step.opname or "DEREF" in step.opname else None
                if callable(known) and getattr(known, "__name__", "") in _FUNCTIONS and _library(known):
                    return f"{_library(known)}.{known.__name__}", known.__name__
            elif step.opname not in ("CACHE", "EXTENDED_ARG", "PUSH_NULL"):
                owner = None
    return None
