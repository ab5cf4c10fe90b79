"""Compares training on data in files with training on the same data in memory: speed, memory and results.

    python -m xnn.benchmarks.studies.large_data FOLDER [ROWS] [BATCH] [REPEATS]

It makes x.npy, ROWS rows of 100 float32 features (4 GB for the default, 10,000,000), and y.npy in FOLDER, if they are
not there. Then it trains 100-64-10 for an epoch, in a process for each way and repeat, in turn:

    memory   the arrays are read into memory first, which needs it
    mapped   the arrays are memory maps
    shards   the same rows as ten shards
    stream   the same rows from a function that gives them in batches of 1,000, shuffled in windows of 20,000

A line has the samples a second of the steps, the seconds of all, and two peaks: RssAnon, the memory of the process
without pages of files; maxrss, with them, which the system takes back when it needs them; and the digest of the
losses. Files are in the page cache if the memory is large enough for them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from xnn import data, layers, losses, optimizers
from xnn.layers import Sequential
from xnn.training import Trainer

__all__ = ["main"]

WAYS = "memory", "mapped", "shards", "stream"
_FEATURES, _CLASSES, _BLOCK = 100, 10, 100_000


def _make(folder: Path, rows: int) -> None:
    if (folder / "x.npy").exists() and len(np.load(folder / "x.npy", mmap_mode="r")) == rows:
        return
    random = np.random.default_rng(0)
    weights = random.standard_normal((_FEATURES, _CLASSES), dtype=np.float32)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (rows, _FEATURES))
    y = np.lib.format.open_memmap(folder / "y.npy", "w+", np.int64, (rows,))
    for start in range(0, rows, _BLOCK):
        block = random.standard_normal((min(_BLOCK, rows - start), _FEATURES), dtype=np.float32)
        x[start : start + _BLOCK], y[start : start + _BLOCK] = block, (block @ weights).argmax(axis=1)


def _given(folder: Path, way: str) -> Any:
    x, y = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in "xy")
    if way == "memory":
        return np.array(x), np.array(y)
    if way == "shards":
        return data.Shards(np.array_split(x, 10)), data.Shards(np.array_split(y, 10))
    if way == "stream":

        def batches(epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for start in range(0, len(x), 1000):
                yield np.array(x[start : start + 1000]), np.array(y[start : start + 1000])

        return data.Stream(batches, samples=len(x), window=20_000)
    return x, y


def _anonymous() -> int:
    """The resident memory of this process that is not of files, in bytes; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(folder: Path, way: str, batch: int) -> dict[str, Any]:
    """Train for an epoch in this process."""
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            peak[0] = max(peak[0], _anonymous())

    threading.Thread(target=watch, daemon=True).start()
    model = Sequential(layers.Dense(_FEATURES, 64), layers.ReLU(), layers.Dense(64, _CLASSES), seed=1)
    trainer = Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.05))
    begun = time.perf_counter()
    history = trainer.fit(_given(folder, way), batch_size=batch, seed=1, progress=False)
    seconds = time.perf_counter() - begun
    ended.set()
    return {
        "way": way,
        "samples_per_second": history.samples_per_second,
        "seconds": seconds,
        "anonymous_mb": peak[0] / 2**20,
        "maxrss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "losses_sha256": history.losses_sha256,
    }


def main(arguments: list[str]) -> None:
    """Run the study, or with `--child WAY FOLDER BATCH` one of its processes."""
    if arguments[:1] == ["--child"]:
        way, folder, batch = arguments[1:]
        sys.stdout.write(json.dumps(measure(Path(folder), way, int(batch))))
        return
    path = Path(arguments[0])
    rows, size, repeats = (
        int(value) for value in [*arguments[1:], *("10_000_000", "256", "3")[len(arguments) - 1 :]]
    )
    path.mkdir(parents=True, exist_ok=True)
    _make(path, rows)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            command = [sys.executable, "-m", __spec__.name, "--child", way, str(path), str(size)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way].append(json.loads(done.stdout))
    print(f"{rows:,} rows of {_FEATURES} float32 features, batch {size}, medians of {repeats}")
    base = median(run["samples_per_second"] for run in found["memory"])
    for way, runs in found.items():
        speed, seconds, anonymous, maxrss = (
            median(run[key] for run in runs)
            for key in ("samples_per_second", "seconds", "anonymous_mb", "maxrss_mb")
        )
        digests = ", ".join(sorted({run["losses_sha256"][:12] for run in runs}))
        print(
            f"{way:<7} {speed:>10,.0f} samples/s ({speed / base:4.0%})  {seconds:6.1f} s in all  "
            f"RssAnon {anonymous:>6,.0f} MB  maxrss {maxrss:>6,.0f} MB  losses {digests}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
