"""Learning rates that change during training: functions of the step's number, ready made.

    optimizers.SGD(schedules.Cosine(0.1, steps=10_000))
    optimizers.Adam(schedules.Warmup(schedules.Cosine(0.001, steps=9_500), steps=500))

A step is one batch. Steps are counted from 0 over all fits of the optimizer. To give a schedule in epochs, multiply
by the steps of an epoch, math.ceil(samples / batch_size): Step(0.1, every=30 * steps_per_epoch).

Any function of the step can be a schedule. The rate depends on the step's number only, so that a resumed run goes on
as it was. The schedules below give the same bits on every machine, also in fast numerics, because they use xnn's own
powers and cosines; those of C libraries differ, and exact numerics refuse functions that use them. They raise
OptionError for rates and factors that are not finite numbers >= 0, and for steps that are not positive integers.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from xnn.errors import OptionError
from xnn.graph.habits import module_habits
from xnn.options import check_count, check_real, explained_class, is_one_of, shown

__all__ = [
    "SCHEDULES", "Constant", "Cosine", "CosineRestarts", "Exponential", "MultiStep", "OneCycle", "Polynomial",
    "Schedule", "Step", "Warmup", "check_rate",
]  # fmt: skip

if not TYPE_CHECKING:  # a type checker would take every name for an attribute
    __getattr__ = module_habits(__name__)

#: schedule(step) -> the learning rate of that step, counted from 0 over all fits of the optimizer.
Schedule: TypeAlias = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same learning rate at every step.

    rate: the learning rate, a number >= 0.

        >>> from xnn import schedules
        >>> rate = schedules.Constant(0.1)
        >>> [round(rate(step), 4) for step in (0, 1000)]
        [0.1, 0.1]
    """

    rate: float

    def __post_init__(self) -> None:
        _reals(self, "rate")

    def __call__(self, step: int) -> float:
        return self.rate


