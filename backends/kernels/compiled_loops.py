"""Loops of dense networks, which Numba compiles (the extra `fast`), and `run`, which executes a table of rows.

A row has the address of a loop's machine code, then addresses of buffers, sizes and flags; `image_loops.py` explains
the loops' arguments, of which these loops use the row alone. `rows.py` and the files with rows write them. `gemm`
calls NumPy's own BLAS by its address, and the work between two products is done in one pass over the data. A loop is
compiled once for float32 and once for float64, not for each model, and Numba keeps the machine code on disk.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from xnn.backends.kernels.image_loops import numbers, option
from xnn.backends.kernels.intrinsics import exp_low, exp_parts, gemm32, gemm64, pointer
from xnn.backends.kernels.jit import jit
from xnn.backends.kernels.micro_kernels import call_loop
from xnn.ops.sums import PIECE, SHORT

__all__ = [
    "LANES", "LINEAR", "RELU", "SIGMOID", "TANH", "WIDTH", "activate", "add", "copy", "dropout", "fold_bias", "gemm",
    "gradient", "run", "squares",
]  # fmt: skip

WIDTH = 16  #: numbers in a row of the table; the last one is the loop's argument `last`
LINEAR, RELU, SIGMOID, TANH = range(4)
LANES = 32  #: how many sums `squares` adds up side by side


def gemm(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Multiply matrices: C <- alpha A B + beta C. alpha is 1, or minus the learning rate, read from an address."""
    r = numbers(row, WIDTH)
    routine, wide, flag_a, flag_b, m, n, k = r[1], r[2], r[3], r[4], r[5], r[6], r[7]
    a, lead_a, b, lead_b, c, rate = r[8], r[9], r[10], r[11], r[12], r[13]
    alpha, beta = like if rate == 0 else -option(rate, 0, like), like if r[14] else like - like
    if wide:
        gemm64(routine, flag_a, flag_b, m, n, k, alpha, a, lead_a, b, lead_b, beta, c, n)
    else:
        gemm32(routine, flag_a, flag_b, m, n, k, alpha, a, lead_a, b, lead_b, beta, c, n)


def activate(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Activate in place: y <- f(y + b), f being linear, relu, sigmoid or tanh; there is no b if its address is 0."""
    r = numbers(row, WIDTH)
    kind, n, m, zero, one = r[1], r[4], r[5], like - like, like
    y = carray(pointer(r[2], like), (n, m))
    if r[3]:
        b = carray(pointer(r[3], like), m)
        if kind == RELU:
            for i in range(n):
                for j in range(m):
                    z = y[i, j] + b[j]
                    y[i, j] = zero if z < zero else z  # NaN gives NaN
            return
        for i in range(n):
            for j in range(m):
                y[i, j] += b[j]
    flat, two = carray(pointer(r[2], like), n * m), one + one
    if kind == RELU:
        for i in range(n * m):
            flat[i] = zero if flat[i] < zero else flat[i]
    elif kind == SIGMOID:
        for i in range(n * m):
            e = exp_low(-abs(flat[i]))
            flat[i] = (one if flat[i] >= zero else e) / (one + e)
    elif kind == TANH:  # |tanh z| = (1 - e^-2|z|) / (1 + e^-2|z|), with d = e^-2|z| - 1
        for i in range(n * m):
            power, rest = exp_parts(-two * abs(flat[i]))
            d = (power - one) + power * rest
            flat[i] = math.copysign(d / (two + d), flat[i])


def gradient(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Go back through f in place: dz <- dy f'(z), from y = f(z); db <- the sum of dz's rows unless its address is 0.

    Of more than SHORT rows, those of each piece are added first.
    """
    r = numbers(row, WIDTH)
    kind, n, m, zero, one = r[1], r[5], r[6], like - like, like
    dy, y = carray(pointer(r[2], like), (n, m)), carray(pointer(r[3], like), (n, m))
    db, piece = carray(pointer(r[4], like), m), carray(pointer(r[7], like), m)
    rows = n if n <= SHORT else PIECE
    if r[4]:
        db[:] = 0
    for start in range(0, n, max(rows, 1)):
        if r[4]:
            piece[:] = 0
        for i in range(start, min(start + rows, n)):
            if kind == RELU and r[4]:
                for j in range(m):
                    g = zero if y[i, j] <= zero else dy[i, j]  # NaN lets it through
                    dy[i, j] = g
                    piece[j] += g
                continue
            if kind == RELU:
                for j in range(m):
                    dy[i, j] = zero if y[i, j] <= zero else dy[i, j]
            elif kind == SIGMOID:
                for j in range(m):
                    dy[i, j] *= y[i, j] * (one - y[i, j])
            elif kind == TANH:
                for j in range(m):
                    dy[i, j] *= one - y[i, j] * y[i, j]
            if r[4]:
                for j in range(m):
                    piece[j] += dy[i, j]
        if r[4]:
            for j in range(m):
                db[j] += piece[j]


def fold_bias(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Update a bias: b <- b - learning rate * db."""
    r = numbers(row, WIDTH)
    b, db = carray(pointer(r[1], like), r[3]), carray(pointer(r[2], like), r[3])
    rate = option(r[4], 0, like)
    for j in range(r[3]):
        b[j] -= rate * db[j]


def copy(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Copy an array: r[1] <- r[2]."""
    r = numbers(row, WIDTH)
    target, source = carray(pointer(r[1], like), r[3]), carray(pointer(r[2], like), r[3])
    for i in range(r[3]):
        target[i] = source[i]


def dropout(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Apply dropout: y <- x * scale where the mask is true, else 0."""
    r = numbers(row, WIDTH)
    x, y = carray(pointer(r[1], like), r[4]), carray(pointer(r[2], like), r[4])
    keep = carray(pointer(r[3], np.uint8(0)), r[4])
    zero, scale = like - like, option(r[5], 0, like)
    for i in range(r[4]):
        y[i] = x[i] * scale if keep[i] else zero


def squares(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Add half the strength times the sum of an array's squares to y; the first array of a penalty sets y.

    LANES sums are added up side by side, so that the compiler can use SIMD instructions.
    """
    r = numbers(row, WIDTH)
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
    r = numbers(row, WIDTH)
    n, y, b = r[4], carray(pointer(r[1], like), r[4]), carray(pointer(r[3], like), r[4])
    strength = option(r[5], 0, like)
    c = strength * carray(pointer(r[6], like), 1)[0] if r[6] else strength
    if r[2] == 0:
        for i in range(n):
            y[i] = c * b[i]
        return
    a = carray(pointer(r[2], like), n)
    for i in range(n):
        y[i] = a[i] + c * b[i]


@jit
def run(table: Any, moves: Any, steps: int, like: Any) -> None:
    """Execute the rows of a table, int64 (rows, WIDTH), in order, and do that `steps` times.

    moves: int64 (n, 3): row and column of an address, and how many bytes are added to it after each step. In this way
        each step reads row numbers of its own, for example. At the end the addresses are as before.
    like: the number 1 of the program's dtype. A literal 1.0 would widen float32 loops.
    """
    for _ in range(steps):
        for i in range(table.shape[0]):
            row = table.ctypes.data + 8 * WIDTH * i
            call_loop(table[i, 0], row, 0, table[i, WIDTH - 1], 1, 0, 0, like)
        for n in range(moves.shape[0]):
            table[moves[n, 0], moves[n, 1]] += moves[n, 2]
    for n in range(moves.shape[0]):
        table[moves[n, 0], moves[n, 1]] -= steps * moves[n, 2]
