"""Random networks of xnn's layers, for the fuzzers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import xnn
from xnn import initializers, layers, ops
from xnn.errors import ShapeError
from xnn.layers import Layer

__all__ = ["close", "random_network", "random_samples"]

Shape = tuple[int, ...]


class Draw:
    """Draws layers for samples of a given shape.

    rng: the random numbers. dtype: of the weights. dropout: whether Dropout layers may drop.
    """

    def __init__(self, rng: np.random.Generator, dtype: str, dropout: bool) -> None:
        self.rng, self.dtype, self.dropout = rng, dtype, dropout

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high."""
        return int(self.rng.integers(low, high + 1))

    def one_of(self, *choices: Any) -> Any:
        return choices[self.number(0, len(choices) - 1)]

    def size(self, low: int, high: int) -> int | tuple[int, int]:
        """A number for both axes of an image, or one for each."""
        return self.one_of(self.number(low, high), (self.number(low, high), self.number(low, high)))

    def initializer(self) -> Any:
        kinds = (initializers.Glorot, initializers.He, initializers.LeCun)
        return self.one_of(*kinds)(self.one_of("normal", "uniform"))

    # For samples of any shape.

    def activation(self, shape: Shape) -> Layer:
        real = float(self.rng.uniform(0.1, 2.0))
        return self.one_of(
            layers.ReLU(), layers.LeakyReLU(real / 4), layers.ELU(real), layers.SELU(), layers.GELU(),
            layers.GELU("tanh"), layers.SiLU(), layers.Softplus(real), layers.Sigmoid(), layers.Tanh(),
        )  # fmt: skip

    def softmax(self, shape: Shape) -> Layer:
        kind = self.one_of(layers.Softmax, layers.LogSoftmax)
        return kind(self.one_of(-1, self.number(1, len(shape))))

    def function(self, shape: Shape) -> Layer:
        return layers.Function(self.one_of(ops.sin, ops.cos, ops.erf, ops.abs))

    def rescale(self, shape: Shape) -> Layer:
        scale = self.one_of(float(self.rng.normal()), self.rng.uniform(0.5, 2.0, shape))
        return layers.Rescale(scale, self.one_of(0.0, 0.25, self.rng.normal(size=shape[-1])), self.dtype)

    def batch_norm(self, shape: Shape) -> Layer:
        options = {"epsilon": self.one_of(1e-5, 1e-3), "momentum": self.one_of(0.1, 0.0, 0.7, 1.0)}
        return layers.BatchNorm(shape[0], **options, affine=self.one_of(True, False), dtype=self.dtype)

    def layer_norm(self, shape: Shape) -> Layer:
        extents = shape[-self.number(1, len(shape)) :]
        epsilon, affine = self.one_of(1e-5, 1e-3), self.one_of(True, False)
        return layers.LayerNorm(extents, epsilon, affine, self.dtype)

    def drop(self, shape: Shape) -> Layer:
        return layers.Dropout(self.one_of(0.0, 0.2, 0.5) if self.dropout else 0.0)

    def add(self, shape: Shape) -> Layer:
        return layers.Add(layers.Identity(), layers.Sequential(*self.same_shape(shape)))

    def parallel(self, shape: Shape) -> Layer:
        branches = [layers.Sequential(*self.same_shape(shape)) for _ in range(self.number(1, 3))]
        return layers.Parallel(*branches, layers.Identity(), axis=self.one_of(-1, self.number(1, len(shape))))

    def same_shape(self, shape: Shape) -> list[Layer]:
        """One or two layers whose output has the shape of their input."""
        kinds = (self.activation, self.batch_norm, self.layer_norm, self.function, self.drop, self.rescale)
        found = [self.one_of(*kinds)(shape) for _ in range(self.number(1, 2))]
        if len(shape) < 3:
            found.append(layers.Dense(shape[-1], shape[-1], dtype=self.dtype))
        return found

    # For vectors and sequences.

    def dense(self, shape: Shape) -> Layer:
        return layers.Dense(
            shape[-1], self.number(1, 7), bias=self.one_of(True, True, False), weight_init=self.initializer(),
            bias_init=initializers.Normal(0.3), dtype=self.dtype,
        )  # fmt: skip

    def reshape(self, shape: Shape) -> Layer:
        """The first axis in two, or the first two axes in one."""
        if len(shape) > 1:
            return layers.Reshape((shape[0] * shape[1], *shape[2:]))
        divisor = self.one_of(*(d for d in range(1, shape[0] + 1) if shape[0] % d == 0))
        return layers.Reshape((divisor, -1))

    # For images.

    def convolution(self, shape: Shape) -> Layer:
        padding = self.one_of("same", self.size(0, 2))
        stride = 1 if padding == "same" else self.size(1, 2)
        return layers.Conv2D(
            shape[0], self.number(1, 4), self.size(1, 3), stride, padding, self.size(1, 2),
            bias=self.one_of(True, False), weight_init=self.initializer(), bias_init=initializers.Normal(0.3),
            dtype=self.dtype,
        )  # fmt: skip

    def pool(self, shape: Shape) -> Layer:
        kernel = self.number(1, 3)
        options = {
            "kernel_size": kernel,
            "stride": self.one_of(None, self.size(1, 3)),
            "padding": self.number(0, kernel // 2),
        }
        if self.one_of(True, False):
            return layers.AvgPool2D(**options)
        return layers.MaxPool2D(**options, dilation=self.size(1, 2))

    def flat(self, shape: Shape) -> Layer:
        return self.one_of(layers.Flatten(), layers.GlobalAvgPool() if len(shape) == 3 else layers.Flatten())

    def kinds(self, shape: Shape) -> list[Callable[[Shape], Layer]]:
        """What may follow samples of this shape; what stands twice is drawn more often."""
        common = [
            self.activation,
            self.activation,
            self.softmax,
            self.function,
            self.rescale,
            self.batch_norm,
        ]
        common += [self.layer_norm, self.drop, self.add, self.parallel]
        if len(shape) == 3:
            return [*common, *(self.convolution,) * 3, self.pool, self.pool, self.flat]
        return [*common, self.dense, self.dense, self.dense, self.reshape, *[self.flat] * (len(shape) - 1)]


def random_samples(rng: np.random.Generator, rows: int, dtype: str) -> np.ndarray:
    """Samples for a network: vectors, sequences or images; or int64 numbers of words, for an Embedding."""
    shape = [(5,), (4, 6), (2, 6, 7), (1, 9, 5)][int(rng.integers(4))]
    if rng.random() < 0.15:
        return rng.integers(0, 9, (rows, shape[-1]))
    return rng.normal(size=(rows, *shape)).astype(dtype)


def random_network(
    rng: np.random.Generator,
    x: np.ndarray,
    outputs: int,
    dtype: str = "float32",
    dropout: bool = False,
    most: int = 7,
) -> xnn.Sequential:
    """A network for these samples, with random layers, options and weights.

    outputs: how many numbers it gives for each sample. dropout: whether it may drop. most: the most random layers.
    """
    draw = Draw(rng, dtype, dropout)
    shape: Shape = x.shape[1:]
    chosen: list[Layer] = []
    if x.dtype.kind == "i":
        chosen.append(layers.Embedding(9, draw.number(1, 4), dtype=dtype))
        shape = chosen[0].output_shape(shape)
    for _ in range(draw.number(1, most)):
        layer = draw.one_of(*draw.kinds(shape))(shape)
        try:
            after = layer.output_shape(shape)
        except ShapeError:  # windows larger than the image
            continue
        if np.prod(after) <= 150:
            chosen, shape = [*chosen, layer], after
    if len(shape) > 1:
        chosen.append(layers.Flatten())
    chosen.append(layers.Dense(int(np.prod(shape)), outputs, dtype=dtype))
    model = xnn.Sequential(*chosen, seed=draw.number(0, 1000))
    for parameter in model.parameters():  # those that start as ones or zeros would hide faults
        parameter.value = parameter.value + (0.2 * rng.normal(size=parameter.shape)).astype(dtype)
    return model


def close(found: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Check that no element is further off than the tolerance, relative to the largest element (or to 1e-3)."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, what
    scale = max(1e-3, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=tolerance * scale, err_msg=what)
