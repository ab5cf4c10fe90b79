"""Samples as they are shown in a report: small pictures, or the first numbers of a row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xnn.data import Dataset
from xnn.report.picture import data_uri, png, small
from xnn.report.run import Examples

__all__ = ["Gallery", "image_of", "pixels_of"]

_SIDE = 48  # pixels
_NUMBERS = 12  # of a sample that is no image


class Gallery:
    """Collects samples, each of them once, until they have too many bytes.

    examples: what they are taken from. budget: how many bytes they may have.

    `items` has {"row": number, "image": address} or {"row": number, "text": numbers} for each.
    """

    def __init__(self, examples: Examples, budget: int) -> None:
        self.examples, self.left = examples, budget
        self.items: list[dict[str, Any]] = []
        self._places: dict[int, int | None] = {}

    def add(self, row: int) -> int | None:
        """The place of a sample in `items`; None if it has no room there."""
        if row not in self._places:
            item = {"row": row, **self._shown(self.examples.x[row])}
            size = sum(len(str(value)) + 12 for value in item.values())
            fits = size <= self.left
            self._places[row] = len(self.items) if fits else None
            if fits:
                self.items.append(item)
                self.left -= size
        return self._places[row]

    def _shown(self, sample: np.ndarray) -> dict[str, str]:
        numbers = np.asarray(sample).ravel()
        if self.examples.image is not None and numbers.size:
            return {"image": data_uri(png(pixels_of(numbers, self.examples.image, _SIDE)))}
        names = self.examples.columns or [str(place) for place in range(numbers.size)]
        pairs = [f"{name} {value:g}" for name, value in zip(names, numbers[:_NUMBERS], strict=False)]
        return {"text": ", ".join(pairs) + (", ..." if numbers.size > _NUMBERS else "")}


def pixels_of(numbers: np.ndarray, image: tuple[int, int], most: int) -> np.ndarray:
    """A sample as an image of bytes: grey, or of three channels in colour; of other channels the first.

    numbers: (pixels,). image: height and width. most: pixels on a side; larger images become smaller.
    """
    channels = numbers.reshape(-1, *image)
    pixels = channels.transpose(1, 2, 0) if len(channels) == 3 else channels[0]
    pixels = small(pixels, most)
    if numbers.dtype != np.uint8:
        pixels = np.nan_to_num(pixels.astype(np.float64), posinf=0.0, neginf=0.0)
        low, high = float(pixels.min()), float(pixels.max())
        pixels = (pixels - low) * (255.0 / ((high - low) or 1.0))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def image_of(x: np.ndarray) -> tuple[int, int] | None:
    """The height and width of samples that are images, by the rule of a Dataset."""
    rows = x.reshape(len(x), math.prod(x.shape[1:]))
    labels = np.zeros(len(x), dtype=np.int64)
    x_none, y_none = rows[:0], labels[:0]
    return Dataset(
        "", rows, labels, x_none, y_none, x_none, y_none, sample_shape=x.shape[1:] if x.ndim > 2 else ()
    ).image
