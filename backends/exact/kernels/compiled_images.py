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

__all__ = ["convolve", "images_gradient", "largest_fields", "pool", "sum_images", "weight_products"]

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


def largest_fields(made: Any, dy: np.ndarray, of_dy: np.ndarray, of_columns: np.ndarray | None) -> Runnable:
    """of_dy, of_columns <- the largest exponent field of each channel of dy, and of each row of the columns.

    of_columns: None if it is not needed, as for integers.
    """
    rest = _geometry(made), of_dy, np.zeros(0, np.int32) if of_columns is None else of_columns
    x, flat = made.x, _flat(dy)
    load(lambda: loops.largest_fields(x[:0], flat[:0], *rest), loops.largest_fields)
    return lambda: loops.largest_fields(x, flat, *rest)


def sum_images(dy: np.ndarray, table: np.ndarray, fields: np.ndarray, totals: np.ndarray) -> Runnable:
    """totals <- the sum of dy over images and places, not rounded. fields: of the channels, see `largest_fields`."""
    given = _flat(dy), totals, table, fields
    return _shared(lambda counter: loops.sum_images(counter, *given), len(totals), loops.sum_images)


def weight_products(
    made: Any,
    tables: tuple[Any, np.ndarray, Any],
    dy: np.ndarray,
    of_dy: np.ndarray,
    of_columns: np.ndarray,
    products: np.ndarray,
) -> Runnable:
    """products <- dy columns^T over all images: of the first slices of dy, and below of the second.

    tables: for the slice of the columns, and for the two of dy; integers have the second one alone. of_dy,
    of_columns: see `largest_fields`.
    """
    (table, high, low), x, flat, r, blas = tables, made.x, _flat(dy), _geometry(made), _blas()
    s, t, u, lock = np.empty(len(of_dy)), np.empty(len(of_dy)), np.zeros(len(made.one.T)), threading.Lock()

    def work(counter: np.ndarray) -> int:
        own = np.zeros_like(products)
        done = int(loops.weight_products(counter, x, flat, r, own, s, t, u, blas))
        if done:
            with lock:
                np.add(products, own, out=products)
        return done

    add_images = _shared(work, len(x), loops.weight_products)

    def run() -> None:
        high.take(of_dy, out=s, mode="clip")
        if low is not None:
            low.take(of_dy, out=t, mode="clip")
        if table is not None:
            table.take(of_columns, out=u, mode="clip")
        products.fill(0.0)
        add_images()

    return run


def pool(call: Call) -> Runnable:
    """The kernel of pooling."""
    return ImageStretch([POOLING_ROWS[call.key][0](call)], is_shared=False)
