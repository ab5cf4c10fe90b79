"""The table of compiled kernels: each call becomes one or more rows of numbers, which `compiled_loops.run` executes.

Calls without rows, such as a user's op or the drawing of dropout's mask, are run by a NumPy kernel or by the op,
between two stretches of rows. Importing this file imports Numba.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np

from xnn import ops
from xnn.backends.kernels.blas import blas_routine
from xnn.backends.kernels.calls import Call, KernelTable, Runnable
from xnn.backends.kernels.compiled_loops import LANES, LINEAR, RELU, SIGMOID, TANH, Code
from xnn.backends.kernels.numpy_kernels import (
    NUMPY_KERNELS,
    serves_dense,
    serves_elements,
    serves_gather,
    serves_labels,
    serves_loss,
)  # fmt: skip
from xnn.backends.kernels.rows import Rows, Stretch, Writer, several
from xnn.backends.kernels.sum_kernels import is_sum, serves_penalty
from xnn.backends.kernels.update_kernels import serves_adam, serves_update
from xnn.errors import BackendUnavailableError
from xnn.ops import updates
from xnn.ops.metrics import accuracy
from xnn.ops.sums import LONG

__all__ = ["CompiledTable"]

_KINDS = {None: LINEAR, ops.relu: RELU, ops.sigmoid: SIGMOID, ops.tanh: TANH}


def _dense(call: Call) -> Rows:
    x, w, *bias = (slot.array for slot in call.reads)
    y = _written(call)[0]
    out = Writer(y.dtype)
    out.gemm(x, w, y)
    if bias or call.activation is not None:
        out.row(Code.ACTIVATE, _KINDS[call.activation], y, bias[0] if bias else None, *y.shape)
    return out.made


def _serves_dense_backward(call: Call) -> bool:
    """Whether the sums over the rows are short enough for one product; NumPy's kernel cuts longer ones."""
    return serves_dense(call) and call.reads[0].shape[0] <= LONG


def _dense_backward(call: Call) -> Rows:
    forward = call.forward
    assert forward is not None
    x, w = forward.reads[0].array, forward.reads[1].array
    y, dz = _written(forward)[0], call.reads[0].array
    dx, dw, *rest = _written(call)
    db = rest[0] if rest else None
    out = Writer(dz.dtype)
    rate = None if call.rule is None else call.rule.numbers
    sums = db if rate is None or db is None else np.empty_like(db)  # a folded update's db is b
    if sums is not None or forward.activation is not None:
        piece = None if sums is None else np.empty_like(sums)
        out.row(Code.GRADIENT, _KINDS[forward.activation], dz, y, sums, *dz.shape, piece)
    if dx is not None:
        out.gemm(dz, w.T, dx)  # first: a folded update changes w below
    if dw is not None:
        out.gemm(x.T, dz, dw, rate)
    if rate is not None and db is not None:
        out.row(Code.FOLD_BIAS, db, sums, db.size, rate)
    return out.made


def _written(call: Call) -> list[Any]:
    return [None if slot is None else slot.array for slot in call.writes]


def _activation(call: Call) -> Rows:
    x, y = call.reads[0].array, _written(call)[0]
    out = Writer(y.dtype)
    out.row(Code.COPY, y, x, y.size)
    out.row(Code.ACTIVATE, _KINDS[call.op], y, None, 1, y.size)
    return out.made


def _activation_backward(call: Call) -> Rows:
    assert call.forward is not None
    y, dy, dx = _written(call.forward)[0], call.reads[0].array, _written(call)[0]
    out = Writer(y.dtype)
    out.row(Code.COPY, dx, dy, dx.size)
    out.row(Code.GRADIENT, _KINDS[call.op], dx, y, None, 1, dx.size)
    return out.made


def _cross_entropy(call: Call) -> Rows:
    z, labels = (slot.array for slot in call.reads)
    out = Writer(z.dtype)
    out.row(Code.CROSS_ENTROPY, z, labels, *_written(call), *z.shape)
    return out.made


def _gather(call: Call) -> Rows:
    source, rows, target = call.options["source"], call.options["cursor"].rows, _written(call)[0]
    n, width = len(rows), source.size // max(1, len(source))
    out = Writer(target.dtype if source.dtype == np.uint8 else None)  # other dtypes are only copied
    if source.dtype == np.uint8:
        numbers = np.asarray([call.options.get("scale", 1.0), call.options.get("offset", 0.0)])
        out.row(Code.GATHER, source, rows, target, n, width, numbers, len(source))
    else:
        stride = source.strides[0]
        out.row(Code.TAKE, source, rows, target, n, width, source.itemsize, len(source), stride)
    return out.made


def _can_gather(call: Call) -> bool:
    source, target = call.options["source"], call.writes[0]
    assert target is not None
    if not isinstance(source, np.ndarray) or not len(source) or "shift" in call.options:
        return False
    if source.dtype == np.uint8:
        return serves_gather(call) and np.dtype(target.dtype).kind == "f"
    whole_rows = source[:1].flags.c_contiguous and source.strides[0] % 4 == 0
    return bool(whole_rows and source.dtype == target.dtype and source.itemsize in (4, 8)
                and "scale" not in call.options)  # fmt: skip


def _accuracy(call: Call) -> Rows:
    outputs, labels = (slot.array for slot in call.reads)
    out = Writer(outputs.dtype)
    out.row(Code.COUNT_RIGHT, outputs, labels, _written(call)[0], *outputs.shape)
    return out.made


