"""The rules of the house, read from the syntax trees: imports, what an op may do, exports, sizes, packages."""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
from import_graph import (
    MODULES,
    ROOT,
    cycles,
    dotted_names,
    extra_missing,
    files_imported,
    modules,
    relative_imports,
    tree,
)
from op_rules import CREATION, op_faults

import xnn
from xnn import errors, layers, ops
from xnn.cli.check import draw
from xnn.ops.cases import CASES

# Each room of xnn, and each file at its root -> its floor. A module imports only from its own floor or below.
# xnn/__init__.py has no floor: it offers names from all of them.
FLOORS = {
    part: floor
    for floor, parts in {
        1: "errors files options",
        2: "ops",
        3: "backends",
        4: "graph",
        5: "layers losses optimizers schedules initializers metrics",
        6: "data history callbacks training report",
        7: "runs exchange",
        8: "cli benchmarks sklearn __main__",
    }.items()
    for part in parts.split()
}

#: The files at the root of xnn/, as DESIGN names them: what a user imports, and what every part stands on.
ROOT_FILES = "__init__ __main__ errors options files history initializers schedules"


def test_the_modules_were_found():
    assert {"xnn", "xnn.ops.op", "xnn.backends.registry", "xnn.layers", "xnn.graph", "xnn.data"} <= set(
        MODULES
    )
    here = [name for name in MODULES if name != "xnn.__main__" and not extra_missing(name)]
    assert all(importlib.import_module(name) for name in here)


# Floors and circles. tests/import_graph.py says what counts as an import.


def floor_faults(name: str, module: ast.Module) -> list[str]:
    """A line for each import from a floor above the module's own, and for each relative import."""
    part = name.split(".")[1]
    if part not in FLOORS:
        return [f"{name}: give it a floor, in FLOORS of tests/test_house.py"]
    faults = [f"{name}: relative import: {line}" for line in relative_imports(module)]
    for dotted in sorted(dotted_names(module) - {"xnn.__version__"}):
        other = dotted.split(".")[1]
        if other not in FLOORS:
            faults.append(f"{name} uses {dotted}: give it a floor, or name the module it is from")
        elif FLOORS[other] > FLOORS[part]:
            faults.append(f"{name} (floor {FLOORS[part]}) imports {dotted} (floor {FLOORS[other]})")
    return faults


@pytest.mark.parametrize("room", sorted({".".join(name.split(".")[:2]) for name in MODULES} - {"xnn"}))
def test_modules_import_from_their_own_floor_or_below(room):
    within = [name for name in MODULES if name == room or name.startswith(f"{room}.")]
    faults = {name: floor_faults(name, tree(name)) for name in within}
    assert {name: found for name, found in faults.items() if found} == {}


@pytest.mark.parametrize(
    "code",
    [
        "from xnn.layers import Dense",
        "from xnn import layers\nlayers.Dense(1, 1)",
        "import xnn.layers.dense",
        "import xnn\nxnn.layers.Dense(1, 1)",
        "import xnn\nxnn.Sequential()",
        "def f():\n    from xnn.training import Trainer",
        "import importlib\nimportlib.import_module('xnn.training')",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from xnn.layers import Dense",
        "from . import random",
        "from xnn.utils import anything",
    ],
)
def test_a_wrong_import_is_seen(code):
    assert floor_faults("xnn.backends.registry", ast.parse(code))


def test_a_new_module_must_be_given_a_floor():
    assert "give it a floor" in floor_faults("xnn.utils", ast.parse(""))[0]


