"""Measures how the cost of training grows with the size of data, batches and networks.

    python -m xnn.benchmarks.studies.scaling TABLE...

Each name prints a table. The number in brackets compares a line with the line above: e in cost ~ size^e.

    samples   milliseconds an epoch, by the number of samples
    batch     microseconds a step, by batch size
    width     microseconds a step, by the width of two hidden layers
    depth     microseconds a step, by the number of hidden layers of 256 units
    memory    peak resident memory of training, by the number of samples (uint8 images of 784 bytes)
    threads   microseconds a step with one BLAS thread and with all, for networks near the size from which
              backends/threads.py uses all threads
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from xnn.benchmarks.contestants import Task
from xnn.benchmarks.environment import dataset_here, environment, environment_line
from xnn.benchmarks.suite import own_contestants, run_task

__all__ = ["TABLES", "main"]

_REPEAT = 9
_ROWS = 8192


def _own() -> list[str]:
    return [name for name in own_contestants(["numpy"]) if name != "gemm"]


def _table(
    heading: str,
    sizes: Sequence[int],
    task_of: Callable[[int], Task],
    value: Callable[[dict[str, Any], Task], float],
) -> str:
    """A line for each size with the cost of each contestant, and the exponent of growth since the line above."""
    last: dict[str, tuple[int, float]] = {}
    lines = [heading]
    for size in sizes:
        task, cells = task_of(size), [f"  {size:>8,}"]
        for entry in run_task(_own(), task, _threads(), _REPEAT):
            name = entry["contestant"]
            if not entry["valid"]:
                cells.append(f"{name}: {entry['reason']}")
                continue
            found = value(entry, task)
            grown = ""
            if name in last:
                smaller, less = last[name]
                grown = f" (^{math.log(found / less) / math.log(size / smaller):.2f})"
            cells.append(f"{name} {found:>10.1f}{grown}")
            last[name] = size, found
        lines.append("   ".join(cells))
    return "\n".join(lines)


def _threads() -> int:
    return os.cpu_count() or 1


def samples() -> str:
    """The time of an epoch, by the number of samples, at batch size 128."""
    return _table(
        "samples: ms an epoch of 784-100-200-10, batch 128",
        (4096, 8192, 16384, 32768),
        lambda n: Task((784, 100, 200, 10), 128, n, dataset_here()),
        lambda e, task: e["median"] * (task.rows / task.batch) / 1e3,
    )


def batch() -> str:
    """The time of a step, by batch size."""
    return _table(
        "batch: us a step of 784-100-200-10",
        (16, 32, 64, 128, 256, 512, 1024),
        lambda n: Task((784, 100, 200, 10), n, _ROWS, dataset_here()),
        lambda e, _: float(e["median"]),
    )


def width() -> str:
    """The time of a step, by the width of the hidden layers, at batch size 128."""
    return _table(
        "width: us a step of 784-w-w-10, batch 128",
        (64, 128, 256, 512, 1024),
        lambda n: Task((784, n, n, 10), 128, _ROWS, dataset_here()),
        lambda e, _: float(e["median"]),
    )


def depth() -> str:
    """The time of a step, by the number of hidden layers, at batch size 128.

    The learning rate is smaller than elsewhere, so that deep networks learn.
    """
    return _table(
        "depth: us a step of 784-256-...-256-10, batch 128",
        (1, 2, 4, 8),
        lambda n: Task((784, *(256,) * n, 10), 128, _ROWS, dataset_here(), learning_rate=0.05),
        lambda e, _: float(e["median"]),
    )


def memory() -> str:
    """Peak resident memory including the data, by the number of samples."""
    return _table(
        "memory: peak MB of training 784-100-200-10, batch 128",
        (8192, 32768, 131072),
        lambda n: Task((784, 100, 200, 10), 128, n, dataset_here()),
        lambda e, _: e["peak_bytes"] / 2**20,
    )


def threads() -> str:
    """The time of a step with one thread and with all threads."""
    cores = _threads()
    lines = [f"threads: us a step with 1 and with {cores} BLAS threads, by multiplications a forward pass"]
    networks = [
        ((784, 100, 200, 10), (16, 32, 64, 128, 256)),
        ((784, 512, 256, 10), (8, 32, 128)),
        ((784, 1000, 500, 10), (8, 32)),
    ]
    for widths, batches in networks:
        weights = sum(a * b for a, b in itertools.pairwise(widths))
        for size in batches:
            names = [f"{name}@{count}" for name in _own() for count in (1, cores)]
            found = run_task(names, Task(widths, size, _ROWS, dataset_here()), cores, _REPEAT)
            times = {e["contestant"]: e["median"] for e in found if e["valid"]}
            cells = []
            for name in _own():
                one, all_of_them = times.get(f"{name}@1"), times.get(f"{name}@{cores}")
                if one and all_of_them:
                    cells.append(f"{name} {one:>8.0f} {all_of_them:>8.0f}  gain {one / all_of_them:.2f}")
            title = f"{'-'.join(map(str, widths))} batch {size}"
            lines.append(f"  {title:<26}{size * weights / 1e6:>7.1f} M   " + "   ".join(cells))
    return "\n".join(lines)


TABLES = {table.__name__: table for table in (samples, batch, width, depth, memory, threads)}


def main(arguments: Sequence[str]) -> int:
    """Print the tables of these names. Returns 2 for an unknown name, or without any name."""
    unknown = [name for name in arguments if name not in TABLES]
    if unknown or not arguments:
        print(
            f"choose among {', '.join(TABLES)}" + (f"; got {unknown[0]!r}" if unknown else ""),
            file=sys.stderr,
        )
        return 2
    print(environment_line(environment()))
    for name in arguments:
        print(TABLES[name](), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
