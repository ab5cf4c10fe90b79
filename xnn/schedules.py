"""Learning rates that change as training runs: any function of the step's number, and the usual ones ready made.

    optimizers.SGD(schedules.Cosine(0.1, steps=10_000))
    optimizers.Adam(schedules.Warmup(schedules.Cosine(0.001, steps=9_500), steps=500))

A step is one batch, counted from 0 over all fits of the optimizer. For a schedule by epochs, count their steps, the
last batch of each may be smaller: per_epoch = math.ceil(samples / batch_size), and Step(0.1, every=30 * per_epoch).

A rate depends on the step's number and on nothing before it, so a resumed run goes on as it was. It is the same
number on every machine, in fast numerics too: powers and cosines are xnn's own (C libraries round theirs
differently). Numbers given are finite; rates are at least 0, steps positive integers, or OptionError is raised.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from xnn.errors import OptionError
from xnn.options import check_count, check_real

__all__ = [
    "SCHEDULES",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Exponential",
    "MultiStep",
    "OneCycle",
    "Polynomial",
    "Schedule",
    "Step",
    "Warmup",
    "check_rate",
]

#: schedule(step) -> the learning rate of that step, counted from 0 over all fits of the optimizer.
Schedule: TypeAlias = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """r(t) = rate."""

    rate: float

    def __post_init__(self) -> None:
        _reals(self, "rate")

    def __call__(self, step: int) -> float:
        """The learning rate of this step."""
        return self.rate


@dataclass(frozen=True)
class Step:
    """r(t) = rate factor^(t // every): smaller by `factor` every so many steps. PyTorch's StepLR."""

    rate: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _reals(self, "rate", "factor")
        _counts(self, "every")

    def __call__(self, step: int) -> float:
        """The learning rate of this step."""
        return self.rate * _power(self.factor, step // self.every)


@dataclass(frozen=True)
class MultiStep:
    """r(t) = rate factor^k, k of the `milestones` being at most t. PyTorch's MultiStepLR.

    Raises OptionError unless milestones are positive integers, each larger than the one before.
    """

    rate: float
    milestones: tuple[int, ...]
    factor: float = 0.1

    def __post_init__(self) -> None:
        _reals(self, "rate", "factor")
        given = self.milestones
        if not isinstance(given, (tuple, list)):
            raise OptionError(f"milestones must be steps such as (1000, 2000), got {repr(given)[:60]}")
        steps = tuple(check_count("a milestone", step) for step in given)
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise OptionError(f"milestones must increase, got {repr(given)[:60]}")
        object.__setattr__(self, "milestones", steps)

    def __call__(self, step: int) -> float:
        """The learning rate of this step."""
        return self.rate * _power(self.factor, bisect.bisect_right(self.milestones, step))


@dataclass(frozen=True)
class Exponential:
    """r(t) = rate factor^(t / every): as Step, but smoothly. PyTorch's ExponentialLR, with every=1."""

    rate: float
    factor: float
    every: int = 1

    def __post_init__(self) -> None:
        _reals(self, "rate", "factor")
        _counts(self, "every")

    def __call__(self, step: int) -> float:
        """The learning rate of this step."""
        return self.rate * _power(self.factor, step / self.every)


@dataclass(frozen=True)
class Polynomial:
    """r(t) = end + (rate - end) (1 - t / steps)^power, and `end` from `steps` on; a straight line for power 1.

    PyTorch's PolynomialLR and Keras's PolynomialDecay. Source of power=0.9: Chen et al., "DeepLab", 2016.
    """

    rate: float
    steps: int
    power: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        _reals(self, "rate", "power", "end")
        _counts(self, "steps")

    def __call__(self, step: int) -> float:
        """The learning rate of this step."""
        if step >= self.steps:
            return self.end
        return self.end + (self.rate - self.end) * _power(1.0 - step / self.steps, self.power)


@dataclass(frozen=True)
class Cosine:
    """r(t) = end + (rate - end) (1 + cos(pi t / steps)) / 2, and `end` from `steps` on.

    PyTorch's CosineAnnealingLR, which rises again after T_max = `steps`. Source: Loshchilov and Hutter, "SGDR", ICLR
    2017.
    """

    rate: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        _reals(self, "rate", "end")
        _counts(self, "steps")

    def __call__(self, step: int) -> float:
        """The learning rate of this step."""
        return self.end + (self.rate - self.end) * _cosine(1.0 - min(1.0, step / self.steps))


@dataclass(frozen=True)
class CosineRestarts:
    """Cosine over and over: each time from `rate`, each time `growth` times as many steps as before, first `steps`.

    PyTorch's CosineAnnealingWarmRestarts, whose T_0 and T_mult are `steps` and `growth`. A restart's last rate is not
    quite `end`: the next begins at the step that would reach it. Source: Loshchilov and Hutter, "SGDR", ICLR 2017.
    """

    rate: float
    steps: int
    growth: int = 1
    end: float = 0.0

    def __post_init__(self) -> None:
        _reals(self, "rate", "end")
        _counts(self, "steps", "growth")

    def __call__(self, step: int) -> float:
        """The learning rate of this step."""
        length = self.steps
        if self.growth == 1:
            step = step % length
        while step >= length:
            step, length = step - length, length * self.growth
        return self.end + (self.rate - self.end) * _cosine(1.0 - step / length)


@dataclass(frozen=True)
class OneCycle:
    """From peak / start up to `peak` in the first `warmup` of `steps`, then down to peak / end.

        r(t) = peak / start + (peak - peak / start) s(t / up),                t <= up = warmup * steps
        r(t) = peak + (peak / end - peak) s((t - up) / (steps - 1 - up)),     after it; peak / end from `steps` on

    shape="line": s(f) = f. shape="cosine": s(f) = (1 - cos(pi f)) / 2, as PyTorch's OneCycleLR does unless told
    otherwise; its peak is a step earlier (pct_start = warmup + 1 / steps is ours), and its final_div_factor divides
    the first rate (end / start). Source: Smith and Topin, "Super-convergence", 2018.
    """

    peak: float
    steps: int
    warmup: float = 0.3
    start: float = 25.0
    end: float = 1e4
    shape: str = "line"

    def __post_init__(self) -> None:
        _reals(self, "peak")
        _counts(self, "steps")
        _reals(self, "warmup", high=1.0)
        _reals(self, "start", "end", low=1.0)
        if self.shape not in ("line", "cosine"):
            raise OptionError(f"shape must be 'line' or 'cosine', got {self.shape!r}")

    def __call__(self, step: int) -> float:
        """The learning rate of this step."""
        up, low, last = self.warmup * self.steps, self.peak / self.start, self.peak / self.end
        if step < up:
            return low + (self.peak - low) * self._share(step / up)
        rest = self.steps - 1 - up
        way = min(1.0, (step - up) / rest) if rest > 0.0 else float(step > up)
        return self.peak + (last - self.peak) * self._share(way)

    def _share(self, way: float) -> float:
        return way if self.shape == "line" else _cosine(way)


@dataclass(frozen=True)
class Warmup:
    """On a straight line from `start` times the first rate of `schedule` up to it, in `steps` steps; then `schedule`.

        r(t) = schedule(0) (start + (1 - start) t / steps),   t < steps
        r(t) = schedule(t - steps),                           after it

    `schedule` may be a number, too. It begins when the warm-up is over: give it the steps that are left. PyTorch's
    LinearLR (start_factor=start, total_iters=steps) before another in SequentialLR. Source: Goyal et al., "Accurate,
    large minibatch SGD", 2017.
    """

    schedule: float | Schedule
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", check_rate(self.schedule))
        _counts(self, "steps")
        _reals(self, "start")

    def __call__(self, step: int) -> float:
        """The learning rate of this step."""
        after = max(0, step - self.steps)
        rate = self.schedule(after) if callable(self.schedule) else self.schedule
        if step >= self.steps:
            return rate
        return rate * (self.start + (1.0 - self.start) * (step / self.steps))


#: The schedules by plain names.
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": Constant,
    "step": Step,
    "multistep": MultiStep,
    "exponential": Exponential,
    "polynomial": Polynomial,
    "cosine": Cosine,
    "restarts": CosineRestarts,
    "onecycle": OneCycle,
    "warmup": Warmup,
}


def check_rate(learning_rate: float | Schedule) -> float | Schedule:
    """A learning rate of at least 0, or a function of the step. Raises OptionError for anything else."""
    if callable(learning_rate):
        try:
            first = learning_rate(0)
        except Exception as error:
            raise OptionError(f"the learning rate's schedule failed at step 0: {error}") from error
        check_real("learning_rate(0)", first, 0.0)
        return learning_rate
    return check_real("learning_rate", learning_rate, 0.0)


def _reals(schedule: Any, *names: str, low: float = 0.0, high: float = math.inf) -> None:
    """Look at a schedule's numbers and keep them as floats: NumPy's would make the rate one of NumPy's."""
    for name in names:
        object.__setattr__(schedule, name, check_real(name, getattr(schedule, name), low, high))


def _counts(schedule: Any, *names: str) -> None:
    for name in names:
        object.__setattr__(schedule, name, check_count(name, getattr(schedule, name)))


def _power(base: float, exponent: float) -> float:
    """base^exponent, with the same bits on every machine."""
    from xnn.backends.exact import scalars

    return scalars.power(base, exponent)


def _cosine(way: float) -> float:
    """(1 - cos(pi way)) / 2 = sin(pi way / 2)^2, which loses no digit near 0: from 0 to 1 as `way` goes there."""
    from xnn.backends.exact import scalars

    half = scalars.sin(0.5 * math.pi * way)
    return half * half
