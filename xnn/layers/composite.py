"""Layers that are several ops: what they compute is written once, with ops, for arrays, recorded values and nodes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from xnn import ops
from xnn.autograd import Value, gradients_of
from xnn.backends import backend_of
from xnn.errors import GraphError, OptionError
from xnn.graph import Kept, Node, Weight
from xnn.layers.layer import Layer, as_one_op, computed, computes_its_own_way, tried_shape
from xnn.layers.parameter import Buffer, Parameter
from xnn.ops import Array
from xnn.ops.op import apply_rule

__all__ = ["Composite", "Lambda"]

_Made = TypeVar("_Made")


class Composite(Layer):
    """A layer that says with ops what it computes: compute(x, *parameters, training=...).

        class Gate(layers.Composite):
            def __init__(self, features):
                super().__init__(layers.Parameter("gain", (features,), initializers.Ones(), "float32"))

            def compute(self, x, gain, training):
                return ops.sigmoid(x * gain) * x

    x and the parameters are graph nodes when a Trainer makes its program, and recorded values when the layer is
    run by hand, so its gradients need no backward of its own.
    """

    buildable = False

    def __init__(
        self, *parameters: Parameter, buffers: Sequence[Buffer] = (), seed: int | None = None
    ) -> None:
        super().__init__(*parameters, buffers=buffers, seed=seed)
        try:
            inspect.signature(self.compute).bind(None, *parameters, training=True)
        except TypeError as error:
            given = ", ".join(("self", "x", *(p.name for p in parameters), "training"))
            raise OptionError(
                f"{type(self).__name__} needs `def compute({given})`, with each parameter that super().__init__ got: "
                f"{error}"
            ) from None

    def compute(self, x: Any, *parameters: Any, training: bool) -> Any:
        """The output, made of x and the parameters with ops and `+ - * / @ **`."""
        raise NotImplementedError(f"{type(self).__name__} needs a compute of its own")

    def keep(self, buffers: Sequence[Buffer], rule: Callable[..., Any], source: Any, **options: Any) -> None:
        """Change buffers in each training step: their values become rule(xp, *values, source, **options), a tuple.

        source is made of x: what is made of parameters or constants alone is in no program.
        """
        if isinstance(source, Node):
            Kept(source, buffers, rule, options)
            return
        source = source.value if isinstance(source, Value) else source
        values = [buffer.value for buffer in buffers]
        fresh = apply_rule(rule, backend_of(source, *values).math, (*values, source), options)
        for buffer, value in zip(buffers, fresh, strict=True):
            buffer.value = value

    def apply(self, x: Array, training: bool) -> tuple[Array, Any]:
        """The output, and the recording it came from."""
        lib = backend_of(x, *(p.value for p in self.own_parameters))
        given = Value(x) if lib.xp.isdtype(x.dtype, "real floating") else x
        parameters = [Value(p.value) for p in self.own_parameters]
        y = self.compute(given, *parameters, training=training)
        y = self._made(y, Value)
        return y.value, (y, given, parameters)

    def _made(self, y: Any, kind: type[_Made]) -> _Made:
        if not isinstance(y, kind):
            raise GraphError(
                f"{type(self).__name__} must make its output of its input with ops, got {type(y).__name__}"
            )
        return y

    def backward(self, dout: Array, input_gradient: bool = True) -> Array | None:
        """Back through the recording."""
        self._check_backward(dout)
        y, x, parameters = self.saved
        wanted = [v for v in (x, *parameters) if isinstance(v, Value)]
        gradients = gradients_of(y, dout, wanted)
        for parameter, gradient in zip(reversed(self.own_parameters), reversed(gradients), strict=False):
            parameter.grad = gradient
        return gradients[0] if input_gradient and isinstance(x, Value) else None

    def trace(self, x: Node) -> Node:
        """The nodes of what is computed."""
        if computes_its_own_way(self, "trace", frozenset({"apply", "forward", "backward"})):
            return as_one_op(self, x)
        given, weights = computed(ops.identity, (x,)), [Weight(p) for p in self.own_parameters]
        for node in (given, *weights):
            node.eager = True
        y = self.compute(given, *weights, training=True)
        return self._made(y, Node)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Found by trying it on two samples."""
        return tried_shape(self, shape)


class Lambda(Composite):
    """A function of yours as a layer: Lambda(lambda x: ops.tanh(x) * 2.0), written with ops and without weights.

    Its code is not saved with a model: `save` keeps the weights, and `load_weights` puts them into a model that
    your code builds. Layers with weights of their own derive from Composite.
    """

    buildable = False

    def __init__(self, function: Callable[[Any], Any]) -> None:
        if not callable(function) or isinstance(function, (Layer, type)):
            raise OptionError(f"Lambda needs a function of one value, got {repr(function)[:60]}")
        super().__init__()
        self.function = function

    def compute(self, x: Any, *parameters: Any, training: bool) -> Any:
        """function(x)."""
        return self.function(x)

    def trace(self, x: Node) -> Node:
        """One op that calls the layer: the function may look at values, as it may in autograd."""
        return as_one_op(self, x)

    def __repr__(self) -> str:
        return f"Lambda({getattr(self.function, '__name__', 'function')})"
