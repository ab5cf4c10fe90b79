"""Checks the options that classes are given, and writes an object's repr from its options."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from xnn.errors import OptionError

__all__ = [
    "argument_names",
    "attributes_of",
    "check_count",
    "check_dtype",
    "check_flag",
    "check_integer",
    "check_known",
    "check_pair",
    "check_real",
    "check_shape",
    "checked",
    "explained",
    "explained_call",
    "explained_class",
    "is_integer",
    "is_one_of",
    "refuse_unknown",
    "shown",
    "takes",
    "written",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Kind = TypeVar("_Kind")
_SHOWN_ITEMS, _SHOWN_CHARACTERS = 6, 60
_LONGEST_INTEGER = 150  # bits of an integer that is written out
_PAST_INTEGERS = 2**63  # the first integer that is too large for an index, an axis or a size


def shown(value: Any) -> str:
    """A value's repr for a message: one line of at most 60 characters, also where Python has no repr for it.

    >>> shown([1, 2]), shown(10**5000)
    ('[1, 2]', 'an integer of 16,610 bits')
    """
    if isinstance(value, int) and value.bit_length() > _LONGEST_INTEGER:
        return (
            f"an integer of {value.bit_length():,} bits"  # Python refuses to write one of over 4,300 digits
        )
    try:
        return " ".join(repr(value).split())[:_SHOWN_CHARACTERS]
    except Exception:  # whatever the user's __repr__ raises; that of a list may hold an integer as above
        return f"an object of {type(value).__name__}"


def check_count(name: str, value: Any, least: int = 1) -> int:
    """The value as an int. Raises OptionError unless it is an integer (NumPy's too) in `least` .. 2^63 - 1."""
    if not is_integer(value) or int(value) < least:
        allowed = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise OptionError(f"{name} must be {allowed}, got {shown(value)}")
    if int(value) >= _PAST_INTEGERS:
        raise OptionError(f"{name} got {shown(value)}, which is too large for memory: choose a smaller one")
    return int(value)


def is_integer(value: Any) -> bool:
    """Whether it is an integer of Python's or NumPy's. Booleans and arrays are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_integer(name: str, value: Any) -> int:
    """The value as an int. Raises OptionError unless it is an integer (NumPy's too) of at most 64 bits."""
    if not is_integer(value) or abs(int(value)) >= _PAST_INTEGERS:
        raise OptionError(f"{name} must be an integer, got {shown(value)}")
    return int(value)


def check_pair(name: str, value: Any, least: int = 1) -> tuple[int, int]:
    """A pair of ints, for rows and columns; one integer stands for both.

    Raises OptionError unless each is an integer of at least `least`.
    """
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    try:
        first, second = (check_count(name, item, least) for item in pair)
    except ValueError:
        allowed = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise OptionError(f"{name} must be {allowed} or a pair of them, got {shown(value)}") from None
    return first, second


def check_real(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """The value as a float. Raises OptionError unless it is a finite number (NumPy's too) in [low, high)."""
    real = _as_float(value)
    if not low <= real < high:
        allowed = f" at least {low:g}" if high == math.inf else f" in [{low:g}, {high:g})"
        allowed = "" if low == -math.inf else allowed
        raise OptionError(f"{name} must be a finite number{allowed}, got {shown(value)}")
    return real


def _as_float(value: Any) -> float:
    """A real number, or an array without axes, as a float; NaN for anything else, or if it is too large for one."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    try:
        real = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except (OverflowError, ValueError):
        return math.nan
    return real if math.isfinite(real) else math.nan


def check_shape(name: str, value: Any) -> tuple[int, ...]:
    """A shape as a tuple; one integer stands for one axis. Raises OptionError unless each extent is at least 0."""
    extents = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(check_count(f"{name}: each extent of the shape", extent, least=0) for extent in extents)


#: Options of PyTorch, Keras and scikit-learn. A name counts where a function has an option of this name; a sentence
#: says what takes the option's place.
_HABITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("lr", "learning_rate_init"), ("learning_rate", "rate")),
    **dict.fromkeys(("beta_1", "beta_2", "beta1", "beta2"), ("betas",)),
    **dict.fromkeys(("eps", "variance_epsilon"), ("epsilon",)),
    **dict.fromkeys(("clipnorm", "max_norm", "global_clipnorm"), ("clip_norm",)),
    **dict.fromkeys(("clipvalue", "grad_clip"), ("clip_value",)),
    **dict.fromkeys(("decay", "l2"), ("weight_decay",)),
    "use_ema": ("average=0.999 keeps moving averages",),
    **dict.fromkeys(("in_features", "input_dim"), ("inputs",)),
    **dict.fromkeys(("out_features", "units"), ("outputs",)),
    **dict.fromkeys(("normalized_shape", "num_features"), ("features",)),
    **dict.fromkeys(("filters",), ("out_channels",)),
    **dict.fromkeys(("strides",), ("stride",)),
    **dict.fromkeys(("pool_size",), ("kernel_size",)),
    **dict.fromkeys(("dilation_rate",), ("dilation",)),
    "use_bias": ("bias",),
    "kernel_initializer": ("weight_init",),
    "bias_initializer": ("bias_init",),
    "p": ("rate",),
    "dim": ("axis",),
    "activation": ("an activation is a layer of its own, such as layers.ReLU()",),
    "kernel_regularizer": ("weight_decay is an option of optimizers",),
    "from_logits": ("losses take logits",),
    "weight": ("class_weight",),
    "size_average": ("reduction",),
    "validation_data": ("validation",),
    "validation_split": ("validation=(x, y) takes samples that were set apart",),
    "verbose": ("progress", "only fit shows anything: fit(progress=False) turns it off"),
    **dict.fromkeys(("max_iter", "nb_epoch", "n_epochs"), ("epochs",)),
    "epochs": ("fit takes it",),
    "batch_size": ("fit takes it",),
    "initial_epoch": ("a second fit goes on where the first one ended",),
    "class_weight": ("losses.SoftmaxCrossEntropy(class_weight=...) takes it",),
    "callbacks": ("Trainer(..., callbacks=[...]) takes them",),
    "metrics": ("Trainer(..., metrics=[...]) takes them",),
    "criterion": ("loss",),
    "params": ("parameters go to step: optimizer.step(model.parameters())",),
    **dict.fromkeys(("step_size", "decay_steps", "T_max", "total_steps", "total_iters"), ("every", "steps")),
    **dict.fromkeys(("gamma", "decay_rate"), ("factor",)),
    **dict.fromkeys(("base_lr", "initial_learning_rate", "max_lr"), ("rate", "peak")),
    **dict.fromkeys(("eta_min", "end_learning_rate"), ("end",)),
    **dict.fromkeys(("strict", "by_name"), ("all weights must fit, or it raises",)),
    **dict.fromkeys(("overwrite", "save_format"), ("it replaces a file, and writes safetensors",)),
    **dict.fromkeys(("input_size",), ("input_shape",)),
    "retain_graph": ("leave it out, since backward may be called again",),
    **dict.fromkeys(("filename", "filepath"), ("path",)),
    "num_classes": ("the classes are counted by the outputs",),
    "random_state": ("seed",),
    **dict.fromkeys(
        ("test_size", "train_size"), ("split=(0.8, 0.1, 0.1) are the shares of all three parts",)
    ),
    "restore_best_weights": ("restore_best",),
}


def check_known(name: str, received: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise OptionError, in the name of a class or function, if an option received is not among those allowed.

    A name of PyTorch, Keras or scikit-learn is answered with xnn's.
    """
    known = list(dict.fromkeys(allowed))
    for option in received:
        if option not in known:
            hints = _HABITS.get(option, ())
            hint = next((hint for hint in hints if hint in known or not hint.isidentifier()), "")
            hint = (
                f" ({option} is called {hint} here)" if hint.isidentifier() else f" ({hint})" if hint else ""
            )
            raise OptionError(f"{name} has no option {option!r}; it takes {', '.join(known)}{hint}")


def refuse_unknown(function: Callable[..., Any], unknown: Mapping[str, Any]) -> None:
    """Raise OptionError if a function or class got options that it does not take, as `**unknown: Never`.

    Type checkers refuse any argument for Never, as they would without `**unknown`.
    """
    if unknown:
        check_known(function.__name__, unknown, argument_names(function))


def is_one_of(value: Any, allowed: Collection[str | None]) -> bool:
    """Whether an option is one of some texts, or None. An array is not, and is not compared."""
    return (value is None or isinstance(value, str)) and value in allowed


def check_dtype(dtype: str) -> str:
    """The dtype's name. Raises OptionError unless it is "float32" or "float64"."""
    if not is_one_of(dtype, ("float32", "float64")):
        raise OptionError(f"dtype must be 'float32' or 'float64', got {shown(dtype)}")
    return dtype


class _Checked:
    """An attribute that is checked at each assignment. It has no `__get__`, so that reading it costs nothing."""

    def __init__(self, check: Callable[..., Any], *limits: Any) -> None:
        self._check, self._limits = check, limits

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __set__(self, thing: Any, value: Any) -> None:
        vars(thing)[self._name] = self._check(self._name, value, *self._limits)


def checked(check: Callable[..., Any], *limits: Any) -> Any:
    """An attribute of a class that check(name, value, *limits) checks whenever it is assigned, in `__init__` too.

    What the check returns is kept.

    >>> class Rule:
    ...     momentum: float = checked(check_real, 0.0, 1.0)
    >>> rule = Rule()
    >>> rule.momentum = 1.5
    Traceback (most recent call last):
    xnn.errors.OptionError: momentum must be a finite number in [0, 1), got 1.5
    """
    return _Checked(check, *limits)


def check_flag(name: str, value: Any) -> bool:
    """The value as a bool. Raises OptionError unless it is True or False (NumPy's too)."""
    if not isinstance(value, (bool, np.bool_)):
        raise OptionError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def argument_names(kind: Callable[..., Any]) -> list[str]:
    """The names of the arguments that a class or function takes. self, *args and **kwargs are left out."""
    return list(_argument_names(cast(Any, kind)))


@functools.cache
def _argument_names(kind: Any) -> tuple[str, ...]:
    found = inspect.signature(kind).parameters.values()
    return tuple(
        p.name for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "self"
    )


def explained(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap an `__init__`, so that wrong arguments raise an OptionError that lists the arguments it takes."""
    signature = inspect.signature(init)
    takes = [
        f"*{p.name}" if p.kind is p.VAR_POSITIONAL else name for name, p in signature.parameters.items()
    ][1:]

    def check(self: Any, values: tuple[Any, ...], options: dict[str, Any]) -> None:
        try:
            signature.bind(self, *values, **options)
        except TypeError as error:
            # A subclass may have an __init__ of its own, which calls this one with wrong arguments.
            own = type(self).__init__ is checked
            name = type(self).__name__ if own else init.__qualname__.partition(".")[0]
            if all(p.kind is not p.VAR_KEYWORD for p in signature.parameters.values()) and takes:
                check_known(name, options, [option.lstrip("*") for option in takes])
            allowed = ", ".join(takes) if takes else "no options"
            raise OptionError(f"{name}: {error}; it takes {allowed}") from None

    @functools.wraps(init)
    def checked(self: Any, *values: Any, **options: Any) -> None:
        inner = "_building" in vars(self)  # a base class's
        vars(self)["_building"] = True
        try:
            init(self, *values, **options)
        except TypeError:  # of the arguments, or from inside
            check(self, values, options)
            raise
        finally:
            if not inner:
                del vars(self)["_building"]

    return checked


def explained_call(hint: str = "") -> Callable[[_Function], _Function]:
    """A decorator of methods: wrong arguments raise an OptionError that lists the arguments there are.

    hint: how the method is called, for the message. Default none.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def call(*values: Any, **options: Any) -> Any:
            try:
                return function(*values, **options)
            except TypeError as error:
                if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise  # it comes from inside the function
                check_known(function.__name__, options, argument_names(function))
                takes = ", ".join(argument_names(function)) or "no arguments"
                said = str(error).partition("() ")[2]
                raise OptionError(
                    f"{function.__name__} {said}; it takes {takes}{f': {hint}' if hint else ''}"
                ) from None

        return cast(_Function, call)

    return decorate


def explained_class(kind: type[_Kind]) -> type[_Kind]:
    """Decorate a dataclass: wrong arguments then raise an OptionError that lists the arguments it takes."""
    setattr(kind, "__init__", explained(kind.__init__))  # noqa: B010 - a type checker takes no assignment
    return kind


def takes(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a function can be called with these arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError):
        return False
    return True


def written(thing: Any, options: Mapping[str, Any], *first: str, always: Collection[str] = ()) -> str:
    """An object as the call that makes it, for its repr: `Dense(784, 100)`.

    options: what it was built with, in any order; those that have their defaults are omitted, and those that must be
        given stand first, without their names.
    first: text that stands before all of them.
    always: options that are shown at their defaults, too. Default none.
    """
    parameters = inspect.signature(type(thing)).parameters
    required = [name for name, p in parameters.items() if p.default is p.empty and name in options]
    parts = [*first, *(_short(options[name]) for name in required)]
    for name in dict.fromkeys((*parameters, *options)):
        if name not in options or name in required:
            continue
        default = parameters[name].default if name in parameters else inspect.Parameter.empty
        if name in always or repr(options[name]) != repr(default):  # by repr, since True == 1
            parts.append(f"{name}={_short(options[name])}")
    return f"{type(thing).__name__}({', '.join(parts)})"


def attributes_of(thing: Any) -> dict[str, Any]:
    """The options of an object that keeps each argument as an attribute of the same name, for `written`.

    >>> from fractions import Fraction
    >>> written(Fraction(3, 4), attributes_of(Fraction(3, 4)))
    'Fraction(numerator=3, denominator=4)'
    """
    return {name: getattr(thing, name) for name in argument_names(type(thing)) if hasattr(thing, name)}


def _short(value: Any) -> str:
    """An option's repr; for a long list, its first items and its length."""
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(value, tuple) and len(value) > _SHOWN_ITEMS:
        return f"({', '.join(map(_short, value[:3]))}, ... {len(value)} in all)"
    if isinstance(value, tuple) and any(hasattr(item, "shape") for item in value):
        return f"({', '.join(map(_short, value))})"
    if hasattr(value, "shape") and not isinstance(value, type) and getattr(value, "ndim", False):
        return f"<array {tuple(value.shape)}>"
    name = getattr(value, "__name__", "")  # a function's repr is its address
    text = name or repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
