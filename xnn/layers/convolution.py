"""Layers for images (n, channels, height, width): convolution and pooling."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from xnn import ops
from xnn.backends import backend_of
from xnn.errors import OptionError, ShapeError
from xnn.initializers import He, Initializer, Zeros
from xnn.layers.layer import Layer, check_input_dtype
from xnn.layers.parameter import Parameter
from xnn.ops import Array, Namespace
from xnn.ops.pooling import check_pool_padding, pool_windows
from xnn.ops.windows import check_padding, windows_of
from xnn.options import check_count, check_dtype, check_pair

__all__ = ["AvgPool2D", "Conv2D", "GlobalAvgPool", "MaxPool2D"]


class Conv2D(Layer):
    """Convolution of images (n, in_channels, H, W) to (n, out_channels, oh, ow), as ops.conv2d computes it.

    weight (out_channels, in_channels, kh, kw), PyTorch's layout, and bias (out_channels,). kernel_size, stride,
    padding and dilation are a number or a pair (of rows, of columns); padding may be "same". Weights start as He
    normal, for the ReLU that follows, and biases as zeros unless told otherwise (PyTorch draws both uniformly).
    `seed` draws the weights of a layer that stands alone; inside a Sequential the model's does.
    Raises OptionError for options outside what is allowed.
    """

    op = ops.conv2d
    from_input: ClassVar[dict[str, int]] = {"in_channels": 0}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        bias: bool = True,
        weight_init: Initializer = He(),
        bias_init: Initializer = Zeros(),
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
        self.in_channels = check_count("in_channels", in_channels)
        self.out_channels = check_count("out_channels", out_channels)
        self.kernel_size, self.stride = check_pair("kernel_size", kernel_size), check_pair("stride", stride)
        self.padding, self.dilation = check_padding(padding), check_pair("dilation", dilation)
        if self.padding == "same" and self.stride != (1, 1):
            raise OptionError(f"padding='same' needs stride 1, got stride {stride!r}")
        self.dtype = check_dtype(dtype)
        shape = (self.out_channels, self.in_channels, *self.kernel_size)
        self.weight = Parameter("weight", shape, weight_init, dtype)
        self.bias = Parameter("bias", (self.out_channels,), bias_init, dtype) if bias else None
        super().__init__(*(p for p in (self.weight, self.bias) if p is not None), seed=seed)

    @property
    def _name(self) -> str:
        return f"Conv2D({self.in_channels}, {self.out_channels}, {self.kernel_size})"

    def check(self, x: Array) -> None:
        """Backend, shape and dtype as the weights have them."""
        backend_of(x, self.weight.array)  # an array, and not one of another backend
        _check_images(self._name, x, self.in_channels)
        check_input_dtype(self._name, x, self.weight)

    def options(self, xp: Namespace) -> dict[str, Any]:
        """Stride, padding and dilation."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def config(self) -> dict[str, Any]:
        """Sizes, options, bias and dtype; the initializers have done their work."""
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": list(self.kernel_size),
            "stride": list(self.stride),
            "padding": self.padding if isinstance(self.padding, str) else list(self.padding),
            "dilation": list(self.dilation),
            "bias": self.bias is not None,
            "dtype": self.dtype,
        }

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(out_channels, oh, ow)."""
        _check_sample(self._name, shape, self.in_channels)
        rows, columns = windows_of(
            self._name, (1, *shape), self.kernel_size, self.stride, self.padding, self.dilation
        )
        return self.out_channels, rows.number, columns.number

    def flops(self, shape: tuple[int, ...]) -> int:
        """A multiplication and an addition per weight, an addition per bias, at each place of the output."""
        _, height, width = self.output_shape(shape)
        return height * width * (2 * self.weight.size + (self.bias.size if self.bias else 0))


class _Pool(Layer):
    """What the poolings share: windows of kernel_size every stride elements, and no parameters."""

    dilation: tuple[int, int] = (1, 1)

    def __init__(self, kernel_size: Any, stride: Any, padding: Any, dilation: Any = 1) -> None:
        self.kernel_size = check_pair("kernel_size", kernel_size)
        self.stride = self.kernel_size if stride is None else check_pair("stride", stride)
        self.dilation = check_pair("dilation", dilation)
        self.padding = check_pool_padding(padding, self.kernel_size, self.dilation)
        super().__init__()

    def check(self, x: Array) -> None:
        """Images."""
        backend_of(x)
        _check_images(repr(self), x)

    def options(self, xp: Namespace) -> dict[str, Any]:
        """The windows'."""
        return {"kernel_size": self.kernel_size, "stride": self.stride, "padding": self.padding}

    def config(self) -> dict[str, Any]:
        """The windows' options as lists."""
        return {key: list(pair) for key, pair in self.options(None).items()}

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(channels, oh, ow)."""
        _check_sample(repr(self), shape)
        rows, columns = pool_windows(
            repr(self), (1, *shape), self.kernel_size, self.stride, self.padding, self.dilation
        )
        return shape[0], rows.number, columns.number

    def flops(self, shape: tuple[int, ...]) -> int:
        """One per element of each window."""
        return math.prod((*self.output_shape(shape), *self.kernel_size))


class MaxPool2D(_Pool):
    """The largest element of each window of images (n, C, H, W), as ops.max_pool2d computes it.

    stride is kernel_size when not given; each option a number or a pair. Raises OptionError for others.
    """

    op = ops.max_pool2d

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1) -> None:
        super().__init__(kernel_size, stride, padding, dilation)

    def options(self, xp: Namespace) -> dict[str, Any]:
        """The windows'."""
        return {**super().options(xp), "dilation": self.dilation}


class AvgPool2D(_Pool):
    """The mean of each window of images (n, C, H, W), padding counted as zeros, as ops.avg_pool2d computes it.

    stride is kernel_size when not given; each option a number or a pair. Raises OptionError for others.
    """

    op = ops.avg_pool2d

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0) -> None:
        super().__init__(kernel_size, stride, padding)


class GlobalAvgPool(Layer):
    """The mean of each channel of images (n, C, H, W): y (n, C), whatever H and W are."""

    op = ops.mean

    def check(self, x: Array) -> None:
        """Images."""
        backend_of(x)
        _check_images(repr(self), x)

    def options(self, xp: Namespace) -> dict[str, Any]:
        """The axes of an image."""
        return {"axis": (2, 3)}

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(channels,)."""
        _check_sample(repr(self), shape)
        return shape[:1]


def _check_images(name: str, x: Array, channels: int | None = None) -> None:
    """Raise ShapeError for what is no batch of images of so many channels."""
    if x.ndim != 4 or channels not in (None, x.shape[1]):
        raise ShapeError(
            f"{name} takes images (n, {channels or 'channels'}, height, width), got an input of {tuple(x.shape)}"
        )


def _check_sample(name: str, shape: tuple[int, ...], channels: int | None = None) -> None:
    """Raise ShapeError for what is no image of so many channels."""
    if len(shape) != 3 or channels not in (None, shape[0]):
        hint = "; Reshape(channels, height, width) before it makes images of rows" if len(shape) == 1 else ""
        raise ShapeError(
            f"{name} takes samples of shape ({channels or 'channels'}, height, width), got {tuple(shape)}{hint}"
        )
