"""Runs the tests in an environment with the oldest packages that pyproject.toml allows.

    python .ci/oldest.py                the whole suite
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

ROOT = Path(__file__).resolve().parent.parent
#: The extras whose packages the tests use.
EXTRAS = ("fast", "image", "keras", "onnx", "plot", "scipy", "sklearn", "tensorboard", "test")
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
    subprocess.run([interpreter(table), "-m", "venv", "--clear", home], check=True)
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch, "oldest.txt")
        constraints.write_text(wanted, encoding="utf-8")
        install = [python, "-m", "pip", "install", "-q", "-c", constraints]
        subprocess.run([*install, "setuptools"], check=True)
        itself = f"{ROOT}[{','.join(EXTRAS)}]"
        subprocess.run([*install, "--no-build-isolation", "-e", itself], check=True)
    made.write_text(wanted, encoding="utf-8")
    return python


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
