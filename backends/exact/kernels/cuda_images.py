"""Convolution and pooling of exact numerics on a GPU.

A convolution is a dense layer of the windows of its images: `backends/exact/ops.py`. The windows are copied into the
rows of a matrix, which is then sliced and multiplied as the inputs of a dense layer are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.exact.kernels.cuda_elements import MOST_ELEMENTS, all_stored, plain
from xnn.backends.exact.kernels.cuda_passes import (
    Columns,
    ColumnsPass,
    RowsPass,
    WeightGradients,
    WeightSlices,
    product,
)
from xnn.backends.exact.ops import DenseBits
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.cuda.dense_kernels import KINDS
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.image_kernels import images_of
from xnn.backends.kernels.cuda.launch import by_element, compiled, cupy
from xnn.backends.kernels.cuda.pooling_kernels import windows_of

__all__ = ["IMAGES"]


def _kernel(name: str, size: int, arguments: Any, feed: DeviceFeed, source: Any = np.float32) -> Any:
    """A launch of a kernel of images.cu or exact_images.cu, with a thread for each of `size` numbers."""
    target = "float32" if source == np.float32 else "float64"
    module = compiled(
        "images exact_images", np.float64, exact=True, SOURCE=str(np.dtype(source)), TARGET=target
    )
    return by_element(module, name, size, arguments, feed.stream)


def _serves_conv2d(call: Call) -> bool:
    """Whether the activation is one of KINDS, pixels need no gradient, and the matrix is not too large."""
    forward = call.forward or call
    x, w = forward.reads[:2]
    y = forward.writes[0]
    assert y is not None
    wanted = call is not forward and call.writes[0] is not None
    if not all_stored(call) or forward.activation not in KINDS or (wanted and x.scaled is not None):
        return False
    size = 2 * y.shape[0] * math.prod(y.shape[2:]) * max(math.prod(w.shape[1:]), y.shape[1])
    return size < MOST_ELEMENTS


def _conv2d(call: Call, feed: DeviceFeed) -> list[Any]:
    """y = f(windows of x times W + b). The slice of W and the windows are kept for the backward call."""
    x, w, *bias = (slot.array for slot in call.reads)
    y, scaled, kind = call.writes[0].array, call.reads[0].scaled, KINDS[call.activation]  # type: ignore[union-attr]
    outputs, width, places = w.shape[0], math.prod(w.shape[1:]), math.prod(y.shape[2:])
    n = y.shape[0] * places
    bits = DenseBits(width, outputs, None if scaled is None else scaled.bits)
    one = cupy().empty((outputs, width), np.float64)
    wide = cupy().empty((n if scaled is not None else 2 * n, width), np.float64)
    products = cupy().empty((len(wide), outputs), np.float64)
    full = cupy().empty(y.shape, np.float64) if kind > KINDS[ops.relu] else None
    scale, images = 1.0 if scaled is None else scaled.scale, images_of(call)
    if scaled is None:
        rows = cupy().empty((n, width), np.float32)
        enters = [
            _kernel("unfold_rows", rows.size, (x, rows, images, rows.size), feed),
            RowsPass(feed, rows, wide=wide, bits=bits.x),
        ]
    else:
        rows, pixels = wide, x.integers
        given = pixels, wide, images, wide.size
        enters = [_kernel("unfold_rows", wide.size, given, feed, pixels.dtype)]
    call.saved = {"one": one, "rows": rows, "bits": bits, "scale": scale, "full": full}
    numbers = y.shape[0], outputs, places, kind, int(scaled is None), scale
    arguments = products, bias[0] if bias else None, y, full, *numbers
    return [
        *enters,
        WeightSlices(feed, [(w, one, bits.weight)]),
        product(feed, wide, one, (False, True), products),
        _kernel("products_to_images", y.size, arguments, feed),
    ]


def _conv2d_backward(call: Call, feed: DeviceFeed) -> list[Any]:
    """Compute dz from dy, in the order of the windows, then dW and db, then dx from the slice of W."""
    forward = call.forward
    assert forward is not None
    kept, kind, dy = forward.saved, KINDS[forward.activation], call.reads[0].array
    y: Any = forward.writes[0].array  # type: ignore[union-attr]
    dx, dw, *rest = (None if slot is None else slot.array for slot in call.writes)
    db = rest[0] if rest else None
    bits, rows, places = kept["bits"], kept["rows"], math.prod(dy.shape[2:])
    (n, width), outputs = rows.shape, dy.shape[1]
    dz = cupy().empty((n, outputs), np.float32)
    arguments = dy, y, kept["full"], dz, dy.shape[0], outputs, places, kind
    steps: list[Any] = [_kernel("images_to_rows", dz.size, arguments, feed)]
    wide = None
    if dx is not None:
        wide = cupy().empty((2 * n, outputs), np.float64)
        steps.append(RowsPass(feed, dz, wide=wide, bits=bits.dy))
    gradient, one = Columns(dz, sums=db, bits=bits.dy_column(n)), rows
    sides = [gradient]
    if dw is not None:
        gradient.wide = cupy().empty((n, outputs * (1 if bits.integers is not None else 2)), np.float64)
        if bits.integers is None:
            one = cupy().empty((n, width), np.float64)
            sides.append(Columns(rows, one, bits.x_column(n)))
    if dw is not None or db is not None:
        steps.append(ColumnsPass(feed, sides))
    if dw is not None:
        products = cupy().empty((gradient.wide.shape[1], width), np.float64)
        # The products of second slices are rows behind those of the first: as one row of W, they stand on the right.
        flat = products.reshape(1, -1), kept["scale"], dw.reshape(1, -1), None
        steps += [product(feed, gradient.wide, one, (True, False), products), WeightGradients(feed, [flat])]
    if dx is not None:
        products = cupy().empty((2 * n, width), np.float64)
        given = products, dx, images_of(forward), dx.size
        steps += [
            product(feed, wide, kept["one"], (False, False), products),
            _kernel("fold_rows", dx.size, given, feed),
        ]
    return steps


def _pool(call: Call, feed: DeviceFeed) -> Any:
    """The largest element or the mean of each window; the places of the largest are kept."""
    x, y = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    if call.op is ops.avg_pool2d:
        return _kernel("mean", y.size, (x, y, *windows_of(call), y.size), feed)
    call.saved = cupy().empty(y.shape, "int32")
    return _kernel("largest", y.size, (x, y, call.saved, *windows_of(call), y.size), feed)


def _pool_backward(call: Call, feed: DeviceFeed) -> Any:
    """dx: each element adds up the windows that contain it."""
    forward, dy, dx = call.forward, call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    assert forward is not None
    chosen = None if forward.op is ops.avg_pool2d else forward.saved
    return _kernel("pool_gradient", dx.size, (dy, chosen, dx, *windows_of(forward), dx.size), feed)


IMAGES: dict[tuple[str, Any], tuple[Any, Any]] = {
    ("forward", ops.conv2d): (_conv2d, _serves_conv2d),
    ("backward", ops.conv2d): (_conv2d_backward, _serves_conv2d),
    **{("forward", op): (_pool, plain) for op in (ops.max_pool2d, ops.avg_pool2d)},
    **{("backward", op): (_pool_backward, plain) for op in (ops.max_pool2d, ops.avg_pool2d)},
}
