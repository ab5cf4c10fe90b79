"""Batch normalization of images, as loops that Numba compiles. `image_loops.py` explains the loops' arguments.

A plane is one channel of one image. Sums over a plane are sums of vectors of 64 bytes, whose lanes are then added by
halves, so that their bits do not depend on the processor; blocks of BLOCK numbers are added in float64. The few
numbers for each plane go to an array, and NumPy makes the batch's of them, in the order of the images
(`normalization_rows.py`).
"""

from __future__ import annotations

from typing import Any

from xnn.backends.kernels.image_loops import numbers, reals
from xnn.backends.kernels.intrinsics import rounded
from xnn.backends.kernels.jit import inner
from xnn.backends.kernels.vectors import load, spread, store, total, where_not_above, zeros

__all__ = ["mean_of", "moments", "normalize", "squares_about", "sums", "through_moments"]

BLOCK = 2048  #: numbers that are added in their dtype


@inner
def mean_of(x: Any, count: Any, size: Any, like: Any) -> Any:
    """The mean of `count` numbers at an address, in float64."""
    zero, step, sum, i = zeros(0, like), 64 // size, 0.0, 0
    while i + 2 * step <= count:
        a, b, end = zero, zero, min(count, i + BLOCK)
        while i + 2 * step <= end:
            a, b = a + load(zero, x + i * size), b + load(zero, x + (i + step) * size)
            i += 2 * step
        sum += total(a + b)
    if i + step <= count:
        sum += total(load(zero, x + i * size))
        i += step
    for value in reals(x + i * size, count - i, like):
        sum += value
    return sum / count


@inner
def squares_about(x: Any, middle: Any, count: Any, size: Any, like: Any) -> Any:
    """The sum of (x - middle)^2, in float64."""
    zero, step, sum, i, mean = zeros(0, like), 64 // size, 0.0, 0, rounded(middle, like)
    means = spread(zero, mean)
    while i + 2 * step <= count:
        a, b, end = zero, zero, min(count, i + BLOCK)
        while i + 2 * step <= end:
            u, v = load(zero, x + i * size) - means, load(zero, x + (i + step) * size) - means
            a, b = a + u * u, b + v * v
            i += 2 * step
        sum += total(a + b)
    if i + step <= count:
        u = load(zero, x + i * size) - means
        sum += total(u * u)
        i += step
    for value in reals(x + i * size, count - i, like):
        sum += (value - mean) * (value - mean)
    return sum


def moments(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """For each plane its mean, and the sum of squares about it: stats[n, 0, c] and stats[n, 1, c]."""
    r = numbers(row)
    x, stats, size = r[1], r[2], r[3]
    channels, count = r[4], r[5]
    for n in range(first, last):
        found = reals(stats + n * 2 * channels * 8, 2 * channels, 0.0)
        for c in range(channels):
            plane = x + (n * channels + c) * count * size
            mean = mean_of(plane, count, size, like)
            found[c], found[channels + c] = mean, squares_about(plane, mean, count, size, like)


def normalize(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """y = (x s - m) g + b, with the numbers s, m, g, b of the channel; then ReLU if `positive`."""
    r = numbers(row)
    x, y, size = r[1], r[2], r[3]
    channels, count, positive = r[4], r[5], r[6]
    about, zero = reals(r[7], 4 * channels, like), like - like
    for n in range(first, last):
        for c in range(channels):
            s, m = about[c], about[channels + c]
            g, b = about[2 * channels + c], about[3 * channels + c]
            at = (n * channels + c) * count * size
            given, out = reals(x + at, count, like), reals(y + at, count, like)
            if positive:
                for i in range(count):
                    z = (given[i] * s - m) * g + b
                    out[i] = zero if z < zero else z
            else:
                for i in range(count):
                    out[i] = (given[i] * s - m) * g + b


def sums(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """For each plane the sums of dy and of dy (x s - m). If y is given, dy becomes 0 where y <= 0 first."""
    r = numbers(row)
    x, y, dy = r[1], r[2], r[3]
    stats, size = r[4], r[5]
    channels, count = r[6], r[7]
    about, zero, step = reals(r[8], 2 * channels, like), like - like, 64 // size
    nothing = zeros(0, like)
    for n in range(first, last):
        found = reals(stats + n * 2 * channels * 8, 2 * channels, 0.0)
        for c in range(channels):
            s, m, at = about[c], about[channels + c], (n * channels + c) * count * size
            factor, middle, plain, weighted, i = spread(nothing, s), spread(nothing, m), 0.0, 0.0, 0
            while i + step <= count:
                a, b, end = nothing, nothing, min(count, i + BLOCK)
                while i + step <= end:
                    here = at + i * size
                    g = load(nothing, dy + here)
                    if y:
                        g = where_not_above(load(nothing, y + here), nothing, nothing, g)
                        store(dy + here, g)
                    a, b = a + g, b + g * (load(nothing, x + here) * factor - middle)
                    i += step
                plain, weighted = plain + total(a), weighted + total(b)
            given, slope = reals(x + at, count, like), reals(dy + at, count, like)
            shown = reals(y + at if y else x + at, count, like)
            for k in range(i, count):
                g = zero if y and shown[k] <= zero else slope[k]
                slope[k] = g
                plain, weighted = plain + g, weighted + g * (given[k] * s - m)
            found[c], found[channels + c] = plain, weighted


def through_moments(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """dx = a dy + q (x s - m) + c, with the numbers s, m, a, q, c of the channel."""
    r = numbers(row)
    x, dy, dx = r[1], r[2], r[3]
    size, channels, count = r[4], r[5], r[6]
    about = reals(r[7], 5 * channels, like)
    for n in range(first, last):
        for c in range(channels):
            s, m, a = about[c], about[channels + c], about[2 * channels + c]
            q, shift, at = about[3 * channels + c], about[4 * channels + c], (n * channels + c) * count * size
            given, slope, out = (
                reals(x + at, count, like),
                reals(dy + at, count, like),
                reals(dx + at, count, like),
            )
            for i in range(count):
                out[i] = a * slope[i] + (q * (given[i] * s - m) + shift)
