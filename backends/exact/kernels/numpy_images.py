"""The passes of exact kernels of images in plain NumPy, over the windows of a few images at a time.

Each function returns a pass: a function without arguments over the given arrays. `image_kernels.py` says what is
sliced, and `numpy_passes.py` what tables are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn.backends.exact.slices import FLUSH
from xnn.backends.kernels.calls import Call, Runnable
from xnn.backends.kernels.pool_kernels import POOL_KERNELS

__all__ = ["convolve", "images_gradient", "largest_fields", "pool", "sum_images", "weight_products"]

_ROOM = 1 << 22  #: bytes of the slices of windows that are worked on together
_MAGNITUDE = np.int32(0x7FFFFFFF)


def _largest(x: np.ndarray, axis: Any) -> np.ndarray:
    """The largest exponent field of float32 numbers over `axis`, which is kept."""
    words = np.bitwise_and(x.view(np.int32), _MAGNITUDE)
    return np.asarray(np.maximum.reduce(words, axis=axis, keepdims=True) >> 23)


class _Windows:
    """Columns (images, C, kh kw, oh, ow) for a few images at a time, with a border of zeros around the images.

    most: of so many images, at most.
    """

    def __init__(self, made: Any, most: int | None = None) -> None:
        x, (rows, columns) = made.x, made.windows
        self.x, self.n, (width, self.places) = x, len(x), (made.one.shape[1], made.places)
        self.together = max(1, min(most or self.n, _ROOM // (16 * width * self.places)))
        self.extents = rows.padded, columns.padded
        self.inside = tuple(slice(w.before, w.before + w.extent) for w in made.windows)
        self.elements = [
            (rows.element(i), columns.element(j)) for i in range(rows.kernel) for j in range(columns.kernel)
        ]
        self.kind = np.float64 if made.is_scaled else np.float32
        self.shape = x.shape[1], len(self.elements), rows.number, columns.number
        self.padded = np.zeros((self.together, x.shape[1], *self.extents), self.kind)
        self.columns = np.empty((self.together, *self.shape), self.kind)

    def batches(self) -> list[slice]:
        """The images that are worked on together, in order."""
        return [slice(k, min(k + self.together, self.n)) for k in range(0, self.n, self.together)]

    def fill(self, images: np.ndarray) -> np.ndarray:
        """The windows of images as columns of a matrix for each image: (images, C kh kw, places)."""
        count = len(images)
        inside = self.padded[:count, :, *self.inside]
        np.copyto(inside, images)
        for e, element in enumerate(self.elements):
            np.copyto(self.columns[:count, :, e], self.padded[:count, :, *element])
        return self.columns[:count].reshape(count, -1, self.places)


def _cut(x: np.ndarray, s: np.ndarray, t: np.ndarray, wide: np.ndarray, rest: np.ndarray) -> None:
    """wide (..., 2, places) <- the two slices of x (..., places)."""
    first, second = wide[..., 0, :], wide[..., 1, :]
    np.add(x, s, out=first)
    np.subtract(first, s, out=first)
    np.subtract(x, first, out=rest)
    np.add(rest, t, out=rest)
    np.subtract(rest, t, out=second)


def convolve(made: Any) -> Runnable:
    """y <- W columns + b, rounded to float32; its positive part if `made.positive`."""
    windows, one, y = _Windows(made), made.one, made.y.reshape(len(made.y), len(made.one), -1)
    most, places, zeros = windows.together, windows.places, np.zeros(windows.places, np.float32)
    wide = np.empty((most, one.shape[1], 1 if made.is_scaled else 2, places))
    products, rest = (
        np.empty((most, len(one), wide.shape[2] * places)),
        np.empty((most, one.shape[1], places)),
    )

    def run() -> None:
        bias = made.bias.reshape(-1, 1)
        for images in windows.batches():
            columns = windows.fill(made.x[images])
            count = len(columns)
            z = products[:count, :, :places]
            if made.is_scaled:
                np.matmul(one, columns, out=z)
                np.multiply(z, made.scale, out=z)
            else:
                largest = _largest(columns, 1)
                _cut(columns, made.high.take(largest), made.low.take(largest), wide[:count], rest[:count])
                np.matmul(one, wide[:count].reshape(count, len(one.T), -1), out=products[:count])
                np.add(z, products[:count, :, places:], out=z)
            np.add(z, bias, out=z)
            np.add(z, FLUSH, out=z)
            np.subtract(z, FLUSH, out=z)
            np.copyto(y[images], z, casting="same_kind")
            if made.positive:
                np.maximum(y[images], zeros, out=y[images])

    return run


def images_gradient(made: Any, high: np.ndarray, low: np.ndarray, dy: np.ndarray, dx: np.ndarray) -> Runnable:
    """dx <- W^T dy, added up where windows overlap: first over the columns of a window, then over its rows."""
    windows, one = _Windows(made), made.one.T
    rows, columns = made.windows
    most, places, outputs = windows.together, windows.places, len(made.one)
    wide, rest = np.empty((most, outputs, 2, places)), np.empty((most, outputs, places))
    products = np.empty((most, len(one), 2 * places))
    whole = np.empty((most, dx.shape[1], *windows.extents))
    line = np.empty((most, dx.shape[1], rows.number, columns.padded))
    given = dy.reshape(len(dy), outputs, places)

    def run() -> None:
        for images in windows.batches():
            count = images.stop - images.start
            largest = _largest(given[images], 1)
            _cut(given[images], high.take(largest), low.take(largest), wide[:count], rest[:count])
            np.matmul(one, wide[:count].reshape(count, outputs, -1), out=products[:count])
            d = products[:count, :, :places]
            np.add(d, products[:count, :, places:], out=d)
            parts = d.reshape(count, dx.shape[1], rows.kernel, columns.kernel, rows.number, columns.number)
            whole[:count].fill(0.0)
            for i in range(rows.kernel):
                line[:count].fill(0.0)
                for j in range(columns.kernel):
                    target = line[:count, ..., columns.element(j)]
                    np.add(target, parts[:, :, i, j], out=target)
                target = whole[:count, :, rows.element(i)]
                np.add(target, line[:count], out=target)
            found = whole[:count, :, *windows.inside]
            np.copyto(dx[images], (found + FLUSH) - FLUSH, casting="same_kind")

    return run


def largest_fields(made: Any, dy: np.ndarray, of_dy: np.ndarray, of_columns: np.ndarray | None) -> Runnable:
    """of_dy, of_columns <- the largest exponent field of each channel of dy, and of each row of the columns.

    of_columns: None if it is not needed, as for integers.
    """
    windows = None if of_columns is None else _Windows(made, 1)

    def run() -> None:
        np.copyto(of_dy, _largest(dy, (0, 2, 3)).reshape(-1))
        if windows is not None and of_columns is not None:
            np.copyto(of_columns, _largest(windows.fill(_sizes(made.x)), (0, 2)).reshape(-1))

    return run


def sum_images(dy: np.ndarray, table: np.ndarray, fields: np.ndarray, totals: np.ndarray) -> Runnable:
    """totals <- the sum of dy over images and places, not rounded. fields: of the channels, see `largest_fields`."""

    def run() -> None:
        s = table.take(fields).reshape(-1, 1, 1)
        np.add.reduce((dy + s) - s, axis=(0, 2, 3), out=totals)

    return run


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
    (table, high, low), windows, outputs = tables, _Windows(made), dy.shape[1]
    most, width, places = windows.together, len(made.one.T), windows.places
    wide = np.empty((most, outputs, len(products) // outputs, places))
    rest = np.empty((most, outputs, places))
    cut, each = np.empty((most, width, places)), np.empty((most, *products.shape))
    given = dy.reshape(len(dy), outputs, places)

    def run() -> None:
        s = high.take(of_dy)[:, None]
        t = s if low is None else low.take(of_dy)[:, None]
        u = None if table is None else table.take(of_columns)[:, None]
        products.fill(0.0)
        for images in windows.batches():
            columns = windows.fill(made.x[images])
            count = len(columns)
            if low is None:
                np.add(given[images], s, out=wide[:count, :, 0])
                np.subtract(wide[:count, :, 0], s, out=wide[:count, :, 0])
            else:
                _cut(given[images], s, t, wide[:count], rest[:count])
            if u is not None:
                np.add(columns, u, out=cut[:count])
                columns = np.subtract(cut[:count], u, out=cut[:count])
            turned = columns.transpose(0, 2, 1)
            for k in range(wide.shape[2]):
                found = each[:count, k * outputs : (k + 1) * outputs]
                np.matmul(wide[:count, :, k], turned, out=found)
            np.add(products, np.add.reduce(each[:count], axis=0), out=products)

    return run


def _sizes(x: np.ndarray) -> np.ndarray:
    """One image of the largest magnitudes over the batch."""
    words = np.bitwise_and(x.view(np.int32), _MAGNITUDE)
    return np.maximum.reduce(words, axis=0, keepdims=True).view(np.float32)


def pool(call: Call) -> Runnable:
    """The kernel of pooling."""
    found: Runnable = POOL_KERNELS[call.key][0](call)
    return found
