"""The export table of layers that are more than an op of one input: how each is written for ONNX, PyTorch and C.

Containers are written by the rules of the layers inside them. Layers that only change training do nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from xnn.errors import ShapeError
from xnn.exchange.functions import unchanged
from xnn.exchange.row import Row, Value
from xnn.layers import (
    Add,
    BatchNorm,
    Container,
    Conv2D,
    Dense,
    Embedding,
    LayerNorm,
    Parallel,
    Rescale,
    Reshape,
)
from xnn.layers.parameter import Parameter
from xnn.ops.windows import windows_of

__all__ = ["LAYERS"]


def _weights(target: Any, *parameters: Parameter | None) -> list[str]:
    return [target.parameter(parameter) for parameter in parameters if parameter is not None]


def _typed(layer: Any) -> str:
    """The argument of a module of PyTorch that makes it float64 if the layer is."""
    return "" if layer.dtype == "float32" else f", dtype=torch.{layer.dtype}"


# Dense.


def _dense_onnx(graph: Any, layer: Dense, x: Value) -> str:
    weight, *bias = _weights(graph, layer.weight, layer.bias)
    if len(x.shape) == 1:
        return str(graph.node("Gemm", x.name, weight, *bias))
    y = graph.node("MatMul", x.name, weight)
    return str(graph.node("Add", y, *bias) if bias else y)


def _dense_torch(script: Any, layer: Dense, x: Value) -> str:
    script.array("weight", script.on_host(layer.weight).T)
    _weights(script, layer.bias)
    return f"nn.Linear({layer.inputs}, {layer.outputs}, bias={layer.bias is not None}{_typed(layer)})"


def _dense_c(file: Any, layer: Dense, x: Value) -> str:
    weight, *bias = _weights(file, layer.weight, layer.bias)
    rows, y = math.prod(x.shape[:-1]), file.buffer(math.prod(x.shape[:-1]) * layer.outputs, layer.dtype)
    many = rows > 1
    at_x, at_y = (f"r * {layer.inputs} + i", f"r * {layer.outputs} + j") if many else ("i", "j")
    with file.loop("r", rows if many else 0):
        with file.loop("j", layer.outputs):
            file.line(f"{y}[{at_y}] = {bias[0] + '[j]' if bias else '0'};")
        with file.loop("i", layer.inputs), file.loop("j", layer.outputs):
            file.line(f"{y}[{at_y}] += {x.name}[{at_x}] * {weight}[i * {layer.outputs} + j];")
    return str(y)


# Convolution.


def _conv_onnx(graph: Any, layer: Conv2D, x: Value) -> str:
    windows = windows_of(
        repr(layer), (1, *x.shape), layer.kernel_size, layer.stride, layer.padding, layer.dilation
    )
    before = [w.before for w in windows]
    if isinstance(layer.padding, str):
        after = [
            (w.number - 1) * w.stride + (w.kernel - 1) * w.dilation + 1 - w.extent - w.before for w in windows
        ]
    else:
        after = before
    return str(
        graph.node(
            "Conv", x.name, *_weights(graph, layer.weight, layer.bias), kernel_shape=layer.kernel_size,
            strides=layer.stride, dilations=layer.dilation, pads=(*before, *after),
        )
    )  # fmt: skip


def _conv_torch(script: Any, layer: Conv2D, x: Value) -> str:
    _weights(script, layer.weight, layer.bias)
    return (
        f"nn.Conv2d({layer.in_channels}, {layer.out_channels}, {layer.kernel_size}, stride={layer.stride}, "
        f"padding={layer.padding!r}, dilation={layer.dilation}, bias={layer.bias is not None}{_typed(layer)})"
    )


# Normalization.


def _scale_and_shift(graph: Any, layer: BatchNorm | LayerNorm, shape: tuple[int, ...]) -> list[str]:
    """The names of a normalization's weight and bias; ones and zeros where it has none."""
    if layer.affine:
        return _weights(graph, layer.weight, layer.bias)
    values = (np.ones(shape, layer.dtype), np.zeros(shape, layer.dtype))
    return [graph.array(name, value) for name, value in zip(("weight", "bias"), values, strict=True)]


def _batch_norm_onnx(graph: Any, layer: BatchNorm, x: Value) -> str:
    arrays = [
        *_scale_and_shift(graph, layer, (layer.features,)),
        *_weights(graph, layer.running_mean, layer.running_var),
    ]
    return str(graph.node("BatchNormalization", x.name, *arrays, epsilon=layer.epsilon))


