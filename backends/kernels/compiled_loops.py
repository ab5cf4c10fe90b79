"""Loops that Numba compiles (the extra `fast`), and `run`, which executes a table of rows by them.

`compiled_kernels.py` makes the rows: an operation code, then addresses of buffers, sizes and flags. `run` calls
NumPy's own BLAS by its address, and does the work between two products in one pass over the data. It is compiled once
for float32 and once for float64, not for each model, and Numba keeps the machine code on disk. In each loop, r is the
row and `reals` is scratch.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

import numpy as np
from numba import carray

from xnn.backends.kernels.intrinsics import exp_parts, gemm32, gemm64, pointer, prefetch
from xnn.backends.kernels.jit import jit
from xnn.ops.sums import PIECE, SHORT

__all__ = ["LANES", "WIDTH", "Code", "run"]

WIDTH = 16  #: numbers in a row of the table


class Code(IntEnum):
    """The operation codes of `run`, in column 0 of each row; each function names the row's other columns."""

    GEMM, ACTIVATE, GRADIENT, FOLD_BIAS, COPY, GATHER, TAKE = range(7)
    CROSS_ENTROPY, COUNT_RIGHT, DROPOUT, SGD, ADAM, SQUARES, ADD = range(7, 14)


# Plain integers, for the compiled functions.
GEMM, ACTIVATE, GRADIENT, FOLD_BIAS, COPY, GATHER, TAKE = range(7)
CROSS_ENTROPY, COUNT_RIGHT, DROPOUT, SGD, ADAM, SQUARES, ADD = range(7, 14)
LINEAR, RELU, SIGMOID, TANH = range(4)
LANES = 32  #: how many sums `_squares` adds up side by side


@jit
def _gemm(r: Any, reals: Any) -> None:
    """Multiply matrices: C <- alpha A B + beta C. alpha is 1, or minus the learning rate, read from an address."""
    routine, wide, flag_a, flag_b, m, n, k = r[1], r[2], r[3], r[4], r[5], r[6], r[7]
    a, lead_a, b, lead_b, c, rate = r[8], r[9], r[10], r[11], r[12], r[13]
    reals[0] = 1.0 if rate == 0 else -carray(pointer(rate, np.float64(0)), 1)[0]
    reals[1] = 1.0 if r[14] else 0.0
    if wide:
        gemm64(routine, flag_a, flag_b, m, n, k, reals[0], a, lead_a, b, lead_b, reals[1], c, n)
    else:
        gemm32(routine, flag_a, flag_b, m, n, k, reals[0], a, lead_a, b, lead_b, reals[1], c, n)


@jit
def _activate(r: Any, reals: Any) -> None:
    """Activate in place: y <- f(y + b), f being linear, relu, sigmoid or tanh; there is no b if its address is 0."""
    kind, n, m, zero, one = r[1], r[4], r[5], reals[8], reals[9]
    y = carray(pointer(r[2], reals[0]), (n, m))
    if r[3]:
        b = carray(pointer(r[3], reals[0]), m)
        if kind == RELU:
            for i in range(n):
                for j in range(m):
                    z = y[i, j] + b[j]
                    y[i, j] = zero if z < zero else z  # NaN gives NaN
            return
        for i in range(n):
            for j in range(m):
                y[i, j] += b[j]
    flat, two = carray(pointer(r[2], reals[0]), n * m), one + one
    if kind == RELU:
        for i in range(n * m):
            flat[i] = zero if flat[i] < zero else flat[i]
    elif kind == SIGMOID:
        for i in range(n * m):
            power, rest = exp_parts(-abs(flat[i]))
            e = power + power * rest
            flat[i] = (one if flat[i] >= zero else e) / (one + e)
    elif kind == TANH:  # |tanh z| = (1 - e^-2|z|) / (1 + e^-2|z|), with d = e^-2|z| - 1
        for i in range(n * m):
            power, rest = exp_parts(-two * abs(flat[i]))
            d = (power - one) + power * rest
            flat[i] = math.copysign(d / (two + d), flat[i])


