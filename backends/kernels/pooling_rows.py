"""Compiled kernels of pooling, and of ReLU on images: each call becomes one row of numbers for `pooling_loops.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels import pooling_loops as loops
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.image_calls import ImageCall, new_call
from xnn.backends.kernels.image_kernels import fits
from xnn.ops.pooling import pool_windows

__all__ = ["POOLING_ROWS"]


def _serves(call: Call) -> bool:
    return fits(call) and (call.forward or call).activation is None


def _serves_images(call: Call) -> bool:
    """Whether a call without options works on images."""
    return _serves(call) and not call.options and all(len(slot.shape) == 4 for slot in call.slots())


def _windows(call: Call) -> list[int]:
    """A pooling's image, windows, kernel, stride, dilation and padding, each in rows and in columns."""
    options = {"stride": None, "padding": 0, **call.options}
    pair = pool_windows(call.name, call.reads[0].shape, options.pop("kernel_size"), **options)
    names = ("extent", "number", "kernel", "stride", "dilation", "before")
    return [getattr(w, name) for name in names for w in pair]


def _pool(loop: Any, call: Call, forward: Call, image: Any, pooled: Any) -> ImageCall:
    made, windows = new_call(call, loop), _windows(forward)
    pairs = windows[3] >= 4 and windows[4:] == [2, 2, 2, 2, 1, 1, 0, 0]
    made.row += [
        made.address(image), made.address(pooled), made.address(forward.saved), image.itemsize, image.shape[1], pairs,
        *windows,
    ]  # fmt: skip
    return made


def _arrays(call: Call) -> tuple[Any, Any]:
    return call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]


def _max_pool(call: Call) -> ImageCall:
    x, y = _arrays(call)
    call.saved = np.zeros_like(y)
    return _pool(loops.max_pool, call, call, x, y)


def _avg_pool(call: Call) -> ImageCall:
    return _pool(loops.avg_pool, call, call, *_arrays(call))


def _max_pool_backward(call: Call) -> ImageCall:
    dy, dx = _arrays(call)
    assert call.forward is not None
    return _pool(loops.max_pool_backward, call, call.forward, dx, dy)


def _avg_pool_backward(call: Call) -> ImageCall:
    dy, dx = _arrays(call)
    assert call.forward is not None
    return _pool(loops.avg_pool_backward, call, call.forward, dx, dy)


def _relu(call: Call) -> ImageCall:
    made, (x, y) = new_call(call, loops.relu), _arrays(call)
    made.row += [made.address(x), made.address(y), x[0].size, x.itemsize]
    return made


def _relu_backward(call: Call) -> ImageCall:
    made, (dy, dx) = new_call(call, loops.relu_backward), _arrays(call)
    y = call.forward.writes[0].array  # type: ignore[union-attr]
    made.row += [made.address(y), made.address(dy), y[0].size, y.itemsize, made.address(dx)]
    return made


POOLING_ROWS = {
    ("forward", ops.max_pool2d): (_max_pool, _serves),
    ("backward", ops.max_pool2d): (_max_pool_backward, _serves),
    ("forward", ops.avg_pool2d): (_avg_pool, _serves),
    ("backward", ops.avg_pool2d): (_avg_pool_backward, _serves),
    ("forward", ops.relu): (_relu, _serves_images),
    ("backward", ops.relu): (_relu_backward, _serves_images),
}
