"""Loops that Numba compiles (the extra `fast`), and `run`, which executes a table of rows by them.

`compiled_kernels.py` makes the rows: an operation code, then addresses of buffers, sizes and flags. `run` calls
NumPy's own BLAS by its address, and does the work between two products in one pass over the data. It is compiled once
for float32 and once for float64, not for each model, and Numba keeps the machine code on disk. All compiled code is
in this file, since Numba's cache notices changes of one file only. In each loop, r is the row and `reals` is scratch.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic, overload

from xnn.backends.kernels.jit import jit
from xnn.ops.sums import PIECE, SHORT

__all__ = ["WIDTH", "Code", "run"]

WIDTH = 16  #: numbers in a row of the table


class Code(IntEnum):
    """The operation codes of `run`, in column 0 of each row; each function names the row's other columns."""

    GEMM, ACTIVATE, GRADIENT, FOLD_BIAS, COPY, GATHER, TAKE = range(7)
    CROSS_ENTROPY, COUNT_RIGHT, DROPOUT, SGD, ADAM = range(7, 12)


GEMM, ACTIVATE, GRADIENT, FOLD_BIAS, COPY, GATHER, TAKE = range(
    7
)  # plain integers, for the compiled functions
CROSS_ENTROPY, COUNT_RIGHT, DROPOUT, SGD, ADAM = range(7, 12)
LINEAR, RELU, SIGMOID, TANH = range(4)


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(context: Any, address: Any, like: Any) -> Any:
    """Convert an address to a pointer to numbers of the type of `like`."""
    kind = types.CPointer(like)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(address, like), generate


def _gemm_with(bits: int) -> Any:
    """Make the call of cblas_sgemm or cblas_dgemm at an address, for a BLAS whose integers have `bits` bits."""

    @intrinsic  # type: ignore[untyped-decorator]
    def call(
        context: Any, address: Any, flag_a: Any, flag_b: Any, m: Any, n: Any, k: Any, alpha: Any, a: Any, lead_a: Any,
        b: Any, lead_b: Any, beta: Any, c: Any, lead_c: Any,
    ) -> Any:  # fmt: skip
        given = (address, flag_a, flag_b, m, n, k, alpha, a, lead_a, b, lead_b, beta, c, lead_c)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            flag, size, pointer = ir.IntType(32), ir.IntType(bits), ir.IntType(8).as_pointer()
            real = context.get_value_type(alpha)
            matrix = (pointer, size)
            wanted = (*[flag] * 3, *[size] * 3, real, *matrix, *matrix, real, *matrix)
            function = builder.inttoptr(arguments[0], ir.FunctionType(ir.VoidType(), wanted).as_pointer())
            passed = [ir.Constant(flag, 101)]  # row-major
            for value, kind in zip(arguments[1:], wanted[1:], strict=True):
                if isinstance(kind, ir.PointerType):
                    value = builder.inttoptr(value, kind)
                elif isinstance(kind, ir.IntType) and kind.width < value.type.width:
                    value = builder.trunc(value, kind)
                passed.append(value)
            builder.call(function, passed)
            return context.get_dummy_value()

        return types.void(*given), generate

    return call


_gemm64, _gemm32 = _gemm_with(64), _gemm_with(32)


@jit
def _gemm(r: Any, reals: Any) -> None:
    """Multiply matrices: C <- alpha A B + beta C. alpha is 1, or minus the learning rate, read from an address."""
    routine, wide, flag_a, flag_b, m, n, k = r[1], r[2], r[3], r[4], r[5], r[6], r[7]
    a, lead_a, b, lead_b, c, rate = r[8], r[9], r[10], r[11], r[12], r[13]
    reals[0] = 1.0 if rate == 0 else -carray(_pointer(rate, np.float64(0)), 1)[0]
    reals[1] = 1.0 if r[14] else 0.0
    if wide:
        _gemm64(routine, flag_a, flag_b, m, n, k, reals[0], a, lead_a, b, lead_b, reals[1], c, n)
    else:
        _gemm32(routine, flag_a, flag_b, m, n, k, reals[0], a, lead_a, b, lead_b, reals[1], c, n)


#: For each type: NumPy's type, bits of the fraction, bias of the exponent, and degree of the polynomial for e^r.
_FORMATS = {types.float32: (np.float32, 23, 127, 7), types.float64: (np.float64, 52, 1023, 13)}


@intrinsic  # type: ignore[untyped-decorator]
def _power_of_two(context: Any, shifted: Any) -> Any:
    """Return 2^n for a number whose lowest bits are n: n + bias is moved to the bits of the exponent."""
    real, fraction, bias, _ = _FORMATS[shifted]
    word = ir.IntType(8 * np.dtype(real).itemsize)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        biased = builder.add(builder.bitcast(arguments[0], word), word(bias))
        return builder.bitcast(builder.shl(biased, word(fraction)), arguments[0].type)

    return shifted(shifted), generate


