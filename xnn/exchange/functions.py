"""The export table of ops: how each function of one input is written for ONNX, PyTorch and C.

A layer whose mathematics is one op has no row of its own. A new activation is exported by a row here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xnn import ops
from xnn.errors import OptionError
from xnn.exchange.row import Row, Rule, Single, Value, options_of
from xnn.layers import Layer
from xnn.ops import Op
from xnn.ops.axes import reduced_axes
from xnn.options import check_pair

__all__ = ["OPS", "unchanged"]

#: The C text of a number in the type of x, and an op's options: they give the C expression of one element x.
_Expression = Callable[[Callable[[float], str], Mapping[str, Any]], str]


def unchanged(target: Any, layer: Layer, x: Value) -> str:
    """The rule of a layer that does nothing in inference, and of one that only changes a sample's shape in C."""
    return x.name


def _torch(text: str) -> Rule:
    """The rule of a module whose text holds an op's options as {name}; tuples in it are those of the batch's axes."""
    return lambda target, layer, x: text.format(**{
        name: f"float('{value}')" if value in (math.inf, -math.inf) else value
        for name, value in options_of(layer).items()
    })  # fmt: skip


def _c(expression: _Expression) -> Rule:
    return lambda target, layer, x: target.by_element(
        x, expression(target.number(x.dtype), options_of(layer))
    )


def _row(onnx: Rule, torch: str, c: _Expression | None = None) -> Row:
    return Row(onnx, _torch(torch), None if c is None else _c(c))


def _flatten(graph: Any, layer: Layer, x: Value) -> str:
    return str(graph.node("Flatten", x.name, axis=1))


def _silu(graph: Any, layer: Layer, x: Value) -> str:
    return str(graph.node("Mul", x.name, graph.node("Sigmoid", x.name)))


def _softplus(graph: Any, layer: Layer, x: Value) -> str:
    beta = options_of(layer)["beta"]
    if beta == 1.0:
        return str(graph.node("Softplus", x.name))
    scaled = graph.node("Mul", x.name, graph.number(beta, x.dtype))
    return str(graph.node("Div", graph.node("Softplus", scaled), graph.number(beta, x.dtype)))


def _expm1(graph: Any, layer: Layer, x: Value) -> str:
    return str(graph.node("Sub", graph.node("Exp", x.name), graph.number(1.0, x.dtype)))


def _log1p(graph: Any, layer: Layer, x: Value) -> str:
    return str(graph.node("Log", graph.node("Add", x.name, graph.number(1.0, x.dtype))))


def _clip(graph: Any, layer: Layer, x: Value) -> str:
    limits = (options_of(layer)[name] for name in ("min", "max"))
    return str(graph.node("Clip", x.name, *("" if n is None else graph.number(n, x.dtype) for n in limits)))


def _c_clip(number: Callable[[float], str], options: Mapping[str, Any]) -> str:
    text = "x"
    for sign, limit in (("<", options["min"]), (">", options["max"])):
        if limit is not None:
            text = f"({text}) {sign} {number(limit)} ? {number(limit)} : ({text})"
    return text


def _axes(layer: Layer, x: Value) -> tuple[int, ...]:
    """The axes of a reduction, counted from the first. Raises OptionError if the batch is one of them."""
    axes = reduced_axes(options_of(layer)["axis"], len(x.shape) + 1)
    if 0 in axes:
        raise OptionError(
            f"{layer!r} joins the samples of a batch, which no exported model does: name other axes"
        )
    return axes


def _reduction(kind: str, method: str) -> Row:
    """The row of a reduction. kind: ONNX's operator. method: that of PyTorch's tensors."""

    def onnx(graph: Any, layer: Layer, x: Value) -> str:
        axes = graph.array("axes", np.array(_axes(layer, x), np.int64))
        return str(graph.node(kind, x.name, axes, keepdims=int(options_of(layer)["keepdims"])))

    def torch(script: Any, layer: Layer, x: Value) -> str:
        return f"Function(lambda x: x.{method}({_axes(layer, x)}, keepdim={options_of(layer)['keepdims']}))"

    return Row(onnx, torch)


