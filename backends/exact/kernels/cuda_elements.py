"""Exact numerics on a GPU: ops that change elements one by one, or only move them.

Their kernels are those of fast numerics. Here they compute in float64, with the functions of `exact_numbers.cu`, and
round at the end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.exact.kernels.cuda_passes import RowsPass
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.cuda import activation_kernels as activations
from xnn.backends.kernels.cuda import data_kernels as data
from xnn.backends.kernels.cuda.dense_kernels import KINDS
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.launch import by_element, compiled, cupy

__all__ = ["ELEMENTS", "MOST_ELEMENTS", "all_stored", "plain"]

#: The most elements of an array.
MOST_ELEMENTS = 2**30


def all_stored(call: Call) -> bool:
    """Whether floating-point arrays are float32, none is empty, and none is too large for the kernels."""
    slots = call.slots()
    floats = {np.dtype(slot.dtype) for slot in slots if np.dtype(slot.dtype).kind not in "iub"}
    return all(0 < math.prod(slot.shape) < MOST_ELEMENTS for slot in slots) and floats <= {
        np.dtype(np.float32)
    }


def plain(call: Call) -> bool:
    """Whether `all_stored` is true and no array is one of scaled integers."""
    return all_stored(call) and all(slot.scaled is None for slot in call.slots())


def _launch(file: str, name: str, call: Call, feed: DeviceFeed, *arguments: Any) -> Any:
    """A kernel of a source for all numerics, with a thread for each element of what the call writes."""
    size = int(call.writes[0].array.size)  # type: ignore[union-attr]
    return by_element(compiled(file, np.float64, exact=True), name, size, arguments, feed.stream)


def _activation(call: Call, feed: DeviceFeed) -> RowsPass:
    """y = f(x) for an activation without a dense layer before it."""
    x, y, kind = call.reads[0].array, call.writes[0].array, KINDS[call.op]  # type: ignore[union-attr]
    call.saved = cupy().empty(y.shape, np.float64) if kind > KINDS[ops.relu] else None
    return RowsPass(feed, y, x, kind=kind, full=call.saved)


def _activation_backward(call: Call, feed: DeviceFeed) -> RowsPass:
    """dx = dy f'(x), from y."""
    forward = call.forward
    assert forward is not None
    y, dx = forward.writes[0].array, call.writes[0].array  # type: ignore[union-attr]
    return RowsPass(feed, dx, call.reads[0].array, back=KINDS[call.op], out=y, of=forward.saved)


def _serves_activation(call: Call) -> bool:
    return plain(call) and not call.options


def _curve(call: Call, feed: DeviceFeed) -> Any:
    """y = f(x), or dx = dy f'(x), for an activation whose derivative is computed from x."""
    arrays = [call.reads[0].array] + ([] if call.forward is None else [call.forward.reads[0].array])
    out, kind = call.writes[0].array, activations.number_of_curve(call)  # type: ignore[union-attr]
    assert kind is not None
    name = "curve" if call.forward is None else "curve_gradient"
    return _launch("activations", name, call, feed, *arrays, out, out.size, *kind)


def _dropout(call: Call, feed: DeviceFeed) -> Any:
    """x / (1 - rate), or 0 where the mask is false; or the gradient, which is the same of dy."""
    forward, out = call.forward or call, call.writes[0].array  # type: ignore[union-attr]
    scale = 1.0 / (1.0 - forward.options["rate"])
    arrays = call.reads[0].array, forward.reads[1].array, out
    return _launch("dropout", "dropout", call, feed, *arrays, out.size, scale)


def _add(call: Call, feed: DeviceFeed) -> list[Any]:
    """The sum of arrays, from left to right."""
    first, *others = (slot.array for slot in call.reads)
    out = call.writes[0].array  # type: ignore[union-attr]
    return [
        _launch("dense", "add", call, feed, first if not number else out, other, out, out.size)
        for number, other in enumerate(others)
    ]


def _of_integers(call: Call) -> bool:
    """Whether a call moves scaled integers, so that there is no gradient."""
    read, written = call.reads[0], call.writes[0]
    scaled = written is not None and read.scaled is not None and written.scaled is not None
    return call.forward is None and scaled


def _serves_shape(call: Call) -> bool:
    return activations.serves_shape(call) and (plain(call) or (all_stored(call) and _of_integers(call)))


def _reshape(call: Call, feed: DeviceFeed) -> Any:
    """Copy the elements of an array, or of a gradient, to one of another shape."""
    read, written = (slot.array for slot in (call.reads[0], call.writes[0]))  # type: ignore[union-attr]
    if _of_integers(call):
        read, written = read.integers, written.integers
    return activations.copy(read, written, feed)


def _both(op: Any, forward: Any, backward: Any, serves: Any) -> dict[tuple[str, Any], tuple[Any, Any]]:
    return {("forward", op): (forward, serves), ("backward", op): (backward, serves)}


ELEMENTS: dict[tuple[str, Any], tuple[Any, Any]] = {
    ("draw", None): (data.keep_mask, data.serves_mask),
    ("add", None): (_add, lambda call: plain(call) and activations.serves_add(call)),
    ("forward", ops.add): (_add, lambda call: plain(call) and activations.serves_sum(call)),
    ("backward", ops.add): (
        activations.sum_backward,
        lambda call: plain(call) and activations.serves_sum(call),
    ),
    **_both(ops.dropout, _dropout, _dropout, lambda call: plain(call) and data.serves_dropout(call)),
}
for _op in KINDS:
    if _op is not None:
        ELEMENTS |= _both(_op, _activation, _activation_backward, _serves_activation)
for _op in activations.CURVES:
    ELEMENTS |= _both(_op, _curve, _curve, lambda call: plain(call) and activations.serves_curve(call))
for _op in activations.SHAPES:
    ELEMENTS |= _both(_op, _reshape, _reshape, _serves_shape)
