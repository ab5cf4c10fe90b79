"""The passes of exact kernels of images as compiled loops (`image_loops.py`), whose images xnn's threads share.

The functions have the names and arguments of those in `numpy_images.py`. Importing this file imports Numba.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from xnn.backends.exact.kernels import image_loops as loops
from xnn.backends.kernels.blas import blas_routine
from xnn.backends.kernels.calls import Call, Runnable
from xnn.backends.kernels.image_calls import ImageStretch
from xnn.backends.kernels.jit import load
from xnn.backends.kernels.pooling_rows import POOLING_ROWS
from xnn.backends.kernels.workers import share
from xnn.backends.threads import own_threads

__all__ = ["convolve", "images_gradient", "pool", "sum_images", "weight_products"]

_NONE = np.zeros(0)
_ROOM = 1 << 15  #: numbers of slices of windows that are worked on together: 256 KiB
_SMALL = 1_000_000  #: multiplications of a product for which OpenBLAS does not copy its operands


def _blas() -> np.ndarray:
    routine = blas_routine("float64")
    assert routine is not None  # else `compiled_passes.py` takes NumPy's passes
    return np.asarray([routine.address, routine.wide], np.int64)


def _geometry(made: Any) -> np.ndarray:
    """The windows' kernel, number, stride, dilation, padding and the padded extent, each in rows and in columns.

    The last number says how many rows of windows are worked on together; it divides the number of rows.
    """
    names = "kernel", "number", "stride", "dilation", "before", "padded"
    rows, columns = made.windows
    outputs, width = made.one.shape
    most = min(_ROOM, _SMALL // outputs) // (2 * width * columns.number)
    together = max(k for k in range(1, rows.number + 1) if rows.number % k == 0 and k <= max(1, most))
    return np.asarray([*(getattr(w, name) for name in names for w in made.windows), together], np.int64)


def _flat(y: np.ndarray) -> np.ndarray:
    return y.reshape(*y.shape[:2], -1)


def _shared(work: Callable[[np.ndarray], int], parts: int, loop: Any) -> Runnable:
    """A pass that threads share: each calls `work` with the counter of parts. `loop` is compiled now."""
    load(lambda: work(np.full(1, parts)), loop)

    def run() -> None:
        counter = np.zeros(1, np.int64)  # of this step: a thread that wakes up late finds an old one, used up
        share(lambda: work(counter), parts, own_threads())

    run.is_shared = True  # type: ignore[attr-defined]
    return run


def convolve(made: Any) -> Runnable:
    """y <- W columns + b, rounded to float32; its positive part if `made.positive`."""
    tables = (_NONE, _NONE) if made.is_scaled else (made.high, made.low)
    given = (
        made.x, _flat(made.y), _geometry(made), made.one, made.bias, made.scale, made.positive, *tables, _blas(),
    )  # fmt: skip
    return _shared(lambda counter: loops.convolve(counter, *given), len(made.x), loops.convolve)


def images_gradient(made: Any, high: np.ndarray, low: np.ndarray, dy: np.ndarray, dx: np.ndarray) -> Runnable:
    """dx <- W^T dy, added up where windows overlap: first over the columns of a window, then over its rows."""
    given = _flat(dy), dx, _geometry(made), made.one, high, low, _blas()
    return _shared(lambda counter: loops.images_gradient(counter, *given), len(dy), loops.images_gradient)


def sum_images(dy: np.ndarray, table: np.ndarray, db: np.ndarray) -> Runnable:
    """db <- the sum of dy over images and places."""
    flat = _flat(dy)
    return _shared(lambda counter: loops.sum_images(counter, flat, db, table), len(db), loops.sum_images)


def weight_products(
    made: Any, table: Any, high: np.ndarray, low: Any, dy: np.ndarray, products: np.ndarray
) -> Runnable:
    """products <- dy columns^T over the whole batch: of the first slices of dy, and below of the second.

    table: for the slice of the columns; None for integers.
    """
    outputs, width = made.one.shape
    x, flat, r, blas, lock = made.x, _flat(dy), _geometry(made), _blas(), threading.Lock()
    s, t, u = np.empty(outputs), np.empty(outputs), np.zeros(width)
    tables = _NONE if table is None else table, high, _NONE if low is None else low

    def work(counter: np.ndarray) -> int:
        own = np.zeros_like(products)
        done = int(loops.weight_products(counter, x, flat, r, own, s, t, u, blas))
        if done:
            with lock:
                np.add(products, own, out=products)
        return done

    add_images = _shared(work, len(x), loops.weight_products)
    load(lambda: loops.weight_constants(x[:0], flat[:0], r, *tables, s, t, u), loops.weight_constants)

    def run() -> None:
        loops.weight_constants(x, flat, r, *tables, s, t, u)
        products.fill(0.0)
        add_images()

    return run


def pool(call: Call) -> Runnable:
    """The kernel of pooling."""
    return ImageStretch([POOLING_ROWS[call.key][0](call)], is_shared=False)
