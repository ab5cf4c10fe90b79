"""Layer, the base class of all layers: parameters, and one `compute` from which everything else follows."""

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
from xnn.graph.habits import Habitual, RefusedName
from xnn.graph.node import Recorded, array_of
from xnn.graph.scope import Scope, current_scope
from xnn.graph.taped import Taped
from xnn.graph.value import Constant, Kept, Value
from xnn.layers.by_hand import run_by_hand, written_by_hand
from xnn.layers.parameter import Buffer, check_all_known
from xnn.layers.state import Stateful
from xnn.ops import Array, Namespace, Op
from xnn.options import explained_call, written

__all__ = ["Composite", "Layer", "check_input_dtype", "flatten_hint", "tried_shape"]


class _Tape(NamedTuple):
    """A forward pass by hand, as `backward` needs it."""

    given: Value
    output: Value
    numerics: str


class Layer(Stateful, Habitual):
    """Parameters, and a function of an input and of them. The base class of all layers.

    A subclass assigns parameters and layers to attributes, and overrides `compute` (or sets `op`):

        class Gate(layers.Layer):
            def __init__(self, features):
                super().__init__()
                self.gain = layers.Parameter("gain", (features,), initializers.Ones())

            def compute(self, x):
                return ops.sigmoid(x * self.gain) * x

    forward(x, training=False) computes the output and keeps what `backward` needs. backward(dout) returns the
    gradient for x and sets the `grad` of each parameter, in place of the one from before. Both follow from
    `compute`, and so do the layer's node in a graph, its gradients under `xnn.grad`, and its part in a Trainer's
    program.

    **What belongs to a layer.** Parameters and layers in attributes, and in lists, tuples and dicts in attributes,
    are trained, moved and saved with it. They are named by the attribute: `gain`, `blocks.0.weight`. In other places
    (a set, an object that is not a layer, a closure) a Sequential refuses them. When __init__ ends, the weights of
    inner layers are drawn, each from a random stream of its own; a Sequential that takes the layer in draws them
    again, from its own seed.

    **What `compute` may do.** `compute(self, x)` or `compute(self, x, training)` is Python code that a Trainer runs
    once for each batch size; the ops that it calls become the program of all steps. It may call other layers, which
    get `training` from it. It may read attributes, globals and closures, which may change between steps: the
    program is made again after an attribute was assigned or a callback ran. What anything else changes, such as a
    schedule, counts from the trainer's next check, at most 100 steps later. `compute` cannot look at the numbers:
    reading `.value`, a branch on a number, random numbers of its own and assigning an attribute raise an error.
    `layers.Drawing` draws random numbers; `Layer.keep` changes arrays.

    **By hand.** A subclass may instead override both `forward` and `backward`, and set each parameter's `grad` there.

    parameters, buffers: arrays that keep the names they have, instead of those of attributes.
    seed: an integer, from which the layer's own weights are drawn, whatever its place in a model; None by default.

    Raises OptionError for two arrays of one name, and, where a subclass is defined, for a `forward` without a
    `backward` or a `compute` with other arguments.

        >>> import numpy as np
        >>> from xnn import initializers, layers, ops
        >>> class Gate(layers.Layer):
        ...     def __init__(self, features):
        ...         super().__init__()
        ...         self.gain = layers.Parameter("gain", (features,), initializers.Ones())
        ...
        ...     def compute(self, x):
        ...         return ops.sigmoid(x * self.gain) * x
        >>> gate = Gate(2)
        >>> x = np.zeros((3, 2), np.float32)
        >>> gate.forward(x).shape
        (3, 2)
        >>> gate.backward(np.ones_like(x))[0].tolist()
        [0.5, 0.5]
        >>> gate.gain.grad.tolist()
        [0.0, 0.0]
    """

    op: Op
    _habits = "layer"
    _closed = True
    trainable = RefusedName("layer", "trainable")
    #: xnn's own layers by name, from which a saved model is built again.
    own: ClassVar[dict[str, Any]] = {}
    #: Arguments that an architecture file may omit, and the axis of a sample from which each is taken.
    from_input: ClassVar[dict[str, int]] = {}
    #: Whether a model file describes it, so that `xnn.load` can build it again.
    buildable: ClassVar[bool] = True
    #: Whether it takes integers as they are; for other first layers a model converts them to its dtype.
    takes_integers = False
    #: Whether samples of float64 are taken as they are, whatever the model's dtype.
    takes_float64 = False
    #: Whether `forward` and `backward` are written by hand.
    by_hand: ClassVar[bool] = False

    _tape: _Tape | None = None
    _takes_training: ClassVar[bool] = True
    #: Whether `compute` may be given plain arrays where nothing is recorded: xnn's own layers spare the wrapping.
    _takes_arrays: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        named = cls.__module__.startswith("xnn.layers.") and not cls.__name__.startswith("_")
        if named and vars(cls).get("buildable", True):
            Layer.own[cls.__name__] = cls
        cls.by_hand = written_by_hand(cls, Layer)
        if "compute" in vars(cls):
            cls._takes_training = _check_compute(cls)
        if "_takes_arrays" not in vars(cls):
            cls._takes_arrays = cls.__module__.startswith("xnn.layers.")

    # What it computes.

    def check(self, x: Array) -> None:
        """Raise for an input that does not fit, with a message that names the layer."""

    def check_wide(self, x: np.ndarray) -> None:
        """Check samples of float64 before they are used. Raises XnnError for those that the layer cannot take."""

    def check_integers(self, x: np.ndarray) -> None:
        """Raise for host integers that are out of range: those of a whole data set at once, before training."""

    def options(self, xp: Namespace) -> dict[str, Any]:
        """The op's options."""
        return {}

    def compute(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The layer's output: by default its op of x and its parameters. Override it with (x) or (x, training).

        x: the input, a recorded value, as is what compute returns.
        training: whether this is a training step.
        """
        if not hasattr(self, "op"):
            raise OptionError(f"{type(self).__name__} needs an `op`, or a `compute` of its own")
        if type(self).options is Layer.options:
            return self.op(x, *self.own_parameters)
        return self.op(x, *self.own_parameters, **self.options(backend_of(array_of(x)).math))

    def __call__(self, x: Any, training: bool | None = None) -> Any:
        """The output for an array, a recorded value or a graph node.

        x: the input. An array outside of `compute` and `xnn.grad` goes through `forward`, so that `backward` may
            follow.
        training: whether this is a training step. By default, inside the `compute` of another layer, what that layer
            was called with; elsewhere False.
        """
        if training is not None and not isinstance(training, (bool, np.bool_)):
            raise OptionError(
                f"{type(self).__name__} is called with one input, and training=True or False, got "
                f"{type(training).__name__} as training: join several inputs with ops.concat, or call the ops"
            )
        if isinstance(x, Node):
            return self._node(x, bool(training))
        scope = current_scope()
        if scope is None and not isinstance(x, Recorded):
            return self.forward(x, bool(training))
        inherited = scope is not None and scope.training
        return self.run(x, inherited if training is None else training)

    def run(self, x: Any, training: bool) -> Any:
        """Compute the output inside a larger computation; nothing is kept for `backward`."""
        if self.by_hand:
            return run_by_hand(self, x, training)
        scope = current_scope()
        if scope is not None:
            return self._computed(scope, x, training)
        with Scope(records=isinstance(x, Recorded)) as scope:
            return self._computed(scope, x, training)

    def _computed(self, scope: Scope, x: Any, training: bool) -> Any:
        """Call `compute` with x, and with `training` set for the layers that it calls."""
        self.check(array_of(x))
        plain = self._takes_arrays and not scope.records
        given = x if plain or isinstance(x, Recorded) else Constant(x)
        before = scope.training, scope.guarded
        scope.training, scope.guarded = training, scope.records
        try:
            y = self.compute(given, training=training) if self._takes_training else self.compute(given)
        finally:
            scope.training, scope.guarded = before
        if not (plain or isinstance(y, Recorded)):
            raise GraphError(
                f"{type(self).__name__} must compute its output from its input with ops, got {type(y).__name__}"
            )
        # An array came in, and nothing is recorded: an array goes out.
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
        """Change buffers at the end of each training forward pass, as BatchNorm changes its running mean.

        For use in `compute`, in training.
        buffers: the layer's buffers.
        rule: rule(xp, *arrays, source, **options) returns the tuple of their new arrays.
        source: what the rule reads of the batch, an array or a value computed from x.
        """
        change, scope = Kept(tuple(buffers), rule, source, options), current_scope()
        if scope is None:
            change.apply()
        else:
            scope.kept.append(change)

    def forward(self, x: Array, training: bool = False) -> Array:
        """The output for a batch x, an array that stays unchanged; keeps what `backward` needs."""
        given = Value(x)
        with Scope(training) as scope:
            output = self._computed(scope, given, training)
            # Not by __setattr__, which looks for parameters in what is assigned.
            self.__dict__["_tape"] = _Tape(given, output, current_numerics())
        return output.array

    @explained_call("model.backward(loss.backward()) passes the loss's gradient back")
    def backward(self, dout: Array, input_gradient: bool = True, accumulate: bool = False) -> Array | None:
        """Set the parameters' `grad`, and return the gradient for the input of the last `forward`.

        dout: the gradient for its output, of the output's shape and dtype.
        input_gradient: whether the gradient for the input is needed; False returns None and saves the time.
        accumulate: whether the gradients are added to those that the parameters have, as PyTorch does. By default
            they replace them, so that nothing must be set to zero before.

        The grad of a parameter that the output does not depend on becomes None, or stays if gradients are added.
        Raises GraphError before a forward and for another shape, DTypeError for another dtype.
        """
        if self._tape is None:
            raise GraphError(f"{type(self).__name__}.backward came before its forward: call forward first")
        given, output, mode = self._tape
        _check_gradient(type(self).__name__, dout, output.array)
        order, parameters = made_from(output), self.parameters()
        check_all_known(type(self).__name__, order, parameters)
        wanted: set[Recorded] = {*parameters, given} if input_gradient else {*parameters}
        # Copied now, since a layer written by hand may write its new gradients into the arrays of the old ones.
        before = {p: _alone(p.grad, {id(p.grad)}) for p in parameters if accumulate}
        with pinned():
            check_same_numerics(type(self).__name__, mode)
            handed = backpropagate(order, {output: dout}, wanted)
        out: set[int] = set()
        for parameter in parameters:
            gradient = _alone(handed[parameter][0], out) if parameter in handed else None
            had = before.get(parameter)
            if had is not None and gradient is not None:
                gradient = had + gradient
            parameter.grad = had if gradient is None else gradient
        return _alone(handed[given][0], out) if input_gradient and given in handed else None

    def forget(self) -> None:
        """Free the memory of what `backward` would need."""
        self.__dict__["_tape"] = None
        for _, layer in self._layers():
            layer.forget()

    def to(self, backend: str) -> Self:
        """Move parameters and buffers to the backend of this name, such as "cupy"; returns the layer itself."""
        target = get_backend(backend)
        # All are copied first: a full or lost GPU leaves the layer where it was.
        for array, copies in [(array, array.copies(target)) for _, array in self.named_state()]:
            array.replace(*copies)
        self.forget()
        return self

    # What is known about it.

    def config(self) -> dict[str, Any]:
        """The arguments of `__init__` as JSON values, from which a saved model is built again."""
        return {}

    @property
    def backend(self) -> Backend:
        """The backend of its arrays; the current backend if there are none."""
        first = self.first_array()
        return current_backend() if first is None else backend_of(first.array)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one sample's output for a sample of this shape. Raises ShapeError if it does not fit."""
        said = self.by_hand or type(self).compute is not Layer.compute
        return tried_shape(self, shape) if said else shape

    def flops(self, shape: tuple[int, ...]) -> int | None:
        """Floating-point operations of one sample's forward pass, None if unknown; a function such as exp is one."""
        return math.prod(shape)

    def __repr__(self) -> str:
        return written(self, self.config())


class Composite(Layer):
    """Another name for Layer, for code written for version 0.1."""

    buildable = False


def _check_compute(cls: type[Layer]) -> bool:
    """Whether `compute` takes `training`. Raises OptionError if it needs other arguments besides x."""
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
    """Raise unless a gradient has the backend, shape and dtype of the output."""
    lib = backend_of(dout, y)
    if tuple(dout.shape) != tuple(y.shape):
        raise GraphError(
            f"{name} gave outputs of shape {tuple(y.shape)} and got a gradient of shape {tuple(dout.shape)}: "
            "they must be equal"
        )
    if dout.dtype != y.dtype and lib.xp.isdtype(y.dtype, "real floating"):
        raise DTypeError(
            f"{name} gave outputs of {y.dtype} and got a gradient of {dout.dtype}: convert the gradient, or the "
            "targets that it was computed with"
        )


def _alone(gradient: Array | None, out: set[int]) -> Array | None:
    """Return a gradient, or a copy of it if this array was returned before.

    Otherwise a caller who changes one gradient in place would change another one, too.

    out: the ids of the arrays that were returned.
    """
    if gradient is not None and id(gradient) in out:
        gradient = backend_of(gradient).xp.asarray(gradient, copy=True)
    out.add(id(gradient))
    return gradient


def flatten_hint(shape: tuple[int, ...], size: int) -> str:
    """What to do about samples of several axes that have as many elements as a layer takes; "" for others."""
    return "; put Flatten() before it" if len(shape) > 1 and math.prod(shape) == size else ""


def check_input_dtype(layer: Any, x: Array, lib: Backend) -> None:
    """Raise DTypeError for an input of another dtype than `layer.dtype`; lib: the backend of both."""
    if x.dtype != getattr(lib.xp, layer.dtype):
        advice = f"convert the input, as x.astype('{layer.dtype}')"
        if not lib.xp.isdtype(x.dtype, "real floating"):
            advice += ", or begin the model with Rescale, which takes integers"
        elif x.dtype == lib.xp.float64:
            advice += ", or build the layer with dtype='float64'"
        raise DTypeError(f"{layer!r} holds {layer.dtype} numbers and got {x.dtype}: {advice}")


def tried_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Run the layer on two samples of ones, or of integer zeros, and return the shape of one sample's output.

    Raises ShapeError if the layer does not return an output for each of them.
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
            f"{layer!r} returned shape {tuple(y.shape)} for two samples of shape {shape}: a layer returns an output "
            "for each sample"
        )
    return tuple(y.shape[1:])
