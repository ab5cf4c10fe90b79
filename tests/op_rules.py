"""Reads from a file's syntax tree what an op may not do: write in place, keep state, name a library or a dtype."""

from __future__ import annotations

import ast
import re
from typing import Any

__all__ = ["CREATION", "op_faults"]

DTYPE_NAMES = {
    *(f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)),
    *("bool", "complex64", "complex128", "double", "single", "half"),
}
CREATION = {"zeros", "ones", "arange", "full", "empty", "asarray", "eye", "linspace"}
ARRAY_METHODS = {
    *("T", "mT", "H", "sum", "mean", "max", "min", "prod", "std", "var", "any", "all", "argmax", "argmin"),
    *("argsort", "sort", "cumsum", "dot", "reshape", "ravel", "flatten", "transpose", "swapaxes", "squeeze"),
    *(
        "astype",
        "copy",
        "clip",
        "round",
        "take",
        "repeat",
        "put",
        "fill",
        "item",
        "tolist",
        "tobytes",
        "view",
    ),
    *("nonzero", "to_device", "conj", "real", "imag", "flat", "trace", "diagonal", "searchsorted", "get"),
    *("set", "resize"),
}


def whole_numbers(function: ast.AST) -> set[str]:
    """Names that are first set to an integer, as in `size = 1` or `grads, start = [], 0`. `+=` may change them."""
    found = set()
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], (ast.Name, ast.Tuple)):
            continue
        target, value = node.targets[0], node.value
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=True)) if isinstance(value, ast.Tuple) else []
        for name, start in pairs:
            if isinstance(start, ast.Constant) and type(start.value) is int:
                found.add(ast.unparse(name))
    return found


def op_faults(code: str) -> list[str]:
    """The lines of a file of ops that break the rules for ops, each with the rule."""
    module = ast.parse(code)
    faults = []
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    known_of = [(function, whole_numbers(function)) for function in functions]
    counters = {id(node): known for function, known in known_of for node in ast.walk(function)}

    def fault(node: Any, what: str) -> None:
        faults.append(f"line {node.lineno}: {what}: {ast.unparse(node)}")

    def targets(node: ast.AST) -> list[ast.expr]:
        if isinstance(node, (ast.Assign, ast.Delete)):
            return node.targets
        return [node.target] if isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.For)) else []

    for node in ast.walk(module):
        if isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, (ast.MatMult, ast.Pow)):
            fault(node, "no @ and **")
        if isinstance(node, ast.AugAssign):
            known = counters.get(id(node), set())
            if not (isinstance(node.target, ast.Name) and node.target.id in known):
                fault(node, "an augmented assignment writes in place")
        for target in targets(node):
            parts = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
            if any(isinstance(part, ast.Subscript) for part in parts):
                fault(node, "writing in place")
            if any(isinstance(part, ast.Attribute) for part in parts):
                fault(node, "an op has no state")
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            allowed = r"__future__|typing|collections\.abc|xnn(\..*)?"
            if not all(re.fullmatch(allowed, name) for name in names):
                fault(node, "an op imports no library: xp is passed in")
        if isinstance(node, ast.Constant) and node.value in DTYPE_NAMES - {"bool"}:  # "bool" is a kind, too
            fault(node, "a dtype's name")
        if isinstance(node, ast.Attribute):
            of_xp = re.fullmatch(r"xp(\.\w+)*", ast.unparse(node.value))
            if of_xp and node.attr in DTYPE_NAMES:
                fault(node, "a dtype's name")
            if not of_xp and node.attr in ARRAY_METHODS:
                fault(node, "an array's method")
        if isinstance(node, ast.Call):
            called, keywords = ast.unparse(node.func), {k.arg for k in node.keywords}
            if called in {f"xp.{name}" for name in CREATION} and "device" not in keywords:
                fault(node, "created without device=")
            if "out" in keywords:
                fault(node, "writing in place")
    return faults
