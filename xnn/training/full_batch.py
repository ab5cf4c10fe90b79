"""Training by L-BFGS, which takes the loss over all the data as one function of all weights, and minimizes it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from xnn.backends import Backend, current_numerics
from xnn.backends.threads import limit_threads
from xnn.callbacks import call_back
from xnn.data import Batches
from xnn.errors import DivergenceError, NumericsError, OptionError
from xnn.graph.scope import last_assignment
from xnn.losses import LossOverBatches
from xnn.metrics import Metric, Totals
from xnn.training.fit import Fit
from xnn.training.full_batch_ranks import search
from xnn.training.saving import begin, save_if_asked
from xnn.training.steps import Stepper

__all__ = ["FullBatchFit"]


_MOST_SEEN = 2**28  # bytes of gradients that are kept for a checkpoint


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
        #: Where the search began, the values and gradients that it was given since, and the iterations done. It
        #: repeats itself from these numbers, since SciPy's own state cannot be saved.
        self.start: np.ndarray | None = None
        self.values, self.gradients = list[float](), list[np.ndarray]()
        self.iterations = 0
        #: The loss and the metrics over all rows, at the weights evaluated last.
        self.mean, self.counts = LossOverBatches(stepper.loss), Totals(metrics)

    def minimize(
        self,
        optimizer: Any,
        iterations: int,
        evaluated: Callable[[float, float], None],
        iterated: Callable[[], bool],
    ) -> None:
        """Train. When `iterated` is called, and in the end, weights and buffers are those of an iteration.

        evaluated(loss, seconds): called after each evaluation. iterated(): called after each iteration, and may
        change the model if it returns True, which stops the search.
        Raises DivergenceError where the loss or its gradient is not finite, unless the optimizer takes it.
        """
        self.stepper.refresh()
        decays = np.concatenate([np.full(p.size, optimizer.decay_of(p)) for p in self.parameters])
        self.start = self._weights() if self.start is None else self.start
        known = zip(self.values[:], self.gradients[:], strict=True)
        done, repeated = self.iterations, 0

        def function(x: np.ndarray) -> tuple[float, np.ndarray]:
            for value, gradient in known:
                return value, gradient.copy()
            value, gradient = evaluate(x)
            if len(self.values) * x.nbytes < _MOST_SEEN:
                self.gradients.append(gradient.copy())
            self.values.append(value)
            return value, gradient

        def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
            start = time.perf_counter()
            self._put(x)
            loss, gradient = self._loss_and_gradient()
            evaluated(loss, time.perf_counter() - start)
            w = self._weights()  # x in the model's dtype
            if not (optimizer.passes_infinity or (np.isfinite(loss) and np.isfinite(gradient).all())):
                raise DivergenceError(
                    f"the loss is {loss:g}, or its gradient not finite, at weights that LBFGS tried; the model has "
                    "those of the iteration before. Look at the scale of samples and targets "
                    "(data.standardize, --scale-target), or add weight_decay"
                )
            return loss + 0.5 * float(np.sum(decays * w * w)), gradient + decays * w

        def after_each(x: np.ndarray) -> None:
            nonlocal repeated
            repeated += 1
            if repeated <= done:
                return
            self.iterations += 1
            self._put(x)
            self.stepper.keep()
            if iterated():
                raise StopIteration  # how SciPy is told to stop

        try:
            search(self.stepper.ranks, optimizer, function, self.start, iterations, after_each)
        finally:
            self.stepper.restore()

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
        with closing(self.batches), closing(self.stepper.numbers(0)) as batches:
            for numbers in batches:
                self.stepper.step(numbers, 0)
                (value,), *columns = self.stepper.take()
                total = float(columns.pop()[0]) if self.stepper.total else len(numbers)
                self.mean.add(value, total)
                self.counts.add([column[0] for column in columns], len(numbers))
                divisor += total
                for gradient, p in zip(gradients, self.parameters, strict=True):
                    gradient += lib.to_host(p.grad) * (total if loss.over_batches != "sum" else 1.0)
        for gradient, p in zip(gradients, self.parameters, strict=True):
            gradient /= (divisor or 1.0) if loss.over_batches != "sum" else 1.0  # 0 where nothing counted
            p.grad = lib.to_device(gradient.astype(p.dtype))
        return self.mean.value, np.concatenate([gradient.ravel() for gradient in gradients])


class FullBatchFit(Fit):
    """A fit by an optimizer such as LBFGS: each of its iterations is one epoch and one step.

    The arguments are Fit's. Raises NumericsError or OptionError as _FullBatch does.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.steps_per_epoch, self.anew = 1, False
        self.whole: _FullBatch | None = _FullBatch(self.stepper, self.batches, self.trainer.metrics)

    def run(self, epochs: int) -> None:
        """Take this many iterations, or fewer if the optimizer, Ctrl-C or a callback ends the training.

        Where a callback changes weights, options or data, the search begins anew, as in another fit.
        """
        self.check_parts()
        begin(self, epochs)
        try:
            with limit_threads(self.threads, self.stepper.product_threads):
                self.anew = True
                while self.anew and len(self.history.epochs) < epochs and not self.history.stopped:
                    self.anew = False
                    if self.of_users:
                        self.stepper.reload()
                    if self.whole is None:
                        self.whole = _FullBatch(self.stepper, self.batches, self.trainer.metrics)
                    left = epochs - len(self.history.epochs) + self.whole.iterations
                    self.whole.minimize(self.trainer.optimizer, left, self.evaluated, self.iterated)
                    self.whole = None
        except DivergenceError as error:
            error.history = self.history
            raise

    def evaluated(self, loss: float, seconds: float) -> None:
        """Count one evaluation of the loss over all the data."""
        self.history.add(np.array([loss]), self.batches.rows, seconds)
        self.trainer.step += 1

    def iterated(self) -> bool:
        """Validate and run the callbacks after an iteration. Returns whether to end."""
        assert self.whole is not None
        loss, metrics = self.whole.mean.value, self.whole.counts.results()
        self.stepper.store.hand_out()
        before = self.what_callbacks_may_change()
        for watcher in self.watchers:
            call_back(watcher.on_step, self.history, self.trainer.epoch, 1, loss)
            call_back(watcher.on_check, self.history, self.trainer.epoch, 1, loss, metrics)
        self.end_epoch({"epoch": self.trainer.epoch + 1, "loss": loss, **metrics})
        self.check_parts()
        self.ending.settle(self)
        ended = self.ending.has_come() or bool(self.history.stopped)
        changed = before != self.what_callbacks_may_change()
        if self.stepper.sharing is not None:
            self.stepper.sharing.check_changes("weights, options or data" if changed else "")
        if changed:
            self.stepper.refresh()
            self.anew = not ended
        save_if_asked(self, ends_epoch=True)
        if ended:
            save_if_asked(self, ends_fit=True)
        return ended or self.anew

    def state(self) -> dict[str, Any] | None:
        """What the search has seen, so that it can repeat itself up to here; None if it begins anew."""
        whole = self.whole
        if self.anew or whole is None or whole.start is None:
            return None
        if len(whole.gradients) < len(whole.values):
            raise OptionError(
                f"the search of LBFGS has seen {len(whole.values):,} gradients, more than a checkpoint can hold: "
                "save between fits of fewer epochs, or choose another optimizer"
            )
        seen = {"values": np.array(whole.values), "gradients": np.array(whole.gradients)}
        return {"start": whole.start, "iterations": whole.iterations, **seen}

    def restore(self, state: dict[str, Any] | None) -> None:
        if state is not None and self.whole is not None:
            self.whole.start, self.whole.iterations = state["start"], int(state["iterations"])
            self.whole.values, self.whole.gradients = state["values"].tolist(), [*state["gradients"]]

    def what_callbacks_may_change(self) -> tuple[Any, ...]:
        """The function that is minimized and the point where it is: weights, buffers, options, programs, data."""
        self.stepper.look_again(called_back=True)
        model, lib = self.stepper.model, self.stepper.lib
        state = [
            (id(array), lib.to_host(array.array).tobytes(), array.frozen) for _, array in model.named_state()
        ]
        options = {name: value for name, value in vars(self.trainer.optimizer).items() if name != "state"}
        data = [_checksum(lib, array) for array in self.batches.arrays] if self.of_users else []
        return state, options, last_assignment(), dict(self.stepper.programs), data


def _checksum(lib: Backend, array: Any) -> int:
    there = array if isinstance(array, np.ndarray) else lib.to_host(array)
    return zlib.crc32(np.ascontiguousarray(there).reshape(-1).view(np.uint8).data)
