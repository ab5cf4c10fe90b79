"""Kernels in plain NumPy: the ops' formulas over buffers (`out=`), with matrix products by BLAS.

Each function that makes a kernel takes a call whose slots have buffers. It allocates the scratch arrays once, and
returns a function without arguments that computes what the op computes (`tests/kernels/test_kernels.py` compares
them). Gradients are overwritten in place: a gradient is read by one call only, which computes the next one from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from xnn import ops
from xnn.backends.kernels.batch_parts import PartedTable, in_parts
from xnn.backends.kernels.bell_kernels import BELL_KERNELS
from xnn.backends.kernels.blas import gemm
from xnn.backends.kernels.calls import Call, KernelTable, Runnable, chain, nothing
from xnn.backends.kernels.dropout_kernels import DROPOUT_KERNELS, SIGNED
from xnn.backends.kernels.layer_norm_kernels import LAYER_NORM_KERNELS
from xnn.backends.kernels.normalization_kernels import NORMALIZATION_KERNELS
from xnn.backends.kernels.pool_kernels import POOL_KERNELS
from xnn.backends.kernels.row_kernels import CONVOLUTION_KERNELS
from xnn.backends.kernels.shape_kernels import SHAPE_KERNELS, SHAPES
from xnn.backends.kernels.sum_kernels import SUM_KERNELS, add_rows, into
from xnn.backends.kernels.update_kernels import RULES, adam, serves_adam, serves_update, sgd, update_by_rule
from xnn.ops import updates
from xnn.ops.apply import backward_of, forward_of
from xnn.ops.metrics import accuracy
from xnn.ops.sums import LONG, SHORT, pairwise_sum, product_over_rows

__all__ = [
    "ACTIVATIONS", "NUMPY_KERNELS", "count_right", "is_plain_loss", "serves", "serves_dense", "serves_elements",
    "serves_gather", "serves_labels", "serves_loss",
]  # fmt: skip


def _relu(z: np.ndarray) -> Runnable:
    zeros = np.zeros(z.shape[-1:], z.dtype)  # three times as fast as the number 0
    return lambda: void(np.maximum(z, zeros, out=z))


def _relu_gradient(y: np.ndarray, dy: np.ndarray) -> Runnable:
    """0 where y <= 0, else dy: all bits of dy are kept or cleared, so NaN and infinity come out as in `where`."""
    off, zero, one = np.empty(y.shape, bool), y.dtype.type(0), np.int8(1)
    flag, word = off.view(np.int8), dy.view(SIGNED[dy.itemsize])
    mask = np.empty_like(word)

    def run() -> None:
        np.less_equal(y, zero, out=off)
        np.subtract(flag, one, out=flag)  # True becomes 0, and False -1, which is all ones
        np.copyto(mask, flag)
        np.bitwise_and(word, mask, out=word)

    return run


def _sigmoid(z: np.ndarray) -> Runnable:
    positive, e = np.empty(z.shape, bool), np.empty_like(z)
    zero, one = z.dtype.type(0), z.dtype.type(1)

    def run() -> None:
        np.greater_equal(z, zero, out=positive)
        np.abs(z, out=e)
        np.negative(e, out=e)
        np.exp(e, out=e)
        np.add(e, one, out=z)
        np.copyto(e, one, where=positive)
        np.divide(e, z, out=z)

    return run


def _sigmoid_gradient(y: np.ndarray, dy: np.ndarray) -> Runnable:
    slope, one = np.empty_like(y), y.dtype.type(1)

    def run() -> None:
        np.subtract(one, y, out=slope)
        np.multiply(y, slope, out=slope)
        np.multiply(dy, slope, out=dy)

    return run


def _tanh(z: np.ndarray) -> Runnable:
    return lambda: void(np.tanh(z, out=z))


def _tanh_gradient(y: np.ndarray, dy: np.ndarray) -> Runnable:
    slope, one = np.empty_like(y), y.dtype.type(1)

    def run() -> None:
        np.multiply(y, y, out=slope)
        np.subtract(one, slope, out=slope)
        np.multiply(dy, slope, out=dy)

    return run


#: Activations whose derivative is a function of their output y. Each has two functions, which make kernels that work
#: in place: one computes y from z, the other dz from dy.
ACTIVATIONS = {
    ops.relu: (_relu, _relu_gradient),
    ops.sigmoid: (_sigmoid, _sigmoid_gradient),
    ops.tanh: (_tanh, _tanh_gradient),
}


def void(_: object) -> None:
    """Return None, whatever a NumPy function with `out` has returned; for lambdas that must not return it."""


def serves(call: Call) -> bool:
    """Whether all floating-point slots have one dtype, float32 or float64, and the call has no option."""
    dtypes = {np.dtype(s.dtype) for s in call.slots() if np.dtype(s.dtype).kind == "f"}
    return len(dtypes) == 1 and dtypes <= {np.dtype("f4"), np.dtype("f8")} and not call.options


def serves_elements(call: Call) -> bool:
    """Whether all slots have one dtype, float32 or float64, and the call has no option.

    Kernels in machine code would read the bytes of a mask or of integers as numbers.
    """
    return serves(call) and len({np.dtype(slot.dtype) for slot in call.slots()}) == 1


def serves_dense(call: Call) -> bool:
    """Whether x is a batch of rows, the weights are a matrix, and there is one bias for each output or none."""
    forward = call.forward or call
    x, w, *bias = (slot.shape for slot in forward.reads)
    fits = len(x) == len(w) == 2 and all(b == w[1:] for b in bias)
    return (
        serves_elements(call) and fits and (forward.activation is None or forward.activation in ACTIVATIONS)
    )


def _dense(call: Call) -> Runnable:
    x, w, *bias = (slot.array for slot in call.reads)
    y = call.writes[0].array  # type: ignore[union-attr]
    product = gemm(x, w, y, accumulate=bool(bias))
    activate = nothing if call.activation is None else ACTIVATIONS[call.activation][0](y)
    if not bias:
        return chain(product, activate)
    b = bias[0]

    def run() -> None:
        np.copyto(y, b)
        product()
        activate()

    return run


def _dense_backward(call: Call) -> Runnable:
    """Compute dz from dy in place, dx = dz W^T, dW = x^T dz and db, the sum of dz's rows.

    If the update is folded in, W and b change by the last two products; dx comes first, from the old W.
    """
    forward = call.forward
    assert forward is not None
    x, w = forward.reads[0].array, forward.reads[1].array
    y, dz = forward.writes[0].array, call.reads[0].array  # type: ignore[union-attr]
    dx, dw, *rest = (None if slot is None else slot.array for slot in call.writes)
    steps = [] if forward.activation is None else [ACTIVATIONS[forward.activation][1](y, dz)]
    if dx is not None:
        steps.append(gemm(dz, w.T, dx))
    n, group, sums = dz.shape[0], call.rule, []
    if dw is not None:
        short = gemm(x.T, dz, dw, group is not None) if n <= LONG else None
        sums.append(short or into(dw, lambda: product_over_rows(np, x, dz), group is not None))
    for db in rest:
        if db is not None:
            sums.append(add_rows(dz, db, group is not None))
    if group is None:
        return chain(*steps, *sums)

    def run() -> None:
        for step in steps:
            step()
        alpha = -group.options["learning_rate"]
        for add in sums:
            add(alpha)

    return run


def _activation(call: Call) -> Runnable:
    x, y = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    inside = ACTIVATIONS[call.op][0](y)

    def run() -> None:
        np.copyto(y, x)
        inside()

    return run


def _activation_backward(call: Call) -> Runnable:
    y, dy, dx = call.forward.writes[0].array, call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    inside = ACTIVATIONS[call.op][1](y, dx)

    def run() -> None:
        np.copyto(dx, dy)
        inside()

    return run


def is_plain_loss(call: Call) -> bool:
    """Whether a loss has logits (n, classes), n > 0, a label for each, no sample weights and no option."""
    logits, labels, *weights = (slot.shape for slot in call.reads)
    return len(logits) == 2 and logits[0] > 0 and len(labels) == 1 and not weights and not call.options


def serves_loss(call: Call) -> bool:
    """Whether the call is the plain loss with integer labels."""
    return is_plain_loss(call) and serves(call) and np.dtype(call.reads[1].dtype).kind == "i"


def _softmax_cross_entropy(call: Call) -> Runnable:
    """Compute the loss and its gradient (softmax - onehot) / n together, from e^(z - max z) and its sums.

    The work is done on the transposed logits: a maximum over classes is then one over a few long rows, not over many
    short ones. Labels are not checked here: the trainer has checked them.
    """
    z, labels = (slot.array for slot in call.reads)
    loss, g = (slot.array for slot in call.writes)  # type: ignore[union-attr]
    n, classes = z.shape
    real, flat = z.dtype.type, g.reshape(-1)
    row, index = np.arange(0, n * classes, classes), np.empty(n, np.int64)
    e, top, total = np.empty((classes, n), z.dtype), np.empty(n, z.dtype), np.empty(n, z.dtype)
    picked, share = np.empty(n, z.dtype), real(1.0 / n)
    shifted, op, one = e.T, call.op, np.ones((), z.dtype)
    add_classes: Callable[[], object] = partial(np.add.reduce, e, 0, None, total)
    if classes > SHORT:
        add_classes = lambda: np.copyto(total, pairwise_sum(np, e, axis=0))  # noqa: E731

    def run() -> None:
        np.add(row, labels, out=index)
        np.copyto(shifted, z)
        np.maximum.reduce(e, axis=0, out=top)
        np.subtract(e, top, out=e)
        z.take(index, out=picked, mode="clip")
        np.subtract(picked, top, out=picked)
        np.exp(e, out=e)
        add_classes()
        np.log(total, out=top)
        np.subtract(top, picked, out=picked)
        value = np.add.reduce(picked) * share
        if not math.isfinite(value):  # the op knows the limits for infinite logits
            loss[()], saved = forward_of(op, np, (z, labels), {})
            g[...] = backward_of(op, np, one, saved)[0]
            return
        loss[()] = value
        np.divide(share, total, out=total)
        np.multiply(e, total, out=e)
        np.copyto(g, shifted)
        flat[index] -= share

    return run


def serves_gather(call: Call) -> bool:
    """Whether the source is a contiguous NumPy array, with one scale and one offset for all features, or none.

    With a shift, scale, offset and shift may be arrays.
    """
    source, numbers = call.options["source"], [call.options.get(key, 0.0) for key in ("scale", "offset")]
    plain = isinstance(source, np.ndarray) and source.flags.c_contiguous
    if plain and "shift" in call.options:
        target = call.writes[0]
        return target is not None and tuple(target.shape[1:]) == source.shape[1:]
    return plain and all(isinstance(number, float) for number in numbers)


def _gather(call: Call) -> Runnable:
    source, rows = call.options["source"], call.options["cursor"].rows
    target = call.writes[0].array  # type: ignore[union-attr]
    if "scale" not in call.options and source.dtype == target.dtype:
        return lambda: void(source.take(rows, 0, target, "clip"))
    taken = np.empty(target.shape, source.dtype)
    if "shift" in call.options:
        return _gather_wide(call, taken)
    scale, offset = (target.dtype.type(call.options.get(*p)) for p in (("scale", 1.0), ("offset", 0.0)))

    def run() -> None:
        source.take(rows, 0, taken, "clip")
        np.copyto(target, taken, casting="unsafe")
        np.multiply(target, scale, out=target)
        if offset:
            np.add(target, offset, out=target)

    return run


def _gather_wide(call: Call, taken: np.ndarray) -> Runnable:
    """Gather a batch and rescale it with a shift: in float64, and rounded at the end."""
    source, rows = call.options["source"], call.options["cursor"].rows
    shift, scale, offset = (call.options[key] for key in ("shift", "scale", "offset"))
    target, wide = call.writes[0].array, np.empty(taken.shape)  # type: ignore[union-attr]
    moved = not (isinstance(offset, float) and offset == 0.0)

    def run() -> None:
        source.take(rows, 0, taken, "clip")
        np.subtract(taken, shift, out=wide, dtype=np.float64)  # a Python number would leave float32 as it is
        np.multiply(wide, scale, out=wide)
        if moved:
            np.add(wide, offset, out=wide)
        np.copyto(target, wide, casting="unsafe")

    return run


def _accuracy(call: Call) -> Runnable:
    outputs, labels = (slot.array for slot in call.reads)
    return count_right(outputs, labels, call.writes[0].array)  # type: ignore[union-attr]


def count_right(outputs: np.ndarray, labels: np.ndarray, count: np.ndarray) -> Runnable:
    """Return a function that stores in `count` how many rows have their largest output at the label.

    The first of several equal outputs counts, and a NaN counts as the largest.
    """
    best, right = np.empty(len(labels), np.intp), np.empty(len(labels), bool)

    def run() -> None:
        np.argmax(outputs, axis=1, out=best)
        np.equal(best, labels, out=right)
        count[()] = np.count_nonzero(right)

    return run


def serves_labels(call: Call) -> bool:
    """Whether the outputs have shape (n, classes) and the labels (n,)."""
    outputs, targets = call.reads
    return len(outputs.shape) == 2 and len(targets.shape) == 1 and outputs.shape[1] > 0 and serves(call)


NUMPY_KERNELS = PartedTable(
    {
        ("gather", None): (_gather, serves_gather),
        ("forward", ops.dense): (_dense, serves_dense),
        ("backward", ops.dense): (_dense_backward, serves_dense),
        ("loss", ops.softmax_cross_entropy): (_softmax_cross_entropy, serves_loss),
        ("metric", accuracy): (_accuracy, serves_labels),
        ("update", updates.sgd): (sgd, serves_update),
        ("update", updates.adam): (adam, serves_adam),
        **BELL_KERNELS,
        **CONVOLUTION_KERNELS,
        **DROPOUT_KERNELS,
        **NORMALIZATION_KERNELS,
        **POOL_KERNELS,
        **SHAPE_KERNELS,
        **SUM_KERNELS,
        **{("update", rule): (update_by_rule(np), serves_update) for rule in RULES},
        **{("forward", op): (in_parts(_activation), serves_elements) for op in ACTIVATIONS},
        **{("backward", op): (in_parts(_activation_backward), serves_elements) for op in ACTIVATIONS},
    },
    KernelTable(LAYER_NORM_KERNELS),
)
NUMPY_KERNELS.name, NUMPY_KERNELS.in_place, NUMPY_KERNELS.views = "numpy", True, SHAPES
