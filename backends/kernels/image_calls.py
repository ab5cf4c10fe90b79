"""Calls on batches of images, each as a row of numbers; threads share what follows one another, a stretch of calls.

Calls that follow one another form a stretch. The batch is cut into at most `PARTS` parts, which threads share
(`workers.py`) if the program has convolutions; a part goes through all calls of the stretch, a few images at a time.
Sums over images, such as dw, are made for each part, and the parts are added in order. The parts follow from the
batch, not from the threads.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call, Runnable, nothing
from xnn.backends.kernels.image_loops import COLUMNS, run_images
from xnn.backends.kernels.jit import Loop, load
from xnn.backends.kernels.micro_kernels import VECTOR
from xnn.backends.kernels.row_runner import FIRST
from xnn.backends.kernels.workers import share
from xnn.backends.threads import own_threads

__all__ = ["CACHE", "PARTS", "ImageCall", "ImageStretch", "new_call", "run_no_images"]

PARTS = 16  #: of a batch, at most
CACHE = 1 << 18  #: bytes of images that a part works on at once
LIGHT = 1 << 16  #: bytes of a batch that threads need not share


@dataclass
class ImageCall:
    """A call as a row.

    loop: what does its work. n: images. image: bytes of the largest array of one image. parts: of the batch. row: the
    loop's numbers. scratch: bytes that a thread needs. before, after: what runs once, before the first and after the
    last image of the stretch. ends: whether the stretch ends after the call, since what follows reads what `after`
    makes. heavy: whether it is so much work that threads of ours, and not of BLAS, should share the step. arrays:
    those whose addresses are in the row. late: arrays that `before` reads, that `after` writes, or that a loop reads
    whole, so that no other call of the stretch can write or read them.
    """

    loop: Loop
    n: int
    image: int
    parts: int
    row: list[int] = field(default_factory=list)
    scratch: int = 0
    before: Runnable = nothing
    after: Runnable = nothing
    ends: bool = False
    heavy: bool = False
    arrays: list[Any] = field(default_factory=list)
    late: tuple[Any, ...] = ()

    @property
    def is_alone(self) -> bool:
        """Whether the loop does all its work, so that it can be a row of `row_runner.py`."""
        return self.before is nothing and self.after is nothing and not self.scratch and len(self.row) < FIRST

    @property
    def is_light(self) -> bool:
        """Whether it is so little work that threads need not share it."""
        return self.n * self.image <= LIGHT

    def address(self, array: Any) -> int:
        """The address of an array, which is kept alive; 0 for None."""
        self.arrays.append(array)
        return 0 if array is None else int(array.ctypes.data)


def new_call(call: Call, loop: Any, parts: int = PARTS) -> ImageCall:
    """A call on a batch, as yet without numbers: `loop` does its work."""
    n = call.reads[0].shape[0]
    image = max(slot.array[:1].nbytes for slot in (*call.reads[:1], *call.writes[:1]) if slot is not None)
    return ImageCall(Loop(loop, np.dtype(call.reads[0].dtype)), n, image, min(n, parts))


_own = threading.local()


def _scratch(size: int) -> int:
    """The address of memory of this thread's own, with at least `size` bytes."""
    if getattr(_own, "size", -1) < size:
        _own.memory, _own.size = np.empty(size + VECTOR, np.uint8), size
    start = int(_own.memory.ctypes.data)
    return start + -start % VECTOR


def run_no_images(like: Any) -> None:
    """Run no part of a batch, so that what runs parts is compiled, or its machine code loaded."""
    load(
        lambda: run_images(np.zeros((0, COLUMNS), np.int64), like, np.zeros(1, np.int64), 0, 0, 1, 0),
        run_images,
    )


class ImageStretch:
    """Calls on the same number of images as a function, which runs them one after the other.

    is_shared: whether threads share the parts of the batch.
    """

    def __init__(self, calls: Sequence[ImageCall], is_shared: bool) -> None:
        self.calls, self.is_shared = calls, is_shared  # the calls keep the memory behind the addresses alive
        self.n, self.parts = calls[0].n, min(call.parts for call in calls)
        self.table = np.zeros((len(calls), COLUMNS), np.int64)
        for row, call in zip(self.table, calls, strict=True):
            row[: len(call.row) + 1] = call.loop.compiled(), *call.row
        self.like = calls[0].loop.dtype.type(1)
        self.chunk = max(1, min(16, CACHE // max(call.image for call in calls)))
        self.scratch = max(call.scratch for call in calls)
        run_no_images(self.like)

    def _parts(self, counter: np.ndarray) -> int:
        """Run parts, from the number in `counter`, until none is left. Returns how many it ran."""
        scratch = _scratch(self.scratch)
        return int(run_images(self.table, self.like, counter, self.parts, self.n, self.chunk, scratch))

    def __call__(self) -> None:
        for call in self.calls:
            call.before()
        counter = np.zeros(1, np.int64)  # of this step: a thread that wakes up late finds an old one, used up
        share(lambda: self._parts(counter), self.parts, own_threads() if self.is_shared else 1)
        for call in self.calls:
            call.after()
