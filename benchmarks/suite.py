"""Times contestants in turns, each in a process of its own.

A time counts only if the contestant's loss went down, and if its first losses agree with those of the first
contestant, which has the same weights and the same batches. Turns are short and many, as in pyperf and
torch.utils.benchmark: a machine's speed changes from second to second, and all contestants should meet the same
seconds.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from xnn.benchmarks import networks
from xnn.benchmarks.contestants import Task, on_gpu
from xnn.errors import OptionError
from xnn.runs.process import Process

__all__ = [
    "NETWORKS", "TARGETS", "exact_digests", "expected_seconds", "own_contestants", "quartiles", "run_task",
]  # fmt: skip

NETWORKS = {
    "article": (784, 100, 200, 10),
    "medium": (784, 512, 256, 10),
    "large": (784, 1000, 500, 10),
    "ciresan": (784, 2500, 2000, 1500, 1000, 500, 10),
}
#: The networks and batch sizes of `--preset targets`.
TARGETS = (("article", 32), ("article", 128), ("medium", 128), ("large", 256), ("large", 1024))

_SECONDS = 0.25  # the approximate length of a turn
# The largest allowed relative difference of losses, and for how many steps: rounding errors grow from step to step.
# On a GPU and in convolutions each contestant rounds products in its own way, so that a number within rounding of 0
# may go into a ReLU with another sign; the difference then grows tenfold in five steps or so.
_PARITY, _PARITY_OWN_WAYS, _PARITY_STEPS = 1e-3, 1e-2, 20
_LOSSES_KEPT = 100
# For the expected time: the seconds in which a contestant starts, and the floating-point operations in a second.
_START, _SPEED = 2.5, 5e10
# Steps of a run of which only exact digests are wanted, and the most floating-point operations of its products.
_EXACT_STEPS, _EXACT_FLOPS = 5, int(1e11)


def run_task(
    contestants: Sequence[str],
    task: Task,
    threads: int,
    repeat: int = 9,
    say: Callable[[str], None] = lambda line: None,
    numerics: str = "fast",
) -> list[dict[str, Any]]:
    """Time every contestant on one network and batch size. Returns a dictionary for each, in the same order.

    contestants: names, as `contestants.names` lists them. A name may end in ":exact" or ":fast", then in "@" and a
    number of threads: "xnn-numpy:exact@1".
    task: the network, batch size and data.
    threads: BLAS threads of contestants without "@".
    repeat: turns of each contestant.
    say: called with a line of progress.
    numerics: of contestants without ":exact" or ":fast".

    The keys of a dictionary:
    contestant             its name
    us_per_step            all times, in microseconds a step
    median, quartiles      of these times
    spread                 the distance of the quartiles, divided by the median
    samples_per_second, gflops, threads
    peak_bytes             the peak memory where it computes: of the GPU, or of the process
    host_peak_bytes        the peak memory of the process
    first_step_seconds     the first step, with importing, building and compiling
    plan                   how a step of xnn runs: numerics, backend, device, kernels, calls in a step
    losses                 the first losses
    loss_difference        the largest relative difference from the first contestant's losses
    weight_difference      the same of the weights after an epoch
    weights_sha256, losses_sha256   digests, in exact numerics only
    valid, reason          whether the times count, and why they do not
    """
    workers: list[Process] = []
    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = _save_data(task, scratch)
        try:
            for number, name in enumerate(contestants):
                say(f"{name} starts")
                plain, _, own = name.partition("@")
                plain, _, mode = plain.partition(":")
                count = int(own) if own else threads
                worker = Process(name, "xnn.benchmarks.worker", count, {"XNN_NUMERICS": mode or numerics})
                workers.append(worker)
                worker.ask(name=plain, threads=count, task=asdict(task), data=data)
                first = worker.ask(do="first", reference=os.path.join(scratch, f"{number}.npy"))
                entries.append({"contestant": name, "us_per_step": [], **first})
            counts = [_epochs(worker) for worker in workers]
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
    _judge(entries, weights, task)
    return entries


def exact_digests(
    backends: Sequence[str], task: Task, threads: int, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """Train a few steps in exact numerics on each backend: digests of the weights and of the losses.

    Returns a dictionary for each backend: contestant, steps, weights_sha256 and losses_sha256, valid, reason.
    """
    steps = max(1, min(_EXACT_STEPS, task.rows // task.batch, _EXACT_FLOPS // task.flops()))
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        data = _save_data(task, scratch)
        for backend in backends:
            name = f"xnn-{backend}"
            say(f"{name}: {steps} steps in exact numerics")
            worker = Process(name, "xnn.benchmarks.worker", threads, {"XNN_NUMERICS": "exact"})
            try:
                worker.ask(name=name, threads=threads, task=asdict(task), data=data)
                answer = worker.ask(do="digests", steps=steps)
            finally:
                worker.close()
            about = {
                "contestant": f"{name}:exact",
                "steps": steps,
                "valid": bool(answer),
                "reason": worker.error,
            }
            found.append({**about, **answer})
    return found


def _save_data(task: Task, folder: str) -> str:
    """Write the task's data to a file for the workers."""
    path = os.path.join(folder, "data.npz")
    x, y = task.data()
    np.savez(path, x=x, y=y)
    return path


