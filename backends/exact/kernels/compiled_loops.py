"""The loops of exact numerics that Numba compiles (the extra `fast`), one for each pass of `compiled_passes.py`.

A loop does to each element what the exact namespace does to an array, in the same order. No multiplication is fused
with an addition: Numba does not fuse unless it is told to. The constants are those of `backends/exact/functions.py`
and `slices.py`. All loops are in this file, since Numba keeps machine code on disk and notices changes of one file
only. A table is made by `splitters`: for each exponent of float32, the constant that rounds numbers to a slice.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xnn.backends.exact.functions import (
    EXP_LIMIT,
    EXP_TAYLOR,
    FRACTION_MASK,
    INVERSE_LN2,
    LN2_HIGH,
    LN2_LOW,
    LOG_SERIES,
    ONE_BITS,
    ROUND,
    ROUND_BITS,
    SQRT_HALF_BITS,
    WHOLE,
    WHOLE_BITS,
)
from xnn.backends.exact.slices import FINEST, FLUSH, LARGEST
from xnn.backends.kernels.jit import inner, jit

__all__ = [
    "RELU", "SIGMOID", "TANH", "activation_gradient", "adam", "count_right", "cross_entropy", "cross_entropy_terms",
    "cut_columns", "cut_gradient", "finish", "largest_fields", "sgd", "slice_columns", "slice_gradient",
    "slice_rows", "slice_tensor", "weight_gradient", "widen",
]  # fmt: skip

RELU, SIGMOID, TANH = 1, 2, 3


@inner
def _to32(y: Any) -> Any:
    return np.float32((y + FLUSH) - FLUSH)


@inner
def _sum_splitter(y: Any, bits: Any) -> Any:
    """Compute slices.splitter, the rounding constant of a slice, for the exponent of one float64 number y."""
    field = (np.float64(y).view(np.int64) >> 52) & 0x7FF
    if field > LARGEST:
        return math.nan
    step: Any = max(field - (1022 + bits), FINEST)
    return np.int64(((step + 1075) << 52) | (1 << 51)).view(np.float64)


@inner
def _below(value: Any, top: Any) -> Any:
    """A logit minus the largest of its row. Infinity minus infinity is 0, as in the op."""
    return 0.0 if value == top else value - top


@inner
def _exp(x: Any) -> Any:
    """Compute e^x for one number, as `exp` of functions.py."""
    if x != x:
        return math.nan
    if x < -EXP_LIMIT:
        return 0.0
    if x > EXP_LIMIT:
        return math.inf
    shifted = x * INVERSE_LN2 + ROUND
    n = shifted - ROUND
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    y = r * EXP_TAYLOR[0] + EXP_TAYLOR[1]
    for c in EXP_TAYLOR[2:]:
        y = y * r + c
    return y * np.int64((np.float64(shifted).view(np.int64) - (ROUND_BITS - 1023)) << 52).view(np.float64)


@inner
def _expm1(x: Any) -> Any:
    """Compute e^x - 1 for one number x with |x| <= EXP_LIMIT, as `expm1` of functions.py."""
    shifted = x * INVERSE_LN2 + ROUND
    n = shifted - ROUND
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    y = r * EXP_TAYLOR[0] + EXP_TAYLOR[1]
    for c in EXP_TAYLOR[2:-1]:
        y = y * r + c
    scale = np.int64((np.float64(shifted).view(np.int64) - (ROUND_BITS - 1023)) << 52).view(np.float64)
    return r * y * scale + (scale - 1.0)


@inner
def _log(x: Any) -> Any:
    """Compute ln x for one positive normal number, or NaN, as `log` of functions.py."""
    if x != x:
        return math.nan
    moved = np.float64(x).view(np.int64) + (ONE_BITS - SQRT_HALF_BITS)
    k = np.int64((moved >> 52) | WHOLE_BITS).view(np.float64) - (WHOLE + 1023.0)
    m = np.int64((moved & FRACTION_MASK) + SQRT_HALF_BITS).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    y = square * LOG_SERIES[0] + LOG_SERIES[1]
    for c in LOG_SERIES[2:]:
        y = y * square + c
    y = (s + s) * y
    return k * LN2_HIGH + (y + k * LN2_LOW)


@inner
def _logistic(x: Any) -> Any:
    e = _exp(-abs(x))
    return (1.0 if x >= 0.0 else e) / (1.0 + e)


@inner
def _tanh(x: Any) -> Any:
    if x != x:
        return math.nan
    t = _expm1(min(abs(x), 32.0) * -2.0)
    y = t / (t + 2.0)
    return -y if x > 0.0 else y


@jit
def slice_tensor(w: Any, table: Any, one: Any, state: Any) -> None:
    largest = np.int32(0)
    words = w.view(np.int32)
    for i in range(w.size):
        largest = max(largest, words[i] & np.int32(0x7FFFFFFF))
    s = table[largest >> 23]
    for i in range(w.size):
        one[i] = (np.float64(w[i]) + s) - s
    state[0], state[1] = 0, largest >> 23


@jit
def slice_rows(x: Any, high: Any, low: Any, wide: Any) -> None:
    n, width = x.shape
    words = x.view(np.int32)
    for r in range(n):
        largest = np.int32(0)
        row, given, first, second = words[r], x[r], wide[r], wide[n + r]
        for c in range(width):
            largest = max(largest, row[c] & np.int32(0x7FFFFFFF))
        s, t = high[largest >> 23], low[largest >> 23]
        for c in range(width):
            y = np.float64(given[c])
            cut = (y + s) - s
            first[c] = cut
            second[c] = ((y - cut) + t) - t


@jit
def largest_fields(x: Any, fields: Any) -> None:
    """The exponent field of the largest number of each column."""
    words = x.view(np.int32)
    fields[:] = 0
    for r in range(x.shape[0]):
        row = words[r]
        for c in range(x.shape[1]):
            fields[c] = max(fields[c], row[c] & np.int32(0x7FFFFFFF))
    for c in range(x.shape[1]):
        fields[c] >>= 23


@jit
def cut_columns(x: Any, fields: Any, table: Any, one: Any) -> None:
    s = table[fields]
    for r in range(x.shape[0]):
        given, cut = x[r], one[r]
        for c in range(given.size):
            cut[c] = (np.float64(given[c]) + s[c]) - s[c]


@jit
def slice_columns(x: Any, table: Any, one: Any, fields: Any) -> None:
    largest_fields(x, fields)
    cut_columns(x, fields, table, one)


@jit
def widen(integers: Any, wide: Any) -> None:
    for r in range(wide.shape[0]):
        for c in range(wide.shape[1]):
            wide[r, c] = integers[r, c]


@jit
def finish(products: Any, scale: Any, b: Any, y: Any, activation: Any, kept: Any) -> None:
    n, width = y.shape
    two = products.shape[0] > n
    for r in range(n):
        z, out = products[r], y[r]
        if two:
            low = products[n + r]
            for c in range(width):
                out[c] = _to32((z[c] + low[c]) + b[c])
        else:
            for c in range(width):
                out[c] = _to32(z[c] * scale + b[c])
        if activation == RELU:
            for c in range(width):
                out[c] = np.float32(0.0) if out[c] <= 0.0 else out[c]
        elif activation != 0:
            full = kept[r]
            for c in range(width):
                x = np.float64(out[c])
                full[c] = _logistic(x) if activation == SIGMOID else _tanh(x)
                out[c] = _to32(full[c])


@jit
def activation_gradient(activation: Any, y: Any, kept: Any, dz: Any) -> None:
    for r in range(dz.shape[0]):
        g = dz[r]
        if activation == RELU:
            output = y[r]
            for c in range(g.size):
                g[c] = np.float32(0.0) if output[c] <= 0.0 else g[c]  # NaN lets it through
            continue
        full = kept[r]
        for c in range(g.size):
            slope = full[c] * (1.0 - full[c]) if activation == SIGMOID else 1.0 - full[c] * full[c]
            g[c] = _to32(np.float64(g[c]) * slope)


@jit
def weight_gradient(products: Any, scale: Any, dw: Any, rate: Any, table: Any, one: Any, state: Any) -> None:
    inputs, outputs = dw.shape
    two, update, follow = products.shape[1] > outputs, rate.size > 0, one.size > 0
    step, s = rate[0] if update else 0.0, table[state[1]]
    largest = np.int32(0)
    for r in range(inputs):
        high, low, out = products[r, :outputs], products[r, outputs:], dw[r]
        if two:
            for c in range(outputs):
                high[c] = high[c] + low[c]
        else:
            for c in range(outputs):
                high[c] = high[c] * scale
        if not update:
            for c in range(outputs):
                out[c] = _to32(high[c])
            continue
        for c in range(outputs):
            out[c] = _to32(np.float64(out[c]) - step * np.float64(_to32(high[c])))
        if follow:
            cut, words = one[r], out.view(np.int32)
            for c in range(outputs):
                cut[c] = (np.float64(out[c]) + s) - s
            for c in range(outputs):
                largest = max(largest, words[c] & np.int32(0x7FFFFFFF))
    state[0] = follow and (largest >> 23) == state[1]


@jit
def cut_gradient(x: Any, fields: Any, high: Any, low: Any, wide: Any, table: Any, total: Any) -> None:
    n, width = x.shape
    cut, two = wide.shape[0] > 0, wide.shape[1] > width
    s, t, u = high[fields], low[fields], table[fields]
    total[:] = 0.0
    for r in range(n):
        given = x[r]
        if cut:
            first, second = wide[r, :width], wide[r, width:]
            for c in range(width):
                first[c] = (np.float64(given[c]) + s[c]) - s[c]
            if two:
                for c in range(width):
                    second[c] = ((np.float64(given[c]) - first[c]) + t[c]) - t[c]
        for c in range(width):
            total[c] += (np.float64(given[c]) + u[c]) - u[c]


@jit
def slice_gradient(
    x: Any, high: Any, low: Any, wide: Any, table: Any, sums: Any, rate: Any, fields: Any, total: Any
) -> None:
    """Split a gradient into slices by columns. fields and total are scratch, one number for each column."""
    largest_fields(x, fields)
    cut_gradient(x, fields, high, low, wide, table, total)
    for c in range(sums.size):
        stored = _to32(total[c])
        sums[c] = _to32(np.float64(sums[c]) - rate[0] * np.float64(stored)) if rate.size else stored


@jit
def count_right(outputs: Any, labels: Any, count: Any) -> None:
    found = 0
    for r in range(outputs.shape[0]):
        row, best = outputs[r], 0
        for c in range(row.size):
            if row[c] > row[best] or (row[c] != row[c] and row[best] == row[best]):
                best = c
        found += best == labels[r]
    count[0] = found


@jit
def cross_entropy_terms(z: Any, labels: Any, g: Any, e: Any, each: Any, bits: Any, share: Any) -> None:
    n, classes = z.shape
    for r in range(n):
        top = np.float64(z[r, 0])
        for c in range(classes):
            value = np.float64(z[r, c])
            if value > top or value != value:
                top = value
            if top != top:
                break
        for c in range(classes):
            e[c] = _exp(_below(np.float64(z[r, c]), top))
        s = _sum_splitter(1.0, bits) if top > -math.inf else math.nan
        total = 0.0
        for c in range(classes):
            total += (e[c] + s) - s
        known = 0 <= labels[r] < classes  # a wrong label makes the loss and its row NaN, as in the op
        picked = _below(np.float64(z[r, labels[r]]), top) if known else math.nan
        total = total if known else math.nan
        t = _sum_splitter(picked, bits)
        each[r] = _log(total) - ((picked + t) - t)
        for c in range(classes):
            error = e[c] / total - (1.0 if c == labels[r] else 0.0)
            g[r, c] = _to32(error * share)


@jit
def cross_entropy(
    z: Any, labels: Any, loss: Any, g: Any, e: Any, each: Any, bits: Any, batch_bits: Any
) -> None:
    n = len(z)
    cross_entropy_terms(z, labels, g, e, each, bits, 1.0 / n)
    largest = np.int64(0)
    for r in range(n):
        largest = max(largest, (np.float64(each[r]).view(np.int64) >> 52) & 0x7FF)
    s = _sum_splitter(np.int64(largest << 52).view(np.float64), batch_bits)
    total = 0.0
    for r in range(n):
        total += (each[r] + s) - s
    loss[0] = _to32(total / n)


@jit
def sgd(w: Any, g: Any, v: Any, numbers: Any) -> None:
    rate, momentum, nesterov, decay = numbers[0], numbers[1], numbers[2], numbers[3]
    for i in range(w.size):
        direction = np.float64(g[i])
        if decay != 0.0:
            direction = direction + decay * np.float64(w[i])
        if momentum != 0.0:
            velocity = momentum * np.float64(v[i]) + direction
            v[i] = _to32(velocity)
            direction = direction + momentum * velocity if nesterov != 0.0 else velocity
        w[i] = _to32(np.float64(w[i]) - rate * direction)


@jit
def adam(w: Any, g: Any, m: Any, q: Any, numbers: Any) -> None:
    rate, beta1, beta2, power1, power2 = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    epsilon, decay = numbers[5], numbers[6]
    for i in range(w.size):
        gradient = np.float64(g[i])
        if decay != 0.0:
            gradient = gradient + decay * np.float64(w[i])
        mean = beta1 * np.float64(m[i]) + (1.0 - beta1) * gradient
        square = beta2 * np.float64(q[i]) + (1.0 - beta2) * (gradient * gradient)
        unbiased = mean / (1.0 - power1)
        scale = math.sqrt(square / (1.0 - power2)) + epsilon
        w[i] = _to32(np.float64(w[i]) - rate * (unbiased / scale))
        m[i], q[i] = _to32(mean), _to32(square)
