"""Kernels of convolution: all windows are copied into one matrix, whose product with the weights cuBLAS computes.

A window is a column of the matrix (channels kh kw, n oh ow), so that neighbouring threads read and write neighbouring
numbers. The product is (outputs, n oh ow), and a kernel that adds the bias moves it to (n, outputs, oh, ow).
"""

from __future__ import annotations

import math
from typing import Any

from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.cuda.cublas import Product
from xnn.backends.kernels.cuda.dense_kernels import KINDS, countable
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.launch import (
    MOST_BLOCKS,
    THREADS,
    Launch,
    by_element,
    compiled,
    cupy,
    structure,
)
from xnn.backends.kernels.image_kernels import conv_windows, fits
from xnn.ops.windows import Windows

__all__ = ["conv2d", "conv2d_backward", "images_of", "serves_conv2d", "windows"]

_EACH = 4096  # columns of the product whose sum one block computes


def serves_conv2d(call: Call) -> bool:
    """Whether no array is empty, all have one dtype, and 31 bits can count the elements of each."""
    return fits(call) and (call.forward or call).activation in KINDS and countable(call)


def windows(w: Windows) -> Any:
    """The kernels' structure of the windows along one axis."""
    return structure("Windows", **w._asdict())


def images_of(forward: Call) -> Any:
    """The kernels' structure of the images and windows of a forward call."""
    (n, channels, *_), (rows, columns) = forward.reads[0].shape, map(windows, conv_windows(forward))
    return structure("Images", n=n, channels=channels, rows=rows, columns=columns)


def conv2d(call: Call, feed: DeviceFeed) -> list[Any]:
    """Copy the windows, multiply, and add the bias; the activation too, if one is fused."""
    x, w, *bias = (slot.array for slot in call.reads)
    y = call.writes[0].array  # type: ignore[union-attr]
    n, outputs, places = y.shape[0], y.shape[1], math.prod(y.shape[2:])
    weights = w.reshape(outputs, -1)
    matrix = cupy().empty((weights.shape[1], n * places), x.dtype)
    product = cupy().empty((outputs, n * places), x.dtype)
    call.saved = matrix, product  # the backward kernels read the first, then use both as scratch
    module = compiled("images", x.dtype)
    grid = -(-n * places // THREADS), min(len(matrix), MOST_BLOCKS)
    numbers = n, outputs, places, KINDS[call.activation]
    return [
        Launch(module, "unfold", grid, (THREADS,), (x, matrix, images_of(call)), feed.stream),
        Product(feed.cublas, weights, matrix, product),
        by_element(
            module, "to_images", y.size, (product, bias[0] if bias else None, y, *numbers), feed.stream
        ),
    ]


def conv2d_backward(call: Call, feed: DeviceFeed) -> list[Any]:
    """Compute dz from dy with db, then dw = dz windows^T, then dx from the gradient of the windows, w^T dz."""
    forward = call.forward
    assert forward is not None
    (matrix, dz), w, dy = forward.saved, forward.reads[1].array, call.reads[0].array
    y: Any = forward.writes[0].array  # type: ignore[union-attr]
    dx, dw, *rest = (None if slot is None else slot.array for slot in call.writes)
    n, outputs, places = dy.shape[0], dy.shape[1], math.prod(dy.shape[2:])
    module, parts = compiled("images", dy.dtype), min(-(-n * places // _EACH), MOST_BLOCKS)
    each = -(-n * places // parts)
    numbers = n, outputs, places, KINDS[forward.activation], each
    scratch = cupy().empty((outputs, parts), dy.dtype), cupy().zeros(outputs, "int32")
    arguments = dy, y, dz, rest[0] if rest else None, *numbers, *scratch
    steps: list[Any] = [Launch(module, "from_images", (outputs, parts), (THREADS,), arguments, feed.stream)]
    if dw is not None:
        steps.append(Product(feed.cublas, dz, matrix, dw.reshape(outputs, -1), (False, True)))
    if dx is not None:
        steps.append(Product(feed.cublas, w.reshape(outputs, -1), dz, matrix, (True, False)))
        steps.append(
            by_element(module, "fold", dx.size, (matrix, dx, images_of(forward), dx.size), feed.stream)
        )
    return steps
