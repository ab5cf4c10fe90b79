"""What a layer is: an op, the parameters it is applied with, and what its backward needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np

from xnn.backends import (
    Backend,
    Purpose,
    Stream,
    backend_of,
    current_backend,
    current_numerics,
    get_backend,
    mixed_arrays,
)
from xnn.backends.mode import check_same_numerics
from xnn.errors import DTypeError, GraphError, OptionError, ShapeError
from xnn.graph import Node, Weight
from xnn.initializers import Initializer
from xnn.ops import Array, Namespace, Op
from xnn.ops.op import backward_of, forward_of

__all__ = ["Layer", "Parameter", "check_input_dtype", "computed", "computes_its_own_way"]


class Parameter:
    """An array that training changes: `value`, its gradient `grad`, and whether it is `frozen`.

    The value is drawn from its initializer in float64, rounded to `dtype` and put on the backend that
    is current then: when a Sequential takes the layer in, or else when it is first used.
    """

    def __init__(self, name: str, shape: tuple[int, ...], initializer: Initializer, dtype: str) -> None:
        if not callable(initializer) or isinstance(initializer, type):
            raise OptionError(
                f"{name} needs an initializer such as xnn.initializers.He(), got {repr(initializer)[:60]}"
            )
        self.name = name
        self.shape = shape
        self.initializer = initializer
        self.dtype = dtype
        self._grad: Array | None = None
        self._grad_folded = False
        self.frozen = False
        self._stream = Stream(0, Purpose.WEIGHTS)
        self._value: Array | None = None
        self._assigned = False

    @property
    def value(self) -> Array:
        """The array; assign one of the same shape to change it: an array of any backend, or a list.

        It is converted to the parameter's dtype, so that float64 does not creep into a float32 model.
        """
        if self._value is None:
            drawn = self.initializer(self._stream, self.shape)
            self._value = current_backend().to_device(drawn.astype(self.dtype))
        return self._value

    @value.setter
    def value(self, value: Any) -> None:
        if not hasattr(value, "shape"):
            lib = current_backend() if self._value is None else backend_of(self._value)
            value = lib.to_device(value, dtype=self.dtype)
        if tuple(value.shape) != self.shape:
            raise ShapeError(
                f"{self.name} has shape {self.shape}, got an array of shape {tuple(value.shape)}"
            )
        xp = backend_of(value).xp
        dtype = getattr(xp, self.dtype)
        self._value = value if value.dtype == dtype else xp.astype(value, dtype)
        self._assigned = True

    @property
    def grad(self) -> Array | None:
        """The last gradient, None before the first. Raises GraphError where training folded it into the update."""
        if self._grad_folded:
            raise GraphError(
                f"{self.name} has no gradient: training folded it into the update, which is faster; a callback that "
                "reads gradients says so with needs_gradients = True, and layer.backward computes one"
            )
        return self._grad

    @grad.setter
    def grad(self, gradient: Array | None) -> None:
        self._grad, self._grad_folded = gradient, False

    def fold_gradient(self) -> None:
        """Say that updates leave no gradient, so that reading an old one raises."""
        self._grad, self._grad_folded = None, True

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def draw_from(self, stream: Stream) -> None:
        """Say which stream the value comes from. What was assigned or trained stays as it is."""
        self._stream = stream
        if not self._assigned:
            self._value = None

    def move(self, source: Backend, target: Backend) -> None:
        """Put value and gradient on another backend; a value that was drawn counts as assigned from then on."""
        self._value, self._assigned = target.to_device(source.to_host(self.value)), True
        if self._grad is not None:
            self._grad = target.to_device(source.to_host(self._grad))

    def __repr__(self) -> str:
        return f"<parameter {self.name} {self.shape} {self.dtype}{' frozen' if self.frozen else ''}>"


class Layer:
    """An op with state. Subclasses set `op` and say what it is applied to; forward and backward follow.

    forward(x, training=False): the op's output; keeps what backward needs.
    backward(dout): the gradient for x; fills each parameter's `grad`.
    `training` is passed, never a mode that someone forgets to switch back.
    """

    op: Op
    #: xnn's own layers by name, from which a saved model is built again.
    own: ClassVar[dict[str, Any]] = {}
    #: Whether integers may come in as they are; before other layers a model converts them to its dtype.
    takes_integers = False

    def __init__(self, *parameters: Parameter, seed: int | None = None) -> None:
        self.own_parameters = list(parameters)
        self.seed = seed
        self.saved: Any = None
        self._ran: tuple[str, Any, str] | None = None  # backend, dtype and numerics of the last forward
        self.index = 0
        for k, parameter in enumerate(self.own_parameters):
            parameter.draw_from(Stream(seed or 0, Purpose.WEIGHTS, 0, k))

    def __setattr__(self, name: str, value: Any) -> None:
        """A parameter stays the layer's: what is trained and saved is the one it was built with."""
        if isinstance(self.__dict__.get(name), Parameter):
            raise OptionError(
                f"{type(self).__name__}.{name} is a Parameter and stays: assign an array to .{name}.value, got "
                f"{repr(value)[:60]}"
            )
        super().__setattr__(name, value)

    def __init_subclass__(cls) -> None:
        if cls.__module__.startswith("xnn.layers.") and not cls.__name__.startswith("_"):
            Layer.own[cls.__name__] = cls

    def check(self, x: Array) -> None:
        """A look at an input before anything is computed with it: raises what the op could not say as well."""

    def check_integers(self, x: np.ndarray) -> None:
        """The same of all the integers of a data set or prediction at once, if the layer takes integers."""

    def arguments(self, x: Array, training: bool) -> tuple[Any, ...]:
        """The op's inputs after x: the parameters' values."""
        return tuple(p.value for p in self.own_parameters)

    def options(self, xp: Namespace) -> dict[str, Any]:
        """The op's options."""
        return {}

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values, so that a saved model can be built again."""
        return {}

    def apply(self, x: Array, training: bool) -> tuple[Array, Any]:
        """The op's output and what its backward needs; keeps neither.

        Of a layer without an op it is what its own forward says.
        """
        if not hasattr(self, "op"):
            if type(self).forward is Layer.forward:
                raise OptionError(
                    f"{type(self).__name__} needs an `op`, or an `apply` or `forward` of its own"
                )
            return self.forward(x, training), None
        self.check(x)
        arguments = self.arguments(x, training)
        xp = backend_of(x, *arguments).math
        return forward_of(self.op, xp, (x, *arguments), self.options(xp))

    def trace(self, x: Node) -> Node:
        """What forward does in training, as a node of a graph: from it a Trainer makes its program.

        A subclass that computes in its own way (its own apply, arguments, forward or backward, but no trace) is
        traced as one op that calls the layer.
        """
        weights = [Weight(parameter) for parameter in self.parameters()]
        if computes_its_own_way(self, "trace", _COMPUTING):
            return computed(_WholeLayer(self), (x, *weights))
        self.check(x.value)
        return computed(self.op, (x, *weights), self.options(backend_of(x.value).math))

    def __call__(self, x: Array, training: bool = False) -> Array:
        """The same as forward."""
        return self.forward(x, training)

    def forward(self, x: Array, training: bool = False) -> Array:
        """The layer's output for a batch x, which is left as it is."""
        y, self.saved = self.apply(x, training)
        self._ran = backend_of(y).name, y.dtype, current_numerics()
        return y

    def backward(self, dout: Array, input_gradient: bool = True) -> Array | None:
        """From the gradient for the output: fill the parameters' grad, return the gradient for the input.

        With input_gradient=False None is returned and its cost saved. Raises GraphError before a forward.
        """
        xp = self._check_backward(dout).math
        saved = self.saved if input_gradient else self.op.without_input_gradient(self.saved)
        dx, *gradients = backward_of(self.op, xp, dout, saved)
        for parameter, gradient in zip(self.own_parameters, gradients, strict=False):
            parameter.grad = gradient
        return dx if input_gradient else None

    def _check_backward(self, dout: Array) -> Backend:
        """The backend of a backward pass, which must be the forward's, as must the dtype.

        Raises GraphError before a forward, MixedArraysError or DTypeError.
        """
        if self._ran is None:
            raise GraphError(f"{type(self).__name__}.backward came before its forward")
        name, dtype, mode = self._ran
        check_same_numerics(type(self).__name__, mode)
        lib = backend_of(dout)
        if lib.name != name:
            raise mixed_arrays(get_backend(name), lib)
        if dout.dtype != dtype and lib.xp.isdtype(dtype, "real floating"):
            raise DTypeError(
                f"{type(self).__name__} gave outputs of {dtype} and got a gradient of {dout.dtype}: "
                "it would widen the weights; convert the gradient, or the targets it comes from"
            )
        return lib

    def forget(self) -> None:
        """Drop what backward would need, and the memory with it."""
        self.saved = self._ran = None

    def draw_from(self, seed: int, number: int) -> int:
        """Take weights that were not assigned from this seed, as layer `number` of a model; returns the next.

        A layer built with a seed of its own keeps its weights.
        """
        for k, parameter in enumerate(self.own_parameters):
            if self.seed is None:
                parameter.draw_from(Stream(seed, Purpose.WEIGHTS, number, k))
        return number + 1

    def number_from(self, index: int) -> int:
        """Take the number by which masks are told apart in a model; returns the next."""
        self.index = index
        return index + 1

    def set_stream(self, seed: int, step: int, row: int = 0) -> None:
        """Where the random numbers of the next training forward come from; only Dropout has any."""

    def parameters(self) -> list[Parameter]:
        """The parameters, in the op's order."""
        return list(self.own_parameters)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Name and parameter, in order: `weight`, `bias`; inside a Sequential `1.weight`, ..."""
        for parameter in self.own_parameters:
            yield parameter.name, parameter

    def to(self, backend: str) -> Self:
        """Move the parameters to another backend; returns the layer itself."""
        target = get_backend(backend)
        for parameter in self.parameters():
            parameter.move(backend_of(parameter.value), target)
        self.forget()
        return self

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one sample's output, given that of its input. Raises ShapeError if it cannot be."""
        return shape

    def flops(self, shape: tuple[int, ...]) -> int:
        """Floating-point operations of one sample's forward pass; a function of one element counts as one."""
        return math.prod(shape)

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.config().items())
        return f"{type(self).__name__}({inside})"


