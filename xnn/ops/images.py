"""Functions of images: warp, which moves their pixels."""

from __future__ import annotations

from typing import Any

from xnn.ops.indexing import ordered_scatter_add
from xnn.ops.op import Array, Namespace, Op, size_of

__all__ = ["warp"]


class Warp(Op):
    """y[n, c, i, j] = x[n, c] at row i + field[n, 0, i, j] and column j + field[n, 1, i, j], between four pixels.

    x: (n, ...), each sample an image of the field's height and width with any number of channels, flat or not:
    (n, channels, height, width), (n, height, width) or (n, height * width). field: (n, 2, height, width), in pixels;
    one number for all channels. Bilinear interpolation; around the image everything is 0. With field = 0 it is the
    identity. Gradients for both: for the image, each pixel's share in the four it was made of, added in the order
    of the pixels; for the field, the slope between the four.
    Source: Jaderberg et al., "Spatial transformer networks", NeurIPS 2015, equations 5 to 7.
    """

    def forward(self, xp: Namespace, x: Array, field: Array) -> tuple[Array, Any]:
        if field.ndim != 4 or field.shape[1] != 2 or field.shape[0] != x.shape[0]:
            raise ValueError(
                f"a field for {x.shape[0]} images is ({x.shape[0]}, 2, height, width), not {field.shape}"
            )
        n, _, height, width = field.shape
        if not height * width or size_of(x.shape[1:]) % (height * width):
            raise ValueError(f"samples of shape {x.shape[1:]} are no images of {height} x {width} pixels")
        channels = size_of(x.shape[1:]) // (height * width)
        row, down, in_rows = _between(xp, field[:, :1, ...], height, 2)
        column, right, in_columns = _between(xp, field[:, 1:, ...], width, 3)
        # A border of zeros: each pixel has four neighbours then, and their numbers need not be looked at.
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
    """Along one axis: the pixel before each place, from -1 to extent - 1; how far behind it the place is, 0 to 1;
    and whether it is in the image. One that is not is moved to just beyond it, where everything is 0.
    """
    shape = tuple(extent if a == axis else 1 for a in range(4))
    pixels = xp.reshape(xp.arange(extent, dtype=moved.dtype, device=moved.device), shape)
    wanted = pixels + moved
    place = xp.minimum(xp.maximum(wanted, -1.0), float(extent))
    before = xp.minimum(xp.floor(place), extent - 1.0)
    counting = xp.arange(1, device=moved.device).dtype
    return xp.astype(xp.where(before == before, before, 0.0), counting), place - before, place == wanted


def _padded(xp: Namespace, x: Array) -> Array:
    """Every image with a border of one zero around it, flat."""
    n, channels, height, width = x.shape
    side = xp.zeros((n, channels, height, 1), dtype=x.dtype, device=x.device)
    wide = xp.concat((side, x, side), axis=3)
    edge = xp.zeros((n, channels, 1, width + 2), dtype=x.dtype, device=x.device)
    return xp.reshape(xp.concat((edge, wide, edge), axis=2), (-1,))


warp = Warp()
