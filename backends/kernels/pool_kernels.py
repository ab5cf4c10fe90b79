"""Kernels of pooling in plain NumPy, for windows that lie side by side: each element of all windows is a view."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels.batch_parts import in_parts
from xnn.backends.kernels.calls import Call, Runnable
from xnn.backends.kernels.image_kernels import fits
from xnn.ops.pooling import pool_windows
from xnn.ops.windows import Windows

__all__ = ["POOL_KERNELS", "serves_pool"]


def _windows(call: Call) -> tuple[Windows, Windows]:
    options = {"stride": None, "padding": 0, **(call.forward or call).options}
    shape = (call.forward or call).reads[0].shape
    return pool_windows(call.name, shape, options.pop("kernel_size"), **options)


def serves_pool(call: Call) -> bool:
    """Whether each element of an image is in one window at most, and windows are inside the image."""
    return fits(call) and all(
        w.dilation == 1 and w.before == 0 and w.reach <= w.extent and w.stride >= w.kernel
        for w in _windows(call)
    )


def _elements(x: np.ndarray, windows: tuple[Windows, Windows]) -> list[np.ndarray]:
    """For each element of a window, row by row, a view of it in all windows."""
    rows, columns = windows
    return [
        x[:, :, rows.element(i), columns.element(j)]
        for i in range(rows.kernel)
        for j in range(columns.kernel)
    ]


def _max_pool(call: Call) -> Runnable:
    x, y = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    first, *others = _elements(x, _windows(call))

    def run() -> None:
        np.copyto(y, first)
        for element in others:
            np.maximum(y, element, out=y)

    return run


def _max_pool_backward(call: Call) -> Runnable:
    """The gradient goes to the first of the largest elements; in a window with NaN, to the first NaN.

    All bits of dy are kept or cleared, which is four times as fast as a copy `where` an element is chosen.
    """
    forward = call.forward
    assert forward is not None
    x, y = forward.reads[0].array, forward.writes[0].array  # type: ignore[union-attr]
    dy, dx = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    windows = _windows(call)
    pairs: Any = [*zip(_elements(x, windows), _elements(dx, windows), strict=True)]
    whole = sum(gradient.size for _, gradient in pairs) == dx.size
    chosen, free, nan = (np.empty(y.shape, bool) for _ in range(3))
    flag, word = chosen.view(np.int8), f"i{dy.itemsize}"
    mask = np.empty(y.shape, word)
    masked, bits = mask.view(dy.dtype), dy.view(word)

    def run() -> None:
        if not whole:
            dx.fill(0.0)
        free.fill(True)
        special = bool(np.isnan(np.max(y)))
        for element, gradient in pairs:
            np.equal(element, y, out=chosen)
            if special:
                np.logical_or(chosen, np.isnan(element, out=nan), out=chosen)
            np.logical_and(chosen, free, out=chosen)
            np.logical_xor(free, chosen, out=free)
            np.negative(flag, out=flag)  # True becomes -1, which is all ones
            np.copyto(mask, flag)
            np.bitwise_and(bits, mask, out=mask)
            np.copyto(gradient, masked)

    return run


def _avg_pool(call: Call) -> Runnable:
    x, y = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    (first, *others), count = _elements(x, _windows(call)), y.dtype.type(1)
    count *= 1 + len(others)

    def run() -> None:
        np.copyto(y, first)
        for element in others:
            np.add(y, element, out=y)
        np.divide(y, count, out=y)

    return run


def _avg_pool_backward(call: Call) -> Runnable:
    dy, dx = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    elements: Any = _elements(dx, _windows(call))
    share, count = np.empty_like(dy), dy.dtype.type(len(elements))
    whole = sum(element.size for element in elements) == dx.size

    def run() -> None:
        np.divide(dy, count, out=share)
        if not whole:
            dx.fill(0.0)
        for element in elements:
            np.copyto(element, share)

    return run


POOL_KERNELS = {
    ("forward", ops.max_pool2d): (in_parts(_max_pool), serves_pool),
    ("backward", ops.max_pool2d): (in_parts(_max_pool_backward), serves_pool),
    ("forward", ops.avg_pool2d): (in_parts(_avg_pool), serves_pool),
    ("backward", ops.avg_pool2d): (in_parts(_avg_pool_backward), serves_pool),
}
