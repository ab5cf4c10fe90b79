"""Normalization over the batch (BatchNorm) and over each sample (LayerNorm)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from xnn import ops
from xnn.backends import backend_of
from xnn.backends.communicator import communicator
from xnn.errors import OptionError, ShapeError
from xnn.graph.node import array_of
from xnn.initializers import Ones, Zeros
from xnn.layers.layer import Layer, check_input_dtype, flatten_hint
from xnn.layers.parameter import Buffer, Parameter
from xnn.ops.normalization import running_moments
from xnn.ops.op import size_of
from xnn.options import check_count, check_dtype, check_flag, check_real, checked

__all__ = ["BatchNorm", "LayerNorm"]


def _check_momentum(name: str, momentum: Any) -> float:
    if check_real(name, momentum, 0.0) > 1.0:
        raise OptionError(f"{name} must be a number in [0, 1], got {momentum!r}")
    return float(momentum)


class _Normalization(Layer):
    """The options and checks that BatchNorm and LayerNorm share."""

    epsilon: float = checked(check_real, 0.0)

    def __init__(
        self,
        shape: tuple[int, ...],
        epsilon: float,
        affine: bool,
        dtype: str,
        buffers: Sequence[Buffer] = (),
    ) -> None:
        self.epsilon, self.affine = epsilon, check_flag("affine", affine)
        self.dtype = check_dtype(dtype)
        self.weight = Parameter("weight", shape, Ones(), dtype) if self.affine else None
        self.bias = Parameter("bias", shape, Zeros(), dtype) if self.affine else None
        super().__init__(*(p for p in (self.weight, self.bias) if p is not None), buffers=buffers)

    def _check(self, x: Any, fits: bool, wanted: str) -> None:
        if not fits:
            raise ShapeError(f"{self!r} got an input of shape {tuple(x.shape)}: it must be {wanted}")
        check_input_dtype(self, x, backend_of(array_of(x)))

    def flops(self, shape: tuple[int, ...]) -> int:
        # Two passes for mean and variance, then a subtraction, two products and an addition.
        return 8 * math.prod(shape)


class BatchNorm(_Normalization):
    """Batch normalization: each channel has mean 0 and variance 1 over the batch, then a scale and shift are learned.

        y = (x - mean) / sqrt(variance + epsilon) * weight + bias

    x is (n, features), (n, features, length) or (n, features, height, width); mean and variance are over all axes but
    the second. In training they are the batch's; in inference they are the running ones.

    features: the number of channels, an integer of at least 1.
    epsilon: a finite number of at least 0; 1e-5 by default.
    momentum: a number in [0, 1], by which each training step moves `running_mean` and `running_var` towards the
        batch's mean and its unbiased variance, as in PyTorch; 0.1 by default. A batch of no rows moves neither.
    affine: whether there are `weight` (features,), which starts as ones, and `bias` (features,), zeros; True by
        default.
    dtype: "float32" (the default) or "float64".

    A callback may change epsilon and momentum between steps. Weight files hold the running statistics, too.
    Raises OptionError for other options; ShapeError or DTypeError for inputs that do not fit. In training that
    includes a batch with one value for each channel, such as one row of features, since one value has no variance.
    Source: Ioffe and Szegedy, ICML 2015.

        >>> import numpy as np
        >>> from xnn import layers
        >>> norm = layers.BatchNorm(1, epsilon=0.0)
        >>> norm.forward(np.array([[1.0], [3.0]], np.float32), training=True).tolist()
        [[-1.0], [1.0]]
        >>> round(float(norm.running_mean.value[0]), 3)
        0.2
    """

    from_input: ClassVar[dict[str, int]] = {"features": 0}
    momentum: float = checked(_check_momentum)

    def __init__(
        self,
        features: int,
        epsilon: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        dtype: str = "float32",
    ) -> None:
        self.features = check_count("features", features)
        self.momentum = momentum
        self.running_mean = Buffer("running_mean", (self.features,), Zeros(), check_dtype(dtype))
        self.running_var = Buffer("running_var", (self.features,), Ones(), dtype)
        super().__init__((self.features,), epsilon, affine, dtype, (self.running_mean, self.running_var))

    def compute(self, x: Any, training: bool) -> Any:
        fits = x.ndim >= 2 and x.shape[1] == self.features
        self._check(x, fits, f"(n, {self.features}) or (n, {self.features}, ...)")
        axis = (0, *range(2, x.ndim))
        if training:
            self._check_count(tuple(x.shape))
            moments = ops.moments(x, axis=axis, scaled=True)
            self.keep(
                (self.running_mean, self.running_var), running_moments, moments,
                momentum=self.momentum, axis=axis, shape=tuple(x.shape),
            )  # fmt: skip
        else:
            shape = (1, 1, self.features) + (1,) * (x.ndim - 2)
            running = (ops.reshape(buffer, shape=shape) for buffer in (self.running_mean, self.running_var))
            moments = ops.concat(*running, axis=0)
        return ops.normalize(x, moments, *self.own_parameters, axis=axis, along=1, epsilon=self.epsilon)

    def _check_count(self, shape: tuple[int, ...]) -> None:
        """Raise ShapeError for a training batch with one value for each channel, unless workers hold more of it."""
        if size_of(shape) == self.features and communicator() is None:
            raise ShapeError(
                f"{self!r} got a training batch of shape {shape}, and one value for each channel has no variance: "
                "train on batches of at least two rows"
            )

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not shape or shape[0] != self.features:
            raise ShapeError(
                f"{self!r} cannot take samples of shape {shape}: the first axis must be {self.features}"
                f"{flatten_hint(shape, self.features)}"
            )
        return shape

    def config(self) -> dict[str, Any]:
        return {
            "features": self.features,
            "epsilon": self.epsilon,
            "momentum": self.momentum,
            "affine": self.affine,
            "dtype": self.dtype,
        }


class LayerNorm(_Normalization):
    """Layer normalization: each sample has mean 0 and variance 1, then a scale and shift are learned.

        y = (x - mean) / sqrt(variance + epsilon) * weight + bias

    Mean and variance are over the last axes of x.

    features: the sizes of the last axes of x, an integer or a sequence of integers, as PyTorch's normalized_shape.
    epsilon: a finite number of at least 0; 1e-5 by default. A callback may change it between steps.
    affine: whether there are `weight` (*features,), which starts as ones, and `bias` (*features,), zeros; True by
        default.
    dtype: "float32" (the default) or "float64".

    Raises OptionError for other options; ShapeError or DTypeError for inputs that do not fit.
    Source: Ba, Kiros and Hinton, 2016 (arXiv 1607.06450).

        >>> import numpy as np
        >>> from xnn import layers
        >>> layers.LayerNorm(2, epsilon=0.0)(np.array([[1.0, 3.0]], np.float32)).tolist()
        [[-1.0, 1.0]]
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
        along = x.ndim - len(self.features)
        fits = along >= 1 and tuple(x.shape[along:]) == self.features
        self._check(x, fits, f"(n, ..., {', '.join(map(str, self.features))})")
        axis = tuple(range(along, x.ndim))
        moments = ops.moments(x, axis=axis, scaled=True)
        return ops.normalize(x, moments, *self.own_parameters, axis=axis, along=along, epsilon=self.epsilon)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape[-len(self.features) :] != self.features:
            raise ShapeError(
                f"{self!r} cannot take samples of shape {shape}: the last axes must be {self.features}"
                f"{flatten_hint(shape, math.prod(self.features))}"
            )
        return shape

    def config(self) -> dict[str, Any]:
        return {
            "features": list(self.features),
            "epsilon": self.epsilon,
            "affine": self.affine,
            "dtype": self.dtype,
        }
