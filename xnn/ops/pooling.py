"""Pooling of images: the largest or the mean of each window."""

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
    """A pair of at most half a window each, as PyTorch allows. Raises OptionError."""
    pair = check_pair("padding", padding, least=0)
    spans = (d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    if any(2 * p > span for p, span in zip(pair, spans, strict=True)):
        raise OptionError(f"padding of a pooling must be at most half a window, got {pair} for {kernel}")
    return pair


def pool_windows(
    name: str, shape: tuple[int, ...], kernel_size: Any, stride: Any, padding: Any, dilation: Any = 1
) -> tuple[Windows, Windows]:
    """windows_of a pooling, each of which has an element of the image; stride None stands for kernel_size.

    Padding of at most half a window leaves one without only if its elements lie further apart than the image is wide
    (where PyTorch reads and writes beside it). Raises ShapeError then.
    """
    kernel, dilation = check_pair("kernel_size", kernel_size), check_pair("dilation", dilation)
    padding = check_pool_padding(padding, kernel, dilation)
    windows = windows_of(name, shape, kernel, kernel if stride is None else stride, padding, dilation)
    for w in windows:
        if w.extent < w.dilation and not all(map(w.holds, range(w.number))):
            raise ShapeError(
                f"{name}: with padding {padding} and dilation {dilation} a window has no element of an image of "
                f"{shape[2]} x {shape[3]}: take less of either"
            )
    return windows


class _Pool(Op):
    """What the poolings share: their windows."""

    def _windows(
        self, xp: Namespace, x: Array, kernel_size: Any, stride: Any, padding: Any, dilation: Any
    ) -> tuple[Windows, Windows]:
        """The windows, after a look at the dtype."""
        if not xp.isdtype(x.dtype, "real floating"):
            raise DTypeError(
                f"{self.name} needs floating-point images, got {x.dtype}: Rescale converts integers"
            )
        return pool_windows(self.name, x.shape, kernel_size, stride, padding, dilation)


class MaxPool2D(_Pool):
    """The largest element of each window of images (n, C, H, W): y (n, C, oh, ow); NaN where a window holds one.

    oh = floor((H + 2 padding - dilation (kernel - 1) - 1) / stride) + 1, ow likewise; each option a number or a pair.
    stride is kernel_size when not given; padding counts as -infinity. The gradient goes to the first of a window's
    largest elements, row by row, as in PyTorch's max_pool2d; to the first of all where the window holds NaN.
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
            chosen = xp.logical_and(xp.logical_and(xp.logical_not(element < y), here), free)
            free = xp.logical_and(free, xp.logical_not(chosen))
            parts.append(xp.where(chosen, grad, 0.0))
        return (fold(xp, parts, windows, axis=2),)


class AvgPool2D(_Pool):
    """The mean of each window of images (n, C, H, W), where padding counts as zeros: y (n, C, oh, ow).

    oh = floor((H + 2 padding - kernel) / stride) + 1, ow likewise; each option a number or a pair. stride is
    kernel_size when not given. As PyTorch's avg_pool2d with its default count_include_pad=True.
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
