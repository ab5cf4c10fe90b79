"""Initializers: how weights start. The same seed gives the same bits on every backend and machine.

Values are drawn on the host in float64 from a counter-based random stream. They are computed with `+ - * /`, square
roots and comparisons, in a fixed order, so that they do not depend on the BLAS, the C library or the processor.

A weight of two axes is (inputs, outputs), as in Dense; one of three or more is (outputs, inputs, *kernel), as in
Conv2D. An initializer of your own is any function of a stream and a shape; see `Initializer`.

    >>> from xnn import initializers, layers
    >>> dense = layers.Dense(4, 2, weight_init=initializers.He("uniform"), bias_init=initializers.Constant(0.1))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from xnn.backends import Stream
from xnn.backends.random import orthonormal
from xnn.errors import OptionError
from xnn.graph.habits import module_habits
from xnn.ops.op import size_of
from xnn.options import check_real, explained_class, is_one_of, shown, written

__all__ = [
    "Constant",
    "Glorot",
    "He",
    "Identity",
    "Initializer",
    "LeCun",
    "Normal",
    "Ones",
    "Orthogonal",
    "TruncatedNormal",
    "Uniform",
    "Zeros",
]

if not TYPE_CHECKING:  # a type checker would take every name for an attribute
    __getattr__ = module_habits(__name__)


class Initializer(Protocol):
    """Any function of a stream and a shape that returns a NumPy array of this shape.

    stream: random numbers, `stream.normal(shape)`, `stream.uniform(shape, low, high)` and others. shape: a tuple.
    """

    def __call__(self, stream: Stream, shape: tuple[int, ...], /) -> np.ndarray: ...


class _Drawn:
    """One of xnn's own initializers. Its repr shows the options that do not have their defaults."""

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        return self._draw(stream, shape, "float64")

    def _draw(self, stream: Stream, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """The values, computed in float64 and rounded to `dtype`, without a float64 array of their size."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return written(self, vars(self))


@explained_class
@dataclass(frozen=True, repr=False)
class Zeros(_Drawn):
    """Zeros: for biases, and for logistic regression.

    >>> from xnn import initializers, layers
    >>> layers.Parameter("b", (2,), initializers.Zeros()).value.tolist()
    [0.0, 0.0]
    """

    def _draw(self, stream: Stream, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.zeros(shape, dtype)


@explained_class
@dataclass(frozen=True, repr=False)
class Ones(_Drawn):
    """Ones: for the scale of a normalization.

    >>> from xnn import initializers, layers
    >>> layers.Parameter("scale", (2,), initializers.Ones()).value.tolist()
    [1.0, 1.0]
    """

    def _draw(self, stream: Stream, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.ones(shape, dtype)


@explained_class
@dataclass(frozen=True, repr=False)
class Constant(_Drawn):
    """One number everywhere, such as a bias of ln(p / (1 - p)) if a share p of the labels is 1.

    value: a finite number.

    Raises OptionError for another value.

        >>> from xnn import initializers, layers
        >>> layers.Parameter("b", (2,), initializers.Constant(0.5)).value.tolist()
        [0.5, 0.5]
    """

    value: float

    def __post_init__(self) -> None:
        check_real("value", self.value)

    def _draw(self, stream: Stream, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.full(shape, float(self.value), dtype)


@explained_class
@dataclass(frozen=True, repr=False)
class Uniform(_Drawn):
    """The uniform distribution over (low, high).

    low, high: finite numbers, low < high.

    Raises OptionError for others.

        >>> from xnn import initializers, layers
        >>> bool(abs(layers.Parameter("w", (2, 3), initializers.Uniform(-1.0, 1.0)).value).max() < 1.0)
        True
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        check_real("low", self.low)
        check_real("high", self.high)
        if not 0.0 < self.high - self.low < math.inf:
            raise OptionError(f"Uniform needs low < high, got {self.low} and {self.high}")

    def _draw(self, stream: Stream, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return stream.uniform(shape, self.low, self.high, dtype)


@explained_class
@dataclass(frozen=True, repr=False)
class Normal(_Drawn):
    """The normal distribution.

    std: its standard deviation, a finite number of at least 0; 0.01 by default.
    mean: a finite number; 0 by default.

    Raises OptionError for others.

        >>> from xnn import initializers
        >>> initializers.Normal(0.1)
        Normal(std=0.1)
    """

    std: float = 0.01
    mean: float = 0.0

    def __post_init__(self) -> None:
        check_real("std", self.std, 0.0)
        check_real("mean", self.mean)

    def _draw(self, stream: Stream, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return stream.normal(shape, self.std, self.mean, dtype)


@explained_class
@dataclass(frozen=True, repr=False)
class TruncatedNormal(_Drawn):
    """The normal distribution between two standard deviations on each side: mean + std Z, Z normal given |Z| <= 2.

    std: a finite number of at least 0. The values' own standard deviation is 0.8796 std.
    mean: a finite number; 0 by default.

    It is Keras's TruncatedNormal. PyTorch's trunc_normal_ cuts at the values -2 and 2 whatever its std is; with std 1
    and mean 0 they are the same. Raises OptionError for other options.

        >>> from xnn import initializers, layers
        >>> w = layers.Parameter("w", (2, 3), initializers.TruncatedNormal(0.1)).value
        >>> bool(abs(w).max() <= 0.2)
        True
    """

    std: float
    mean: float = 0.0

    def __post_init__(self) -> None:
        check_real("std", self.std, 0.0)
        check_real("mean", self.mean)

    def _draw(self, stream: Stream, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return stream.truncated_normal(shape, self.std, self.mean, dtype)


@explained_class
@dataclass(frozen=True, repr=False)
class Glorot(_Drawn):
    """Variance 2 gain^2 / (inputs + outputs), also called Xavier: for tanh and sigmoid, and Dense's default.

    distribution: "normal" (the default), N(0, variance); or "uniform", U(-a, a) with a^2 = 3 variance.
    gain: a finite number of at least 0; 1 by default.

    They are PyTorch's xavier_normal_ and xavier_uniform_ (Keras cuts its normal at two standard deviations). Raises
    OptionError for other options, and for a weight of fewer than two axes.
    Source: Glorot and Bengio, AISTATS 2010.

        >>> from xnn import initializers
        >>> initializers.Glorot(), initializers.Glorot("uniform")
        (Glorot(), Glorot(distribution='uniform'))
    """

    distribution: str = "normal"
    gain: float = 1.0

    def __post_init__(self) -> None:
        _check_choice("distribution", self.distribution, ("normal", "uniform"))
        check_real("gain", self.gain, 0.0)

    def _draw(self, stream: Stream, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        fan_in, fan_out = _fans(shape)
        return _scaled(
            stream, shape, 2.0 * self.gain * self.gain / (fan_in + fan_out), self.distribution, dtype
        )


@explained_class
@dataclass(frozen=True, repr=False)
class He(_Drawn):
    """Variance 2 / ((1 + slope^2) inputs), also called Kaiming: for ReLU and LeakyReLU, and Conv2D's default.

    distribution: "normal" (the default), N(0, variance); or "uniform", U(-a, a) with a^2 = 3 variance.
    slope: LeakyReLU's negative_slope, a finite number; 0 by default, for ReLU.
    mode: "fan_in" (the default); or "fan_out", which counts outputs in the place of inputs, and so keeps the variance
        of gradients instead of that of activations.

    They are PyTorch's kaiming_normal_ and kaiming_uniform_, whose `a` is `slope`. PyTorch's own Linear and Conv2d
    start their weights as `He("uniform", slope=math.sqrt(5))`, for which a^2 is 1 / inputs. Raises OptionError for
    other options, and for a weight of fewer than two axes.
    Source: He et al., ICCV 2015.

        >>> from xnn import initializers
        >>> initializers.He("uniform", slope=0.01)
        He(distribution='uniform', slope=0.01)
    """

    distribution: str = "normal"
    slope: float = 0.0
    mode: str = "fan_in"

    def __post_init__(self) -> None:
        _check_choice("distribution", self.distribution, ("normal", "uniform"))
        _check_choice("mode", self.mode, ("fan_in", "fan_out"))
        check_real("slope", self.slope)

    def _draw(self, stream: Stream, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        fan = _fans(shape)[self.mode == "fan_out"]
        return _scaled(stream, shape, 2.0 / (1.0 + self.slope * self.slope) / fan, self.distribution, dtype)


@explained_class
@dataclass(frozen=True, repr=False)
class LeCun(_Drawn):
    """Variance 1 / inputs: for SELU, and wherever outputs should have the variance of inputs.

    distribution: "normal" (the default), N(0, variance); or "uniform", U(-a, a) with a^2 = 3 variance.

    Raises OptionError for another distribution, and for a weight of fewer than two axes.
    Source: LeCun, Bottou, Orr and Mueller, "Efficient BackProp", 1998.

        >>> from xnn import initializers
        >>> initializers.LeCun("uniform")
        LeCun(distribution='uniform')
    """

    distribution: str = "normal"

    def __post_init__(self) -> None:
        _check_choice("distribution", self.distribution, ("normal", "uniform"))

    def _draw(self, stream: Stream, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return _scaled(stream, shape, 1.0 / _fans(shape)[0], self.distribution, dtype)


@explained_class
@dataclass(frozen=True, repr=False)
class Orthogonal(_Drawn):
    """gain times a random matrix Q with orthonormal columns, or rows if it has fewer of them, uniformly distributed.

    gain: a finite number; 1 by default.

    A weight of three or more axes is taken as a matrix (outputs, inputs * kernel), as by PyTorch's orthogonal_. It
    takes 4 n^3 / 3 multiplications and additions: about 0.2 s for n = 512, 1.5 s for n = 1024. Raises OptionError for
    another gain, and for a weight of fewer than two axes.
    Source: Saxe, McClelland and Ganguli, ICLR 2014.

    Q has the distribution of the QR decomposition of a normal matrix, if the diagonal of R is made positive
    (Mezzadri, Notices of the AMS 54, 2007). The vectors of its Householder reflections are independent and normal,
    each one entry shorter than the one before (Stewart, SIAM J. Numer. Anal. 17, 1980). They are drawn directly:

        Q = G_1 diag(1, G_2) diag(1, 1, G_3) ...,    G_k = -s (I - v v^T / (|x| (|x| + |x_1|)))
        v = x + s |x| e_1,  s = the sign of x_1,     so that G_k e_1 = x / |x|, uniform on the sphere

        >>> import numpy as np
        >>> from xnn import initializers, layers
        >>> q = layers.Parameter("q", (3, 3), initializers.Orthogonal(), "float64").value
        >>> bool(np.allclose(q @ q.T, np.eye(3)))
        True
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        check_real("gain", self.gain)

    def _draw(self, stream: Stream, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        _check_axes(shape)
        rows, columns = shape[0], size_of(shape[1:])
        q = orthonormal(stream.normal((max(rows, columns), min(rows, columns))))
        q *= self.gain
        return (q if rows >= columns else q.T).reshape(shape).astype(dtype, copy=False)


@explained_class
@dataclass(frozen=True, repr=False)
class Identity(_Drawn):
    """gain at (i, i), 0 elsewhere: a layer that begins as the identity.

    gain: a finite number; 1 by default.

    In a weight of three or more axes it stands at the middle of the kernel (size // 2): a convolution that begins as
    the identity, PyTorch's dirac_. Raises OptionError for another gain, and for a weight of fewer than two axes.

        >>> from xnn import initializers, layers
        >>> layers.Parameter("w", (2, 3), initializers.Identity()).value.tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        check_real("gain", self.gain)

    def _draw(self, stream: Stream, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        _check_axes(shape)
        values = np.zeros(shape, dtype)
        middle = tuple(size // 2 for size in shape[2:])
        for i in range(min(shape[:2])):
            values[(i, i, *middle)] = self.gain
        return values


def draw(initializer: Initializer, stream: Stream, shape: tuple[int, ...], dtype: str) -> Any:
    """What an initializer returns for a parameter. It is no array that the initializer may still hold.

    dtype: the parameter's. xnn's own initializers round to it block by block; others may return another one.
    """
    if isinstance(initializer, _Drawn) and type(initializer).__call__ is _Drawn.__call__:
        return initializer._draw(stream, shape, dtype)
    drawn = initializer(stream, shape)
    return drawn.copy() if isinstance(drawn, np.ndarray) and drawn.dtype == dtype else drawn


def _check_choice(name: str, value: str, allowed: tuple[str, str]) -> None:
    if not is_one_of(value, allowed):
        raise OptionError(f"{name} must be {allowed[0]!r} or {allowed[1]!r}, got {shown(value)}")


def _check_axes(shape: tuple[int, ...]) -> None:
    if len(shape) < 2:
        raise OptionError(
            f"this initializer needs a weight of two or more axes, got shape {shape}: start biases and other vectors "
            "with Zeros, Constant, Uniform or Normal"
        )


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """The numbers of inputs and outputs of a weight, each times the size of its kernel; at least 1 each."""
    _check_axes(shape)
    inputs, outputs = shape if len(shape) == 2 else (shape[1], shape[0])
    rest = size_of(shape[2:])
    return max(1, inputs * rest), max(1, outputs * rest)


def _scaled(
    stream: Stream, shape: tuple[int, ...], variance: float, distribution: str, dtype: str
) -> np.ndarray:
    if distribution == "normal":
        return stream.normal(shape, math.sqrt(variance), dtype=dtype)
    limit = math.sqrt(3.0 * variance)
    return stream.uniform(shape, -limit, limit, dtype)
