"""The base of all metrics: counts of a batch on the device, their total on the host, and the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from xnn.backends import Backend, backend_of
from xnn.backends.host_arrays import as_host_array
from xnn.errors import DTypeError, LabelError, OptionError, ShapeError
from xnn.graph.habits import Habitual
from xnn.ops import Array, Namespace
from xnn.ops.apply import apply_rule
from xnn.options import attributes_of, explained_class, shown, takes, written

__all__ = ["Count", "Metric", "Totals", "count_batch", "count_on_device", "try_out"]

#: How many samples are counted one by one, in a search for a broadcast.
_ALONE = 64

#: count(xp, outputs, targets) -> an array on the device, of one shape whatever the size of the batch.
Count: TypeAlias = Callable[[Namespace, Array, Array], Array]


@explained_class
class Metric(Habitual):
    """The base of all metrics. Derive a class from it and define `count`, and if need be `merge` and `result`.

    name: the key in the history. Default: the `name` of the class.

    count(xp, outputs, targets) counts a batch: it returns an array whose shape does not depend on the size of the
    batch. It is written like an op, with Array API functions of `xp`, and so runs on every backend and in exact
    numerics. `merge` adds two counts, and `result` computes the metric from the total.

    metric(outputs, targets) is the result on these samples alone. `update` and `compute` go batch by batch. A Trainer
    keeps its own totals, so that one object can be in several Trainers and be updated by hand as well.
    Raises OptionError for a name that is not a string; for a `count` of yours that returns a mean, which cannot be
    added up; and for a `result` that is neither a number nor an array.

        >>> import numpy as np
        >>> from xnn import metrics
        >>> class Bias(metrics.Metric):
        ...     name = "bias"
        ...     def count(self, xp, outputs, targets):
        ...         return xp.sum(outputs - targets, axis=0)
        >>> bias = Bias()
        >>> bias.update(np.array([[2.0], [3.0]]), np.array([[1.0], [1.0]]))
        >>> bias.update(np.array([[1.0]]), np.array([[1.0]]))
        >>> bias.compute()
        1.0
        >>> bias([[5.0], [3.0]], [[1.0], [1.0]])
        3.0
    """

    _habits = "metric"
    #: The key in the history.
    name: str = "metric"
    count: Count
    #: Whether the counts of some samples and of others add up to those of all without rounding, as whole numbers do.
    adds_up = False
    _totals: Totals | None = None
    _named = False
    _tried = False  # whether `count` was found to count, on numbers that are not zero

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__init__" in vars(cls) and cls.__module__.startswith("xnn.metrics."):
            explained_class(cls)
        bound = [] if isinstance(vars(cls).get("count"), staticmethod) else [None]
        if "count" in vars(cls) and not takes(cls.count, *bound, None, None, None):
            raise OptionError(
                f"{cls.__name__} must take three arguments: def count(self, xp, outputs, targets)"
            )

    def __init__(self, name: str | None = None) -> None:
        if name is not None and (not isinstance(name, str) or not name):
            raise OptionError(f"a metric's name must be a string, got {shown(name)}")
        self.name, self._named = name or self.name, name is not None

    def __repr__(self) -> str:
        options = attributes_of(self)
        if not self._named:
            options.pop("name", None)
        return written(self, options)

    def check(self, targets: np.ndarray) -> None:
        """Raise for targets that this metric cannot count. A Trainer calls it once, before it runs.

        targets: all targets, on the host.
        """

    def merge(self, total: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """Combine the counts of two batches, arrays of float64 on the host. Default: their sum."""
        return np.asarray(total + counted)

    def result(self, total: np.ndarray, samples: int) -> Any:
        """The metric's value, a number or an array. Default: the mean of the total's elements, divided by `samples`.

        total: the count of all batches. samples: their number of samples.
        """
        return float(np.mean(total)) / samples

    def counter(self) -> Count:
        """The function that a program counts with: `count`, or one that kernels know."""
        return self.count

    def __call__(self, outputs: Any, targets: Any) -> Any:
        """The metric of these samples alone; what `update` counted stays as it is. The arguments are the same."""
        alone = Totals([self])
        self._add(alone, outputs, targets)
        if not alone.samples:
            raise ShapeError(f"{self.name} got no samples: give it at least one")
        return alone.results()[self.name]

    def update(self, outputs: Any, targets: Any) -> None:
        """Count a batch.

        outputs, targets: arrays of one backend whose first axis is the samples, or lists.

        Raises ShapeError or DTypeError for arrays that it cannot count, LabelError for labels outside
        0 .. classes - 1.
        """
        totals = self._totals or Totals([self])
        self._add(totals, outputs, targets)
        self._totals = totals if totals.samples else None

    def _add(self, totals: Totals, outputs: Any, targets: Any) -> None:
        """Count a batch, if it is not empty, into these totals."""
        outputs, targets = as_host_array(outputs, "outputs"), as_host_array(targets, "targets")
        lib = backend_of(outputs, targets)
        if 0 in (outputs.ndim, targets.ndim) or outputs.shape[0] != targets.shape[0]:
            raise ShapeError(
                f"{self.name} got outputs {outputs.shape} and targets {targets.shape}; it needs one of each a sample"
            )
        if outputs.shape[0]:
            with lib.guard():
                counts = count_batch(lib, [self], outputs, targets)
                labels = targets.ndim == outputs.ndim - 1 and lib.xp.isdtype(targets.dtype, "integral")
                if labels and targets.size:
                    low, high = (int(lib.to_host(f(targets))) for f in (lib.xp.min, lib.xp.max))
                    if low < 0 or high >= outputs.shape[1]:
                        raise LabelError(
                            f"{self.name} got labels from {low} to {high} and {outputs.shape[1]} outputs: labels "
                            f"must lie in 0 .. {outputs.shape[1] - 1}; a single output takes targets (n, 1)"
                        )
            totals.add(counts, outputs.shape[0])

    def compute(self) -> Any:
        """The result over all updates since the last reset. Raises OptionError if there was none."""
        if self._totals is None:
            raise OptionError(f"{self.name} has counted no samples yet: call update(outputs, targets) first")
        return self._totals.results()[self.name]

    def reset(self) -> None:
        """Forget all updates."""
        self._totals = None


class Totals:
    """The counts of several metrics, added up over batches."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics, self.samples = metrics, 0
        self._totals: list[np.ndarray] = []

    def __repr__(self) -> str:
        return f"<Totals of {', '.join(metric.name for metric in self.metrics)}: {self.samples:,} samples>"

    def add(self, counts: Sequence[np.ndarray], samples: int) -> None:
        """Add a batch. Raises ShapeError if a metric counted another shape than before.

        counts: what each metric counted, float64 on the host. samples: the size of the batch.
        """
        if self.samples:
            for metric, total, counted in zip(self.metrics, self._totals, counts, strict=True):
                if total.shape != counted.shape:
                    raise ShapeError(
                        f"{metric.name} counted an array {counted.shape}, and {total.shape} in batches before: give "
                        "it outputs of one width, or reset it"
                    )
            pairs = zip(self.metrics, self._totals, counts, strict=True)
            self._totals = [metric.merge(total, counted) for metric, total, counted in pairs]
        else:
            self._totals = list(counts)
        self.samples += samples

    def results(self) -> dict[str, Any]:
        """Each metric's result by its name. Arrays become lists and NumPy's numbers Python's, for logs."""
        pairs = zip(self.metrics, self._totals, strict=True)
        return {metric.name: _plain(metric, metric.result(total, self.samples)) for metric, total in pairs}