@jit
def _gradient(r: Any, reals: Any) -> None:
    """Go back through f in place: dz <- dy f'(z), from y = f(z); db <- the sum of dz's rows unless its address is 0.

    Of more than SHORT rows, those of each piece are added first.
    """
    kind, n, m, zero, one = r[1], r[5], r[6], reals[8], reals[9]
    dy, y = carray(pointer(r[2], reals[0]), (n, m)), carray(pointer(r[3], reals[0]), (n, m))
    db, piece = carray(pointer(r[4], reals[0]), m), carray(pointer(r[7], reals[0]), m)
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


@jit
def _fold_bias(r: Any, reals: Any) -> None:
    """Update a bias: b <- b - learning rate * db."""
    b, db = carray(pointer(r[1], reals[0]), r[3]), carray(pointer(r[2], reals[0]), r[3])
    reals[0] = carray(pointer(r[4], np.float64(0)), 1)[0]
    for j in range(r[3]):
        b[j] -= reals[0] * db[j]


@jit
def _copy(r: Any, reals: Any) -> None:
    target, source = carray(pointer(r[1], reals[0]), r[3]), carray(pointer(r[2], reals[0]), r[3])
    for i in range(r[3]):
        target[i] = source[i]


@jit
def _fetch(address: Any, size: Any) -> None:
    """Fetch the beginning of the next row into the cache. The processor does so while the row before is copied."""
    for k in range(0, min(size, 1024) - 63, 64):
        prefetch(address + k)


@jit
def _gather(r: Any, reals: Any) -> None:
    """Copy rows of pixels, which are bytes, as numbers: byte * scale + offset."""
    n, m, numbers = r[4], r[5], carray(pointer(r[6], np.float64(0)), 2)
    rows, target = carray(pointer(r[2], np.int64(0)), n), carray(pointer(r[3], reals[0]), (n, m))
    pixels = carray(pointer(r[1], np.uint8(0)), (r[7], m))
    reals[0], reals[1] = numbers[0], numbers[1]
    scale, offset = reals[0], reals[1]
    for i in range(n):
        row = rows[i]
        if i + 1 < n:
            _fetch(r[1] + rows[i + 1] * m, m)
        for j in range(m):
            target[i, j] = pixels[row, j] * scale + offset


@jit
def _take(r: Any, reals: Any) -> None:
    """Copy rows of numbers of 4 or 8 bytes (int64 labels, float64) unchanged, as words of 4 bytes."""
    n, words, stride, rows = r[4], r[5] * r[6] // 4, r[8] // 4, pointer(r[2], np.int64(0))
    source, target = pointer(r[1], np.int32(0)), pointer(r[3], np.int32(0))
    for i in range(n):
        row = rows[i]
        if i + 1 < n:
            _fetch(r[1] + rows[i + 1] * r[8], words * 4)
        for j in range(words):
            target[i * words + j] = source[row * stride + j]


@jit
def _cross_entropy(r: Any, reals: Any) -> None:
    """Compute the mean softmax cross-entropy of logits and labels, and its gradient; wrong labels give NaN."""
    n, m = r[5], r[6]
    z, labels = carray(pointer(r[1], reals[0]), (n, m)), carray(pointer(r[2], np.int64(0)), n)
    loss, g = carray(pointer(r[3], reals[0]), 1), carray(pointer(r[4], reals[0]), (n, m))
    flat, mean = carray(pointer(r[4], reals[0]), n * m), np.float64(0)
    share, columns = reals[9] / reals.dtype.type(n), m if m <= SHORT else PIECE
    for i in range(n):
        top = z[i, 0]
        for j in range(1, m):
            if not z[i, j] <= top:  # NaN counts as the largest, as in NumPy's max
                top = z[i, j]
        for j in range(m):
            g[i, j] = z[i, j] - top
        if top == np.inf:  # its difference from itself is 0
            for j in range(m):
                g[i, j] = reals[8] if z[i, j] == top else -top
        mean -= g[i, labels[i]] if 0 <= labels[i] < m else np.nan
    for i in range(n * m):
        power, rest = exp_parts(flat[i])
        flat[i] = power + power * rest
    for i in range(n):
        label, whole = labels[i], np.float64(0)
        for start in range(0, m, columns):
            part = reals[8]
            for j in range(start, min(start + columns, m)):
                part += g[i, j]
            whole += part
        if label < 0 or label >= m:
            label, whole = 0, np.float64(np.nan)
        total = reals.dtype.type(whole)
        mean += np.log(total)
        scale = share / total
        for j in range(m):
            g[i, j] *= scale
        g[i, label] -= share
    loss[0] = mean / n


