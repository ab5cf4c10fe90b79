"""The passes of exact kernels as compiled loops.

Each function returns a pass: a function without arguments over the given buffers. The passes have the names and
arguments of those in `numpy_passes.py`, where slices and tables are explained. Importing this file imports Numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.exact.kernels import compiled_images, numpy_images
from xnn.backends.exact.kernels import compiled_loops as loops
from xnn.backends.exact.slices import sum_bits
from xnn.backends.kernels.blas import blas_routine
from xnn.backends.kernels.calls import Runnable
from xnn.backends.kernels.jit import load
from xnn.errors import BackendUnavailableError
from xnn.ops.apply import apply_rule, backward_of, forward_of

__all__ = [
    "ACTIVATIONS", "activation_gradient", "adam", "count_right", "cross_entropy", "cross_entropy_terms",
    "cut_columns", "cut_gradient", "finish", "has_the_ops_bits", "images", "largest_fields", "prepare", "sgd",
    "slice_columns", "slice_gradient", "slice_rows", "slice_tensor", "weight_gradient", "widen",
]  # fmt: skip

#: The activations that `finish` can compute; in the loops their numbers start at 1, and 0 is none.
ACTIVATIONS = (ops.relu, ops.sigmoid, ops.tanh)
#: What is done with windows; compiled code needs a BLAS that it can call by its address.
images: Any = numpy_images if blas_routine("float64") is None else compiled_images
_NONE, _NONE32 = np.zeros((0, 0)), np.zeros(0, np.float32)


def _number(activation: Any) -> int:
    return 0 if activation is None else 1 + ACTIVATIONS.index(activation)


def slice_tensor(w: np.ndarray, table: np.ndarray, one: np.ndarray, state: np.ndarray) -> Runnable:
    """Round a tensor to one slice, on the scale of its largest element: one <- the slice of w.

    state[1] becomes the exponent field of the largest element.
    """
    flat, out = w.reshape(-1), one.reshape(-1)
    return lambda: loops.slice_tensor(flat, table, out, state)


def slice_rows(x: np.ndarray, high: np.ndarray, low: np.ndarray, wide: np.ndarray) -> Runnable:
    """Split each row of x, (n, width), into two slices, on a scale of its own.

    wide: (2n, width), gets the first slices of all rows, and below them the second ones. high, low: the tables.
    """
    return lambda: loops.slice_rows(x, high, low, wide)


def slice_columns(x: np.ndarray, table: np.ndarray, one: np.ndarray) -> Runnable:
    """Round each column to one slice, on the scale of its largest element: one <- the slices."""
    fields = np.empty(x.shape[1], np.int32)
    return lambda: loops.slice_columns(x, table, one, fields)


def largest_fields(x: np.ndarray, fields: np.ndarray) -> Runnable:
    """fields <- the exponent field of the largest number of each column, the index of its constant in a table."""
    load(lambda: loops.largest_fields(x[:0], fields), loops.finish)
    return lambda: loops.largest_fields(x, fields)


def cut_columns(x: np.ndarray, fields: np.ndarray, table: np.ndarray, one: np.ndarray) -> Runnable:
    """As `slice_columns`, on the scale that `fields` say."""
    load(lambda: loops.cut_columns(x[:0], fields, table, one), loops.finish)
    return lambda: loops.cut_columns(x, fields, table, one)


def cut_gradient(
    dz: np.ndarray, fields: np.ndarray, high: Any, low: Any, wide: Any, table: np.ndarray, totals: Any
) -> Runnable:
    """As `slice_gradient`, on the scale that `fields` say: totals <- the sums, not rounded; None if not needed."""
    second, sums = high if low is None else low, np.empty(dz.shape[1]) if totals is None else totals
    load(lambda: loops.cut_gradient(dz[:0], fields, high, second, wide, table, sums), loops.finish)
    return lambda: loops.cut_gradient(dz, fields, high, second, wide, table, sums)


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
    step, sums = np.zeros(0) if rate is None else rate.value, _NONE32 if db is None else db
    second = high if low is None else low
    fields, total = np.empty(dz.shape[1], np.int32), np.empty(dz.shape[1])
    return lambda: loops.slice_gradient(dz, high, second, wide, table, sums, step, fields, total)


def widen(integers: np.ndarray, wide: np.ndarray) -> Runnable:
    """Convert integers to float64: wide <- the integers."""
    return lambda: loops.widen(integers, wide)


def finish(
    products: np.ndarray, scale: float, b: np.ndarray | None, y: np.ndarray, activation: Any, kept: Any
) -> Runnable:
    """Add the bias and apply the activation: y <- f(products + b), rounded to float32; f may be none.

    products: of 2n rows, the products of the first slices and of the second ones, which are added; or of n rows, the
        products of integers, which are multiplied by `scale`.
    kept: None, or the array that f's values are stored in as float64, for the gradient.
    """
    number, bias = _number(activation), np.zeros(y.shape[1], np.float32) if b is None else b
    wide = _NONE if kept is None else kept
    return lambda: loops.finish(products, scale, bias, y, number, wide)


def activation_gradient(activation: Any, y: np.ndarray, kept: np.ndarray | None, dz: np.ndarray) -> Runnable:
    """Compute an activation's gradient: dz <- dz * f'(z), from its output y or the values that `finish` kept."""
    number, wide = _number(activation), _NONE if kept is None else kept
    return lambda: loops.activation_gradient(number, y, wide, dz)


def weight_gradient(
    products: np.ndarray, scale: float, dw: np.ndarray, rate: Any, table: Any, one: Any, state: np.ndarray
) -> Runnable:
    """dw <- the gradient of W in float32: the sum of two products of slices, or a product of integers times `scale`.

    rate: None, or the learning rate. dw is then W, and becomes W - rate * gradient; `one` becomes the slice of the
        new W for the next step, on the scale of the old W; state[0] becomes 1 if the new W has the same scale.
    """
    step = np.zeros(0) if rate is None else rate.value
    cut = _NONE if rate is None else one
    return lambda: loops.weight_gradient(products, scale, dw, step, table, cut, state)


def count_right(outputs: np.ndarray, labels: np.ndarray, count: np.ndarray) -> Runnable:
    """Count the rows whose largest output is that of the label: the first of equal ones; NaN is the largest."""
    flat = count.reshape(1)
    return lambda: loops.count_right(outputs, labels, flat)


def cross_entropy(exact: Any, z: np.ndarray, labels: np.ndarray, loss: np.ndarray, g: np.ndarray) -> Runnable:
    """Compute softmax_cross_entropy in `loss`, and its gradient in `g`."""
    n, classes = z.shape
    flat, e, each = loss.reshape(1), np.empty(classes), np.empty(n)
    bits, batch_bits = sum_bits(classes), sum_bits(n)
    return lambda: loops.cross_entropy(z, labels, flat, g, e, each, bits, batch_bits)


def cross_entropy_terms(
    z: np.ndarray, labels: np.ndarray, each: np.ndarray, g: np.ndarray, share: float
) -> Runnable:
    """Compute the terms of softmax_cross_entropy, float64, and its gradient, where a term's share is `share`."""
    e, bits = np.empty(z.shape[1]), sum_bits(z.shape[1])
    load(lambda: loops.cross_entropy_terms(z[:0], labels, g, e, each, bits, share), loops.finish)
    return lambda: loops.cross_entropy_terms(z, labels, g, e, each, bits, share)


