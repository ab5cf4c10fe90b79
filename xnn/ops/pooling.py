"""Pooling of images: the largest element or the mean of each window."""

from __future__ import annotations

from typing import Any

from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.ops.op import Array, Namespace, Op
from xnn.ops.windows import Windows, elements, fold, windows_of
from xnn.options import check_pair

__all__ = ["avg_pool2d", "check_pool_padding", "max_pool2d", "pool_windows"]


def check_pool_padding(
    padding: Any, kernel: tuple[int, int], dilation: tuple[int, int] = (1, 1)
) -> tuple[int, int]:
    """The padding as a pair. Raises OptionError if it is more than half a window, which PyTorch forbids as well."""
    pair = check_pair("padding", padding, least=0)
    spans = (d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    if any(2 * p > span for p, span in zip(pair, spans, strict=True)):
        raise OptionError(
            f"padding {pair} of a pooling with windows of {kernel}: it must be at most half a window"
        )
    return pair


def pool_windows(
    name: str, shape: tuple[int, ...], kernel_size: Any, stride: Any, padding: Any, dilation: Any = 1
) -> tuple[Windows, Windows]:
    """The windows of a pooling along H and W; stride None stands for kernel_size.

    Raises ShapeError if a window has no element of the image. As padding is at most half a window, that happens only
    if a window's elements lie further apart than the image is wide. (PyTorch reads outside the image then.)
    """
    kernel, dilation = check_pair("kernel_size", kernel_size), check_pair("dilation", dilation)
    padding = check_pool_padding(padding, kernel, dilation)
    windows = windows_of(name, shape, kernel, kernel if stride is None else stride, padding, dilation)
    for w in windows:
        if w.extent < w.dilation and not all(map(w.holds, range(w.number))):
            raise ShapeError(
                f"{name}: with padding {padding} and dilation {dilation} a window has no element of an image of "
                f"{shape[2]} x {shape[3]}: use less of either"
            )
    return windows


class _Pool(Op):
    """The base class of poolings."""

    def _windows(
        self, xp: Namespace, x: Array, kernel_size: Any, stride: Any, padding: Any, dilation: Any
    ) -> tuple[Windows, Windows]:
        if not xp.isdtype(x.dtype, "real floating"):
            raise DTypeError(
                f"{self.name} got images of {x.dtype}: it needs floating-point images, which "
                "layers.Rescale makes of integers"
            )
        return pool_windows(self.name, x.shape, kernel_size, stride, padding, dilation)


class MaxPool2D(_Pool):
    """Maximum pooling: the largest element of each window. A window with NaN gives NaN.

    The result has shape (n, C, oh, ow), oh = floor((H + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1,
    ow likewise. Every option is an integer, or a pair for rows and columns.

    x: images, shape (n, C, H, W), floating-point.
    kernel_size: the size of a window.
    stride: the distance between windows; None (default) for kernel_size.
    padding: how far windows may reach over the edge, where elements count as -infinity; default 0.
    dilation: the distance between the elements of a window; default 1.

    The gradient goes to the first of the window's largest elements, row by row, as in PyTorch's max_pool2d; in a
    window with NaN, to its first NaN.
    """

    name = "max_pool2d"
    positional = ("kernel_size", "stride", "padding", "dilation")

    def forward(
        self,
        xp: Namespace,
        x: Array,
        *,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
    ) -> tuple[Array, Any]:
        windows = self._windows(xp, x, kernel_size, stride, padding, dilation)
        first, *others = elements(xp, x, windows, float("-inf"))
        y = first
        for element in others:
            y = xp.maximum(y, element)
        return y, (x, y, windows)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        x, y, windows = saved
        free = xp.ones(y.shape, dtype=(y == y).dtype, device=y.device)
        inside = elements(xp, xp.ones((1, *x.shape[1:]), dtype=free.dtype, device=x.device), windows, False)
        parts = []
        for element, here in zip(elements(xp, x, windows, float("-inf")), inside, strict=True):
            largest = xp.logical_or(element == y, element != element)
            chosen = xp.logical_and(xp.logical_and(largest, here), free)
            free = xp.logical_and(free, xp.logical_not(chosen))
            parts.append(xp.where(chosen, grad, 0.0))
        return (fold(xp, parts, windows, axis=2),)


class AvgPool2D(_Pool):
    """Average pooling: the mean of each window. As PyTorch's avg_pool2d with its default count_include_pad=True.

    The result has shape (n, C, oh, ow), oh = floor((H + 2 padding - kernel_size) / stride) + 1, ow likewise. Every
    option is an integer, or a pair for rows and columns.

    x: images, shape (n, C, H, W), floating-point.
    kernel_size: the size of a window.
    stride: the distance between windows; None (default) for kernel_size.
    padding: how far windows may reach over the edge, where elements count as 0; default 0.
    """

    name = "avg_pool2d"
    positional = ("kernel_size", "stride", "padding")

    def forward(
        self, xp: Namespace, x: Array, *, kernel_size: Any, stride: Any = None, padding: Any = 0
    ) -> tuple[Array, Any]:
        windows = self._windows(xp, x, kernel_size, stride, padding, 1)
        first, *others = elements(xp, x, windows)
        total = first
        for element in others:
            total = total + element
        return total / float(1 + len(others)), windows

    def backward(self, xp: Namespace, grad: Array, windows: Any) -> tuple[Array | None, ...]:
        count = windows[0].kernel * windows[1].kernel
        return (fold(xp, [grad / float(count)] * count, windows, axis=2),)


max_pool2d = MaxPool2D()
avg_pool2d = AvgPool2D()
