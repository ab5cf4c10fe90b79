"""Normalization of rows of features, as loops that Numba compiles: over the batch, and of each row.

Over the batch there are sums for each feature, which are made for each part of the batch. A row's own sums are sums
of vectors, as in `normalization_loops.py`. `image_loops.py` explains the loops' arguments; the rows of a call are its
images.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn.backends.kernels.image_loops import COLUMNS, clear, numbers, reals
from xnn.backends.kernels.jit import jit
from xnn.backends.kernels.normalization_loops import mean_of, squares_about
from xnn.backends.kernels.vectors import load, spread, store, total, where_not_above, zeros

__all__ = [
    "add_features", "add_gradients", "add_squares", "moments_of_rows", "normalize_features", "normalize_rows",
    "rows_backward", "through_features",
]  # fmt: skip


@jit
def _sums(address: Any, part: Any, fresh: Any, count: Any) -> Any:
    """Two rows of float64 sums of a part; zeros at its beginning."""
    wide = np.float64(0)
    place = address + part * 2 * count * 8
    if fresh:
        clear(place, 2 * count, wide)
    return reals(place, count, wide), reals(place + count * 8, count, wide)


def add_features(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """sums[part, 0] = the sum of x over the part's rows."""
    r = numbers(row, COLUMNS)
    x, size, count = r[1], r[3], r[4]
    sums, _ = _sums(r[2], part, fresh, count)
    for n in range(first, last):
        given = reals(x + n * count * size, count, like)
        for f in range(count):
            sums[f] += given[f]


