"""The base of all optimizers: the state of an update rule, and one step over a list of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from xnn.backends import backend_of
from xnn.backends.numerics import current_numerics, pinned
from xnn.errors import OptionError
from xnn.graph.habits import Habitual, RefusedName
from xnn.layers import Parameter
from xnn.layers.state import Stateful
from xnn.ops import Array, updates
from xnn.ops.apply import apply_rule, fresh_arrays
from xnn.ops.portable import check_portable
from xnn.optimizers.common import Common, WeightDecay, check_average, check_decay, check_limit
from xnn.optimizers.rule import (
    check_kept,
    check_no_parameters,
    check_numbers,
    check_rule,
    check_tuple,
    give,
    in_order,
    options_for,
)
from xnn.optimizers.state import State
from xnn.options import (
    argument_names,
    attributes_of,
    check_known,
    check_real,
    checked,
    explained_call,
    shown,
    written,
)
from xnn.schedules import Schedule, check_rate

__all__ = ["Optimizer"]


class Optimizer(Habitual):
    """The base of all optimizers: changes parameters by their gradients.

    learning_rate: a number >= 0, or a function of the step's number such as those of xnn.schedules.
    weight_decay: the strength of an L2 penalty, a number >= 0; or numbers by the parameters' names, {"weight": 1e-4};
        or a function of the parameter, lambda p: 1e-4 if len(p.shape) > 1 else 0.0. Default 0.
    clip_norm: all gradients are scaled by one factor, so that their common norm is at most this. Default None.
    clip_value: each element of a gradient is cut to [-clip_value, clip_value], before clip_norm. Default None.
    average: the decay, in [0, 1), of a moving average of the weights: a = average * a + (1 - average) * w after each
        step, starting from the weights before the first. `with optimizer.averaged(): ...` evaluates or saves the
        model with these averages. Default None.

    All of them can be assigned between steps, and `rate_factor`, a number >= 0. Every learning rate, a schedule's
    too, is multiplied by it; it begins as 1, and `callbacks.Checkpoint(on_nan="lower-lr")` halves it. After a step
    `parameter.grad` is the clipped gradient, as it is after PyTorch's clip_grad_norm_. `state` maps each parameter to
    its State, `averages` to its moving average, and `steps` counts the steps.

    **An optimizer of your own** sets `rule`, a function that computes one step for one parameter:

        rule(xp, parameter, gradient, *arrays, **options) -> (new parameter, *new arrays)

    arrays: what the rule remembers of earlier steps, such as a velocity, each of the parameter's shape and dtype.
        `array_names` has a name for each, or `arrays` says how many there are. They begin as zeros.
    options: numbers, each of which is the optimizer's attribute of that name, or in the dict that `derived` returns.

    Numbers that change with each step, such as the step's number, are a tuple. `first` is this tuple before the first
    step. `advance(numbers)` returns that of the next step. `derived(numbers)` returns the options that are computed
    from them, by name. `docs/extending.md` writes Adam in this way. A class that overrides `update` instead needs no
    rule, and runs slower.

    Raises OptionError for options outside these, when they are assigned, too; what a function returns is checked when
    it is used.

        >>> import numpy as np
        >>> from xnn import layers, losses, optimizers
        >>> layer, loss = layers.Dense(2, 1), losses.MSE()
        >>> layer.weight.value = [[1.0], [1.0]]
        >>> rule = optimizers.SGD(learning_rate=0.5, weight_decay={"weight": 0.5})
        >>> x, y = np.array([[1.0, 0.0]], dtype="float32"), np.array([[0.0]], dtype="float32")
        >>> float(loss.forward(layer.forward(x), y))
        1.0
        >>> _ = layer.backward(loss.backward())
        >>> rule.step(layer.parameters())
        >>> layer.weight.value.tolist()
        [[-0.25], [0.75]]

    The gradients may also be those of `xnn.value_and_grad`:

        >>> import numpy as np, xnn
        >>> from xnn import layers, losses, optimizers
        >>> model, loss = xnn.Sequential(layers.Dense(2, 1), seed=0), losses.MSE()
        >>> x, y = np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)
        >>> parameters, rule = model.parameters(), optimizers.SGD(0.1)
        >>> for _ in range(50):
        ...     cost, gradients = xnn.value_and_grad(lambda p: loss(model(x), y))(parameters)
        ...     rule.step(parameters, gradients)
        >>> float(cost) < 1e-6
        True
    """

    _habits = "optimizer"
    _closed = True
    state: dict[Parameter, State]
    #: Each parameter's moving average, from its first step on, if there is an `average`.
    averages: dict[Parameter, Array]
    steps: int
    lr, param_groups = (RefusedName("optimizer", name, own=True) for name in ("lr", "param_groups"))
    rule: ClassVar[Callable[..., Any]]
    #: Whether it minimizes a function of all weights and takes no steps by gradients (LBFGS).
    minimizes: ClassVar[bool] = False
    #: Whether the rule works element by element, and its options are the same in every step. Without a kernel it then
    #: runs once for all parameters of a group, and a CUDA graph can hold it.
    steady: ClassVar[bool] = False
    #: The numbers that change with each step, such as the step's number, before the first step.
    first: ClassVar[tuple[float, ...]] = ()
    clip_norm: float | None = checked(check_limit)
    clip_value: float | None = checked(check_limit)
    average: float | None = checked(check_average)
    rate_factor: float = checked(check_real, 0.0)

    def __init__(
        self,
        learning_rate: float | Schedule,
        weight_decay: WeightDecay = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        average: float | None = None,
        **unknown: Any,
    ) -> None:
        check_known(type(self).__name__, unknown, (*argument_names(type(self)), *Common.__annotations__))
        if not hasattr(type(self), "rule") and not self.minimizes and not self.steps_itself:
            raise OptionError(
                f"{type(self).__name__} has no rule: set rule = staticmethod(f), where f(xp, parameter, gradient, *, "
                "learning_rate) returns the tuple (new parameter,), or override `update`"
            )
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.clip_norm, self.clip_value, self.average = clip_norm, clip_value, average
        self.state, self.averages, self.steps = {}, {}, 0
        self.rate_factor = 1.0
        self._averaged = False  # inside `averaged`

    @property
    def learning_rate(self) -> float | Schedule:
        """The learning rate, or the schedule that gives it. Raises OptionError when something else is assigned."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: float | Schedule) -> None:
        check_no_parameters(type(self).__name__, learning_rate)
        self._learning_rate = check_rate(learning_rate)
        self._rate = -1.0  # what the schedule returned last

    @property
    def rate(self) -> float:
        """The learning rate of the next step, times `rate_factor`.

        Raises OptionError if a schedule returns anything but a number >= 0.
        """
        if not callable(self._learning_rate):
            return self._learning_rate * self.rate_factor
        rate = self._learning_rate(self.steps)
        if type(rate) is not float or rate != self._rate:
            self._rate = check_real(f"learning_rate({self.steps})", rate, 0.0)
        return self._rate * self.rate_factor

    @property
    def weight_decay(self) -> WeightDecay:
        """The weight decay as it was given. Raises OptionError when something else is assigned."""
        return self._weight_decay

    @weight_decay.setter
    def weight_decay(self, weight_decay: WeightDecay) -> None:
        self._weight_decay = check_decay(weight_decay)
        self._decays: dict[Parameter, float] = {}  # what a function or mapping said last

    def decay_of(self, parameter: Parameter) -> float:
        """The weight decay of a parameter. Raises OptionError if a function returns anything but a number >= 0."""
        chosen = self._weight_decay
        if isinstance(chosen, float):
            return chosen
        found = chosen.get(parameter.name, 0.0) if isinstance(chosen, Mapping) else chosen(parameter)
        if type(found) is not float or found != self._decays.get(parameter):
            self._decays[parameter] = check_real(f"weight_decay of {parameter.name}", found, 0.0)
        return self._decays[parameter]

    def check_begun(self) -> None:
        """Raise OptionError if the __init__ of a subclass does not call that of Optimizer."""
        if "_averaged" not in vars(self):
            raise OptionError(
                f"{type(self).__name__}.__init__ must call super().__init__(learning_rate) before anything else"
            )

    @property
    def steps_itself(self) -> bool:
        """Whether `step` or `update` is overridden, and does more than the rule says."""
        kind = type(self)
        return kind.step is not Optimizer.step or kind.update is not Optimizer.update

    @property
    def array_names(self) -> tuple[str, ...]:
        """What each array is that the rule keeps for a parameter, such as "velocity", for messages."""
        return ()

    @property
    def arrays(self) -> int:
        """How many arrays the rule keeps for each parameter."""
        return len(self.array_names)

    def kept_for(self, parameter: Parameter) -> list[tuple[str, Array]]:
        """What the optimizer keeps for a parameter: what each array is, and the array; the average is the last."""
        state, names = self.state.get(parameter), self.array_names
        # An optimizer with a `step` of its own may keep a bare array.
        arrays = (state,) if hasattr(state, "dtype") else getattr(state, "arrays", ())
        kept = [(names[n] if n < len(names) else f"state {n}", array) for n, array in enumerate(arrays)]
        average = self.averages.get(parameter)
        return kept if average is None else [*kept, ("average", average)]

    @property
    def clipping(self) -> list[tuple[Callable[..., Any], float]]:
        """The clipping rules that are applied before each step, with their limits."""
        chosen = (updates.clip_by_value, self.clip_value), (updates.clip_by_norm, self.clip_norm)
        return [(rule, limit) for rule, limit in chosen if limit is not None]

    def check_parameters(self, parameters: Iterable[Parameter]) -> None:
        """Raise OptionError if weight_decay names a parameter that is not among these, or inside `averaged`.

        Also for a rule that takes other arrays than the optimizer keeps. Raises NumericsError for a schedule, or a
        method of a subclass, that exact numerics refuse.
        """
        self.check_begun()
        if current_numerics() == "exact":
            for method in (self.step, self.update) if self.steps_itself else ():
                check_portable(method, method.__qualname__, "xnn.ops")
            check_numbers(self)
        if not (self.state or self.minimizes or self.steps_itself):
            check_kept(self)
            check_rule(type(self).__name__, type(self).rule, self.arrays)
        if self._averaged:
            raise OptionError(
                "training was started inside `with optimizer.averaged()`, at whose end the parameters get their old "
                "values back: train outside of it, evaluate and save inside"
            )
        if isinstance(self.weight_decay, Mapping):
            names = dict.fromkeys(p.name for p in parameters)
            if unknown := [name for name in self.weight_decay if name not in names]:
                called = (
                    f"the parameters are called {', '.join(names)}" if names else "there are no parameters"
                )
                raise OptionError(f"weight_decay names {unknown[0]!r}, and {called}: name one of these")

    def advance(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """The numbers of the next step, a tuple, from those of the last one; `first` stands before the first step."""
        return numbers

    def options(self, numbers: tuple[float, ...], decay: float) -> dict[str, Any]:
        """The options of the rule for one step, in the order of its signature.

        numbers: those of the parameter's State after `advance`. decay: its weight decay.
        The learning rate is `rate`; other options are those of `derived`, or attributes of the same name.
        """
        return options_for(self, numbers, decay)

    def ordered_options(self, numbers: tuple[float, ...], decay: float) -> dict[str, Any]:
        """`options` in the order of the rule's signature, in which kernels read them, with the rule's defaults."""
        if type(numbers) is not tuple:
            check_tuple(f"`advance` of {type(self).__name__} returned", numbers)
        return in_order(self, self.options(numbers, decay))

    def derived(self, numbers: tuple[float, ...]) -> dict[str, float]:
        """Options of the rule that are computed from the step's numbers, such as Adam's beta1^t, by name."""
        return {}

    def state_of(self, parameter: Parameter) -> State:
        """The State of a parameter; zeros before its first step, or when the rule keeps other arrays than before."""
        state, names = self.state.get(parameter), self.array_names
        if state is None or len(state.arrays) != self.arrays or state.names not in (names, ()):
            value = parameter.value
            xp = backend_of(value).xp
            like = {"dtype": value.dtype, "device": value.device}
            zeros = tuple(xp.zeros(value.shape, **like) for _ in range(self.arrays))
            state = State(zeros, self.first, names)
        return state

    @explained_call("optimizer.step(model.parameters())")
    def step(self, parameters: Iterable[Parameter], gradients: Iterable[Array] | None = None) -> None:
        """Update every parameter that has a gradient and is not frozen.

        parameters: all parameters of the model, since clip_norm needs all gradients together.
        gradients: one for each parameter, as `xnn.grad` returns them; by default each parameter's `grad`.

        A parameter without a gradient is left as it is. Raises OptionError if none has one, for another number of
        gradients, if weight_decay names a parameter that is not among them, or inside `averaged`.

            >>> import numpy as np, xnn
            >>> from xnn import layers, losses, optimizers
            >>> model = xnn.Sequential(layers.Dense(2, 1), seed=0)
            >>> x, y = np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)
            >>> cost, gradients = xnn.value_and_grad(lambda p: losses.MSE()(model(x), y))(model.parameters())
            >>> optimizers.SGD(0.1).step(model.parameters(), gradients)
        """
        if isinstance(parameters, Stateful):
            raise OptionError(f"step takes parameters, got {shown(parameters)}: pass model.parameters()")
        parameters = list(parameters)
        self.check_parameters(parameters)
        if gradients is not None:
            give(parameters, list(gradients))
        with pinned():
            self._step(parameters)

    def _step(self, parameters: list[Parameter]) -> None:
        learning = [p for p in parameters if not p.frozen]
        changing = [p for p in learning if p.grad is not None]
        if learning and not changing:
            raise OptionError(
                "no parameter has a gradient, so that a step would change nothing: call loss.backward and "
                "model.backward before step, or pass the gradients, step(parameters, gradients)"
            )
        for rule, limit in self.clipping if changing else ():
            arriving = [p.grad for p in changing]
            clipped = apply_rule(rule, backend_of(*arriving).math, arriving, {"limit": limit})
            for parameter, gradient in zip(changing, clipped, strict=True):
                parameter.grad = gradient
        before = {parameter: parameter.value for parameter in changing}
        for parameter in changing:
            self.update(parameter)
        for parameter in () if self.average is None else parameters:
            if parameter in before or parameter in self.averages:  # those frozen since then, too
                arrays = self.averages.get(parameter, before.get(parameter)), parameter.value
                xp = backend_of(*arrays).math
                (self.averages[parameter],) = apply_rule(
                    updates.moving_average, xp, arrays, {"decay": self.average}
                )
        self.steps += 1

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which parameters have their moving averages as values: `with optimizer.averaged(): ...`.

        Raises OptionError if there are no averages.
        """
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
        """Apply the rule to one parameter. Its value and State become new arrays; the old ones are not changed."""
        state = self.state_of(parameter)
        numbers = self.advance(state.numbers)
        value, gradient = parameter.value, parameter.grad
        changing, given = (value, *state.arrays), (value, gradient, *state.arrays)
        options = self.ordered_options(numbers, self.decay_of(parameter))
        xp = backend_of(*given).math
        parameter.value, *arrays = fresh_arrays(type(self).rule, xp, given, options, changing)
        self.state[parameter] = State(tuple(arrays), numbers, state.names)

    def snapshot(self) -> Any:
        """All attributes as they are now, for `restore`. Arrays in `state` are not copied: updates make new ones."""
        return {
            key: value if type(value) in _CONSTANT else _own_copy(value) for key, value in vars(self).items()
        }

    def restore(self, snapshot: Any) -> None:
        """Set all attributes to those of a snapshot."""
        for key in vars(self).keys() - snapshot.keys():
            delattr(self, key)
        for key, value in snapshot.items():
            setattr(self, key, _own_copy(value))

    def __repr__(self) -> str:
        common = {
            name: value for name in Common.__annotations__ if (value := getattr(self, name)) is not None
        }
        return written(self, {**attributes_of(self), **common}, always=("learning_rate",))


#: Types of attributes that need no copy.
_CONSTANT = frozenset({bool, int, float, str, tuple, type(None)})


def _own_copy(value: Any) -> Any:
    """A copy of a dict, list or NumPy array; anything else as it is."""
    return value.copy() if isinstance(value, (dict, list, set, np.ndarray)) else value