def sgd(exact: Any, group: Any, w: np.ndarray, g: np.ndarray, *velocity: np.ndarray) -> Runnable:
    """One step of SGD, in place: of w, and with momentum of its velocity. The formula is that of `updates.sgd`."""
    v = velocity[0] if velocity else _NONE32
    return lambda: loops.sgd(w, g, v, group.numbers)


def adam(
    exact: Any, group: Any, w: np.ndarray, g: np.ndarray, mean: np.ndarray, square: np.ndarray
) -> Runnable:
    """Update w, mean and square by updates.adam, in place."""
    return lambda: loops.adam(w, g, mean, square, group.numbers)


def prepare(exact: Any) -> None:
    """Compile all loops, or load them from Numba's cache, before the first step; damaged cache files are replaced.

    Then the loops are compared with the ops on a few numbers. If they differ, because the cached code is older than
    the functions' constants, all are compiled again. Raises BackendUnavailableError if they still differ.
    """
    x, labels = np.zeros((1, 1), np.float32), np.zeros(1, np.int64)
    one, two, table = np.zeros((1, 1)), np.zeros((2, 2)), np.zeros(256)
    state = np.zeros(2, np.int64)

    def call() -> None:
        for run in (
            slice_tensor(x, table, one, state),
            slice_rows(x, table, table, two),
            slice_columns(x, table, one),
            slice_gradient(x, table, None, two, table, x[0], None),
            widen(np.zeros((1, 1), np.uint8), one),
            finish(two, 1.0, None, x, None, None),
            activation_gradient(ops.relu, x, None, x),
            weight_gradient(two, 1.0, x, None, table, one, state),
            count_right(x, labels, x[0, :1]),
            cross_entropy(exact, x, labels, x[0, :1], x),
        ):
            run()
        loops.sgd(x[0], x[0], _NONE32, np.zeros(4))
        loops.adam(x[0], x[0], x[0], x[0], np.ones(7))

    load(call, loops.finish)
    if not has_the_ops_bits(exact):
        for function in vars(loops).values():  # in the file's order: a function comes after those it calls
            if isinstance(function, type(loops.finish)) and function.py_func.__module__ == loops.__name__:
                function.recompile()
        if not has_the_ops_bits(exact):
            raise BackendUnavailableError(
                "compiled kernels: on this machine their bits differ from those of the ops, as they would by "
                "fused multiply-adds: use kernels='numpy'"
            )