def check_input_dtype(name: str, x: Array, weight: Parameter) -> None:
    """Raise DTypeError for an input of another dtype than the weights of the layer called `name`."""
    if x.dtype != weight.value.dtype:
        raise DTypeError(
            f"{name} holds {weight.dtype} weights and got {x.dtype}: convert the input (Rescale does for integers), "
            "or build the layer with dtype='float64'"
        )


def computed(op: Op, inputs: tuple[Any, ...], options: dict[str, Any] | None = None) -> Node:
    """A node whose value is there at once, so that a trace meets the errors that running would meet."""
    node = Node(op, inputs, options)
    node.forward()
    return node


def computes_its_own_way(what: Any, said_by: str, methods: frozenset[str]) -> bool:
    """Whether a class nearer than the one whose `said_by` says what is computed has one of `methods` of its own."""
    for cls in type(what).__mro__:
        if said_by in vars(cls):
            return False
        if vars(cls).keys() & methods:
            return True
    return False


_COMPUTING = frozenset({"apply", "arguments", "forward", "backward"})


class _WholeLayer(Op):
    """A layer as one op: its own forward and backward, which find its parameters by themselves."""

    opaque = takes_stored = True

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        #: Off while a program is made: a trial must change nothing that training counts.
        self.training = False

    def forward(self, xp: Namespace, x: Array, *weights: Array) -> tuple[Array, Any]:
        return self.layer.forward(x, self.training), True

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        dx = self.layer.backward(grad, input_gradient=saved)
        return (dx, *(parameter.grad for parameter in self.layer.parameters()))

    def without_input_gradient(self, saved: Any) -> Any:
        return False

    @property
    def name(self) -> str:
        return type(self.layer).__name__
