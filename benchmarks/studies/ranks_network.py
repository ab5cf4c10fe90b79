"""Compares the model of a cluster with training over a network of limited bandwidth, on one machine.

    python -m xnn.benchmarks.studies.ranks_network [--rates 1000 300] [--repeat 3] [--launcher mpiexec]

Linux, root, the commands ip and tc, and MPICH with mpi4py are needed (docs/several_machines.md). Two network
namespaces are joined by a cable that carries so many million bits a second each way (a token bucket filter); the two
ranks sit at its ends, and share no memory. For each rate, alpha and beta come from sums of 1 and of 1,000,000 numbers
over this cable. The model is then that of `ranks.py --model`: the time of one process with half of the rows, plus
`message_seconds` of the bytes of a step. A line shows it beside the step that was measured.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from xnn.benchmarks.studies.ranks import message_bytes, message_seconds
from xnn.benchmarks.suite import NETWORKS

__all__ = ["fitted", "main", "network"]

_ENDS = ("xnn-a", "xnn-b")  # namespaces, and the interfaces in them
_STUDY = "xnn.benchmarks.studies.ranks"
_NAME, _BATCHES = "large", (256, 1024)
_MANY = 1_000_000  # numbers of a long message
_UP = 3.0  # seconds after which a new interface can be used


def fitted(short: float, long: float, size: float) -> tuple[float, float]:
    """Alpha and beta of `message_seconds` for two machines: from the seconds of a short sum and of a long one.

    size: the bytes of the long sum.

    >>> fitted(0.0002, 0.0102, 1e6)
    (0.0001, 100000000.0)
    """
    return short / 2.0, size / (long - short)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")


@contextmanager
def network(megabits: float) -> Iterator[None]:
    """Two namespaces that are joined by a cable, which carries so many million bits a second each way."""
    made = []
    try:
        for end in _ENDS:
            _run("ip", "netns", "add", end)
            made.append(end)
        first, second = _ENDS
        _run(
            "ip",
            "link",
            "add",
            first,
            "netns",
            first,
            "type",
            "veth",
            "peer",
            "name",
            second,
            "netns",
            second,
        )
        for number, end in enumerate(_ENDS, 1):
            inside = ("ip", "netns", "exec", end)
            _run(*inside, "ip", "addr", "add", f"10.77.0.{number}/24", "dev", end)
            _run(*inside, "ip", "link", "set", "lo", "up")
            _run(*inside, "ip", "link", "set", end, "up")
            bucket = ("rate", f"{megabits:g}mbit", "burst", "128kb", "limit", "16mb")
            _run(*inside, "tc", "qdisc", "add", "dev", end, "root", "tbf", *bucket)
        time.sleep(_UP)
        yield
    finally:
        for end in made:
            subprocess.run(["ip", "netns", "del", end], capture_output=True, check=False)


def _number(command: list[str], *words: str) -> float:
    """The number that rank 0 of a command prints last."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    # No shared memory between the ranks, with either of the two layers below MPICH.
    environment |= {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp", "FI_PROVIDER": "tcp"}
    ranks = [["ip", "netns", "exec", end, sys.executable, "-m", *words] for end in _ENDS]
    call = (
        [*command, "-n", "1", *ranks[0], ":", "-n", "1", *ranks[1]]
        if command
        else [sys.executable, "-m", *words]
    )
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(
            f"{' '.join(call)} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}"
        )
    return float(json.loads(done.stdout.split()[-1]))


def _ping(count: int) -> None:
    """Add up so many float32 numbers of all ranks, again and again; rank 0 prints the median seconds."""
    world, times = importlib.import_module("mpi4py.MPI").COMM_WORLD, []
    mine, total = np.ones(count, np.float32), np.empty(count, np.float32)
    for _ in range(25):
        world.Barrier()
        start = time.perf_counter()
        world.Allreduce(mine, total)
        times.append(time.perf_counter() - start)
    if world.rank == 0:
        print(json.dumps(statistics.median(times[5:])), flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Run the command. words: its options; None: those of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1000.0, 300.0], help="million bits a second"
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--launcher", default="mpiexec", help="of MPICH, with its options")
    parser.add_argument("--ping", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.ping is not None:
        return _ping(given.ping)
    launcher, widths = given.launcher.split(), NETWORKS[_NAME]
    if missing := [word for word in ("ip", "tc", launcher[0]) if shutil.which(word) is None]:
        sys.exit(f"there is no command {missing[0]}: this study needs Linux's ip and tc, and MPICH's mpiexec")
    title = "-".join(map(str, widths))
    print(
        f"{title}, two ranks at the ends of a cable, one thread each: milliseconds a step, of {given.repeat} turns"
    )
    alone = {}
    for batch in _BATCHES:
        for numerics in ("fast", "exact"):
            turn = (_STUDY, "--turn", _NAME, str(batch // 2), numerics, "none")
            alone[batch, numerics] = statistics.median(_number([], *turn) for _ in range(given.repeat))
    for rate in given.rates:
        with network(rate):
            short, long = (_number(launcher, __spec__.name, "--ping", str(count)) for count in (1, _MANY))
            alpha, beta = fitted(short, long, 4.0 * _MANY)
            print(
                f"{rate:g} million bits a second: alpha {1e6 * alpha:.0f} microseconds, beta {beta / 1e6:.1f} MB/s"
            )
            for (batch, numerics), half in alone.items():
                turn = (_STUDY, "--turn", _NAME, str(batch), numerics, "mpi")
                measured = statistics.median(_number(launcher, *turn) for _ in range(given.repeat))
                message = 1e3 * message_seconds(message_bytes(widths)[numerics], 2, alpha, beta)
                modelled = half + message
                print(
                    f"  batch {batch}, {numerics}: half of the rows {half:.1f} + messages {message:.1f} = "
                    f"{modelled:.1f} modelled, {measured:.1f} measured, {measured / modelled:.2f} times as long",
                    flush=True,
                )


if __name__ == "__main__":
    main()
