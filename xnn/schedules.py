"""Learning rates that change as training runs: any function of the step's number, and one-cycle ready made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from xnn.errors import OptionError
from xnn.options import check_count, check_real

__all__ = ["OneCycle", "Schedule", "check_rate"]

#: schedule(step) -> the learning rate of that step, counted from 0 over all fits of the optimizer.
Schedule: TypeAlias = Callable[[int], float]


@dataclass(frozen=True)
class OneCycle:
    """From peak / start up to `peak` in the first `warmup` of `steps`, then down to peak / end, on straight lines.

        r(t) = peak / start + (peak - peak / start) t / up,              t <= up = warmup * steps
        r(t) = peak + (peak / end - peak) (t - up) / (steps - 1 - up),   after it; peak / end from `steps` on

    Straight lines need no cosine, which C libraries round differently. Source: Smith and Topin,
    "Super-convergence", 2018.
    """

    peak: float
    steps: int
    warmup: float = 0.3
    start: float = 25.0
    end: float = 1e4

    def __post_init__(self) -> None:
        check_real("peak", self.peak, 0.0)
        check_count("steps", self.steps)
        check_real("warmup", self.warmup, 0.0, 1.0)
        for name in ("start", "end"):
            check_real(name, getattr(self, name), 1.0)

    def __call__(self, step: int) -> float:
        """The learning rate of this step."""
        up, low, last = self.warmup * self.steps, self.peak / self.start, self.peak / self.end
        if step < up:
            return low + (self.peak - low) * (step / up)
        rest = max(1.0, self.steps - 1 - up)
        return self.peak + (last - self.peak) * min(1.0, (step - up) / rest)


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
