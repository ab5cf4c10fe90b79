"""The memory of a program's slots: a buffer is used again when nobody needs what is in it any more.

Values of the forward pass are kept for the backward pass. Of the gradients there are a few at a time:

    backward relu (dy) -> dz
    backward dense (dz) -> dx        dz in one buffer, dx in another one, maybe dy's, which was needed last above
    backward relu (dx) -> du         du in the buffer of dz

Only slots with as many numbers for each sample share a buffer, so that the numbers of an image are in one place,
whichever slot they belong to: kernels go through several calls a few images at a time (`image_calls.py`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call, Slot

__all__ = ["allocate"]

#: The kinds of calls whose slots are read by others than calls, or in the next step.
_LASTING = "clip", "collect", "keep", "optimizer", "update"


def allocate(
    lib: Any, calls: Sequence[Call], chosen: Mapping[Call, bool], views: Collection[Any], shares: bool
) -> None:
    """Give buffers to the slots of the chosen calls, which kernels run.

    calls: of a program, in order. views: the ops whose result has the memory of what it is made of. shares: whether
    other slots may share buffers too.
    """
    sources = _sources(calls, chosen, views)
    begin, end = defaultdict[int, list[Slot]](list), defaultdict[int, list[Slot]](list)
    for slot, (first, last) in _spans(calls, chosen, sources).items() if shares else ():
        begin[first].append(slot)
        end[last].append(slot)
    free = defaultdict[Any, list[Any]](list)
    for number, call in enumerate(calls):
        for slot in begin[number]:
            left = free[_size(slot)]
            slot.array = left.pop().reshape(slot.shape) if left else lib.buffer(slot.shape, slot.dtype)
            slot.fixed = True
        for slot in call.slots() if chosen[call] else ():
            source = sources.get(slot, slot)
            if source.array is None or not source.fixed:
                source.allocate(lib)
            if source is not slot:
                slot.array, slot.fixed = source.array.reshape(slot.shape), True
        for slot in end[number]:
            free[_size(slot)].append(slot.array)


def _needed(call: Call) -> Iterator[Slot]:
    """The slots of a call, of the calls that it replaces, and of all their forward calls."""
    for part in call.with_parts():
        yield from part.slots()
        if part.forward is not None:
            yield from _needed(part.forward)


def _size(slot: Slot) -> tuple[Any, ...]:
    """What slots have in common that can have one buffer, one after the other."""
    return np.dtype(slot.dtype), *slot.shape[:1], math.prod(slot.shape)


def _sources(calls: Sequence[Call], chosen: Mapping[Call, bool], views: Collection[Any]) -> dict[Slot, Slot]:
    """For each slot that has the memory of another one the slot that the memory is made for."""
    sources: dict[Slot, Slot] = {}
    for call in calls:
        target = call.writes[0] if call.writes else None
        if chosen[call] and call.op in views and target is not None and not target.fixed:
            sources[target] = sources.get(call.reads[0], call.reads[0])
    return sources


def _spans(
    calls: Sequence[Call], chosen: Mapping[Call, bool], sources: Mapping[Slot, Slot]
) -> dict[Slot, tuple[int, int]]:
    """For each slot whose buffer can be used again the first and the last call that needs it.

    A kernel writes it in each step before others read it, and only kernels read it, in the same step.
    """
    spans: dict[Slot, tuple[int, int]] = {}
    read, lasting = set[Slot](), set[Slot]()
    for number, call in enumerate(calls):
        needed = {sources.get(slot, slot) for slot in _needed(call)}
        reads = {sources.get(slot, slot) for slot in call.reads}
        writes = {sources.get(slot, slot) for slot in call.writes if slot is not None}
        read |= reads
        lasting |= needed - spans.keys() - (writes - reads)  # it was not written yet
        if not chosen[call] or call.kind in _LASTING:
            lasting |= needed
        spans |= {slot: (spans.get(slot, (number,))[0], number) for slot in needed}
    own = {slot for slot in spans if slot.fixed or slot.scaled is not None or slot.replaced}
    return {slot: spans[slot] for slot in read - lasting - own}