def _variance(graph: Any, layer: Layer, x: Value) -> str:
    options, axes = options_of(layer), _axes(layer, x)
    count = math.prod(x.shape[axis - 1] for axis in axes)
    over = graph.array("axes", np.array(axes, np.int64))
    away = graph.node("Sub", x.name, graph.node("ReduceMean", x.name, over, keepdims=1))
    squares = graph.node("ReduceSum", graph.node("Mul", away, away), over, keepdims=int(options["keepdims"]))
    return str(graph.node("Div", squares, graph.number(count - options["correction"], x.dtype)))


def _torch_variance(script: Any, layer: Layer, x: Value) -> str:
    options, axes = options_of(layer), _axes(layer, x)
    more = f"correction={options['correction']}, keepdim={options['keepdims']}"
    return f"Function(lambda x: x.var({axes}, {more}))"


def _order(layer: Layer, x: Value) -> tuple[int, ...]:
    """The order of the axes. Raises OptionError if the axis of the batch does not stay the first."""
    order = options_of(layer)["axes"] or tuple(reversed(range(len(x.shape) + 1)))
    order = tuple(axis % len(order) for axis in order)
    if order[0] != 0:
        raise OptionError(
            f"{layer!r} moves the axis of the batch, which no exported model does: keep axis 0 first"
        )
    return order


def _pool(kind: str, **more: int) -> Rule:
    def rule(graph: Any, layer: Layer, x: Value) -> str:
        given = options_of(layer)
        kernel = check_pair("kernel_size", given["kernel_size"])
        stride = kernel if given["stride"] is None else check_pair("stride", given["stride"])
        padding = check_pair("padding", given["padding"], 0)
        extra = {"dilations": check_pair("dilation", given["dilation"])} if "dilation" in given else {}
        return str(
            graph.node(
                kind, x.name, kernel_shape=kernel, strides=stride, pads=(*padding, *padding), **extra, **more
            )
        )

    return rule


def _softmax_axis(layer: Layer, x: Value) -> int:
    """The axis of a softmax, counted from the first. Raises OptionError if it is that of the batch."""
    (axis,) = reduced_axes(options_of(layer)["axis"], len(x.shape) + 1)
    if axis == 0:
        raise OptionError(
            f"{layer!r} joins the samples of a batch, which no exported model does: name another axis"
        )
    return int(axis)


class _Softmax(Single):
    """Softmax or LogSoftmax as a node of ONNX; along the axis of the batch it is refused."""

    def __call__(self, graph: Any, layer: Layer, x: Value) -> str:
        _softmax_axis(layer, x)
        return super().__call__(graph, layer, x)


def _torch_softmax(script: Any, layer: Layer, x: Value) -> str:
    name = "LogSoftmax" if layer.op is ops.log_softmax else "Softmax"
    return f"nn.{name}({_softmax_axis(layer, x)})"


def _c_softmax(target: Any, layer: Layer, x: Value) -> str:
    name: str = target.softmax(x, _softmax_axis(layer, x) - 1, logarithm=layer.op is ops.log_softmax)
    return name


def _c_gelu(number: Callable[[float], str], options: Mapping[str, Any]) -> str:
    if options["approximate"] == "none":
        return f"x * erfc(-x * {number(math.sqrt(0.5))}) / 2"
    root, cubic = number(math.sqrt(2.0 / math.pi)), number(0.044715)
    return f"x * (1 + tanh({root} * (x + {cubic} * x * x * x))) / 2"


def _c_selu(number: Callable[[float], str], options: Mapping[str, Any]) -> str:
    one, much = np.array([1.0, -np.inf])[
        :, None
    ]  # selu(1) is the scale, and selu(-infinity) is -scale * alpha
    scale, least = (float(ops.selu.forward(np, end)[0][0]) for end in (one, much))
    return f"x > 0 ? {number(scale)} * x : {number(-least)} * expm1(x)"


_POSITIVE_PART = "(x < 0 ? 0 : x)"
_POOLED = "kernel_size={kernel_size}, stride={stride}, padding={padding}"

