"""What a row of the export tables holds: how one layer or op is written in each format."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from xnn.layers import Layer

__all__ = ["Row", "Rule", "Single", "Value", "options_of"]


class Value(NamedTuple):
    """A value that goes from layer to layer.

    name: what the format calls it.
    shape: the shape of one sample, without the batch axis.
    dtype: "float32", "float64", or "int64" in front of embeddings.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


#: Writes a layer: rule(target, layer, x) returns the name of the output, or the text of a module of PyTorch.
#: target: the file that is written, a `xnn.exchange.target.Target` of the rule's format. x: the layer's input.
Rule = Callable[[Any, Any, Value], str]


class Row(NamedTuple):
    """How a layer or op is written in each format; None where a format does not have it."""

    onnx: Rule
    torch: Rule
    c: Rule | None = None


class Single:
    """The rule of an op that is one node of ONNX with one input. `from_onnx` reads the same rule backwards.

    kind: the name of ONNX's operator.
    attributes: the op's option for each attribute of the operator. Both have the same default.
    """

    def __init__(self, kind: str, **attributes: str) -> None:
        self.kind, self.attributes = kind, attributes

    def __call__(self, graph: Any, layer: Layer, x: Value) -> str:
        options = options_of(layer)
        given = {attribute: options[option] for attribute, option in self.attributes.items()}
        name: str = graph.node(self.kind, x.name, **given)
        return name


def options_of(layer: Layer) -> dict[str, Any]:
    """All options of the layer's op by name, with the defaults of those that it leaves out.

    >>> from xnn import layers, ops
    >>> options_of(layers.Function(ops.softmax)), options_of(layers.ELU(0.5))
    ({'axis': -1}, {'alpha': 0.5})
    """
    takes = inspect.signature(layer.op.forward).parameters.values()
    defaults = {p.name: p.default for p in takes if p.kind is p.KEYWORD_ONLY}
    return {**defaults, **layer.options(None)}
