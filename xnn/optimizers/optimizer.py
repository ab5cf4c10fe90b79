"""What an optimizer is: the state of an update rule, and one step over a list of parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any, ClassVar, TypeAlias, TypedDict

from xnn.backends import backend_of
from xnn.errors import OptionError
from xnn.layers import Parameter
from xnn.ops import Array, updates
from xnn.ops.apply import apply_rule
from xnn.options import check_known, check_real
from xnn.schedules import Schedule, check_rate

__all__ = ["Common", "Optimizer", "State", "WeightDecay", "check_betas"]

#: One number for all parameters, numbers by the parameters' names ({"weight": 1e-4}: all others have 0), or a
#: function of the parameter (lambda p: 1e-4 if len(p.shape) > 1 else 0.0: no decay of biases and scales).
WeightDecay: TypeAlias = float | Mapping[str, float] | Callable[[Parameter], float]


@dataclass(frozen=True)
class State:
    """What a rule remembers of one parameter: arrays like it, and numbers (Adam's beta^t)."""

    arrays: tuple[Array, ...] = ()
    numbers: tuple[float, ...] = ()


class Common(TypedDict, total=False):
    """What every optimizer but LBFGS takes besides its own options; Optimizer says what they do."""

    clip_norm: float | None
    clip_value: float | None
    average: float | None


class Optimizer:
    """Changes parameters by their gradients. `state` maps each parameter to what its rule remembers.

    clip_value: gradients are cut to [-clip_value, clip_value] before the rule; clip_norm: all are scaled so that
    their common norm is at most that (ops.updates.clip_by_value, clip_by_norm; with both, by value first).
    `parameter.grad` is then the clipped gradient, as with PyTorch's clip_grad_norm_.

    average: the decay of an exponential moving average of the weights, a = average a + (1 - average) w after each
    step, begun with the weights before the first; `with optimizer.averaged(): ...` evaluates or saves with them.

    A subclass names its rule and says how many arrays and which numbers it remembers, how the numbers advance
    each step, and what options the rule gets. A program does the same to all parameters at once.
    """

    rule: ClassVar[Callable[..., Any]]
    #: Whether it is no rule for steps but minimizes a function of all weights (LBFGS).
    minimizes: ClassVar[bool] = False
    #: The numbers before the first step.
    first: ClassVar[tuple[float, ...]] = ()

    def __init__(
        self,
        learning_rate: float | Schedule,
        weight_decay: WeightDecay = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        average: float | None = None,
        **unknown: Any,
    ) -> None:
        own = [name for name in inspect.signature(type(self)).parameters if name not in ("common", "unknown")]
        check_known(type(self).__name__, unknown, (*own, *Common.__annotations__))
        self.learning_rate = check_rate(learning_rate)
        self.weight_decay = _check_decay(weight_decay)
        self.clip_norm = _check_limit("clip_norm", clip_norm)
        self.clip_value = _check_limit("clip_value", clip_value)
        self.average = None if average is None else check_real("average", average, 0.0, 1.0)
        self.state: dict[Parameter, State] = {}
        #: Each parameter's moving average, from its first step on, if there is an `average`.
        self.averages: dict[Parameter, Array] = {}
        self.steps = 0
        self._averaged = False  # inside `averaged`

    @property
    def arrays(self) -> int:
        """How many arrays the rule remembers of each parameter."""
        return 0

    @property
    def rate(self) -> float:
        """The learning rate of the next step: `learning_rate`, or what the schedule says."""
        return self.learning_rate(self.steps) if callable(self.learning_rate) else self.learning_rate

    @property
    def clipping(self) -> list[tuple[Callable[..., Any], float]]:
        """The rules that gradients go through before each step, with their limits."""
        chosen = (updates.clip_by_value, self.clip_value), (updates.clip_by_norm, self.clip_norm)
        return [(rule, limit) for rule, limit in chosen if limit is not None]

    def decay_of(self, parameter: Parameter) -> float:
        """What weight_decay says of a parameter. Raises OptionError where that is no number of at least 0."""
        chosen = self.weight_decay
        if isinstance(chosen, Mapping):
            chosen = chosen.get(parameter.name, 0.0)
        return check_real(
            f"weight_decay of {parameter.name}", chosen(parameter) if callable(chosen) else chosen, 0.0
        )

    def check_parameters(self, parameters: Iterable[Parameter]) -> None:
        """Raises OptionError if weight_decay names a parameter that is not among these, or inside `averaged`."""
        if self._averaged:
            raise OptionError(
                "inside `with optimizer.averaged()` parameters have their averages for values, and the ones before "
                "come back at its end: train outside, evaluate and save inside"
            )
        if isinstance(self.weight_decay, Mapping):
            names = dict.fromkeys(p.name for p in parameters)
            if unknown := [name for name in self.weight_decay if name not in names]:
                called = f"are called {', '.join(names)}" if names else "are none"
                raise OptionError(f"weight_decay names {unknown[0]!r}, and the parameters {called}")

    def advance(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """The numbers one step on."""
        return numbers

    def options(self, numbers: tuple[float, ...], decay: float) -> dict[str, Any]:
        """The rule's options for parameters of this weight decay, in the order in which it takes them.

        Each is the attribute of its name, but for the learning rate, the weight decay and what `derived` gives.
        """
        given = {"learning_rate": self.rate, "weight_decay": decay, **self.derived(numbers)}
        return {
            name: given[name] if name in given else getattr(self, name)
            for name in _options_of(type(self).rule)
        }

    def derived(self, numbers: tuple[float, ...]) -> dict[str, float]:
        """Options that follow from the numbers, such as Adam's powers of beta."""
        return {}

    def state_of(self, parameter: Parameter) -> State:
        """What is remembered of a parameter: zeros before its first step, or if the rule now needs other arrays."""
        state = self.state.get(parameter)
        if state is None or len(state.arrays) != self.arrays:
            value = parameter.value
            xp = backend_of(value).xp
            zeros = (
                xp.zeros(value.shape, dtype=value.dtype, device=value.device) for _ in range(self.arrays)
            )
            state = State(tuple(zeros), self.first)
        return state

    def step(self, parameters: Iterable[Parameter]) -> None:
        """One update of every parameter that has a gradient and is not frozen.

        Their gradients are clipped together: give it all parameters at once. Raises OptionError if weight_decay
        names a parameter that is not among them, or inside `averaged`.
        """
        parameters = list(parameters)
        self.check_parameters(parameters)
        changing = [p for p in parameters if not p.frozen and p.grad is not None]
        for rule, limit in self.clipping if changing else ():
            gradients = [p.grad for p in changing]
            clipped = apply_rule(rule, backend_of(*gradients).math, gradients, {"limit": limit})
            for parameter, gradient in zip(changing, clipped, strict=True):
                parameter.grad = gradient
        before = {parameter: parameter.value for parameter in changing}
        for parameter in changing:
            self.update(parameter)
        for parameter in () if self.average is None else parameters:
            if parameter in before or parameter in self.averages:  # the average of one frozen since goes on
                arrays = self.averages.get(parameter, before.get(parameter)), parameter.value
                xp = backend_of(*arrays).math
                (self.averages[parameter],) = apply_rule(
                    updates.moving_average, xp, arrays, {"decay": self.average}
                )
        self.steps += 1

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block parameters have their moving averages as values. Raises OptionError if there are none."""
        if not self.averages:
            raise OptionError(
                "there are no averages of the weights: build the optimizer with average=0.999 and train"
            )
        before = {parameter: parameter.value for parameter in self.averages}
        for parameter, value in self.averages.items():
            parameter.value = value
        outer, self._averaged = self._averaged, True
        try:
            yield
        finally:
            self._averaged = outer
            for parameter, value in before.items():
                parameter.value = value

    def update(self, parameter: Parameter) -> None:
        """Apply the rule to one parameter; its value and state become fresh arrays."""
        state = self.state_of(parameter)
        numbers = self.advance(state.numbers)
        xp = backend_of(parameter.value, parameter.grad, *state.arrays).math
        given = parameter.value, parameter.grad, *state.arrays
        options = self.options(numbers, self.decay_of(parameter))
        parameter.value, *arrays = apply_rule(type(self).rule, xp, given, options)
        self.state[parameter] = State(tuple(arrays[: self.arrays]), numbers)

    def snapshot(self) -> Any:
        """What `restore` needs to come back here. Updates make fresh arrays, so references are enough."""
        return {key: dict(value) if isinstance(value, dict) else value for key, value in vars(self).items()}

    def restore(self, snapshot: Any) -> None:
        """Back to a snapshot."""
        for key in vars(self).keys() - snapshot.keys():
            delattr(self, key)
        for key, value in snapshot.items():
            setattr(self, key, dict(value) if isinstance(value, dict) else value)


@cache
def _options_of(rule: Callable[..., Any]) -> tuple[str, ...]:
    """The names of an update rule's options: its keyword-only parameters, those of the rules it calls included."""
    parameters = inspect.signature(rule).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def _check_decay(weight_decay: Any) -> WeightDecay:
    if isinstance(weight_decay, Mapping):
        return {
            name: check_real(f"weight_decay[{name!r}]", value, 0.0) for name, value in weight_decay.items()
        }
    if callable(weight_decay):
        return weight_decay  # type: ignore[no-any-return]
    if not isinstance(weight_decay, Real):
        raise OptionError(
            "weight_decay must be a finite number at least 0, numbers by parameters' names ({'weight': 1e-4}) or a "
            f"function of a parameter, got {repr(weight_decay)[:60]}"
        )
    return check_real("weight_decay", weight_decay, 0.0)


def check_betas(betas: Any) -> tuple[float, float]:
    """Two decay rates in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise OptionError(f"betas must be two numbers in [0, 1), as in (0.9, 0.999), got {repr(betas)[:60]}")
    return check_real("betas[0]", betas[0], 0.0, 1.0), check_real("betas[1]", betas[1], 0.0, 1.0)


def _check_limit(name: str, limit: float | None) -> float | None:
    if limit is not None and not check_real(name, limit, 0.0):
        raise OptionError(f"{name} must be above 0, or None for gradients as they are, got {limit!r}")
    return None if limit is None else float(limit)