def _exp_parts(x: Any) -> Any:
    """Return (2^n, e^r - 1) for x = n ln 2 + r <= 0. Then e^x = 2^n + 2^n (e^r - 1), to 1.1 units in the last
    place, and e^x - 1 = (2^n - 1) + 2^n (e^r - 1) is accurate near 0. NaN gives NaN; e^x below 2^-126.5 (float64:
    2^-1022.5) is 0. This plain arithmetic vectorizes; a call of exp for each number does not. Source: Cody and
    Waite, Software Manual for the Elementary Functions, 1980.
    """


@overload(_exp_parts, jit_options={"forceinline": True, "fastmath": {"contract"}})  # type: ignore[untyped-decorator]
def _exp_parts_of(x: Any) -> Any:
    """`_exp_parts` for the type of x. The constants have that type, so float32 is not widened to float64."""
    real, fraction, bias, degree = _FORMATS[x]
    # ln 2 = 355/512 + ln2_low; n * 355/512 is exact.
    per_ln2, ln2_high, ln2_low = real(1 / math.log(2)), real(355 / 512), real(-2.1219444005469058277e-4)
    to_whole = real(1.5 * 2.0**fraction)  # adding it rounds to a whole number n, whose bits come last
    lowest = real(-bias * math.log(2))  # there n = -bias: the exponent's bits are 0, and so is the number
    # Taylor's series e^r - 1 = r + r^2 (1/2! + r/3! + ...). The omitted terms are below 2^-27, and 2^-57 in float64.
    terms = tuple(real(1 / math.factorial(k)) for k in range(degree, 1, -1))

    def parts(x: Any) -> Any:
        x = lowest if x < lowest else x
        shifted = x * per_ln2 + to_whole
        n = shifted - to_whole
        r = (x - n * ln2_high) - n * ln2_low
        series = terms[0]
        for term in terms[1:]:
            series = series * r + term
        return _power_of_two(shifted), r + r * r * series

    return parts


@jit
def _activate(r: Any, reals: Any) -> None:
    """Activate in place: y <- f(y + b), f being linear, relu, sigmoid or tanh; there is no b if its address is 0."""
    kind, n, m, zero, one = r[1], r[4], r[5], reals[8], reals[9]
    y = carray(_pointer(r[2], reals[0]), (n, m))
    if r[3]:
        b = carray(_pointer(r[3], reals[0]), m)
        if kind == RELU:
            for i in range(n):
                for j in range(m):
                    z = y[i, j] + b[j]
                    y[i, j] = zero if z < zero else z  # NaN gives NaN
            return
        for i in range(n):
            for j in range(m):
                y[i, j] += b[j]
    flat, two = carray(_pointer(r[2], reals[0]), n * m), one + one
    if kind == RELU:
        for i in range(n * m):
            flat[i] = zero if flat[i] < zero else flat[i]
    elif kind == SIGMOID:
        for i in range(n * m):
            power, rest = _exp_parts(-abs(flat[i]))
            e = power + power * rest
            flat[i] = (one if flat[i] >= zero else e) / (one + e)
    elif kind == TANH:  # |tanh z| = (1 - e^-2|z|) / (1 + e^-2|z|), with d = e^-2|z| - 1
        for i in range(n * m):
            power, rest = _exp_parts(-two * abs(flat[i]))
            d = (power - one) + power * rest
            flat[i] = math.copysign(d / (two + d), flat[i])


@jit
def _gradient(r: Any, reals: Any) -> None:
    """Go back through f in place: dz <- dy f'(z), from y = f(z); db <- the sum of dz's rows unless its address is 0.

    Of more than SHORT rows, those of each piece are added first.
    """
    kind, n, m, zero, one = r[1], r[5], r[6], reals[8], reals[9]
    dy, y = carray(_pointer(r[2], reals[0]), (n, m)), carray(_pointer(r[3], reals[0]), (n, m))
    db, piece = carray(_pointer(r[4], reals[0]), m), carray(_pointer(r[7], reals[0]), m)
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
    b, db = carray(_pointer(r[1], reals[0]), r[3]), carray(_pointer(r[2], reals[0]), r[3])
    reals[0] = carray(_pointer(r[4], np.float64(0)), 1)[0]
    for j in range(r[3]):
        b[j] -= reals[0] * db[j]


@jit
def _copy(r: Any, reals: Any) -> None:
    target, source = carray(_pointer(r[1], reals[0]), r[3]), carray(_pointer(r[2], reals[0]), r[3])
    for i in range(r[3]):
        target[i] = source[i]


