"""What a layer is: parameters, and one `compute` that says what is done with them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from xnn.backends import Backend, backend_of, current_backend, current_numerics, get_backend
from xnn.backends.numerics import check_same_numerics, pinned
from xnn.errors import DTypeError, GraphError, OptionError, ShapeError
from xnn.graph import Node
from xnn.graph.backward import backpropagate, made_from
from xnn.graph.node import Recorded, array_of
from xnn.graph.scope import Scope, current_scope
from xnn.graph.taped import Taped
from xnn.graph.value import Constant, Kept, Value
from xnn.layers.by_hand import run_by_hand
from xnn.layers.parameter import Buffer, Parameter, check_all_known
from xnn.layers.state import Stateful
from xnn.ops import Array, Namespace, Op

__all__ = ["Composite", "Layer", "check_input_dtype", "tried_shape"]


class _Tape(NamedTuple):
    """A forward pass by hand: what backward walks back."""

    given: Value
    output: Value
    numerics: str


class Layer(Stateful):
    """Parameters, and what is computed with them.

    A subclass sets `op`, or overrides `compute`:

        class Gate(layers.Layer):
            def __init__(self, features):
                super().__init__()
                self.gain = layers.Parameter("gain", (features,), initializers.Ones())

            def compute(self, x):
                return ops.sigmoid(x * self.gain) * x

    forward(x, training=False) computes the output and keeps what backward needs; backward(dout) returns the gradient
    for x and fills the `grad` of each parameter. Both follow from `compute`, and so do the layer's node in a graph,
    its gradients under `xnn.grad`, and its part in a Trainer's program.

    Parameters and layers assigned to attributes, also in lists, tuples and dicts, belong to the layer: they are
    trained, moved and saved with it, named by the attribute: `gain`, `blocks.0.weight`.

    `compute(self, x)` or `compute(self, x, training)` is Python that a Trainer runs once for each batch size; the ops
    it calls become the program. It may call other layers, which take `training` from it. Options it reads from
    attributes, globals or closures may change: the program is made again. What it cannot do is look at the numbers:
    reading `.value`, a branch on them and random numbers of its own raise an error (see `layers.Drawing`).

    A subclass may instead write both `forward` and `backward` by hand, and set each parameter's `grad` there.
    """

    op: Op
    #: xnn's own layers by name, from which a saved model is built again.
    own: ClassVar[dict[str, Any]] = {}
    #: Arguments that an architecture file may omit: each is taken from this axis of a sample.
    from_input: ClassVar[dict[str, int]] = {}
    #: Whether a file can say how it is built.
    buildable: ClassVar[bool] = True
    #: Whether integers may come in as they are; before other layers a model converts them to its dtype.
    takes_integers = False
    #: Whether `forward` and `backward` are written by hand.
    by_hand: ClassVar[bool] = False

    _tape: _Tape | None = None
    _takes_training: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        named = cls.__module__.startswith("xnn.layers.") and not cls.__name__.startswith("_")
        if named and vars(cls).get("buildable", True):
            Layer.own[cls.__name__] = cls
        forward, backward = cls.forward is not Layer.forward, cls.backward is not Layer.backward
        if forward != backward:
            has, lacks = ("forward", "backward") if forward else ("backward", "forward")
            raise OptionError(
                f"{cls.__name__} has a {has} of its own and no {lacks}: write both, or say in `compute` what the "
                "layer computes, from which both follow"
            )
        if forward and "compute" in vars(cls):
            raise OptionError(
                f"{cls.__name__} has a `compute` and, from itself or a base class, a `forward` and `backward` "
                "written by hand: only one of them can say what it computes"
            )
        cls.by_hand = forward
        if "compute" in vars(cls):
            cls._takes_training = _check_compute(cls)

    # What it computes.

    def check(self, x: Array) -> None:
        """Raise for an input that does not fit; here, where the message can name the layer."""

    def check_integers(self, x: np.ndarray) -> None:
        """Raise for integers out of range: all those of a data set or a prediction at once."""

    def options(self, xp: Namespace) -> dict[str, Any]:
        """The op's options."""
        return {}

    def compute(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The output: the layer's op of x and its parameters. Override it as compute(x) or compute(x, training).

        x: a recorded value, and so is what it returns. training: whether it is a training step.
        """
        if not hasattr(self, "op"):
            raise OptionError(f"{type(self).__name__} needs an `op`, or a `compute` of its own")
        if type(self).options is Layer.options:
            return self.op(x, *self.own_parameters)
        return self.op(x, *self.own_parameters, **self.options(backend_of(array_of(x)).math))

    def __call__(self, x: Any, training: bool | None = None) -> Any:
        """The output for an array, a recorded value or a graph node.

        An array outside of `compute` and `xnn.grad` goes through `forward`, so that `backward` may follow. training:
        in `compute`, what the layer around it was called with; elsewhere False.
        """
        if isinstance(x, Node):
            return self._node(x, bool(training))
        scope = current_scope()
        if scope is None and not isinstance(x, Recorded):
            return self.forward(x, bool(training))
        inherited = scope is not None and scope.training
        return self.run(x, inherited if training is None else training)

    def run(self, x: Any, training: bool) -> Any:
        """The output as a part of something larger: keeps nothing for `backward`."""
        if self.by_hand:
            return run_by_hand(self, x, training)
        scope = current_scope()
        if scope is not None:
            return self._computed(scope, x, training)
        with Scope(records=isinstance(x, Recorded)) as scope:
            return self._computed(scope, x, training)

    def _computed(self, scope: Scope, x: Any, training: bool) -> Any:
        """What `compute` makes of x."""
        self.check(array_of(x))
        given = x if isinstance(x, Recorded) else Constant(x)
        before = scope.training, scope.guarded
        scope.training, scope.guarded = training, scope.records
        try:
            y = self.compute(given, training=training) if self._takes_training else self.compute(given)
        finally:
            scope.training, scope.guarded = before
        if not isinstance(y, Recorded):
            raise GraphError(
                f"{type(self).__name__} must make its output of its input with ops, got {type(y).__name__}"
            )
        return y if scope.records or given is x else y.array

    def _node(self, x: Node, training: bool) -> Any:
        """The layer as a node of a static graph."""
        return Node(self._taped(training), (x, *self.parameters()))

    def _taped(self, training: bool) -> Taped:
        parameters = self.parameters()

        def function(x: Value) -> Any:
            output = self.run(x, training)
            check_all_known(type(self).__name__, made_from(output), parameters)
            return output

        return Taped(type(self).__name__, function, parameters, training)

    def keep(self, buffers: Sequence[Buffer], rule: Callable[..., Any], source: Any, **options: Any) -> None:
        """Change buffers in each training step, at the end of its forward pass. Call it in `compute`, in training.

        buffers: their arrays become rule(xp, *arrays, source, **options), which returns a tuple of as many.
        source: an array, or a value computed from x.
        """
        change, scope = Kept(tuple(buffers), rule, source, options), current_scope()
        if scope is None:
            change.apply()
        else:
            scope.kept.append(change)

    # By hand.

    def forward(self, x: Array, training: bool = False) -> Array:
        """The output for a batch x, which is left as it is; keeps what `backward` needs."""
        given = Value(x)
        with Scope(training) as scope:
            output = self._computed(scope, given, training)
            # Not by __setattr__, which looks for parameters in what is assigned.
            self.__dict__["_tape"] = _Tape(given, output, current_numerics())
        return output.array

    def backward(self, dout: Array, input_gradient: bool = True) -> Array | None:
        """From the gradient for the last output: fill the parameters' grad, return the gradient for the input.

        dout: of the output's shape and dtype. input_gradient: False returns None and saves its cost. A parameter
        that the output does not depend on gets None. Raises GraphError before a forward.
        """
        if self._tape is None:
            raise GraphError(f"{type(self).__name__}.backward came before its forward")
        given, output, mode = self._tape
        _check_gradient(type(self).__name__, dout, output.array)
        order, parameters = made_from(output), self.parameters()
        check_all_known(type(self).__name__, order, parameters)
        wanted: set[Recorded] = {*parameters, given} if input_gradient else {*parameters}
        with pinned():
            check_same_numerics(type(self).__name__, mode)
            handed = backpropagate(order, {output: dout}, wanted)
        for parameter in parameters:
            parameter.grad = handed[parameter][0] if parameter in handed else None
        return handed[given][0] if input_gradient and given in handed else None

    def forget(self) -> None:
        """Drop what backward would need, and the memory with it."""
        self._tape = None
        for _, layer in self._layers():
            layer.forget()

    def to(self, backend: str) -> Self:
        """Move parameters and buffers to another backend; returns the layer itself."""
        target = get_backend(backend)
        for _, array in self.named_state():
            array.move(backend_of(array.array), target)
        self.forget()
        return self

    # What it looks like.

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values, so that a saved model can be built again."""
        return {}

    @property
    def backend(self) -> Backend:
        """Where its arrays live; the current backend if there are none."""
        held = self.parameters() or self.buffers()
        return backend_of(held[0].array) if held else current_backend()

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one sample's output, given that of its input. Raises ShapeError if it cannot be."""
        said = self.by_hand or type(self).compute is not Layer.compute
        return tried_shape(self, shape) if said else shape

    def flops(self, shape: tuple[int, ...]) -> int:
        """Floating-point operations of one sample's forward pass; a function of one element counts as one."""
        return math.prod(shape)

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.config().items())
        return f"{type(self).__name__}({inside})"


