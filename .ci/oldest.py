"""Runs the tests in an environment with the oldest packages that pyproject.toml allows.

    python .ci/oldest.py                the whole suite
    python .ci/oldest.py --chosen -x    the tests that .ci/run has: those nearest to each package
    python .ci/oldest.py tests/cli -x   what follows goes to pytest
    python .ci/oldest.py --floors       prints the versions, and does nothing else
    python .ci/oldest.py --install      makes the environment, and does nothing else

The versions are read from pyproject.toml, also that of setuptools, which builds the package. What these packages need
in turn is the newest that fits. The environment is .venv/oldest, of the oldest Python that pyproject.toml allows if
that is installed, else of the Python that runs this file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # tests/test_requirements.py loads this file
from environments import ROOT, fill, make

#: The extras whose packages the tests use.
EXTRAS = ("fast", "image", "keras", "onnx", "plot", "scipy", "sklearn", "tensorboard", "test")
#: The tests nearest to each package: what they call of it is what xnn calls.
CHOSEN = (
    "tests/backends/test_backends.py",  # array-api-compat, array-api-strict
    "tests/backends/test_threads.py",  # threadpoolctl
    "tests/cli/test_cli.py",  # click and rich
    "tests/cli/test_export_command.py",
    "tests/cli/test_train_command.py",
    "tests/cli/test_train_options.py",
    "tests/cli/test_values.py",
    "tests/data/test_downloads.py",  # pooch
    "tests/data/test_images.py",  # Pillow
    "tests/estimators/test_array_libraries.py",  # scikit-learn and SciPy
    "tests/estimators/test_checks_of_scikit_learn.py",
    "tests/estimators/test_inputs.py",
    "tests/estimators/test_pickles_and_compositions.py",
    "tests/exchange/test_from_keras.py",  # h5py
    "tests/exchange/test_from_onnx.py",  # ONNX
    "tests/exchange/test_to_onnx.py",  # ONNX Runtime
    "tests/kernels/test_jit.py",  # Numba
    "tests/layers/test_model_files.py",  # safetensors
    "tests/layers/test_weights.py",  # Matplotlib
    "tests/training/test_tensorboard.py",  # TensorBoard
    "tests/training/test_training.py",
)
#: pyparsing 3.3 warns about what matplotlib 3.8 calls, and the tests take warnings for errors.
OTHERS = ("pyparsing<3.3",)


def project() -> dict[str, Any]:
    """What pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def floors(table: dict[str, Any]) -> list[str]:
    """A line `package==version` for each requirement. Raises ValueError for one without an oldest version."""
    listed = [*table["build-system"]["requires"], *table["project"]["dependencies"]]
    for extra in EXTRAS:
        listed += table["project"]["optional-dependencies"][extra]
    found = {}
    for requirement in listed:
        if requirement.startswith(
            table["project"]["name"] + "["
        ):  # its own extras, which are listed here, too
            continue
        match = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)", requirement)
        if match is None:
            raise ValueError(
                f"pyproject.toml: {requirement!r} has no oldest version: write {requirement}>=..."
            )
        name, version = match.groups()
        if found.setdefault(name, version) != version:
            raise ValueError(f"pyproject.toml: {name} has two oldest versions, {found[name]} and {version}")
    return [f"{name}=={version}" for name, version in found.items()]


def interpreter(table: dict[str, Any]) -> str:
    """The oldest Python that the project allows, if it is here, else this one."""
    oldest = table["project"]["requires-python"].removeprefix(">=")
    return shutil.which(f"python{oldest}") or sys.executable


def main(arguments: list[str]) -> int:
    table = project()
    lines = floors(table)
    print(*lines, sep="\n", flush=True)
    if arguments == ["--floors"]:
        return 0
    python = environment(table, lines)
    if arguments == ["--install"]:
        return 0
    if arguments[:1] == ["--chosen"]:
        arguments = [*CHOSEN, *arguments[1:]]
    subprocess.run([python, "-c", "import sys; print('Python', sys.version)"], check=True)
    return subprocess.run([python, "-m", "pytest", "-p", "no:cacheprovider", *arguments], cwd=ROOT).returncode


def environment(table: dict[str, Any], lines: list[str]) -> Path:
    """The Python of the environment, which is made anew unless it has these versions already.

    What these packages need in turn stays as it was: remove .venv/oldest for the newest.
    """
    home = ROOT / ".venv" / "oldest"
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    made = home / "oldest.txt"
    wanted = "\n".join([f"# {interpreter(table)} {ROOT} {EXTRAS}", *lines, *OTHERS]) + "\n"
    if python.exists() and made.exists() and made.read_text(encoding="utf-8") == wanted:
        return python
    make(home, interpreter(table))
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch, "oldest.txt")
        constraints.write_text(wanted, encoding="utf-8")
        fill(python, "-c", constraints, "setuptools")
        itself = f"{ROOT}[{','.join(EXTRAS)}]"
        fill(python, "-c", constraints, "--no-build-isolation", "-e", itself)
    made.write_text(wanted, encoding="utf-8")
    return python


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
