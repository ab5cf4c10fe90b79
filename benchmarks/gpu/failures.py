"""Provokes failures of a GPU, each in a process of its own, and shows what xnn says.

    python -m xnn.benchmarks.gpu.failures [--json FILE]

Each must end with an exit code of 1 to 6 and say why in one line, without a traceback. A failure that cannot be
provoked on this machine is reported, and is no fault. The exit code is 1 if a traceback was shown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence

__all__ = ["main"]

_TRAIN = ("-m", "xnn", "train", "--backend", "cupy", "--dataset", "synthetic", "--epochs", "1", "--quiet")
#: What goes wrong: environment variables, and the arguments of Python.
_CASES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "no GPU is visible": ({"CUDA_VISIBLE_DEVICES": ""}, _TRAIN),
    "too little memory": (
        {"CUPY_GPU_MEMORY_LIMIT": str(40 << 20)},
        (*_TRAIN, "--hidden", "4000,4000", "--batch-size", "5000"),
    ),
}


def _told(case: str) -> dict[str, str | int]:
    """What xnn said: its exit code and the last line on standard error, and what to think of it."""
    variables, arguments = _CASES[case]
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.strip().splitlines() or [""]
    if "Traceback" in done.stderr:
        verdict = "A TRACEBACK"
    elif done.returncode:
        verdict = "one line" if len(lines) == 1 else f"{len(lines)} lines"
    else:
        verdict = "could not be provoked here"
    return {"exit": done.returncode, "said": lines[-1], "verdict": verdict}


def main(arguments: Sequence[str]) -> int:
    """Print what xnn says of each failure. Returns 1 if a traceback was among it, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m xnn.benchmarks.gpu.failures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json")
    options = parser.parse_args(arguments)
    found = {case: _told(case) for case in _CASES}
    for case, about in found.items():
        print(f"{case}: {about['verdict']}, exit code {about['exit']}: {about['said']}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file)
    return 1 if any(about["verdict"] == "A TRACEBACK" for about in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