@pytest.mark.parametrize(
    ("code", "files"),
    [
        ("from xnn.layers import Dense", {"xnn.layers.dense"}),
        ("from xnn.layers.dense import Dense", {"xnn.layers.dense"}),
        ("from xnn import layers\nlayers.Dense(1, 1)", {"xnn.layers.dense"}),
        ("from xnn import layers as rooms\ndef f():\n    return rooms.Dense", {"xnn.layers.dense"}),
        ("import xnn\nxnn.layers.Dense(1, 1)", {"xnn.layers.dense"}),
        ("import xnn\nxnn.Trainer()", {"xnn.training.trainer"}),
        ("from xnn import layers\nlayers.dense.Dense", {"xnn.layers.dense"}),
        ("import xnn.layers.dense", {"xnn.layers.dense"}),
        ("def f(layer: 'x'):\n    from xnn.errors import ShapeError", {"xnn.errors"}),
        ("if TYPE_CHECKING:\n    from xnn.errors import ShapeError", {"xnn.errors"}),
        ("name = 'xnn.backends.cupy_backend'", {"xnn.backends.cupy_backend"}),
        ("from xnn import layers\nvars(layers)", {"xnn.layers"}),
        ("import numpy\nnumpy.xnn.layers", set()),
    ],
)
def test_an_import_counts_as_the_file_that_defines_the_name(code, files):
    assert files_imported("xnn.somewhere", ast.parse(code)) == files


def test_no_files_import_one_another_in_a_circle():
    imports = {name: files_imported(name, tree(name)) for name in MODULES if name != "xnn"}
    assert imports["xnn.graph.autograd"] >= {"xnn.graph.backward", "xnn.graph.value", "xnn.ops.op"}
    assert imports["xnn.layers"] >= {"xnn.layers.dense", "xnn.layers.sequential"}
    assert list(cycles(imports)) == []
    circle = {**imports, "xnn.errors": {"xnn.graph.autograd"}}
    assert [name for group in cycles(circle) for name in group if name == "xnn.errors"] == ["xnn.errors"]


def test_only_the_bench_command_imports_the_benchmarks():
    importers = {
        name
        for name in MODULES
        if name != "xnn" and not name.startswith("xnn.benchmarks")
        if any(target.startswith("xnn.benchmarks") for target in files_imported(name, tree(name)))
    }
    assert importers == {"xnn.cli.bench"}


def test_circles_are_found():
    assert list(cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"e"}, "e": {"f"}, "f": {"d"}})) == [
        ["b", "c"],
        ["d", "e", "f"],
    ]
    assert list(cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()})) == []


def test_the_root_of_the_package_holds_only_the_files_of_the_design():
    assert sorted(path.stem for path in (ROOT / "xnn").glob("*.py")) == sorted(ROOT_FILES.split())


def test_only_backends_know_the_array_libraries():
    device = re.compile(r"cupyx?|array_api_compat|array_api_strict|torch|jax")
    for name in MODULES:
        if name.startswith("xnn.backends"):
            continue
        roots = set()
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots.add((node.module or "").partition(".")[0])
        assert [root for root in roots if device.fullmatch(root)] == [], name


# What an op may do.


#: They compute nothing: inputs of tests, and a look at the code of users' functions.
NO_OPS = ("xnn.ops.cases", "xnn.ops.portable")


@pytest.mark.parametrize(
    "name", [name for name in MODULES if name.startswith("xnn.ops") and name not in NO_OPS]
)
def test_ops_keep_to_the_array_api(name):
    assert op_faults(modules()[name].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "y = x @ w",
        "y = x ** 2",
        "x **= 2",
        "x += 1",
        "x *= scale",
        "x[0] = 1",
        "x[0] += 1",
        "x.y += 1",
        "del x[0]",
        "a, x[0] = 1, 2",
        "self.saved = x",
        "for x[0] in range(3): pass",
        "import numpy as np",
        "from numpy import exp",
        "import numpy.linalg",
        "import math",
        "y = xp.zeros(3, dtype=xp.float32, device=x.device)",
        "y = xp.astype(x, xp.int64)",
        "y = xp.astype(x, 'float64')",
        *(f"y = xp.{name}(3)" for name in sorted(CREATION)),
        "y = x.sum()",
        "y = x.reshape((2, 3))",
        "y = x.astype(d)",
        "y = x.T",
        "y = (x + 1).max(axis=0)",
        "y = xp.exp(x).copy()",
        "xp.add(x, 1, out=x)",
    ],
)
def test_what_an_op_may_not_do_is_seen(line):
    assert len(op_faults(f"def forward(self, xp, x):\n    {line}\n    return x, None")) >= 1


