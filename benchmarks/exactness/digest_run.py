"""Computes one row of the digest matrix, in a process of its own.

`train_digits` trains 784-100-200-10 on images for many steps. `train_small` trains the networks of `networks.py`,
which together use every layer, and also takes digests of their predictions and metrics. Training is done by a Trainer
or by workers. A worker is a thread that holds a copy of the model and computes a share of every batch; the workers'
sums are added in random order.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from xnn.backends import Backend, numerics
from xnn.backends.communicator import with_communicator
from xnn.benchmarks.exactness.engines import install, ran
from xnn.benchmarks.exactness.networks import EPOCHS, SMALL, Parts
from xnn.data import Batches
from xnn.errors import BackendUnavailableError, MissingExtraError
from xnn.history import History
from xnn.layers.files import weights_sha256
from xnn.losses import SoftmaxCrossEntropy
from xnn.optimizers import SGD
from xnn.runs import mlp
from xnn.runs.process import serve
from xnn.training import Trainer
from xnn.training.inputs import prepare

__all__ = ["Meeting", "Server", "Training", "main", "train_digits", "train_small"]

BATCH = 32
_SEED = 5
_PATIENCE = 300.0  # seconds that a worker waits for the others


class Meeting:
    """Adds up the arrays of all workers, or takes their maximum, two at a time in random order.

    Each worker calls `meet` and waits for the others. The last one computes the result.
    """

    def __init__(self, lib: Backend, workers: int, seed: int) -> None:
        self.lib, self.workers = lib, workers
        self.random = np.random.default_rng(seed)
        self.brought: list[Any] = [None] * workers
        self.result: Any = None
        self.barrier = threading.Barrier(workers, action=self._reduce, timeout=_PATIENCE)

    def meet(self, worker: int, kind: str, x: Any) -> Any:
        """The reduction of all workers' x. Every worker must give the same kind of reduction and the same shape."""
        self.brought[worker] = kind, x
        self.barrier.wait()
        return self.result

    def _reduce(self) -> None:
        kinds = {(kind, tuple(getattr(x, "shape", ()))) for kind, x in self.brought}
        if len(kinds) != 1:
            raise AssertionError(f"the workers do not reduce the same: {sorted(kinds)}")
        kind = kinds.pop()[0]
        add = {"maximum": self.lib.xp.maximum}.get(kind, lambda a, b: a + b)
        parts = [x for _, x in self.brought]
        while len(parts) > 1:
            one, other = (parts.pop(int(self.random.integers(len(parts)))) for _ in range(2))
            parts.append(add(one, other))
        self.result = parts[0]


class Member:
    """The communicator of one worker: it hands the worker's arrays to the `Meeting` of all workers."""

    def __init__(self, meeting: Meeting, worker: int) -> None:
        self.meeting, self.worker = meeting, worker

    def maximum(self, x: Any) -> Any:
        return self.meeting.meet(self.worker, "maximum", x)

    def total(self, x: Any) -> Any:
        return self.meeting.meet(self.worker, "total", x)

    def count(self, rows: int) -> int:
        return int(self.meeting.meet(self.worker, "count", rows))