class Composite(Layer):
    """A Layer whose `compute` calls several ops: the name that version 0.1 had for it."""

    buildable = False


def _check_compute(cls: type[Layer]) -> bool:
    """Whether `compute` takes `training`. Raises OptionError unless it takes x, and nothing else without default."""
    parameters = inspect.signature(cls.compute).parameters
    takes_training = "training" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        inspect.signature(cls.compute).bind(None, None, **({"training": True} if takes_training else {}))
    except TypeError as error:
        raise OptionError(
            f"{cls.__name__} needs `def compute(self, x)` or `def compute(self, x, training)`; its parameters are "
            f"attributes, as in x @ self.weight: {error}"
        ) from None
    return takes_training


def _check_gradient(name: str, dout: Array, y: Array) -> None:
    """Raise for a gradient of another backend, shape or dtype than the output's."""
    lib = backend_of(dout, y)
    if tuple(dout.shape) != tuple(y.shape):
        raise GraphError(
            f"{name} gave outputs of shape {tuple(y.shape)} and got a gradient of shape {tuple(dout.shape)}: "
            "they must be equal"
        )
    if dout.dtype != y.dtype and lib.xp.isdtype(y.dtype, "real floating"):
        raise DTypeError(
            f"{name} gave outputs of {y.dtype} and got a gradient of {dout.dtype}: it would widen the weights; "
            "convert the gradient, or the targets it comes from"
        )


def check_input_dtype(name: str, x: Array, weight: Parameter) -> None:
    """Raise DTypeError for an input of another dtype than the weights of the layer called `name`."""
    if x.dtype != weight.array.dtype:
        raise DTypeError(
            f"{name} holds {weight.dtype} weights and got {x.dtype}: convert the input (Rescale does for integers), "
            "or build the layer with dtype='float64'"
        )


def tried_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one sample's output of a layer that only running it can tell, by two samples.

    They are ones, or zeros if it takes integers. Raises ShapeError for one that does not give an output for each.
    """
    held = [array.array for _, array in layer.named_state()]
    lib = backend_of(*held) if held else current_backend()
    xp, dtype = lib.xp, held[0].dtype if held else lib.xp.float32
    if layer.takes_integers:
        x = xp.zeros((2, *shape), dtype=xp.int64, device=lib.device)
    else:
        x = xp.ones((2, *shape), dtype=dtype, device=lib.device)
    with lib.guard(), Scope(records=False):
        y = layer.run(x, training=False)
    if y.ndim < 1 or y.shape[0] != 2:
        raise ShapeError(
            f"{layer!r} makes {tuple(y.shape)} of two samples of shape {shape}: a layer gives an output for each"
        )
    return tuple(y.shape[1:])
