"""Kernels of activations that dense layers do not apply, of sums, and of ops that change nothing but a shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels.calls import Call, Runnable, nothing
from xnn.backends.kernels.cuda.dense_kernels import has_one_dtype, serves_add
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.launch import WARP, address, by_element, compiled, cupy

__all__ = [
    "CURVES",
    "SHAPES",
    "SOFTMAXES",
    "copy",
    "curve",
    "curve_backward",
    "number_of_curve",
    "reshape",
    "serves_add",
    "serves_curve",
    "serves_shape",
    "serves_softmax",
    "serves_sum",
    "softmax",
    "softmax_backward",
    "sum_backward",
]

#: The numbers of the activations in activations.cu, the option of each, and its default.
CURVES: dict[Any, tuple[int, str, float]] = {
    ops.leaky_relu: (0, "negative_slope", 0.01),
    ops.elu: (1, "alpha", 1.0),
    ops.selu: (2, "", 0.0),
    ops.gelu: (3, "approximate", 0.0),
    ops.silu: (5, "", 0.0),
    ops.softplus: (6, "beta", 1.0),
}
_GELU_BY_TANH = 4
#: Ops whose result has the elements of their input in the same order.
SHAPES = ops.flatten, ops.reshape, ops.identity
#: Whether the result is the logarithm.
SOFTMAXES: dict[Any, int] = {ops.softmax: 0, ops.log_softmax: 1}
_ON_DEVICE = 3  # cudaMemcpyDeviceToDevice


def serves_curve(call: Call) -> bool:
    """Whether the arrays have one dtype, float32 or float64, and the option is a number the op takes."""
    options = (call.forward or call).options
    fits = has_one_dtype(call) and math.prod(call.reads[0].shape) < 2**31
    return fits and set(options) <= {CURVES[call.op][1]} and number_of_curve(call) is not None


def number_of_curve(call: Call) -> tuple[int, float] | None:
    """The number of the activation, and its option as a number; None for an option that only the op can judge."""
    (kind, name, default), options = CURVES[call.op], (call.forward or call).options
    option = options.get(name, default)
    if name == "approximate":
        return {"none": (kind, 0.0), "tanh": (_GELU_BY_TANH, 0.0), 0.0: (kind, 0.0)}.get(option)
    if not isinstance(option, (int, float)) or (name == "beta" and not option > 0.0):
        return None
    return kind, float(option)


def curve(call: Call, feed: DeviceFeed) -> Any:
    """Compute y = f(x)."""
    return _launch("curve", call, feed, call.reads[0].array)


def curve_backward(call: Call, feed: DeviceFeed) -> Any:
    """Compute dx = dy f'(x) from x."""
    assert call.forward is not None
    return _launch("curve_gradient", call, feed, call.reads[0].array, call.forward.reads[0].array)


def _launch(name: str, call: Call, feed: DeviceFeed, *arrays: Any) -> Any:
    out, kind = call.writes[0], number_of_curve(call)
    assert out is not None
    assert kind is not None
    size = int(out.array.size)
    module = compiled("activations", out.array.dtype)
    return by_element(module, name, size, (*arrays, out.array, size, *kind), feed.stream)


def serves_softmax(call: Call) -> bool:
    """Whether the arrays have one dtype, float32 or float64, and the axis is the last one."""
    forward = call.forward or call
    shape, axis = forward.reads[0].shape, forward.options.get("axis", -1)
    return bool(shape) and math.prod(shape) > 0 and axis in (-1, len(shape) - 1) and has_one_dtype(call)


def softmax(call: Call, feed: DeviceFeed) -> Any:
    """Compute softmax or its logarithm."""
    return _by_rows("softmax", call, feed, call.reads[0].array)


def softmax_backward(call: Call, feed: DeviceFeed) -> Any:
    """Compute the gradient of softmax or its logarithm from y."""
    assert call.forward is not None
    return _by_rows("softmax_gradient", call, feed, call.reads[0].array, call.forward.writes[0].array)  # type: ignore[union-attr]


def _by_rows(name: str, call: Call, feed: DeviceFeed, *arrays: Any) -> Any:
    out = call.writes[0].array  # type: ignore[union-attr]
    width = out.shape[-1]
    rows = out.size // width
    arguments = *arrays, out, rows, width, SOFTMAXES[call.op]
    return by_element(compiled("softmax", out.dtype), name, rows * WARP, arguments, feed.stream)


def serves_shape(call: Call) -> bool:
    """Whether the result has the dtype and the size of the input."""
    read, written = call.reads[0], call.writes[0]
    same = written is not None and np.dtype(read.dtype) == np.dtype(written.dtype)
    return same and math.prod(read.shape) == math.prod(written.shape)  # type: ignore[union-attr]


def reshape(call: Call, feed: DeviceFeed) -> Runnable:
    """Copy the elements of an array, or of a gradient, to one of another shape, unless both have the same memory."""
    return copy(call.reads[0].array, call.writes[0].array, feed)  # type: ignore[union-attr]


def serves_sum(call: Call) -> bool:
    """Whether the terms have one shape and one dtype."""
    forward = call.forward or call
    return serves_add(forward) and (call is forward or serves_add(call))


def sum_backward(call: Call, feed: DeviceFeed) -> list[Runnable]:
    """Copy the gradient of a sum to the gradient of each term."""
    return [copy(call.reads[0].array, slot.array, feed) for slot in call.writes if slot is not None]


def copy(source: Any, target: Any, feed: DeviceFeed) -> Runnable:
    """A copy of an array to another one of the same size; nothing if both have the same memory."""
    if not source.nbytes or address(source) == address(target):
        return nothing
    start, stream = cupy().cuda.runtime.memcpyAsync, feed.stream
    arguments = address(target), address(source), int(source.nbytes), _ON_DEVICE, stream.ptr

    def run() -> None:
        start(*arguments)

    run.held = source, target  # type: ignore[attr-defined] # keeps the memory behind the addresses alive
    return run
