"""Times many widths and batch sizes, and says from which a GPU is faster than the CPU: `xnn bench --sweep`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from xnn.benchmarks.contestants import Task
from xnn.benchmarks.suite import run_task

__all__ = ["BATCHES", "WIDTHS", "sweep", "tasks", "text"]

#: The widths of the two hidden layers, and the batch sizes.
WIDTHS = (64, 256, 1024)
BATCHES = (32, 128, 512, 2048)


def tasks(
    batches: Sequence[int] = BATCHES, widths: Sequence[int] = WIDTHS, dataset: str = "synthetic"
) -> list[Task]:
    """784-w-w-10 for every width w and batch size."""
    return [
        Task((784, width, width, 10), batch, max(4096, 4 * batch), dataset)
        for width in widths
        for batch in batches
    ]


def sweep(
    contestants: Sequence[str],
    dataset: str,
    threads: int,
    repeat: int,
    numerics: str = "fast",
    batches: Sequence[int] = BATCHES,
    widths: Sequence[int] = WIDTHS,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[dict[str, Any]]:
    """Run `suite.run_task` on 784-w-w-10 for every width w and batch size. Yields one result after another."""
    for task in tasks(batches, widths, dataset):
        width, batch = task.widths[1], task.batch
        say(f"width {width}, batch {batch}")
        entries = run_task(contestants, task, threads, repeat, numerics=numerics)
        yield {"network": f"{width}", "widths": task.widths, "batch": batch, "entries": entries}


def text(results: Sequence[dict[str, Any]]) -> str:
    """For each contestant a table of microseconds a step, widths by batch sizes; then where the GPU is faster."""
    batches = sorted({r["batch"] for r in results})
    widths = sorted({int(r["network"]) for r in results})
    times = {
        (int(r["network"]), r["batch"], e["contestant"]): e["median"]
        for r in results
        for e in r["entries"]
        if e["valid"]
    }
    lines = []
    for name in dict.fromkeys(e["contestant"] for r in results for e in r["entries"]):
        lines.append(f"{name}, us/step   " + "".join(f"{f'batch {b}':>13}" for b in batches))
        for width in widths:
            row = [times.get((width, b, name)) for b in batches]
            lines.append(
                f"  width {width:<11}" + "".join(f"{'-' if t is None else f'{t:.0f}':>13}" for t in row)
            )
    return "\n".join([*lines, *_verdict(times, widths, batches)])


def _verdict(times: dict[tuple[int, int, str], float], widths: list[int], batches: list[int]) -> list[str]:
    names = {name for _, _, name in times}
    cpus = names & {"xnn-numpy", "xnn-fast"}
    if "xnn-cupy" not in names or not cpus:
        return ["Only one backend ran, so CPU and GPU cannot be compared."]
    lines = []
    for width in widths:
        ahead = []
        for batch in batches:
            gpu = times.get((width, batch, "xnn-cupy"))
            cpu = [times[width, batch, name] for name in cpus if (width, batch, name) in times]
            if gpu is not None and cpu and gpu < min(cpu):
                ahead.append(batch)
        where = (
            f"is faster at batch {', '.join(map(str, ahead))}"
            if ahead
            else "is not faster at any batch size tried"
        )
        lines.append(f"Width {width}: the GPU {where}.")
    return lines