def _plain(metric: Metric, result: Any) -> Any:
    """A metric's result as Python numbers, for logs. Raises OptionError for what has no numbers."""
    plain = result.tolist() if isinstance(result, (np.ndarray, np.generic)) else result
    if not isinstance(plain, (Real, list, tuple)):
        raise OptionError(
            f"the result of the metric {metric.name} is {shown(result)}: `result` must return a number or a "
            "NumPy array"
        )
    return plain


def count_batch(lib: Backend, metrics: Sequence[Metric], outputs: Array, targets: Array) -> list[np.ndarray]:
    """What each metric counts in a batch, as float64 arrays on the host."""
    _try_all(lib, metrics, outputs, targets)
    return [_counted(lib, metric, outputs, targets) for metric in metrics]


def count_on_device(lib: Backend, metrics: Sequence[Metric], outputs: Array, targets: Array) -> list[Array]:
    """What each metric counts in a batch, as arrays on the device."""
    _try_all(lib, metrics, outputs, targets)
    return [_count(lib, metric, outputs, targets) for metric in metrics]


def _try_all(lib: Backend, metrics: Sequence[Metric], outputs: Array, targets: Array) -> None:
    for metric in metrics:
        try_out(lib, metric, outputs, targets)


def _counted(lib: Backend, metric: Metric, outputs: Array, targets: Array) -> np.ndarray:
    """What a metric counts in a batch, as a float64 array on the host."""
    return np.asarray(lib.to_host(_count(lib, metric, outputs, targets))).astype(np.float64)