@jit
def _gather(r: Any, reals: Any) -> None:
    """Copy rows of pixels, which are bytes, as numbers: byte * scale + offset."""
    n, m, numbers = r[4], r[5], carray(_pointer(r[6], np.float64(0)), 2)
    rows, target = carray(_pointer(r[2], np.int64(0)), n), carray(_pointer(r[3], reals[0]), (n, m))
    pixels = carray(_pointer(r[1], np.uint8(0)), (r[7], m))
    reals[0], reals[1] = numbers[0], numbers[1]
    scale, offset = reals[0], reals[1]
    for i in range(n):
        row = rows[i]
        for j in range(m):
            target[i, j] = pixels[row, j] * scale + offset


@jit
def _take(r: Any, reals: Any) -> None:
    """Copy rows of numbers of 4 or 8 bytes (int64 labels, float64) unchanged, as words of 4 bytes."""
    n, words, rows = r[4], r[5] * r[6] // 4, _pointer(r[2], np.int64(0))
    source, target = _pointer(r[1], np.int32(0)), _pointer(r[3], np.int32(0))
    for i in range(n):
        row = rows[i]
        for j in range(words):
            target[i * words + j] = source[row * words + j]


@jit
def _cross_entropy(r: Any, reals: Any) -> None:
    """Compute the mean softmax cross-entropy of logits and labels, and its gradient; wrong labels give NaN."""
    n, m = r[5], r[6]
    z, labels = carray(_pointer(r[1], reals[0]), (n, m)), carray(_pointer(r[2], np.int64(0)), n)
    loss, g = carray(_pointer(r[3], reals[0]), 1), carray(_pointer(r[4], reals[0]), (n, m))
    flat, mean = carray(_pointer(r[4], reals[0]), n * m), np.float64(0)
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
        power, rest = _exp_parts(flat[i])
        flat[i] = power + power * rest
    for i in range(n):
        label, whole = labels[i], np.float64(0)
        for start in range(0, m, columns):
            part = reals[8]
            for j in range(start, min(start + columns, m)):
                part += g[i, j]
            whole += part
        if label < 0 or label >= m:
            label, whole = 0, np.nan
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
    outputs, labels = carray(_pointer(r[1], reals[0]), (n, m)), carray(_pointer(r[2], np.int64(0)), n)
    for i in range(n):
        best = 0
        for j in range(1, m):
            x, y = outputs[i, j], outputs[i, best]
            if x > y or (np.isnan(x) and not np.isnan(y)):
                best = j
        count += best == labels[i]
    carray(_pointer(r[3], reals[0]), 1)[0] = count


@jit
def _dropout(r: Any, reals: Any) -> None:
    """Apply dropout: y <- x * scale where the mask is true, else 0."""
    x, y = carray(_pointer(r[1], reals[0]), r[4]), carray(_pointer(r[2], reals[0]), r[4])
    keep = carray(_pointer(r[3], np.uint8(0)), r[4])
    reals[0] = carray(_pointer(r[5], np.float64(0)), 1)[0]
    scale = reals[0]
    for i in range(r[4]):
        y[i] = x[i] * scale if keep[i] else reals[8]


@jit
def _sgd(r: Any, reals: Any) -> None:
    """Do ops.updates.sgd in one pass. `numbers` are its options, in the order of its signature."""
    n, numbers = r[4], carray(_pointer(r[5], np.float64(0)), 4)
    w, g = carray(_pointer(r[1], reals[0]), n), carray(_pointer(r[2], reals[0]), n)
    reals[0], reals[1], reals[2], reals[3] = numbers[0], numbers[1], numbers[2], numbers[3]
    rate, momentum, nesterov, decay = reals[0], reals[1], reals[2], reals[3]
    if r[3] == 0:
        for i in range(n):
            w[i] -= rate * (g[i] + decay * w[i])
        return
    v = carray(_pointer(r[3], reals[0]), n)
    ahead = reals[9] - nesterov + nesterov * momentum  # an `if` in the loop would not vectorize
    for i in range(n):
        d = g[i] + decay * w[i]
        v[i] = momentum * v[i] + d
        w[i] -= rate * (nesterov * d + ahead * v[i])


@jit
def _adam(r: Any, reals: Any) -> None:
    """Do ops.updates.adam in one pass. `numbers` are its options, in the order of its signature."""
    n = r[5]
    w, g = carray(_pointer(r[1], reals[0]), n), carray(_pointer(r[2], reals[0]), n)
    mean, square = carray(_pointer(r[3], reals[0]), n), carray(_pointer(r[4], reals[0]), n)
    numbers = carray(_pointer(r[6], np.float64(0)), 7)
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
def run(table: Any, reals: Any) -> None:
    """Execute the rows of a table, int64 (rows, WIDTH), in order.

    reals: ten numbers of the program's dtype: eight of scratch, 0 and 1. A literal 0.0 would widen float32 loops.
    """
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
