"""Builds an sdist, a wheel from it, and uses both in fresh environments.

The sdist must hold every file of the checkout. The wheel must hold the modules of the checkout and nothing else, as
its RECORD says; each module must import unless it needs an extra, and `xnn train` must run without any extra.
Unpacked in a folder with spaces, the sdist must install by `pip install`, and its tests must run.
"""

import base64
import csv
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from environments import ROOT, fill, make

LINKS = ("backends", "benchmarks")  # symlinks in a checkout's xnn/; their files are counted where they lie
#: Tests that need no data and no extra, and few seconds.
SOME_TESTS = ("tests/data/test_data.py", "tests/ops/test_ops.py", "tests/test_names.py")
#: The packages of extras, which are not installed, so that a module that needs one cannot be imported.
EXTRAS = ("cupy", "llvmlite", "numba", "sklearn")
#: Imports each module in a process of its own. These are forks of one that has NumPy already, which saves a minute.
IMPORT = """
import importlib, os, sys, traceback
import numpy

extras, names = sys.argv[1].split(","), sys.argv[2:]
for name in names:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing = (error.__cause__ or error).name
            if missing.partition(".")[0] not in extras:
                print(f"{name} needs {missing}", flush=True)
                os._exit(1)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{name} cannot be imported")
"""


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


def expected_modules():
    """The full module names of the checkout."""
    found = modules(ROOT / "backends", "xnn.backends") | modules(ROOT / "benchmarks", "xnn.benchmarks")
    for folder in (
        ROOT / "xnn",
        *(p for p in (ROOT / "xnn").rglob("*") if p.is_dir() and p.name not in LINKS),
    ):
        package = ".".join(folder.relative_to(ROOT).parts)
        found |= {f"{package}.{p.stem}".removesuffix(".__init__") for p in folder.glob("*.py")}
    return found


def known_files():
    """The files that git knows. Say so and exit if there are modules that it does not know, or files are gone."""
    listed = ("git", "ls-files", "-z")
    known, new, gone = (
        {name for name in run(*listed, *more, cwd=ROOT).split("\0") if name}
        for more in ((), ("--others", "--exclude-standard", "xnn", "backends", "benchmarks"), ("--deleted",))
    )
    if new or gone:
        sys.exit(
            "The wheel is built of the files that git knows, and is compared with the checkout.\n"
            + "".join(f"git does not know {name}: git add it, or move it away\n" for name in sorted(new))
            + "".join(f"{name} is not there: git rm it, or git restore it\n" for name in sorted(gone))
        )
    return known


def copy_checkout(folder):
    """Copy the files that git knows. To build in the checkout would disturb other installations from it."""
    for name in sorted(known_files()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)


def check_sdist(sdist):
    """Compare the files of an sdist with those that git knows."""
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    missing = known_files() - held - {f"xnn/{name}" for name in LINKS} - {".gitignore"}
    assert not missing, f"{sdist.name} lacks {sorted(missing)}"
    assert not [name for name in held if "__pycache__" in name]


def check_wheel(wheel):
    """Check the names in a wheel, and the size and digest of each file against its RECORD."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (record,) = (name for name in names if name.endswith(".dist-info/RECORD"))
        about = record.removesuffix("RECORD")
        rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
        assert {name for name, _, _ in rows} == names, "RECORD lists other files than the wheel holds"
        for name, digest, size in rows:
            content = archive.read(name)
            if name != record:
                sha256 = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                assert (digest, size) == (f"sha256={sha256}", str(len(content))), (
                    f"RECORD is wrong about {name}"
                )
        metadata = archive.read(f"{about}METADATA").decode()
    others = [name for name in names if not name.startswith(("xnn/", about)) or "/tests/" in name]
    assert not others, f"{wheel.name} holds {others}"
    assert {"xnn/py.typed", f"{about}entry_points.txt", f"{about}licenses/LICENSE"} <= names
    for line in (
        "Author: the xnn authors",
        "License-Expression: MIT",
        "Description-Content-Type: text/markdown",
    ):
        assert f"\n{line}\n" in metadata, f"the wheel's metadata lack {line!r}"


def check_installed(python, work):
    """Compare the installed modules with the checkout's, import each, and train without any extra."""
    home = Path(
        run(python, "-c", "import xnn, pathlib; print(pathlib.Path(xnn.__file__).parent)", cwd=work).strip()
    )
    installed, expected = modules(home, "xnn"), expected_modules()
    assert installed == expected, f"missing {expected - installed}, unexpected {installed - expected}"
    for name in LINKS:
        assert not (home.parent / name).exists(), f"the wheel installs a top-level package called {name}"
    run(python, "-c", IMPORT, ",".join(EXTRAS), *sorted(installed - {"xnn.__main__"}), cwd=work)
    run(python, "-m", "xnn", "train", "--dataset", "synthetic", "--epochs", "1", "--quiet", cwd=work)
    run(python, "-m", "xnn", "info", cwd=work)
    return len(installed)


def check_unpacked(sdist, work):
    """Install an sdist that is unpacked in a folder with spaces, and run some of its tests."""
    folder = work / "a folder with spaces"
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    python = make(folder / "its environment")
    fill(python, unpacked, "pytest>=8", "hypothesis>=6.100", "array-api-strict>=2.3.1,!=2.4", "mpmath")
    # `python -m pytest` would import the folder xnn of the sdist, which has no backends: a checkout has links there.
    said = run(python.with_name("pytest"), "-p", "no:cacheprovider", *SOME_TESTS, cwd=unpacked)
    return said.strip().splitlines()[-1]


with tempfile.TemporaryDirectory() as scratch:
    work = Path(scratch)
    copy_checkout(work / "source")
    run(sys.executable, "-m", "build", "--outdir", work / "dist", work / "source")  # the wheel from the sdist
    (sdist,), (wheel,) = (work / "dist").glob("*.tar.gz"), (work / "dist").glob("*.whl")
    check_sdist(sdist)
    check_wheel(wheel)
    python = make(work / "env")
    fill(python, wheel)
    count = check_installed(python, work)
    print(f"{wheel.name}: {count} modules, as in the tree; xnn train runs")
    print(f"{sdist.name}: every file of the checkout; its tests: {check_unpacked(sdist, work)}")
