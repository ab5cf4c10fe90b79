"""Runs on the emulated GPU (tests/cuda_emulator) what needs a GPU: CuPy's part of the tests, and commands.

    python .ci/emulator.py                 what .ci/run has
    python .ci/emulator.py --only checks   these parts of nvrtc, tests, checks, verify, examples
    python .ci/emulator.py --only long     what .ci/full has: each CUDA source for each kind of GPU, the long
                                           examples, and all variants of the tests

The environment is .venv/cupy, with CuPy's wheel and the few packages that the emulator needs. The line of each
command ends with its seconds. Where the emulator cannot run, for example without g++, a line says so, and nothing
has failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import environments
from environments import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from cuda_emulator import build

PYTHON = ROOT / ".venv" / "cupy" / "bin" / "python"
#: The sizes at which each example runs here, as arguments of its `main`; None: the script has no sizes.
EXAMPLES: dict[str, str | None] = {
    "adversarial": None,
    "blocks": "iterations=100",
    "miniflow": "",
    "mnist_mlp": "'synthetic', epochs=1, plot=None, progress=False",
    "perceptron": "'synthetic', iterations=11",
    "q_network": None,
    "transfer": None,
    "two_layer_net": "'synthetic', iterations=50",
}
#: These take minutes on the emulator.
LONG_EXAMPLES: dict[str, str | None] = {
    "gan": None,
    "lenet5": "'synthetic', epochs=1, progress=False",
    "vae": None,
}


def main() -> None:
    parts = {
        "nvrtc": nvrtc,
        "tests": tests,
        "checks": checks,
        "verify": verify,
        "examples": examples,
        "long": long,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=parts, help="these parts")
    only = parser.parse_args().only
    environments.environment("cupy", "-e", f"{ROOT}[test,mpi]", "mpich", *build.PACKAGES)
    code = "from cuda_emulator import build; print(build.obstacle() or build.everything())"
    done = subprocess.run(
        [PYTHON, "-c", code], env=environment(), text=True, stdout=subprocess.PIPE, check=True
    )
    if reason := done.stdout.strip():
        print(f"CuPy's part of the tests is left out: {reason}")
        return
    for name, part in parts.items():
        if name in only if only else name != "long":
            part()


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "tests"), **variables}


def run(*arguments: str, **variables: str) -> None:
    """Run Python, say how long it took, and end if it failed."""
    start = time.perf_counter()
    done = subprocess.run([PYTHON, *arguments], cwd=ROOT, env=environment(**variables), check=False)
    said = " ".join([*(f"{name}={value}" for name, value in variables.items()), *arguments])
    print(f"{said}: {time.perf_counter() - start:.0f} seconds", flush=True)
    if done.returncode:
        sys.exit(f"failed with exit code {done.returncode}")


def emulated(*arguments: str, **variables: str) -> None:
    run("-m", "cuda_emulator", *arguments, **variables)


def nvrtc(*words: str) -> None:
    """Every CUDA source of the project compiles for real GPUs: the oldest that runs it, or `all` of them."""
    run("-m", "cuda_emulator.nvrtc", *words)


def tests(*options: str) -> None:
    """Every test that takes a backend or needs CuPy, and the emulator's own. They attach the device themselves.

    Many run with some of their variants, and with all of them if `options` are `-m "slow or not slow"`.
    """
    words = " or ".join(("cupy", "cuda", "emulated", "gpu", "devices", "persistent", "dtypes"))
    given = ("-n", "auto", "--dist", "loadfile", "-p", "no:cacheprovider", "-rs", "-k", words)
    run("-m", "pytest", *given, *options)


def checks() -> None:
    for numerics in ("fast", "exact"):
        emulated("-m", "xnn", "check", "--backend", "cupy", XNN_NUMERICS=numerics)


def verify() -> None:
    """A run on the CPU and the same run on the device have the same bits."""
    sizes = ("--dataset", "synthetic", "--hidden", "16", "--steps", "20")
    emulated("-m", "xnn", "verify", "backend=numpy", "backend=cupy", "--numerics", "exact", *sizes)


def examples() -> None:
    here = {path.stem for path in ROOT.glob("examples/*.py")}
    if here != (EXAMPLES | LONG_EXAMPLES).keys():
        sys.exit(
            f"the examples are {sorted(here)}: list each in EXAMPLES or LONG_EXAMPLES of .ci/emulator.py"
        )
    run_examples(EXAMPLES)


def long() -> None:
    """What .ci/full has. Among all variants of the tests is a dry run of benchmarks/gpu.sh."""
    nvrtc("all")
    run_examples(LONG_EXAMPLES)
    tests("-m", "slow or not slow")


def run_examples(table: dict[str, str | None]) -> None:
    for name, sizes in table.items():
        call = "" if sizes is None else f"['main']({sizes})"
        code = f"import runpy; runpy.run_path('examples/{name}.py'){call}"
        emulated("-c", code, XNN_BACKEND="cupy")


if __name__ == "__main__":
    main()
