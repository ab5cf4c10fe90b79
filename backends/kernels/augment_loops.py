"""Augmentation as loops that Numba compiles: random fields of displacements, and images that are moved by them.

`image_loops.py` explains the loops' arguments. The formulas are those of `xnn.layers.augment` and `xnn.ops.warp`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from xnn.backends.kernels.draw_loops import philox
from xnn.backends.kernels.image_loops import numbers, option, reals
from xnn.backends.kernels.intrinsics import pointer
from xnn.backends.kernels.jit import inner
from xnn.backends.kernels.micro_kernels import VECTOR
from xnn.backends.kernels.vectors import load, spread, store, zeros

__all__ = ["affine_field", "elastic_field", "warp"]


@inner
def _signed(half: Any) -> Any:
    """The number in (-1, 1) of a half word, float32."""
    return np.float32(2 * np.int64(half >> np.uint64(9)) + 1) * np.float32(2.0**-23) - np.float32(1)


@inner
def _block(r: Any, block: Any) -> Any:
    """The four words of a block of the stream of r[5] to r[8]: seed and step, `again`, index, purpose."""
    given = carray(pointer(r[5], np.uint64(0)), 2)
    step = given[1] + np.uint64(r[6])
    return philox(np.uint64(block + 1), step, np.uint64(r[7]), np.uint64(r[8]), given[0])


def affine_field(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """The displacements that turn, scale and shift each image.

    r[1]: where they go, (n, 2, r[3], r[4]). r[2]: degrees, by how much factors differ from 1, pixels. r[5] to r[8]:
    the stream, of which each image has four half words.
    """
    r = numbers(row)
    height, width = r[3], r[4]
    by, real = reals(r[2], 3, np.float64(0)), np.float64
    field = carray(pointer(r[1], like), (last, 2, height, width))
    for n in range(first, last):
        words = _block(r, n // 2)
        one, other = (words[2], words[3]) if n % 2 else (words[0], words[1])
        low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
        angle = real(_signed(one & low)) * by[0] * (math.pi / 180.0)
        factor = 1.0 + real(_signed(one >> half)) * by[1]
        cosine, sine = field.dtype.type(math.cos(angle) / factor), field.dtype.type(math.sin(angle) / factor)
        down = field.dtype.type(real(_signed(other & low)) * by[2])
        right = field.dtype.type(real(_signed(other >> half)) * by[2])
        middle_row, middle_column = field.dtype.type((height - 1) / 2), field.dtype.type((width - 1) / 2)
        for i in range(height):
            y = field.dtype.type(i) - middle_row - down
            for j in range(width):
                x = field.dtype.type(j) - middle_column - right
                field[n, 0, i, j] = (cosine - like) * y + sine * x - down
                field[n, 1, i, j] = -sine * y + (cosine - like) * x - right


@inner
def _noise(r: Any, begin: Any, noise: Any) -> None:
    """Numbers begin .. begin + noise.size - 1 of the stream, in (-1, 1). A block of it makes eight."""
    end, real = begin + noise.size, noise.dtype.type
    for block in range(begin // 8, (end + 7) // 8):
        words = _block(r, block)
        for k in range(8):
            i = 8 * block + k - begin
            word = words[k // 2]
            if 0 <= i < noise.size:
                noise[i] = real(_signed(word >> np.uint64(32) if k % 2 else word & np.uint64(0xFFFFFFFF)))


@inner
def _product(weights: Any, height: Any, terms: Any, x: Any, pitch: Any, out: Any, like: Any) -> None:
    """out[i] = sum over k of weights[i, k] x[k], four rows at a time; rows of x and out are `pitch` vectors long."""
    zero, line = zeros(0, like), pitch * VECTOR
    for i in range(0, height, 4):
        j, k, m = (
            min(i + 1, height - 1),
            min(i + 2, height - 1),
            min(i + 3, height - 1),
        )  # the last row several times
        for v in range(0, line, VECTOR):
            a, b, c, d = zero, zero, zero, zero
            for t in range(terms):
                across = load(zero, x + t * line + v)
                a = a + spread(zero, weights[i * terms + t]) * across
                b = b + spread(zero, weights[j * terms + t]) * across
                c = c + spread(zero, weights[k * terms + t]) * across
                d = d + spread(zero, weights[m * terms + t]) * across
            store(out + i * line + v, a)
            store(out + j * line + v, b)
            store(out + k * line + v, c)
            store(out + m * line + v, d)


def elastic_field(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Smoothed noise: each plane N becomes alpha D N R.

    r[1]: where it goes, (n, 2, r[3], r[4]). r[2]: alpha. r[5] to r[8]: the stream. r[9], r[10]: the matrices D and R,
    which are symmetric; the rows of R are r[11] vectors long. scratch: two planes with such rows, and one without.
    """
    r = numbers(row)
    height, width = r[3], r[4]
    pitch, alpha = r[11], option(r[2], 0, like)
    pixels, plane = height * width, height * pitch * VECTOR
    field, down = reals(r[1], last * 2 * pixels, like), reals(r[9], height * height, like)
    noise, smooth = (
        reals(scratch + 2 * plane, pixels, like),
        reals(scratch + plane, plane // field.itemsize, like),
    )
    step = smooth.size // height
    for n in range(2 * first, 2 * last):
        _noise(r, n * pixels, noise)
        _product(noise, height, width, r[10], pitch, scratch, like)
        _product(down, height, height, scratch, pitch, scratch + plane, like)
        for i in range(height):
            for j in range(width):
                field[n * pixels + i * width + j] = smooth[i * step + j] * alpha


@inner
def _before(wanted: Any, extent: Any, like: Any) -> Any:
    """The pixel before a position along one axis, from -1 to extent - 1, and the distance from it."""
    place = -like if wanted < -like else extent if wanted > extent else wanted
    before = np.floor(place)
    before = extent - like if before > extent - like else before
    return (np.int64(before) if before == before else 0), place - before


def warp(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """y[n, c, i, j] = x[n, c] at (i, j) + field[n, :, i, j], interpolated between four pixels; 0 outside.

    r[1]: x. r[2]: the field. r[3]: y. r[4]: channels. r[5], r[6]: height and width.
    """
    r = numbers(row)
    channels, height = r[4], r[5]
    width, zero = r[6], like - like
    shape = last, channels, height, width
    x, y = carray(pointer(r[1], like), shape), carray(pointer(r[3], like), shape)
    field, real = carray(pointer(r[2], like), (last, 2, height, width)), x.dtype.type
    for n in range(first, last):
        for i in range(height):
            for j in range(width):
                k, down = _before(real(i) + field[n, 0, i, j], real(height), like)
                m, right = _before(real(j) + field[n, 1, i, j], real(width), like)
                above, below = k >= 0, k + 1 < height
                left, beyond = m >= 0, m + 1 < width
                for c in range(channels):
                    a00 = x[n, c, k, m] if above and left else zero
                    a01 = x[n, c, k, m + 1] if above and beyond else zero
                    a10 = x[n, c, k + 1, m] if below and left else zero
                    a11 = x[n, c, k + 1, m + 1] if below and beyond else zero
                    top, bottom = a00 + right * (a01 - a00), a10 + right * (a11 - a10)
                    y[n, c, i, j] = top + down * (bottom - top)