def add_squares(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """sums[part, 1] = the sum of (x - mean)^2 over the part's rows."""
    r = numbers(row, COLUMNS)
    x, size, count = r[1], r[3], r[4]
    _, sums = _sums(r[2], part, fresh, count)
    mean = reals(r[5], count, like)
    for n in range(first, last):
        given = reals(x + n * count * size, count, like)
        for f in range(count):
            away = given[f] - mean[f]
            sums[f] += away * away


def normalize_features(
    row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> None:
    """y = (x s - m) g + b, with the numbers s, m, g, b of the feature; then ReLU if `positive`."""
    r = numbers(row, COLUMNS)
    x, y, size, count, positive, zero = r[1], r[2], r[3], r[4], r[6], like - like
    step = count * size
    s, m = reals(r[7], count, like), reals(r[7] + step, count, like)
    g, b = reals(r[7] + 2 * step, count, like), reals(r[7] + 3 * step, count, like)
    for n in range(first, last):
        given, out = reals(x + n * step, count, like), reals(y + n * step, count, like)
        for f in range(count):
            out[f] = (given[f] * s[f] - m[f]) * g[f] + b[f]
        if positive:
            for f in range(count):
                out[f] = zero if out[f] < zero else out[f]


def add_gradients(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """sums[part] = the sums of dy and of dy (x s - m). If y is given, dy becomes 0 where y <= 0 first."""
    r = numbers(row, COLUMNS)
    x, y, dy, size, count, zero = r[1], r[2], r[3], r[5], r[6], like - like
    step = count * size
    plain, weighted = _sums(r[4], part, fresh, count)
    s, m = reals(r[8], count, like), reals(r[8] + step, count, like)
    for n in range(first, last):
        given, slope = reals(x + n * step, count, like), reals(dy + n * step, count, like)
        if y:
            shown = reals(y + n * step, count, like)
            for f in range(count):
                slope[f] = zero if shown[f] <= zero else slope[f]
        for f in range(count):
            plain[f] += slope[f]
            weighted[f] += slope[f] * (given[f] * s[f] - m[f])


def through_features(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """dx = a dy + q (x s - m) + c, with the numbers s, m, a, q, c of the feature."""
    r = numbers(row, COLUMNS)
    x, dy, dx, size, count = r[1], r[2], r[3], r[4], r[5]
    step = count * size
    s, m, a = reals(r[7], count, like), reals(r[7] + step, count, like), reals(r[7] + 2 * step, count, like)
    q, c = reals(r[7] + 3 * step, count, like), reals(r[7] + 4 * step, count, like)
    for n in range(first, last):
        given, slope = reals(x + n * step, count, like), reals(dy + n * step, count, like)
        out = reals(dx + n * step, count, like)
        for f in range(count):
            out[f] = a[f] * slope[f] + (q[f] * (given[f] * s[f] - m[f]) + c[f])


def moments_of_rows(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """The mean and the variance of each row."""
    r = numbers(row, COLUMNS)
    x, mean, variance, size, count, many = r[1], r[2], r[3], r[4], r[5], r[6]
    for n in range(first * many, last * many):
        middle = mean_of(x + n * count * size, count, size, like)
        reals(mean + n * size, 1, like)[0] = middle
        found = squares_about(x + n * count * size, middle, count, size, like) / count
        reals(variance + n * size, 1, like)[0] = found


def normalize_rows(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """y = (x s - m) g weight + bias, with the numbers s, m, g of the row; then ReLU if `positive`."""
    r = numbers(row, COLUMNS)
    x, y, size, count, many, positive, zero = r[1], r[2], r[3], r[4], r[5], r[6], like - like
    rows, step = r[8], count * size
    weight, bias = reals(r[9], count, like), reals(r[10], count, like)
    for n in range(first * many, last * many):
        s, m = reals(r[7] + n * size, 1, like)[0], reals(r[7] + (rows + n) * size, 1, like)[0]
        g = reals(r[7] + (2 * rows + n) * size, 1, like)[0]
        given, out = reals(x + n * step, count, like), reals(y + n * step, count, like)
        for f in range(count):
            out[f] = (given[f] * s - m) * g * weight[f] + bias[f]
        if positive:
            for f in range(count):
                out[f] = zero if out[f] < zero else out[f]


@jit
def _slopes_of_row(
    x: Any, dy: Any, y: Any, weight: Any, s: Any, m: Any, g: Any, count: Any, size: Any, like: Any
) -> Any:  # fmt: skip
    """The sums of dy weight and of dy weight z, z = (x s - m) g. If y is given, dy becomes 0 where y <= 0 first."""
    nothing, step, i, zero = zeros(0, like), 64 // size, 0, like - like
    a, b, factor, middle, root = nothing, nothing, spread(nothing, s), spread(nothing, m), spread(nothing, g)
    while i + step <= count:
        at = i * size
        slope = load(nothing, dy + at)
        if y:
            slope = where_not_above(load(nothing, y + at), nothing, nothing, slope)
            store(dy + at, slope)
        slope = slope * load(nothing, weight + at)
        a, b = a + slope, b + slope * ((load(nothing, x + at) * factor - middle) * root)
        i += step
    plain, weighted = total(a), total(b)
    given, slopes, by = reals(x, count, like), reals(dy, count, like), reals(weight, count, like)
    shown = reals(y if y else x, count, like)
    for k in range(i, count):
        if y and shown[k] <= zero:
            slopes[k] = zero
        plain += slopes[k] * by[k]
        weighted += slopes[k] * by[k] * ((given[k] * s - m) * g)
    return plain, weighted


def rows_backward(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """dx = s g (h - mean h - z mean h z), h = dy weight, z = (x s - m) g. sums[part] = those of dy and of dy z."""
    r = numbers(row, COLUMNS)
    x, y, dy, dx, size, count, many, rows = r[1], r[2], r[3], r[4], r[5], r[6], r[8], r[9]
    step, weight = count * size, reals(r[10], count, like)
    dbias, dweight = _sums(r[11], part, fresh, count)
    for n in range(first * many, last * many):
        s, m = reals(r[7] + n * size, 1, like)[0], reals(r[7] + (rows + n) * size, 1, like)[0]
        g, shown = reals(r[7] + (2 * rows + n) * size, 1, like)[0], y + n * step if y else 0
        plain, weighted = _slopes_of_row(
            x + n * step, dy + n * step, shown, r[10], s, m, g, count, size, like
        )
        plain, weighted = plain / (like * count), weighted / (like * count)
        given, slope = reals(x + n * step, count, like), reals(dy + n * step, count, like)
        for f in range(count):
            dbias[f] += slope[f]
            dweight[f] += slope[f] * ((given[f] * s - m) * g)
        if dx:
            out, scale = reals(dx + n * step, count, like), s * g
            for f in range(count):
                out[f] = scale * (slope[f] * weight[f] - plain - (given[f] * s - m) * g * weighted)