@dataclass(frozen=True)
class Step:
    """The learning rate is multiplied by a factor after each `every` steps. PyTorch's StepLR.

    rate: the first learning rate, a number >= 0.
    every: after how many steps.
    factor: a number >= 0. Default 0.1.

    rate(t) = rate * factor^(t // every).

        >>> from xnn import schedules
        >>> rate = schedules.Step(0.1, every=100, factor=0.5)
        >>> [round(rate(step), 4) for step in (0, 99, 100, 200)]
        [0.1, 0.1, 0.05, 0.025]
    """

    rate: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _reals(self, "rate", "factor")
        _counts(self, "every")

    def __call__(self, step: int) -> float:
        return self.rate * _power(self.factor, step // self.every)


@dataclass(frozen=True)
class MultiStep:
    """The learning rate is multiplied by a factor at each of some given steps. PyTorch's MultiStepLR.

    rate: the first learning rate, a number >= 0.
    milestones: the steps, positive integers in increasing order.
    factor: a number >= 0. Default 0.1.

    rate(t) = rate * factor^(the number of milestones <= t).

        >>> from xnn import schedules
        >>> rate = schedules.MultiStep(0.1, (100, 150))
        >>> [round(rate(step), 4) for step in (99, 100, 150)]
        [0.1, 0.01, 0.001]
    """

    rate: float
    milestones: tuple[int, ...]
    factor: float = 0.1

    def __post_init__(self) -> None:
        _reals(self, "rate", "factor")
        given = self.milestones
        if not isinstance(given, (tuple, list)):
            raise OptionError(f"milestones must be steps such as (1000, 2000), got {shown(given)}")
        steps = tuple(check_count("a milestone", step) for step in given)
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise OptionError(f"milestones must increase, got {shown(given)}")
        object.__setattr__(self, "milestones", steps)

    def __call__(self, step: int) -> float:
        return self.rate * _power(self.factor, bisect.bisect_right(self.milestones, step))


@dataclass(frozen=True)
class Exponential:
    """The learning rate decays exponentially: like Step, but smoothly. With every=1 PyTorch's ExponentialLR.

    rate: the first learning rate, a number >= 0.
    factor: by what the rate is multiplied in each `every` steps, a number >= 0.
    every: a number of steps. Default 1.

    rate(t) = rate * factor^(t / every).

        >>> from xnn import schedules
        >>> rate = schedules.Exponential(0.1, 0.25, every=100)
        >>> [round(rate(step), 4) for step in (0, 50, 100)]
        [0.1, 0.05, 0.025]
    """

    rate: float
    factor: float
    every: int = 1

    def __post_init__(self) -> None:
        _reals(self, "rate", "factor")
        _counts(self, "every")

    def __call__(self, step: int) -> float:
        return self.rate * _power(self.factor, step / self.every)


@dataclass(frozen=True)
class Polynomial:
    """The learning rate falls to `end` by a power of the steps left, by a straight line for power=1.

    rate: the first learning rate, a number >= 0.
    steps: the number of steps until `end`, at which it stays.
    power: a number >= 0. Default 1.
    end: the last learning rate, a number >= 0. Default 0.

    rate(t) = end + (rate - end) * (1 - t / steps)^power. PyTorch's PolynomialLR and Keras's PolynomialDecay;
    power=0.9 is from Chen et al., "DeepLab", 2016.

        >>> from xnn import schedules
        >>> rate = schedules.Polynomial(0.1, steps=100)
        >>> [round(rate(step), 4) for step in (0, 50, 100)]
        [0.1, 0.05, 0.0]
    """

    rate: float
    steps: int
    power: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        _reals(self, "rate", "power", "end")
        _counts(self, "steps")

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        return self.end + (self.rate - self.end) * _power(1.0 - step / self.steps, self.power)


@dataclass(frozen=True)
class Cosine:
    """The learning rate falls to `end` along half a wave of the cosine, and stays there.

    rate: the first learning rate, a number >= 0.
    steps: the number of steps until `end`.
    end: the last learning rate, a number >= 0. Default 0.

    rate(t) = end + (rate - end) * (1 + cos(pi t / steps)) / 2. PyTorch's CosineAnnealingLR with T_max=steps, which
    rises again after that.

        >>> from xnn import schedules
        >>> rate = schedules.Cosine(0.1, steps=100)
        >>> [round(rate(step), 4) for step in (0, 50, 100)]
        [0.1, 0.05, 0.0]

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017.
    """

    rate: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        _reals(self, "rate", "end")
        _counts(self, "steps")

    def __call__(self, step: int) -> float:
        return self.end + (self.rate - self.end) * _cosine(1.0 - min(1.0, step / self.steps))


@dataclass(frozen=True)
class CosineRestarts:
    """Cosine, which starts again at `rate` each time it is over.

    rate: the first learning rate, a number >= 0.
    steps: the number of steps until the first restart.
    growth: each part has this many times as many steps as the one before. Default 1.
    end: the rate that a part would reach at its end, a number >= 0; the restart comes at that step. Default 0.

    PyTorch's CosineAnnealingWarmRestarts with T_0=steps and T_mult=growth.

        >>> from xnn import schedules
        >>> rate = schedules.CosineRestarts(0.1, steps=100, growth=2)
        >>> [round(rate(step), 4) for step in (0, 50, 100, 200, 300)]
        [0.1, 0.05, 0.1, 0.05, 0.1]

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017.
    """

    rate: float
    steps: int
    growth: int = 1
    end: float = 0.0

    def __post_init__(self) -> None:
        _reals(self, "rate", "end")
        _counts(self, "steps", "growth")

    def __call__(self, step: int) -> float:
        length = self.steps
        if self.growth == 1:
            step = step % length
        while step >= length:
            step, length = step - length, length * self.growth
        return self.end + (self.rate - self.end) * _cosine(1.0 - step / length)


@dataclass(frozen=True)
class OneCycle:
    """The learning rate rises from peak / start to `peak`, then falls to peak / end: one cycle.

    peak: the highest learning rate, a number >= 0.
    steps: the number of steps of the cycle; the rate stays at peak / end after it.
    warmup: the share of the steps in which it rises, in [0, 1). Default 0.3.
    start: the first rate is peak / start; a number >= 1. Default 25.
    end: the last rate is peak / end; a number >= 1. Default 10000.
    shape: "line", or "cosine" for half a wave up and half a wave down. Default "line".

        rate(t) = peak / start + (peak - peak / start) s(t / up)             while t <= up = warmup * steps
        rate(t) = peak + (peak / end - peak) s((t - up) / (steps - 1 - up))  after that

    where s(f) is f for a line and (1 - cos(pi f)) / 2 for the cosine. PyTorch's OneCycleLR has the cosine by default
    and reaches its peak a step earlier (pct_start = warmup + 1 / steps gives ours); its final_div_factor is
    end / start.

        >>> from xnn import schedules
        >>> rate = schedules.OneCycle(0.5, steps=100, warmup=0.2, start=5.0, end=10.0)
        >>> [round(rate(step), 4) for step in (0, 20, 99, 200)]
        [0.1, 0.5, 0.05, 0.05]

    Source: Smith and Topin, "Super-convergence", 2018.
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
        if not is_one_of(self.shape, ("line", "cosine")):
            raise OptionError(f"shape must be 'line' or 'cosine', got {shown(self.shape)}")

    def __call__(self, step: int) -> float:
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
    """The learning rate rises in a straight line to that of another schedule, which then begins.

    schedule: a schedule or a number. It counts its own steps from 0 after the warm-up.
    steps: the number of steps of the warm-up.
    start: the first rate is `start` times the schedule's first; a number >= 0. Default 0.

        rate(t) = schedule(0) * (start + (1 - start) * t / steps)   while t < steps
        rate(t) = schedule(t - steps)                               after that

    PyTorch's LinearLR (start_factor=start, total_iters=steps) before another schedule in a SequentialLR.

        >>> from xnn import schedules
        >>> rate = schedules.Warmup(schedules.Cosine(0.1, steps=100), steps=10)
        >>> [round(rate(step), 4) for step in (0, 5, 10, 60, 110)]
        [0.0, 0.05, 0.1, 0.05, 0.0]

    Source: Goyal et al., "Accurate, large minibatch SGD", 2017.
    """

    schedule: float | Schedule
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", check_rate(self.schedule))
        _counts(self, "steps")
        _reals(self, "start")

    def __call__(self, step: int) -> float:
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
for _kind in SCHEDULES.values():
    explained_class(cast(type, _kind))


def check_rate(learning_rate: float | Schedule) -> float | Schedule:
    """A learning rate as a float, or a schedule after a check of its first rate.

    Raises OptionError for anything else, and for a function whose first rate is no number >= 0 or changes at once.
    """
    if callable(learning_rate):
        try:
            first, again = learning_rate(0), learning_rate(0)
        except Exception as error:
            raise OptionError(f"the learning rate's schedule failed at step 0: {error}") from error
        if check_real("learning_rate(0)", first, 0.0) != again:
            raise OptionError(
                f"the schedule gave {first} for step 0, then {shown(again)}: compute the rate from the step's number"
            )
        return learning_rate
    return check_real("learning_rate", learning_rate, 0.0)


def _reals(schedule: Any, *names: str, low: float = 0.0, high: float = math.inf) -> None:
    """Check these attributes of a schedule and make them floats, so that its rates are Python's numbers too."""
    for name in names:
        object.__setattr__(schedule, name, check_real(name, getattr(schedule, name), low, high))


def _counts(schedule: Any, *names: str) -> None:
    for name in names:
        object.__setattr__(schedule, name, check_count(name, getattr(schedule, name)))


def _power(base: float, exponent: float) -> float:
    """base^exponent with the same bits on every machine."""
    from xnn.backends.exact import scalars

    return scalars.power(base, exponent)


def _cosine(way: float) -> float:
    """(1 - cos(pi way)) / 2, for `way` from 0 to 1, as sin(pi way / 2)^2, which loses no digits near 0."""
    from xnn.backends.exact import scalars

    half = scalars.sin(0.5 * math.pi * way)
    return half * half
