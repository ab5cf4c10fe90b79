"""NumPy's kernels on parts of a batch of images, which threads share.

NumPy computes with one thread, and BLAS's threads share a product alone. So the batch is cut into parts, each of at
least 16 images, and a thread takes a part through all calls of a stretch:

    images 0-15    conv2d, relu, max_pool2d      one thread
    images 16-31   conv2d, relu, max_pool2d      another one

What needs the whole batch is done between stretches: sums of gradients, and moments of BatchNorm. The parts follow
from the batch, not from the threads, and the sums of the parts are added in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count, pairwise, product
from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call, KernelTable, Runnable, Slot, nothing
from xnn.backends.kernels.workers import share
from xnn.backends.threads import own_threads
from xnn.ops.sums import pairwise_sum

__all__ = ["PartedCall", "PartedTable", "in_parts", "slices_of"]

_PARTS = 4  #: of a batch, at most: each has scratch memory of its own
_IMAGES = 16  #: of a part, at least


@dataclass(eq=False)
class PartedCall:
    """A call as a function for each part of the batch.

    before, after: what runs once, before the first and after the last part. It may read and write whole arrays, so
    that `before` begins a stretch and `after` ends one. is_heavy: whether threads of ours, and not of BLAS, should
    share the program. written: the arrays of which each part writes its images. whole: those that each part reads
    as a whole, such as weights, so that no other call of the stretch can write them.
    """

    parts: Sequence[Runnable]
    before: Runnable = nothing
    after: Runnable = nothing
    is_heavy: bool = False
    written: Sequence[np.ndarray] = ()
    whole: Sequence[np.ndarray] = ()

    def __call__(self) -> None:
        """Run the call in one thread."""
        self.before()
        for part in self.parts:
            part()
        self.after()


class _Stretch:
    """Calls of as many parts as a function, which runs them together; is_shared: by threads."""

    def __init__(self, calls: Sequence[PartedCall], is_shared: bool) -> None:
        self.is_shared = is_shared
        self.before, self.after = calls[0].before, calls[-1].after
        self.parts = [*zip(*(call.parts for call in calls), strict=True)]

    def __call__(self) -> None:
        self.before()
        taken, errors = count(), np.geterr()

        def work() -> int:
            done = 0
            with np.errstate(**errors):  # a thread has its own
                while (number := next(taken)) < len(self.parts):
                    for run in self.parts[number]:
                        run()
                    done += 1
            return done

        share(work, len(self.parts), own_threads() if self.is_shared else 1)
        self.after()


class PartedTable(KernelTable):
    """A table whose kernels may be PartedCalls, or lists of them: those that follow one another run together."""

    def assemble(self, bound: Sequence[Any]) -> list[Runnable]:
        made = [item for found in bound for item in (found if isinstance(found, list) else [found])]
        items = [item for item in made if item is not nothing]
        is_shared = any(isinstance(item, PartedCall) and item.is_heavy for item in items)
        return [
            _Stretch(calls, is_shared) if isinstance(calls[0], PartedCall) else calls[0]
            for calls in _stretches(items)
        ]


def _stretches(items: Iterable[Any]) -> list[list[Any]]:
    found: list[list[Any]] = []
    for item in items:
        if not (found and _may_follow(found[-1], item)):
            found.append([])
        found[-1].append(item)
    return found


def _may_follow(stretch: Sequence[Any], item: Any) -> bool:
    """Whether an item can run part by part with the calls of a stretch."""
    last = stretch[-1]
    if not (isinstance(item, PartedCall) and isinstance(last, PartedCall)):
        return False
    alone = last.after is nothing and item.before is nothing
    return (
        alone
        and len(last.parts) == len(item.parts)
        and not any(
            _overlap(call.written, item.whole) or _overlap(item.written, call.whole) for call in stretch
        )
    )


def _overlap(some: Iterable[np.ndarray], others: Iterable[np.ndarray]) -> bool:
    return any(np.may_share_memory(a, b) for a, b in product(some, others))


def slices_of(n: int, most: int = _PARTS) -> list[slice]:
    """The parts of a batch of n images, at most so many, as equal as can be."""
    parts = max(1, min(most, n // _IMAGES))
    ends = [n * part // parts for part in range(parts + 1)]
    return [slice(first, last) for first, last in pairwise(ends)]


def in_parts(
    kernel: Callable[[Call], Runnable], sums: bool = False, is_heavy: bool = False
) -> Callable[[Call], Any]:
    """A kernel that runs `kernel` on each part of a batch of images; `kernel` itself where there is one part.

    Of a forward call every array is cut, or with `sums` only the first one that it reads and the one that it writes:
    the others are weights. Of the backward call of the latter the first gradient is cut, and the other ones are the
    sums of those that the parts give.
    """

    def bind(call: Call) -> Any:
        slots = [slot for slot in (*call.reads, *call.writes) if slot is not None]
        cuts = slices_of(slots[0].shape[0], _most(call, sums)) if len(slots[0].shape) == 4 else []
        if len(cuts) < 2 or call.parts:
            return kernel(call)
        if call.forward is not None and not isinstance(call.forward.saved, _Parts):
            return kernel(call)
        made = _Parts(_part(call, cut, place, sums) for place, cut in enumerate(cuts))
        after = nothing if call.forward is None or not sums else _totals(call, made)
        runs = [kernel(part) for part in made]
        if call.forward is None:
            call.saved = made
        first = call.writes[0]
        written = [] if first is None else [first.array]
        whole = [slot.array for slot in (call.forward or call).reads[1:]] if sums else []
        return PartedCall(runs, after=after, is_heavy=is_heavy, written=written, whole=whole)

    return bind


def _most(call: Call, sums: bool) -> int:
    """How many parts at most: with their copies of the weights they take no more memory than the batch."""
    if not sums:
        return _PARTS
    x, weights, *_ = (slot.array for slot in (call.forward or call).reads)
    return min(_PARTS, int(x.nbytes) // int(weights.nbytes))


class _Parts(list[Call]):
    """The calls on the parts of a batch."""


def _part(call: Call, images: slice, place: int, sums: bool) -> Call:
    """The call on some images."""

    def cut(slot: Slot | None, number: int, written: bool) -> Slot | None:
        if slot is None:
            return None
        if number and sums:  # `_totals` gives arrays to the gradients
            return Slot(slot.name, slot.shape, slot.dtype, None if written else slot.array, fixed=True)
        array = slot.array[images]
        return Slot(slot.name, array.shape, slot.dtype, array, fixed=True)

    reads = tuple(cut(slot, number, False) for number, slot in enumerate(call.reads))
    writes = tuple(cut(slot, number, True) for number, slot in enumerate(call.writes))
    forward = None if call.forward is None else call.forward.saved[place]
    return Call(call.kind, call.op, reads, writes, call.options, forward, call.activation)  # type: ignore[arg-type]


def _totals(call: Call, parts: Sequence[Call]) -> Runnable:
    """Writes the sums over the parts of what they write beside the first gradient."""
    totals = []
    for number, slot in [*enumerate(call.writes)][1:]:
        if slot is not None:
            each = np.empty((len(parts), *slot.shape), slot.dtype)
            for own, part in zip(each, parts, strict=True):
                part.writes[number].array = own  # type: ignore[union-attr]
            totals.append((slot.array, each))

    def run() -> None:
        for total, each in totals:
            np.copyto(total, pairwise_sum(np, each, axis=0))

    return run if totals else nothing
