"""Times training by several processes beside one process, and computes how far that would go on a cluster.

    python -m xnn.benchmarks.studies.ranks [--ranks 2] [--repeat 3] [--launcher mpiexec]
    python -m xnn.benchmarks.studies.ranks --model

The first command needs mpi4py and an MPI (docs/several_machines.md). Each process has one BLAS thread. One process
and several take turns, and each turn is a process of its own. A line shows the median milliseconds of a step of the
same global batch, and the median efficiency of paired turns: the time of one process, divided by the number of
processes and by their time. 100 % would be no loss.

The machine sets a limit, since processes share its memory and its cache. It is measured in the same way: as many
processes train at the same time, each by itself on its part of the rows, and send nothing; the slowest counts.

--model measures nothing. Its table is arithmetic: the time of a step is the time of the rows' products at --gflops a
core, and of the messages. A message of n bytes to N machines takes 2 log2(N) alpha + 2 (N - 1) / N n / beta, as in
the analysis of reduce-scatter and all-gather (R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of collective
communication operations in MPICH", 2005). A rank is a core with 1,024 rows. The ranks of a machine add up in its
memory first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np

from xnn.backends.ranks.launch import launched
from xnn.benchmarks import networks
from xnn.benchmarks.contestants import network_flops
from xnn.benchmarks.suite import NETWORKS
from xnn.callbacks import Callback
from xnn.history import History
from xnn.losses import SoftmaxCrossEntropy
from xnn.optimizers import SGD
from xnn.runs.mlp import mlp
from xnn.training import Trainer

__all__ = ["efficiency", "main", "message_bytes", "message_seconds"]

#: What is timed: a network and a batch size.
RUNS = (("large", 1024), ("large", 256), ("lenet", 128))
_BATCHES, _EPOCHS = 20, 3  # of a turn, after an epoch that is not counted
#: Seconds of a message without numbers, and bytes a second of one with many: of HDR InfiniBand, published figures.
_ALPHA, _BETA = 1.2e-6, 24e9
_MEMORY = 300e9  # bytes a second at which the ranks of a machine add up in its memory
_CORES, _ROWS = 64, 1024  # of a machine, and of a rank


class _Clock(Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_epoch_end(self, history: History, entry: dict[str, object]) -> None:
        self.times.append(time.perf_counter())


def _turn(name: str, batch: int, numerics: str, workers: str) -> None:
    """Train, alone or as one of several ranks; print the milliseconds of a step. Of ranks, rank 0 does."""
    if name in NETWORKS:
        inputs, *hidden, outputs = NETWORKS[name]
        model = mlp(inputs, hidden, outputs, rescale=(1 / 255, 0.0), seed=1)
    else:
        model = networks.in_xnn(name)
    clock, launch, rng = _Clock(), launched(), np.random.default_rng(1)
    trainer = Trainer(
        model, SoftmaxCrossEntropy(), SGD(0.01), [], callbacks=[clock], threads=1, numerics=numerics,
        workers=workers,
    )  # fmt: skip
    data = rng.integers(0, 256, (_BATCHES * batch, 784), np.uint8), rng.integers(0, 10, _BATCHES * batch)
    trainer.fit(data, epochs=_EPOCHS + 1, batch_size=batch, progress=False)
    if workers == "none" or launch is None or launch.rank == 0:
        print(json.dumps(1e3 * statistics.median(np.diff(clock.times)) / _BATCHES), flush=True)


def _timed(command: list[str], name: str, batch: int, numerics: str, workers: str) -> float:
    """The milliseconds of a step; of several processes without messages, those of the slowest."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    words = [*command, sys.executable, "-m", __spec__.name, "--turn", name, str(batch), numerics, workers]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return max(map(float, done.stdout.split()))


def efficiency(alone: float, together: float, ranks: int) -> float:
    """The time of one process, divided by that of several and by their number.

    >>> efficiency(30.0, 20.0, 2)
    0.75
    """
    return alone / together / ranks