class Training:
    """Trains a model by a Trainer, or by workers that each compute a share of every batch.

    build: returns (model, loss, optimizer); called once for each worker.
    mode: the numerics, "exact" or "fast".
    kernels: the Trainer's table of kernels. Workers use the ops alone.
    workers: how many; 0 (default) trains with a Trainer.
    seed: of the order in which the workers' arrays are added.
    metrics: as for Trainer.
    """

    def __init__(
        self,
        build: Callable[[], Parts],
        mode: str,
        kernels: str = "ops",
        workers: int = 0,
        seed: int = 0,
        metrics: Sequence[Any] | None = None,
    ) -> None:
        self.mode, self.workers = mode, workers
        self.replicas = [build() for _ in range(max(1, workers))]
        self.model, loss, optimizer = self.replicas[0]
        self.lib = self.model.backend
        self.trainer = Trainer(
            self.model, loss, optimizer, metrics, kernels=kernels if not workers else "ops", numerics=mode
        )
        meeting = Meeting(self.lib, max(1, workers), seed)
        self.members = [Member(meeting, worker) for worker in range(workers)]
        self._epoch = self._step = 0

    def fit(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> str:
        """Train for one epoch and return the digest of its losses."""
        if not self.members:
            history = self.trainer.fit(
                (x, y), epochs=1, batch_size=BATCH, sample_weight=weights, seed=_SEED, progress=False
            )
            return history.losses_sha256
        arrays = prepare(self.model, self.replicas[0][1], (), (x, y), "training", weights)
        batches = Batches(arrays, BATCH, shuffle=True, seed=_SEED)
        rows = list(batches.numbers(self._epoch))
        losses = self._all_workers(batches, rows)
        self._epoch, self._step = self._epoch + 1, self._step + len(rows)
        # In fast numerics the workers' sums may differ in the last bits, and so may the norms they clip by.
        if self.mode == "exact" and len({weights_sha256(model) for model, _, _ in self.replicas}) != 1:
            raise AssertionError("the workers' weights differ from one another")
        history = History()
        history.add(losses, len(x), 0.0)
        return history.losses_sha256

    def _all_workers(self, batches: Batches, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Run one thread for each worker and return the loss of every step."""
        losses: list[Any] = [None] * self.workers
        faults: list[BaseException] = []

        def work(worker: int) -> None:
            try:
                # A new thread does not inherit the numerics, which are a context variable.
                with numerics(self.mode), with_communicator(self.members[worker]), self.lib.guard():
                    losses[worker] = [
                        self._step_of(worker, batches, chosen, self._step + n)
                        for n, chosen in enumerate(rows)
                    ]
            except BaseException as error:
                if not isinstance(error, threading.BrokenBarrierError):
                    faults.append(error)
                self.members[worker].meeting.barrier.abort()

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(self.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if faults:
            raise faults[0]
        if any(found is None or not np.array_equal(found, losses[0], equal_nan=True) for found in losses):
            raise AssertionError("the workers did not get the same losses")
        return np.asarray(losses[0], dtype=np.float64)

    def _step_of(self, worker: int, batches: Batches, rows: np.ndarray, step: int) -> float:
        """One worker's part of a step: forward and backward of its share of the batch, then the update; the loss."""
        model, loss, optimizer = self.replicas[worker]
        lib, own = self.lib, np.array_split(rows, self.workers)
        first = sum(map(len, own[:worker]))
        x, y, *weights = (lib.to_device(part) for part in batches.gather(own[worker]))
        model.set_stream(batches.seed, step, row=first)
        value: Any = loss.forward(model.forward(x, training=True), y, *weights)
        model.backward(loss.backward(), input_gradient=False)
        if self.mode == "fast":  # in which loss and gradients are those of the worker's rows
            value = self.members[worker].total(value)
            for parameter in model.parameters():
                parameter.grad = self.members[worker].total(parameter.grad)
        optimizer.step(model.parameters())
        return float(lib.to_host(value))

    def outcome(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> list[str]:
        """Two digests: of the weights (with the optimizer's averages, if any), and of predictions and metrics."""
        (model, _, optimizer), digest = self.replicas[0], hashlib.sha256()
        trained = weights_sha256(model)
        with optimizer.averaged() if optimizer.averages else nullcontext():
            if optimizer.averages:
                trained = hashlib.sha256((trained + weights_sha256(model)).encode()).hexdigest()
            with numerics(self.mode):
                digest.update(np.asarray(model.predict(x), dtype="<f4").tobytes())
            found = self.trainer.evaluate((x, y), sample_weight=weights)
        digest.update(json.dumps(found).encode())  # JSON writes enough digits to tell any two floats apart
        return [trained, digest.hexdigest()]


def train_digits(
    x: np.ndarray, y: np.ndarray, marks: Sequence[int], mode: str, patience: float = math.inf, **how: Any
) -> dict[str, Any]:
    """Train 784-100-200-10 by SGD and take digests of weights and losses after each number of steps in `marks`.

    Training stops early where reaching the next mark would take more than `patience` seconds. Returns
    {"marks": {steps: [weights' digest, losses' digest]}, "ms": milliseconds a step}.
    """

    def build() -> Parts:
        model = mlp.mlp(784, (100, 200), 10, rescale=(1 / 255, 0.0), seed=1)
        return model, SoftmaxCrossEntropy(), SGD(0.1)

    run, so_far, done = Training(build, mode, **how), hashlib.sha256(), 0
    found: dict[str, list[str]] = {}
    seconds = 0.0
    for mark in marks:
        if seconds * (mark - done) > patience:
            break
        rows = np.arange(done * BATCH, mark * BATCH) % len(x)
        start = time.perf_counter()
        so_far.update(run.fit(x[rows], y[rows]).encode())
        seconds = (time.perf_counter() - start) / (mark - done)
        found[str(mark)] = [weights_sha256(run.model), so_far.hexdigest()]
        done = mark
    return {"marks": found, "ms": 1e3 * seconds}


def train_small(mode: str, names: Sequence[str] = tuple(SMALL), **how: Any) -> dict[str, list[str]]:
    """Train each small network; its digests of weights, of predictions with metrics, and of losses."""
    found = {}
    for name in names:
        network = SMALL[name]
        run, data = Training(network.build, mode, metrics=network.metrics, **how), network.data()
        losses = hashlib.sha256("".join(run.fit(*data) for _ in range(EPOCHS)).encode())
        found[name] = [*run.outcome(*data), losses.hexdigest()]
    return found


class Server:
    """Answers the commands of digests.py for one row: an engine, a kernel table and a number of workers."""

    def __init__(self, data: str, engine: str, kernels: str, workers: int, seed: int) -> None:
        self.absent = ""
        try:
            self.engine = install(engine)
            self.engine.kernels(kernels)
        except (BackendUnavailableError, MissingExtraError) as error:
            self.absent = str(error)
        with np.load(data) as arrays:
            self.x, self.y = arrays["x"], arrays["y"]
        self.how: dict[str, Any] = {"kernels": kernels, "workers": workers, "seed": seed}

    def about(self) -> dict[str, Any]:
        """`ran`: the library that computes, in words. `absent`: why the engine cannot run here, else empty."""
        return {"absent": self.absent, "ran": "" if self.absent else ran(self.engine)}

    def run(self, mode: str, marks: list[int], patience: float) -> dict[str, Any]:
        """Train in the numerics `mode`: the small networks, then the digits."""
        small = train_small(mode, **self.how)
        return {**train_digits(self.x, self.y, marks, mode, patience, **self.how), "small": small}


def main() -> None:
    """Answer commands from standard input until it ends."""
    serve(Server)


if __name__ == "__main__":
    main()
