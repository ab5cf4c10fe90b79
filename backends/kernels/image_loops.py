"""Runs a stretch of calls over images, and what its loops share. Numba compiles the loops.

A stretch is a table of rows, one for each call: the address of the call's loop, then addresses of buffers, sizes and
flags. `run_images` does all calls of a stretch for a few images, then for the next few, so that what one call writes
is still in the processor's cache when the next one reads it. A loop has these arguments:

row: address of the call's row. first, last: the images. fresh: 1 for the first images of a part. scratch: address of
memory that is the thread's own. part: the part of the batch; sums over images are added up for each part. like: the
number 1 of the dtype. A loop reads its row two or three numbers at a time, since Python makes a tuple of more, which
takes Numba longer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from xnn.backends.kernels.intrinsics import pointer, rounded
from xnn.backends.kernels.jit import inner, jit
from xnn.backends.kernels.micro_kernels import atomic_next, call_loop, move

__all__ = ["COLUMNS", "clear", "copy_rows", "integers", "numbers", "option", "part_of", "reals", "run_images"]

COLUMNS = 40  #: numbers in a row


@inner
def numbers(address: Any) -> Any:
    """The int64 numbers of a row: a bare pointer, without a length, slices or negative indices.

    A part of a row, from its number k on, is `numbers(row + 8 * k)`.
    """
    return pointer(address, np.int64(0))


@inner
def integers(address: Any, count: Any) -> Any:
    """An array of the int64 numbers at an address."""
    return reals(address, count, np.int64(0))


@inner
def copy_rows(
    target: Any, pitch: Any, source: Any, step: Any, rows: Any, count: Any, size: Any, like: Any
) -> None:
    """Copy rows of `count` numbers of `size` bytes, which lie `step` bytes apart, to rows `pitch` bytes apart.

    The last vector of a row overlaps the one before it.
    """
    last = 0
    if count >= 16:
        last = (count - 16) * size
        for _ in range(rows):
            for i in range(0, last, 16 * size):
                move(16, like, target + i, source + i)
            move(16, like, target + last, source + last)
            target, source = target + pitch, source + step
    elif count >= 8:
        last = (count - 8) * size
        for _ in range(rows):
            move(8, like, target, source)
            move(8, like, target + last, source + last)
            target, source = target + pitch, source + step
    elif count >= 4:
        last = (count - 4) * size
        for _ in range(rows):
            move(4, like, target, source)
            move(4, like, target + last, source + last)
            target, source = target + pitch, source + step
    else:
        for _ in range(rows):
            for i in range(count):
                move(1, like, target + i * size, source + i * size)
            target, source = target + pitch, source + step


@inner
def reals(address: Any, count: Any, like: Any) -> Any:
    """The numbers of the dtype at an address."""
    return carray(pointer(address, like), count)


@inner
def part_of(address: Any, first: Any, last: Any, like: Any) -> Any:
    """The numbers first .. last - 1 at an address. Loops over them count from 0: else LLVM makes no vectors."""
    return reals(address, last, like)[first:]


@inner
def option(address: Any, place: Any, like: Any) -> Any:
    """A number of an array of float64 at an address, in the dtype of `like`."""
    return rounded(carray(pointer(address, np.float64(0)), place + 1)[place], like)


@inner
def clear(target: Any, count: Any, like: Any) -> None:
    """Store zeros."""
    carray(pointer(target, like), count)[:] = 0


@jit
def run_images(table: Any, like: Any, counter: Any, parts: Any, n: Any, chunk: Any, scratch: Any) -> Any:
    """Do all calls of a stretch for parts of a batch of n images until no part is left. Returns how many it did.

    table: the rows of the calls. counter: an array with the number of the next part. chunk: images at a time.
    """
    done = 0
    while True:
        part = atomic_next(counter.ctypes.data)
        if part >= parts:
            return done
        begin, end = n * part // parts, n * (part + 1) // parts
        for first in range(begin, end, chunk):
            last = min(first + chunk, end)
            for i in range(table.shape[0]):
                row = table.ctypes.data + i * COLUMNS * 8
                call_loop(table[i, 0], row, first, last, int(first == begin), scratch, part, like)
        done += 1