def _count(lib: Backend, metric: Metric, outputs: Array, targets: Array) -> Array:
    """What a metric counts in a batch, as an array on the device. Raises DTypeError for complex numbers."""
    count = lib.number_on_device(apply_rule(metric.count, lib.math, (outputs, targets), {}))
    if not lib.xp.isdtype(count.dtype, ("bool", "integral", "real floating")):
        raise DTypeError(f"the metric {metric.name} counted {count.dtype}: it must count real numbers")
    return count


def try_out(lib: Backend, metric: Metric, outputs: Array, targets: Array) -> None:
    """Raise unless a metric of the user's counts: twice the samples give twice the count, in the same shape.

    Nor may it broadcast the samples with one another.

    A count that is zero, or NaN, tells nothing yet; then the targets are also tried in another order, and the next
    batch is tried again. Metrics with a `result` of their own may count as they like, in one shape.
    """
    if metric._tried or (
        type(metric).__module__.startswith("xnn.metrics.") and not hasattr(metric, "function")
    ):
        return
    xp, sums = lib.xp, type(metric).result is Metric.result and type(metric).merge is Metric.merge
    for given in (targets, xp.roll(targets, 1, axis=0)):
        once = _counted(lib, metric, outputs, given)
        twice = _counted(lib, metric, *(xp.concat([x, x]) for x in (outputs, given)))
        if once.shape != twice.shape:
            n = outputs.shape[0]
            raise ShapeError(
                f"the metric {metric.name} counted an array {once.shape} for {n} samples and {twice.shape} for "
                f"{2 * n}: add up the samples, as by xp.sum(x, axis=0), since batches are added"
            )
        telling = np.isfinite(once) & np.isfinite(twice) & (once != 0.0)
        same = np.abs(twice - once)[telling] < 0.25 * np.abs(once)[telling]
        if sums and same.size and same.all():
            raise OptionError(
                f"the metric {metric.name} returned {repr(once.tolist())[:60]} for a batch, and the same for the "
                "batch taken twice, so it is a mean or a maximum: return the sum over the batch or a number for each "
                "sample (n,); a class derived from xnn.metrics.Metric may merge otherwise"
            )
        if sums:
            _check_broadcast(lib, metric, outputs, given)
        if telling.any():
            metric._tried = True
            return


def _check_broadcast(lib: Backend, metric: Metric, outputs: Array, targets: Array) -> None:
    """Raise ShapeError if a metric combines (n, 1) with (n,) to (n, n), every sample with every other.

    Then it counts something else for the samples together than for each alone.
    """
    wide, flat = sorted((outputs.shape, targets.shape), key=len, reverse=True)
    if len(wide) == len(flat) or wide[len(wide) - len(flat)] != 1:
        return
    rows = min(int(outputs.shape[0]), _ALONE)
    together = _counted(lib, metric, outputs[:rows, ...], targets[:rows, ...])
    alone = [_counted(lib, metric, outputs[n : n + 1, ...], targets[n : n + 1, ...]) for n in range(rows)]
    added = np.sum(alone, axis=0)
    differ = np.abs(together - added) > 1e-3 * np.maximum(np.abs(together), np.abs(added))
    if differ.any() and np.isfinite(added).all():
        raise ShapeError(
            f"the metric {metric.name} broadcasts outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}, "
            "every sample with every other, since it counts something else for the samples one by one: give both one "
            f"shape, as y.reshape({', '.join(map(str, (-1, *wide[1:])))}) or xp.reshape does"
        )
