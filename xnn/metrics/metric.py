"""What a metric is: counts of a batch on the device, their total on the host, and the number that comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from xnn.backends import Backend, backend_of
from xnn.backends.kernels.calls import as_number
from xnn.errors import LabelError, OptionError, ShapeError
from xnn.ops import Array, Namespace
from xnn.ops.apply import apply_rule

__all__ = ["Count", "Metric", "Totals", "count_batch"]

#: count(xp, outputs, targets) -> an array of one shape for batches of every size, on the device.
Count: TypeAlias = Callable[[Namespace, Array, Array], Array]


class Metric:
    """What is counted in each batch, how two counts become one, and the number that comes out.

    count(xp, outputs, targets) -> an array of one shape for batches of every size. It runs on the device, written
    as an op is (Array API functions of `xp`), so that exact numerics can run it too; it may be a plain function.

    A Trainer keeps totals of its own: one object can be in several, and be updated by hand besides.
    """

    #: Its key in the history.
    name: str = "metric"
    count: Count
    _totals: Totals | None = None

    def __init__(self, name: str | None = None) -> None:
        if name is not None and (not isinstance(name, str) or not name):
            raise OptionError(f"a metric's name must be a string, got {name!r}")
        self.name = name or self.name

    def check(self, targets: np.ndarray) -> None:
        """Raise for host targets that mean nothing to this metric; a Trainer asks once, before it runs."""

    def merge(self, total: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """Two counts as one, float64 on the host; their sum unless it is overridden."""
        return np.asarray(total + counted)

    def result(self, total: np.ndarray, samples: int) -> Any:
        """The number for all samples, or an array; the total's mean over its elements, divided by the samples."""
        return float(np.mean(total)) / samples

    def update(self, outputs: Any, targets: Any) -> None:
        """Count a batch: arrays of one backend, in the numerics in force.

        Raises ShapeError or DTypeError for what it cannot count, LabelError for labels outside 0 .. classes - 1.
        """
        outputs, targets = (x if hasattr(x, "dtype") else np.asarray(x) for x in (outputs, targets))
        lib = backend_of(outputs, targets)
        if 0 in (outputs.ndim, targets.ndim) or outputs.shape[0] != targets.shape[0]:
            raise ShapeError(
                f"{self.name} needs a row of outputs and a target a sample, got {outputs.shape} and {targets.shape}"
            )
        if outputs.shape[0]:
            with lib.guard():
                counts = count_batch(lib, [self], outputs, targets)
                labels = targets.ndim == outputs.ndim - 1 and lib.xp.isdtype(targets.dtype, "integral")
                if labels and targets.size:
                    low, high = (int(lib.to_host(f(targets))) for f in (lib.xp.min, lib.xp.max))
                    if low < 0 or high >= outputs.shape[1]:
                        raise LabelError(
                            f"{self.name}: labels run from {low} to {high} and there are {outputs.shape[1]} outputs: "
                            f"labels must lie in 0 .. {outputs.shape[1] - 1}; a single output takes targets (n, 1)"
                        )
            self._totals = self._totals or Totals([self])
            self._totals.add(counts, outputs.shape[0])

    def compute(self) -> Any:
        """The result over all updates since the last reset. Raises OptionError if there was none."""
        if self._totals is None:
            raise OptionError(f"{self.name}.compute needs samples: call update(outputs, targets) first")
        return self._totals.results()[self.name]

    def reset(self) -> None:
        """Forget all updates."""
        self._totals = None


class Totals:
    """The counts of several metrics over the batches so far."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics, self.samples = metrics, 0
        self._totals: list[np.ndarray] = []

    def add(self, counts: Sequence[np.ndarray], samples: int) -> None:
        """A batch's counts, float64 on the host, and its samples. Raises ShapeError for counts of another shape."""
        if self.samples:
            for metric, total, counted in zip(self.metrics, self._totals, counts, strict=True):
                if total.shape != counted.shape:
                    raise ShapeError(
                        f"{metric.name} counted {total.shape} so far and {counted.shape} in this batch: give it "
                        "outputs of one width, or reset it"
                    )
            pairs = zip(self.metrics, self._totals, counts, strict=True)
            self._totals = [metric.merge(total, counted) for metric, total, counted in pairs]
        else:
            self._totals = list(counts)
        self.samples += samples

    def results(self) -> dict[str, Any]:
        """Each metric's result by its name: plain numbers and lists, as logs need them."""
        pairs = zip(self.metrics, self._totals, strict=True)
        found = {metric.name: metric.result(total, self.samples) for metric, total in pairs}
        return {
            name: x.tolist() if isinstance(x, (np.ndarray, np.generic)) else x for name, x in found.items()
        }


def count_batch(lib: Backend, metrics: Sequence[Metric], outputs: Array, targets: Array) -> list[np.ndarray]:
    """What each metric counts in a batch, float64 on the host."""
    found = (apply_rule(metric.count, lib.math, (outputs, targets), {}) for metric in metrics)
    return [lib.to_host(as_number(lib, count)).astype(np.float64) for count in found]
