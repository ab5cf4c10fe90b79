"""Measures the time of each part of a training step.

    python -m xnn.benchmarks.studies.step_profile [kernels] [batch] [threads]

Runs the kernel calls of the program of 784-100-200-10 one after another and times each. Beside each stands the time
of the matrix products that it contains, run alone.

    kernels   ops, numpy or compiled; default: auto, the fastest that is installed
    batch     the batch size; default: 32
    threads   the number of BLAS threads; default: 1
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from xnn.backends.kernels.binding import bind_each
from xnn.backends.kernels.calls import Call
from xnn.backends.threads import limit_threads
from xnn.benchmarks.contestants import Task, Xnn
from xnn.benchmarks.environment import dataset_here, environment, environment_line
from xnn.errors import OptionError
from xnn.options import check_count

__all__ = ["main", "profile"]

_STEPS = 1000


def profile(kernels: str, batch: int, threads: int, steps: int) -> list[tuple[str, float, float]]:
    """Median times of the calls of a step: (call, microseconds, microseconds of its products alone) of each.

    The last two tuples are the preparation of a step, which comes before the calls, and the whole step as the
    program runs it. `steps` is how often each is timed.
    """
    task = Task((784, 100, 200, 10), batch, max(2048, 8 * batch), dataset_here())
    data = (*task.weights(), *task.data())
    with limit_threads(threads):
        contestant = Xnn(*data, task.batch, task.learning_rate, kernels=kernels)
        stepper = contestant.stepper
        stepper.refresh()
        program, table = stepper.program(batch), stepper.table
        calls = program.calls
        runs = [step for item in bind_each(stepper.lib, table, calls) for step in table.assemble([item])]
        rng = np.random.default_rng(0)
        rows = [rng.permutation(task.rows)[:batch] for _ in range(steps)]
        times: list[list[float]] = [[] for _ in range(len(runs) + 2)]
        for chosen in rows:
            for spent, run in zip(times, runs, strict=False):
                spent.append(_seconds(run))
            times[-2].append(_seconds(partial(program.begin, chosen)))
        for chosen in rows:
            times[-1].append(_seconds(partial(program.steps, [chosen], 0)))
        stepper.take()
        lines = [
            (repr(call), 1e6 * statistics.median(spent), _products(call, steps))
            for call, spent in zip(calls, times, strict=False)
        ]
    before, whole = (1e6 * statistics.median(spent) for spent in times[-2:])
    return [*lines, ("rows and the optimizer's numbers", before, 0.0), ("the whole step", whole, 0.0)]


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _products(call: Call, steps: int) -> float:
    """Microseconds of the products of a dense call, run by np.matmul alone; 0 for other calls."""
    forward = call.forward or call
    if call.kind not in ("forward", "backward") or getattr(call.op, "name", "") != "dense":
        return 0.0
    x, w, y = (np.ones(slot.shape, np.float32) for slot in (*forward.reads[:2], forward.writes[0]))  # type: ignore[union-attr]
    pairs = [(x, w, y)] if call.kind == "forward" else [(x.T, y, w)]
    if call.kind == "backward" and call.writes[0] is not None:
        pairs.append((y, w.T, x))
    total = 0.0
    for a, b, c in pairs:
        product = partial(np.matmul, a, b, out=c)
        total += statistics.median(_seconds(product) for _ in range(steps))
    return 1e6 * total


def main(arguments: Sequence[str]) -> int:
    """Print the profile. Returns 2 for wrong arguments."""
    try:
        kernels, batch, threads = [*arguments, *("auto", "32", "1")[len(arguments) :]]
        lines = profile(kernels, int(batch), check_count("threads", int(threads)), _STEPS)
    except (ValueError, OptionError) as error:
        print(f"{error}\n{__doc__}", file=sys.stderr)
        return 2
    print(environment_line(environment()))
    print(f"{kernels} kernels, batch {batch}, {threads} threads: us, and its products alone")
    for call, spent, products in lines:
        print(f"{spent:>9.1f} {f'{products:.1f}' if products else '':>9}  {call}")
    parts, products = sum(us for _, us, _ in lines[:-1]), sum(us for *_, us in lines)
    print(f"{parts:>9.1f} {products:>9.1f}  the sum of all lines but the last")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
