"""How weights start. Every value comes from a counter-based stream: the same bits on every backend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from xnn.backends import Stream
from xnn.errors import OptionError
from xnn.ops.op import size_of

__all__ = ["Glorot", "He", "Initializer", "Normal", "Ones", "Zeros"]


@dataclass(frozen=True)
class Zeros:
    """All zeros: biases, and logistic regression, which needs no symmetry broken."""

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape, float64 on the host."""
        return np.zeros(shape)


@dataclass(frozen=True)
class Ones:
    """All ones: the weights of normalization."""

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape, float64 on the host."""
        return np.ones(shape)


@dataclass(frozen=True)
class Normal:
    """Normal with mean 0 and standard deviation `std`."""

    std: float = 0.01

    def __post_init__(self) -> None:
        if not (math.isfinite(self.std) and self.std >= 0):
            raise OptionError(f"Normal needs a finite std >= 0, got {self.std}")

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape, float64 on the host."""
        return self.std * stream.normal(shape)


@dataclass(frozen=True)
class Glorot:
    """Variance 2 / (inputs + outputs), also called Xavier; for tanh, sigmoid and as the default.

    normal: N(0, 2 / (inputs + outputs)); uniform: U(-a, a) with a^2 = 6 / (inputs + outputs).
    Source: Glorot and Bengio, AISTATS 2010.
    """

    distribution: str = "normal"

    def __post_init__(self) -> None:
        _check_distribution(self.distribution)

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape (inputs, outputs, ...), float64 on the host."""
        fan_in, fan_out = _fans(shape)
        return _scaled(stream, shape, 2.0 / (fan_in + fan_out), self.distribution)


@dataclass(frozen=True)
class He:
    """Variance 2 / inputs; for ReLU.

    normal: N(0, 2 / inputs); uniform: U(-a, a) with a^2 = 6 / inputs. Source: He et al., ICCV 2015.
    """

    distribution: str = "normal"

    def __post_init__(self) -> None:
        _check_distribution(self.distribution)

    def __call__(self, stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape (inputs, outputs, ...), float64 on the host."""
        return _scaled(stream, shape, 2.0 / _fans(shape)[0], self.distribution)


Initializer: TypeAlias = Zeros | Ones | Normal | Glorot | He


def _check_distribution(distribution: str) -> None:
    if distribution not in ("normal", "uniform"):
        raise OptionError(f"distribution must be 'normal' or 'uniform', got {distribution!r}")


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs of a weight array (inputs, outputs, ...), at least 1 each."""
    if len(shape) < 2:
        raise OptionError(f"Glorot and He need a weight of two or more axes, got shape {shape}")
    rest = size_of(shape[2:])
    return max(1, shape[0] * rest), max(1, shape[1] * rest)


def _scaled(stream: Stream, shape: tuple[int, ...], variance: float, distribution: str) -> np.ndarray:
    if distribution == "normal":
        return math.sqrt(variance) * stream.normal(shape)
    limit = math.sqrt(3.0 * variance)
    return stream.uniform(shape, -limit, limit)
