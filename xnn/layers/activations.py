"""Layers without parameters: one line for each op."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from xnn import ops
from xnn.errors import OptionError, ShapeError
from xnn.layers.layer import Layer, tried_shape
from xnn.layers.parameter import Parameter
from xnn.ops import Namespace, Op
from xnn.ops.op import size_of
from xnn.options import check_integer, check_real

__all__ = [
    "ELU", "GELU", "SELU", "Flatten", "Function", "Lambda", "LeakyReLU", "LogSoftmax", "ReLU", "Reshape", "SiLU",
    "Sigmoid", "Softmax", "Softplus", "Tanh",
]  # fmt: skip


class _Named(Layer):
    """A layer whose op is fixed: its docstring is the op's, its arguments are the op's options."""

    _signature: ClassVar[inspect.Signature]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__doc__ = cls.__doc__ or type(cls.op).__doc__
        cls._signature = cls.__signature__ = _options_of(cls.op)  # type: ignore[attr-defined]

    def __init__(self, *values: Any, **options: Any) -> None:
        super().__init__()
        self.chosen = _chosen(type(self).__name__, self.op, self._signature, values, options)

    def options(self, xp: Namespace) -> dict[str, Any]:
        """Those it was built with."""
        return self.chosen

    def config(self) -> dict[str, Any]:
        """The options."""
        return dict(self.chosen)


def _options_of(op: Op) -> inspect.Signature:
    """The options of an op's forward, which may also be given by position, in their order."""
    parameters = inspect.signature(op.forward, eval_str=True).parameters.values()
    own = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in parameters if p.kind is p.KEYWORD_ONLY]
    return inspect.Signature(own)


def _chosen(
    name: str, op: Op, signature: inspect.Signature, values: tuple[Any, ...], options: dict[str, Any]
) -> dict[str, Any]:
    """The options that a call stands for, looked at as far as their types tell what they may be."""
    try:
        bound = signature.bind(*values, **options)
    except TypeError as error:
        raise OptionError(f"{name}{signature}: {error}") from None
    bound.apply_defaults()
    for key, value in bound.arguments.items():
        kind = signature.parameters[key].annotation
        if kind is float:
            bound.arguments[key] = check_real(f"{name}: {key}", value)
        elif kind is int:
            bound.arguments[key] = check_integer(f"{name}: {key}", value)
        elif typing.get_origin(kind) is typing.Literal and value not in typing.get_args(kind):
            allowed = " or ".join(map(repr, typing.get_args(kind)))
            raise OptionError(f"{name}: {key} must be {allowed}, got {value!r}")
    return dict(bound.arguments)


class ReLU(_Named):
    op = ops.relu


class LeakyReLU(_Named):
    op = ops.leaky_relu


class ELU(_Named):
    op = ops.elu


class SELU(_Named):
    op = ops.selu


class GELU(_Named):
    op = ops.gelu


class SiLU(_Named):
    op = ops.silu


class Softplus(_Named):
    op = ops.softplus


class Sigmoid(_Named):
    op = ops.sigmoid


class Tanh(_Named):
    op = ops.tanh


class Softmax(_Named):
    op = ops.softmax


class LogSoftmax(_Named):
    op = ops.log_softmax


class Flatten(_Named):
    op = ops.flatten

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One axis."""
        return (math.prod(shape),)

    def flops(self, shape: tuple[int, ...]) -> int:
        """Nothing is computed."""
        return 0


class Reshape(Layer):
    """Each sample in another shape: Reshape((1, 28, 28)) makes images of rows of 784 pixels; one extent may be -1."""

    op = ops.reshape

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__()
        given = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
        self.shape = tuple(check_integer("Reshape: each extent", extent) for extent in given)
        if not self.shape or min(self.shape) < -1 or 0 in self.shape or self.shape.count(-1) > 1:
            raise OptionError(f"Reshape takes extents of at least 1, one of which may be -1, got {given}")

    def compute(self, x: Any) -> Any:
        """The batch, with its samples in that shape."""
        shape = tuple(x.shape)
        return self.op(x, shape=(shape[0], *self.output_shape(shape[1:])))

    def config(self) -> dict[str, Any]:
        """The shape."""
        return {"shape": list(self.shape)}

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The new one. Raises ShapeError if a sample has not as many elements."""
        size, known = size_of(shape), math.prod(extent for extent in self.shape if extent != -1)
        missing = size // known
        if size % known or (-1 not in self.shape and size != known):
            raise ShapeError(f"Reshape{self.shape} cannot take samples of shape {shape}: {size} elements")
        return tuple(missing if extent == -1 else extent for extent in self.shape)

    def flops(self, shape: tuple[int, ...]) -> int:
        """Nothing is computed."""
        return 0


class Function(Layer):
    """Any op of one input as a layer, with its options: Function(ops.exp), Function(ops.softmax, axis=1)."""

    def __init__(self, op: Op, **options: Any) -> None:
        super().__init__()
        if not isinstance(op, Op):
            raise OptionError(f"Function needs an op such as ops.exp or your own, got {op!r}")
        self.op = op
        #: Lists, as weight files have them, are the tuples that ops take.
        self.chosen = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}

    def options(self, xp: Namespace) -> dict[str, Any]:
        """Those it was built with."""
        return self.chosen

    def config(self) -> dict[str, Any]:
        """The op's name, by which only xnn's own can be found again, and its options."""
        return {"op": self.op.name, **self.chosen}

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Found by trying it on a sample of ones."""
        return tried_shape(self, shape)


class Lambda(Layer):
    """A function of yours as a layer: Lambda(lambda x: ops.tanh(x) * 2.0), written with ops and without weights.

    function: takes the layer's input and returns its output. A Trainer runs it as `Layer` says of `compute`. Its code
    is not saved with a model: `save` keeps the weights, and `load_weights` puts them into a model that your code
    builds. A layer with weights derives from Layer. Raises OptionError for a function that uses layers or parameters:
    they would stay untrained and unsaved.
    """

    buildable = False

    def __init__(self, function: Callable[[Any], Any]) -> None:
        if not callable(function) or isinstance(function, (Layer, type)):
            raise OptionError(f"Lambda needs a function of one value, got {repr(function)[:60]}")
        super().__init__()
        self.function = function
        hidden = [name for name, value in _read_by(function).items() if _learns(value)]
        if hidden:
            raise OptionError(
                f"the function of a Lambda uses {hidden[0]}, which would stay untrained and unsaved: write a "
                "Layer with it as an attribute, or freeze its parameters"
            )

    def compute(self, x: Any) -> Any:
        """function(x)."""
        return self.function(x)

    def __repr__(self) -> str:
        return f"Lambda({getattr(self.function, '__name__', 'function')})"


def _read_by(function: Callable[..., Any]) -> dict[str, Any]:
    """The variables around a function that it reads, by name."""
    try:
        found = inspect.getclosurevars(function)
    except TypeError:  # not a Python function
        return {}
    return {**found.globals, **found.nonlocals}


def _learns(value: Any) -> bool:
    """Whether it is a parameter, or a layer with parameters, that is not frozen."""
    held = value.parameters() if isinstance(value, Layer) else [value] if isinstance(value, Parameter) else []
    return any(not parameter.frozen for parameter in held)
