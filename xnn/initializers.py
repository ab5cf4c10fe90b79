"""How weights start. Every value comes from a counter-based stream: the same bits on every backend.

Values are drawn on the host in float64, from `+ - * /`, square roots and comparisons alone, each element by itself
or in sums of a fixed order, so that they depend on no BLAS, C library or processor.

A weight of two axes is (inputs, outputs), as in Dense; one of three or more is PyTorch's (outputs, inputs, *kernel).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from xnn.backends import Stream
from xnn.errors import OptionError
from xnn.ops.op import size_of
from xnn.options import check_real

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


class Initializer(Protocol):
    """Any function of a stream and a shape that returns a float64 array of this shape; the same one each time."""

    def __call__(self, stream: Stream, shape: tuple[int, ...], /) -> np.ndarray:
        """An array of this shape, float64 on the host."""
        ...


@dataclass(frozen=True)
class Zeros:
    """All zeros: biases, and logistic regression, which needs no symmetry broken."""

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape, float64 on the host."""
        return np.zeros(shape)


@dataclass(frozen=True)
class Ones:
    """All ones: the scale of a normalization."""

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape, float64 on the host."""
        return np.ones(shape)


@dataclass(frozen=True)
class Constant:
    """`value` everywhere, such as a bias of ln(p / (1 - p)) where p of the labels are 1."""

    value: float

    def __post_init__(self) -> None:
        check_real("value", self.value)

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape, float64 on the host."""
        return np.full(shape, float(self.value))


@dataclass(frozen=True)
class Uniform:
    """Uniform in (low, high)."""

    low: float
    high: float

    def __post_init__(self) -> None:
        check_real("low", self.low)
        check_real("high", self.high)
        if not 0.0 < self.high - self.low < math.inf:
            raise OptionError(f"Uniform needs low < high, got {self.low} and {self.high}")

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape, float64 on the host."""
        return stream.uniform(shape, self.low, self.high)


@dataclass(frozen=True)
class Normal:
    """Normal with mean `mean` and standard deviation `std`."""

    std: float = 0.01
    mean: float = 0.0

    def __post_init__(self) -> None:
        check_real("std", self.std, 0.0)
        check_real("mean", self.mean)

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape, float64 on the host."""
        return self.mean + self.std * stream.normal(shape)


@dataclass(frozen=True)
class TruncatedNormal:
    """mean + std Z, where Z is standard normal given that |Z| <= 2: Keras's TruncatedNormal.

    The cut moves with `std`, where PyTorch's trunc_normal_ cuts at the values -2 and 2 whatever its std; they are the
    same law for std=1, mean=0. The values' own standard deviation is 0.8796 std, which is not made up for.
    """

    std: float
    mean: float = 0.0

    def __post_init__(self) -> None:
        check_real("std", self.std, 0.0)
        check_real("mean", self.mean)

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape, float64 on the host."""
        return self.mean + self.std * stream.truncated_normal(shape)


@dataclass(frozen=True)
class Glorot:
    """Variance 2 gain^2 / (inputs + outputs), also called Xavier; for tanh, sigmoid and as the default.

    normal: N(0, variance); uniform: U(-a, a) with a^2 = 3 variance. PyTorch's xavier_normal_ and xavier_uniform_
    (Keras cuts its normal at two standard deviations). Source: Glorot and Bengio, AISTATS 2010.
    """

    distribution: str = "normal"
    gain: float = 1.0

    def __post_init__(self) -> None:
        _check_choice("distribution", self.distribution, ("normal", "uniform"))
        check_real("gain", self.gain, 0.0)

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape of two or more axes, float64 on the host."""
        fan_in, fan_out = _fans(shape)
        return _scaled(stream, shape, 2.0 * self.gain * self.gain / (fan_in + fan_out), self.distribution)


@dataclass(frozen=True)
class He:
    """Variance 2 / ((1 + slope^2) inputs), also called Kaiming; for ReLU, or LeakyReLU of this slope.

    normal: N(0, variance); uniform: U(-a, a) with a^2 = 3 variance. mode="fan_out" counts outputs in place of inputs,
    which keeps the gradients' variance instead of the activations'. PyTorch's kaiming_normal_ and kaiming_uniform_,
    whose `a` is `slope`. With slope=sqrt(5), a^2 is 1 / inputs: `He("uniform", slope=math.sqrt(5))` is how PyTorch's
    own Linear and Conv2d start their weights. Source: He et al., ICCV 2015.
    """

    distribution: str = "normal"
    slope: float = 0.0
    mode: str = "fan_in"

    def __post_init__(self) -> None:
        _check_choice("distribution", self.distribution, ("normal", "uniform"))
        _check_choice("mode", self.mode, ("fan_in", "fan_out"))
        check_real("slope", self.slope)

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape of two or more axes, float64 on the host."""
        fan = _fans(shape)[self.mode == "fan_out"]
        return _scaled(stream, shape, 2.0 / (1.0 + self.slope * self.slope) / fan, self.distribution)


@dataclass(frozen=True)
class LeCun:
    """Variance 1 / inputs; for SELU, and wherever outputs shall have the variance of inputs.

    normal: N(0, variance); uniform: U(-a, a) with a^2 = 3 variance. Source: LeCun, Bottou, Orr and Mueller,
    "Efficient BackProp", 1998.
    """

    distribution: str = "normal"

    def __post_init__(self) -> None:
        _check_choice("distribution", self.distribution, ("normal", "uniform"))

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape of two or more axes, float64 on the host."""
        return _scaled(stream, shape, 1.0 / _fans(shape)[0], self.distribution)