def _dropout(call: Call) -> Rows:
    x, keep = (slot.array for slot in call.reads)
    return _masked(x, keep, _written(call)[0], call.options["rate"])


def _dropout_backward(call: Call) -> Rows:
    assert call.forward is not None
    return _masked(
        call.reads[0].array, call.forward.reads[1].array, _written(call)[0], call.forward.options["rate"]
    )


def _serves_dropout(call: Call) -> bool:
    """Whether the input is float32 or float64, and the mask is boolean and has the input's shape."""
    x, keep = (call.forward or call).reads
    return bool(
        np.dtype(x.dtype) in (np.float32, np.float64) and x.shape == keep.shape and keep.dtype == np.bool_
    )


def _masked(x: Any, keep: Any, y: Any, rate: float) -> Rows:
    out = Writer(y.dtype)
    out.row(Code.DROPOUT, x, y, keep.view(np.uint8), y.size, np.asarray([1.0 / (1.0 - rate)]))
    return out.made


def _sum(call: Call) -> Rows:
    (a, b), y = (slot.array for slot in call.reads), _written(call)[0]
    out = Writer(y.dtype)
    out.row(Code.ADD, y, a, b, y.size, np.ones(1), None)
    return out.made


def _penalty(call: Call) -> Rows:
    y, strength = _written(call)[0], np.asarray([call.options.get("strength", 1.0)], float)
    call.saved = strength
    out, lanes = Writer(y.dtype), np.empty(LANES, y.dtype)
    for number, slot in enumerate(call.reads):
        out.row(Code.SQUARES, y, slot.array, slot.array.size, strength, number == 0, lanes)
    return out.made


def _penalty_backward(call: Call) -> Rows:
    assert call.forward is not None
    strength = call.forward.saved
    grad, *others = (slot.array for slot in call.reads)
    out = Writer(grad.dtype)
    for y, w, other in zip(
        _written(call), call.forward.reads, others or [None] * len(call.writes), strict=True
    ):
        if y is not None:
            out.row(Code.ADD, y, other, w.array, y.size, strength, grad)
    return out.made


def _sgd(call: Call) -> Rows:
    group = call.rule
    out = Writer(call.reads[0].dtype)
    for w, g, *velocity in group.stretches(call):
        out.row(Code.SGD, w, g, velocity[0] if velocity else None, w.size, group.numbers)
    return out.made


def _adam(call: Call) -> Rows:
    group = call.rule
    out = Writer(call.reads[0].dtype)
    for w, g, mean, square in group.stretches(call):
        out.row(Code.ADAM, w, g, mean, square, w.size, group.numbers)
    return out.made


def _has_labels(test: Callable[[Call], bool]) -> Callable[[Call], bool]:
    return lambda call: test(call) and np.dtype(call.reads[1].dtype) == np.int64


class CompiledTable(KernelTable):
    """Kernels as rows of numbers, and NumPy's kernels for calls that have no rows.

    Raises BackendUnavailableError if NumPy's BLAS cannot be called by its address.
    """

    name = f"compiled (numba {numba.__version__})"
    in_place = True

    def __init__(self) -> None:
        for dtype in ("float32", "float64"):
            if blas_routine(dtype) is None:
                raise BackendUnavailableError(
                    "compiled kernels cannot call the BLAS of this NumPy by its address: use kernels='numpy', or "
                    "install NumPy's own wheel"
                )
        super().__init__(
            {
                ("gather", None): (_gather, _can_gather),
                ("forward", ops.dense): (_dense, serves_dense),
                ("backward", ops.dense): (_dense_backward, _serves_dense_backward),
                ("loss", ops.softmax_cross_entropy): (_cross_entropy, _has_labels(serves_loss)),
                ("metric", accuracy): (_accuracy, _has_labels(serves_labels)),
                ("forward", ops.dropout): (_dropout, _serves_dropout),
                ("backward", ops.dropout): (_dropout_backward, _serves_dropout),
                ("forward", ops.l2_penalty): (_penalty, serves_penalty),
                ("backward", ops.l2_penalty): (_penalty_backward, serves_penalty),
                ("forward", ops.add): (_sum, is_sum),
                ("add", None): (_sum, is_sum),
                ("update", updates.sgd): (_sgd, serves_update),
                ("update", updates.adam): (_adam, serves_adam),
                **{("forward", op): (_activation, serves_elements) for op in _KINDS if op is not None},
                **{
                    ("backward", op): (_activation_backward, serves_elements)
                    for op in _KINDS
                    if op is not None
                },
            },
            NUMPY_KERNELS,
        )

    def several(
        self, turns: Sequence[tuple[Sequence[Runnable], Sequence[tuple[Any, Any]]]]
    ) -> Callable[[int], None] | None:
        found = [(steps[0], moving) for steps, moving in turns if len(steps) == 1]
        whole = [(step, moving) for step, moving in found if isinstance(step, Stretch)]
        return several(whole) if len(whole) == len(turns) else None

    def assemble(self, bound: Sequence[Any]) -> list[Runnable]:
        """Join rows that follow one another, and compute in one dtype, into one table that a single call runs."""
        steps: list[Runnable] = []
        together: list[Rows] = []
        for item in (*bound, None):
            if isinstance(item, Rows):
                if len({part.dtype for part in (*together, item)} - {None}) > 1:
                    steps.append(Stretch(together))
                    together = []
                together.append(item)
                continue
            if together:
                steps.append(Stretch(together))
                together = []
            if item is not None:
                steps.append(item)
        return steps