@pytest.mark.parametrize(
    "line",
    [
        "y = xp.matmul(x, w) * 2.0",
        "y = xp.zeros(3, dtype=x.dtype, device=x.device)",
        "y = xp.zeros_like(x)",
        "y = xp.linalg.vector_norm(x)",
        "x = x + 1",
        "n = 0\n    n += 1",
        "names, n = [], 0\n    n += 1",
        "y = xp.where(x > 0, xp.sum(x), xp.reshape(x, (2, -1)))",
        "ok = xp.isdtype(x.dtype, 'bool')",
        "from xnn.errors import ShapeError",
    ],
)
def test_what_an_op_may_do_is_let_through(line):
    assert op_faults(f"def forward(self, xp, x):\n    {line}\n    return x, None") == []


def arrays_in(saved: Any) -> list[np.ndarray]:
    if isinstance(saved, np.ndarray):
        return [saved]
    return [a for part in saved for a in arrays_in(part)] if isinstance(saved, (tuple, list)) else []


class Watch:
    """Makes arrays read-only, and tells at the end whether their bits have changed."""

    def __init__(self, things: Any) -> None:
        self.arrays = arrays_in(things)
        self.before = [(a.dtype, a.shape, a.tobytes()) for a in self.arrays]
        for array in self.arrays:
            array.flags.writeable = False

    def untouched(self) -> bool:
        return [(a.dtype, a.shape, a.tobytes()) for a in self.arrays] == self.before


def run_watched(op: ops.Op, inputs: list[Any], options: dict[str, Any]) -> bool:
    """Run forward and backward; return whether inputs, saved arrays and grad kept their bits."""
    given = Watch(inputs)
    y, saved = op.forward(np, *inputs, **options)
    kept = Watch([saved, y])
    grad = np.ones_like(y)
    seed = Watch([grad])
    op.backward(np, grad, saved)
    return bool(given.arrays) and given.untouched() and kept.untouched() and seed.untouched()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_op_leaves_its_inputs_grad_and_saved_alone(case, dtype):
    assert run_watched(case.op, draw(case, dtype), case.options)


def test_an_op_that_writes_is_seen():
    class Forward(ops.Op):
        def forward(self, xp, x):
            x[0] = 0.0
            return x, None

    class Backward(ops.Op):
        def forward(self, xp, x):
            return 2.0 * x, (x,)

        def backward(self, xp, grad, saved):
            grad *= 2.0
            return (grad,)

    class Behind(Backward):
        def backward(self, xp, grad, saved):
            grad.flags.writeable = True  # an error of read-only arrays would not be raised
            grad *= 2.0
            return (grad,)

    for op in (Forward(), Backward()):
        with pytest.raises(ValueError, match="read-only"):
            run_watched(op, [np.ones(3)], {})
    assert not run_watched(Behind(), [np.ones(3)], {})


#: Comparisons, sign and stop_gradient have no gradient; tests/ops/test_ops.py tests them.
WITHOUT_GRADIENT = {
    *("less", "less_equal", "greater", "greater_equal", "equal", "not_equal", "sign", "stop_gradient"),
}


def test_every_op_has_a_row_in_the_table_of_cases():
    exported = {name for name in ops.__all__ if isinstance(getattr(ops, name), ops.Op)} - WITHOUT_GRADIENT
    without = exported - {name for name in exported for case in CASES if case.op is getattr(ops, name)}
    assert without == set(), "give these ops a row in xnn/ops/cases.py"