def message_seconds(size: float, machines: int, alpha: float = _ALPHA, beta: float = _BETA) -> float:
    """How long machines take to add up messages: 2 log2(N) alpha + 2 (N - 1) / N n / beta seconds.

    size: n, in bytes. machines: N. alpha: seconds of a message without numbers. beta: bytes a second.

    >>> message_seconds(24e9, 2)
    1.0000024
    >>> message_seconds(1e6, 1)
    0.0
    """
    return 2.0 * math.log2(machines) * alpha + 2.0 * (machines - 1) / machines * size / beta


def message_bytes(widths: Sequence[int]) -> dict[str, float]:
    """The bytes that the ranks add up in a step of an MLP on pixels, in fast and in exact numerics.

    Exact sums are float64, two for each product of numbers that are no integers; pixels are.

    >>> message_bytes((784, 10))
    {'fast': 31400.0, 'exact': 62800.0}
    """
    first = widths[0] * widths[1]
    weights, biases = sum(a * b for a, b in itertools.pairwise(widths)), sum(widths[1:])
    return {"fast": 4.0 * (weights + biases), "exact": 8.0 * (first + 2 * (weights - first) + biases)}


def _measured(ranks: int, repeat: int, launcher: list[str]) -> None:
    print(f"{ranks} processes beside one, one thread each: milliseconds a step, of {repeat} turns")
    several = [*launcher, "-n", str(ranks)]
    for name, batch in RUNS:
        for numerics in ("fast", "exact"):
            turns = [
                (
                    _timed([], name, batch, numerics, "none"),
                    _timed(several, name, batch, numerics, "mpi"),
                    _timed(several, name, batch // ranks, numerics, "none"),
                )
                for _ in range(repeat)
            ]
            alone, together, apart = (statistics.median(times) for times in zip(*turns, strict=True))
            ratio, limit = (
                100.0 * statistics.median(efficiency(turn[0], turn[n], ranks) for turn in turns)
                for n in (1, 2)
            )
            title = "-".join(map(str, NETWORKS[name])) if name in NETWORKS else name
            print(
                f"  {title}, batch {batch}, {numerics}: one {alone:7.2f}, {ranks} together {together:7.2f}, "
                f"efficiency {ratio:.0f} %; apart {apart:7.2f}, limit {limit:.0f} %",
                flush=True,
            )


def _modelled(gflops: float, exact_cost: float) -> None:
    widths = NETWORKS["ciresan"]
    seconds = network_flops(widths, _ROWS) / (gflops * 1e9)
    sizes = message_bytes(widths)
    print(
        f"Modelled, not measured: {'-'.join(map(str, widths))}, {_ROWS} rows a rank, a rank a core of {gflops:g} "
        f"GFLOP/s, exact {exact_cost:g} times as long, {_CORES} ranks a machine, alpha {_ALPHA:g} s, beta {_BETA:g} "
        "bytes a second. Milliseconds of the messages of a step, and efficiency:"
    )
    print("   ranks" + "".join(f"{numerics:>28}" for numerics in sizes))
    for ranks in (2, 4, 16, 64, 256, 1024):
        here, machines = min(ranks, _CORES), max(1, ranks // _CORES)
        columns = []
        for numerics, size in sizes.items():
            compute = seconds * (exact_cost if numerics == "exact" else 1.0)
            message = message_seconds(size, machines) + 3.0 * here * size / _MEMORY
            columns.append(f"{1e3 * message:15.1f} ms, {100 * compute / (compute + message):4.0f} %")
        print(f"{ranks:8}" + "".join(f"{column:>28}" for column in columns))


def main(words: Sequence[str] | None = None) -> None:
    """Run the command. words: its options; None: those of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--launcher", default="mpiexec", help="with its options, as in 'mpirun --oversubscribe'"
    )
    parser.add_argument("--model", action="store_true", help="print the table that is computed")
    parser.add_argument("--gflops", type=float, default=240.0, help="of a core in a step in fast numerics")
    parser.add_argument(
        "--exact-cost", type=float, default=3.8, help="how many times as long an exact step takes"
    )
    parser.add_argument("--turn", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.turn:
        name, batch, numerics, workers = given.turn
        _turn(name, int(batch), numerics, workers)
    elif given.model:
        _modelled(given.gflops, given.exact_cost)
    else:
        _measured(given.ranks, given.repeat, given.launcher.split())


if __name__ == "__main__":
    main()
