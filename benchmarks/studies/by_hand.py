"""The time of a training step written by hand, in this checkout and in another one.

    python -m xnn.benchmarks.studies.by_hand --against PATH [--turns 15] [--threads 1]

A step by hand is what a user writes without the Trainer: model.forward, loss.forward, loss.backward,
model.backward, optimizer.step. Each checkout runs in a process of its own, which is started with PYTHONPATH set to
that checkout and runs this file. The processes take turns, so that both meet the same state of the machine.

Each line of the table names a network and a batch size. It gives the median time of a step in both checkouts in
microseconds, the ratio of the two medians, and whether both computed the same losses to the last bit. Without
--against only this checkout is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

# Only public names of version 0.1 may be imported here: the other checkout runs this file too.
from xnn import layers
from xnn.losses import SoftmaxCrossEntropy
from xnn.optimizers import SGD

__all__ = ["CASES", "main"]

# Widths, batch size, steps in a turn.
CASES: tuple[tuple[tuple[int, ...], int, int], ...] = (
    ((784, 100, 200, 10), 32, 400),
    ((784, 100, 200, 10), 128, 200),
    ((20, 10, 3), 8, 1000),
)

_ROOT = Path(__file__).resolve().parents[2]
_SETTLE = 0.15  # seconds between two turns: OpenBLAS's threads spin for 0.11 s after a product
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class _Training:
    """One network, trained by hand on one batch of random numbers."""

    def __init__(self, widths: Sequence[int], batch: int) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.random((batch, widths[0]), dtype=np.float32)
        self.y = rng.integers(0, widths[-1], batch)
        stack: list[Any] = []
        for inputs, outputs in itertools.pairwise(widths):
            stack += [layers.Dense(inputs, outputs), layers.ReLU()]
        self.model = layers.Sequential(*stack[:-1], seed=0)
        self.model.forward(self.x)  # builds the weights
        self.loss, self.optimizer = SoftmaxCrossEntropy(), SGD(0.1)
        self.parameters = self.model.parameters()

    def step(self) -> float:
        loss = self.loss.forward(self.model.forward(self.x), self.y)
        self.model.backward(self.loss.backward())
        self.optimizer.step(self.parameters)
        return float(loss)


def _serve(requests: IO[str], answers: IO[str]) -> None:
    """Answer each line of `requests`, the number of a case, with the time of a step and the digest of its losses."""
    here = Path(os.environ["PYTHONPATH"])
    if here not in Path(layers.__file__).resolve().parents:
        raise SystemExit(f"xnn was imported from {layers.__file__}, not from {here}")
    trainings: dict[int, _Training] = {}
    for line in requests:
        number = int(line)
        widths, batch, steps = CASES[number]
        if number not in trainings:
            trainings[number] = _Training(widths, batch)
        training = trainings[number]
        for _ in range(steps // 10):  # wakes cores and threads
            training.step()
        start = time.perf_counter()
        losses = [training.step() for _ in range(steps)]
        seconds = time.perf_counter() - start
        digest = hashlib.sha256(np.array(losses).tobytes()).hexdigest()
        print(json.dumps({"us": 1e6 * seconds / steps, "losses": digest}), file=answers, flush=True)


def _start(checkout: Path, threads: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads)), "PYTHONPATH": str(checkout)},
    )


def _ask(process: subprocess.Popen[str], number: int) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    time.sleep(_SETTLE)
    process.stdin.write(f"{number}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a measuring process ended; its error stands above")
    return dict(json.loads(line))


def _measure(checkouts: Sequence[Path], turns: int, threads: int) -> list[list[list[dict[str, Any]]]]:
    """The answers of all turns, by case, then by checkout."""
    processes = [_start(path, threads) for path in checkouts]
    try:
        found: list[list[list[dict[str, Any]]]] = []
        for number in range(len(CASES)):
            answers: list[list[dict[str, Any]]] = [[] for _ in processes]
            for turn in range(turns):
                order = list(range(len(processes)))
                for index in order if turn % 2 == 0 else reversed(order):
                    answers[index].append(_ask(processes[index], number))
            found.append(answers)
        return found
    finally:
        for process in processes:
            process.communicate()


def _line(case: tuple[tuple[int, ...], int, int], answers: list[list[dict[str, Any]]]) -> str:
    widths, batch, _ = case
    here, *others = [statistics.median(turn["us"] for turn in turns) for turns in answers]
    line = f"{'-'.join(map(str, widths)):<18}{batch:>6}{here:>12.1f}"
    if others:
        same = [turn["losses"] for turn in answers[0]] == [turn["losses"] for turn in answers[1]]
        line += f"{others[0]:>12.1f}{here / others[0]:>9.3f}   {'same bits' if same else 'DIFFERENT LOSSES'}"
    return line


def main(arguments: Sequence[str]) -> int:
    """Print the table. Returns 1 if the losses of the two checkouts differ, else 0."""
    parser = argparse.ArgumentParser(description="The time of a training step written by hand.")
    parser.add_argument(
        "--against", type=Path, help="another checkout of xnn, for example of an older commit"
    )
    parser.add_argument("--turns", type=int, default=15, help="turns of each checkout (default: 15)")
    parser.add_argument("--threads", type=int, default=1, help="BLAS threads (default: 1)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        _serve(sys.stdin, sys.stdout)
        return 0
    if options.against and not (options.against / "xnn" / "__init__.py").is_file():
        parser.error(f"{options.against} holds no xnn/__init__.py; give the root of a checkout")
    checkouts = [_ROOT, *([options.against.resolve()] if options.against else [])]
    found = _measure(checkouts, options.turns, options.threads)
    print(f"a step by hand, {options.threads} BLAS thread(s), medians of {options.turns} turns, microseconds")
    print(
        f"{'network':<18}{'batch':>6}{'here':>12}" + (f"{'other':>12}{'ratio':>9}" if options.against else "")
    )
    lines = [_line(case, answers) for case, answers in zip(CASES, found, strict=True)]
    print("\n".join(lines))
    return 1 if any("DIFFERENT" in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
