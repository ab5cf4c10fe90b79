"""Builds an sdist, a wheel from the sdist, and installs the wheel in a fresh environment.

The installed modules must be those of the checkout, each must import, and `xnn train` must run.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command, **options):
    """Run a command and return what it prints. If it fails, print that and exit."""
    done = subprocess.run(command, text=True, capture_output=True, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def modules(folder, package):
    """The full module names of the Python files in a folder."""
    found = {
        package + "." + ".".join(p.relative_to(folder).with_suffix("").parts) for p in folder.rglob("*.py")
    }
    return {name.removesuffix(".__init__") for name in found}


with tempfile.TemporaryDirectory() as scratch:
    work = Path(scratch)
    run(sys.executable, "-m", "build", "--outdir", work / "dist", ROOT)  # builds the wheel from the sdist
    (wheel,) = (work / "dist").glob("*.whl")
    venv.create(work / "env", with_pip=True)
    python = work / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "-q", wheel)
    expected = modules(ROOT / "backends", "xnn.backends") | modules(ROOT / "benchmarks", "xnn.benchmarks")
    linked = {"backends", "benchmarks"}  # symlinks in a checkout; their files are counted already
    folders = [p for p in (ROOT / "xnn").rglob("*") if p.is_dir() and p.name not in linked]
    for folder in (ROOT / "xnn", *folders):
        package = ".".join(folder.relative_to(ROOT).parts)
        expected |= {f"{package}.{p.stem}".removesuffix(".__init__") for p in folder.glob("*.py")}
    home = Path(
        run(python, "-c", "import xnn, pathlib; print(pathlib.Path(xnn.__file__).parent)", cwd=work).strip()
    )
    installed = modules(home, "xnn")
    assert installed == expected, f"missing {expected - installed}, unexpected {installed - expected}"
    assert (home / "py.typed").exists()
    for name in ("backends", "benchmarks"):
        assert not (home.parent / name).exists(), f"the wheel installs a top-level package called {name}"
    for name in sorted(installed - {"xnn.__main__"}):
        optional = any(part in name for part in ("cupy", "compiled", ".jit"))
        run(python, "-c", "pass" if optional else f"import {name}", cwd=work)
    run(python, "-m", "xnn", "train", "--dataset", "synthetic", "--epochs", "1", "--quiet", cwd=work)
    print(f"{wheel.name}: {len(installed)} modules, as in the tree; xnn train runs")
