"""Windows over images: which elements each one covers, to take them apart and to add them up again (`fold`).

An image is (n, C, H, W) everywhere. A window of kh x kw elements begins every `stride` of them, its own elements are
`dilation` apart, and `padding` elements are thought around the image. A convolution and every pooling reads windows;
the gradient of reading is adding up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xnn.errors import OptionError, ShapeError
from xnn.ops.op import Array, Namespace
from xnn.options import check_pair

__all__ = ["Windows", "check_padding", "elements", "fold", "unfold", "windows_of"]


class Windows(NamedTuple):
    """The windows along one axis of `extent` elements: `number` of them, the first begins at -`before`."""

    extent: int
    kernel: int
    stride: int
    dilation: int
    before: int
    number: int

    @property
    def reach(self) -> int:
        """The elements from the first window's begin to the last one's end."""
        return (self.number - 1) * self.stride + (self.kernel - 1) * self.dilation + 1

    @property
    def padded(self) -> int:
        """The extent of the image with its padding, as far as windows reach."""
        return max(self.reach, self.before + self.extent)

    def element(self, e: int) -> slice:
        """Where in the padded image element e of every window is."""
        begin = e * self.dilation
        return slice(begin, begin + (self.number - 1) * self.stride + 1, self.stride)

    def holds(self, window: int) -> bool:
        """Whether an element of this window is not in the padding."""
        first = window * self.stride - self.before
        return any(0 <= first + e * self.dilation < self.extent for e in range(self.kernel))


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
            f" and does not fit an image of {extents[0]} x {extents[1]}, with padding {whole[0]} x {whole[1]}: take "
            "a smaller kernel or more padding"
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


def elements(xp: Namespace, x: Array, windows: tuple[Windows, Windows], fill: float = 0) -> list[Array]:
    """For each element of a window, row by row, those of all windows of x (n, C, H, W): arrays (n, C, oh, ow).

    `fill` is what stands in the padding. They are views of x if there is none.
    """
    cuts = []
    for axis, w in zip((2, 3), windows, strict=True):
        x = _pad(xp, x, axis, w.before, w.padded - w.before - w.extent, fill)
        cuts.append([w.element(e) for e in range(w.kernel)])
    return [x[:, :, rows, columns] for rows in cuts[0] for columns in cuts[1]]


def unfold(xp: Namespace, x: Array, windows: tuple[Windows, Windows]) -> Array:
    """Every window of x (n, C, H, W) as a row (n oh ow, C kh kw), with zeros in the padding.

    One gather by a table of positions: for more than a few channels it is faster than stacking `elements`.
    """
    positions = []
    for axis, w in zip((2, 3), windows, strict=True):
        x = _pad(xp, x, axis, w.before, w.padded - w.before - w.extent, 0)
        begins, steps = (xp.arange(count, device=x.device) for count in (w.number, w.kernel))
        positions.append(xp.expand_dims(begins * w.stride, axis=1) + steps * w.dilation)
    n, channels, height, width = x.shape
    planes = xp.arange(channels, device=x.device) * (height * width)
    top, left = positions[0] * width, positions[1]
    index = (
        xp.reshape(top, (top.shape[0], 1, 1, top.shape[1], 1))
        + xp.reshape(left, (left.shape[0], 1, 1, left.shape[1]))
        + xp.reshape(planes, (channels, 1, 1))
    )
    found = xp.take(xp.reshape(x, (n, channels * height * width)), xp.reshape(index, (-1,)), axis=1)
    return xp.reshape(found, (n * top.shape[0] * left.shape[0], channels * top.shape[1] * left.shape[1]))


def fold(xp: Namespace, parts: list[Array], windows: tuple[Windows, Windows], axis: int) -> Array:
    """The sum over all windows of what belongs to each element: what `elements` took apart, added up again.

    parts: for each element of a window, row by row, an array with the windows at `axis` and `axis` + 1, which become
    H and W. Parts are added in their order, first those of one row.
    """
    rows, columns = windows
    lines = [
        _joined(xp, parts[i * columns.kernel : (i + 1) * columns.kernel], columns, axis + 1)
        for i in range(rows.kernel)
    ]
    return _joined(xp, lines, rows, axis)


def _joined(xp: Namespace, parts: list[Array], w: Windows, axis: int) -> Array:
    """fold along one axis, where element e of window u is at position u stride + e dilation - before.

    Parts whose e dilation leave the same remainder by the stride meet at every stride-th position: they are added,
    each shifted by whole strides, and the sums for all remainders are laid between one another.
    """
    shape, length = parts[0].shape, -(-w.padded // w.stride)
    sums = []
    for remainder in range(w.stride):
        total = None
        for e, part in enumerate(parts):
            if e * w.dilation % w.stride == remainder:
                shift = e * w.dilation // w.stride
                part = _pad(xp, part, axis, shift, length - shift - w.number, 0)
                total = part if total is None else total + part
        if total is None:
            total = _filled(xp, parts[0], axis, length, 0)
        sums.append(total)
    whole = sums[0]
    if w.stride > 1:
        whole = xp.reshape(
            xp.stack(sums, axis=axis + 1), (*shape[:axis], length * w.stride, *shape[axis + 1 :])
        )
    return whole[(slice(None),) * axis + (slice(w.before, w.before + w.extent), ...)]


def _pad(xp: Namespace, x: Array, axis: int, before: int, after: int, fill: float) -> Array:
    """x with so many elements more at both ends of an axis."""
    ends = [_filled(xp, x, axis, count, fill) if count else None for count in (before, after)]
    parts = [part for part in (ends[0], x, ends[1]) if part is not None]
    return xp.concat(parts, axis=axis) if len(parts) > 1 else x


def _filled(xp: Namespace, like: Array, axis: int, extent: int, fill: float) -> Array:
    """An array like another, but for one axis, that holds `fill`."""
    shape = (*like.shape[:axis], extent, *like.shape[axis + 1 :])
    return xp.full(shape, fill, dtype=like.dtype, device=like.device)
