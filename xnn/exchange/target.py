"""Target, the base class of files that a model is exported to: the walk through the layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from xnn.backends import backend_of
from xnn.errors import DTypeError, OptionError
from xnn.exchange.functions import OPS
from xnn.exchange.row import Rule, Value
from xnn.exchange.weighted import LAYERS
from xnn.layers import Container, Embedding, Layer, Rescale, Sequential
from xnn.layers.parameter import Parameter
from xnn.layers.sequential import known_shape
from xnn.options import check_shape, shown

__all__ = ["Target", "widest"]


class Target:
    """A file that a model is written to, layer by layer, by the rules of the tables.

    model: a Sequential of xnn's own layers.
    input_shape: the shape of one sample; None (default) if the model says it.

    Raises OptionError for something else than a Sequential, without the shape, and for a layer that the format does
    not have; ShapeError and DTypeError for layers that do not fit together.
    """

    #: The format in words, and the field of its rules in a `Row`.
    format: ClassVar[str]
    column: ClassVar[str]

    def __init__(self, model: Sequential, input_shape: int | tuple[int, ...] | None = None) -> None:
        if not isinstance(model, Sequential):
            raise OptionError(f"only a Sequential is exported, got {shown(model)}: xnn.load(path) reads one")
        if input_shape is None and (input_shape := known_shape(model)) is None:
            raise OptionError(
                f"an export to {self.format} needs the shape of one sample, unless a Reshape or Dense has it: give "
                "input_shape=(1, 28, 28), or --input-shape 1,28,28"
            )
        self.model = model
        #: The position of the layer that is written, such as "2.0".
        self.place = ""
        self.input = Value("x", check_shape("input_shape", input_shape), _input_dtype(model))

    def write_model(self) -> Value:
        """Write all layers. Returns the last output."""
        return self._written(self.model, self.input)

    def _written(self, layer: Layer, x: Value) -> Value:
        rule = self._rule(layer)
        self._check_dtype(layer, x)
        name = rule(self, layer, x)  # first, since it knows better why a layer cannot be exported
        return Value(name, layer.output_shape(x.shape), _dtype_after(layer, x.dtype))

    def _inner(self, position: int, layer: Layer, x: Value) -> Value:
        before = self.place
        self.place = f"{before}.{position}" if before else str(position)
        try:
            return self._written(layer, x)
        finally:
            self.place = before

    def chain(self, container: Container, x: Value) -> list[Value]:
        """Write the layers of a container one after another. Returns the output of each."""
        values = []
        for position, layer in enumerate(container):
            x = self._inner(position, layer, x)
            values.append(x)
        return values

    def branches(self, container: Container, x: Value) -> list[Value]:
        """Write the layers of a container, all of which read x. Returns the output of each."""
        return [self._inner(position, layer, x) for position, layer in enumerate(container)]

    def named(self, name: str) -> str:
        """The name of something of the layer that is written: "2.0.weight"."""
        return f"{self.place}.{name}" if self.place else name

    def parameter(self, parameter: Parameter) -> str:
        """Write an array of the layer. Returns what the format calls it."""
        return self.array(parameter.name, self.on_host(parameter))

    def array(self, name: str, value: np.ndarray) -> str:
        """Write an array of the layer that is written. Returns what the format calls it."""
        raise NotImplementedError

    @staticmethod
    def on_host(parameter: Parameter) -> np.ndarray:
        host: np.ndarray = backend_of(parameter.value).to_host(parameter.value)
        return host

    def _rule(self, layer: Layer) -> Rule:
        kind = type(layer)
        row, is_own = None, Layer.own.get(kind.__name__) is kind
        if is_own:
            op = getattr(layer, "op", None)
            row = LAYERS.get(kind.__name__) or (None if op is None else OPS.get(op))
        rule: Rule | None = None if row is None else getattr(row, self.column)
        if rule is None:
            what = f"layer {self.place} of the model, {layer!r}," if self.place else repr(layer)
            if row is not None:
                hint = "export the model to ONNX or PyTorch, which have it (xnn export MODEL OUT.onnx, or --torch)"
            elif is_own and type(getattr(layer, "op", None)).__module__.startswith("xnn."):
                hint = "other layers of the same effect may do. docs/export.md lists what can be exported"
            else:
                hint = (
                    "no other program has your code. Build it of xnn's layers, such as Function(ops.exp), or export "
                    "the layers before it, Sequential(*model[:n])"
                )
            raise OptionError(f"{what} cannot be exported to {self.format}: {hint}")
        return rule

    def _check_dtype(self, layer: Layer, x: Value) -> None:
        """Raise DTypeError if a layer with weights does not take the dtype that arrives."""
        wanted = "int64" if isinstance(layer, Embedding) else getattr(layer, "dtype", x.dtype)
        if isinstance(layer, (Container, Rescale)) or wanted == x.dtype:
            return
        raise DTypeError(
            f"layer {self.place} of the model, {layer!r}, takes {wanted} and gets {x.dtype}: build the layers with "
            "one dtype, and an Embedding as the first layer"
        )


def _input_dtype(model: Sequential) -> str:
    if _embeds(model):
        return "int64"
    return "float64" if model.takes_float64 else model.dtype


def _embeds(layer: Layer | None) -> bool:
    """Whether the first layers that do more than reshape are embeddings, which take integers."""
    if isinstance(layer, Sequential):
        return _embeds(layer.first_layer)
    inner: Iterable[Any] = layer if isinstance(layer, Container) else ()
    return isinstance(layer, Embedding) or any(map(_embeds, inner))


def _dtype_after(layer: Layer, dtype: str) -> str:
    """The dtype of a layer's output for an input of this dtype."""
    if isinstance(layer, Sequential):
        for inner in layer:
            dtype = _dtype_after(inner, dtype)
        return dtype
    if isinstance(layer, Container):
        return widest(_dtype_after(inner, dtype) for inner in layer)
    return getattr(layer, "dtype", dtype)


def widest(dtypes: Iterable[str]) -> str:
    """The dtype in which values of these dtypes are joined."""
    return str(np.result_type(*dtypes))
