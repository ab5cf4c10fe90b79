"""Environments of Python in .venv/, made and filled by the pip of the Python that runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["ROOT", "environment", "fill", "make"]

ROOT = Path(__file__).resolve().parent.parent


def environment(name: str, *packages: str, interpreter: str = sys.executable) -> Path:
    """The Python of the environment .venv/NAME with these packages, which is made unless it was made of the same.

    It is made again when pyproject.toml has changed. Remove the folder for the newest packages.
    """
    home = ROOT / ".venv" / name
    made = home / "installed.txt"
    wanted = "\n".join((interpreter, *packages, (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    if not made.exists() or made.read_text(encoding="utf-8") != wanted:
        fill(make(home, interpreter), *packages)
        made.write_text(wanted, encoding="utf-8")
    return _python(home)


def make(home: Path, interpreter: str = sys.executable) -> Path:
    """Make an empty environment of an interpreter, in the place of one that is there. Returns its Python."""
    subprocess.run([interpreter, "-m", "venv", "--clear", "--without-pip", home], check=True)
    return _python(home)


def fill(python: Path, *packages: str | Path) -> None:
    """Install packages in the environment of this Python; they are given as to `pip install`."""
    pip = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "-q", *packages], cwd=ROOT, check=True)


def _python(home: Path) -> Path:
    return home / ("Scripts" if os.name == "nt" else "bin") / "python"
