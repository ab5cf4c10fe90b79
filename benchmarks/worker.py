"""One contestant in a process of its own: it answers lines of JSON, and waits without working in between.

Two frameworks in one process would share threads and caches, and two BLAS libraries slow each other down.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

from xnn.backends.numpy_backend import peak_resident_bytes
from xnn.benchmarks.contestants import Task, make
from xnn.errors import XnnError

__all__ = ["main"]


class _Server:
    def __init__(self, name: str, threads: int, task: Task) -> None:
        self.task = task
        start = time.perf_counter()
        self.contestant = make(name, task, threads)
        self.build_seconds = time.perf_counter() - start
        self.orders = np.random.default_rng(task.seed)

    def _order(self) -> np.ndarray:
        return self.orders.permutation(self.task.rows)

    def first(self, reference: str) -> dict[str, Any]:
        """The first epoch on fresh weights: its losses and weights are compared, and what it compiles is timed."""
        start = time.perf_counter()
        order = self._order()
        first = self.contestant.epoch(order[: self.task.rows // self.task.batch * self.task.batch])
        seconds = time.perf_counter() - start
        flat = np.concatenate([p.ravel() for p in self.contestant.parameters()])
        np.save(reference, flat)
        return {
            "build_seconds": self.build_seconds,
            "first_epoch_seconds": seconds,
            "losses": [float(v) for v in first],
        }

    def run(self, epochs: int) -> dict[str, Any]:
        """Timed: orders drawn, epochs trained, losses on the host."""
        start = time.perf_counter()
        for _ in range(epochs):
            losses = self.contestant.epoch(self._order())
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "steps": epochs * len(losses), "loss": float(np.mean(losses))}

    def memory(self) -> dict[str, Any]:
        """The process's peak so far."""
        return {"peak_bytes": peak_resident_bytes()}


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a framework prints is not an answer
    config = json.loads(sys.stdin.readline())
    task = Task(**{**config["task"], "widths": tuple(config["task"]["widths"])})

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        server = _Server(config["name"], config["threads"], task)
    except Exception as error:  # whatever a framework raises is the reason it does not take part
        known = isinstance(error, XnnError)
        answer({"error": str(error) if known else f"{type(error).__name__}: {error}"})
        return
    answer({"ready": True})
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer(getattr(server, command.pop("do"))(**command))
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