def has_the_ops_bits(exact: Any) -> bool:
    """Whether sigmoid, tanh, the loss and two updates give the ops' bits on a few numbers.

    One of the numbers would come out differently by a fused multiply-add.
    """
    x = np.linspace(-9.0, 9.0, 36, dtype=np.float32).reshape(9, 4)
    found: list[Any] = []
    right: list[Any] = []
    with np.errstate(all="ignore"):
        for op in (ops.sigmoid, ops.tanh):
            y, kept = np.empty_like(x), np.empty(x.shape)
            finish(x.astype(float), 1.0, None, y, op, kept)()
            found += [y, kept]
            right += forward_of(op, exact, (x,), {})
        loss, g, labels = np.empty((), np.float32), np.empty_like(x), np.arange(9) % 4
        cross_entropy(exact, x, labels, loss, g)()
        value, saved = forward_of(ops.softmax_cross_entropy, exact, (x, labels), {})
        found += [loss, g]
        right += [value, backward_of(ops.softmax_cross_entropy, exact, np.ones((), np.float32), saved)[0]]
        w = [np.abs(x).ravel() for _ in range(4)]
        options = {
            "learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "beta1_power": 0.9, "beta2_power": 0.99,
            "epsilon": 1e-8, "weight_decay": 0.01,
        }  # fmt: skip
        loops.adam(*w, np.asarray(tuple(options.values())))
        found += [w[0], w[2], w[3]]
        right += apply_rule(ops.updates.adam, exact, [np.abs(x).ravel() for _ in range(4)], options)
        # Rounded twice, w - rate g is -2^-30; rounded once, by a fused multiply-add, it is -2^-30 - 2^-53.
        w = [np.full(9, 1.0 + 2.0**-23, np.float32) for _ in range(2)]
        loops.sgd(*w, _NONE32, np.asarray([1.0 + 2.0**-30, 0.0, 0.0, 0.0]))
        found.append(w[0])
        right.append(np.full(9, -(2.0**-30), np.float32))
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(found, right, strict=True))
