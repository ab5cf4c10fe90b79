"""Measures the time of each part of a training step.

    python -m xnn.benchmarks.studies.step_profile [kernels] [batch] [threads] [network]

Runs the kernel calls of a program one after another and times each. Beside each stands the least time that its
products could take: of a dense layer its matrix products run alone; of a convolution its multiplications and
additions at the speed of a large matrix product. Compiled kernels run calls over images together, a few images at a
time, which are then still in the cache; so the whole step may take less time than the sum of its calls. Where threads
of xnn's own share all of a dense network, its calls are timed with one thread, and the whole step with all of them.

    kernels   ops, numpy or compiled; default: auto, the fastest that is installed
    batch     the batch size; default: 32
    threads   the number of threads; default: 1
    network   lenet, vgg, resnet or norms; default: dense layers 784-100-200-10
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from xnn.backends.kernels.binding import bind_each
from xnn.backends.kernels.calls import Call, chain
from xnn.backends.threads import limit_threads
from xnn.benchmarks.contestants import Task, Xnn
from xnn.benchmarks.environment import dataset_here, environment, environment_line
from xnn.benchmarks.networks import NETWORKS
from xnn.errors import OptionError
from xnn.options import check_count

__all__ = ["main", "profile"]

_STEPS, _STEPS_OF_IMAGES = 1000, 25
_LARGE = 768  #: rows and columns of the matrices whose product is the fastest


def profile(
    kernels: str, batch: int, threads: int, steps: int, network: str = ""
) -> list[tuple[str, float, float]]:
    """Median times of the calls of a step: (call, microseconds, least microseconds of its products) of each.

    The last two tuples are the preparation of a step, which comes before the calls, and the whole step as the
    program runs it. `steps` is how often each is timed.
    """
    widths = (784, 10) if network else (784, 100, 200, 10)
    task = Task(widths, batch, max(2048, 8 * batch), dataset_here(), network=network)
    data = (*task.weights(), *task.data())
    with limit_threads(threads):
        rate = _rate(steps) if network else 0.0
        contestant = Xnn(*data, task.batch, task.learning_rate, kernels=kernels, network=network)
        stepper = contestant.stepper
        stepper.refresh()
        program, table = stepper.program(batch), stepper.table
        calls = program.calls
        has_images = any(call.name == "conv2d" for call in calls)
        alone = 1 if program.is_shared and not has_images else None
        runs = [chain(*table.assemble([item])) for item in bind_each(stepper.lib, table, calls)]
        rng = np.random.default_rng(0)
        rows = [rng.permutation(task.rows)[:batch] for _ in range(steps)]
        times: list[list[float]] = [[] for _ in range(len(runs) + 2)]
        with limit_threads(alone):
            for chosen in rows:
                for spent, run in zip(times, runs, strict=False):
                    spent.append(_seconds(run))
                times[-2].append(_seconds(partial(program.begin, chosen, 0)))
            least = [_products(call, steps, rate) for call in calls]
        with limit_threads(None, stepper.product_threads):
            for chosen in rows:
                times[-1].append(_seconds(partial(program.steps, [chosen], 0)))
        stepper.take()
        lines = [
            (repr(call), 1e6 * statistics.median(spent), products)
            for call, spent, products in zip(calls, times, least, strict=False)
        ]
    before, whole = (1e6 * statistics.median(spent) for spent in times[-2:])
    return [*lines, ("rows and the optimizer's numbers", before, 0.0), ("the whole step", whole, 0.0)]


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _rate(steps: int) -> float:
    """The floating-point operations of a large matrix product in a second."""
    a = np.ones((_LARGE, _LARGE), np.float32)
    product = partial(np.matmul, a, a, out=np.empty_like(a))
    return 2.0 * _LARGE**3 / statistics.median(_seconds(product) for _ in range(steps))


def _products(call: Call, steps: int, rate: float) -> float:
    """The least microseconds of the products of a dense call or a convolution; 0 for other calls."""
    forward, name = call.forward or call, getattr(call.op, "name", "")
    if call.kind not in ("forward", "backward") or name not in ("dense", "conv2d"):
        return 0.0
    if name == "conv2d":
        kernel, out = forward.reads[1].shape, forward.writes[0].shape  # type: ignore[union-attr]
        products = 1 if call.kind == "forward" else sum(slot is not None for slot in call.writes[:2])
        return 1e6 * products * 2.0 * math.prod(kernel) * out[0] * math.prod(out[2:]) / rate
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
        kernels, batch, threads, network = [*arguments, *("auto", "32", "1", "")[len(arguments) :]]
        if network and network not in NETWORKS:
            raise OptionError(f"there is no network {network!r}: choose {', '.join(NETWORKS)}")
        steps = _STEPS_OF_IMAGES if network else _STEPS
        lines = profile(kernels, int(batch), check_count("threads", int(threads)), steps, network)
    except (ValueError, OptionError) as error:
        print(f"{error}\n{__doc__}", file=sys.stderr)
        return 2
    print(environment_line(environment()))
    print(
        f"{network} {kernels} kernels, batch {batch}, {threads} threads: us, and of its products at least".lstrip()
    )
    for call, spent, products in lines:
        print(f"{spent:>9.1f} {f'{products:.1f}' if products else '':>9}  {call}")
    parts, products = sum(us for _, us, _ in lines[:-1]), sum(us for *_, us in lines)
    print(f"{parts:>9.1f} {products:>9.1f}  the sum of all lines but the last")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
