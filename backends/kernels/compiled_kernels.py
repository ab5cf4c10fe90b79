"""The table of compiled kernels: each call becomes one or more rows of numbers, which `row_runner.py` executes.

Calls without rows, such as a user's op, are run by a NumPy kernel or by the op, between two stretches of rows.
Importing this file imports Numba.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numba
import numpy as np

from xnn import ops
from xnn.backends.kernels import compiled_loops as loops
from xnn.backends.kernels.augment_rows import AUGMENT_ROWS
from xnn.backends.kernels.blas import blas_routine
from xnn.backends.kernels.branch_rows import BRANCH_ROWS
from xnn.backends.kernels.calls import Call, KernelTable, Runnable, nothing
from xnn.backends.kernels.compiled_loops import LANES, LINEAR, RELU, SIGMOID, TANH
from xnn.backends.kernels.compiling import Start, compile_loops
from xnn.backends.kernels.convolution_rows import CONVOLUTION_ROWS
from xnn.backends.kernels.curve_rows import CURVE_ROWS
from xnn.backends.kernels.dropout_kernels import serves_dropout
from xnn.backends.kernels.embedding_rows import EMBEDDING_ROWS
from xnn.backends.kernels.gather_rows import gather, rescaled, serves_rescaled, serves_rows
from xnn.backends.kernels.image_calls import ImageCall, ImageStretch, run_no_images
from xnn.backends.kernels.jit import Loop
from xnn.backends.kernels.layer_norm_rows import LAYER_NORM_ROWS
from xnn.backends.kernels.loss_loops import plain_cross_entropy
from xnn.backends.kernels.loss_rows import LOSS_ROWS
from xnn.backends.kernels.metric_rows import METRIC_ROWS, count_classes
from xnn.backends.kernels.normalization_rows import NORMALIZATION_ROWS
from xnn.backends.kernels.numpy_kernels import (
    NUMPY_KERNELS,
    serves_dense,
    serves_elements,
    serves_labels,
    serves_loss,
)  # fmt: skip
from xnn.backends.kernels.pooling_rows import POOLING_ROWS
from xnn.backends.kernels.rows import (
    Row,
    Rows,
    Stretch,
    Writer,
    dtype_of,
    grain_of,
    run_nothing,
    run_nothing_together,
    several,
)  # fmt: skip
from xnn.backends.kernels.shape_kernels import SHAPE_KERNELS, SHAPES
from xnn.backends.kernels.softmax_rows import SOFTMAX_ROWS
from xnn.backends.kernels.sum_kernels import is_sum, serves_penalty
from xnn.backends.kernels.update_rows import UPDATE_ROWS
from xnn.errors import BackendUnavailableError
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
        _activate(out, y, call.activation, bias[0] if bias else None)
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
        _gradient(out, dz, y, forward.activation, sums, piece)
    if dx is not None:
        out.gemm(dz, w.T, dx)  # first: a folded update changes w below
    if dw is not None:
        out.gemm(x.T, dz, dw, rate)
    if rate is not None and db is not None:
        out.loop(loops.fold_bias, 0, db, sums, db.size, rate)
    return out.made


def _activate(out: Writer, y: Any, op: Any, bias: Any = None) -> None:
    rows, columns = y.shape
    out.loop(loops.activate, rows, _KINDS[op], y, bias, columns, y.itemsize, grain=grain_of(columns))


def _gradient(out: Writer, dz: Any, y: Any, op: Any, sums: Any = None, piece: Any = None) -> None:
    rows, columns = dz.shape
    out.loop(loops.gradient, columns, _KINDS[op], dz, y, sums, rows, columns, piece, grain=grain_of(rows))


def _written(call: Call) -> list[Any]:
    return [None if slot is None else slot.array for slot in call.writes]


def _activation(call: Call) -> Rows:
    x, y = call.reads[0].array, _written(call)[0]
    out = Writer(y.dtype)
    out.loop(loops.copy, y.size, y, x, grain=grain_of(1))
    _activate(out, y.reshape(-1, 1), call.op)
    return out.made


def _activation_backward(call: Call) -> Rows:
    assert call.forward is not None
    y, dy, dx = _written(call.forward)[0], call.reads[0].array, _written(call)[0]
    out = Writer(y.dtype)
    out.loop(loops.copy, dx.size, dx, dy, grain=grain_of(1))
    _gradient(out, dx.reshape(1, -1), y, call.op)
    return out.made


def _cross_entropy(call: Call) -> Rows:
    z, labels = (slot.array for slot in call.reads)
    out = Writer(z.dtype)
    out.loop(plain_cross_entropy, 0, z, labels, *_written(call), *z.shape)
    return out.made


def _accuracy(call: Call) -> Rows:
    outputs, labels = (slot.array for slot in call.reads)
    out = Writer(outputs.dtype)
    out.loop(count_classes, 0, outputs, labels, _written(call)[0], *outputs.shape)
    return out.made


def _dropout(call: Call) -> Rows:
    x, keep = (slot.array for slot in call.reads)
    return _masked(x, keep, _written(call)[0], call.options["rate"])


def _dropout_backward(call: Call) -> Rows:
    assert call.forward is not None
    return _masked(
        call.reads[0].array, call.forward.reads[1].array, _written(call)[0], call.forward.options["rate"]
    )


def _masked(x: Any, keep: Any, y: Any, rate: float) -> Rows:
    out = Writer(y.dtype)
    scale = np.asarray([1.0 / (1.0 - rate)])
    out.loop(loops.dropout, y.size, x, y, keep.view(np.uint8), scale, grain=grain_of(1))
    return out.made


def _sum(call: Call) -> Rows:
    (a, b), y = (slot.array for slot in call.reads), _written(call)[0]
    out = Writer(y.dtype)
    out.loop(loops.add, y.size, y, a, b, np.ones(1), None, grain=grain_of(1))
    return out.made


def _penalty(call: Call) -> Rows:
    y, strength = _written(call)[0], np.asarray([call.options.get("strength", 1.0)], float)
    call.saved = strength
    out, lanes = Writer(y.dtype), np.empty(LANES, y.dtype)
    for number, slot in enumerate(call.reads):
        out.loop(loops.squares, 0, y, slot.array, slot.array.size, strength, number == 0, lanes)
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
            out.loop(loops.add, y.size, y, other, w.array, strength, grad, grain=grain_of(1))
    return out.made


def _has_labels(test: Callable[[Call], bool]) -> Callable[[Call], bool]:
    return lambda call: test(call) and np.dtype(call.reads[1].dtype) == np.int64


#: For calls that CompiledTable's own kernels do not serve, such as layer normalization, losses with options, and
#: activations of arrays of any shape. What has no rows here either has NumPy's kernels.
_ELEMENTS = KernelTable(
    {
        ("gather", None): (rescaled, serves_rescaled),
        **LAYER_NORM_ROWS,
        **LOSS_ROWS,
        **METRIC_ROWS,
        **UPDATE_ROWS,
        ("forward", ops.add): (_sum, is_sum),
        ("add", None): (_sum, is_sum),
        **{("forward", op): (_activation, serves_elements) for op in _KINDS if op is not None},
        **{("backward", op): (_activation_backward, serves_elements) for op in _KINDS if op is not None},
    },
    NUMPY_KERNELS,
)


class CompiledTable(KernelTable):
    """Kernels as rows of numbers, and NumPy's kernels for calls that have no rows.

    Raises BackendUnavailableError if NumPy's BLAS cannot be called by its address.
    """

    name = f"compiled (numba {numba.__version__})"
    in_place = buffers_in_place = True
    views = SHAPES

    def __init__(self) -> None:
        for dtype in ("float32", "float64"):
            if blas_routine(dtype) is None:
                raise BackendUnavailableError(
                    "compiled kernels cannot call the BLAS of this NumPy by its address: use kernels='numpy', or "
                    "install NumPy's own wheel"
                )
        super().__init__(
            {
                ("gather", None): (gather, serves_rows),
                ("forward", ops.dense): (_dense, serves_dense),
                ("backward", ops.dense): (_dense_backward, _serves_dense_backward),
                ("loss", ops.softmax_cross_entropy): (_cross_entropy, _has_labels(serves_loss)),
                ("metric", accuracy): (_accuracy, _has_labels(serves_labels)),
                ("forward", ops.dropout): (_dropout, serves_dropout),
                ("backward", ops.dropout): (_dropout_backward, serves_dropout),
                ("forward", ops.l2_penalty): (_penalty, serves_penalty),
                ("backward", ops.l2_penalty): (_penalty_backward, serves_penalty),
                **AUGMENT_ROWS,
                **BRANCH_ROWS,
                **CONVOLUTION_ROWS,
                **CURVE_ROWS,
                **NORMALIZATION_ROWS,
                **POOLING_ROWS,
                **EMBEDDING_ROWS,
                **SOFTMAX_ROWS,
                **SHAPE_KERNELS,
            },
            _ELEMENTS,
        )

    def several(
        self, turns: Sequence[tuple[Sequence[Runnable], Sequence[tuple[Any, Any]]]]
    ) -> Callable[[int], None] | None:
        found = [(steps[0], moving) for steps, moving in turns if len(steps) == 1]
        whole = [(step, moving) for step, moving in found if isinstance(step, Stretch)]
        return several(whole) if len(whole) == len(turns) else None

    def assemble(self, bound: Sequence[Any]) -> list[Runnable]:
        """Join rows that follow one another, and compute in one dtype, into one table that a single call runs.

        So, too, for images; calls on a few numbers are not worth the waking of a thread, and become rows.
        """
        items = chain.from_iterable(made if isinstance(made, list) else [made] for made in bound)
        left = [item for item in items if item is not nothing]
        is_shared = any(item.heavy for item in left if isinstance(item, ImageCall | Rows))
        is_by_images = any(item.heavy for item in left if isinstance(item, ImageCall))
        stretches = _joined(chain.from_iterable(_as_rows(part, is_by_images) for part in _joined(left)))
        starts = [start for together in stretches for start in _starts(together, is_shared, is_by_images)]
        compile_loops((loop for item in left for loop in _loops(item)), starts)
        return [_step(together, is_shared, is_by_images) for together in stretches]


def _loops(item: Any) -> list[Loop]:
    if isinstance(item, Rows):
        return [row.loop for row in item.rows]
    return [item.loop] if isinstance(item, ImageCall) else []


def _joined(items: Iterable[Any]) -> list[list[Any]]:
    stretches: list[list[Any]] = []
    for item in items:
        if not stretches or not _joins(stretches[-1], item):
            stretches.append([])
        stretches[-1].append(item)
    return stretches


def _as_rows(stretch: list[Any], is_by_images: bool) -> list[Any]:
    """A stretch as it is, or as rows if it needs nothing but the loops, and is little work beside that on images."""
    if not all(isinstance(call, ImageCall) and call.is_alone for call in stretch):
        return stretch
    if is_by_images and not all(call.is_light for call in stretch):
        return stretch
    return [_row(call) for call in stretch]


def _row(call: ImageCall) -> Rows:
    row = Row(call.loop, tuple(call.row), call.n, grain_of(call.image // call.loop.dtype.itemsize))
    return Rows([row], call.arrays, call.loop.dtype)


def _joins(together: list[Any], item: Any) -> bool:
    """Whether an item can become one step with those before it.

    The calls of a stretch take turns at a few images, so what one call makes whole cannot be read by the next: dw is
    written after all images, and weights are packed before them, though a call of the stretch may compute them.
    """
    last = together[-1]
    if isinstance(item, Rows) and isinstance(last, Rows):
        return len({part.dtype for part in (*together, item)} - {None}) <= 1
    if isinstance(item, ImageCall) and isinstance(last, ImageCall):
        waits = any(
            _beginnings(call.late) & _beginnings(item.arrays)
            or _beginnings(call.arrays) & _beginnings(item.late)
            for call in together
        )
        return not last.ends and not waits and (item.n, item.loop.dtype) == (last.n, last.loop.dtype)
    return False


def _beginnings(arrays: Iterable[Any]) -> set[int]:
    """Where arrays begin in memory; a reshaped array begins where the array begins that it is a view of."""
    return {int(array.ctypes.data) for array in arrays if array is not None}


def _are_shared(together: list[Rows], is_shared: bool, is_by_images: bool) -> bool:
    """Whether it is worth while that threads share the rows of a stretch."""
    return is_shared and (not is_by_images or any(part.heavy for part in together))


def _starts(together: list[Any], is_shared: bool, is_by_images: bool) -> list[Start]:
    """What runs the loops of a stretch."""
    if isinstance(together[0], ImageCall):
        return [Start(run_no_images, together[0].loop.dtype)]
    if not isinstance(together[0], Rows):
        return []
    shared = _are_shared(together, is_shared, is_by_images)
    return [Start(run, dtype_of(together)) for run in (run_nothing, *[run_nothing_together] * shared)]


def _step(together: list[Any], is_shared: bool, is_by_images: bool) -> Runnable:
    if isinstance(together[0], Rows):
        shared = _are_shared(together, is_shared, is_by_images)
        return Stretch(together, shared, cuts_products=not is_by_images)
    return ImageStretch(together, is_shared) if isinstance(together[0], ImageCall) else together[0]
