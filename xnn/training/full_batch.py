"""Training by an optimizer that minimizes the loss over all the data, as a function of all weights (L-BFGS)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xnn.backends import current_numerics
from xnn.backends.threads import limit_threads
from xnn.data import Batches
from xnn.errors import DivergenceError, NumericsError, OptionError
from xnn.losses import LossOverBatches
from xnn.metrics import Metric, Totals
from xnn.training.fit import Fit
from xnn.training.steps import Stepper

__all__ = ["FullBatchFit"]


class _FullBatch:
    """The loss and its gradient over all the data, computed batch by batch.

    Raises NumericsError in exact numerics, OptionError for a model that draws random numbers.
    """

    def __init__(self, stepper: Stepper, batches: Batches, metrics: Sequence[Metric]) -> None:
        self.stepper, self.batches = stepper, batches
        self.parameters = [p for p in stepper.model.parameters() if not p.frozen]
        if current_numerics() == "exact":
            raise NumericsError(
                "LBFGS searches with SciPy, whose bits are not the same everywhere: choose another optimizer, or "
                "numerics='fast'"
            )
        first = stepper.program(min(batches.batch_size, batches.rows))
        if any(call.kind == "draw" for call in first.calls):
            raise OptionError(
                "LBFGS needs the same loss from the same weights: remove the layers that draw random numbers"
            )
        #: The loss and the metrics over all rows, at the weights evaluated last.
        self.mean, self.counts = LossOverBatches(stepper.loss), Totals(metrics)

    def minimize(
        self,
        optimizer: Any,
        iterations: int,
        evaluated: Callable[[float, float], None],
        iterated: Callable[[], bool],
    ) -> None:
        """Train. When `iterated` is called, and in the end, the model has the weights of an iteration.

        evaluated(loss, seconds): called after each evaluation. iterated(): called after each iteration; tells whether
        to stop.
        Raises DivergenceError where the loss or its gradient is not finite; the weights are the last iteration's.
        """
        self.stepper.refresh()
        decays = np.concatenate([np.full(p.size, optimizer.decay_of(p)) for p in self.parameters])
        best = self._weights()

        def function(x: np.ndarray) -> tuple[float, np.ndarray]:
            start = time.perf_counter()
            self._put(x)
            loss, gradient = self._loss_and_gradient()
            evaluated(loss, time.perf_counter() - start)
            w = self._weights()  # x in the model's dtype
            if not (np.isfinite(loss) and np.isfinite(gradient).all()):
                raise DivergenceError(
                    f"the loss is {loss:g}, or its gradient not finite, at weights that LBFGS tried; the model has "
                    "those of the iteration before. Look at the data's scale, or add weight_decay"
                )
            return loss + 0.5 * float(np.sum(decays * w * w)), gradient + decays * w

        def after_each(x: np.ndarray) -> None:
            nonlocal best
            best = x.copy()
            if iterated():
                raise StopIteration  # how SciPy is told to stop

        try:
            best = optimizer.minimize(function, best, iterations, after_each)
        finally:
            self._put(best)

    def _weights(self) -> np.ndarray:
        lib = self.stepper.lib
        flat = [np.ravel(lib.to_host(p.value)).astype(np.float64) for p in self.parameters]
        return np.concatenate(flat)

    def _put(self, x: np.ndarray) -> None:
        lib, start = self.stepper.lib, 0
        for p in self.parameters:
            p.value = lib.to_device(x[start : start + p.size].reshape(p.shape).astype(p.dtype))
            start += p.size
        self.stepper.store.attach()

    def _loss_and_gradient(self) -> tuple[float, np.ndarray]:
        """Loss and gradient over all rows, at the model's weights; fills each parameter's grad."""
        lib, loss = self.stepper.lib, self.stepper.loss
        self.mean, self.counts = LossOverBatches(loss), Totals(self.counts.metrics)
        gradients, divisor = [np.zeros(p.shape) for p in self.parameters], 0.0
        for numbers in self.batches.numbers(0):
            self.stepper.step(numbers, 0)
            (value,), *columns = self.stepper.take()
            total = float(columns.pop()[0]) if self.stepper.total else len(numbers)
            self.mean.add(value, total)
            self.counts.add([column[0] for column in columns], len(numbers))
            divisor += total
            for gradient, p in zip(gradients, self.parameters, strict=True):
                gradient += lib.to_host(p.grad) * (total if loss.reduction == "mean" else 1.0)
        for gradient, p in zip(gradients, self.parameters, strict=True):
            gradient /= (divisor or 1.0) if loss.reduction == "mean" else 1.0  # 0 where nothing counted
            p.grad = lib.to_device(gradient.astype(p.dtype))
        return self.mean.value, np.concatenate([gradient.ravel() for gradient in gradients])


class FullBatchFit(Fit):
    """A fit by an optimizer such as LBFGS: each of its iterations is one epoch and one step.

    The arguments are Fit's. Raises NumericsError or OptionError as _FullBatch does.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.steps_per_epoch = 1
        self.whole = _FullBatch(self.stepper, self.batches, self.trainer.metrics)

    def run(self, epochs: int) -> None:
        """Take this many iterations, or fewer if the optimizer, Ctrl-C or a callback ends the training."""
        try:
            with limit_threads(self.threads):
                self.whole.minimize(self.trainer.optimizer, epochs, self.evaluated, self.iterated)
        except DivergenceError as error:
            error.history = self.history
            raise

    def evaluated(self, loss: float, seconds: float) -> None:
        """Count one evaluation of the loss over all the data."""
        self.history.add(np.array([loss]), self.batches.rows, seconds)
        self.trainer.step += 1

    def iterated(self) -> bool:
        """Validate and run the callbacks after an iteration. Returns whether to end."""
        loss, metrics = self.whole.mean.value, self.whole.counts.results()
        for watcher in self.watchers:
            watcher.on_step(self.history, self.trainer.epoch, 1, loss)
            watcher.on_check(self.history, self.trainer.epoch, 1, loss, metrics)
        self.end_epoch({"epoch": self.trainer.epoch + 1, "loss": loss, **metrics})
        return self.interrupted() or bool(self.history.stopped)
