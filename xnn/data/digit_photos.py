"""Prepares a photo of a handwritten digit as the images of MNIST are prepared."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from xnn.data.images import grey_within
from xnn.errors import CorruptFileError

__all__ = ["as_mnist", "read_digit"]

_SIDE, _BOX = 28, 20  # of MNIST: an image, and the box into which a digit is scaled
_WORKING = 400  # pixels of the longer side in which the digit is looked for
_THINNEST = _BOX / 10  # pixels: thinner strokes would fade in the box
_CONTRAST = 0.12  # of ink against paper, at least, as a share of the range from black to white
_SPECK = 0.04  # parts with a smaller share of the largest part's ink are dirt


def read_digit(path: str | os.PathLike[str]) -> np.ndarray:
    """A photo of a digit as an image of MNIST, uint8 (28, 28); see `as_mnist`.

    path: a PNG or JPEG file.

    Raises CorruptFileError, naming the file, if no digit stands out in it, and as `images.read_image`.
    """
    pixels = grey_within(Path(path), _WORKING)
    try:
        return as_mnist(pixels)
    except CorruptFileError as error:
        raise CorruptFileError(f"{path}: {error}") from error


def as_mnist(grey: np.ndarray) -> np.ndarray:
    """A grey picture of a digit as an image of MNIST: bright strokes on black, scaled and centred.

    grey: uint8 (height, width), a dark digit on bright paper or a bright one on a dark board.

    1. The light is removed: a surface of second order is fitted to the background, and subtracted.
    2. What differs most from it is the ink. Dark ink is inverted. What is much fainter is paper.
    3. Specks are left out, and what touches the edge of the picture unless nothing else is there. Lines thinner
       than a tenth of the digit are thickened, as they would fade.
    4. The digit is scaled into a box of 20x20 pixels, with its aspect ratio, and placed in 28x28 pixels so that its
       centre of mass is on pixel (14, 14), counted from 0.

    Returns uint8 (28, 28). Raises CorruptFileError if no digit stands out.

    Source of step 4: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits.

        >>> import numpy as np
        >>> from xnn.data.digit_photos import as_mnist
        >>> paper = np.full((90, 60), 200, np.uint8)
        >>> paper[10:80, 10:18] = 30  # a one, drawn far from the middle
        >>> digit = as_mnist(paper)
        >>> np.flatnonzero(digit.any(axis=1)).tolist() == list(range(4, 24))
        True
    """
    ink = _ink(grey.astype(np.float64))
    ink = np.where(_kept(ink > 0.0, ink), ink, 0.0)
    ink = _thickened(ink)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _centred(_into_box(ink))


def _ink(grey: np.ndarray) -> np.ndarray:
    """How much ink is on each pixel, from 0 to 1."""
    apart = grey - _background(grey)
    dark, bright = np.quantile(-apart, 0.995), np.quantile(apart, 0.995)
    apart = -apart if _mass(-apart) > _mass(apart) else apart
    noise = 1.4826 * np.median(np.abs(apart - np.median(apart)))
    strong = apart[apart > 0.5 * np.max([dark, bright])] if apart.max() > 0 else apart
    level = float(np.median(strong)) if strong.size else 0.0
    if level < max(255 * _CONTRAST, 4.0 * noise):
        raise CorruptFileError(
            "no digit stands out in the picture: take a photo of one that is large and dark on bright paper"
        )
    low = max(0.12 * level, min(4.0 * noise, 0.35 * level))
    return np.asarray(np.clip((apart - low) / (0.92 * level - low), 0.0, 1.0))


def _mass(apart: np.ndarray) -> float:
    """How strongly a picture stands out on this side of the background. Squares: a few strong pixels are ink."""
    return float(np.mean(np.maximum(apart, 0.0) ** 2))


def _background(grey: np.ndarray) -> np.ndarray:
    """A surface of second order through the background, fitted by least squares to the pixels that lie near it."""
    height, width = grey.shape
    v, u = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=-1).reshape(-1, 6)
    every = max(1, grey.size // 5_000)
    few, values = terms[::every], grey.reshape(-1)[::every]
    # Begins with the commonest brightness around the edge: there is no ink there, or little.
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    here = np.abs(values - np.median(edge)) <= max(30.0, 2.0 * float(np.abs(edge - np.median(edge)).mean()))
    fitted = np.full_like(values, np.median(edge))
    for round_ in range(8):
        if here.sum() < 24:
            break
        count = 3 if round_ < 3 else 6  # first a plane, which ink bends less
        near_by = few[here, :count]
        weights = np.linalg.lstsq(near_by.T @ near_by, near_by.T @ values[here], rcond=None)[0]
        fitted = few[:, :count] @ weights
        distance = np.abs(values - fitted)
        near = np.median(distance[here])
        here = distance <= max(6.0, 3.0 * float(near))
    else:
        return np.asarray((terms @ weights).reshape(grey.shape))
    return np.full_like(grey, np.median(edge))


def _kept(mask: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """The pixels of the digit: the connected parts of a mask that are no specks and do not touch the edge."""
    parts = _connected(mask)
    count = int(parts.max()) + 1
    mass = np.bincount(parts.reshape(-1), ink.reshape(-1), count)
    mass[0] = 0.0
    edges = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    within = mass.copy()
    within[edges] = 0.0
    if within.max() > 0.1 * mass.max():  # otherwise the digit itself touches the edge
        mass = within
    return np.asarray((mass >= _SPECK * mass.max())[parts] & mask)


def _connected(mask: np.ndarray) -> np.ndarray:
    """The number of the connected part of each pixel, from 1; 0 outside of the mask. Corners connect."""
    parent = [0]
    numbers = np.zeros(mask.shape, np.int64)

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    before: list[tuple[int, int, int]] = []
    for y, row in enumerate(mask):
        changes = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        runs = []
        for start, stop in changes.reshape(-1, 2).tolist():
            number = len(parent)
            parent.append(number)
            for first, last, other in before:
                if first <= stop and last >= start:
                    parent[root(other)] = root(number)
            numbers[y, start:stop] = number
            runs.append((start, stop, number))
        before = runs
    roots = np.array([root(number) for number in range(len(parent))])
    return np.unique(roots, return_inverse=True)[1][numbers]


def _thickened(ink: np.ndarray) -> np.ndarray:
    """The ink with strokes that are wide enough not to fade when it is scaled into the box."""
    for _ in range(12):
        mask = np.pad(ink > 0.5, 1)
        inside = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        area, rim = int(mask.sum()), int(mask.sum()) - int(inside.sum())
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
        if extent < 2 * _BOX or rim == 0 or 2.0 * area / rim >= _THINNEST * extent / _BOX:
            break
        wide = np.pad(ink, 2)
        # A step of one pixel up, down, left and right; the picture grows with it, so that nothing is cut off.
        ink = np.max(
            [wide[1:-1, 1:-1], wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]], axis=0
        )
    return ink


def _into_box(ink: np.ndarray) -> np.ndarray:
    """The ink scaled so that its longer side has 20 pixels."""
    from PIL import Image

    scale = _BOX / max(ink.shape)
    width, height = (max(1, round(side * scale)) for side in ink.shape[::-1])
    image = Image.fromarray(ink.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), np.float64)


def _centred(ink: np.ndarray) -> np.ndarray:
    """uint8 (28, 28) with the centre of mass of the ink in the middle, as far as the ink stays inside."""
    placed = np.zeros((_SIDE, _SIDE), np.uint8)
    corner = []
    for axis, size in enumerate(ink.shape):
        along = ink.sum(axis=1 - axis)
        centre = float((along * np.arange(size)).sum() / along.sum())
        corner.append(int(min(max(round(_SIDE / 2 - centre), 0), _SIDE - size)))
    y, x = corner
    placed[y : y + ink.shape[0], x : x + ink.shape[1]] = np.round(255.0 * np.clip(ink, 0.0, 1.0))
    return placed
