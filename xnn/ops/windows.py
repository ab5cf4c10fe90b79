"""Windows over images: which elements each one covers, to lay them out (`unfold`) and to add them up again (`fold`).

An image is (n, C, H, W) everywhere. A window of kh x kw elements begins every `stride` of them, its own elements are
`dilation` apart, and `padding` elements are thought around the image. A convolution and every pooling reads windows;
the gradient of reading is adding up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xnn.errors import OptionError, ShapeError
from xnn.ops.op import Array, Namespace, size_of
from xnn.options import check_pair

__all__ = ["PLANES", "ROWS", "Windows", "check_padding", "fold", "unfold", "windows_of"]

#: How unfolded elements lie, as an order of (C, kh, kw, oh, ow): one row for each window, in the order of a
#: convolution's weights; or one plane for each element of a window.
ROWS, PLANES = (3, 4, 0, 1, 2), (1, 2, 0, 3, 4)


class Windows(NamedTuple):
    """The windows along one axis of `extent` elements: `number` of them, the first begins at -`before`."""

    extent: int
    kernel: int
    stride: int
    dilation: int
    before: int
    number: int

    def covered(self, xp: Namespace, like: Array) -> tuple[Array, Array]:
        """The position of each window's elements (kernel, number), and whether one is there or in the padding."""
        elements = xp.arange(self.kernel, device=like.device)
        starts = xp.arange(self.number, device=like.device) * self.stride - self.before
        position = xp.expand_dims(elements * self.dilation, axis=1) + starts
        return position, xp.logical_and(position >= 0, position < self.extent)

    def covering(self, xp: Namespace, like: Array) -> tuple[Array, Array, Array]:
        """For each position which elements of which windows cover it, (most, extent) both, and which of these exist.

        Element e of window w lies at w * stride + e * dilation - before. Without dilation the elements that can lie
        at one position are `stride` apart, so that at most ceil(kernel / stride) do.
        """
        apart = self.stride if self.dilation == 1 else 1
        place = xp.arange(self.extent, device=like.device) + self.before
        most = xp.expand_dims(xp.arange(-(-self.kernel // apart), device=like.device), axis=1)
        element = place % apart + most * apart
        begins = place - element * self.dilation
        window = begins // self.stride
        exists = xp.logical_and(element < self.kernel, window * self.stride == begins)
        inside = xp.logical_and(window >= 0, window < self.number)
        return element, window, xp.logical_and(exists, inside)


def check_padding(padding: Any) -> tuple[int, int] | str:
    """An integer or a pair of at least 0, or "same". Raises OptionError."""
    if isinstance(padding, str):
        if padding != "same":
            raise OptionError(f"padding must be an integer, a pair of them or 'same', got {padding!r}")
        return padding
    return check_pair("padding", padding, least=0)


def windows_of(
    name: str, shape: tuple[int, ...], kernel: Any, stride: Any, padding: Any, dilation: Any
) -> tuple[Windows, Windows]:
    """The windows along H and along W of images of this shape (n, C, H, W).

    "same": as many windows as elements, with stride 1; of an odd number of elements to pad the last is at the end,
    as in PyTorch. Raises ShapeError for another number of axes or a window larger than the padded image, OptionError
    for the options.
    """
    if len(shape) != 4:
        raise ShapeError(f"{name} takes images of shape (n, channels, height, width), got {tuple(shape)}")
    kernel, stride = check_pair("kernel_size", kernel), check_pair("stride", stride)
    dilation, padding = check_pair("dilation", dilation), check_padding(padding)
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    if isinstance(padding, str):
        if stride != (1, 1):
            raise OptionError(f"padding='same' needs stride 1, got stride {stride}")
        padded = tuple(((span - 1) // 2, span - 1) for span in spans)
    else:
        padded = tuple((p, 2 * p) for p in padding)
    extents = shape[2:]
    if any(span > extent + p for span, extent, (_, p) in zip(spans, extents, padded, strict=True)):
        whole = tuple(extent + p for extent, (_, p) in zip(extents, padded, strict=True))
        raise ShapeError(
            f"{name}: a window of {kernel[0]} x {kernel[1]} elements{_apart(dilation)} covers {spans[0]} x {spans[1]}"
            f" and does not fit an image of {extents[0]} x {extents[1]}, with padding {whole[0]} x {whole[1]}: take a "
            "smaller kernel or more padding"
        )
    rows, columns = (
        Windows(extent, k, s, d, before, (extent + p - span) // s + 1)
        for extent, k, s, d, span, (before, p) in zip(
            extents, kernel, stride, dilation, spans, padded, strict=True
        )
    )
    return rows, columns


def _apart(dilation: tuple[int, int]) -> str:
    return "" if dilation == (1, 1) else f" with dilation {dilation}"


def unfold(
    xp: Namespace, x: Array, windows: tuple[Windows, Windows], order: tuple[int, ...], fill: float = 0
) -> Array:
    """The elements of every window of x (n, C, H, W), in this order of (C, kh, kw, oh, ow); `fill` in the padding.

    One gather by a table of positions: that was faster than cutting out and stacking slices on images of several
    channels, and knows every stride and dilation.
    """
    channels, height, width = x.shape[1:]
    (top, in_rows), (left, in_columns) = (axis.covered(xp, x) for axis in windows)
    planes = _spread(xp, xp.arange(channels, device=x.device) * (height * width), 0)
    index = planes + _spread(xp, top * width, 1, 3) + _spread(xp, left, 2, 4)
    inside = xp.logical_and(_spread(xp, in_rows, 1, 3), _spread(xp, in_columns, 2, 4))
    index = xp.permute_dims(xp.where(inside, index, channels * height * width), order)
    return _gather(xp, x, index, fill)


def fold(
    xp: Namespace,
    patches: Array,
    shape: tuple[int, ...],
    windows: tuple[Windows, Windows],
    order: tuple[int, ...],
) -> Array:
    """What `unfold` in this order laid out, added up again: for each element of (n, C, H, W) its windows' sum.

    The windows that cover an element are added in the order of the element's place in them, first rows, then columns.
    """
    _, channels, _, _ = shape
    rows, columns = windows
    sizes = channels, rows.kernel, columns.kernel, rows.number, columns.number
    strides = [size_of([sizes[a] for a in order[order.index(axis) + 1 :]]) for axis in range(5)]
    (i, y, in_rows), (j, x, in_columns) = (axis.covering(xp, patches) for axis in windows)
    planes = _spread(xp, xp.arange(channels, device=patches.device) * strides[0], 2)
    index = planes + _spread(xp, i * strides[1] + y * strides[3], 0, 3)
    index = index + _spread(xp, j * strides[2] + x * strides[4], 1, 4)
    inside = xp.logical_and(_spread(xp, in_rows, 0, 3), _spread(xp, in_columns, 1, 4))
    index = xp.where(inside, index, size_of(sizes))
    index = xp.reshape(index, (index.shape[0] * index.shape[1], *index.shape[2:]))
    found = _gather(xp, patches, index, 0)
    total = found[:, 0, ...]
    for k in range(1, index.shape[0]):
        total = total + found[:, k, ...]
    return total


def _spread(xp: Namespace, table: Array, *axes: int) -> Array:
    """A table's axes as these of five."""
    extents = [1, 1, 1, 1, 1]
    placed = dict(zip(axes, table.shape, strict=True))
    return xp.reshape(table, tuple(placed.get(axis, extent) for axis, extent in enumerate(extents)))


def _gather(xp: Namespace, x: Array, index: Array, fill: float) -> Array:
    """Of each sample of x the elements that `index` numbers; the number after the last is `fill`."""
    n, size = x.shape[0], size_of(x.shape[1:])
    outside = xp.full((n, 1), fill, dtype=x.dtype, device=x.device)
    flat = xp.concat((xp.reshape(x, (n, size)), outside), axis=1)
    return xp.reshape(xp.take(flat, xp.reshape(index, (-1,)), axis=1), (n, *index.shape))