def _batch_norm_torch(script: Any, layer: BatchNorm, x: Value) -> str:
    _weights(script, layer.weight, layer.bias, layer.running_mean, layer.running_var)
    script.array("num_batches_tracked", np.array(0, np.int64))
    axes = {1: 1, 2: 1, 3: 2, 4: 3}.get(len(x.shape), 3)
    return (
        f"nn.BatchNorm{axes}d({layer.features}, eps={layer.epsilon}, momentum={layer.momentum}, "
        f"affine={layer.affine}{_typed(layer)})"
    )


def _batch_norm_c(file: Any, layer: BatchNorm, x: Value) -> str:
    mean, variance, *rest = _weights(file, layer.running_mean, layer.running_var, layer.weight, layer.bias)
    inside = math.prod(x.shape[1:])
    at = "i" if inside == 1 else f"i / {inside}"
    root = f"sqrt({variance}[{at}] + {file.number(layer.dtype)(layer.epsilon)})"
    affine = f" * {rest[0]}[{at}] + {rest[1]}[{at}]" if rest else ""
    return str(file.by_element(x, f"(x - {mean}[{at}]) / {root}{affine}"))


def _layer_norm_onnx(graph: Any, layer: LayerNorm, x: Value) -> str:
    arrays = _scale_and_shift(graph, layer, layer.features)
    return str(
        graph.node("LayerNormalization", x.name, *arrays, axis=-len(layer.features), epsilon=layer.epsilon)
    )


def _layer_norm_torch(script: Any, layer: LayerNorm, x: Value) -> str:
    _weights(script, layer.weight, layer.bias)
    return f"nn.LayerNorm({layer.features}, eps={layer.epsilon}, elementwise_affine={layer.affine}{_typed(layer)})"