def expected_seconds(contestants: int, task: Task, repeat: int) -> float:
    """About how long `run_task` takes for this number of contestants. Libraries that compile take longer."""
    epoch = task.rows / task.batch * task.flops() / _SPEED
    return contestants * (_START + (repeat + 2) * (Process.settle + max(_SECONDS, epoch)))


def _epochs(worker: Process) -> int:
    """Choose the number of epochs in a turn from the time of one epoch, which also warms the contestant up."""
    answer = worker.ask(do="run", epochs=1, warm_up=False)
    return max(1, round(_SECONDS / answer["seconds"])) if answer else 1


def _load(path: str) -> np.ndarray | None:
    return np.load(path) if os.path.exists(path) else None


def _judge(entries: list[dict[str, Any]], weights: Sequence[np.ndarray | None], task: Task) -> None:
    """Add medians to the entries, and check losses. The products alone (gemm) learn nothing and are not checked."""
    trained = [n for n, e in enumerate(entries) if e.get("losses") and not e["contestant"].startswith("gemm")]
    for n, entry in enumerate(entries):
        if times := entry["us_per_step"]:
            low, median, high = quartiles(times)
            entry.update(median=median, quartiles=[low, high], spread=(high - low) / median)
            entry["samples_per_second"] = 1e6 * task.batch / median
            entry["gflops"] = task.flops() / median / 1e3
        if n in trained and times:
            own, reference = (np.array(entries[k]["losses"]) for k in (n, trained[0]))
            entry["loss_difference"] = _difference(own, reference, entry["contestant"])
            here, there = weights[n], weights[trained[0]]
            if here is not None and there is not None:
                entry["weight_difference"] = float(np.max(np.abs(here - there)) / np.max(np.abs(there)))
            own_ways = on_gpu(entry["contestant"]) or task.network
            if not entry["last_loss"] < float(np.mean(own)):
                entry["reason"] = "its loss did not go down"
            elif task.network and networks.draws(task.network):
                del entry["loss_difference"]  # each library drops other numbers
            elif not entry["loss_difference"] <= (_PARITY_OWN_WAYS if own_ways else _PARITY):
                entry["reason"] = (
                    f"its losses differ by {entry['loss_difference']:.1e} from {entries[trained[0]]['contestant']}'s"
                )
        entry["valid"] = not entry["reason"] and bool(times)
    for entry in entries:
        entry["losses"] = entry.get("losses", [])[:_LOSSES_KEPT]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile. A single value is all three."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def _difference(own: np.ndarray, reference: np.ndarray, name: str) -> float:
    """The largest relative difference of the first losses; of their means for those who give no more."""
    if name in ("sklearn", "keras-jax"):
        own, reference = own[1:].mean(keepdims=True), reference[1:].mean(keepdims=True)
    own, reference = own[:_PARITY_STEPS], reference[:_PARITY_STEPS]
    return float(np.max(np.abs(own - reference) / np.maximum(np.abs(reference), 1e-2)))


def own_contestants(backends: Sequence[str], numerics: str = "fast", products: bool = True) -> list[str]:
    """The names of xnn's contestants, and of the products alone, on these backends.

    backends: "numpy", "cupy". numerics: "fast", "exact" or "both"; "both" lists each of xnn's contestants twice.
    products: whether the products alone are wanted (default).
    Raises OptionError for another backend.
    """
    from importlib.util import find_spec

    found = []
    for name in backends:
        if name == "numpy":
            found += ["gemm", "xnn-numpy", *(["xnn-fast"] if find_spec("numba") else [])]
        elif name == "cupy":
            found += ["gemm-cupy", "xnn-cupy"]
        else:
            raise OptionError(
                f"got the backend {name!r}; the benchmark runs on numpy and cupy, and --device chooses the GPU"
            )
    found = [name for name in found if products or not name.startswith("gemm")]
    if numerics == "both":
        twice = ((name,) if name.startswith("gemm") else (name, f"{name}:exact") for name in found)
        return [name for names in twice for name in names]
    return found
