"""Runs the test suite with other BLAS kernels, numbers of threads and Pythons, and each test file alone.

    python .ci/matrix.py                            what .ci/full has
    python .ci/matrix.py --only Haswell             the suite with one kernel (2 thread counts)
    python .ci/matrix.py --only Haswell --threads 2 a single run of the suite
    python .ci/matrix.py --files                    each test file alone, and nothing else
    python .ci/matrix.py --only Zen tests/ops       what follows goes to pytest

OpenBLAS has a kernel for each kind of processor, and each kernel adds numbers in another order. The environment
variable OPENBLAS_CORETYPE chooses the kernel, OMP_NUM_THREADS the number of threads. Processors with AVX2 but without
AVX-512 get Haswell or Zen; processors with neither get an older one such as Prescott. "unset" leaves the choice to
OpenBLAS.

.ci/run has the suite with the kernel unset and one thread. .ci/full adds Haswell, Prescott, threads unset and the
newer Pythons that are here, each once and not in all combinations: the suite in one process with Haswell and threads
unset, and each file but those of CuPy alone with Prescott and one thread. The first newer Python runs the one, the
second the other, and each further one the suite once more, with both unset. Where there is none, this Python takes
its place.

A line is printed when a run ends: `Python, kernel, threads: N passed, M failed, seconds`. The failures follow at the
end; the whole output of each failed run is kept in a folder that is named there. As many runs as there are processor
cores go side by side. The exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import environments
from environments import ROOT

KERNELS = ("Haswell", "Zen", "Prescott", "unset")
THREADS = ("1", "2", "unset")
#: Newer than the oldest that the project allows.
PYTHONS = ("3.12", "3.13", "3.14")
# Variables that choose kernels or threads. A run has only those that it sets itself.
_CONTROLS = (
    *("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
    *("GOTO_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
)
_NO_TESTS = 5  # pytest's exit code for a file whose tests are all deselected


@dataclass(frozen=True)
class Run:
    """One call of pytest."""

    kernel: str
    threads: str
    arguments: tuple[str, ...] = ()
    alone: bool = False
    version: str = ""  # of the Python; "": this one

    @property
    def name(self) -> str:
        python = f"Python {self.version}, " if self.version else ""
        where = f"{python}{self.kernel}, {self.threads} thread" + ("" if self.threads == "1" else "s")
        return f"{where}, {self.arguments[0]} alone" if self.alone else where

    @property
    def python(self) -> str | Path:
        return python_of(self.version) if self.version else sys.executable

    def environment(self) -> dict[str, str]:
        given = {name: value for name, value in os.environ.items() if name not in _CONTROLS}
        if self.kernel != "unset":
            given["OPENBLAS_CORETYPE"] = self.kernel
        if self.threads != "unset":
            given["OMP_NUM_THREADS"] = self.threads
        return given


@dataclass
class Outcome:
    """What pytest said of a run."""

    run: Run
    code: int
    output: str
    seconds: float
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        last = (self.output.strip().splitlines() or [""])[-1]
        for number, what in re.findall(r"(\d+) (passed|failed|error)", last):
            self.counts[what] += int(number)

    @property
    def failed(self) -> bool:
        return self.code not in (0, _NO_TESTS)

    def line(self) -> str:
        failed = self.counts["failed"] + self.counts["error"]
        ending = "" if failed or not self.failed else f", pytest ended with exit code {self.code}"
        return f"{self.run.name}: {self.counts['passed']} passed, {failed} failed, {self.seconds:.0f} seconds{ending}"

    def failures(self) -> list[str]:
        return re.findall(r"^(?:FAILED|ERROR) .*", self.output, re.M) or self.output.splitlines()[-10:]


@functools.cache
def python_of(version: str) -> Path:
    """The environment's Python of a version, with the packages of the tests."""
    found = shutil.which(f"python{version}") or ""
    return environments.environment(f"python{version}", "-e", f"{ROOT}[test]", interpreter=found)


def pythons() -> list[str]:
    """The newer Pythons that are here and work; pyenv has commands for others, too."""
    return [
        version
        for version in PYTHONS
        if (found := shutil.which(f"python{version}"))
        and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0
    ]


def execute(run: Run) -> Outcome:
    start = time.perf_counter()
    # Runs side by side must not share a cache of last failures.
    command = [run.python, "-m", "pytest", "-p", "no:cacheprovider", *run.arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=run.environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return Outcome(run, done.returncode, done.stdout, time.perf_counter() - start)


def check_kernels(kernels: list[str]) -> None:
    """Print which kernel NumPy's BLAS takes for each setting: some builds use Haswell's for Zen."""
    program = (
        "import numpy, threadpoolctl\n"
        "print(*(b.get('architecture') for b in threadpoolctl.threadpool_info() if b['user_api'] == 'blas'))"
    )
    for kernel in kernels:
        environment = Run(kernel, "1").environment()
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, text=True, capture_output=True
        )
        taken = done.stdout.strip() or "unknown"
        print(f"kernel {kernel}: BLAS uses {taken}", flush=True)


def planned(options: argparse.Namespace, arguments: tuple[str, ...]) -> list[Run]:
    if options.only or options.threads or (arguments and not options.files):
        pairs = [(k, t) for t in options.threads or ("1", "unset") for k in options.only or KERNELS]
        return [Run(kernel, threads, arguments) for kernel, threads in pairs]
    first, second, *others = [*pythons(), "", ""]
    runs = [Run("Haswell", "unset", version=first)] if not options.files else []
    files = sorted(f for f in (ROOT / "tests").rglob("test_*.py") if not f.name.startswith("test_cuda_"))
    runs += [Run("Prescott", "1", (str(f.relative_to(ROOT)), *arguments), True, second) for f in files]
    if not options.files:
        runs += [Run("unset", "unset", version=version) for version in others if version]
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run the test suite with several OpenBLAS kernels and thread counts, and each test file alone."
    )
    parser.add_argument("--only", action="append", choices=KERNELS, help="only this kernel; may be repeated")
    parser.add_argument(
        "--threads", action="append", choices=THREADS, help="only this OMP_NUM_THREADS; as --only"
    )
    parser.add_argument("--files", action="store_true", help="only each test file alone")
    options, arguments = parser.parse_known_args()
    runs = planned(options, tuple(arguments))
    check_kernels(list(dict.fromkeys(run.kernel for run in runs)))
    for version in dict.fromkeys(run.version for run in runs if run.version):
        python_of(version)  # before several runs ask for it at once
    failed = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in as_completed([pool.submit(execute, run) for run in runs]):
            outcome = done.result()
            print(outcome.line(), flush=True)
            if outcome.failed:
                failed.append(outcome)
    if not failed:
        print(f"{len(runs)} runs, no failure")
        return 0
    kept = Path(tempfile.mkdtemp(prefix="xnn-matrix-"))
    print(f"\n{len(failed)} of {len(runs)} runs failed; their whole output is in {kept}")
    for number, outcome in enumerate(failed):
        (kept / f"{number}.txt").write_text(outcome.output, encoding="utf-8")
        print(f"\n{outcome.line()} ({number}.txt)", *outcome.failures(), sep="\n  ")
    return 1


if __name__ == "__main__":
    sys.exit(main())