def _layer_norm_c(file: Any, layer: LayerNorm, x: Value) -> str:
    rest = _weights(file, layer.weight, layer.bias)
    size, count = math.prod(layer.features), math.prod(x.shape)
    y, kind = file.buffer(count, x.dtype), file.type_of(x.dtype)
    with file.loop("r", count // size):
        file.line(f"{kind} mean = 0, variance = 0;")
        with file.loop("i", size):
            file.line(f"mean += {x.name}[r * {size} + i] / {size};")
        with file.loop("i", size):
            away = f"({x.name}[r * {size} + i] - mean)"
            file.line(f"variance += {away} * {away} / {size};")
        affine = f" * {rest[0]}[i] + {rest[1]}[i]" if rest else ""
        with file.loop("i", size):
            root = f"sqrt(variance + {file.number(x.dtype)(layer.epsilon)})"
            file.line(f"{y}[r * {size} + i] = ({x.name}[r * {size} + i] - mean) / {root}{affine};")
    return str(y)


# Inputs: Embedding, Rescale, Reshape.


def _embedding_onnx(graph: Any, layer: Embedding, x: Value) -> str:
    return str(graph.node("Gather", *_weights(graph, layer.weight), x.name, axis=0))


def _embedding_torch(script: Any, layer: Embedding, x: Value) -> str:
    _weights(script, layer.weight)
    return f"nn.Embedding({layer.num_embeddings}, {layer.embedding_dim}{_typed(layer)})"


def _numbers(layer: Rescale, x: Value) -> Iterable[tuple[str, np.ndarray]]:
    """The numbers of a Rescale in the order of its steps: shift, scale, and offset unless it is 0.

    Raises ShapeError for arrays that are larger than a sample.
    """
    for name in ("shift", "scale", "offset"):
        number = getattr(layer, name)
        if number is None or (name == "offset" and not np.any(number)):
            continue
        number = np.asarray(number).astype(_inside(layer))
        if number.ndim == len(x.shape) + 1 and len(number) == 1:
            number = number[0]
        pairs = zip(reversed(number.shape), reversed(x.shape), strict=False)
        if number.ndim > len(x.shape) or any(extent not in (1, of) for extent, of in pairs):
            raise ShapeError(
                f"the {name} of {layer!r} has shape {number.shape}, and a sample has shape {x.shape}"
            )
        yield name, number


def _inside(layer: Rescale) -> str:
    """The dtype in which a Rescale computes."""
    return "float64" if layer.takes_float64 else layer.dtype


def _rescale_onnx(graph: Any, layer: Rescale, x: Value) -> str:
    inside = _inside(layer)
    y = graph.cast(x.name, x.dtype, inside)
    for name, number in _numbers(layer, x):
        y = graph.node({"shift": "Sub", "scale": "Mul", "offset": "Add"}[name], y, graph.array(name, number))
    return str(graph.cast(y, inside, layer.dtype))


def _rescale_torch(script: Any, layer: Rescale, x: Value) -> str:
    inside = _inside(layer)
    shapes = {}
    for name, number in _numbers(layer, x):
        script.array(name, number)
        shapes[name] = number.shape
    return f"Rescale({shapes}, torch.{inside}, torch.{layer.dtype})"


def _rescale_c(file: Any, layer: Rescale, x: Value) -> str:
    inside = _inside(layer)
    number, text = file.number(inside), f"({file.type_of(inside)})x"
    for name, value in _numbers(layer, x):
        sign = {"shift": "-", "scale": "*", "offset": "+"}[name]
        if value.size == 1:
            text = f"({text} {sign} {number(value.item())})"
        else:
            whole = np.broadcast_to(value, x.shape).ravel()
            text = f"({text} {sign} {file.array(name, whole)}[i])"
    return str(file.by_element(x, f"({file.type_of(layer.dtype)}){text}", layer.dtype))


def _reshape_onnx(graph: Any, layer: Reshape, x: Value) -> str:
    shape = np.array((0, *layer.output_shape(x.shape)), np.int64)  # 0 keeps the axis of the batch
    return str(graph.node("Reshape", x.name, graph.array("shape", shape)))


def _reshape_torch(script: Any, layer: Reshape, x: Value) -> str:
    return f"nn.Sequential(nn.Flatten(), nn.Unflatten(1, {layer.output_shape(x.shape)}))"


# Containers.


def _sequential_torch(script: Any, layer: Container, x: Value) -> str:
    return str(script.modules("nn.Sequential", script.chain(layer, x)))


def _add_torch(script: Any, layer: Add, x: Value) -> str:
    return str(script.modules("Add", script.branches(layer, x)))


def _parallel_torch(script: Any, layer: Parallel, x: Value) -> str:
    return f"{script.modules('Parallel', script.branches(layer, x))}.along({layer.axis})"


def _last(target: Any, layer: Container, x: Value) -> str:
    return str([x, *target.chain(layer, x)][-1].name)


def _add_onnx(graph: Any, layer: Add, x: Value) -> str:
    return str(graph.node("Sum", *graph.joined(layer, x)))


def _add_c(file: Any, layer: Add, x: Value) -> str:
    values = file.branches(layer, x)
    y = file.buffer(math.prod(values[0].shape), file.widest(values))
    with file.loop("i", math.prod(values[0].shape)):
        file.line(f"{y}[i] = {' + '.join(f'{value.name}[i]' for value in values)};")
    return str(y)


def _parallel_onnx(graph: Any, layer: Parallel, x: Value) -> str:
    return str(graph.node("Concat", *graph.joined(layer, x), axis=layer.axis))


def _only_training(torch: str) -> Row:
    """The row of a layer that does nothing in inference; torch: its module, of which {rate} is an option."""
    return Row(unchanged, lambda script, layer, x: torch.format(**layer.config()), unchanged)


#: The rules of each of xnn's own layers that is more than an op of one input, by its class's name.
LAYERS: dict[str, Row] = {
    "Dense": Row(_dense_onnx, _dense_torch, _dense_c),
    "Conv2D": Row(_conv_onnx, _conv_torch),
    "BatchNorm": Row(_batch_norm_onnx, _batch_norm_torch, _batch_norm_c),
    "LayerNorm": Row(_layer_norm_onnx, _layer_norm_torch, _layer_norm_c),
    "Embedding": Row(_embedding_onnx, _embedding_torch),
    "Rescale": Row(_rescale_onnx, _rescale_torch, _rescale_c),
    "Reshape": Row(_reshape_onnx, _reshape_torch, unchanged),
    "Dropout": _only_training("nn.Dropout({rate})"),
    "RandomAffine": _only_training("nn.Identity()"),
    "ElasticDeformation": _only_training("nn.Identity()"),
    "Sequential": Row(_last, _sequential_torch, _last),
    "Add": Row(_add_onnx, _add_torch, _add_c),
    "Parallel": Row(_parallel_onnx, _parallel_torch),
}
