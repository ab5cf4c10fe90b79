"""Kernels of max pooling, average pooling, and means over neighbouring axes, such as global average pooling."""

from __future__ import annotations

import math
from typing import Any

from xnn import ops
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.cuda.dense_kernels import countable
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.image_kernels import windows
from xnn.backends.kernels.cuda.launch import THREADS, Launch, by_element, compiled, cupy
from xnn.backends.kernels.image_kernels import fits
from xnn.ops.axes import reduced_axes
from xnn.ops.pooling import pool_windows

__all__ = ["mean", "mean_backward", "pool", "pool_backward", "serves_mean", "serves_pool", "windows_of"]


def serves_pool(call: Call) -> bool:
    """Whether no array is empty, all have one dtype, and 31 bits can count the elements of each."""
    return fits(call) and countable(call)


def windows_of(forward: Call) -> tuple[Any, Any]:
    """The kernels' structures of the windows' rows and columns."""
    options = {"stride": None, "padding": 0, "dilation": 1, **forward.options}
    rows, columns = pool_windows(forward.name, forward.reads[0].shape, **options)
    return windows(rows), windows(columns)


def pool(call: Call, feed: DeviceFeed) -> Any:
    """Compute the largest element or the mean of each window; the places of the largest are kept."""
    x, y = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    module = compiled("images", x.dtype)
    if call.op is ops.avg_pool2d:
        return by_element(module, "mean", y.size, (x, y, *windows_of(call), y.size), feed.stream)
    call.saved = cupy().empty(y.shape, "int32")
    return by_element(module, "largest", y.size, (x, y, call.saved, *windows_of(call), y.size), feed.stream)


def pool_backward(call: Call, feed: DeviceFeed) -> Any:
    """Compute dx: each element adds up the windows that contain it."""
    forward, dy, dx = call.forward, call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    assert forward is not None
    chosen = None if forward.op is ops.avg_pool2d else forward.saved
    arguments = dy, chosen, dx, *windows_of(forward), dx.size
    return by_element(compiled("images", dx.dtype), "pool_gradient", dx.size, arguments, feed.stream)


def _extents(forward: Call) -> tuple[int, int] | None:
    """How many elements a mean is over, and how many lie between two of them; None for other axes than neighbours."""
    shape, options = forward.reads[0].shape, forward.options
    axes = sorted(reduced_axes(options.get("axis"), len(shape)))
    if not axes or axes != list(range(axes[0], axes[-1] + 1)) or not set(options) <= {"axis", "keepdims"}:
        return None
    return math.prod(shape[axes[0] : axes[-1] + 1]), math.prod(shape[axes[-1] + 1 :])


def serves_mean(call: Call) -> bool:
    """Whether the mean is over neighbouring axes."""
    return serves_pool(call) and _extents(call.forward or call) is not None


def mean(call: Call, feed: DeviceFeed) -> Any:
    """Compute the mean of each row, where a row is what the mean is over."""
    x, y, extents = call.reads[0].array, call.writes[0].array, _extents(call)  # type: ignore[union-attr]
    assert extents is not None
    (width, inner), module = extents, compiled("images", x.dtype)
    if inner > 1:
        return by_element(module, "middle_means", y.size, (x, y, width, inner, y.size), feed.stream)
    threads = min(THREADS, -(-width // 32) * 32)
    return Launch(module, "row_means", (y.size,), (threads,), (x, y, width), feed.stream)


def mean_backward(call: Call, feed: DeviceFeed) -> Any:
    """Spread the gradient of each mean over its row."""
    forward, dy, dx = call.forward, call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    extents = None if forward is None else _extents(forward)
    assert extents is not None
    module = compiled("images", dx.dtype)
    return by_element(module, "means_gradient", dx.size, (dy, dx, *extents, dx.size), feed.stream)
