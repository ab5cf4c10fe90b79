"""Compiled kernels of augmentation, whose images threads share, and of what layers draw."""

from __future__ import annotations

import math

import numpy as np

from xnn import ops
from xnn.backends.kernels import augment_loops as loops
from xnn.backends.kernels.calls import Call
from xnn.backends.kernels.draw_loops import keep_mask
from xnn.backends.kernels.image_calls import PARTS, ImageCall, new_call
from xnn.backends.kernels.image_kernels import fits
from xnn.backends.kernels.jit import Loop
from xnn.backends.kernels.micro_kernels import VECTOR
from xnn.backends.kernels.rows import Rows, Writer
from xnn.backends.random import AffineField, ElasticField, Mask, mask_threshold

__all__ = ["AUGMENT_ROWS"]

_BOOLEANS = 2048  #: of a mask that a thread makes at least: a multiple of 8


def _serves_draw(call: Call) -> bool:
    """Whether the program says what a mask, or a field of displacements, is drawn from."""
    recipe, target = call.options.get("recipe"), call.writes[0]
    assert target is not None
    return "cursor" in call.options and (
        isinstance(recipe, Mask)
        or (isinstance(recipe, (AffineField, ElasticField)) and 0 not in target.shape)
    )


def _draw(call: Call) -> Rows | ImageCall:
    recipe, target = call.options["recipe"], call.writes[0].array  # type: ignore[union-attr]
    stream = call.options["cursor"].stream, call.options["again"], recipe.index, int(recipe.purpose)
    if isinstance(recipe, Mask):
        out = Writer(None)
        threshold = mask_threshold(recipe.rate)
        out.loop(keep_mask, target.size, target.view(np.uint8), *stream, threshold, grain=_BOOLEANS)
        return out.made
    n, dtype, (height, width) = len(target), target.dtype, target.shape[2:]
    pitch = -(-width * dtype.itemsize // VECTOR)
    elastic = isinstance(recipe, ElasticField)
    loop = loops.elastic_field if elastic else loops.affine_field
    scratch = 2 * height * pitch * VECTOR + height * width * dtype.itemsize if elastic else 0
    made = ImageCall(Loop(loop, dtype), n, target[:1].nbytes, min(n, PARTS), scratch=scratch)
    by = (recipe.alpha,) if elastic else (recipe.rotation, recipe.scale, recipe.shift)
    made.row += [
        made.address(target),
        made.address(np.asarray(by, float)),
        height,
        width,
        made.address(stream[0]),
    ]
    made.row += stream[1:]
    if elastic:
        right = np.zeros((width, pitch * VECTOR // dtype.itemsize), dtype)
        right[:, :width] = recipe.smoothing(width, dtype.name)
        down = np.ascontiguousarray(recipe.smoothing(height, dtype.name))
        made.row += [made.address(down), made.address(right), pitch]
    return made


def _serves_warp(call: Call) -> bool:
    """Whether images and displacements belong together."""
    x, field = (slot.shape for slot in call.reads)
    fields = len(field) == 4 and field[1] == 2 and field[0] == x[0]
    return fits(call) and fields and math.prod(x[1:]) % math.prod(field[2:]) == 0


def _warp(call: Call) -> ImageCall:
    (x, field), y = (slot.array for slot in call.reads), call.writes[0].array  # type: ignore[union-attr]
    made, extents = new_call(call, loops.warp), field.shape[2:]
    addresses = [made.address(array) for array in (x, field, y)]
    made.row += [*addresses, x[0].size // math.prod(extents), *extents]
    return made


AUGMENT_ROWS = {("draw", None): (_draw, _serves_draw), ("forward", ops.warp): (_warp, _serves_warp)}
