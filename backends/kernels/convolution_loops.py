"""Convolution of images and its gradients, as loops that Numba compiles: sums of shifted planes (`shifts.py`).

Each image is copied into planes with a border of zeros, in memory that stays in the cache; the tiles of
`micro_kernels.py` do the rest. `image_loops.py` explains the loops' arguments. r is the call's row.
"""

from __future__ import annotations

from typing import Any

from xnn.backends.kernels.image_loops import clear, copy_rows, numbers, reals
from xnn.backends.kernels.jit import inner
from xnn.backends.kernels.micro_kernels import DOTS, GROUPS, VECTOR, VECTORS, add_shifted, dot_shifted, move
from xnn.backends.kernels.vectors import evens, load, store, zeros

__all__ = ["conv_backward", "conv_forward"]

#: A phase's numbers, in the tables of `conv_forward` and `conv_backward`.
PHASE = 9
R0, R1 = GROUPS
SOME = min(2, VECTORS)  #: vectors of a tile where a line ends
(D0, T0), (D1, T1) = DOTS
BLOCK = 512  #: taps, or vectors of places, that are added up in registers


@inner
def _spread(x: Any, planes: Any, r: Any, size: Any, like: Any) -> None:
    """Copy an image (channels, height, width) into its planes, whose borders are 0 already.

    r: channels, height, width, rows and columns of stride, of padding, rows and pitch of a plane, number and address
    of the phases.
    """
    channels, height, width = r[0], r[1], r[2]
    down, across, above = r[3], r[4], r[5]
    before, rows = r[6], r[7]
    pitch, count = r[8], r[9]
    phases = numbers(r[10])
    for c in range(channels):
        image = x + c * height * width * size
        for f in range(count):
            q = f * PHASE
            top, bottom = phases[q], phases[q + 1]
            left, right = phases[q + 2], phases[q + 3]
            a, b = f // across, f % across
            plane = planes + (c * count + f) * rows * pitch * size
            source = image + ((top * down + a - above) * width + left * across + b - before) * size
            target = plane + (top * pitch + left) * size
            if across == 1:
                copy_rows(
                    target, pitch * size, source, down * width * size, bottom - top, right - left, size, like
                )
            else:
                for _ in range(bottom - top):
                    _take_every(target, source, right - left, across, size, like)
                    target, source = target + pitch * size, source + down * width * size


@inner
def _take_every(target: Any, source: Any, count: Any, across: Any, size: Any, like: Any) -> None:
    """Copy every `across`-th number of a row."""
    j, zero = 0, zeros(8, like)
    while across == 2 and j + 8 < count:  # what is loaded ends with the row
        at = source + 2 * j * size
        store(target + j * size, evens(load(zero, at), load(zero, at + 8 * size)))
        j += 8
    for k in range(j, count):
        move(1, like, target + k * size, source + k * across * size)


@inner
def _add_lines(
    group: Any, like: Any, first: Any, x: Any, offsets: Any, taps: Any, w: Any, y: Any, line: Any, positive: Any,
    size: Any,
) -> None:  # fmt: skip
    """`add_shifted` for `group` outputs and whole lines of `line` bytes; the taps are taken in blocks."""
    for t in range(0, taps, BLOCK):
        count = min(BLOCK, taps - t)
        more, last = int(t > 0), int(t + BLOCK >= taps) * positive
        at, weights, p = offsets + t * 8, w + t * group * size, 0
        while p < line:
            here, there, left = x + p, y + p, (line - p) // VECTOR
            vectors = 1 if left == 1 else SOME if left == 2 or left == 4 else VECTORS
            if vectors == VECTORS and group == R0:
                add_shifted(R0, VECTORS, like, first, here, at, count, weights, there, line, more, last)
            elif vectors == VECTORS:
                add_shifted(R1, VECTORS, like, first, here, at, count, weights, there, line, more, last)
            elif vectors == SOME and group == R0:
                add_shifted(R0, SOME, like, first, here, at, count, weights, there, line, more, last)
            elif vectors == SOME:
                add_shifted(R1, SOME, like, first, here, at, count, weights, there, line, more, last)
            elif group == R0:
                add_shifted(R0, 1, like, first, here, at, count, weights, there, line, more, last)
            else:
                add_shifted(R1, 1, like, first, here, at, count, weights, there, line, more, last)
            p += vectors * VECTOR


