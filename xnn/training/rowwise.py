"""Tells whether ranks can share the rows of a batch: each row's outputs must follow from that row.

The calls of a step are read in order. A slot is "of rows" if its axis 0 is the batch. An op must keep the rows apart,
or must be one that adds up the rows of all ranks: a loss of `xnn.losses`, BatchNorm, and the gradients of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from xnn import ops
from xnn.backends.kernels.calls import Call, Slot
from xnn.errors import OptionError
from xnn.ops import LossOp
from xnn.training.trace import Trace

__all__ = ["check_rows", "check_sizes"]

#: Ops of one array, whose other axes they may mix.
_OF_EACH = {
    ops.identity, ops.relu, ops.leaky_relu, ops.elu, ops.selu, ops.gelu, ops.sigmoid, ops.silu, ops.softplus,
    ops.tanh, ops.exp, ops.expm1, ops.log, ops.log1p, ops.sqrt, ops.sin, ops.cos, ops.erf, ops.abs, ops.sign,
    ops.stop_gradient, ops.flatten, ops.max_pool2d, ops.avg_pool2d, ops.warp, ops.rescale, ops.dropout,
}  # fmt: skip
#: Ops that go element by element, and spread what has fewer axes or extents of 1 over the others.
_SPREADING = {
    ops.add, ops.sub, ops.mul, ops.div, ops.pow, ops.maximum, ops.minimum, ops.clip, ops.where, ops.less,
    ops.less_equal, ops.greater, ops.greater_equal, ops.equal, ops.not_equal,
}  # fmt: skip
#: Ops of samples and weights, whose gradients of weights are sums over the batch.
_WEIGHING = {ops.dense, ops.conv2d, ops.embedding}
#: Ops along an axis, with the axis that they take by default: None means all.
_ALONG = {
    ops.softmax: -1, ops.log_softmax: -1, ops.sum: None, ops.mean: None, ops.var: None, ops.max: None, ops.min: None,
    ops.concat: 0, ops.take: 0,
}  # fmt: skip


def check_rows(calls: Sequence[Call], rows: int) -> None:
    """Raise OptionError for a step whose rows cannot be shared, naming the op; mark the calls that mix rows.

    calls: of a step, by their ops. rows: of the batch of this rank. A backward call whose gradients of weights are
    sums over the rows, without the op itself saying so, gets the option `over_rows`.
    """
    last = next(call.reads[0] for call in calls if call.kind == "collect")
    shared = {call.writes[0] for call in calls if call.kind in ("gather", "draw")}
    moments, apart, mixing = set[Slot | None](), set[Slot | None](), list[Call]()
    forward = [call for call in calls if call.kind == "forward"]
    for call in forward:
        own = [slot for slot in call.reads if slot in shared]
        if any(slot in moments for slot in call.reads) and not (call.op is ops.normalize and own):
            raise _refusal(call, "reads means and variances, which only `ops.normalize` may")
        if not own:
            continue
        y = call.writes[0]
        if isinstance(call.op, LossOp) and call.options.get("reduction", "mean") != "none":
            if y is not last:
                raise _refusal(call, "is not the last of the loss, and what comes after it is not shared")
        elif call.op is ops.moments:  # of the batch, or of each row
            moments.add(y)
            if 0 not in _axes(call.options["axis"], len(call.reads[0].shape)):
                apart.add(y)
        elif y is last or y is None or not _keeps(call, shared, rows):
            raise _refusal(call, "may add or mix the rows of the batch")
        else:
            shared.add(y)
            if call.op in _SPREADING or call.op is ops.matmul:
                mixing.append(call)
    if last not in {call.writes[0] for call in forward if isinstance(call.op, LossOp)}:
        raise OptionError(
            "several processes share the batch of a loss of xnn.losses, and this loss is made of other functions: "
            "take one of xnn.losses, or a class of your own with the terms and slopes of `xnn.ops.LossOp`"
        )
    for call in calls:
        if call.kind == "keep" and not (shared | apart).isdisjoint(call.reads):
            raise _refusal(call, "keeps numbers of the rows of the batch")
        if call.kind == "backward" and call.forward in mixing and call.forward is not None:
            pairs = zip(call.forward.reads, call.writes, strict=True)
            call.options["over_rows"] = any(w is not None and slot not in shared for slot, w in pairs)


def check_sizes(trace: Trace, whole: Trace) -> None:
    """Raise OptionError if code of the user computes with the number of rows, which is another one on each rank.

    trace, whole: of this rank's rows, and of a whole batch.
    """
    if not trace.is_like(whole, [x.inputs[0].array.shape[0] for x in (trace, whole)]):
        raise OptionError(
            "several processes cannot share the batch of this model, since a `compute` or function computes with the "
            "number of rows, or chooses by it, which is that of a process's own rows: leave it out, or train it in "
            "one process (--workers none)"
        )


def _refusal(call: Call, why: str) -> OptionError:
    return OptionError(
        f"several processes cannot share the batch of this model, since {call.name} {why}: train it in one process "
        "(--workers none), or write it with ops that keep samples apart along axis 0"
    )


def _keeps(call: Call, shared: set[Slot | None], rows: int) -> bool:
    """Whether each row of what a forward call writes follows from the same row of what it reads."""
    y, (x, *others) = call.writes[0], call.reads
    if (
        y is None
        or not y.shape
        or y.shape[0] != rows
        or any(s.shape[:1] != (rows,) for s in call.reads if s in shared)
    ):
        return False
    op, options, apart = call.op, call.options, not any(slot in shared for slot in others)
    if op in _OF_EACH:
        return x in shared
    if op in _WEIGHING or op is ops.normalize:
        return x in shared and (apart or op is ops.normalize) and (len(x.shape) > 1 or op is ops.embedding)
    if op in _SPREADING:
        return all(_lies(slot, y, slot in shared) for slot in call.reads)
    if op in _ALONG:
        axis = options.get("axis", _ALONG[op])
        whole = apart if op is ops.take else all(slot in shared for slot in call.reads)
        return x in shared and whole and 0 not in _axes(axis, len(x.shape))
    check = _BY_OPTIONS.get(op)
    return check is not None and check(call, shared)


def _lies(slot: Slot, y: Slot, is_shared: bool) -> bool:
    """Whether the axis 0 of an input is that of the result; or it has none, so that it is spread over the rows."""
    return len(slot.shape) == len(y.shape) if is_shared else len(slot.shape) < len(y.shape)


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    return tuple(int(a) % ndim for a in (axis if isinstance(axis, (tuple, list)) else (axis,)))


def _keeps_reshape(call: Call, shared: set[Slot | None]) -> bool:
    x, y = call.reads[0], call.writes[0]
    return y is not None and math.prod(x.shape[1:]) == math.prod(y.shape[1:])


def _keeps_transpose(call: Call, shared: set[Slot | None]) -> bool:
    axes = call.options.get("axes")
    return axes is not None and int(axes[0]) % len(axes) == 0


def _keeps_stack(call: Call, shared: set[Slot | None]) -> bool:
    ndim = len(call.reads[0].shape) + 1
    return 0 not in _axes(call.options.get("axis", 0), ndim) and all(slot in shared for slot in call.reads)


def _keeps_getitem(call: Call, shared: set[Slot | None]) -> bool:
    first = call.options["index"][0]
    if first is Ellipsis:
        return len(call.options["index"]) <= len(call.reads[0].shape)
    return isinstance(first, slice) and first.start is first.stop is first.step is None


def _keeps_matmul(call: Call, shared: set[Slot | None]) -> bool:
    a, b = call.reads
    if a not in shared or len(a.shape) < 2:
        return False
    return len(a.shape) == len(b.shape) > 2 if b in shared else len(b.shape) <= 2


_BY_OPTIONS: dict[Any, Callable[[Call, set[Slot | None]], bool]] = {
    ops.reshape: _keeps_reshape,
    ops.transpose: _keeps_transpose,
    ops.stack: _keeps_stack,
    ops.getitem: _keeps_getitem,
    ops.matmul: _keeps_matmul,
}
