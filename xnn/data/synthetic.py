"""Synthetic digits: 28 x 28 images drawn from strokes, for training without a file or a network.

A digit is a few polylines. For each image their points are moved by a random affine map and a little noise, and every
pixel is shaded by its distance to the nearest line. The bytes are the same on every machine: only `+ - * /`, sqrt and
comparisons are used, and all random numbers come from a counter-based generator.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from xnn.backends import Purpose, Stream
from xnn.options import check_count

__all__ = ["synthetic_digits"]

_SIDE = 28
_CHUNK = 64  # images drawn at a time: the arrays then lie in a core's second cache

# Polylines in a unit square, x to the right and y down.
_Stroke: TypeAlias = tuple[tuple[float, float], ...]
_GLYPHS: tuple[tuple[_Stroke, ...], ...] = (
    (((0.5, 0.0), (0.8, 0.12), (0.92, 0.5), (0.8, 0.88), (0.5, 1.0),
      (0.2, 0.88), (0.08, 0.5), (0.2, 0.12), (0.5, 0.0)),),
    (((0.3, 0.2), (0.55, 0.0), (0.55, 1.0)),),
    (((0.1, 0.25), (0.3, 0.03), (0.7, 0.03), (0.88, 0.27), (0.75, 0.5), (0.1, 1.0), (0.92, 1.0)),),
    (((0.12, 0.1), (0.5, 0.0), (0.85, 0.2), (0.75, 0.42), (0.42, 0.48),
      (0.8, 0.56), (0.9, 0.78), (0.55, 1.0), (0.1, 0.9)),),
    (((0.65, 1.0), (0.65, 0.0), (0.08, 0.68), (0.95, 0.68)),),
    (((0.85, 0.0), (0.2, 0.0), (0.15, 0.45), (0.55, 0.38),
      (0.88, 0.62), (0.75, 0.92), (0.4, 1.0), (0.1, 0.88)),),
    (((0.75, 0.02), (0.35, 0.25), (0.12, 0.65), (0.3, 0.97),
      (0.7, 0.97), (0.88, 0.72), (0.65, 0.5), (0.18, 0.62)),),
    (((0.08, 0.02), (0.92, 0.02), (0.4, 1.0)), ((0.28, 0.5), (0.75, 0.5))),
    (
        ((0.5, 0.46), (0.2, 0.3), (0.25, 0.06), (0.5, 0.0), (0.75, 0.06), (0.8, 0.3), (0.5, 0.46)),
        ((0.5, 0.46), (0.85, 0.66), (0.78, 0.93), (0.5, 1.0), (0.22, 0.93), (0.15, 0.66), (0.5, 0.46)),
    ),
    (((0.85, 0.35), (0.55, 0.5), (0.2, 0.4), (0.18, 0.12),
      (0.5, 0.0), (0.82, 0.12), (0.85, 0.35), (0.6, 1.0)),),
)  # fmt: skip
_POINTS = max(sum(map(len, strokes)) for strokes in _GLYPHS)


def synthetic_digits(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images of digits and their labels: uint8 (count, 784) and int64 (count,).

    count: the number of images, at least 0.
    seed: determines the images. Default 0.

    Raises OptionError for another count or seed.

        >>> from xnn import data
        >>> x, y = data.synthetic_digits(5)
        >>> x.shape, y.tolist()
        ((5, 784), [2, 2, 6, 2, 4])
    """
    count = check_count("count", count, least=0)
    labels = (Stream(seed, Purpose.SYNTHETIC, 0).words(0, count) % np.uint64(10)).astype(np.int64)
    # Ten numbers an image for its map and pen, then two for the noise of each point.
    dice = Stream(seed, Purpose.SYNTHETIC, 1).uniform((count, 10), -1.0, 1.0)
    jitter = Stream(seed, Purpose.SYNTHETIC, 2).uniform((count, _POINTS, 2), -1.0, 1.0)
    images = np.empty((count, _SIDE * _SIDE), dtype=np.uint8)
    for digit, strokes in enumerate(_GLYPHS):
        members = np.flatnonzero(labels == digit)
        for start in range(0, members.size, _CHUNK):
            rows = members[start : start + _CHUNK]
            images[rows] = _draw(strokes, dice[rows], jitter[rows])
    return images, labels


def _draw(strokes: tuple[_Stroke, ...], dice: np.ndarray, jitter: np.ndarray) -> np.ndarray:
    points = np.asarray([point for stroke in strokes for point in stroke])
    x = (points[:, 0] - 0.5) + 0.045 * jitter[:, : len(points), 0]
    y = (points[:, 1] - 0.5) + 0.045 * jitter[:, : len(points), 1]
    turn, shear, wide, high, right, down, pen, soft, ink, bend = (dice[:, k, None] for k in range(10))
    # A rotation, by t, the tangent of half its angle: without sine and cosine, which differ between machines.
    t = 0.16 * turn
    cosine, sine = (1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t)
    x = x * (12.5 + 2.5 * wide) + y * (5.0 * shear) + 3.0 * bend * (4.0 * y * y - 0.5)
    y = y * (18.0 + 2.0 * high)
    x, y = cosine * x - sine * y + 14.0 + 1.8 * right, sine * x + cosine * y + 14.0 + 1.8 * down
    centres = np.arange(_SIDE) + 0.5
    nearest = np.full((len(dice), _SIDE, _SIDE), 1e9)
    along, gx, gy = (np.empty_like(nearest) for _ in range(3))
    first = 0
    for stroke in strokes:
        for k in range(first, first + len(stroke) - 1):
            dx, dy = ((z[:, k + 1] - z[:, k])[:, None, None] for z in (x, y))
            # What depends on a pixel's column, and on its row, is computed once for each of them.
            px, py = (centres - x[:, k, None])[:, None, :], (centres - y[:, k, None])[:, :, None]
            np.add(px * dx, py * dy, out=along)
            along /= dx * dx + dy * dy + 1e-9
            np.clip(along, 0.0, 1.0, out=along)
            for gap, to, step in ((gx, px, dx), (gy, py, dy)):
                np.multiply(along, step, out=gap)
                np.subtract(to, gap, out=gap)
                gap *= gap
            gx += gy
            np.minimum(nearest, gx, out=nearest)
        first += len(stroke)
    width, blur = 1.25 + 0.45 * pen, 1.0 + 0.35 * soft
    shade = (width + blur - np.sqrt(nearest.reshape(len(dice), -1))) / (2.0 * blur)
    shade = np.minimum(np.maximum(shade, 0.0), 1.0) * (225.0 + 30.0 * ink)
    return np.asarray(shade + 0.5, dtype=np.uint8)
