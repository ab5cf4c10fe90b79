"""Runs one contestant of the suite in a process of its own, and answers the suite's commands."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import numpy as np

from xnn.backends import current_numerics
from xnn.backends.memory import peak_resident_bytes
from xnn.backends.threads import blas_threads
from xnn.benchmarks.contestants import Task, make
from xnn.runs.digests import little_endian
from xnn.runs.process import serve

__all__ = ["main"]

_WARM_UP = 1024  # untimed samples before each turn


class _Server:
    def __init__(self, name: str, threads: int, task: Task, data: str) -> None:
        self.task = task
        with np.load(data) as arrays:
            given = arrays["x"], arrays["y"]
        start = time.perf_counter()
        self.contestant = make(name, task, threads, given)
        self.build_seconds = time.perf_counter() - start
        self.orders = np.random.default_rng(task.seed)

    def _order(self) -> np.ndarray:
        return self.orders.permutation(self.task.rows)

    def first(self, reference: str) -> dict[str, Any]:
        """Train one step, which is timed with all building and compiling, and an epoch.

        Returns the losses. The weights are saved as the file `reference`, to be compared with other contestants'.
        """
        batch = self.task.batch
        start = time.perf_counter()
        first = self.contestant.epoch(self._order()[:batch])
        seconds = time.perf_counter() - start
        losses = np.concatenate([first, self.contestant.epoch(self._order())])
        weights = np.concatenate([p.ravel() for p in self.contestant.parameters()])
        np.save(reference, weights)
        return {
            "first_step_seconds": self.build_seconds + seconds,
            "losses": [float(v) for v in losses],
            "plan": self.contestant.plan(),
            **(_digests(weights, losses) if current_numerics() == "exact" else {}),
        }

    def run(self, epochs: int, warm_up: bool = True) -> dict[str, Any]:
        """Train epochs and time them, with drawing their orders and fetching their losses.

        warm_up: whether to train a few untimed steps before, which wakes cores and threads.
        """
        if warm_up:
            self.contestant.epoch(self._order()[: self.task.batch * max(1, _WARM_UP // self.task.batch)])
        start = time.perf_counter()
        for _ in range(epochs):
            losses = self.contestant.epoch(self._order())
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "steps": epochs * len(losses), "loss": float(np.mean(losses))}

    def digests(self, steps: int) -> dict[str, Any]:
        """Train some steps, and return digests of weights and losses."""
        losses = self.contestant.epoch(self._order()[: steps * self.task.batch])
        weights = np.concatenate([p.ravel() for p in self.contestant.parameters()])
        return _digests(weights, losses)

    def memory(self) -> dict[str, Any]:
        """The peak memory in bytes where the contestant computes, and of this process; NumPy's BLAS threads."""
        host = peak_resident_bytes()
        device = self.contestant.device_bytes()
        return {
            "peak_bytes": host if device is None else device, "host_peak_bytes": host, "threads": blas_threads()
        }  # fmt: skip


def _digests(weights: np.ndarray, losses: np.ndarray) -> dict[str, str]:
    return {"weights_sha256": _sha256(weights), "losses_sha256": _sha256(losses.astype(np.float64))}


def _sha256(x: np.ndarray) -> str:
    return hashlib.sha256(little_endian(x).tobytes()).hexdigest()


def main() -> None:
    """Answer commands from standard input until it ends."""

    def start(name: str, threads: int, task: dict[str, Any], data: str) -> _Server:
        return _Server(name, threads, Task(**{**task, "widths": tuple(task["widths"])}), data)

    serve(start)


if __name__ == "__main__":
    main()
