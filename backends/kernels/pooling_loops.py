"""Pooling of images and ReLU, as loops that Numba compiles. `image_loops.py` explains the loops' arguments.

Maximum pooling keeps the number of the chosen element of each window, row by row in the window, for the gradient; as
a number of the dtype, so that it has a lane beside the maximum. Windows of 2 x 2 that lie side by side have loops of
vectors.
"""

from __future__ import annotations

from typing import Any

from xnn.backends.kernels.image_loops import clear, numbers, reals
from xnn.backends.kernels.jit import inner
from xnn.backends.kernels.vectors import (
    evens,
    load,
    odds,
    spread,
    store,
    weave,
    where_better,
    where_equal,
    zeros,
)

__all__ = ["avg_pool", "avg_pool_backward", "max_pool", "max_pool_backward", "relu", "relu_backward"]


@inner
def _max_of_pairs(zero: Any, further: Any, above: Any, below: Any, y: Any, chosen: Any, like: Any) -> None:
    """Windows of 2 x 2, as many as a vector has numbers. further: bytes of a vector."""
    a, b = load(zero, above), load(zero, above + further)
    c, d = load(zero, below), load(zero, below + further)
    best, number = evens(a, b), zero
    new, this = odds(a, b), spread(zero, like)
    number, best = where_better(new, best, this, number), where_better(new, best, new, best)
    new, this = evens(c, d), spread(zero, like + like)
    number, best = where_better(new, best, this, number), where_better(new, best, new, best)
    new, this = odds(c, d), spread(zero, like + like + like)
    number, best = where_better(new, best, this, number), where_better(new, best, new, best)
    store(y, best)
    store(chosen, number)


@inner
def _max_row(
    zero: Any, lanes: Any, x: Any, width: Any, y: Any, chosen: Any, out: Any, size: Any, like: Any
) -> None:
    """A row of windows of 2 x 2; the last vector overlaps the one before it."""
    for w in range(0, out, lanes):
        at = min(w, out - lanes) * size
        above = x + 2 * at
        _max_of_pairs(zero, lanes * size, above, above + width * size, y + at, chosen + at, like)


@inner
def _spread_pairs(zero: Any, further: Any, above: Any, below: Any, dy: Any, chosen: Any, like: Any) -> None:
    """The gradient of `_max_of_pairs`."""
    g, number = load(zero, dy), load(zero, chosen)
    a, b = weave(where_equal(number, zero, g, zero), where_equal(number, spread(zero, like), g, zero))
    store(above, a)
    store(above + further, b)
    two, three = spread(zero, like + like), spread(zero, like + like + like)
    a, b = weave(where_equal(number, two, g, zero), where_equal(number, three, g, zero))
    store(below, a)
    store(below + further, b)


@inner
def _spread_row(
    zero: Any, lanes: Any, dx: Any, width: Any, dy: Any, chosen: Any, out: Any, size: Any, like: Any
) -> None:  # fmt: skip
    """The gradient of `_max_row`."""
    for w in range(0, out, lanes):
        at = min(w, out - lanes) * size
        above = dx + 2 * at
        _spread_pairs(zero, lanes * size, above, above + width * size, dy + at, chosen + at, like)


@inner
def _better(new: Any, old: Any) -> Any:
    """Whether a number takes the place of the largest one so far. The first NaN is the largest of all."""
    return (new > old) | ((new != new) & (old == old))


@inner
def _max_of_windows(x: Any, y: Any, chosen: Any, r: Any, like: Any) -> None:
    """Windows of any kind in one channel of x. r: the numbers of `windows`."""
    height, width, oh = r[0], r[1], r[2]
    ow, kh, kw = r[3], r[4], r[5]
    sh, sw, dh = r[6], r[7], r[8]
    dw, ph, pw = r[9], r[10], r[11]
    image, best, number = (
        reals(x, height * width, like),
        reals(y, oh * ow, like),
        reals(chosen, oh * ow, like),
    )
    for u in range(oh):
        for v in range(ow):
            m, k = like, -1
            for i in range(kh):
                h = u * sh + i * dh - ph
                for j in range(kw):
                    w = v * sw + j * dw - pw
                    if 0 <= h < height and 0 <= w < width:
                        z = image[h * width + w]
                        if k < 0 or _better(z, m):
                            m, k = z, i * kw + j
            best[u * ow + v], number[u * ow + v] = m, k