@dataclass(frozen=True)
class Orthogonal:
    """gain times a random matrix Q of orthonormal columns (rows, if it has fewer of them), uniform among all such.

    A weight of three or more axes is taken as a matrix (outputs, inputs * kernel), as by PyTorch's orthogonal_.
    Source: Saxe, McClelland and Ganguli, ICLR 2014.

    Q is what the QR decomposition of a normal matrix gives if the diagonal of R is made positive (Mezzadri, Notices
    of the AMS 54, 2007), without the decomposition. The vectors of its Householder reflections are independent and
    normal, one entry shorter each (Stewart, SIAM J. Numer. Anal. 17, 1980), so they are drawn:

        Q = G_1 diag(1, G_2) diag(1, 1, G_3) ...,    G_k = -s (I - v v^T / (|x| (|x| + |x_1|)))
        v = x + s |x| e_1,  s = the sign of x_1,     so that G_k e_1 = x / |x|, uniform on the sphere

    It takes 4 n^3 / 3 multiplications and additions of arrays, some 0.2 s for n = 512 and 1.5 s for n = 1024.
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        check_real("gain", self.gain)

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape of two or more axes, float64 on the host."""
        _check_axes(shape)
        rows, columns = shape[0], size_of(shape[1:])
        q = _orthonormal(stream.normal((max(rows, columns), min(rows, columns))))
        return self.gain * (q if rows >= columns else q.T).reshape(shape)


@dataclass(frozen=True)
class Identity:
    """gain at (i, i), 0 elsewhere: outputs begin as the inputs, as many as there are of both.

    In a weight of three or more axes, at the middle (size // 2) of the kernel: a convolution that begins as the
    identity, PyTorch's dirac_.
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        check_real("gain", self.gain)

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape of two or more axes, float64 on the host."""
        _check_axes(shape)
        values = np.zeros(shape)
        middle = tuple(size // 2 for size in shape[2:])
        for i in range(min(shape[:2])):
            values[(i, i, *middle)] = self.gain
        return values


def _check_choice(name: str, value: str, allowed: tuple[str, str]) -> None:
    if value not in allowed:
        raise OptionError(f"{name} must be {allowed[0]!r} or {allowed[1]!r}, got {value!r}")


def _check_axes(shape: tuple[int, ...]) -> None:
    if len(shape) < 2:
        raise OptionError(
            f"this initializer needs a weight of two or more axes, got shape {shape}: start biases and other vectors "
            "with Zeros, Constant, Uniform or Normal"
        )


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """What each output of a weight sums over and what each input goes to, kernels counted; at least 1 each."""
    _check_axes(shape)
    inputs, outputs = shape if len(shape) == 2 else (shape[1], shape[0])
    rest = size_of(shape[2:])
    return max(1, inputs * rest), max(1, outputs * rest)


def _scaled(stream: Stream, shape: tuple[int, ...], variance: float, distribution: str) -> np.ndarray:
    if distribution == "normal":
        return math.sqrt(variance) * stream.normal(shape)
    limit = math.sqrt(3.0 * variance)
    return stream.uniform(shape, -limit, limit)


def _orthonormal(normal: np.ndarray) -> np.ndarray:
    """Orthonormal columns of the reflections whose vectors are a normal matrix's columns from the diagonal down."""
    q = np.zeros_like(normal)
    for k in reversed(range(normal.shape[1])):  # the last first: G_k changes only q[k:, k:]
        x, block = normal[k:, k], q[k:, k:]
        size, sign = np.sqrt(_total(x * x)), np.where(x[0] < 0.0, -1.0, 1.0)
        v = x.copy()
        v[0] += sign * size
        block[0, 0] = 1.0
        block -= (v / (size * (size + abs(x[0]))))[:, None] * _total(v[:, None] * block)
        block *= -sign
    return q


def _total(x: np.ndarray) -> np.ndarray:
    """The sum over axis 0, in halves: an order that NumPy's own sums and products do not promise."""
    while len(x) > 1:
        half = len(x) // 2
        folded = x[:half] + x[half : 2 * half]
        if len(x) % 2:
            folded[0] += x[-1]
        x = folded
    return np.asarray(x[0])