def conv_forward(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """y = b + sum of w times shifted planes of x; with ReLU if `positive`."""
    r = numbers(row)
    x, y, bias = r[1], r[2], r[3]
    w, offsets, taps = r[4], r[5], r[6]
    positive, size, group = r[7], r[8], r[9]
    outputs, height = r[10], r[11]
    width, line = r[12], r[13]
    planes, results, about = scratch, scratch + r[14], numbers(row + 8 * 15)
    inputs, pitch = about[0] * about[1] * about[2], about[8]
    clear(planes, r[14] // size, like)
    for n in range(first, last):
        _spread(x + n * inputs * size, planes, about, size, like)
        image = y + n * outputs * height * width * size
        for o in range(0, outputs, group):
            weights, begin = w + o * taps * size, bias + o * size
            _add_lines(group, like, begin, planes, offsets, taps, weights, results, line, positive, size)
            for k in range(min(group, outputs - o)):
                target, source = image + (o + k) * height * width * size, results + k * line
                copy_rows(target, width * size, source, pitch * size, height, width, size, like)


@inner
def _spread_gradient(
    dy: Any, y: Any, planes: Any, outputs: Any, height: Any, width: Any, lead: Any, plane: Any, pitch: Any, size: Any,
    like: Any,
) -> None:  # fmt: skip
    """Copy dy (outputs, height, width) into planes with a border of zeros. y != 0: only where y > 0 or NaN."""
    zero = like - like
    for o in range(outputs):
        target, source = planes + (o * plane + lead) * size, o * height * width * size
        if y == 0:
            copy_rows(target, pitch * size, dy + source, width * size, height, width, size, like)
            continue
        for _ in range(height):
            to, given = reals(target, width, like), reals(dy + source, width, like)
            seen = reals(y + source, width, like)
            for j in range(width):
                to[j] = zero if seen[j] <= zero else given[j]
            target, source = target + pitch * size, source + width * size


@inner
def _dots(
    dy: Any, x: Any, r: Any, images: Any, dy_step: Any, x_step: Any, plane: Any, outputs: Any, size: Any, out: Any,
    like: Any,
) -> None:  # fmt: skip
    """Add the dots of all outputs and taps over some images to `out`, tile by tile.

    r: which tile, the number of taps, the address of their offsets, and the number of vectors.
    """
    tile, taps = r[0], r[1]
    offsets, count = r[2], r[3]
    high, wide = (D0, T0) if tile == 0 else (D1, T1)
    at = out
    for o in range(0, outputs, high):
        for t in range(0, taps, wide):
            lines, where = plane * size, offsets + t * 8
            for v in range(0, count, BLOCK):
                given, shifted, many = dy + o * lines + v * VECTOR, x + v * VECTOR, min(BLOCK, count - v)
                if tile == 0:
                    dot_shifted(D0, T0, like, given, lines, shifted, where, many, images, dy_step, x_step, at)
                else:
                    dot_shifted(D1, T1, like, given, lines, shifted, where, many, images, dy_step, x_step, at)
            at += high * wide * size


def conv_backward(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """dw and db, as dots of dy and shifted planes of x; dx, as the sum of w times shifted planes of dy."""
    r = numbers(row)
    x, y, dy = r[1], r[2], r[3]
    dx, size, outputs = r[4], r[5], r[6]
    height, width = r[7], r[8]
    lead, plane = r[9], r[10]
    planes, ones, x_step = scratch, r[11], r[12]
    gradients, dy_step = scratch + r[13], r[14]
    results, group = scratch + r[15], r[16]
    sums, sums_size, nothing = r[17], r[18], r[30]
    about, dots, whole = numbers(row + 8 * 19), numbers(row + 8 * 31), r[35]
    inputs, result = about[0] * about[1] * about[2], outputs * height * width
    clear(gradients, group * dy_step // size, like)
    if sums:
        sums += part * sums_size * size
        if fresh:
            clear(sums, sums_size, like)
        clear(planes, group * x_step // size, like)
        for n in range(group):  # db is the dot with a plane of ones
            reals(planes + n * x_step + ones, dots[3] * VECTOR // size, like)[:] = 1
    for n in range(first, last, group):
        images = min(group, last - n)
        for k in range(images):
            shown = 0 if y == 0 else y + (n + k) * result * size
            _spread_gradient(
                dy + (n + k) * result * size, shown, gradients + k * dy_step, outputs, height, width, lead, plane,
                about[8], size, like,
            )  # fmt: skip
            if sums:
                _spread(x + (n + k) * inputs * size, planes + k * x_step, about, size, like)
        if sums:
            given = gradients + lead * size
            _dots(given, planes, dots, images, dy_step, x_step, plane, outputs, size, sums, like)
        for k in range(images if dx else 0):
            _image_gradient(
                dx + (n + k) * inputs * size, gradients + k * dy_step + lead * size, results, about, nothing, whole,
                size, like,
            )  # fmt: skip


@inner
def _image_gradient(
    dx: Any, dy: Any, results: Any, about: Any, nothing: Any, whole: Any, size: Any, like: Any
) -> None:  # fmt: skip
    """The gradient for one image. nothing: address of zeros. whole: whether each pixel lies in a phase with taps."""
    channels, height, width = about[0], about[1], about[2]
    down, across, above = about[3], about[4], about[5]
    before, pitch, count = about[6], about[8], about[9]
    phases = numbers(about[10])
    if not whole:
        clear(dx, channels * height * width, like)
    for f in range(count):
        q = f * PHASE
        top, bottom = phases[q], phases[q + 1]
        left, right = phases[q + 2], phases[q + 3]
        offsets, taps, w = phases[q + 4], phases[q + 5], phases[q + 6]
        group, line = phases[q + 7], phases[q + 8]
        if taps == 0 or bottom == top or right == left:
            continue
        a, b, high, wide = f // across, f % across, bottom - top, right - left
        start = dy + (top * pitch + left) * size
        for c in range(0, channels, group):
            weights = w + c * taps * size
            _add_lines(group, like, nothing, start, offsets, taps, weights, results, line, 0, size)
            for k in range(min(group, channels - c)):
                row = ((c + k) * height + top * down + a - above) * width
                target, source = dx + (row + left * across + b - before) * size, results + k * line
                if across == 1:
                    copy_rows(target, width * down * size, source, pitch * size, high, wide, size, like)
                    continue
                for i in range(high):
                    for j in range(wide):
                        to, by = i * down * width + j * across, i * pitch + j
                        move(1, like, target + to * size, source + by * size)
