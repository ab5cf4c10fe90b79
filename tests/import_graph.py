"""Reads which file of xnn imports which, from the syntax trees.

Every import counts: at the top of a module, inside a function, under `if TYPE_CHECKING:`, and by a string that is
a module's full name, such as the argument of importlib.import_module.

An import counts as an import of the file that defines what is used. `from xnn.layers import Dense` counts as
xnn/layers/dense.py, because the package's __init__.py takes `Dense` from there. After `from xnn import layers` the
uses are read: `layers.Dense` counts as the same file. A package counts as a whole (its __init__.py, and so every
file whose names that offers) where it is used otherwise, for example as an argument, or where the name is defined in
the __init__.py itself.

What is not counted: Python runs a package's __init__.py when any of its modules is imported. A package that offers
its modules' names would then be a circle by itself. Names that are put together at run time, such as
f"{package}.table", cannot be read here. Functions of an instance that is passed in are not imports.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

__all__ = [
    "MODULES",
    "ROOT",
    "cycles",
    "dotted_names",
    "extra_missing",
    "files_imported",
    "modules",
    "relative_imports",
    "tree",
]

ROOT = Path(__file__).parent.parent


@cache
def modules() -> dict[str, Path]:
    """Each module's name and file. The symlinks xnn/backends and xnn/benchmarks are not followed."""
    found = {}
    for folder, package in (
        (ROOT / "xnn", ("xnn",)),
        (ROOT / "backends", ("xnn", "backends")),
        (ROOT / "benchmarks", ("xnn", "benchmarks")),
    ):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if folder.name == "xnn" and parts[0] in ("backends", "benchmarks"):
                continue
            name = ".".join((*package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


MODULES = list(modules())


def extra_missing(name: str) -> bool:
    """Whether a module cannot be imported here, since it needs a package that is not installed."""
    return name.startswith("xnn.sklearn") and find_spec("sklearn") is None


def relative_imports(module: ast.Module) -> list[str]:
    return [
        ast.unparse(node) for node in ast.walk(module) if isinstance(node, ast.ImportFrom) and node.level > 0
    ]


def bindings(module: ast.Module) -> dict[str, set[str]]:
    """Local names that imports bind, and the dotted names of xnn that they stand for."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                found.setdefault(alias.asname or alias.name, set()).add(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    found.setdefault(alias.asname, set()).add(alias.name)
                else:
                    root = alias.name.partition(".")[0]
                    found.setdefault(root, set()).add(root)
    return {name: kept for name, given in found.items() if (kept := {g for g in given if is_xnn(g)})}


def is_xnn(dotted: str) -> bool:
    return dotted == "xnn" or dotted.startswith("xnn.")


def dotted_names(module: ast.Module) -> set[str]:
    """Every name of xnn that the module imports, with what is used of it: `xnn.layers.Dense`.

    The bare name `xnn` is left out.
    """
    bound, found, inner = bindings(module), set(), set()
    for node in ast.walk(module):  # from the outermost attribute inwards
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            chain, value = [node.attr], node.value
            while isinstance(value, ast.Attribute):
                inner.add(id(value))
                chain.insert(0, value.attr)
                value = value.value
            inner.add(id(value))
            if isinstance(value, ast.Name):
                found |= {".".join((start, *chain)) for start in bound.get(value.id, ())}
        elif isinstance(node, ast.Name) and id(node) not in inner:
            found |= bound.get(node.id, set())
        elif isinstance(node, ast.Constant) and re.fullmatch(r"xnn(\.\w+)+", str(node.value)):
            found.add(str(node.value))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if is_xnn(alias.name)} & set(MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and is_xnn(node.module):
            # A package that is imported by name is judged by its uses; anything else counts as it stands.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if not is_package(name)}
    return found - {"xnn"}


def is_package(name: str) -> bool:
    return name in modules() and modules()[name].name == "__init__.py"


def home(dotted: str, seen: frozenset[str] = frozenset()) -> set[str]:
    """The modules that define what a dotted name stands for; empty if it is not of xnn."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        module, rest = ".".join(parts[:cut]), parts[cut:]
        if module not in modules():
            continue
        if not rest or not is_package(module) or dotted in seen:
            return {module}
        targets = offered(module).get(rest[0], set())
        found: set[str] = set()
        for target in targets:
            found |= home(".".join((target, *rest[1:])), seen | {dotted})
        return found or {module}
    return set()


@cache
def offered(package: str) -> Mapping[str, set[str]]:
    return bindings(tree(package))


def files_imported(name: str, module: ast.Module) -> set[str]:
    """The modules that a module imports, less itself and the root xnn/__init__.py."""
    return {target for dotted in dotted_names(module) for target in home(dotted)} - {name, "xnn"}


def cycles(imports: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Each group of modules that import one another in a circle, sorted by name (Tarjan, 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> Iterator[list[str]]:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for target in sorted(imports.get(name, ())):
            if target not in number:
                yield from visit(target)
                lowest[name] = min(lowest[name], lowest[target])
            elif target in stack:
                lowest[name] = min(lowest[name], number[target])
        if lowest[name] == number[name]:
            start = stack.index(name)
            group = stack[start:]
            del stack[start:]
            if len(group) > 1:
                yield sorted(group)

    for name in sorted(imports):
        if name not in number:
            yield from visit(name)
