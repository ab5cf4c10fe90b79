"""Loops of dense networks, which Numba compiles (the extra `fast`).

Each does a range of the work that its row tells (`row_runner.py`). `image_loops.py` explains the loops' arguments, of
which these loops use `row`, `first` and `last`. `rows.py` and the files with rows write the rows. `gemm` calls BLAS,
that of NumPy, by its address, and the work between two products is done in one pass over the data. A loop is compiled
once for float32 and once for float64, not for each model, and Numba keeps the machine code on disk.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from xnn.backends.kernels.blas import TRANSPOSED
from xnn.backends.kernels.image_loops import numbers, option, part_of
from xnn.backends.kernels.intrinsics import exp_low, exp_parts, gemm32, gemm64, pointer
from xnn.ops.sums import PIECE, SHORT

__all__ = [
    "LANES", "LINEAR", "RELU", "SIGMOID", "TANH", "activate", "add", "copy", "dropout", "fold_bias", "gemm",
    "gradient", "squares",
]  # fmt: skip

LINEAR, RELU, SIGMOID, TANH = range(4)
LANES = 32  #: how many sums `squares` adds up side by side


def gemm(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Multiply matrices: rows first .. last - 1 of C <- alpha A B + beta C, or columns if r[14].

    With an address at r[13], alpha is minus the learning rate that stands there, and beta 1; else they are 1 and 0.
    """
    r = numbers(row)
    routine, wide, flag_a = r[1], r[2], r[3]
    flag_b, m = r[4], r[5]
    n, k = r[6], r[7]
    a, lead_a, b = r[8], r[9], r[10]
    lead_b, c, lead_c = r[11], r[12], n
    rate, begin = r[13], first * r[15]
    if r[14]:
        n, b, c = last - first, b + (begin * lead_b if flag_b == TRANSPOSED else begin), c + begin
    else:
        m, a, c = last - first, a + (begin if flag_a == TRANSPOSED else begin * lead_a), c + begin * lead_c
    alpha, beta = like if rate == 0 else -option(rate, 0, like), like - like if rate == 0 else like
    if wide:
        gemm64(routine, flag_a, flag_b, m, n, k, alpha, a, lead_a, b, lead_b, beta, c, lead_c)
    else:
        gemm32(routine, flag_a, flag_b, m, n, k, alpha, a, lead_a, b, lead_b, beta, c, lead_c)


def activate(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Activate rows in place: y <- f(y + b), f being linear, relu, sigmoid or tanh; no b if its address is 0."""
    r = numbers(row)
    kind, m = r[1], r[4]
    zero, one = like - like, like
    flat, two = part_of(r[2], first * m, last * m, like), one + one
    if r[3]:
        y, b = (
            carray(pointer(r[2] + first * m * r[5], like), (last - first, m)),
            carray(pointer(r[3], like), m),
        )
        if kind == RELU:
            for i in range(last - first):
                for j in range(m):
                    z = y[i, j] + b[j]
                    y[i, j] = zero if z < zero else z  # NaN gives NaN
            return
        for i in range(last - first):
            for j in range(m):
                y[i, j] += b[j]
    if kind == RELU:
        for i in range(flat.size):
            flat[i] = zero if flat[i] < zero else flat[i]
    elif kind == SIGMOID:
        for i in range(flat.size):
            e = exp_low(-abs(flat[i]))
            flat[i] = (one if flat[i] >= zero else e) / (one + e)
    elif kind == TANH:  # |tanh z| = (1 - e^-2|z|) / (1 + e^-2|z|), with d = e^-2|z| - 1
        for i in range(flat.size):
            power, rest = exp_parts(-two * abs(flat[i]))
            d = (power - one) + power * rest
            flat[i] = math.copysign(d / (two + d), flat[i])


def gradient(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Go back through f in place, in columns first .. last - 1: dz <- dy f'(z), from y = f(z).

    db <- the sum of dz's rows, unless its address is 0. Of more than SHORT rows, those of each piece are added first.
    """
    r = numbers(row)
    kind, n, m = r[1], r[5], r[6]
    zero, one, count = like - like, like, last - first
    db, piece = part_of(r[4], first, last, like), part_of(r[7], first, last, like)
    rows = n if n <= SHORT else PIECE
    if r[4]:
        db[:] = 0
    for start in range(0, n, max(rows, 1)):
        if r[4]:
            piece[:] = 0
        for i in range(start, min(start + rows, n)):
            dy, y = (
                part_of(r[2], i * m + first, i * m + last, like),
                part_of(r[3], i * m + first, i * m + last, like),
            )
            if kind == RELU and r[4]:
                for j in range(count):
                    g = zero if y[j] <= zero else dy[j]  # NaN lets it through
                    dy[j] = g
                    piece[j] += g
                continue
            if kind == RELU:
                for j in range(count):
                    dy[j] = zero if y[j] <= zero else dy[j]
            elif kind == SIGMOID:
                for j in range(count):
                    dy[j] *= y[j] * (one - y[j])
            elif kind == TANH:
                for j in range(count):
                    dy[j] *= one - y[j] * y[j]
            if r[4]:
                for j in range(count):
                    piece[j] += dy[j]
        if r[4]:
            for j in range(count):
                db[j] += piece[j]


def fold_bias(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Update a bias: b <- b - learning rate * db."""
    r = numbers(row)
    b, db = carray(pointer(r[1], like), r[3]), carray(pointer(r[2], like), r[3])
    rate = option(r[4], 0, like)
    for j in range(r[3]):
        b[j] -= rate * db[j]


def copy(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Copy an array: r[1] <- r[2]."""
    r = numbers(row)
    target, source = part_of(r[1], first, last, like), part_of(r[2], first, last, like)
    for i in range(target.size):
        target[i] = source[i]


def dropout(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Apply dropout: y <- x * scale where the mask is true, else 0."""
    r = numbers(row)
    x, y = part_of(r[1], first, last, like), part_of(r[2], first, last, like)
    keep, zero, scale = part_of(r[3], first, last, np.uint8(0)), like - like, option(r[4], 0, like)
    for i in range(y.size):
        y[i] = x[i] * scale if keep[i] else zero


def squares(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Add half the strength times the sum of an array's squares to y; the first array of a penalty sets y.

    LANES sums are added up side by side, so that the compiler can use SIMD instructions.
    """
    r = numbers(row)
    y, a = carray(pointer(r[1], like), 1), carray(pointer(r[2], like), r[3])
    zero, half, lanes = like - like, option(r[4], 0, like) / (like + like), carray(pointer(r[6], like), LANES)
    lanes[:] = zero
    whole = r[3] - r[3] % LANES
    for start in range(0, whole, LANES):
        for j in range(LANES):
            lanes[j] += a[start + j] * a[start + j]
    total = zero
    for j in range(LANES):
        total += lanes[j]
    for i in range(whole, r[3]):
        total += a[i] * a[i]
    y[0] = total * half if r[5] else y[0] + total * half


def add(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Add two arrays: y <- a + c b, without a if its address is 0. c is a number, or the product of two.

    The numbers are read from addresses; that of the second is 0 if there is only one.
    """
    r = numbers(row)
    y, b, strength = part_of(r[1], first, last, like), part_of(r[3], first, last, like), option(r[4], 0, like)
    c = strength * carray(pointer(r[5], like), 1)[0] if r[5] else strength
    if r[2] == 0:
        for i in range(y.size):
            y[i] = c * b[i]
        return
    a = part_of(r[2], first, last, like)
    for i in range(y.size):
        y[i] = a[i] + c * b[i]