def test_every_op_and_layer_is_on_the_menu():
    """An op that has a name of its own, and a layer that a model file can name."""
    named = {
        name: thing
        for path in MODULES
        if path.startswith("xnn.ops.")
        for name, thing in vars(importlib.import_module(path)).items()
        if isinstance(thing, ops.Op) and not name.startswith("_")
    }
    forgotten = {name for name, thing in named.items() if getattr(ops, name, None) is not thing}
    assert forgotten == set(), "name these ops in __all__ of their file and of xnn/ops/__init__.py"
    forgotten = {name for name, kind in layers.Layer.own.items() if getattr(layers, name, None) is not kind}
    assert forgotten == set(), "name these layers in __all__ of their file and of xnn/layers/__init__.py"


# Exports.


def exports(module: ast.Module) -> list[str] | None:
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def ruffs_order(name: str) -> tuple[int, str]:
    """Ruff's rule RUF022: constants come first, then classes, then other names."""
    return (0 if len(name) > 1 and name.isupper() else 1 if name[0].isupper() else 2), name


def documented(thing: Any) -> bool:
    """Whether a class or function has a docstring that is neither inherited nor generated by @dataclass."""
    text = (vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__) or ""
    made_up = is_dataclass(thing) and text.startswith(f"{thing.__name__}(")
    return bool(text.strip()) and not made_up


@pytest.mark.parametrize("name", [n for n in MODULES if "\n__all__ = " in modules()[n].read_text("utf-8")])
def test_exports_exist_are_sorted_and_documented(name):
    if extra_missing(name):
        pytest.skip("needs scikit-learn")
    module = importlib.import_module(name)
    names = module.__all__
    assert names == exports(tree(name)) == sorted(set(names), key=ruffs_order), (
        "`ruff check --fix` sorts __all__"
    )
    assert [export for export in names if not hasattr(module, export)] == []
    things = [getattr(module, export) for export in names]
    ours = [t for t in things if isinstance(t, (type, FunctionType)) and t.__module__.startswith("xnn")]
    assert [thing for thing in ours if not documented(thing)] == []


def test_a_missing_docstring_is_seen():
    class Child(ops.Op):
        pass

    @dataclass
    class Options:
        number: int = 0

    assert not any(documented(thing) for thing in (Child, Options, lambda: 0))
    assert documented(ops.Op)
    assert documented(documented)


def test_exports_are_sorted_as_ruff_sorts():
    assert sorted(["b", "a", "Op", "MSE", "Add", "CASES"], key=ruffs_order) == [
        *("CASES", "MSE", "Add", "Op", "a", "b"),
    ]


def test_every_module_of_the_package_says_what_it_exports():
    silent = [name for name in MODULES if exports(tree(name)) is None]
    assert silent == []


def test_exported_ops_are_documented():
    for name in ops.__all__:
        if isinstance(op := getattr(ops, name), ops.Op):
            assert documented(type(op)), name


def test_the_public_names_are_those_of_the_design():
    promised = (
        "Sequential Trainer load use_backend backend gradient_check grad value_and_grad data layers losses"
    )
    assert set(promised.split()) | {"optimizers", "graph"} <= set(xnn.__all__)
    assert set(xnn.__all__) <= set(dir(xnn))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        xnn.nonsense  # noqa: B018


# Sizes, names, packages, words.


def test_no_file_is_longer_than_400_lines_or_named_utils():
    paths = [*modules().values(), *(ROOT / "examples").rglob("*.py")]
    assert [p for p in paths if len(p.read_text(encoding="utf-8").splitlines()) > 400] == []
    assert [p for p in paths if re.search("util", str(p.relative_to(ROOT)))] == []


def test_pyproject_lists_the_packages_of_the_tree():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert set(table["packages"]) == packages
    assert len(table["packages"]) == len(packages)
    assert table["package-dir"] == {
        "xnn": "xnn",
        "xnn.backends": "backends",
        "xnn.benchmarks": "benchmarks",
    }
    # A folder without an __init__.py would be missing from the wheel.
    assert {path.parent for path in modules().values()} == {
        modules()[package].parent for package in table["packages"]
    }


