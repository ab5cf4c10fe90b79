"""Update rules: what options and arrays a rule takes, and whether its optimizer has them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from xnn.errors import OptionError
from xnn.layers import Parameter
from xnn.layers.state import Stateful
from xnn.ops.portable import check_portable
from xnn.options import shown
from xnn.schedules import Warmup

__all__ = [
    "check_kept",
    "check_no_parameters",
    "check_numbers",
    "check_rule",
    "check_tuple",
    "give",
    "in_order",
    "options_for",
    "options_of",
]


@cache
def options_of(rule: Callable[..., Any]) -> tuple[str, ...]:
    """The names of an update rule's options: its keyword-only parameters."""
    parameters = inspect.signature(rule).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def check_numbers(optimizer: Any) -> None:
    """Raise NumericsError if what computes the numbers of a step rounds in a way of the machine.

    That is a schedule, `advance` or `derived`. For exact numerics.
    """
    for method in (optimizer.advance, optimizer.derived):
        check_portable(method, method.__qualname__, "products")
    rate = optimizer.learning_rate
    while isinstance(rate, Warmup):
        rate = rate.schedule
    if callable(rate):
        check_portable(rate, f"the schedule {getattr(rate, '__name__', type(rate).__name__)}", "schedules")


def check_kept(optimizer: Any) -> None:
    """Raise OptionError unless `arrays`, `array_names` and `first` of an optimizer are what they must be."""
    name, array_names = type(optimizer).__name__, optimizer.array_names
    if not isinstance(array_names, (tuple, list)) or not all(isinstance(a, str) for a in array_names):
        raise OptionError(
            f"{name} has array_names = {shown(array_names)}: it must be a tuple of texts, one for each array that "
            'the rule keeps, as in array_names = ("mean", "square")'
        )
    arrays = optimizer.arrays
    if type(arrays) is not int or arrays < 0:
        names = isinstance(arrays, (tuple, list)) and arrays and all(isinstance(a, str) for a in arrays)
        instead = f"write array_names = {tuple(arrays)!r}" if names else "write arrays = 2, or array_names"
        raise OptionError(
            f"{name} has arrays = {shown(arrays)}, and `arrays` is how many arrays the rule keeps for a parameter, "
            f"an integer >= 0: {instead}"
        )
    check_tuple(f"{name} has first =", optimizer.first)


def check_no_parameters(name: str, learning_rate: Any) -> None:
    """Raise OptionError for parameters, or a model, in place of the learning rate, as PyTorch's optimizers take them.

    name: the optimizer's class.
    """
    given = learning_rate
    if isinstance(given, (Stateful, Parameter, list, tuple, dict, Iterator)):
        raise OptionError(
            f"{name} takes the learning rate first, got {shown(given)}: build {name}(learning_rate=0.01), and "
            "optimizer.step(model.parameters()) or a Trainer gives it the parameters"
        )


def check_tuple(said: str, numbers: Any) -> None:
    """Raise OptionError unless the numbers of a State are a tuple. said: where they are from."""
    if type(numbers) is not tuple:
        raise OptionError(
            f"{said} {shown(numbers)}: the numbers that an optimizer keeps are a tuple, as in (0,) for one"
        )


@cache
def check_rule(name: str, rule: Callable[..., Any], arrays: int) -> None:
    """Raise OptionError unless a rule takes this many arrays by position, besides xp, parameter and gradient.

    name: the optimizer's class, which the message names.
    """
    parameters = inspect.signature(rule).parameters.values()
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = sum(p.default is p.empty for p in by_position)
    most = len(by_position) if all(p.kind is not p.VAR_POSITIONAL for p in parameters) else 3 + arrays
    if needed <= 3 + arrays <= most:
        return
    takes = ", ".join(p.name for p in by_position)
    if by_position and by_position[0].name == "self":
        what = "write @staticmethod above it, and leave out self"
    else:
        what = "array_names says how many arrays it keeps, and its options come after a *"
    raise OptionError(
        f"the rule of {name} takes {takes or 'nothing'} by position, and is given xp, the parameter, its gradient "
        f"and {arrays} array{'' if arrays == 1 else 's'}: {what}, as in rule(xp, parameter, gradient, mean, *, "
        "learning_rate)"
    )


def give(parameters: list[Parameter], gradients: list[Any]) -> None:
    """Set the `grad` of each parameter to its gradient."""
    if len(gradients) != len(parameters):
        raise OptionError(
            f"got {len(gradients)} gradients for {len(parameters)} parameters: give one for each, in the same order"
        )
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def options_for(optimizer: Any, numbers: tuple[float, ...], decay: float) -> dict[str, Any]:
    """The options of an optimizer's rule for one step: see `Optimizer.options`."""
    kind, derived = type(optimizer), optimizer.derived(numbers)
    if not isinstance(derived, Mapping):
        raise OptionError(
            f"`derived` of {kind.__name__} returned {shown(derived)}: it must return a dict of options by their names"
        )
    given = {"learning_rate": optimizer.rate, "weight_decay": decay, **derived}
    try:
        return {
            name: given[name] if name in given else getattr(optimizer, name) for name in options_of(kind.rule)
        }
    except AttributeError as error:
        raise OptionError(
            f"the rule of {kind.__name__} takes an option that the optimizer does not give it ({error}): set an "
            "attribute of this name, or return it from `derived`"
        ) from error


def in_order(optimizer: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options of an optimizer's rule in the order of its signature, with the rule's defaults.

    Raises OptionError for one that is missing, or not a number.
    """
    rule = type(optimizer).rule
    names = options_of(rule)
    _check_numbers(optimizer, options)
    if tuple(options) == names:
        return options
    signature = inspect.signature(rule).parameters
    missing = {name: signature[name].default for name in names if name not in options}
    if unset := [name for name, default in missing.items() if default is inspect.Parameter.empty]:
        raise OptionError(
            f"`options` of {type(optimizer).__name__} has no {unset[0]!r}, which its rule takes: add it"
        )
    return {name: (options | missing)[name] for name in dict.fromkeys((*names, *options))}


def _check_numbers(optimizer: Any, options: Mapping[str, Any]) -> None:
    """Raise OptionError for an option of an optimizer's rule that is not a number."""
    for name, value in options.items():
        if isinstance(value, (float, int)) or (
            hasattr(value, "dtype") and getattr(value, "shape", None) == ()
        ):
            continue
        kind = type(optimizer).__name__
        if callable(value):
            raise OptionError(
                f"the rule of {kind} takes an option {name!r}, and {kind}.{name} is a method: give the option "
                "another name, or return it from `derived`"
            )
        raise OptionError(
            f"the rule of {kind} takes a number as its option {name!r}, got {shown(value)}: assign a number to the "
            "attribute of this name, or return one from `derived`"
        )
