"""What a layer is: an op, the parameters it is applied with, and what its backward needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
from xnn.layers.parameter import Buffer, Parameter
from xnn.ops import Array, Namespace, Op
from xnn.ops.op import backward_of, check_gradients, forward_of

__all__ = ["Layer", "as_one_op", "check_input_dtype", "computed", "computes_its_own_way", "tried_shape"]


class Layer:
    """An op with state. Subclasses set `op` and say what it is applied to; forward and backward follow.

    forward(x, training=False): the op's output; keeps what backward needs.
    backward(dout): the gradient for x; fills each parameter's `grad`.
    `training` is passed, never a mode that someone forgets to switch back.
    """

    op: Op
    #: xnn's own layers by name, from which a saved model is built again.
    own: ClassVar[dict[str, Any]] = {}
    #: Arguments that an architecture file may leave out: each is taken from this axis of a sample.
    from_input: ClassVar[dict[str, int]] = {}
    #: Whether a file can say how it is built; a base class for layers of the user's is not built at all.
    buildable: ClassVar[bool] = True
    #: Whether integers may come in as they are; before other layers a model converts them to its dtype.
    takes_integers = False

    def __init__(
        self, *parameters: Parameter, buffers: Sequence[Buffer] = (), seed: int | None = None
    ) -> None:
        self.own_parameters, self.own_buffers = list(parameters), list(buffers)
        names = [array.name for array in (*parameters, *buffers)]
        if len(set(names)) < len(names):
            raise OptionError(
                f"{type(self).__name__} has two parameters or buffers of one name in {', '.join(names)}: files tell "
                "them apart by it"
            )
        self.seed = seed
        self.saved: Any = None
        #: Backend, dtype, shape and numerics of the last forward's output.
        self._ran: tuple[str, Any, tuple[int, ...], str] | None = None
        self._given: tuple[int, ...] | None = None  # the shape of its input, where the layer itself was asked
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
        named = cls.__module__.startswith("xnn.layers.") and not cls.__name__.startswith("_")
        if named and vars(cls).get("buildable", True):
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
        if computes_its_own_way(self, "trace", _COMPUTING):
            return as_one_op(self, x)
        self.check(x.value)
        weights = map(Weight, self.parameters())
        return computed(self.op, (x, *weights), self.options(backend_of(x.value).math))

    def __call__(self, x: Array, training: bool = False) -> Array:
        """The same as forward."""
        return self.forward(x, training)

    def forward(self, x: Array, training: bool = False) -> Array:
        """The layer's output for a batch x, which is left as it is."""
        y = self._keep(*self.apply(x, training))
        self._given = tuple(x.shape)
        return y

    def _keep(self, y: Array, saved: Any = None) -> Array:
        """Remember what backward needs and what it must fit."""
        self.saved, self._ran = saved, (backend_of(y).name, y.dtype, tuple(y.shape), current_numerics())
        return y

    def backward(self, dout: Array, input_gradient: bool = True) -> Array | None:
        """From the gradient for the output: fill the parameters' grad, return the gradient for the input.

        With input_gradient=False None is returned and its cost saved. Raises GraphError before a forward.
        """
        xp = self._check_backward(dout).math
        saved = self.saved if input_gradient else self.op.without_input_gradient(self.saved)
        gradients = backward_of(self.op, xp, dout, saved)
        shapes = [self._given, *(p.shape for p in self.own_parameters)]
        own = type(self)
        if own.apply is not Layer.apply or own.arguments is not Layer.arguments:  # such as masks, after these
            shapes += [None] * (len(gradients) - len(shapes))
        check_gradients(f"{self.op.name} in {type(self).__name__}", gradients, shapes)
        for parameter, gradient in zip(self.own_parameters, gradients[1:], strict=False):
            parameter.grad = gradient
        dx = gradients[0]
        return dx if input_gradient else None

    def _check_backward(self, dout: Array) -> Backend:
        """The backend of a backward pass, which must be the forward's, as must the dtype.

        Raises GraphError before a forward or for a gradient of another shape, MixedArraysError or DTypeError.
        """
        if self._ran is None:
            raise GraphError(f"{type(self).__name__}.backward came before its forward")
        name, dtype, shape, mode = self._ran
        check_same_numerics(type(self).__name__, mode)
        lib = backend_of(dout)
        if lib.name != name:
            raise mixed_arrays(get_backend(name), lib)
        if tuple(dout.shape) != shape:
            raise GraphError(
                f"{type(self).__name__} gave outputs of shape {shape} and got a gradient of shape "
                f"{tuple(dout.shape)}: they must be equal"
            )
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

    def buffers(self) -> list[Buffer]:
        """What training keeps without a gradient, in order."""
        return [array for _, array in self.named_state() if isinstance(array, Buffer)]

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Name and parameter, in order: `weight`, `bias`; inside a Sequential `1.weight`, ..."""
        for parameter in self.own_parameters:
            yield parameter.name, parameter

    def named_state(self) -> Iterator[tuple[str, Parameter]]:
        """All that a weight file holds: parameters, then buffers, layer by layer."""
        yield from self.named_parameters()
        for buffer in self.own_buffers:
            yield buffer.name, buffer

    def to(self, backend: str) -> Self:
        """Move parameters and buffers to another backend; returns the layer itself."""
        target = get_backend(backend)
        for _, array in self.named_state():
            array.move(backend_of(array.value), target)
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


def as_one_op(layer: Layer, x: Node) -> Node:
    """A node that calls the layer's own forward and backward."""
    return computed(_WholeLayer(layer), (x, *map(Weight, layer.parameters())))


def tried_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one sample's output of a layer that only running it can tell, by two samples.

    They are ones, or zeros if it takes integers. Raises ShapeError for one that does not give an output for each.
    """
    held = [array.value for _, array in layer.named_state()]
    lib = backend_of(*held) if held else current_backend()
    xp, dtype = lib.xp, held[0].dtype if held else lib.xp.float32
    if layer.takes_integers:
        x = xp.zeros((2, *shape), dtype=xp.int64, device=lib.device)
    else:
        x = xp.ones((2, *shape), dtype=dtype, device=lib.device)
    with lib.guard():
        y, _ = layer.apply(x, training=False)
    if y.ndim < 1 or y.shape[0] != 2:
        raise ShapeError(
            f"{layer!r} makes {tuple(y.shape)} of two samples of shape {shape}: a layer gives an output for each"
        )
    return tuple(y.shape[1:])


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
