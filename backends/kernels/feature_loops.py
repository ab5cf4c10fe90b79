"""Normalization of rows of features, as loops that Numba compiles: over the batch, and of each row.

Over the batch there are sums for each feature, so that threads share the columns. A row's own sums are sums of
vectors, as in `normalization_loops.py`. `image_loops.py` explains the loops' arguments, `row_runner.py` their ranges.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn.backends.kernels.image_loops import numbers, option, reals
from xnn.backends.kernels.intrinsics import rounded
from xnn.backends.kernels.jit import inner
from xnn.backends.kernels.normalization_loops import mean_of, squares_about
from xnn.backends.kernels.normalization_numbers import LEAST, MOST
from xnn.backends.kernels.vectors import load, spread, total, zeros
from xnn.ops import normalization

__all__ = [
    "features_backward", "gradients_of_rows", "moments_of_features", "moments_of_rows", "normalize_features",
    "normalize_rows", "rows_backward",
]  # fmt: skip

_WIDE = np.float64(0)
_SMALL, _LARGE = normalization._SMALL, normalization._LARGE
_MULTIPLY, _DIVIDE = normalization._MULTIPLY, normalization._DIVIDE


@inner
def _unusual_moments(x: Any, stride: Any, count: Any, like: Any) -> Any:
    """Mean, variance and power of two of numbers `stride` bytes apart whose variance is no ordinary number.

    The numbers are multiplied by the power of two, as by `ops.moments`, and the variance is that of the products.
    """
    size, factor = like - like, like
    for i in range(count):
        value = abs(reals(x + i * stride, 1, like)[0])
        size = value if size == size and not value <= size else size  # NaN is the largest
    if size > _LARGE:
        factor = rounded(_DIVIDE, like)
    elif size < _SMALL and size > 0.0:
        factor = rounded(_MULTIPLY, like)
    sum, squares = 0.0, 0.0
    for i in range(count):
        sum += reals(x + i * stride, 1, like)[0] * factor
    mean = rounded(sum / count, like)
    for i in range(count):
        away = reals(x + i * stride, 1, like)[0] * factor - mean
        squares += away * away
    return mean / factor, rounded(squares / count, like), factor


@inner
def _store_unusual(
    x: Any, stride: Any, count: Any, like: Any, mean: Any, variance: Any, scale: Any, at: Any
) -> None:
    """Write the moments of such numbers to the places `at`; without `scale`, the variance without the factor."""
    mean[at], found, factor = _unusual_moments(x, stride, count, like)
    if scale.size:
        variance[at], scale[at] = found, factor
    else:
        variance[at] = found / factor / factor


@inner
def _is_ordinary(variance: Any) -> Any:
    return variance > LEAST and variance < MOST


def moments_of_features(
    row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> None:
    """Mean and variance of each feature, and a power of two if r[6]; r[7]: a float64 number for each feature."""
    r = numbers(row)
    x, m, size = r[1], r[2], r[3]
    n, features = r[4], r[5]
    begin, count = first * r[3], last - first
    step, sums = features * size, reals(r[7] + first * 8, count, _WIDE)
    mean, variance = reals(m + begin, count, like), reals(m + step + begin, count, like)
    scale = reals(m + 2 * step + begin, count if r[6] else 0, like)
    sums[:] = 0.0
    for i in range(n):
        given = reals(x + i * step + begin, count, like)
        for f in range(count):
            sums[f] += given[f]
    for f in range(count):
        mean[f] = sums[f] / n
    sums[:] = 0.0
    for i in range(n):
        given = reals(x + i * step + begin, count, like)
        for f in range(count):
            away = given[f] - mean[f]
            sums[f] += away * away
    scale[:] = like
    for f in range(count):
        variance[f] = sums[f] / n
    for f in range(count):
        if not _is_ordinary(sums[f] / n):
            _store_unusual(x + begin + f * size, step, n, like, mean, variance, scale, f)


def normalize_features(
    row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> None:
    """y = (x s - m) g + b, with the numbers s, m, g, b of the feature, which are computed first; then ReLU if r[6].

    r[7]: mean, variance, and the power of two s if r[8]. r[9], r[10]: weight and bias, or 0. r[11]: epsilon. r[12]:
    where the four numbers go; r[13]: where 1 / sqrt(variance + epsilon s^2) goes, as float64.
    """
    r = numbers(row)
    size, n, positive = r[3], r[4], r[6]
    zero, count, begin = like - like, last - first, first * r[3]
    x, y, step = r[1] + begin, r[2] + begin, r[5] * size
    epsilon, at = option(r[11], 0, _WIDE), r[7] + begin
    mean, variance, scale = (
        reals(at, count, like),
        reals(at + step, count, like),
        reals(at + 2 * step, count, like),
    )
    weight, bias = reals(r[9] + begin, count, like), reals(r[10] + begin, count, like)
    s, m, g, b = _four(r[12] + begin, step, count, like)
    roots = reals(r[13] + first * 8, count, _WIDE)
    for f in range(count):
        factor = np.float64(scale[f]) if r[8] else 1.0
        roots[f] = 1.0 / np.sqrt(variance[f] + epsilon * factor * factor)
        s[f], m[f] = factor, mean[f] * factor
        g[f], b[f] = roots[f] * weight[f] if r[9] else roots[f], bias[f] if r[10] else zero
    for i in range(n):
        given, out = reals(x + i * step, count, like), reals(y + i * step, count, like)
        for f in range(count):
            out[f] = (given[f] * s[f] - m[f]) * g[f] + b[f]
        if positive:
            for f in range(count):
                out[f] = zero if out[f] < zero else out[f]


@inner
def _four(address: Any, step: Any, count: Any, like: Any) -> Any:
    """Four arrays `step` bytes apart."""
    return (
        reals(address, count, like), reals(address + step, count, like), reals(address + 2 * step, count, like),
        reals(address + 3 * step, count, like),
    )  # fmt: skip


def features_backward(
    row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> None:
    """dx = a dy + q (x s - m) + c, with numbers of the feature that follow from the sums of dy and of dy (x s - m).

    If y is given, dy becomes 0 where y <= 0 first. r[8], r[9]: the four numbers and the root of `normalize_features`.
    r[10]: weight, or 0. r[11], r[12]: dweight and dbias, or 0. r[13]: two float64 numbers for each feature. r[14]:
    four more of the dtype.
    """
    r = numbers(row)
    size, n, features = r[5], r[6], r[7]
    zero, count, begin = like - like, last - first, first * r[5]
    x, dy = r[1] + begin, r[3] + begin
    step, roots = features * size, reals(r[9] + first * 8, count, _WIDE)
    s, m, _, _ = _four(r[8] + begin, step, count, like)
    plain, weighted = (
        reals(r[13] + first * 8, count, _WIDE),
        reals(r[13] + (features + first) * 8, count, _WIDE),
    )
    plain[:] = 0.0
    weighted[:] = 0.0
    for i in range(n):
        given, slope = reals(x + i * step, count, like), reals(dy + i * step, count, like)
        if r[2]:
            shown = reals(r[2] + begin + i * step, count, like)
            for f in range(count):
                slope[f] = zero if shown[f] <= zero else slope[f]
        for f in range(count):
            plain[f] += slope[f]
            weighted[f] += slope[f] * (given[f] * s[f] - m[f])
    weight, dweight = reals(r[10] + begin, count, like), reals(r[11] + begin, count, like)
    dbias, (a, q, c, _) = reals(r[12] + begin, count, like), _four(r[14] + begin, step, count, like)
    for f in range(count):
        of_weight = weighted[f] * roots[f]
        factor = (np.float64(weight[f]) if r[10] else 1.0) * roots[f] * s[f]
        if r[11]:
            dweight[f] = of_weight
        if r[12]:
            dbias[f] = plain[f]
        a[f], q[f], c[f] = factor, -factor * roots[f] * of_weight / n, -factor * plain[f] / n
    if r[4]:
        for i in range(n):
            given, slope = reals(x + i * step, count, like), reals(dy + i * step, count, like)
            out = reals(r[4] + begin + i * step, count, like)
            for f in range(count):
                out[f] = a[f] * slope[f] + (q[f] * (given[f] * s[f] - m[f]) + c[f])


def moments_of_rows(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Mean and variance of each row, and a power of two if r[6]. r[2]: where they go; r[5]: rows in all."""
    r = numbers(row)
    x, size = r[1], r[3]
    count, step = r[4], r[4] * r[3]
    mean, variance = reals(r[2], last, like), reals(r[2] + r[5] * size, last, like)
    scale = reals(r[2] + 2 * r[5] * size, last if r[6] else 0, like)
    for n in range(first, last):
        middle = mean_of(x + n * step, count, size, like)
        found = squares_about(x + n * step, middle, count, size, like) / count
        mean[n], variance[n] = middle, found
        if r[6]:
            scale[n] = like
        if not _is_ordinary(found):
            _store_unusual(x + n * step, size, count, like, mean, variance, scale, n)


