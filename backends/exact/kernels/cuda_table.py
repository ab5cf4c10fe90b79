"""The table of exact numerics' CUDA kernels: a training step as a captured program, with the bits of the ops.

A step consists of products of slices by cuBLAS, in float64, and of the passes of `cuda_passes.py` between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.exact.kernels.cuda_elements import ELEMENTS, all_stored
from xnn.backends.exact.kernels.cuda_images import IMAGES
from xnn.backends.exact.kernels.cuda_losses import (
    CrossEntropy,
    Distance,
    serves_cross_entropy,
    serves_distance,
)
from xnn.backends.exact.kernels.cuda_passes import (
    Changes,
    ClipByNorm,
    Columns,
    ColumnsPass,
    FloatGather,
    IntegerGather,
    RowsPass,
    Step,
    WeightGradients,
    WeightSlices,
    Widen,
    overlap,
    product,
    touched,
)
from xnn.backends.exact.ops import DenseBits
from xnn.backends.exact.slices import sum_bits
from xnn.backends.kernels.calls import Call, Whole
from xnn.backends.kernels.cuda import data_kernels as data
from xnn.backends.kernels.cuda import loss_kernels as loss
from xnn.backends.kernels.cuda import update_kernels as changes
from xnn.backends.kernels.cuda.dense_kernels import KINDS
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.launch import cupy
from xnn.backends.kernels.cuda.persistent_rule import FAST_ONLY
from xnn.backends.kernels.cuda.table import CudaTable, join_losses, join_neighbours
from xnn.ops import updates
from xnn.ops.metrics import accuracy

__all__ = ["ExactCudaTable"]


def _serves_dense(call: Call) -> bool:
    """Whether x is a batch of rows, W a matrix, b fits, and the activation is one of KINDS."""
    forward = call.forward or call
    x, w, *bias = forward.reads
    fits = len(x.shape) == len(w.shape) == 2 and all(b.shape == w.shape[1:] for b in bias)
    wanted = call is not forward and call.writes[0] is not None
    pixels = x.scaled is not None
    return fits and forward.activation in KINDS and all_stored(call) and not (wanted and pixels)


def _wide(rows: int, columns: int) -> Any:
    return cupy().empty((rows, columns), np.float64)


def _dense(call: Call, feed: DeviceFeed) -> list[Any]:
    """y = f(x W + b). The slice of W, and x as it was multiplied, are kept for the backward call."""
    x, w, *bias = (slot.array for slot in call.reads)
    y, scaled, kind = call.writes[0].array, call.reads[0].scaled, KINDS[call.activation]  # type: ignore[union-attr]
    (n, inputs), outputs = x.shape, w.shape[1]
    bits = DenseBits(inputs, outputs, None if scaled is None else scaled.bits)
    one, wide = _wide(inputs, outputs), _wide(2 * n if scaled is None else n, inputs)
    products = _wide(len(wide), outputs)
    full = _wide(n, outputs) if kind > KINDS[ops.relu] else None
    scale = 1.0 if scaled is None else scaled.scale
    call.saved = {"one": one, "wide": wide, "bits": bits, "scale": scale, "full": full}
    enters = RowsPass(feed, x, wide=wide, bits=bits.x) if scaled is None else Widen(feed, x.integers, wide)
    return [
        enters,
        WeightSlices(feed, [(w, one, bits.weight)]),
        product(feed, wide, one, (False, False), products),
        RowsPass(feed, y, None, products, scale, bias[0] if bias else None, kind, full),
    ]


def _dense_backward(call: Call, feed: DeviceFeed) -> list[Any]:
    """Compute dz from dy in place, then dW and db, then dx from the slice of W.

    If the update is folded in, W and b change in place of dW and db.
    """
    forward = call.forward
    assert forward is not None
    kept, kind = forward.saved, KINDS[forward.activation]
    x, y, dz = forward.reads[0].array, forward.writes[0].array, call.reads[0].array  # type: ignore[union-attr]
    (n, outputs), inputs, bits = dz.shape, x.shape[1], kept["bits"]
    dx, dw, *rest = (None if slot is None else slot.array for slot in call.writes)
    db = rest[0] if rest else None
    steps: list[Any] = [RowsPass(feed, dz, back=kind, out=y, of=kept["full"])] if kind else []
    wide = None
    if dx is not None:
        wide = _wide(2 * n, outputs)
        steps.append(RowsPass(feed, dz, wide=wide, bits=bits.dy))
    gradient = Columns(dz, sums=db, group=call.rule, bits=bits.dy_column(n))
    sides, one = [gradient], kept["wide"]
    if dw is not None:
        gradient.wide = _wide(n, outputs if bits.integers is not None else 2 * outputs)
        if bits.integers is None:
            one = _wide(n, inputs)
            sides.append(Columns(x, one, bits.x_column(n)))
    if dw is not None or db is not None:
        steps.append(ColumnsPass(feed, sides))
    if dw is not None:
        products = _wide(inputs, gradient.wide.shape[1])
        steps += [
            product(feed, one, gradient.wide, (True, False), products),
            WeightGradients(feed, [(products, kept["scale"], dw, call.rule)]),
        ]
    if dx is not None:
        products = _wide(2 * n, inputs)
        steps += [
            product(feed, wide, kept["one"], (False, True), products),
            RowsPass(feed, dx, products=products),
        ]
    return steps


def _serves_gather(call: Call) -> bool:
    """Whether rows are copied unchanged (pixels with a scale, labels, floats), or rescaled by numbers.

    With a shift these may be arrays: Rescale then computes in float64.
    """
    source, target, options = call.options["source"], call.writes[0], call.options
    assert target is not None
    if target.scaled is not None:
        same = source.dtype == target.scaled.integers.dtype and tuple(target.shape[1:]) == source.shape[1:]
        return same and set(options) <= {"source", "cursor", "scale", "offset"} and source.size > 0
    if not data.serves_gather(call) or data.copies(call):
        return data.serves_gather(call)
    plain = all(isinstance(options.get(name, 0.0), float) for name in ("scale", "offset"))
    single = source.dtype != np.float64 and target.dtype == np.float32 and "scale" in options
    return target.dtype == np.float32 and ("shift" in options or (plain and single))


def _gather(call: Call, feed: DeviceFeed) -> data.Gather:
    slot = call.writes[0]
    assert slot is not None
    return FloatGather(call, feed) if slot.scaled is None else IntegerGather(call, feed)


def _update(call: Call, feed: DeviceFeed) -> Step:
    """Take a step of the rule for all parameters of the call."""
    return Step(feed, call.op.__name__, call.rule.stretches(call), group=call.rule)


def _clip_by_norm(call: Call, feed: DeviceFeed) -> ClipByNorm:
    """Clip all gradients together."""
    gradients = [(slot.array, None, sum_bits(slot.array.size)) for slot in call.reads]
    return ClipByNorm(feed, gradients, float(call.options["limit"]))


def _clip_by_value(call: Call, feed: DeviceFeed) -> Changes:
    arrays = [(slot.array,) for slot in call.reads]
    return Changes(feed, "clip_by_value", arrays, (float(call.options["limit"]),))


def _moving_average(call: Call, feed: DeviceFeed) -> Changes:
    """Update the average of a parameter in place."""
    average, value = (slot.array for slot in call.reads)
    return Changes(feed, "moving_average", [(average, value)], (float(call.options["decay"]),))


def _serves_update(call: Call) -> bool:
    return changes.serves_update(call) and all_stored(call)


class ExactCudaTable(CudaTable):
    """CUDA kernels of exact numerics; calls that they cannot run are run by the exact op."""

    name = "cuda"
    views = frozenset()  # a slot of scaled integers has no memory that a view could share

    def __init__(self) -> None:
        super().__init__(_KERNELS)

    def whole(self, calls: Sequence[Call]) -> Whole:
        """No kernel runs all steps of a chunk: the persistent one has fast numerics."""
        return Whole(None, FAST_ONLY)

    def join(self, items: list[Any]) -> list[Any]:
        """Join items that can be one launch."""
        joined: list[Any] = []
        for item in join_losses(join_neighbours(items)):
            last = joined[-1] if joined else None
            if isinstance(last, (RowsPass, CrossEntropy, IntegerGather)) and last.join(item):
                continue
            joined.append(item)
        return _brought_together(_brought_together(joined, WeightSlices, -1), WeightGradients, 1)


def _brought_together(items: list[Any], kind: Any, direction: int) -> list[Any]:
    """Join the items of a kind: with the first of them for direction -1, with the last for 1.

    An item moves past others only if it is known what they touch, and that is nothing of its own.
    """
    items = items if direction < 0 else items[::-1]
    done: list[Any] = []
    for item in items:
        before = next((other for other in reversed(done) if not _passes(item, other, kind)), None)
        if not isinstance(item, kind) or not isinstance(before, kind) or not before.join(item):
            done.append(item)
    return done if direction < 0 else done[::-1]


def _passes(item: Any, other: Any, kind: Any) -> bool:
    """Whether an item of a kind may move past another one."""
    others = touched(other)
    if not isinstance(item, kind) or isinstance(other, kind) or others is None:
        return False
    return not any(overlap(a, b) for a in touched(item) or () for b in others)


_KERNELS: dict[tuple[str, Any], tuple[Any, Any]] = {
    ("gather", None): (_gather, _serves_gather),
    ("forward", ops.dense): (_dense, _serves_dense),
    ("backward", ops.dense): (_dense_backward, _serves_dense),
    ("loss", ops.softmax_cross_entropy): (CrossEntropy, serves_cross_entropy),
    **{("loss", op): (Distance, serves_distance) for op in loss.DISTANCES},
    ("metric", accuracy): (loss.accuracy, loss.serves_accuracy),
    ("collect", None): (loss.collect, loss.serves_collect),
    **ELEMENTS,
    **IMAGES,
    **{("update", rule): (_update, _serves_update) for rule in changes.RULES},
    ("clip", updates.clip_by_norm): (_clip_by_norm, all_stored),
    ("clip", updates.clip_by_value): (_clip_by_value, all_stored),
    ("keep", updates.moving_average): (_moving_average, all_stored),
}
