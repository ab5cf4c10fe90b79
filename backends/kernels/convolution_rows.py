"""Compiled kernels of convolution: a call becomes a row of numbers, which tells `convolution_loops.py` what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels import convolution_loops as loops
from xnn.backends.kernels.calls import Call, Runnable
from xnn.backends.kernels.image_calls import CACHE, PARTS, ImageCall, new_call
from xnn.backends.kernels.image_kernels import conv_windows, fits
from xnn.backends.kernels.micro_kernels import DOTS, GROUPS, VECTOR
from xnn.backends.kernels.shifts import Phase, Shifts, packed

__all__ = ["CONVOLUTION_ROWS"]

_SUMS = 1 << 25  #: bytes of partial sums of one call, at most


def _serves(call: Call) -> bool:
    activation = (call.forward or call).activation
    return fits(call) and (activation is None or activation is ops.relu)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _group(results: int) -> int:
    """Which of GROUPS computes the fewest results too many."""
    return min(GROUPS, key=lambda group: _round_up(results, group))


def _about(made: ImageCall, shape: Sequence[int], shifts: Shifts, phases: np.ndarray) -> list[int]:
    """The numbers of `convolution_loops._spread`."""
    h, w = shifts.windows
    return [
        *shape[1:], h.stride, w.stride, h.before, w.before, shifts.rows, shifts.pitch, len(phases),
        made.address(phases),
    ]  # fmt: skip


def _bytes_of_planes(x: np.ndarray, shifts: Shifts) -> int:
    """The planes of an image, and the zeros that are behind the last row."""
    return _round_up((x.shape[1] * len(shifts.phases) * shifts.size + shifts.across) * x.itemsize, VECTOR)


def _phases(shifts: Shifts) -> np.ndarray:
    """Of each phase the part of its plane that is in the image, if it has taps; five more columns are free."""
    found = np.zeros((len(shifts.phases), 9), np.int64)
    for row, p in zip(found, shifts.phases, strict=True):
        if p.taps:
            row[:4] = p.top, p.bottom, p.left, p.right
    return found


def _packing(w: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, Runnable]:
    """An array of the elements of w of these numbers, 0 for numbers below 0, and a function that fills it."""
    flat, target, index = w.reshape(-1), np.zeros(index.size + VECTOR, w.dtype), index.reshape(-1)
    filled, nowhere = target[: index.size], np.flatnonzero(index < 0)

    def pack() -> None:
        flat.take(index, out=filled, mode="clip")
        if len(nowhere):
            filled[nowhere] = 0

    return target, pack


def _together(steps: Sequence[Runnable]) -> Runnable:
    def run() -> None:
        for step in steps:
            step()

    return run


def _conv2d(call: Call) -> ImageCall:
    x, w, *bias = (slot.array for slot in call.reads)
    y: Any = call.writes[0].array  # type: ignore[union-attr]
    made, shifts, size = new_call(call, loops.conv_forward), Shifts(conv_windows(call)), x.itemsize
    made.heavy = True
    outputs, height, width = y.shape[1:]
    group = _group(outputs)
    taps = shifts.forward_taps(x.shape[1]) * size
    weights, fill = _packing(w, packed(np.arange(w.size).reshape(outputs, -1), group))
    begin, steps = np.zeros(_round_up(outputs, group), x.dtype), [fill]
    if bias:
        steps.append(lambda: np.copyto(begin[:outputs], bias[0]))
    made.before, made.late = _together(steps), (w, *bias)
    phases = _phases(shifts)
    planes, line = _bytes_of_planes(x, shifts) + VECTOR, _round_up(shifts.places * size, VECTOR)
    made.scratch = planes + group * line
    made.row += [
        made.address(x), made.address(y), made.address(begin), made.address(weights), made.address(taps), len(taps),
        call.activation is not None, size, group, outputs, height, width, line, planes,
        *_about(made, x.shape, shifts, phases),
    ]  # fmt: skip
    return made


def _conv2d_backward(call: Call) -> ImageCall:
    forward = call.forward
    assert forward is not None
    x, w = (slot.array for slot in forward.reads[:2])
    y, dy = forward.writes[0].array, call.reads[0].array  # type: ignore[union-attr]
    dx, dw, *rest = (None if slot is None else slot.array for slot in call.writes)
    db = rest[0] if rest else None
    outputs, height, width = dy.shape[1:]
    size = x.itemsize
    lanes = VECTOR // size
    shifts = Shifts(conv_windows(forward))
    phases = _phases(shifts)
    lead = shifts.reach
    plane = lead + max(shifts.size, _round_up(shifts.places, lanes))
    ones = _bytes_of_planes(x, shifts)
    count = _round_up(shifts.places, lanes) // lanes
    x_step, dy_step = ones + count * VECTOR, _round_up(outputs * plane * size, VECTOR)
    taps = np.append(shifts.forward_taps(x.shape[1]) * size, ones)
    tile, index, offsets, total = _dot_tiles(outputs, taps)
    made = new_call(call, loops.conv_backward, max(1, min(PARTS, _SUMS // (total * size))))
    made.heavy = True
    wants = dw is not None or db is not None
    group = max(1, min(16, CACHE // (x_step + dy_step)))
    steps: list[Runnable] = []
    longest = 0
    for phase, row in zip(shifts.phases, phases, strict=True):
        if dx is None or not phase.taps:
            continue
        longest = max(longest, _phase(made, row, phase, shifts, w, plane, steps))
    made.before, made.late = _together(steps), (w,)
    sums = np.zeros((made.parts, total), x.dtype) if wants else None
    if sums is not None:
        made.after, made.late = _adding(sums, index, dw, db), (w, dw, db)
    slack = 8 * plane * size + 8 * VECTOR
    gradients = group * x_step + VECTOR
    results = _round_up(gradients + group * dy_step + slack, VECTOR)
    made.scratch = results + longest
    made.row += [
        made.address(x), 0 if forward.activation is None else made.address(y), made.address(dy), made.address(dx),
        size, outputs, height, width, lead, plane, ones, x_step, gradients, dy_step, results, group,
        made.address(sums), total, *_about(made, x.shape, shifts, phases), made.address(np.zeros(VECTOR, x.dtype)),
        tile, len(taps), made.address(offsets), count, shifts.covers(),
    ]  # fmt: skip
    return made


def _dot_tiles(outputs: int, taps: np.ndarray) -> tuple[int, np.ndarray, np.ndarray, int]:
    """Which of DOTS computes the fewest dots too many, where each (o, t) lies in its results, the offsets of all
    taps, and how many results there are.
    """
    costs = [_round_up(outputs, high) * _round_up(len(taps), wide) for high, wide in DOTS]
    tile = costs.index(min(costs))
    high, wide = DOTS[tile]
    across = -(-len(taps) // wide)
    offsets = np.zeros(across * wide, np.int64)
    offsets[: len(taps)] = taps
    o, t = np.arange(outputs)[:, None], np.arange(len(taps))
    index = ((o // high) * across + t // wide) * (high * wide) + (o % high) * wide + t % wide
    return tile, index, offsets, _round_up(outputs, high) * across * wide


def _adding(sums: np.ndarray, index: np.ndarray, dw: Any, db: Any) -> Runnable:
    """Return a function that adds the parts' sums: the last tap of each output is db."""
    where = np.concatenate([index[:, :-1].reshape(-1), index[:, -1]])
    total, added = np.empty(where.size, sums.dtype), np.empty(sums.shape[1], sums.dtype)
    count = index[:, :-1].size

    def run() -> None:
        np.add.reduce(sums, axis=0, out=added)  # row by row, in the order of parts: a row has several numbers
        added.take(where, out=total, mode="clip")
        if dw is not None:
            np.copyto(dw.reshape(-1), total[:count])
        if db is not None:
            np.copyto(db, total[count:])

    return run


def _phase(
    made: ImageCall, row: np.ndarray, phase: Phase, shifts: Shifts, w: np.ndarray, plane: int, steps: list[Runnable]
) -> int:  # fmt: skip
    """Fill in the numbers of a phase for the gradient of x. Returns the bytes of its results."""
    outputs, channels = w.shape[:2]
    height, across = phase.bottom - phase.top, phase.right - phase.left
    places = (height - 1) * shifts.pitch + across
    group, line = _group(channels), _round_up(max(places, 1) * w.itemsize, VECTOR)
    numbers = np.arange(w.size).reshape(w.shape)
    chosen = np.stack([numbers[:, :, i, j] for i, j, _ in phase.taps], axis=2)  # (outputs, channels, taps)
    weights, fill = _packing(w, packed(chosen.transpose(1, 0, 2).reshape(channels, -1), group))
    offsets = shifts.backward_taps(phase, outputs, plane) * w.itemsize
    steps.append(fill)
    row[4:9] = made.address(offsets), len(offsets), made.address(weights), group, line
    return group * line + VECTOR


CONVOLUTION_ROWS = {
    ("forward", ops.conv2d): (_conv2d, _serves),
    ("backward", ops.conv2d): (_conv2d_backward, _serves),
}
