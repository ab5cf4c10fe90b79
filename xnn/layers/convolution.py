"""Layers for images (n, channels, height, width): convolution and pooling."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from xnn import ops
from xnn.backends import backend_of
from xnn.backends.memory import check_memory
from xnn.errors import OptionError, ShapeError
from xnn.initializers import He, Initializer, Zeros
from xnn.layers.layer import Layer, check_input_dtype
from xnn.layers.parameter import Parameter
from xnn.ops import Array, Namespace
from xnn.ops.pooling import check_pool_padding, pool_windows
from xnn.ops.windows import check_padding, windows_of
from xnn.options import check_count, check_dtype, check_flag, check_pair, checked, written

__all__ = ["AvgPool2D", "Conv2D", "GlobalAvgPool", "MaxPool2D"]


#: Images that padding makes this many times larger are compared with the memory that is free.
_MOSTLY_PADDING = 8


class Conv2D(Layer):
    """Convolution of images: (n, in_channels, height, width) becomes (n, out_channels, rows, columns).

    in_channels, out_channels: integers of at least 1.
    kernel_size: the size of the window, an integer or a pair (rows, columns).
    stride: by how many pixels the window moves, an integer or a pair; 1 by default.
    padding: how many rows and columns of zeros are added on each side, an integer or a pair; 0 by default. "same"
        adds as many as give outputs of the inputs' size; the stride must then be 1.
    dilation: the distance between neighbouring pixels of a window, an integer or a pair; 1 by default.
    bias: whether a number is added to each output channel; True by default.
    weight_init: how `weight` (out_channels, in_channels, rows, columns), PyTorch's layout, starts; He normal by
        default, for the ReLU that follows.
    bias_init: how `bias` (out_channels,) starts; zeros by default.
    dtype: "float32" (the default) or "float64".
    seed: an integer, from which the weights are drawn, whatever its place in a model. By default the model's seed
        draws them; outside a model the seed is 0.

    PyTorch draws weights and biases uniformly; see `xnn.initializers.He`. `xnn.ops.conv2d` has the formula.
    Raises OptionError for other options; ShapeError or DTypeError for inputs that do not fit.
    Source: LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 86 (1998).

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.Conv2D(1, 6, 5)(np.ones((2, 1, 28, 28), np.float32)).shape
        (2, 6, 24, 24)
    """

    op = ops.conv2d
    from_input: ClassVar[dict[str, int]] = {"in_channels": 0}
    stride: tuple[int, int] = checked(check_pair)
    dilation: tuple[int, int] = checked(check_pair)
    padding: tuple[int, int] | str = checked(lambda name, padding: check_padding(padding))

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
        self.kernel_size, self.stride = check_pair("kernel_size", kernel_size), stride
        self.padding, self.dilation = padding, dilation
        if isinstance(self.padding, str) and self.padding == "same" and self.stride != (1, 1):
            raise OptionError(f"padding='same' needs stride 1, got stride {stride!r}")
        self.dtype = check_dtype(dtype)
        shape = (self.out_channels, self.in_channels, *self.kernel_size)
        self.weight = Parameter("weight", shape, weight_init, dtype)
        self.bias = (
            Parameter("bias", (self.out_channels,), bias_init, dtype) if check_flag("bias", bias) else None
        )
        super().__init__(*(p for p in (self.weight, self.bias) if p is not None), seed=seed)

    def check(self, x: Array) -> None:
        lib = backend_of(x, self.weight.array)  # raises for two backends, and for x that is not an array
        _check_images(self, tuple(x.shape), self.in_channels)
        check_input_dtype(self, x, lib)
        self._check_padding(tuple(x.shape))

    def _check_padding(self, shape: tuple[int, ...]) -> None:
        """Raise OptionError for images that padding makes many times larger, and larger than memory."""
        if isinstance(self.padding, str):
            return
        area = math.prod(extent + 2 * p for extent, p in zip(shape[2:], self.padding, strict=True))
        if area > _MOSTLY_PADDING * math.prod(shape[2:]):
            size = 4 * shape[0] * shape[1] * area
            check_memory(f"{self!r}: a batch of shape {shape}, padded,", size, "use less padding")

    def options(self, xp: Namespace) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def config(self) -> dict[str, Any]:
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

    def __repr__(self) -> str:
        return written(self, _pairs_as_numbers(self.config()))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        _check_images(self, (None, *shape), self.in_channels)
        self._check_padding((1, *shape))
        rows, columns = windows_of(
            repr(self), (1, *shape), self.kernel_size, self.stride, self.padding, self.dilation
        )
        return self.out_channels, rows.number, columns.number

    def flops(self, shape: tuple[int, ...]) -> int:
        # A multiplication and an addition per weight, an addition per bias, for each pixel of the output.
        _, height, width = self.output_shape(shape)
        return height * width * (2 * self.weight.size + (self.bias.size if self.bias else 0))


class _Pool(Layer):
    """Base class of MaxPool2D and AvgPool2D: windows of kernel_size pixels, one every `stride` pixels."""

    stride: tuple[int, int] = checked(check_pair)
    dilation: tuple[int, int] = checked(check_pair)
    kernel_size: tuple[int, int] = checked(check_pair)
    padding: tuple[int, int] = checked(check_pair, 0)

    def __init__(self, kernel_size: Any, stride: Any, padding: Any, dilation: Any = 1) -> None:
        self.kernel_size = kernel_size
        self.stride = self.kernel_size if stride is None else stride
        self.dilation = dilation
        self.padding = check_pool_padding(padding, self.kernel_size, self.dilation)
        super().__init__()

    def check(self, x: Array) -> None:
        backend_of(x)  # raises for x that is not an array
        _check_images(self, tuple(x.shape))

    def options(self, xp: Namespace) -> dict[str, Any]:
        return {"kernel_size": self.kernel_size, "stride": self.stride, "padding": self.padding}

    def config(self) -> dict[str, Any]:
        return {key: list(pair) for key, pair in self.options(None).items()}

    def __repr__(self) -> str:
        options = _pairs_as_numbers(self.config())
        if options["stride"] == options["kernel_size"]:
            del options["stride"]
        return written(self, options)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        _check_images(self, (None, *shape))
        rows, columns = pool_windows(
            repr(self), (1, *shape), self.kernel_size, self.stride, self.padding, self.dilation
        )
        return shape[0], rows.number, columns.number

    def flops(self, shape: tuple[int, ...]) -> int:
        return math.prod((*self.output_shape(shape), *self.kernel_size))


class MaxPool2D(_Pool):
    """The largest element of each window: images (n, channels, height, width) become smaller ones.

    kernel_size: the size of a window, an integer or a pair (rows, columns).
    stride: by how many pixels the window moves, an integer or a pair; kernel_size by default.
    padding: how many rows and columns are added on each side, an integer or a pair; 0 by default. They are never the
        largest.
    dilation: the distance between neighbouring pixels of a window, an integer or a pair; 1 by default.

    `xnn.ops.max_pool2d` has the formula. Raises OptionError for other options; ShapeError for inputs that are not
    images, or smaller than a window.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.MaxPool2D(2)(np.arange(16.0).reshape(1, 1, 4, 4)).tolist()
        [[[[5.0, 7.0], [13.0, 15.0]]]]
    """

    op = ops.max_pool2d

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1) -> None:
        super().__init__(kernel_size, stride, padding, dilation)

    def options(self, xp: Namespace) -> dict[str, Any]:
        return {**super().options(xp), "dilation": self.dilation}


class AvgPool2D(_Pool):
    """The mean of each window: images (n, channels, height, width) become smaller ones.

    kernel_size: the size of a window, an integer or a pair (rows, columns).
    stride: by how many pixels the window moves, an integer or a pair; kernel_size by default.
    padding: how many rows and columns of zeros are added on each side, an integer or a pair; 0 by default. They count
        in the mean.

    `xnn.ops.avg_pool2d` has the formula. Raises OptionError for other options; ShapeError for inputs that are not
    images, or smaller than a window.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.AvgPool2D(2)(np.arange(16.0).reshape(1, 1, 4, 4)).tolist()
        [[[[2.5, 4.5], [10.5, 12.5]]]]
    """

    op = ops.avg_pool2d

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0) -> None:
        super().__init__(kernel_size, stride, padding)


class GlobalAvgPool(Layer):
    """The mean of each channel: images (n, channels, height, width) become (n, channels), whatever their size.

    Raises ShapeError for inputs that are not images.
    Source: Lin, Chen and Yan, ICLR 2014.

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.GlobalAvgPool()(np.arange(8.0).reshape(1, 2, 2, 2)).tolist()
        [[1.5, 5.5]]
    """

    op = ops.mean

    def __init__(self) -> None:
        super().__init__()

    def check(self, x: Array) -> None:
        backend_of(x)  # raises for x that is not an array
        _check_images(self, tuple(x.shape))

    def options(self, xp: Namespace) -> dict[str, Any]:
        return {"axis": (2, 3)}

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        _check_images(self, (None, *shape))
        return shape[:1]


def _pairs_as_numbers(options: dict[str, Any]) -> dict[str, Any]:
    """Replace each pair of equal numbers among the options, such as [3, 3], by the number."""
    return {
        name: value[0] if isinstance(value, list) and value[0] == value[1] else value
        for name, value in options.items()
    }


def _check_images(layer: Layer, shape: tuple[int | None, ...], channels: int | None = None) -> None:
    """Raise ShapeError unless the shape is that of a batch of images, with this many channels."""
    if len(shape) != 4 or channels not in (None, shape[1]):
        hint = {
            2: ": Reshape((channels, height, width)) before it makes images of rows",
            3: ": Reshape((1, height, width)) before it adds the axis of channels"
            if channels in (None, 1)
            else "",
            4: ": numpy.moveaxis(x, -1, 1) puts channels first" if shape[-1] == channels else "",
        }.get(len(shape), "")
        got = f"samples of shape {shape[1:]}" if shape and shape[0] is None else f"an input of shape {shape}"
        raise ShapeError(
            f"{layer!r} takes images (n, {channels or 'channels'}, height, width), got {got}{hint}"
        )