def max_pool(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """The largest element of each window, and its number."""
    r = numbers(row)
    x, y, chosen = r[1], r[2], r[3]
    size, channels, pairs = r[4], r[5], r[6]
    windows = numbers(row + 8 * 7)
    inside, out = windows[0] * windows[1], windows[2] * windows[3]
    width, ow = windows[1], windows[3]
    for c in range(first * channels, last * channels):
        image, best, number = x + c * inside * size, y + c * out * size, chosen + c * out * size
        if not pairs:
            _max_of_windows(image, best, number, windows, like)
            continue
        for _ in range(windows[2]):
            if ow >= 16:
                _max_row(zeros(16, like), 16, image, width, best, number, ow, size, like)
            elif ow >= 8:
                _max_row(zeros(8, like), 8, image, width, best, number, ow, size, like)
            else:
                _max_row(zeros(4, like), 4, image, width, best, number, ow, size, like)
            image, best, number = image + 2 * width * size, best + ow * size, number + ow * size


def max_pool_backward(
    row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> None:
    """The gradient of each window goes to its chosen element."""
    r = numbers(row)
    dx, dy, chosen = r[1], r[2], r[3]
    size, channels, pairs = r[4], r[5], r[6]
    windows = numbers(row + 8 * 7)
    height, width, oh = windows[0], windows[1], windows[2]
    ow, kw = windows[3], windows[5]
    for c in range(first * channels, last * channels):
        at = c * oh * ow * size
        image, given, number = dx + c * height * width * size, dy + at, chosen + at
        if not pairs or 2 * oh < height or 2 * ow < width:
            clear(image, height * width, like)
        if pairs:
            for _ in range(oh):
                if ow >= 16:
                    _spread_row(zeros(16, like), 16, image, width, given, number, ow, size, like)
                elif ow >= 8:
                    _spread_row(zeros(8, like), 8, image, width, given, number, ow, size, like)
                else:
                    _spread_row(zeros(4, like), 4, image, width, given, number, ow, size, like)
                image, given, number = image + 2 * width * size, given + ow * size, number + ow * size
            continue
        out, g, chose = (
            reals(image, height * width, like),
            reals(given, oh * ow, like),
            reals(number, oh * ow, like),
        )
        for u in range(oh):
            for v in range(ow):
                k = int(chose[u * ow + v])
                h = u * windows[6] + (k // kw) * windows[8] - windows[10]
                w = v * windows[7] + (k % kw) * windows[9] - windows[11]
                out[h * width + w] += g[u * ow + v]


def avg_pool(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """The mean of each window; outside the image the elements are 0."""
    r = numbers(row)
    x, y, size = r[1], r[2], r[4]
    channels, windows = r[5], numbers(row + 8 * 7)
    height, width, oh = windows[0], windows[1], windows[2]
    ow, kh, kw = windows[3], windows[4], windows[5]
    zero, count = like - like, like * (kh * kw)
    for c in range(first * channels, last * channels):
        image = reals(x + c * height * width * size, height * width, like)
        mean = reals(y + c * oh * ow * size, oh * ow, like)
        for u in range(oh):
            for v in range(ow):
                total = zero
                for i in range(kh):
                    h = u * windows[6] + i - windows[10]
                    for j in range(kw):
                        w = v * windows[7] + j - windows[11]
                        if 0 <= h < height and 0 <= w < width:
                            total += image[h * width + w]
                mean[u * ow + v] = total / count


def avg_pool_backward(
    row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any
) -> None:
    """Each element of a window gets an equal share of its gradient."""
    r = numbers(row)
    dx, dy, size = r[1], r[2], r[4]
    channels, windows = r[5], numbers(row + 8 * 7)
    height, width, oh = windows[0], windows[1], windows[2]
    ow, kh, kw = windows[3], windows[4], windows[5]
    count = like * (kh * kw)
    for c in range(first * channels, last * channels):
        image = reals(dx + c * height * width * size, height * width, like)
        given = reals(dy + c * oh * ow * size, oh * ow, like)
        image[:] = like - like
        for u in range(oh):
            for v in range(ow):
                share = given[u * ow + v] / count
                for i in range(kh):
                    h = u * windows[6] + i - windows[10]
                    for j in range(kw):
                        w = v * windows[7] + j - windows[11]
                        if 0 <= h < height and 0 <= w < width:
                            image[h * width + w] += share


def relu(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """y = max(x, 0); NaN where x is NaN."""
    r = numbers(row)
    begin, count = first * r[3] * r[4], (last - first) * r[3]
    x, y, zero = reals(r[1] + begin, count, like), reals(r[2] + begin, count, like), like - like
    for i in range(count):
        y[i] = zero if x[i] < zero else x[i]


def relu_backward(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """dx = dy where y > 0 or NaN, else 0."""
    r = numbers(row)
    begin, count = first * r[3] * r[4], (last - first) * r[3]
    y, dy, dx = (
        reals(r[1] + begin, count, like),
        reals(r[2] + begin, count, like),
        reals(r[5] + begin, count, like),
    )
    zero = like - like
    for i in range(count):
        dx[i] = zero if y[i] <= zero else dy[i]
