"""Trainer: the loop that turns data into weights, and the doors around it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from xnn.backends import Backend, admit
from xnn.backends.plan import execution_plan, limit_threads
from xnn.callbacks import Callback, ProgressBar
from xnn.data import Batches
from xnn.diagnosis import diagnose, finite
from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.history import History
from xnn.layers import Sequential
from xnn.layers.layer import check_count
from xnn.losses import Loss
from xnn.metrics import Metric
from xnn.metrics import get as get_metric
from xnn.optimizers import Optimizer

__all__ = ["Trainer"]

# The losses stay on the device and are looked at this often: looking at each would wait for it each time.
_CHECK_EVERY = 100


class Trainer:
    """Trains a model: fit, evaluate.

    metrics: names ("accuracy") or functions (xnn.metrics.Metric). callbacks: xnn.callbacks.Callback.
    threads: a limit for BLAS while fit runs, never above one already set; None leaves it alone.
    Each fit goes on where the last one ended: two of one epoch are one of two, bit for bit.
    """

    def __init__(
        self,
        model: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        metrics: Sequence[str | Metric] = ("accuracy",),
        callbacks: Sequence[Callback] = (),
        threads: int | None = None,
    ) -> None:
        for name, value, kind in (
            ("model", model, Sequential),
            ("loss", loss, Loss),
            ("optimizer", optimizer, Optimizer),
        ):
            if not isinstance(value, kind):
                raise OptionError(f"Trainer needs a {kind.__name__} as {name}, got {value!r}")
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.metrics = [get_metric(metric) for metric in metrics]
        self.callbacks = list(callbacks)
        self.threads = threads
        self.epoch = self.step = 0  # done so far, over all fits

    def fit(
        self,
        data: tuple[Any, Any],
        validation: tuple[Any, Any] | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        seed: int = 0,
        progress: bool = True,
        shuffle: bool = True,
    ) -> History:
        """Train on data = (x, y) for so many epochs; returns the History.

        x: (n, ...), y: what the loss needs; host arrays (moved batch by batch) or arrays of the model's
        backend. `seed` draws the shuffles and the dropout masks. Ctrl-C ends after the step in hand and
        returns what was done, with history.interrupted set; a second one ends at once.
        Raises ShapeError, DTypeError, LabelError or OptionError before training for data or options
        that do not fit, DivergenceError when a loss, gradient or weight is no longer finite.
        """
        lib, model = self.model.backend, self.model
        check_count("epochs", epochs)
        batches = Batches(self._prepare(data, "training"), batch_size, shuffle, seed)
        held_out = None if validation is None else self._prepare(validation, "validation")
        history = History()
        watchers = [*self.callbacks, *([ProgressBar()] if progress else [])]
        with limit_threads(self.threads) as threads, lib.guard(), _interruptible() as interrupted:
            history.plan = execution_plan(lib, model.dtype, batch_size, threads)
            try:
                for watcher in watchers:
                    watcher.on_fit_start(history, epochs, len(batches))
                for _ in range(epochs):
                    entry = self._epoch(lib, batches, seed, history, watchers, interrupted)
                    if interrupted():
                        break
                    if held_out is not None:
                        results = self._evaluate(lib, held_out, 1024)
                        entry.update({f"val_{name}": value for name, value in results.items()})
                    history.epochs.append(entry)
                    self.epoch += 1
                    for watcher in watchers:
                        watcher.on_epoch_end(history, entry)
            finally:
                model.forget()
                history.interrupted = interrupted()
                for watcher in watchers:
                    watcher.on_fit_end(history)
        return history

    def evaluate(self, data: tuple[Any, Any], batch_size: int = 1024) -> dict[str, float]:
        """The mean loss and metrics over data = (x, y), with the layers' inference behaviour."""
        check_count("batch_size", batch_size)
        lib = self.model.backend
        with limit_threads(self.threads), lib.guard():
            return self._evaluate(lib, self._prepare(data, "evaluation"), batch_size)

    def _epoch(
        self,
        lib: Backend,
        batches: Batches,
        seed: int,
        history: History,
        watchers: Sequence[Callback],
        interrupted: Any,
    ) -> dict[str, Any]:
        """One pass over the data; its mean loss and metrics."""
        model, loss, optimizer = self.model, self.loss, self.optimizer
        parameters = model.parameters()
        totals = np.zeros(1 + len(self.metrics))
        seen = done = 0
        pending: list[tuple[int, np.ndarray, Any, list[Any]]] = []
        kept = self._snapshot()
        start = time.perf_counter()

        def check() -> None:
            """Bring the pending steps' numbers to the host; raise with a diagnosis if one is not finite."""
            nonlocal seen, kept, start
            if not pending:
                return
            losses = lib.to_host(lib.xp.stack([p[2] for p in pending])).astype(np.float64)
            if not (np.isfinite(losses).all() and finite(lib, *(p.value for p in parameters))):
                raise self._diagnose(lib, batches, seed, kept, pending)
            counts = np.asarray([len(p[1]) for p in pending], dtype=np.float64)
            sums = [losses * counts]
            for m in range(len(self.metrics)):
                sums.append(lib.to_host(lib.xp.stack([p[3][m] for p in pending])).astype(np.float64))
            totals[:] += [float(np.sum(s)) for s in sums]
            seen += int(counts.sum())
            history.add_losses(losses)
            history.steps += len(pending)
            history.samples += int(counts.sum())
            history.seconds += time.perf_counter() - start
            pending.clear()
            kept = self._snapshot()
            means = totals / seen
            for watcher in watchers:
                watcher.on_check(history, self.epoch, done, float(means[0]), self._named(means[1:]))
            start = time.perf_counter()

        for rows in batches.numbers(self.epoch):
            x, y = (lib.to_device(part) for part in batches.gather(rows))
            model.set_stream(seed, self.step)
            outputs = model.forward(x, training=True)
            value = loss.compute(outputs, y)
            model.backward(loss.backward(), input_gradient=False)
            optimizer.step(parameters)
            pending.append(
                (self.step, rows, value, [metric(lib.xp, outputs, y) for _, metric in self.metrics])
            )
            self.step += 1
            done += 1
            if len(pending) == _CHECK_EVERY or interrupted():
                check()
                if interrupted():
                    break
        check()
        means = totals / max(seen, 1)
        return {"epoch": self.epoch + 1, "loss": float(means[0]), **self._named(means[1:])}

    def _named(self, values: Any) -> dict[str, float]:
        return {name: float(v) for (name, _), v in zip(self.metrics, values, strict=True)}

    def _snapshot(self) -> Any:
        """Parameters and optimizer state. Updates make fresh arrays, so references are a copy."""
        return [p.value for p in self.model.parameters()], self.optimizer.snapshot()

    def _diagnose(self, lib: Backend, batches: Batches, seed: int, kept: Any, pending: Any) -> Exception:
        """Go back to the last check, replay, and name step, layer and tensor."""
        for parameter, value in zip(self.model.parameters(), kept[0], strict=True):
            parameter.value = value
        self.optimizer.restore(kept[1])

        def steps() -> Iterator[tuple[str, int, Any, Any, np.ndarray]]:
            for step, rows, _, _ in pending:
                x, y = (lib.to_device(part) for part in batches.gather(rows))
                batch = step - self.epoch * len(batches) + 1
                yield f"step {step + 1} (epoch {self.epoch + 1}, batch {batch})", step, x, y, rows

        return diagnose(self.model, self.loss, self.optimizer, steps(), seed)

    def _evaluate(self, lib: Backend, data: tuple[Any, Any], batch_size: int) -> dict[str, float]:
        totals = np.zeros(1 + len(self.metrics))
        batches = Batches(data, batch_size, shuffle=False)
        for x, y in batches.epoch(0):
            outputs: Any = lib.to_device(x)
            targets = lib.to_device(y)
            for layer in self.model.layers:
                outputs, _ = layer.apply(outputs, training=False)
            value, _ = self.loss.op.forward(lib.xp, outputs, targets)
            counted = [metric(lib.xp, outputs, targets) for _, metric in self.metrics]
            totals += [float(lib.to_host(value)) * len(x), *(float(lib.to_host(c)) for c in counted)]
        means = totals / batches.rows
        return {"loss": float(means[0]), **self._named(means[1:])}

    def _prepare(self, data: tuple[Any, Any], role: str) -> tuple[Any, Any]:
        """Look at a pair (x, y) once, on the host, before anything runs; labels wrap silently on a GPU."""
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise OptionError(f"{role} data must be a pair (x, y), got {type(data).__name__}")
        lib = self.model.backend
        x, y = (admit(lib, part if hasattr(part, "shape") else np.asarray(part)) for part in data)
        if x.ndim < 1 or not x.shape[0] or y.ndim < 1 or x.shape[0] != y.shape[0]:
            raise ShapeError(
                f"{role} data must be as many samples as targets, and at least one; "
                f"got x {tuple(x.shape)}, y {tuple(y.shape)}"
            )
        x = self.model.prepare(x)
        if isinstance(x, np.ndarray) and x.dtype.kind == "f" and not np.isfinite(x).all():
            row = int(np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))[0])
            raise DTypeError(
                f"{role} data: sample {row} holds NaN or infinity; fill or drop such samples first"
            )
        targets = y if isinstance(y, np.ndarray) else lib.to_host(y)
        self.loss.check(targets, self.model.output_shape(tuple(x.shape[1:])))
        prepared = self.loss.prepare(targets, self.model.dtype)
        return x, prepared if isinstance(y, np.ndarray) else lib.to_device(prepared)


@contextmanager
def _interruptible() -> Iterator[Any]:
    """Ctrl-C inside the block sets a flag, so that the step in hand is finished; a second one interrupts.

    Yields a function that tells the flag. Only the main thread can do so; elsewhere nothing changes.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def remember(signum: int, frame: Any) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    signal.signal(signal.SIGINT, remember)
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGINT, before)