@pytest.mark.parametrize("name", ["backends", "benchmarks"])
def test_the_link_that_makes_an_uninstalled_checkout_work(name):
    link = ROOT / "xnn" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)


def texts() -> Iterator[tuple[Path, str]]:
    """All text files of the checkout, less virtual environments, caches and build folders."""
    passed_over = re.compile(r"\.(?!ci$|github$).*|__pycache__|build|dist|site|shared|.*\.egg-info|.*venv.*")
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not passed_over.fullmatch(name)]
        for name in files:
            path = Path(folder, name)
            in_ci = ".ci" in path.parts
            if in_ci or path.suffix in {".py", ".toml", ".md", ".rst", ".txt", ".yml", ".yaml", ".cfg"}:
                try:
                    yield path, path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue


# Another project owns the name xnn on the package index. Ours is xnn-engine, and it is not published there.
SOMEBODY_ELSES = re.compile(r"pip3?\s+install\s+(-\S+\s+)*[\"']?xnn")


def test_nobody_is_sent_to_somebody_elses_package():
    found = dict(texts())
    assert {
        ROOT / "pyproject.toml",
        ROOT / "xnn" / "errors.py",
        ROOT / "backends" / "base.py",
    } <= found.keys()
    assert [path for path, text in found.items() if SOMEBODY_ELSES.search(text)] == []


@pytest.mark.parametrize("package", ["xnn", "xnn-engine", '"xnn[cupy13]"', "-U xnn", "\n    xnn"])
def test_a_wrong_command_is_seen(package):
    assert SOMEBODY_ELSES.search("try: pip " + f"install {package}")
    assert not SOMEBODY_ELSES.search("pip install . && xnn train")


# Errors.


def drawn_tree(drawing: str) -> dict[str, tuple[str | None, str | None]]:
    """{class: (its parent in the drawn tree, the built-in exception in brackets)}."""
    found: dict[str, tuple[str | None, str | None]] = {}
    path: list[str] = []
    for line in drawing.splitlines():
        row = re.match(r"    ((?:[│├└ ][─ ]{2} )*)(\w+(?:Error|Warning))(?:\((\w+)\))?(?:\s|$)", line)
        if row:
            depth = len(row[1]) // 4
            path[depth:] = [row[2]]
            found[row[2]] = (path[depth - 1] if depth else None, row[3])
    return found


def real_tree() -> dict[str, tuple[str | None, str | None]]:
    found: dict[str, tuple[str | None, str | None]] = {}
    for name, cls in vars(errors).items():
        if isinstance(cls, type):
            own = [base.__name__ for base in cls.__bases__ if base.__module__ == errors.__name__]
            other = [base.__name__ for base in cls.__bases__ if base.__module__ == "builtins"]
            other = other if own else []  # the drawing omits the root's base, Exception
            assert len(own) <= 1
            assert len(other) <= 1
            found[name] = (*own, None)[0], (*other, None)[0]
    return found


def test_the_tree_of_errors_is_drawn_as_it_is():
    assert drawn_tree(errors.__doc__) == real_tree()
    assert set(real_tree()) == set(errors.__all__)
    assert [name for name, (parent, _) in real_tree().items() if parent is None] == ["XnnError"]
    wrong = errors.__doc__.replace("│   ├── UnknownBackendError", "├── UnknownBackendError")
    assert drawn_tree(wrong) != real_tree()


def test_errors_are_defined_nowhere_else():
    exceptions = {
        n for n, v in vars(builtins).items() if isinstance(v, type) and issubclass(v, BaseException)
    }
    for name in MODULES:
        if name != "xnn.errors":
            bases = {
                ast.unparse(base).rpartition(".")[2]
                for node in ast.walk(tree(name))
                if isinstance(node, ast.ClassDef)
                for base in node.bases
            }
            assert not bases & (exceptions | set(errors.__all__)), name
