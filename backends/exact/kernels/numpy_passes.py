"""The passes of exact kernels in plain NumPy: the exact namespace's operations, over buffers.

Each function returns a pass: a function without arguments over the given buffers. Arrays as large as the weights are
handled in blocks that fit in a core's cache, since about ten operations go over each. Slices are numbers of few bits,
see `backends/exact/slices.py`. A `table`, `high` or `low` is made by `splitters`: for each exponent of float32, the
constant that rounds numbers to a slice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.exact.functions import EXP_LIMIT, exp_inside, log_inside
from xnn.backends.exact.kernels import numpy_images as images
from xnn.backends.exact.slices import FLUSH, exponent, splitter, sum_bits, to32
from xnn.backends.kernels.calls import Runnable, chain, nothing
from xnn.backends.kernels.numpy_kernels import count_right, void
from xnn.backends.kernels.update_kernels import update_stretch
from xnn.ops import updates
from xnn.ops.apply import backward_of, forward_of

__all__ = [
    "ACTIVATIONS", "activation_gradient", "adam", "count_right", "cross_entropy", "cut_columns", "cut_gradient",
    "finish", "images", "largest_fields", "prepare", "sgd", "slice_columns", "slice_gradient", "slice_rows",
    "slice_tensor", "weight_gradient", "widen",
]  # fmt: skip

#: The activations that `finish` can compute.
ACTIVATIONS = (ops.relu,)

_BLOCK = 16384  # numbers: 128 KiB of float64
_MAGNITUDE = np.int32(0x7FFFFFFF)


def _blocks(size: int) -> list[slice]:
    return [slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK)]


def _round(y: np.ndarray, out: np.ndarray) -> None:
    """Round to the numbers that are stored: out <- to32(y); y is overwritten."""
    np.add(y, FLUSH, out=y)
    np.subtract(y, FLUSH, out=y)
    np.copyto(out, y, casting="same_kind")


def _descend(gradient: np.ndarray, w: np.ndarray, rate: float, stored: np.ndarray, wide: np.ndarray) -> None:
    """Take a step: w <- to32(w - rate * to32(gradient)); `stored` (float32) and `wide` (float64) are scratch."""
    _round(gradient, stored)
    np.copyto(gradient, stored)
    _step(gradient, w, rate, wide)


def _step(gradient: np.ndarray, w: np.ndarray, rate: float, wide: np.ndarray) -> None:
    """w <- to32(w - rate * gradient). gradient: in float64, overwritten. wide: scratch in float64."""
    np.multiply(gradient, rate, out=gradient)
    np.copyto(wide, w)
    np.subtract(wide, gradient, out=wide)
    _round(wide, w)


def slice_tensor(w: np.ndarray, table: np.ndarray, one: np.ndarray, state: np.ndarray) -> Runnable:
    """Round a tensor to one slice, on the scale of its largest element: one <- the slice of w.

    `state` stays 0, because the updates of this file do not slice.
    """
    words, magnitude = w.reshape(-1).view(np.int32), np.empty(_BLOCK, np.int32)
    blocks = _blocks(w.size)
    flat, out = [w.reshape(-1)[b] for b in blocks], [one.reshape(-1)[b] for b in blocks]
    parts = [(words[b], magnitude[: b.stop - b.start]) for b in blocks]

    def run() -> None:
        largest = 0
        for part, scratch in parts:
            np.bitwise_and(part, _MAGNITUDE, out=scratch)
            largest = max(largest, int(np.maximum.reduce(scratch)))
        s = table[largest >> 23]
        for x, y in zip(flat, out, strict=True):
            np.copyto(y, x)
            np.add(y, s, out=y)
            np.subtract(y, s, out=y)

    return run


def slice_rows(x: np.ndarray, high: np.ndarray, low: np.ndarray, wide: np.ndarray) -> Runnable:
    """Split each row of x, (n, width), into two slices, on a scale of its own.

    wide: (2n, width), gets the first slices of all rows, and below them the second ones. high, low: the tables.
    """
    n = len(x)
    return _two(x, 1, high, low, wide[:n], wide[n:])


def slice_columns(x: np.ndarray, table: np.ndarray, one: np.ndarray) -> Runnable:
    """Round each column to one slice, on the scale of its largest element: one <- the slices."""
    return _two(x, 0, table, None, one, one)


def largest_fields(x: np.ndarray, fields: np.ndarray) -> Runnable:
    """fields <- the exponent field of the largest number of each column, the index of its constant in a table."""
    return _largest(x, 0, fields.reshape(1, -1))


def cut_columns(x: np.ndarray, fields: np.ndarray, table: np.ndarray, one: np.ndarray) -> Runnable:
    """As `slice_columns`, on the scale that `fields` say."""
    return _cut(x, fields.reshape(1, -1), table, None, one, one)


def cut_gradient(
    dz: np.ndarray, fields: np.ndarray, high: Any, low: Any, wide: Any, table: np.ndarray, totals: Any
) -> Runnable:
    """As `slice_gradient`, on the scale that `fields` say: totals <- the sums, not rounded; None if not needed."""
    width, largest, cut = dz.shape[1], fields.reshape(1, -1), np.empty(dz.shape)
    slices = _cut(dz, largest, high, low, wide[:, :width], wide[:, width:]) if wide.size else nothing
    if totals is None:
        return slices
    return chain(
        slices, _cut(dz, largest, table, None, cut, cut), lambda: void(np.add.reduce(cut, axis=0, out=totals))
    )


def slice_gradient(
    dz: np.ndarray, high: Any, low: Any, wide: Any, table: np.ndarray, db: np.ndarray | None, rate: Any
) -> Runnable:
    """Split a gradient into slices, each column on its own scale, and sum the columns.

    dz: the gradient, shape (rows, columns).
    high, low: the tables for the first and the second slices.
    wide: receives the slices. It has the shape of dz for first slices only, and twice as many columns for both, with
        the second slices on the right. If it is empty, no slices are computed.
    table: the table for the sums.
    db: receives the sums of the columns; None if they are not needed.
    rate: None, or the learning rate. With a rate, db is the bias b, and becomes b - rate * sums.
    """
    fields, total = np.empty(dz.shape[1], np.int32), np.empty(dz.shape[1])
    look = largest_fields(dz, fields)
    if db is None:
        return chain(look, cut_gradient(dz, fields, high, low, wide, table, None))
    old, stored = np.empty(dz.shape[1]), np.empty_like(db)

    def finish() -> None:
        if rate is None:
            _round(total, db)
        else:
            _descend(total, db, rate.value[0], stored, old)

    return chain(look, cut_gradient(dz, fields, high, low, wide, table, total), finish)


def _largest(x: np.ndarray, axis: int, out: np.ndarray) -> Runnable:
    """out <- the largest exponent field over `axis`, which stays with extent 1."""
    words, magnitude = x.view(np.int32), np.empty(x.shape, np.int32)

    def run() -> None:
        np.bitwise_and(words, _MAGNITUDE, out=magnitude)
        np.maximum.reduce(magnitude, axis=axis, keepdims=True, out=out, initial=0)
        np.right_shift(out, 23, out=out)

    return run


def _cut(
    x: np.ndarray,
    largest: np.ndarray,
    high: np.ndarray,
    low: np.ndarray | None,
    first: np.ndarray,
    second: np.ndarray,
) -> Runnable:
    """Split x into two slices, on the scale that the fields `largest` say: first, second <- the slices.

    If low is None, there is only the first slice.
    """
    rest = np.empty(x.shape)

    def run() -> None:
        np.copyto(rest, x)
        s = high.take(largest)
        np.add(rest, s, out=first)
        np.subtract(first, s, out=first)
        if low is not None:
            t = low.take(largest)
            np.subtract(rest, first, out=rest)
            np.add(rest, t, out=rest)
            np.subtract(rest, t, out=second)

    return run


def _two(
    x: np.ndarray, axis: int, high: np.ndarray, low: np.ndarray | None, first: np.ndarray, second: np.ndarray
) -> Runnable:
    """`_cut` on the scale of the largest element over `axis`."""
    largest = np.empty(tuple(1 if a == axis else extent for a, extent in enumerate(x.shape)), np.int32)
    return chain(_largest(x, axis, largest), _cut(x, largest, high, low, first, second))


def widen(integers: np.ndarray, wide: np.ndarray) -> Runnable:
    """Convert integers to float64: wide <- the integers."""
    return lambda: np.copyto(wide, integers)


def finish(
    products: np.ndarray, scale: float, b: np.ndarray | None, y: np.ndarray, activation: Any, kept: Any
) -> Runnable:
    """Add the bias and apply the activation: y <- f(products + b), rounded to float32; f is relu or none.

    products: of 2n rows, the products of the first slices and of the second ones, which are added; or of n rows, the
        products of integers, which are multiplied by `scale`.
    kept: not used here, see `compiled_passes.finish`.
    """
    n = len(y)
    z, rest = products[:n], products[n:]
    zeros = np.zeros(y.shape[1:], y.dtype)

    def run() -> None:
        if len(rest):
            np.add(z, rest, out=z)
        else:
            np.multiply(z, scale, out=z)
        if b is not None:
            np.add(z, b, out=z)
        _round(z, y)
        if activation is not None:
            np.maximum(y, zeros, out=y)

    return run


def activation_gradient(activation: Any, y: np.ndarray, kept: Any, dz: np.ndarray) -> Runnable:
    """Compute the gradient of relu: dz <- 0 where y <= 0, else dz."""
    off, zero = np.empty(y.shape, bool), y.dtype.type(0)

    def run() -> None:
        np.less_equal(y, zero, out=off)
        np.copyto(dz, zero, where=off)

    return run


def weight_gradient(
    products: np.ndarray, scale: float, dw: np.ndarray, rate: Any, table: Any, one: Any, state: np.ndarray
) -> Runnable:
    """dw <- the gradient of W in float32: the sum of two products of slices, or a product of integers times `scale`.

    rate: None, or the learning rate; dw is then W, and becomes W - rate * gradient.
    table, one, state: not used here, see `compiled_passes.weight_gradient`.
    """
    inputs, outputs = dw.shape
    two = products.shape[1] > outputs
    rows = max(1, _BLOCK // max(1, outputs))
    blocks = [slice(start, min(start + rows, inputs)) for start in range(0, inputs, rows)]
    g, scratch, stored = (np.empty((rows, outputs), kind) for kind in (float, float, np.float32))
    parts = [
        (
            products[b, :outputs],
            products[b, outputs:],
            dw[b],
            *(a[: b.stop - b.start] for a in (g, scratch, stored)),
        )
        for b in blocks
    ]

    def run() -> None:
        for left, right, out, total, wide, gradient in parts:
            if two:
                np.add(left, right, out=total)
            else:
                np.multiply(left, scale, out=total)
            if rate is None:
                _round(total, out)
            else:
                _descend(total, out, rate.value[0], gradient, wide)

    return run


def cross_entropy(exact: Any, z: np.ndarray, labels: np.ndarray, loss: np.ndarray, g: np.ndarray) -> Runnable:
    """Compute softmax_cross_entropy in `loss`, and its gradient in `g`.

    The op computes them where logits are very far apart or NaN. Labels must lie in 0 .. classes - 1; the trainer
    has checked them.
    """
    lib, op = exact.lib, ops.softmax_cross_entropy
    n, classes = z.shape
    bits, batch_bits = sum_bits(classes), sum_bits(n)
    s = splitter(lib, exponent(lib, np.ones(1)), bits)  # the largest e^(z - max z) is 1
    wide, flat, rows = np.empty(z.shape), np.empty(n, np.int64), np.arange(0, n * classes, classes)
    share = 1.0 / n

    def run() -> None:
        np.copyto(wide, z)
        shifted = wide - np.maximum.reduce(wide, axis=1, keepdims=True)
        if not np.minimum.reduce(shifted, axis=None) >= -EXP_LIMIT:  # also if it is NaN
            value, saved = forward_of(op, exact, (z, labels), {})
            loss[()] = value
            g[...] = backward_of(op, exact, np.ones((), np.float32), saved)[0]
            return
        np.add(rows, labels, out=flat)
        e = exp_inside(lib, shifted)
        total = np.add.reduce((e + s) - s, axis=1)
        picked = shifted.take(flat)
        t = splitter(lib, (picked.view(np.int64) >> 52) & 0x7FF, bits)
        each = log_inside(lib, total) - ((picked + t) - t)
        t = splitter(lib, exponent(lib, each, 0), batch_bits)
        loss[()] = to32(lib, np.add.reduce((each + t) - t) / float(n))
        np.divide(e, total[:, None], out=e)
        e.reshape(-1)[flat] -= 1.0
        np.multiply(e, share, out=e)
        _round(e, g)

    return run


def sgd(exact: Any, group: Any, w: np.ndarray, g: np.ndarray, *velocity: np.ndarray) -> Runnable:
    """One step of SGD, in place: of w, and with momentum of its velocity. The formula is that of `updates.sgd`."""
    if not group.plain:
        return update_stretch(exact, updates.sgd, group, (w, g, *velocity))
    gradient, wide = np.empty((2, min(w.size, _BLOCK)))
    parts = [(w[b], g[b], gradient[: b.stop - b.start], wide[: b.stop - b.start]) for b in _blocks(w.size)]

    def run() -> None:
        rate = group.options["learning_rate"]
        for own, slope, scratch, other in parts:
            np.copyto(scratch, slope)
            _step(scratch, own, rate, other)

    return run


def adam(
    exact: Any, group: Any, w: np.ndarray, g: np.ndarray, mean: np.ndarray, square: np.ndarray
) -> Runnable:
    """Update w, mean and square by updates.adam, in place."""
    return update_stretch(exact, updates.adam, group, (w, g, mean, square))


def prepare(exact: Any) -> None:
    """Do nothing: NumPy's passes need no compiling."""
