"""BatchNorm and LayerNorm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from xnn import ops
from xnn.backends import backend_of
from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.graph.node import array_of
from xnn.initializers import Ones, Zeros
from xnn.layers.layer import Layer
from xnn.layers.parameter import Buffer, Parameter
from xnn.ops.normalization import running_moments
from xnn.options import check_count, check_dtype, check_real

__all__ = ["BatchNorm", "LayerNorm"]


class _Normalization(Layer):
    """What both have: `weight` and `bias`, or neither, and a look at the input."""

    def __init__(
        self,
        shape: tuple[int, ...],
        epsilon: float,
        affine: bool,
        dtype: str,
        buffers: Sequence[Buffer] = (),
    ) -> None:
        self.epsilon, self.affine = check_real("epsilon", epsilon, 0.0), bool(affine)
        self.dtype = check_dtype(dtype)
        self.weight = Parameter("weight", shape, Ones(), dtype) if affine else None
        self.bias = Parameter("bias", shape, Zeros(), dtype) if affine else None
        super().__init__(*(p for p in (self.weight, self.bias) if p is not None), buffers=buffers)

    def _check(self, x: Any, fits: bool, wanted: str) -> None:
        if not fits:
            raise ShapeError(f"{self!r} got an input of shape {tuple(x.shape)}; it must be {wanted}")
        if x.dtype != getattr(backend_of(array_of(x)).xp, self.dtype):
            raise DTypeError(
                f"{self!r} holds {self.dtype} numbers and got {x.dtype}: convert the input (Rescale does for "
                "integers), or build the layer with dtype='float64'"
            )

    def flops(self, shape: tuple[int, ...]) -> int:
        """Two passes for the statistics, and a subtraction, two products and an addition."""
        return 8 * math.prod(shape)


class BatchNorm(_Normalization):
    """Each channel brought to mean 0 and variance 1 over the batch, then times weight, plus bias.

        y = (x - mean) / sqrt(variance + epsilon) * weight + bias

    Channels are axis 1 of x: (n, C), (n, C, L) or (n, C, H, W); mean and variance are over all other axes.
    Training takes the batch's mean and variance and moves the running ones towards them, by `momentum` (the
    variance's unbiased estimate, as in PyTorch); inference takes the running ones, `running_mean` and
    `running_var`, which weight files hold. One sample for a channel has variance 0.
    Source: Ioffe and Szegedy, ICML 2015.
    """

    from_input: ClassVar[dict[str, int]] = {"features": 0}

    def __init__(
        self,
        features: int,
        epsilon: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        dtype: str = "float32",
    ) -> None:
        self.features = check_count("features", features)
        self.momentum = check_real("momentum", momentum, 0.0)
        if self.momentum > 1.0:
            raise OptionError(f"momentum must be a number in [0, 1], got {momentum!r}")
        self.running_mean = Buffer("running_mean", (self.features,), Zeros(), check_dtype(dtype))
        self.running_var = Buffer("running_var", (self.features,), Ones(), dtype)
        super().__init__((self.features,), epsilon, affine, dtype, (self.running_mean, self.running_var))

    def compute(self, x: Any, training: bool) -> Any:
        """Over every axis but the channels'."""
        fits = x.ndim >= 2 and x.shape[1] == self.features
        self._check(x, fits, f"(n, {self.features}) or (n, {self.features}, ...)")
        axis = (0, *range(2, x.ndim))
        if training:
            moments = ops.moments(x, axis=axis)
            self.keep(
                (self.running_mean, self.running_var), running_moments, moments,
                momentum=self.momentum, axis=axis, shape=tuple(x.shape),
            )  # fmt: skip
        else:
            shape = (1, 1, self.features) + (1,) * (x.ndim - 2)
            running = (ops.reshape(buffer, shape=shape) for buffer in (self.running_mean, self.running_var))
            moments = ops.concat(*running, axis=0)
        return ops.normalize(x, moments, *self.own_parameters, axis=axis, along=1, epsilon=self.epsilon)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The same."""
        if not shape or shape[0] != self.features:
            raise ShapeError(
                f"{self!r} cannot take samples of shape {shape}: the first axis must be {self.features}"
            )
        return shape

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "features": self.features,
            "epsilon": self.epsilon,
            "momentum": self.momentum,
            "affine": self.affine,
            "dtype": self.dtype,
        }


class LayerNorm(_Normalization):
    """Each sample's last axes, of shape `features`, brought to mean 0 and variance 1, times weight, plus bias.

        y = (x - mean) / sqrt(variance + epsilon) * weight + bias

    features: one extent or several, as in PyTorch's normalized_shape; weight and bias have that shape.
    Source: Ba, Kiros and Hinton, 2016 (arXiv 1607.06450).
    """

    from_input: ClassVar[dict[str, int]] = {"features": -1}

    def __init__(
        self,
        features: int | Sequence[int],
        epsilon: float = 1e-5,
        affine: bool = True,
        dtype: str = "float32",
    ) -> None:
        given = tuple(features) if isinstance(features, (tuple, list)) else (features,)
        self.features = tuple(check_count("features", extent) for extent in given)
        if not self.features:
            raise OptionError("LayerNorm needs the extents of the last axes, got ()")
        super().__init__(self.features, epsilon, affine, dtype)

    def compute(self, x: Any, training: bool) -> Any:
        """Over the last axes."""
        along = x.ndim - len(self.features)
        fits = along >= 1 and tuple(x.shape[along:]) == self.features
        self._check(x, fits, f"(n, ..., {', '.join(map(str, self.features))})")
        axis = tuple(range(along, x.ndim))
        moments = ops.moments(x, axis=axis)
        return ops.normalize(x, moments, *self.own_parameters, axis=axis, along=along, epsilon=self.epsilon)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The same."""
        if shape[-len(self.features) :] != self.features:
            raise ShapeError(
                f"{self!r} cannot take samples of shape {shape}: the last axes must be {self.features}"
            )
        return shape

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "features": list(self.features),
            "epsilon": self.epsilon,
            "affine": self.affine,
            "dtype": self.dtype,
        }