@jit
def _count_right(r: Any, reals: Any) -> None:
    """Count the rows whose largest output (the first of several equal ones) is at the label."""
    n, m, count = r[4], r[5], 0
    outputs, labels = carray(pointer(r[1], reals[0]), (n, m)), carray(pointer(r[2], np.int64(0)), n)
    for i in range(n):
        best = 0
        for j in range(1, m):
            x, y = outputs[i, j], outputs[i, best]
            if x > y or (np.isnan(x) and not np.isnan(y)):
                best = j
        count += best == labels[i]
    carray(pointer(r[3], reals[0]), 1)[0] = count


@jit
def _dropout(r: Any, reals: Any) -> None:
    """Apply dropout: y <- x * scale where the mask is true, else 0."""
    x, y = carray(pointer(r[1], reals[0]), r[4]), carray(pointer(r[2], reals[0]), r[4])
    keep = carray(pointer(r[3], np.uint8(0)), r[4])
    reals[0] = carray(pointer(r[5], np.float64(0)), 1)[0]
    scale = reals[0]
    for i in range(r[4]):
        y[i] = x[i] * scale if keep[i] else reals[8]


@jit
def _sgd(r: Any, reals: Any) -> None:
    """Do ops.updates.sgd in one pass. `numbers` are its options, in the order of its signature."""
    n, numbers = r[4], carray(pointer(r[5], np.float64(0)), 4)
    w, g = carray(pointer(r[1], reals[0]), n), carray(pointer(r[2], reals[0]), n)
    reals[0], reals[1], reals[2], reals[3] = numbers[0], numbers[1], numbers[2], numbers[3]
    rate, momentum, nesterov, decay = reals[0], reals[1], reals[2], reals[3]
    if r[3] == 0:
        for i in range(n):
            w[i] -= rate * (g[i] + decay * w[i])
        return
    v = carray(pointer(r[3], reals[0]), n)
    ahead = reals[9] - nesterov + nesterov * momentum  # an `if` in the loop would not vectorize
    for i in range(n):
        d = g[i] + decay * w[i]
        v[i] = momentum * v[i] + d
        w[i] -= rate * (nesterov * d + ahead * v[i])


@jit
def _adam(r: Any, reals: Any) -> None:
    """Do ops.updates.adam in one pass. `numbers` are its options, in the order of its signature."""
    n = r[5]
    w, g = carray(pointer(r[1], reals[0]), n), carray(pointer(r[2], reals[0]), n)
    mean, square = carray(pointer(r[3], reals[0]), n), carray(pointer(r[4], reals[0]), n)
    numbers = carray(pointer(r[6], np.float64(0)), 7)
    rate, beta1, beta2 = numbers[0], numbers[1], numbers[2]
    reals[0], reals[1], reals[2], reals[3] = beta1, beta2, 1.0 - beta1, 1.0 - beta2
    # One division and one root for each weight: the bias corrections are computed once, before the loop.
    reals[4], reals[5] = rate / (1.0 - numbers[3]), 1.0 / np.sqrt(1.0 - numbers[4])
    reals[6], reals[7] = numbers[5], numbers[6]
    b1, b2, c1, c2 = reals[0], reals[1], reals[2], reals[3]
    step, unbias, epsilon, decay = reals[4], reals[5], reals[6], reals[7]
    for i in range(n):
        d = g[i] + decay * w[i]
        mean[i] = b1 * mean[i] + c1 * d
        square[i] = b2 * square[i] + c2 * (d * d)
        w[i] -= step * mean[i] / (np.sqrt(square[i]) * unbias + epsilon)


