"""Schedules as text, for the command line and for records: "cosine", or "step:every=1000,factor=0.5"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

from xnn.errors import OptionError
from xnn.schedules import SCHEDULES, Schedule

__all__ = ["NAMED", "read_schedule", "recorded_schedule", "schedule_text"]

# The default arguments of each schedule, from the number of steps of the run and of an epoch.
_USUAL: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "constant": lambda steps, per_epoch: {},
    "step": lambda steps, per_epoch: {"every": -(-steps // 3)},
    "exponential": lambda steps, per_epoch: {"factor": 0.9, "every": per_epoch},
    "polynomial": lambda steps, per_epoch: {"steps": steps},
    "cosine": lambda steps, per_epoch: {"steps": steps},
    "restarts": lambda steps, per_epoch: {"steps": per_epoch},
    "onecycle": lambda steps, per_epoch: {"steps": steps},
}

#: The names of schedules that can be written as text. (A warm-up is an option of its own.)
NAMED = tuple(_USUAL)


def read_schedule(text: str, rate: float, steps: int, per_epoch: int) -> Schedule:
    """The schedule that a text describes.

    text: a name of NAMED, and after a colon arguments of its class in xnn.schedules: "step:every=1000,factor=0.5".
    rate: the first argument of the class: the first learning rate, or the peak of onecycle.
    steps, per_epoch: the number of steps of the run and of an epoch. Arguments that the text omits follow from them:
        cosine, polynomial and onecycle last for the run; restarts starts again with each epoch; step falls after each
        third of the run; exponential falls by a tenth in each epoch.

    Raises OptionError for an unknown name or argument, or a value that the class refuses.

        >>> read_schedule("step:factor=0.5", 0.1, steps=900, per_epoch=100)
        Step(rate=0.1, every=300, factor=0.5)
    """
    name, colon, rest = text.partition(":")
    if name not in _USUAL:
        raise OptionError(f"there is no schedule {name!r}: choose {', '.join(NAMED)}")
    kind: Any = SCHEDULES[name]
    allowed = [field.name for field in fields(kind)][1:]
    given: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        key, sign, value = (word.strip() for word in part.partition("="))
        if not (sign and value) or key not in allowed or key in given:
            what = "given twice" if key in given else "not one of its arguments"
            takes = f"NAME=VALUE with {', '.join(allowed)}" if allowed else "nothing"
            raise OptionError(f"the schedule {text!r}: {part.strip()!r} is {what}: {name} takes {takes}")
        given[key] = _value(value)
    try:
        made: Schedule = kind(rate, **{**_USUAL[name](max(1, steps), per_epoch), **given})
    except OptionError as error:
        raise OptionError(f"the schedule {text!r}: {error}") from error
    return made


def schedule_text(schedule: Schedule) -> str:
    """The text from which read_schedule makes this schedule, whatever the run.

    It has every argument that depends on the run if it is omitted, and every other that is not the default of the
    class.

        >>> from xnn.schedules import Exponential, Step
        >>> schedule_text(Step(0.1, every=300, factor=0.5)), schedule_text(Exponential(0.1, factor=0.5, every=1))
        ('step:every=300,factor=0.5', 'exponential:factor=0.5,every=1')
    """
    name = next(name for name in NAMED if SCHEDULES[name] is type(schedule))
    by_the_run = _USUAL[name](1, 1)
    given = [
        f"{field.name}={getattr(schedule, field.name)}"
        for field in fields(schedule)[1:]  # type: ignore[arg-type]
        if field.name in by_the_run
        or field.default is MISSING
        or getattr(schedule, field.name) != field.default
    ]
    return f"{name}:{','.join(given)}" if given else name


def recorded_schedule(text: str) -> str:
    """The full text of a schedule in a record. Version 0.1 left out arguments that are the default of the class.

    Raises OptionError for a text that `read_schedule` refuses.

        >>> recorded_schedule("exponential:factor=0.5")
        'exponential:factor=0.5,every=1'
    """
    return schedule_text(read_schedule(text, 1.0, steps=1, per_epoch=1))


def _value(text: str) -> int | float | str:
    """The text as an int or a float, if it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
