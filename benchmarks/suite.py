"""The suite: contestants take turns, each in a process of its own; medians, their spread, and two gates.

A throughput counts only if the run learned (its loss went down) and computed what the others computed (its first
losses agree with the first contestant's, which had the same weights and the same batches).
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from xnn.backends.plan import blas_libraries
from xnn.benchmarks.contestants import Task, network_flops
from xnn.errors import OptionError

__all__ = ["NETWORKS", "TARGETS", "environment", "own_contestants", "run_task", "table"]

NETWORKS = {
    "article": (784, 100, 200, 10),
    "medium": (784, 512, 256, 10),
    "large": (784, 1000, 500, 10),
    "ciresan": (784, 2500, 2000, 1500, 1000, 500, 10),
}
#: The networks and batch sizes that xnn's targets are stated for.
TARGETS = (("article", 32), ("article", 128), ("medium", 128), ("large", 256), ("large", 1024))

_SECONDS = 0.4  # about what one turn takes
# Between two float32 runs: relative difference of the first losses. Rounding grows from step to step after that.
_PARITY, _PARITY_STEPS = 1e-3, 20
_UNSTABLE = 0.1  # a spread above this is warned of


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    from importlib import metadata

    packages = (
        "numpy",
        "numba",
        "torch",
        "jax",
        "scikit-learn",
        "thinc",
        "tinygrad",
        "cupy-cuda12x",
        "cupy-cuda13x",
    )
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "packages": versions,
        "blas": blas_libraries(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


class _Worker:
    """A contestant's process and the line to it."""

    def __init__(self, name: str, task: Task, threads: int) -> None:
        self.name = name
        limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xnn.benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **dict.fromkeys(limits, str(threads))},
        )
        self.send({"name": name, "threads": threads, "task": asdict(task)})
        self.error: str = self.receive().get("error", "")

    def send(self, value: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": f"the process of {self.name} ended unexpectedly"}

    def ask(self, **command: Any) -> dict[str, Any]:
        """A command's answer; an error is remembered and ends the contestant's part."""
        if self.error:
            return {}
        try:
            self.send(command)
            answer = self.receive()
        except OSError as error:
            answer = {"error": f"the process of {self.name} ended: {error}"}
        self.error = answer.get("error", "")
        return {} if self.error else answer

    def close(self) -> None:
        """End the process, and the lines to it."""
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


def run_task(
    contestants: Sequence[str],
    task: Task,
    threads: int,
    repeat: int = 5,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Every contestant on one network and batch: one entry each, in their order.

    An entry has the median and all times in microseconds per step, GFLOP/s, peak memory, the time before the first
    epoch and of it, and `valid`, `reason`: whether the gates passed, or why the contestant took no part.
    """
    flops = network_flops(task.widths, task.batch)
    workers: list[_Worker] = []
    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for number, name in enumerate(contestants):
                say(f"{name} starts")
                worker = _Worker(name, task, threads)
                workers.append(worker)
                first = worker.ask(do="first", reference=os.path.join(scratch, f"{number}.npy"))
                entries.append({"contestant": name, "us_per_step": [], **first})
            counts = [_epochs(worker, task) for worker in workers]
            for turn in range(repeat):
                say(f"turn {turn + 1} of {repeat}")
                for worker, entry, epochs in zip(workers, entries, counts, strict=True):
                    answer = worker.ask(do="run", epochs=epochs)
                    if answer:
                        entry["us_per_step"].append(1e6 * answer["seconds"] / answer["steps"])
                        entry["last_loss"] = answer["loss"]
            for worker, entry in zip(workers, entries, strict=True):
                entry.update(worker.ask(do="memory"))
                entry["reason"] = worker.error
        finally:
            for worker in workers:
                worker.close()
        weights = [_load(os.path.join(scratch, f"{n}.npy")) for n in range(len(workers))]
    _judge(entries, weights, flops)
    return entries


def _epochs(worker: _Worker, task: Task) -> int:
    """How many epochs fill a turn; the epoch that tells is a warm-up too."""
    answer = worker.ask(do="run", epochs=1)
    return max(1, round(_SECONDS / answer["seconds"])) if answer else 1


def _load(path: str) -> np.ndarray | None:
    return np.load(path) if os.path.exists(path) else None


def _judge(entries: list[dict[str, Any]], weights: Sequence[np.ndarray | None], flops: int) -> None:
    """Medians and the two gates; the products alone learn nothing and are not judged."""
    trained = [n for n, e in enumerate(entries) if e.get("losses") and not e["contestant"].startswith("gemm")]
    for n, entry in enumerate(entries):
        times = entry["us_per_step"]
        if times:
            entry["median"] = statistics.median(times)
            entry["spread"] = (max(times) - min(times)) / 2 / entry["median"]
            entry["gflops"] = flops / entry["median"] / 1e3
        if n in trained and times:
            own, reference = (np.array(entries[k]["losses"]) for k in (n, trained[0]))
            entry["loss_difference"] = _difference(own, reference, entry["contestant"])
            here, there = weights[n], weights[trained[0]]
            if here is not None and there is not None:
                entry["weight_difference"] = float(np.max(np.abs(here - there)) / np.max(np.abs(there)))
            if not entry["last_loss"] < float(np.mean(own)):
                entry["reason"] = "its loss did not go down"
            elif not entry["loss_difference"] <= _PARITY:
                entry["reason"] = (
                    f"its losses differ by {entry['loss_difference']:.1e} from {entries[trained[0]]['contestant']}'s"
                )
        entry["valid"] = not entry["reason"] and bool(times)
    for entry in entries:
        entry.pop("losses", None)


def _difference(own: np.ndarray, reference: np.ndarray, name: str) -> float:
    """The largest relative difference of the first losses; of an epoch's mean for scikit-learn, all it tells."""
    if name == "sklearn":
        own, reference = own.mean(keepdims=True), reference.mean(keepdims=True)
    own, reference = own[:_PARITY_STEPS], reference[:_PARITY_STEPS]
    return float(np.max(np.abs(own - reference) / np.maximum(np.abs(reference), 1e-2)))


def table(entries: Sequence[dict[str, Any]], title: str) -> str:
    """One network and batch as text: times, rates, the share of the products alone, and the ratio to them."""
    limit = next((e["median"] for e in entries if e["contestant"] == "gemm" and "median" in e), None)
    lines = [
        title,
        f"  {'':<14}{'us/step':>10}{'spread':>9}{'GFLOP/s':>9}{'/ GEMM':>8}{'peak MB':>9}{'first s':>9}"
        "  losses differ",
    ]
    for e in entries:
        if not e["valid"]:
            lines.append(f"  {e['contestant']:<14}no figure: {e['reason']}")
            continue
        ratio = f"{e['median'] / limit:>8.2f}" if limit else f"{'-':>8}"
        start = e["build_seconds"] + e["first_epoch_seconds"]
        lines.append(
            f"  {e['contestant']:<14}{e['median']:>10.0f}{e['spread']:>8.0%} {e['gflops']:>9.1f}{ratio}"
            f"{e['peak_bytes'] / 2**20:>9.0f}{start:>9.2f}  {e.get('loss_difference', 0.0):.0e}"
        )
        if e["spread"] > _UNSTABLE:
            lines[-1] += "  unstable: is something else running?"
    peers = [e for e in entries if e["valid"] and not e["contestant"].startswith(("gemm", "xnn", "numpy"))]
    best = next((e for e in entries if e["contestant"] == "xnn-fast" and e["valid"]), None)
    if best and peers:
        rival = min(peers, key=lambda e: float(e["median"]))
        ratio = best["median"] / rival["median"]
        lines.append(f"  xnn-fast / best of the others ({rival['contestant']}): {ratio:.2f}")
    return "\n".join(lines)


def own_contestants(backends: Sequence[str]) -> list[str]:
    """The limit and xnn's entries for these backends, as far as they run here."""
    from importlib.util import find_spec

    found = []
    for name in backends:
        if name == "numpy":
            found += ["gemm", "xnn-numpy", *(["xnn-fast"] if find_spec("numba") else [])]
        elif name == "cupy":
            found += ["gemm-cupy", "xnn-cupy"]
        else:
            raise OptionError(f"the benchmark knows numpy and cupy, got {name!r}: choose one of them")
    return found