@jit
def _squares(r: Any, reals: Any) -> None:
    """Add half the strength times the sum of an array's squares to y; the first array of a penalty sets y.

    LANES sums are added up side by side, so that the compiler can use SIMD instructions.
    """
    y, a = carray(pointer(r[1], reals[0]), 1), carray(pointer(r[2], reals[0]), r[3])
    reals[0] = carray(pointer(r[4], np.float64(0)), 1)[0]
    half, lanes = reals[0] / (reals[9] + reals[9]), carray(pointer(r[6], reals[0]), LANES)
    lanes[:] = reals[8]
    whole = r[3] - r[3] % LANES
    for start in range(0, whole, LANES):
        for j in range(LANES):
            lanes[j] += a[start + j] * a[start + j]
    total = reals[8]
    for j in range(LANES):
        total += lanes[j]
    for i in range(whole, r[3]):
        total += a[i] * a[i]
    y[0] = total * half if r[5] else y[0] + total * half


@jit
def _add(r: Any, reals: Any) -> None:
    """Add two arrays: y <- a + c b, without a if its address is 0. c is a number, or the product of two.

    The numbers are read from addresses; that of the second is 0 if there is only one.
    """
    n, y, b = r[4], carray(pointer(r[1], reals[0]), r[4]), carray(pointer(r[3], reals[0]), r[4])
    reals[0] = carray(pointer(r[5], np.float64(0)), 1)[0]
    c = reals[0] * carray(pointer(r[6], reals[0]), 1)[0] if r[6] else reals[0]
    if r[2] == 0:
        for i in range(n):
            y[i] = c * b[i]
        return
    a = carray(pointer(r[2], reals[0]), n)
    for i in range(n):
        y[i] = a[i] + c * b[i]


@jit
def _run_once(table: Any, reals: Any) -> None:
    for i in range(table.shape[0]):
        r = table[i]
        code = r[0]
        if code == GEMM:
            _gemm(r, reals)
        elif code == ACTIVATE:
            _activate(r, reals)
        elif code == GRADIENT:
            _gradient(r, reals)
        elif code == FOLD_BIAS:
            _fold_bias(r, reals)
        elif code == COPY:
            _copy(r, reals)
        elif code == GATHER:
            _gather(r, reals)
        elif code == TAKE:
            _take(r, reals)
        elif code == CROSS_ENTROPY:
            _cross_entropy(r, reals)
        elif code == COUNT_RIGHT:
            _count_right(r, reals)
        elif code == DROPOUT:
            _dropout(r, reals)
        elif code == SGD:
            _sgd(r, reals)
        elif code == ADAM:
            _adam(r, reals)
        elif code == SQUARES:
            _squares(r, reals)
        elif code == ADD:
            _add(r, reals)


@jit
def run(table: Any, moves: Any, steps: int, reals: Any) -> None:
    """Execute the rows of a table, int64 (rows, WIDTH), in order, and do that `steps` times.

    moves: int64 (n, 3): row and column of an address, and how many bytes are added to it after each step. In this way
        each step reads row numbers of its own, for example. At the end the addresses are as before.
    reals: ten numbers of the program's dtype: eight of scratch, 0 and 1. A literal 0.0 would widen float32 loops.
    """
    for _ in range(steps):
        _run_once(table, reals)
        for n in range(moves.shape[0]):
            table[moves[n, 0], moves[n, 1]] += moves[n, 2]
    for n in range(moves.shape[0]):
        table[moves[n, 0], moves[n, 1]] -= steps * moves[n, 2]
