"""Sums of branches, and means of planes, as loops that Numba compiles. `image_loops.py` explains their arguments."""

from __future__ import annotations

from typing import Any

from xnn.backends.kernels.image_loops import integers, numbers, reals
from xnn.backends.kernels.normalization_loops import mean_of

__all__ = ["add", "copy", "mean", "mean_backward"]


def add(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """y = a + b + c + ..., added from left to right; of one array a copy."""
    r = numbers(row)
    begin, count = first * r[3] * r[4], (last - first) * r[3]
    y, terms = reals(r[1] + begin, count, like), integers(r[2], r[5])
    a = reals(terms[0] + begin, count, like)
    b = reals(terms[min(1, r[5] - 1)] + begin, count, like)
    if r[5] == 1:
        for i in range(count):
            y[i] = a[i]
    else:
        for i in range(count):
            y[i] = a[i] + b[i]
    for k in range(2, r[5]):
        c = reals(terms[k] + begin, count, like)
        for i in range(count):
            y[i] += c[i]


def copy(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """The gradient of a sum, for each of its terms that needs one."""
    r = numbers(row)
    begin, count = first * r[3] * r[4], (last - first) * r[3]
    given, targets = reals(r[1] + begin, count, like), integers(r[2], r[5])
    for k in range(r[5]):
        out = reals(targets[k] + begin, count, like)
        for i in range(count):
            out[i] = given[i]


def mean(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """The mean of each plane."""
    r = numbers(row)
    x, size = r[1], r[3]
    channels, count = r[4], r[5]
    y = reals(r[2] + first * channels * size, (last - first) * channels, like)
    for k in range(y.size):
        y[k] = mean_of(x + (first * channels + k) * count * size, count, size, like)


def mean_backward(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Each element of a plane gets an equal share of its mean's gradient."""
    r = numbers(row)
    dx, size = r[1], r[3]
    channels, count = r[4], r[5]
    dy, many = reals(r[2] + first * channels * size, (last - first) * channels, like), like * count
    for k in range(dy.size):
        share = dy[k] / many
        out = reals(dx + (first * channels + k) * count * size, count, like)
        for i in range(count):
            out[i] = share