#: Each op of one input with the rules of its layers. An op that is not here cannot be exported.
OPS: dict[Op, Row] = {
    ops.relu: _row(Single("Relu"), "nn.ReLU()", lambda n, o: "x < 0 ? 0 : x"),
    ops.leaky_relu: _row(
        Single("LeakyRelu", alpha="negative_slope"),
        "nn.LeakyReLU({negative_slope})",
        lambda n, o: f"x > 0 ? x : {n(o['negative_slope'])} * x",
    ),
    ops.elu: _row(
        Single("Elu", alpha="alpha"),
        "nn.ELU({alpha})",
        lambda n, o: f"x > 0 ? x : {n(o['alpha'])} * expm1(x)",
    ),
    ops.selu: _row(Single("Selu"), "nn.SELU()", _c_selu),
    ops.gelu: _row(Single("Gelu", approximate="approximate"), "nn.GELU({approximate!r})", _c_gelu),
    ops.silu: _row(_silu, "nn.SiLU()", lambda n, o: "x / (1 + exp(-x))"),
    ops.softplus: _row(
        _softplus,
        "nn.Softplus({beta})",
        lambda n, o: f"{_POSITIVE_PART} + log1p(exp(-fabs({n(o['beta'])} * x))) / {n(o['beta'])}",
    ),
    ops.sigmoid: _row(Single("Sigmoid"), "nn.Sigmoid()", lambda n, o: "1 / (1 + exp(-x))"),
    ops.tanh: _row(Single("Tanh"), "nn.Tanh()", lambda n, o: "tanh(x)"),
    ops.softmax: Row(_Softmax("Softmax", axis="axis"), _torch_softmax, _c_softmax),
    ops.log_softmax: Row(_Softmax("LogSoftmax", axis="axis"), _torch_softmax, _c_softmax),
    ops.flatten: Row(_flatten, _torch("nn.Flatten()"), unchanged),
    ops.identity: Row(Single("Identity"), _torch("nn.Identity()"), unchanged),
    ops.stop_gradient: Row(Single("Identity"), _torch("Function(torch.detach)"), unchanged),
    ops.abs: _row(Single("Abs"), "Function(torch.abs)", lambda n, o: "fabs(x)"),
    ops.sign: _row(Single("Sign"), "Function(torch.sign)", lambda n, o: "x != x ? x : (x > 0) - (x < 0)"),
    ops.exp: _row(Single("Exp"), "Function(torch.exp)", lambda n, o: "exp(x)"),
    ops.expm1: _row(_expm1, "Function(torch.expm1)", lambda n, o: "expm1(x)"),
    ops.log: _row(Single("Log"), "Function(torch.log)", lambda n, o: "log(x)"),
    ops.log1p: _row(_log1p, "Function(torch.log1p)", lambda n, o: "log1p(x)"),
    ops.sqrt: _row(Single("Sqrt"), "Function(torch.sqrt)", lambda n, o: "sqrt(x)"),
    ops.sin: _row(Single("Sin"), "Function(torch.sin)", lambda n, o: "sin(x)"),
    ops.cos: _row(Single("Cos"), "Function(torch.cos)", lambda n, o: "cos(x)"),
    ops.erf: _row(Single("Erf"), "Function(torch.erf)", lambda n, o: "erf(x)"),
    ops.clip: _row(_clip, "Function(lambda x: x.clip({min}, {max}))", _c_clip),
    ops.sum: _reduction("ReduceSum", "sum"),
    ops.mean: _reduction("ReduceMean", "mean"),
    ops.max: _reduction("ReduceMax", "amax"),
    ops.min: _reduction("ReduceMin", "amin"),
    ops.var: Row(_variance, _torch_variance),
    ops.transpose: Row(
        lambda graph, layer, x: graph.node("Transpose", x.name, perm=_order(layer, x)),
        lambda script, layer, x: f"Function(lambda x: x.permute({_order(layer, x)}))",
    ),
    ops.max_pool2d: _row(_pool("MaxPool"), f"nn.MaxPool2d({_POOLED}, dilation={{dilation}})"),
    ops.avg_pool2d: _row(_pool("AveragePool", count_include_pad=1), f"nn.AvgPool2d({_POOLED})"),
}
