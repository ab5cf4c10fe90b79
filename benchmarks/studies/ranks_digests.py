"""Shows that any number of processes of MPI gives the bits of one, over all networks of the digest matrix.

    python -m xnn.benchmarks.studies.ranks_digests [--sizes 1 2 3 4 7 13] [--launcher mpiexec]

It needs mpi4py and an MPI (docs/several_machines.md); `.ci/mpi.py digests` runs it with MPICH and with Open MPI. For
each number a launcher starts so many processes, with one BLAS thread each, which train in exact numerics. 1 is a
process without a launcher. A line for each network shows the beginning of a SHA-256 over the weights, predictions,
metrics and losses of one process, and for each number whether all of these are the same. Exits with 1 if any is not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from xnn.backends.ranks.group import use_ranks
from xnn.backends.ranks.launch import launched
from xnn.backends.ranks.mpi import world
from xnn.benchmarks.exactness.digest_run import train_digits, train_small
from xnn.data import synthetic_digits

__all__ = ["main", "row"]

SIZES = (1, 2, 3, 4, 7, 13)
_STEPS = 20  # of 784-100-200-10
_PATIENCE = 3600  # seconds that a number of processes may take


def _digests() -> dict[str, str]:
    """The digest of everything that each network gives, trained by this process or by all that were launched."""
    launch = launched()
    ranks = None if launch is None else world()
    with use_ranks(ranks):
        found: dict[str, Any] = dict(train_small("exact", kernels="auto"))
        x, y = synthetic_digits(32 * _STEPS)
        found["784-100-200-10"] = train_digits(x, y, [_STEPS], "exact", kernels="auto")["marks"]
    return {name: hashlib.sha256(json.dumps(part).encode()).hexdigest() for name, part in found.items()}


def _turn() -> None:
    digests, launch = _digests(), launched()
    if launch is None or launch.rank == 0:
        print(json.dumps(digests), flush=True)


def _of_size(size: int, launcher: Sequence[str]) -> dict[str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    start = [] if size == 1 else [*launcher, "-n", str(size)]
    words = [*start, sys.executable, "-m", __spec__.name, "--turn"]
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, check=False, timeout=_PATIENCE
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    found: dict[str, str] = json.loads(next(line for line in done.stdout.splitlines() if line[:1] == "{"))
    return found


def row(name: str, alone: str, others: Sequence[str]) -> str:
    """A line of the table. alone, others: the digests of one process, and of each number of processes.

    >>> row("a network", "12ab" * 16, ["12ab" * 16, "ffff" * 16])
    '  a network                                 12ab12ab  same  DIFFERS'
    """
    return f"  {name:40}  {alone[:8]}  " + "  ".join("same" if one == alone else "DIFFERS" for one in others)


def main(words: Sequence[str] | None = None) -> None:
    """Run the command. words: its options; None: those of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument(
        "--launcher", default="mpiexec", help="with its options, as in 'mpirun --oversubscribe'"
    )
    parser.add_argument("--turn", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.turn:
        _turn()
        return
    alone, found = _of_size(1, []), list[dict[str, str]]()
    for size in given.sizes:
        found.append(_of_size(size, given.launcher.split()))
        count = sum(found[-1][name] == digest for name, digest in alone.items())
        print(f"{size} processes: {count} of {len(alone)} networks have the bits of one", flush=True)
    print(f"one process and {', '.join(map(str, given.sizes))}:")
    for name, digest in alone.items():
        print(row(name, digest, [each[name] for each in found]))
    if any(each != alone for each in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