def normalize_rows(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """y = (x s - m) g weight + bias, with the numbers s, m, g of the row, which are computed first.

    r[5]: 1 for ReLU after it. r[6]: mean, variance, and the power of two s if r[7]. r[8]: where the three numbers go.
    r[9]: rows in all. r[10], r[11]: weight and bias. r[12]: epsilon.
    """
    r = numbers(row)
    x, y, size = r[1], r[2], r[3]
    count, positive = r[4], r[5]
    rows, zero = r[9], like - like
    step, epsilon = count * size, option(r[12], 0, _WIDE)
    mean, variance, scale = (
        reals(r[6], last, like), reals(r[6] + rows * size, last, like), reals(r[6] + 2 * rows * size, last, like)
    )  # fmt: skip
    factors, middles, roots = _numbers_of_rows(r[8], rows, last, size, like)
    weight, bias = reals(r[10], count, like), reals(r[11], count, like)
    for n in range(first, last):
        factor = np.float64(scale[n]) if r[7] else 1.0
        factors[n], middles[n] = factor, mean[n] * factor
        roots[n] = 1.0 / np.sqrt(variance[n] + epsilon * factor * factor)
        s, m, g = factors[n], middles[n], roots[n]
        given, out = reals(x + n * step, count, like), reals(y + n * step, count, like)
        for f in range(count):
            out[f] = (given[f] * s - m) * g * weight[f] + bias[f]
        if positive:
            for f in range(count):
                out[f] = zero if out[f] < zero else out[f]


@inner
def _numbers_of_rows(about: Any, rows: Any, last: Any, size: Any, like: Any) -> Any:
    """The numbers s, m, g of each row."""
    step = rows * size
    return reals(about, last, like), reals(about + step, last, like), reals(about + 2 * step, last, like)


def gradients_of_rows(
    row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> None:
    """dbias = sum dy, dweight = sum dy z, z = (x s - m) g, for features first .. last - 1, over all rows.

    If y is given, dy becomes 0 where y <= 0 first. r[5]: features. r[7]: rows. r[8], r[9]: dweight and dbias, or 0.
    r[10]: two float64 numbers for each feature.
    """
    r = numbers(row)
    size, features, rows = r[4], r[5], r[7]
    zero, count, begin = like - like, last - first, first * r[4]
    factors, middles, roots = _numbers_of_rows(r[6], rows, rows, size, like)
    plain, weighted = (
        reals(r[10] + first * 8, count, _WIDE),
        reals(r[10] + (features + first) * 8, count, _WIDE),
    )
    plain[:] = 0.0
    weighted[:] = 0.0
    for n in range(rows):
        at, s, m, g = n * features * size + begin, factors[n], middles[n], roots[n]
        given, slope = reals(r[1] + at, count, like), reals(r[3] + at, count, like)
        if r[2]:
            shown = reals(r[2] + at, count, like)
            for f in range(count):
                slope[f] = zero if shown[f] <= zero else slope[f]
        for f in range(count):
            plain[f] += slope[f]
            weighted[f] += slope[f] * ((given[f] * s - m) * g)
    dweight, dbias = reals(r[8] + begin, count, like), reals(r[9] + begin, count, like)
    for f in range(count):
        if r[8]:
            dweight[f] = weighted[f]
        if r[9]:
            dbias[f] = plain[f]


@inner
def _slopes_of_row(
    x: Any, dy: Any, weight: Any, s: Any, m: Any, g: Any, count: Any, size: Any, like: Any
) -> Any:
    """The sums of dy weight and of dy weight z, z = (x s - m) g."""
    nothing, step, i = zeros(0, like), 64 // size, 0
    a, b, factor, middle, root = nothing, nothing, spread(nothing, s), spread(nothing, m), spread(nothing, g)
    while i + step <= count:
        at = i * size
        slope = load(nothing, dy + at) * load(nothing, weight + at)
        a, b = a + slope, b + slope * ((load(nothing, x + at) * factor - middle) * root)
        i += step
    plain, weighted = total(a), total(b)
    given, slopes, by = reals(x, count, like), reals(dy, count, like), reals(weight, count, like)
    for k in range(i, count):
        plain += slopes[k] * by[k]
        weighted += slopes[k] * by[k] * ((given[k] * s - m) * g)
    return plain, weighted


def rows_backward(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """dx = s g (h - mean h - z mean h z), h = dy weight, z = (x s - m) g, for rows first .. last - 1."""
    r = numbers(row)
    x, dy, dx = r[1], r[2], r[3]
    size, count, step = r[4], r[5], r[5] * r[4]
    factors, middles, roots = _numbers_of_rows(r[6], r[7], last, size, like)
    weight = reals(r[8], count, like)
    for n in range(first, last):
        s, m, g = factors[n], middles[n], roots[n]
        plain, weighted = _slopes_of_row(x + n * step, dy + n * step, r[8], s, m, g, count, size, like)
        plain, weighted = plain / (like * count), weighted / (like * count)
        given, slope = reals(x + n * step, count, like), reals(dy + n * step, count, like)
        out, scale = reals(dx + n * step, count, like), s * g
        for f in range(count):
            out[f] = scale * (slope[f] * weight[f] - plain - (given[f] * s - m) * g * weighted)
