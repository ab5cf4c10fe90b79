"""Races the persistent kernel against the captured graph of the same steps.

    python -m xnn.benchmarks.gpu.persistent [--rows N] [--repeat N] [--batches N,N,...] [--json FILE]

784-100-200-10 by SGD and by Adam, on one GPU. An epoch has `rows` samples (default: 12800), at least one batch, and
its losses are read. The two take turns, and the times are medians of `repeat` epochs (default: 15) in microseconds a
step. The exit code is 1 if one of the first 20 losses of the two differs by more than 1e-2, which rounding does not
explain. What does not fit the kernel is named and not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from xnn import optimizers
from xnn.benchmarks.contestants import Task, Xnn
from xnn.benchmarks.environment import dataset_here
from xnn.benchmarks.gpu.parity import AT_FIRST, FIRST, differences

__all__ = ["main", "race"]

_RULES = ((optimizers.SGD, 0.1), (optimizers.Adam, 0.001))


@contextmanager
def _switched(text: str) -> Iterator[None]:
    """Set XNN_PERSISTENT in a block."""
    before = os.environ.get("XNN_PERSISTENT")
    os.environ["XNN_PERSISTENT"] = text
    try:
        yield
    finally:
        if before is None:
            del os.environ["XNN_PERSISTENT"]
        else:
            os.environ["XNN_PERSISTENT"] = before


def race(task: Task, make: type[optimizers.Optimizer], rate: float, repeat: int) -> dict[str, Any]:
    """Time both. Returns `graph_us` and `persistent_us`, how far the losses are apart, and what the plan says."""
    contestants, switches = {}, {"graph": "0", "persistent": "1"}
    for name, text in switches.items():
        with _switched(text):
            data = (*task.weights(), *task.data())
            contestants[name] = Xnn(*data, task.batch, rate, backend="cupy", optimizer=make(rate))
    plan = contestants["persistent"].plan()
    found: dict[str, Any] = {"optimizer": make.__name__, "batch": task.batch, "plan": plan}
    if not plan["persistent"]:
        return found
    orders = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    apart = 0.0
    for number in range(2 + repeat):  # the first two compile and capture
        order, losses = orders.permutation(task.rows), []
        for name, contestant in contestants.items():
            with _switched(switches[name]):  # programs may be made again
                start = time.perf_counter()
                losses.append(contestant.epoch(order))
                seconds = time.perf_counter() - start
            if number > 1:
                times[name].append(1e6 * seconds / len(losses[-1]))
        if not number:
            graph, ours = (values[:FIRST] for values in losses)
            apart = float(np.max(differences(ours, graph)))
    medians = {f"{name}_us": statistics.median(values) for name, values in times.items()}
    return {**found, **medians, "losses_differ": apart, "same": apart <= AT_FIRST}


def main(arguments: Sequence[str]) -> int:
    """Print the times. Returns 0 if both give the same losses within rounding, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m xnn.benchmarks.gpu.persistent",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=12_800)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--batches", default="32,64,128")
    parser.add_argument("--json")
    options = parser.parse_args(arguments)
    found = []
    print("us a step                 captured graph   persistent kernel")
    for batch in map(int, options.batches.split(",")):
        for make, rate in _RULES:
            task = Task((784, 100, 200, 10), batch, max(batch, options.rows), dataset_here())
            about = race(task, make, rate, options.repeat)
            found.append(about)
            head = f"{make.__name__:<6} batch {batch:>4}"
            if "same" not in about:
                print(f"{head}: not by the kernel: {about['plan']['persistent_because']}", flush=True)
                continue
            end = "" if about["same"] else "  THE LOSSES DIFFER"
            print(f"{head} {about['graph_us']:>21.1f}{about['persistent_us']:>20.1f}{end}", flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"races": found}, file)
    return 0 if all(about.get("same", True) for about in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
