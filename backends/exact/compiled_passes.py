"""The passes of exact kernels by compiled loops: each gives a function without arguments over its buffers.

Importing this file imports Numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.calls import Runnable
from xnn.backends.exact import compiled_loops as loops
from xnn.backends.exact.slices import sum_bits
from xnn.backends.jit import load
from xnn.errors import BackendUnavailableError

__all__ = [
    "ACTIVATIONS", "activation_gradient", "adam", "column_sums", "cross_entropy", "finish", "prepare", "sgd",
    "slice_columns", "slice_rows", "slice_tensor", "weight_gradient", "widen",
]  # fmt: skip

#: Activations that `finish` computes; their numbers in the loops count from 1.
ACTIVATIONS = (ops.relu, ops.sigmoid, ops.tanh)
_NONE, _NONE32 = np.zeros((0, 0)), np.zeros(0, np.float32)


def _number(activation: Any) -> int:
    return 0 if activation is None else 1 + ACTIVATIONS.index(activation)


def slice_tensor(w: np.ndarray, table: np.ndarray, one: np.ndarray) -> Runnable:
    """one <- w's slice, on the scale of its largest element."""
    flat, out = w.reshape(-1), one.reshape(-1)
    return lambda: loops.slice_tensor(flat, table, out)


def slice_rows(x: np.ndarray, high: np.ndarray, low: np.ndarray, wide: np.ndarray) -> Runnable:
    """wide (2n, width) <- each row's first slice, then each row's second one."""
    return lambda: loops.slice_rows(x, high, low, wide)


def slice_columns(x: np.ndarray, high: np.ndarray, low: np.ndarray | None, wide: np.ndarray) -> Runnable:
    """wide <- each column's first slice and, if it is twice as wide, the second ones beside them."""
    largest, s, t = np.empty(x.shape[1], np.int32), np.empty(x.shape[1]), np.empty(x.shape[1])
    second = high if low is None else low
    return lambda: loops.slice_columns(x, high, second, wide, largest, s, t)


def widen(integers: np.ndarray, wide: np.ndarray) -> Runnable:
    """wide <- integers as float64."""
    return lambda: loops.widen(integers, wide)


def finish(
    products: np.ndarray, scale: float, b: np.ndarray | None, y: np.ndarray, activation: Any, kept: Any
) -> Runnable:
    """y <- f(P_high + P_low + b) where products has 2n rows, f(P scale + b) where it has n; kept: f in float64."""
    number, bias = _number(activation), _NONE32 if b is None else b
    wide = _NONE if kept is None else kept
    return lambda: loops.finish(products, scale, bias, y, number, wide)


def activation_gradient(activation: Any, y: np.ndarray, kept: np.ndarray | None, dz: np.ndarray) -> Runnable:
    """dz <- dz f'(z), from the output y, or from f in float64 where it was kept."""
    number, wide = _number(activation), _NONE if kept is None else kept
    return lambda: loops.activation_gradient(number, y, wide, dz)


def weight_gradient(products: np.ndarray, scale: float, dw: np.ndarray, rate: Any) -> Runnable:
    """dw <- the products' sum, or their multiple, as stored; with a rate, dw is W and becomes W - rate * gradient."""
    step = np.zeros(0) if rate is None else rate.value
    return lambda: loops.weight_gradient(products, scale, dw, step)


def column_sums(x: np.ndarray, table: np.ndarray, sums: np.ndarray, rate: Any) -> Runnable:
    """sums <- the columns' sums by slices; with a rate, sums is b and becomes b - rate * gradient."""
    step = np.zeros(0) if rate is None else rate.value
    largest, s, total = np.empty(x.shape[1], np.int32), np.empty(x.shape[1]), np.empty(x.shape[1])
    return lambda: loops.column_sums(x, table, sums, step, largest, s, total)


def cross_entropy(z: np.ndarray, labels: np.ndarray, loss: np.ndarray, g: np.ndarray) -> Runnable:
    """The loss and its gradient: softmax_cross_entropy forward and backward."""
    n, classes = z.shape
    flat, e, each = loss.reshape(1), np.empty(classes), np.empty(n)
    bits, batch_bits = sum_bits(classes), sum_bits(n)
    return lambda: loops.cross_entropy(z, labels, flat, g, e, each, bits, batch_bits)


def sgd(group: Any, w: np.ndarray, g: np.ndarray, *velocity: np.ndarray) -> Runnable:
    """updates.sgd in place."""
    v = velocity[0] if velocity else _NONE32
    return lambda: loops.sgd(w, g, v, group.numbers)


def adam(group: Any, w: np.ndarray, g: np.ndarray, mean: np.ndarray, square: np.ndarray) -> Runnable:
    """updates.adam in place."""
    return lambda: loops.adam(w, g, mean, square, group.numbers)


def prepare() -> None:
    """Compile everything, or read it from Numba's cache, before a step needs it; damaged files are made again."""
    x, labels = np.zeros((1, 1), np.float32), np.zeros(1, np.int64)
    one, two, table = np.zeros((1, 1)), np.zeros((2, 2)), np.zeros(256)

    def call() -> None:
        for run in (
            slice_tensor(x, table, one),
            slice_rows(x, table, table, two),
            slice_columns(x, table, table, two),
            widen(np.zeros((1, 1), np.uint8), one),
            finish(two, 1.0, None, x, None, None),
            activation_gradient(ops.relu, x, None, x),
            weight_gradient(two, 1.0, x, None),
            column_sums(x, table, x[0], None),
            cross_entropy(x, labels, x[0, :1], x),
        ):
            run()
        loops.sgd(x[0], x[0], _NONE32, np.zeros(4))
        loops.adam(x[0], x[0], x[0], x[0], np.ones(7))

    load(call, loops.finish)
    # Rounded twice, w - rate g is -2^-30; rounded once, by a fused multiply-add, it is -2^-30 - 2^-53.
    w, g = np.full(9, 1.0 + 2.0**-23, np.float32), np.full(9, 1.0 + 2.0**-23, np.float32)
    loops.sgd(w, g, _NONE32, np.asarray([1.0 + 2.0**-30, 0.0, 0.0, 0.0]))
    if not (w == -(2.0**-30)).all():
        raise BackendUnavailableError(
            "compiled kernels: this machine's compiler fuses multiplications with additions, which changes the bits "
            "of exact numerics: use kernels='numpy'"
        )
