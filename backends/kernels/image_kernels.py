"""Kernels of convolution in plain NumPy: copy all windows into one buffer, then one matrix product for each image.

They are for few channels; with more, `row_kernels.py` needs fewer copies.

A window is a column of the buffer, which has shape (n, C kh kw, oh ow), so the products are already images. In the op
a window is a row; the products are the same, and `tests/kernels/test_image_kernels.py` compares the kernels with the
op. The buffers are allocated once: at these sizes touching new memory costs more than the arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call, Runnable, nothing
from xnn.ops.sums import pairwise_sum
from xnn.ops.windows import Windows, windows_of

__all__ = ["conv2d_by_windows", "conv2d_by_windows_backward", "conv_windows", "fits", "serves_conv2d"]


def fits(call: Call) -> bool:
    """Whether all arrays have one dtype, float32 or float64, and none of them is empty."""
    forward = call.forward or call
    dtypes = {np.dtype(slot.dtype) for slot in call.slots()}
    whole = all(extent for slot in (*forward.reads, forward.writes[0]) for extent in slot.shape)  # type: ignore[union-attr]
    return len(dtypes) == 1 and dtypes <= {np.dtype("f4"), np.dtype("f8")} and whole


def serves_conv2d(call: Call) -> bool:
    """Whether NumPy's kernels can run a call of conv2d: they apply no activation."""
    return fits(call) and (call.forward or call).activation is None


def conv_windows(call: Call) -> tuple[Windows, Windows]:
    """The windows of a forward call of conv2d along H and W."""
    x, w = (slot.shape for slot in call.reads[:2])
    options = {"stride": 1, "padding": 0, "dilation": 1, **call.options}
    return windows_of("conv2d", x, w[2:], **options)


def _border(windows: tuple[Windows, Windows]) -> tuple[Any, Any, list[Any]]:
    """Return the extents of a padded image, the slices of the image in it, and, for each element of a window, the
    slices that it takes over all windows.
    """
    rows, columns = windows
    extents = tuple(w.padded for w in windows)
    inside = tuple(slice(w.before, w.before + w.extent) for w in windows)
    elements = [
        (rows.element(i), columns.element(j)) for i in range(rows.kernel) for j in range(columns.kernel)
    ]
    return extents, inside, elements


def conv2d_by_windows(call: Call) -> Runnable:
    """The kernel of a forward call: y = w columns + b for each image."""
    x, w, *bias = (slot.array for slot in call.reads)
    y: Any = call.writes[0].array  # type: ignore[union-attr]
    (n, channels), (_, outputs, height, width) = x.shape[:2], y.shape
    extents, inside, elements = _border(conv_windows(call))
    padded = np.zeros((n, channels, *extents), x.dtype)
    columns = np.empty((n, channels, len(elements), height, width), x.dtype)
    call.saved = columns  # the backward kernel reads it, then uses it as scratch
    image = padded[:, :, *inside]
    copies = [(columns[:, :, e], padded[:, :, *element]) for e, element in enumerate(elements)]
    left, right = w.reshape(outputs, -1), columns.reshape(n, -1, height * width)
    flat, offset = y.reshape(n, outputs, -1), bias[0].reshape(-1, 1) if bias else None

    def run() -> None:
        np.copyto(image, x)
        for target, source in copies:
            np.copyto(target, source)
        np.matmul(left, right, out=flat)
        if offset is not None:
            np.add(flat, offset, out=flat)

    return run


def conv2d_by_windows_backward(call: Call) -> Runnable:
    """dw^T is the sum over images of columns dy^T, db is the sum of dy; dx follows in `_images`."""
    assert call.forward is not None
    columns, w = call.forward.saved, call.forward.reads[1].array
    dy: Any = call.reads[0].array
    dx, dw, *rest = (None if slot is None else slot.array for slot in call.writes)
    db = rest[0] if rest else None
    n, outputs = dy.shape[:2]
    flat, right = dy.reshape(n, outputs, -1), columns.reshape(n, w[0].size, -1)
    each = np.empty((n, w[0].size, outputs), dy.dtype)
    images = nothing if dx is None else _images(call, columns, w, flat, dx)

    def run() -> None:
        if dw is not None:
            np.matmul(right, flat.transpose(0, 2, 1), out=each)
            np.copyto(dw.reshape(outputs, -1).T, pairwise_sum(np, each, axis=0))
        if db is not None:
            np.copyto(db, pairwise_sum(np, flat, axis=(0, 2)))
        images()

    return run


def _images(call: Call, columns: np.ndarray, w: np.ndarray, flat: np.ndarray, dx: np.ndarray) -> Runnable:
    """dx is the columns' gradient W^T dy, with the windows added where they overlap.

    The images are the last axis here, so that additions run over long contiguous stretches of memory.
    """
    assert call.forward is not None
    (n, outputs, places), channels = flat.shape, dx.shape[1]
    height, width = columns.shape[3:]
    extents, inside, elements = _border(conv_windows(call.forward))
    turned, whole = np.empty((outputs, places, n), dx.dtype), np.empty((channels, *extents, n), dx.dtype)
    left, right = w.reshape(outputs, -1).T, turned.reshape(outputs, -1)
    product = columns.reshape(left.shape[0], -1)
    parts = product.reshape(channels, len(elements), height, width, n)
    sums = [(whole[:, *element], parts[:, e]) for e, element in enumerate(elements)]
    image = whole[:, *inside].transpose(3, 0, 1, 2)

    def run() -> None:
        np.copyto(turned, flat.transpose(1, 2, 0))
        np.matmul(left, right, out=product)
        whole.fill(0.0)
        for total, part in sums:
            np.add(total, part, out=total)
        np.copyto(dx, image)

    return run
