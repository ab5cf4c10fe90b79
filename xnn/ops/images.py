"""Deforms images by a field of displacements: warp."""

from __future__ import annotations

from typing import Any

from xnn.ops.indexing import ordered_scatter_add
from xnn.ops.op import Array, Namespace, Op, size_of

__all__ = ["warp"]


class Warp(Op):
    """Deform images by a field of displacements, with bilinear interpolation between the four nearest pixels.

        y[n, c, i, j] = x[n, c] at row i + field[n, 0, i, j] and column j + field[n, 1, i, j]

    Outside the image, x is 0. A field of zeros changes nothing.

    x: shape (n, channels, height, width), (n, height, width), or flat (n, channels * height * width).
    field: shape (n, 2, height, width), in pixels; the same for all channels.

    Gradients: a pixel of x gets its share of all pixels of y that were interpolated from it, added in the order of
    these pixels; the field gets the slope between the four pixels. Raises ShapeError for shapes that do not fit.
    Source: Jaderberg et al., "Spatial transformer networks", NeurIPS 2015, equations 5 to 7.
    """

    def forward(self, xp: Namespace, x: Array, field: Array) -> tuple[Array, Any]:
        if field.ndim != 4 or field.shape[1] != 2 or field.shape[0] != x.shape[0]:
            raise ValueError(
                f"a field of shape {field.shape} for {x.shape[0]} images: it must be ({x.shape[0]}, 2, height, width)"
            )
        n, _, height, width = field.shape
        if not height * width or size_of(x.shape[1:]) % (height * width):
            raise ValueError(f"samples of shape {x.shape[1:]} are not images of {height} x {width} pixels")
        channels = size_of(x.shape[1:]) // (height * width)
        row, down, in_rows = _between(xp, field[:, :1, ...], height, 2)
        column, right, in_columns = _between(xp, field[:, 1:, ...], width, 3)
        # A border of zeros: with it each position has four pixels around it, and no index needs a check.
        stride = width + 2
        first = xp.reshape(xp.arange(n * channels, device=x.device), (n, channels, 1, 1)) * (
            (height + 2) * stride
        )
        index = first + (row + 1) * stride + (column + 1)
        padded = _padded(xp, xp.reshape(x, (n, channels, height, width)))
        corners = tuple(
            xp.reshape(xp.take(padded, xp.reshape(index + step, (-1,)), axis=0), index.shape)
            for step in (0, 1, stride, stride + 1)
        )
        a, b, c, d = corners
        top = a + right * (b - a)
        bottom = c + right * (d - c)
        y = top + down * (bottom - top)
        return xp.reshape(y, x.shape), (index, corners, (down, in_rows), (right, in_columns), stride)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        index, (a, b, c, d), (down, in_rows), (right, in_columns), stride = saved
        shape, grad = grad.shape, xp.reshape(grad, index.shape)
        n, channels, height, _ = index.shape
        upper, lower = (1.0 - down) * grad, down * grad
        shares = ((1.0 - right) * upper, right * upper, (1.0 - right) * lower, right * lower)
        places = xp.stack([index + step for step in (0, 1, stride, stride + 1)], axis=-1)
        count = n * channels * (height + 2) * stride
        added = ordered_scatter_add(
            xp, count, xp.reshape(places, (-1,)), xp.reshape(xp.stack(shares, axis=-1), (-1,))
        )
        inside = xp.reshape(added, (n, channels, height + 2, stride))[:, :, 1:-1, 1:-1]
        slope_down = (c - a) + right * ((d - c) - (b - a))
        slope_right = (b - a) + down * ((d - c) - (b - a))
        fields = [
            xp.where(moves, xp.sum(slope * grad, axis=1, keepdims=True), 0.0)
            for slope, moves in ((slope_down, in_rows), (slope_right, in_columns))
        ]
        return xp.reshape(inside, shape), xp.concat(fields, axis=1)


def _between(xp: Namespace, moved: Array, extent: int, axis: int) -> tuple[Array, Array, Array]:
    """Along one axis, for each position: the pixel before it, its distance from that pixel, whether it is inside.

    The pixel is from -1 to extent - 1, the distance from 0 to 1. A position outside the image is moved to just beyond
    its edge, where everything is 0.
    """
    shape = tuple(extent if a == axis else 1 for a in range(4))
    pixels = xp.reshape(xp.arange(extent, dtype=moved.dtype, device=moved.device), shape)
    wanted = pixels + moved
    place = xp.minimum(xp.maximum(wanted, -1.0), float(extent))
    before = xp.minimum(xp.floor(place), extent - 1.0)
    counting = xp.arange(1, device=moved.device).dtype
    inside = xp.logical_or(place == wanted, wanted != wanted)  # NaN goes on
    return xp.astype(xp.where(before == before, before, 0.0), counting), place - before, inside


def _padded(xp: Namespace, x: Array) -> Array:
    """The images with a border of one zero around each, as a flat array."""
    n, channels, height, width = x.shape
    side = xp.zeros((n, channels, height, 1), dtype=x.dtype, device=x.device)
    wide = xp.concat((side, x, side), axis=3)
    edge = xp.zeros((n, channels, 1, width + 2), dtype=x.dtype, device=x.device)
    return xp.reshape(xp.concat((edge, wide, edge), axis=2), (-1,))


warp = Warp()
