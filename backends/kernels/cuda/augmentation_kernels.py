"""Kernels of augmentation: the random displacements of RandomAffine and ElasticDeformation, and ops.warp."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.cuda.data_kernels import drawn_from, keep_mask, serves_mask
from xnn.backends.kernels.cuda.dense_kernels import has_one_dtype
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.launch import THREADS, Launch, by_element, compiled, cupy
from xnn.backends.random import AffineField, ElasticField

__all__ = ["draw", "serves_draw", "serves_warp", "warp"]


def serves_draw(call: Call) -> bool:
    """Whether the program says what a mask or a field of displacements is drawn from."""
    target = call.writes[0]
    if target is None or not isinstance(call.options.get("recipe"), (AffineField, ElasticField)):
        return serves_mask(call)
    known = np.dtype(target.dtype).name in ("float32", "float64")
    return known and 0 < math.prod(target.shape) < 2**31


def draw(call: Call, feed: DeviceFeed) -> Any:
    """Draw a mask, or the displacements (n, 2, height, width) of the images of a batch."""
    recipe = call.options["recipe"]
    if not isinstance(recipe, (AffineField, ElasticField)):
        return keep_mask(call, feed)
    field: Any = call.writes[0].array  # type: ignore[union-attr]
    numbers = drawn_from(call, feed)
    n, _, height, width = field.shape
    module = compiled("augmentation", field.dtype)
    if isinstance(recipe, AffineField):
        options = float(recipe.rotation), float(recipe.scale), float(recipe.shift)
        arguments = field, height, width, *numbers, *options
        return Launch(module, "affine_field", (n,), (THREADS,), arguments, feed.stream)
    size, scratch = field.size, cupy().empty_like(field)
    down, right = (cupy().asarray(recipe.smoothing(extent, str(field.dtype))) for extent in (height, width))
    rows = field, right, scratch, size, width, 1, 1.0
    columns = scratch, down, field, size, height, width, float(recipe.alpha)
    return [
        by_element(module, "signed_noise", size, (field, size, *numbers), feed.stream, each=8),
        by_element(module, "smooth", size, rows, feed.stream),
        by_element(module, "smooth", size, columns, feed.stream),
    ]


def serves_warp(call: Call) -> bool:
    """Whether images and displacements have one dtype and belong together."""
    (x, field), sizes = (slot.shape for slot in call.reads), [math.prod(slot.shape) for slot in call.slots()]
    known = has_one_dtype(call) and all(0 < size < 2**31 for size in sizes)
    fields = len(field) == 4 and field[1] == 2 and field[0] == x[0]
    return known and fields and math.prod(x[1:]) % math.prod(field[2:]) == 0


def warp(call: Call, feed: DeviceFeed) -> Any:
    """Move the pixels of each image."""
    (x, field), y = (slot.array for slot in call.reads), call.writes[0].array  # type: ignore[union-attr]
    n, _, height, width = field.shape
    channels = x.size // (n * height * width)
    arguments = x, field, y, y.size, channels, height, width
    return by_element(compiled("augmentation", x.dtype), "warp", y.size, arguments, feed.stream)
