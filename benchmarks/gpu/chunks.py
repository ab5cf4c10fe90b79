"""Times steps that are handed over 1, 8, 32 or 100 at once, in CUDA graphs and launch by launch.

    python -m xnn.benchmarks.gpu.chunks [--rows N] [--repeat N] [--chunks N,N,...] [--json FILE]

784-100-200-10 with batches of 32, by SGD, on one GPU. An epoch has `rows` samples (default: 12800, which is 400
steps); its losses are read. The times are medians of `repeat` epochs (default: 15) in microseconds a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.table import CudaTable
from xnn.benchmarks.contestants import Task, Xnn
from xnn.benchmarks.environment import dataset_here

__all__ = ["main", "us_per_step"]


@contextmanager
def _handed_over(chunk: int, captured: bool) -> Iterator[None]:
    """Let the CUDA kernels of a block take this number of steps at once, in graphs or without."""
    most, loop = CudaTable.chunk, DeviceFeed.loop

    def uncaptured(
        feed: DeviceFeed, steps: Sequence[Any], captures: bool = True, refused: Any = None
    ) -> Callable[[int], None]:
        return loop(feed, steps, captures and captured, refused)

    CudaTable.chunk, DeviceFeed.loop = chunk, uncaptured  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        CudaTable.chunk, DeviceFeed.loop = most, loop  # type: ignore[method-assign]


def us_per_step(task: Task, chunk: int, captured: bool, repeat: int) -> tuple[float, np.ndarray]:
    """The median time of a step in microseconds, and the losses of all epochs."""
    with _handed_over(chunk, captured):
        contestant = Xnn(*task.weights(), *task.data(), task.batch, task.learning_rate, backend="cupy")
        orders, losses, times = np.random.default_rng(0), [], []
        for number in range(2 + repeat):  # the first two compile and capture
            order = orders.permutation(task.rows)
            start = time.perf_counter()
            losses.append(contestant.epoch(order))
            if number > 1:
                times.append(1e6 * (time.perf_counter() - start) / len(losses[-1]))
    return statistics.median(times), np.concatenate(losses)


def main(arguments: Sequence[str]) -> int:
    """Print the times. Returns 0 if all ways give the same losses to the last bit, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m xnn.benchmarks.gpu.chunks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=12_800)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--chunks", default="1,8,32,100")
    parser.add_argument("--json")
    options = parser.parse_args(arguments)
    task = Task((784, 100, 200, 10), 32, options.rows, dataset_here())
    print("us a step     in CUDA graphs    launch by launch")
    found, bits = [], set()
    for chunk in map(int, options.chunks.split(",")):
        times = []
        for captured in (True, False):
            us, losses = us_per_step(task, chunk, captured, options.repeat)
            times.append(us)
            bits.add(losses.tobytes())
        found.append({"chunk": chunk, "graph_us": times[0], "eager_us": times[1]})
        print(f"{chunk:>3} at once {times[0]:>16.1f}{times[1]:>20.1f}", flush=True)
    same = len(bits) == 1
    print("all give the same losses to the last bit" if same else "THE LOSSES DIFFER")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"times": found, "same_losses": same}, file)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
