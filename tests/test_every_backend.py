"""Every test that runs on a backend runs on all of them: by a fixture, not by a list of its own."""

from __future__ import annotations

import ast

import pytest
from import_graph import ROOT

NAMES = {"numpy", "cupy", "array-api-strict", "STRICT"}


def lists_of_backends(text: str) -> list[str]:
    """Each list, tuple or set of a test file that names two backends, and each loop over `available_backends()`."""
    found: list[str] = []
    if sum(name in text for name in NAMES) < 2 and "available_backends" not in text:
        return found
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            words = {getattr(item, "value", getattr(item, "id", None)) for item in node.elts}
            if len(NAMES & {word for word in words if isinstance(word, str)}) > 1:
                found.append(ast.unparse(node))
        if isinstance(node, ast.For | ast.comprehension) and "available_backends" in text:
            loop = ast.unparse(node.iter)
            found += [loop] if "available_backends(" in loop else []
    return found


#: Lists of names that no test runs on, and why.
NOT_RUN_ON = {
    "backends/test_backends.py": "the registry's own list, and which backend a `with` block chose",
    "cli/test_cli.py": "words of an error message",
    "cli/test_info_command.py": "the backends that may be missing, as xnn info names them",
    "test_every_backend.py": "this file",
    "estimators/test_array_libraries.py": "from which library samples come, and to which predictions go",
    "training/test_checkpoint.py": "from which backend a run moves, and to which",
    "training/test_placement.py": "from which backend a model moves, and to which",
    "benchmarks/test_gpu_bench.py": "the bench compares the CPU and the GPU",
    "fuzz/test_random_commands.py": "words for command lines; a backend that is missing is one of the cases",
}


def test_no_test_has_a_list_of_backends_of_its_own():
    """They take the fixture `lib` or `other` of conftest.py, which has them all, CuPy too."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        name = path.relative_to(ROOT / "tests").as_posix()
        if path.name.startswith("test_cuda_"):  # each compares a run on the GPU with the same run on the CPU
            continue
        if lists := lists_of_backends(path.read_text(encoding="utf-8")):
            found[name] = lists
    assert found.keys() == NOT_RUN_ON.keys(), found


@pytest.mark.parametrize(
    "code",
    [
        '@pytest.mark.parametrize("name", ["numpy", "array-api-strict"])\ndef test(name): pass',
        '@pytest.mark.parametrize("name", ("numpy", STRICT))\ndef test(name): pass',
        'for name in ("cupy", "numpy"): run(name)',
        "kinds = [name for name, reason in available_backends().items() if not reason]",
    ],
)
def test_a_list_of_backends_is_seen(code):
    assert lists_of_backends(code)
