"""The import table: for each operator of ONNX, the layers that compute what its node does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xnn import ops
from xnn.exchange.functions import OPS
from xnn.exchange.onnx_reader import OnnxReader, Unit
from xnn.exchange.row import Single
from xnn.layers import (
    GELU,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    Function,
    GlobalAvgPool,
    Layer,
    LayerNorm,
    MaxPool2D,
    Reshape,
    SiLU,
)
from xnn.layers.parameter import Parameter
from xnn.ops import Op

__all__ = ["JOINS", "OPERATORS", "Step"]


class Step(NamedTuple):
    """A step of arithmetic with a constant. Those that follow one another become one Rescale.

    kind: "Sub", "Mul", "Div", "Add" or "Cast". number: the constant, as it meets one sample; None for a Cast.
    before, dtype: the dtypes of the value before and after the step.
    """

    kind: str
    number: np.ndarray | None
    before: str
    dtype: str


_Found = list[Layer | Step]
_Rule = Callable[[OnnxReader, Unit], _Found]


def _filled(layer: Layer, **arrays: np.ndarray | None) -> _Found:
    """The layer with these arrays in its parameters and buffers."""
    for name, array in arrays.items():
        parameter = getattr(layer, name)
        if isinstance(parameter, Parameter) and array is not None:
            parameter.value = layer.backend.to_device(np.array(array, parameter.dtype, order="C"))
    return [layer]


def _gemm(reader: OnnxReader, unit: Unit) -> _Found:
    node, said = unit.node, reader.attributes(unit.node)
    if said.get("transA", 0) or node.input[0] not in unit.inputs:
        reader.refuse(node, "which multiplies from the left or a transposed input: xnn computes x W + b")
    weight, bias = said.get("alpha", 1.0) * reader.weight(node, 1), reader.constant(node, 2)
    weight = weight.T if said.get("transB", 0) else weight
    if bias is not None:
        bias = np.broadcast_to(said.get("beta", 1.0) * bias, (1, weight.shape[1]))[0]
    return _filled(
        Dense(weight.shape[0], weight.shape[1], bias=bias is not None, dtype=str(weight.dtype)),
        weight=weight,
        bias=bias,
    )


def _matmul(reader: OnnxReader, unit: Unit) -> _Found:
    node = unit.node
    if node.input[0] not in unit.inputs or reader.weight(node, 1).ndim != 2:
        reader.refuse(node, "which multiplies from the left or by more than a matrix: xnn computes x W")
    weight = reader.weight(node, 1)
    return _filled(
        Dense(weight.shape[0], weight.shape[1], bias=False, dtype=str(weight.dtype)), weight=weight
    )


def _padding(reader: OnnxReader, unit: Unit, said: dict[str, Any], kernel: tuple[int, ...]) -> Any:
    """The padding of a convolution or pooling, as a pair, or as "same"."""
    node, stride = unit.node, tuple(said.get("strides", (1, 1)))
    if len(kernel) != 2:
        reader.refuse(node, f"with windows of {len(kernel)} axes, and xnn has those of images")
    if said.get("ceil_mode", 0):
        reader.refuse(node, "with ceil_mode=1: xnn leaves out windows that are not whole")
    automatic = said.get("auto_pad", "NOTSET")
    if automatic == "VALID":
        return (0, 0)
    dilation = tuple(said.get("dilations", (1, 1)))
    pads = tuple(said.get("pads", (0, 0, 0, 0)))
    spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    same = tuple(span // 2 for span in spans), tuple(span - span // 2 for span in spans)
    if automatic == "SAME_UPPER" or (automatic == "SAME_LOWER" and same[0] == same[1]):
        pads = (*same[0], *same[1]) if stride == (1, 1) else (-1, 0, 0, 0)
    elif automatic != "NOTSET":
        pads = (-1, 0, 0, 0)
    if min(pads) >= 0 and pads[:2] == pads[2:]:
        return pads[:2]
    if stride == (1, 1) and (pads[:2], pads[2:]) == same and node.op_type == "Conv":
        return "same"
    return reader.refuse(
        node, "with another padding at the end than at the beginning, which xnn has for 'same' only"
    )


def _conv(reader: OnnxReader, unit: Unit) -> _Found:
    said, weight = reader.attributes(unit.node), reader.weight(unit.node, 1)
    if said.get("group", 1) != 1:
        reader.refuse(unit.node, "with several groups of channels, which xnn does not have")
    bias, kernel = reader.constant(unit.node, 2), weight.shape[2:]
    layer = Conv2D(
        weight.shape[1], weight.shape[0], kernel if len(kernel) == 2 else 1, tuple(said.get("strides", (1, 1))),
        _padding(reader, unit, said, kernel), tuple(said.get("dilations", (1, 1))), bias=bias is not None,
        dtype=str(weight.dtype),
    )  # fmt: skip
    return _filled(layer, weight=weight, bias=bias)


def _pool(kind: Any) -> _Rule:
    def rule(reader: OnnxReader, unit: Unit) -> _Found:
        said = reader.attributes(unit.node)
        kernel = tuple(said["kernel_shape"])
        padding = _padding(reader, unit, said, kernel)
        if kind is AvgPool2D and any(padding) and not said.get("count_include_pad", 0):
            reader.refuse(
                unit.node, "whose means leave out the padding, which xnn counts (count_include_pad=1)"
            )
        dilation = tuple(said.get("dilations", (1, 1)))
        if kind is AvgPool2D and dilation != (1, 1):
            reader.refuse(unit.node, "with a dilation, which xnn has for MaxPool only")
        more = {} if kind is AvgPool2D else {"dilation": dilation}
        return [kind(kernel, tuple(said.get("strides", (1, 1))), padding, **more)]

    return rule


def _batch_norm(reader: OnnxReader, unit: Unit) -> _Found:
    said, node = reader.attributes(unit.node), unit.node
    if said.get("training_mode", 0):
        reader.refuse(node, "in its training mode: export the network for inference")
    weight, bias, mean, variance = (reader.weight(node, position) for position in range(1, 5))
    layer = BatchNorm(len(weight), said.get("epsilon", 1e-5), dtype=str(weight.dtype))
    return _filled(layer, weight=weight, bias=bias, running_mean=mean, running_var=variance)


def _layer_norm(reader: OnnxReader, unit: Unit) -> _Found:
    said, weight = reader.attributes(unit.node), reader.weight(unit.node, 1)
    shape, axis = reader.shape(unit.inputs[0]), said.get("axis", -1)
    if weight.ndim != (-axis if axis < 0 or shape is None else len(shape) + 1 - axis):
        reader.refuse(unit.node, "whose scale has not the shape of the normalized axes")
    layer = LayerNorm(weight.shape, said.get("epsilon", 1e-5), dtype=str(weight.dtype))
    bias = reader.constant(unit.node, 2)
    return _filled(layer, weight=weight, bias=np.zeros_like(weight) if bias is None else bias)


def _gather(reader: OnnxReader, unit: Unit) -> _Found:
    node = unit.node
    if (
        node.input[0] in unit.inputs
        or reader.weight(node, 0).ndim != 2
        or reader.attributes(node).get("axis", 0)
    ):
        reader.refuse(node, "which is not a table of vectors for integers, as Embedding is")
    weight = reader.weight(node, 0)
    return _filled(Embedding(weight.shape[0], weight.shape[1], dtype=str(weight.dtype)), weight=weight)


# Shapes.


def _reshape(reader: OnnxReader, unit: Unit) -> _Found:
    """Reshape, Squeeze and Unsqueeze: the shape that inference of shapes finds for their output."""
    before, after = reader.shape(unit.inputs[0]), reader.shape(unit.output)
    if (
        after
        and before is not None
        and None not in (*before, *after)
        and math.prod(before) == math.prod(after)
    ):
        return [Flatten() if len(after) == 1 else Reshape(after)]
    target = _target(reader, unit.node) if unit.node.op_type == "Reshape" else ()
    if len(target) > 1 and target[0] in (0, None) and not {0, None} & {*target[1:]}:
        return [Flatten() if target[1:] == (-1,) else Reshape(target[1:])]
    return reader.refuse(unit.node, "whose output has not a known shape for each sample of the batch")


def _target(reader: OnnxReader, node: Any) -> tuple[Any, ...]:
    """The shape that a Reshape is given; None for a number in it that the graph computes, () if it computes all."""
    name = node.input[1]
    if name in reader.constants:
        return tuple(reader.constants[name].tolist())
    maker = reader.makers.get(name, (0, None))[1]
    if maker is None or maker.op_type != "Concat":
        return ()
    parts = (reader.constants.get(part) for part in maker.input)
    return tuple(extent for part in parts for extent in ([None] if part is None else part.tolist()))


def _flatten(reader: OnnxReader, unit: Unit) -> _Found:
    shape, axis = reader.shape(unit.inputs[0]), reader.attributes(unit.node).get("axis", 1)
    if axis != 1 and (shape is None or axis + len(shape) + 1 != 1):
        reader.refuse(unit.node, f"with axis={axis}: xnn keeps the axis of the batch alone")
    return [Flatten()]


def _global_average(reader: OnnxReader, unit: Unit) -> _Found:
    shape = reader.shape(unit.inputs[0])
    if shape is None or len(shape) != 3 or shape[0] is None:
        reader.refuse(unit.node, "of something else than images with a known number of channels")
    return [GlobalAvgPool(), Reshape((shape[0], 1, 1))]


def _transpose(reader: OnnxReader, unit: Unit) -> _Found:
    order = tuple(reader.attributes(unit.node).get("perm", ()))
    if not order or order[0] != 0:
        reader.refuse(unit.node, "which moves the axis of the batch")
    return [Function(ops.transpose, axes=order)]


def _reduction(op: Op) -> _Rule:
    def rule(reader: OnnxReader, unit: Unit) -> _Found:
        said, shape = reader.attributes(unit.node), reader.shape(unit.inputs[0])
        given = reader.constant(unit.node, 1)
        axes = said.get("axes", ()) if given is None else given.tolist()
        if (
            shape is None
            or not axes
            or 0 in (axes := tuple(sorted(axis % (len(shape) + 1) for axis in axes)))
        ):
            reader.refuse(unit.node, "which joins the samples of a batch, or of a shape that is not known")
        keeps = bool(said.get("keepdims", 1))
        if op is ops.mean and axes == (2, 3) and len(shape) == 3 and (not keeps or shape[0] is not None):
            return [GlobalAvgPool(), *([Reshape((shape[0], 1, 1))] if keeps else [])]
        return [Function(op, axis=axes, keepdims=keeps)]

    return rule


# Arithmetic with constants, and functions.


def _arithmetic(reader: OnnxReader, unit: Unit) -> _Found:
    node, kind, value = unit.node, unit.node.op_type, unit.inputs[0]
    before, after = reader.dtype(value), reader.dtype(unit.output)
    if kind == "Cast":
        return [Step(kind, None, before, after)]
    if kind == "Neg":
        return [Step("Mul", np.array(-1.0), before, after)]
    first = node.input[0] in unit.inputs
    number = np.asarray(reader.constant(node, 1 if first else 0), np.float64)
    shape = reader.shape(value)
    if number.ndim:
        if shape is not None and number.ndim == len(shape) + 1 and len(number) == 1:
            number = number[0]
        known = shape if shape is None or None not in shape else None
        if known is None or number.ndim > len(known) or np.broadcast_shapes(number.shape, known) != known:
            reader.refuse(node, "whose constant has not the shape of a sample")
    if not np.isfinite(number).all() or (kind == "Div" and first and not number.all()):
        reader.refuse(node, "whose constant is NaN or infinite, or a divisor of 0")
    if kind == "Div" and not first:
        reader.refuse(node, "of a constant by x, for which xnn has no layer")
    if kind == "Sub" and not first:
        return [Step("Mul", np.array(-1.0), before, after), Step("Add", number, after, after)]
    return [Step(kind, number, before, after)]


def _clip(reader: OnnxReader, unit: Unit) -> _Found:
    limits = {name: reader.constant(unit.node, at) for name, at in (("min", 1), ("max", 2))}
    given = {name: float(limit) for name, limit in limits.items() if limit is not None}
    return [Function(ops.clip, **given)] if given else []


def _dropout(reader: OnnxReader, unit: Unit) -> _Found:
    rate, training = reader.constant(unit.node, 1), reader.constant(unit.node, 2)
    if training is not None and training.item():
        reader.refuse(unit.node, "in its training mode: export the network for inference")
    return [Dropout(0.5 if rate is None else float(str(np.float32(rate.item()))))]


def _nothing(reader: OnnxReader, unit: Unit) -> _Found:
    return []


def _are_close(said: dict[str, Any], name: str, right: float) -> bool:
    return name not in said or math.isclose(said[name], right, rel_tol=1e-5)


def _single(op: Op, rule: Single) -> _Rule:
    """The rule of an operator that is one op: the layer of that op if there is one, else a Function."""
    kinds = [kind for kind in Layer.own.values() if getattr(kind, "op", None) is op]

    def read(reader: OnnxReader, unit: Unit) -> _Found:
        said = reader.attributes(unit.node)
        if rule.kind == "Selu" and not (
            _are_close(said, "alpha", 1.67326) and _are_close(said, "gamma", 1.0507)
        ):
            reader.refuse(unit.node, "with another alpha or gamma than SELU has, for which xnn has no layer")
        if "axis" in rule.attributes and reader.is_of_batch(said.get("axis", -1), unit.inputs[0]):
            reader.refuse(unit.node, "along the axis of the batch")
        given = {option: said[name] for name, option in rule.attributes.items() if name in said}
        return [kinds[0](**given) if kinds else Function(op, **given)]

    return read


#: The rules of operators whose inputs, but for constants, are one value.
OPERATORS: dict[str, _Rule] = {
    **{row.onnx.kind: _single(op, row.onnx) for op, row in OPS.items() if isinstance(row.onnx, Single)},
    **dict.fromkeys(("Sub", "Mul", "Div", "Add", "Cast", "Neg"), _arithmetic),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Identity", "Sum", "Concat"), _nothing),
    "ReduceMean": _reduction(ops.mean),
    "ReduceSum": _reduction(ops.sum),
    "ReduceMax": _reduction(ops.max),
    "ReduceMin": _reduction(ops.min),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "MaxPool": _pool(MaxPool2D),
    "AveragePool": _pool(AvgPool2D),
    "GlobalAveragePool": _global_average,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Gather": _gather,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Softplus": lambda reader, unit: [Layer.own["Softplus"]()],
    "Clip": _clip,
    "Dropout": _dropout,
    "SiLU": lambda reader, unit: [SiLU()],
    "GELU": lambda reader, unit: [GELU()],
}
#: Operators that join several values.
JOINS = ("Add", "Sum", "Concat")
