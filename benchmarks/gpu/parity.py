"""Trains the same network on CPU and GPU in fast numerics, and shows how far the two runs drift apart.

    python -m xnn.benchmarks.gpu.parity [--steps N] [--json FILE] [--without-pool]

784-100-200-10 with batches of 32, by SGD and by Adam, from the same weights and on the same batches. The two round
differently, and that grows from step to step, most of all where a number within rounding of 0 goes into a ReLU: it is
negative in one run and positive in the other. The exit code is 1 if one of the first 20 losses differs by more than
1e-2, or the mean of the last tenth of the losses by more than 5 %: rounding does not explain that.

--without-pool makes each array an allocation of its own, so that compute-sanitizer sees accesses beyond its end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from xnn import optimizers
from xnn.backends import get_backend
from xnn.backends.kernels.cuda.launch import cupy
from xnn.benchmarks.contestants import Task, Xnn
from xnn.benchmarks.environment import dataset_here

__all__ = ["AT_FIRST", "FIRST", "compare", "differences", "main"]

#: By how much the first losses of two runs may differ, in parts of themselves, and how many these are.
AT_FIRST, FIRST = 1e-2, 20
_BATCH, _MARKS, _AT_LAST = 32, (1, 10, 100, 1000), 0.05


def differences(losses: np.ndarray, others: np.ndarray) -> np.ndarray:
    """By how much the losses of a run differ from those of another one, in parts of the latter or of 0.01."""
    return np.asarray(np.abs(losses - others) / np.maximum(np.abs(others), 1e-2))


def compare(make: type[optimizers.Optimizer], rate: float, task: Task) -> dict[str, Any]:
    """Train one epoch on each backend. Returns the differences, and `same`: whether rounding explains them."""
    losses, weights = [], []
    for backend in ("numpy", "cupy"):
        data = (*task.weights(), *task.data())
        contestant = Xnn(*data, task.batch, rate, backend=backend, optimizer=make(rate))
        losses.append(contestant.epoch(np.random.default_rng(0).permutation(task.rows)))
        weights.append(contestant.parameters())
    here, there = losses
    apart = differences(there, here)
    last = max(1, len(here) // 10)
    means = [float(np.mean(values[-last:])) for values in losses]
    drift = max(
        float(np.max(np.abs(b - a)) / np.max(np.abs(a))) for a, b in zip(*weights, strict=True) if a.any()
    )
    same = bool(apart[:FIRST].max() <= AT_FIRST) and abs(means[1] - means[0]) <= _AT_LAST * abs(means[0])
    return {
        "steps": len(here),
        "losses_differ_until": {str(m): float(apart[:m].max()) for m in _MARKS if m <= len(here)},
        "weights_differ": drift,
        "last_means": means,
        "same": same,
    }


def main(arguments: Sequence[str]) -> int:
    """Print the differences. Returns 0 if rounding explains them, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m xnn.benchmarks.gpu.parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--json")
    parser.add_argument("--without-pool", action="store_true")
    options = parser.parse_args(arguments)
    if options.without_pool:
        get_backend("cupy")
        cupy().cuda.set_allocator(None)
    task = Task((784, 100, 200, 10), _BATCH, _BATCH * options.steps, dataset_here())
    found = {
        make.__name__: compare(make, rate, task)
        for make, rate in ((optimizers.SGD, 0.1), (optimizers.Adam, 0.001))
    }
    for name, about in found.items():
        marks = ", ".join(f"{value:.1e} in {mark}" for mark, value in about["losses_differ_until"].items())
        means = "{:.4f} and {:.4f}".format(*about["last_means"])
        print(
            f"{name}, {about['steps']} steps: losses differ by at most {marks} steps; weights in the end by "
            f"{about['weights_differ']:.1e}; mean of the last losses {means}"
            + ("" if about["same"] else ": MORE THAN ROUNDING")
        )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file)
    return 0 if all(about["same"] for about in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
