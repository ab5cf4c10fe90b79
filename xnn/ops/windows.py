"""Windows over images, as convolution and pooling read them, and their gradient (`fold`).

Images have shape (n, C, H, W). A window has kh x kw elements, which lie `dilation` apart. Windows lie `stride` apart,
and may reach `padding` elements over the edge of the image. The gradient of reading an element in several windows is
the sum of the windows' gradients.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xnn.errors import OptionError, ShapeError
from xnn.ops.op import Array, Namespace
from xnn.options import check_pair

__all__ = ["Windows", "check_padding", "elements", "fold", "unfold", "windows_of"]


class Windows(NamedTuple):
    """The windows along one axis.

    extent: the elements of the image along this axis.
    kernel, stride, dilation: the elements of a window, the distance between windows and between a window's elements.
    before: the padding before the first element.
    number: how many windows there are.
    """

    extent: int
    kernel: int
    stride: int
    dilation: int
    before: int
    number: int

    @property
    def reach(self) -> int:
        """The number of elements from the beginning of the first window to the end of the last."""
        return (self.number - 1) * self.stride + (self.kernel - 1) * self.dilation + 1

    @property
    def padded(self) -> int:
        """The extent of the image with padding, as far as windows reach."""
        return max(self.reach, self.before + self.extent)

    def element(self, e: int) -> slice:
        """The positions of element e of all windows in the padded image."""
        begin = e * self.dilation
        return slice(begin, begin + (self.number - 1) * self.stride + 1, self.stride)

    def holds(self, window: int) -> bool:
        """Whether the window has an element of the image, and not only padding."""
        first = window * self.stride - self.before
        return any(0 <= first + e * self.dilation < self.extent for e in range(self.kernel))


def check_padding(padding: Any) -> tuple[int, int] | str:
    """The padding as a pair of integers of at least 0, or "same". Raises OptionError for anything else."""
    if isinstance(padding, str):
        if padding != "same":
            raise OptionError(
                f"padding {padding!r}: padding must be an integer, a pair of integers or 'same'"
            )
        return padding
    return check_pair("padding", padding, least=0)


def windows_of(
    name: str, shape: tuple[int, ...], kernel: Any, stride: Any, padding: Any, dilation: Any
) -> tuple[Windows, Windows]:
    """The windows along H and along W of images of this shape (n, C, H, W). `name` is the op's, for errors.

    padding "same" gives as many windows as elements and needs stride 1. If the number of padding elements is odd, the
    extra one is at the end, as in PyTorch. Raises ShapeError for another number of axes and for a window larger than
    the padded image, OptionError for other options.
    """
    if len(shape) != 4:
        raise ShapeError(
            f"{name} got images of shape {tuple(shape)}: it takes images of shape (n, channels, height, width)"
        )
    kernel, stride = check_pair("kernel_size", kernel), check_pair("stride", stride)
    dilation, padding = check_pair("dilation", dilation), check_padding(padding)
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    if isinstance(padding, str):
        if stride != (1, 1):
            raise OptionError(f"padding='same' with stride {stride}: it needs stride 1")
        padded = tuple(((span - 1) // 2, span - 1) for span in spans)
    else:
        padded = tuple((p, 2 * p) for p in padding)
    extents = shape[2:]
    if any(span > extent + p for span, extent, (_, p) in zip(spans, extents, padded, strict=True)):
        whole = tuple(extent + p for extent, (_, p) in zip(extents, padded, strict=True))
        raise ShapeError(
            f"{name}: a window of {kernel[0]} x {kernel[1]} elements{_apart(dilation)} covers {spans[0]} x {spans[1]}"
            f" and does not fit an image of {extents[0]} x {extents[1]}, with padding {whole[0]} x {whole[1]}: use "
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
    """For each element of a window, row by row, an array (n, C, oh, ow) of that element in all windows of x.

    x: shape (n, C, H, W).
    fill: the value of the padding. Without padding the results are views of x.
    """
    cuts = []
    for axis, w in zip((2, 3), windows, strict=True):
        x = _pad(xp, x, axis, w.before, w.padded - w.before - w.extent, fill)
        cuts.append([w.element(e) for e in range(w.kernel)])
    return [x[:, :, rows, columns] for rows in cuts[0] for columns in cuts[1]]


def unfold(xp: Namespace, x: Array, windows: tuple[Windows, Windows]) -> Array:
    """Every window of x (n, C, H, W) as a row of a matrix (n oh ow, C kh kw), with zeros as padding.

    All elements are taken at once, by a table of their positions. With more than a few channels, that is faster than
    stacking the arrays that `elements` returns.
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
    """For each element of the image, the sum over all windows that contain it: the gradient of `elements`.

    parts: for each element of a window, row by row, an array whose axes `axis` and `axis` + 1 are the windows along H
        and W. These axes become H and W.

    The parts are added in their order, first within a row of the window.
    """
    rows, columns = windows
    lines = [
        _joined(xp, parts[i * columns.kernel : (i + 1) * columns.kernel], columns, axis + 1)
        for i in range(rows.kernel)
    ]
    return _joined(xp, lines, rows, axis)


def _joined(xp: Namespace, parts: list[Array], w: Windows, axis: int) -> Array:
    """`fold` along one axis. Element e of window u lies at position u * stride + e * dilation - before.

    Elements whose e * dilation has the same remainder modulo the stride lie at the same positions, those with this
    remainder. Their parts are added, each shifted by whole strides. Then the sums of all remainders are interleaved.
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
    """x with `before` and `after` more elements, of value `fill`, at the ends of an axis."""
    ends = [_filled(xp, x, axis, count, fill) if count else None for count in (before, after)]
    parts = [part for part in (ends[0], x, ends[1]) if part is not None]
    return xp.concat(parts, axis=axis) if len(parts) > 1 else x


def _filled(xp: Namespace, like: Array, axis: int, extent: int, fill: float) -> Array:
    """An array of value `fill`, like another array except for the extent of one axis."""
    shape = (*like.shape[:axis], extent, *like.shape[axis + 1 :])
    return xp.full(shape, fill, dtype=like.dtype, device=like.device)
