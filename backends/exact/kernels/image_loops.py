"""The loops of exact kernels of images that Numba compiles; `compiled_images.py` says what each computes.

A loop takes one image after the other (or one channel), the next that no thread has taken: `counter` has its number.
It returns how many it took. Its scratch memory is its own. The products are those of NumPy's BLAS, called by its
address. They are so small that OpenBLAS does not copy its operands first.

r: the numbers of the windows, see `compiled_images._geometry`. blas: the address of the routine, and whether its
integers have 64 bits. high, low, table: see `splitters`; empty tables stand for no slices.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn.backends.exact.slices import FLUSH
from xnn.backends.kernels.blas import PLAIN, TRANSPOSED
from xnn.backends.kernels.image_loops import copy_rows
from xnn.backends.kernels.intrinsics import gemm32, gemm64
from xnn.backends.kernels.jit import inner, jit
from xnn.backends.kernels.micro_kernels import atomic_next, move

__all__ = ["convolve", "images_gradient", "largest_fields", "sum_images", "weight_products"]

_MAGNITUDE = 0x7FFFFFFF


@inner
def _multiply(blas: Any, a: Any, flag_a: Any, b: Any, flag_b: Any, k: Any, beta: Any, c: Any) -> None:
    """c <- op(a) op(b) + beta c, a matrix product with k terms in each sum, by BLAS.

    blas: the address of its gemm, and whether that takes integers of 64 bits. flag_a, flag_b: what op does to the
    matrix, PLAIN or TRANSPOSED.
    """
    (m, n), lead_a, lead_b = c.shape, a.shape[1], b.shape[1]
    left, right, out = a.ctypes.data, b.ctypes.data, c.ctypes.data
    if blas[1]:
        gemm64(blas[0], flag_a, flag_b, m, n, k, 1.0, left, lead_a, right, lead_b, beta, out, n)
    else:
        gemm32(blas[0], flag_a, flag_b, m, n, k, 1.0, left, lead_a, right, lead_b, beta, out, n)


@inner
def _spread(image: Any, r: Any, padded: Any) -> None:
    """padded <- an image (C, H, W) in a border of zeros, which are there already."""
    above, before = r[8], r[9]
    for c in range(image.shape[0]):
        for h in range(image.shape[1]):
            given, row = image[c, h], padded[c, above + h, before : before + image.shape[2]]
            for w in range(given.size):
                row[w] = given[w]


@inner
def _unfold(padded: Any, r: Any, first: Any, columns: Any) -> None:
    """columns (C kh kw, places) <- windows of an image with a border: r[12] rows of them, from row `first` on."""
    kh, kw, ow = r[0], r[1], r[3]
    sh, sw, dh = r[4], r[5], r[6]
    dw, rows = r[7], r[12]
    size, height, width, like = padded.itemsize, padded.shape[1], padded.shape[2], np.float32(1.0)
    start, target = np.int64(padded.ctypes.data), np.int64(columns.ctypes.data)
    for c in range(padded.shape[0]):
        for i in range(kh):
            for j in range(kw):
                source = start + ((c * height + first * sh + i * dh) * width + j * dw) * size
                if sw == 1:
                    copy_rows(target, ow * size, source, sh * width * size, rows, ow, size, like)
                else:
                    for u in range(rows):
                        for v in range(ow):
                            at = source + (u * sh * width + v * sw) * size
                            move(1, like, target + (u * ow + v) * size, at)
                target += rows * ow * size


@inner
def _constants(x: Any, high: Any, low: Any, largest: Any, s: Any, t: Any) -> None:
    """The rounding constants of each column of x: s for the first slice, t for the second."""
    words = x.view(np.int32)
    largest[:] = 0
    for k in range(x.shape[0]):
        row = words[k]
        for p in range(row.size):
            largest[p] = max(largest[p], row[p] & np.int32(_MAGNITUDE))
    for p in range(largest.size):
        s[p], t[p] = high[largest[p] >> 23], low[largest[p] >> 23]


@inner
def _cut(x: Any, s: Any, t: Any, wide: Any) -> None:
    """Write the two slices of each column of x side by side into the rows of `wide`, (rows, 2 places)."""
    places = s.size
    for k in range(x.shape[0]):
        given, first, second = x[k], wide[k, :places], wide[k, places:]
        for p in range(places):
            y = np.float64(given[p])
            cut = (y + s[p]) - s[p]
            first[p] = cut
            second[p] = ((y - cut) + t[p]) - t[p]


@inner
def _largest(row: Any) -> Any:
    """The largest magnitude of float32 numbers, as bits."""
    words, largest = row.view(np.int32), np.int32(0)
    for p in range(words.size):
        largest = max(largest, words[p] & np.int32(_MAGNITUDE))
    return largest


@inner
def _largest_of(dy: Any, o: Any) -> Any:
    """The largest absolute value in channel o of all images: its bits, read as an integer."""
    largest = np.int32(0)
    for n in range(dy.shape[0]):
        largest = max(largest, _largest(dy[n, o]))
    return largest


@jit
def convolve(
    counter: Any, x: Any, y: Any, r: Any, one: Any, bias: Any, scale: Any, positive: Any, high: Any, low: Any,
    blas: Any,
) -> Any:  # fmt: skip
    (outputs, width), places, done, two = one.shape, r[12] * r[3], 0, high.size > 0
    padded, columns = np.zeros((x.shape[1], r[10], r[11]), np.float32), np.empty((width, places), np.float32)
    slices = (2 if two else 1) * places
    wide, products = np.empty((width, slices)), np.empty((outputs, slices))
    largest, s, t = np.empty(places, np.int32), np.empty(places), np.empty(places)
    while True:
        n = atomic_next(counter.ctypes.data)
        if n >= x.shape[0]:
            return done
        done += 1
        _spread(x[n], r, padded)
        for first in range(0, r[2], r[12]):
            _unfold(padded, r, first, columns)
            if two:
                _constants(columns, high, low, largest, s, t)
                _cut(columns, s, t, wide)
            else:
                for k in range(width):
                    for p in range(places):
                        wide[k, p] = columns[k, p]
            _multiply(blas, one, PLAIN, wide, PLAIN, width, 0.0, products)
            for o in range(outputs):
                z, out = products[o], y[n, o, first * r[3] :]
                b = np.float64(bias[o])
                if two:
                    rest = z[places:]
                    for p in range(places):
                        out[p] = (((z[p] + rest[p]) + b) + FLUSH) - FLUSH
                else:
                    for p in range(places):
                        out[p] = ((z[p] * scale + b) + FLUSH) - FLUSH
                if positive:
                    for p in range(places):
                        out[p] = np.float32(0.0) if out[p] <= np.float32(0.0) else out[p]


@inner
def _fold(products: Any, r: Any, first: Any, whole: Any, line: Any) -> None:
    """Add the gradients of windows, r[12] rows of them from row `first` on, to an image with a border."""
    kh, kw, ow = r[0], r[1], r[3]
    sh, sw, dh = r[4], r[5], r[6]
    dw, rows = r[7], r[12]
    for c in range(whole.shape[0]):
        for i in range(kh):
            line[:] = 0.0
            for j in range(kw):
                k = (c * kh + i) * kw + j
                for u in range(rows):
                    high, low = products[k, u * ow :], products[k, (rows + u) * ow :]
                    row = line[u, j * dw :]
                    if sw == 1:
                        for v in range(ow):
                            row[v] += high[v] + low[v]
                    else:
                        for v in range(ow):
                            row[v * sw] += high[v] + low[v]
            for u in range(rows):
                row, given = whole[c, (first + u) * sh + i * dh], line[u]
                for v in range(given.size):
                    row[v] += given[v]


@jit
def images_gradient(counter: Any, dy: Any, dx: Any, r: Any, one: Any, high: Any, low: Any, blas: Any) -> Any:
    (outputs, width), places, done = one.shape, r[12] * r[3], 0
    above, before = r[8], r[9]
    wide, products = np.empty((outputs, 2 * places)), np.empty((width, 2 * places))
    whole, line = np.empty((dx.shape[1], r[10], r[11])), np.empty((r[12], r[11]))
    largest, s, t = np.empty(places, np.int32), np.empty(places), np.empty(places)
    while True:
        n = atomic_next(counter.ctypes.data)
        if n >= dy.shape[0]:
            return done
        done += 1
        whole[:] = 0.0
        for first in range(r[2] - r[12], -1, -r[12]):  # from below, so that parts are added in the order of i
            given = dy[n, :, first * r[3] : first * r[3] + places]
            _constants(given, high, low, largest, s, t)
            _cut(given, s, t, wide)
            _multiply(blas, one, TRANSPOSED, wide, PLAIN, outputs, 0.0, products)
            _fold(products, r, first, whole, line)
        for c in range(dx.shape[1]):
            for h in range(dx.shape[2]):
                row, out = whole[c, above + h, before:], dx[n, c, h]
                for w in range(out.size):
                    out[w] = (row[w] + FLUSH) - FLUSH


@jit
def sum_images(counter: Any, dy: Any, sums: Any, table: Any, fields: Any) -> Any:
    places, done = dy.shape[2], 0
    totals = np.empty(places)
    while True:
        o = atomic_next(counter.ctypes.data)
        if o >= sums.size:
            return done
        done += 1
        s = table[fields[o]]
        totals[:] = 0.0  # the order of the sum is free, and this one is fast
        for n in range(dy.shape[0]):
            given = dy[n, o]
            for p in range(places):
                totals[p] += (np.float64(given[p]) + s) - s
        total = 0.0
        for p in range(places):
            total += totals[p]
        sums[o] = total


@jit
def largest_fields(x: Any, dy: Any, r: Any, of_dy: Any, of_columns: Any) -> None:
    """The largest exponent field of each channel of dy, and of each row of the columns, if there is room for them."""
    for o in range(of_dy.size):
        of_dy[o] = _largest_of(dy, o) >> 23
    if of_columns.size == 0:
        return
    sizes = np.zeros(x.shape[1:], np.float32)  # an image of the largest magnitudes
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            for h in range(x.shape[2]):
                row, most = x[n, c, h].view(np.int32), sizes[c, h].view(np.int32)
                for w in range(row.size):
                    most[w] = max(most[w], row[w] & np.int32(_MAGNITUDE))
    padded = np.zeros((x.shape[1], r[10], r[11]), np.float32)
    columns = np.empty((of_columns.size, r[12] * r[3]), np.float32)
    of_columns[:] = 0
    _spread(sizes, r, padded)
    for first in range(0, r[2], r[12]):
        _unfold(padded, r, first, columns)
        for k in range(of_columns.size):
            of_columns[k] = max(of_columns[k], _largest(columns[k]) >> 23)


@jit
def weight_products(
    counter: Any, x: Any, dy: Any, r: Any, products: Any, s: Any, t: Any, u: Any, blas: Any
) -> Any:
    """u: the constants for the columns; 0 for integers, which they leave as they are."""
    width, outputs = products.shape[1], dy.shape[1]
    places, done = r[12] * r[3], 0
    padded, columns = np.zeros((x.shape[1], r[10], r[11]), np.float32), np.empty((width, places), np.float32)
    cut, wide = np.empty((width, places)), np.empty((products.shape[0], places))
    two = len(wide) > outputs
    while True:
        n = atomic_next(counter.ctypes.data)
        if n >= x.shape[0]:
            return done
        done += 1
        _spread(x[n], r, padded)
        for begin in range(0, r[2], r[12]):
            _unfold(padded, r, begin, columns)
            for o in range(outputs):
                given, first = dy[n, o, begin * r[3] :], wide[o]
                for p in range(places):
                    first[p] = (np.float64(given[p]) + s[o]) - s[o]
                if two:
                    second = wide[outputs + o]
                    for p in range(places):
                        second[p] = ((np.float64(given[p]) - first[p]) + t[o]) - t[o]
            for k in range(width):
                given, out = columns[k], cut[k]
                for p in range(places):
                    out[p] = (np.float64(given[p]) + u[k]) - u[k]
            _multiply(blas, wide, PLAIN, cut, TRANSPOSED, places, 1.0, products)
