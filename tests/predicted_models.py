"""Models and samples for the tests of predictions, and predictions by a table of kernels or by ops."""

from __future__ import annotations

import importlib.util

import numpy as np

import xnn
from xnn import layers, ops
from xnn.benchmarks import networks
from xnn.layers import prediction
from xnn.layers.parts import Parts

__all__ = [
    "CATALOGUE",
    "IMAGES",
    "PICTURES",
    "ROWS",
    "TABLES",
    "by",
    "close",
    "dense",
    "images",
    "write_into_weights",
]

IMAGES = np.random.default_rng(0).integers(0, 256, (1000, 784), np.uint8)
ROWS = np.random.default_rng(1).normal(size=(1000, 12)).astype(np.float32)
PICTURES = ROWS[:, np.arange(98) % 12].reshape(1000, 2, 7, 7) + ROWS[:, :2, None, None]
TABLES = ["numpy"] if importlib.util.find_spec("numba") is None else ["numpy", "compiled"]


def by(kernels, model, x):
    """The outputs by a table of kernels; "ops": by ops."""
    given = model.prepare(x)
    if kernels != "ops" and len(model) > 1:
        assert prediction.predicted(model, given, kernels) is not None
    return Parts(model, kernels).together(given)


def close(a, b, rounding=2e-5):
    np.testing.assert_allclose(
        a, b, rtol=rounding, atol=rounding * np.abs(b[np.isfinite(b)]).max(initial=1.0)
    )


def dense(*rest, dtype="float32"):
    return xnn.Sequential(layers.Dense(12, 9, dtype=dtype), *rest, seed=3)


def images(*rest, dtype="float32"):
    return xnn.Sequential(layers.Conv2D(2, 4, 3, padding=1, dtype=dtype), *rest, seed=3)


def residual():
    main = layers.Sequential(layers.Conv2D(4, 4, 3, padding=1), layers.BatchNorm(4), layers.ReLU())
    return layers.Add(layers.Identity(), main)


#: Of each model a function that makes it, and samples.
CATALOGUE = {
    **{name: (lambda name=name: networks.in_xnn(name), IMAGES) for name in networks.NETWORKS if "-" not in name},
    **{
        kind.__name__: (lambda kind=kind: dense(kind(), layers.Dense(9, 3)), ROWS)
        for kind in (
            layers.ReLU, layers.Sigmoid, layers.Tanh, layers.GELU, layers.SiLU, layers.ELU, layers.SELU,
            layers.LeakyReLU, layers.Softplus, layers.Softmax, layers.LogSoftmax, layers.Dropout, layers.Identity,
            layers.Flatten,
        )
    },
    "float64": (lambda: dense(layers.Tanh(), dtype="float64"), ROWS),
    "no bias": (lambda: xnn.Sequential(layers.Dense(12, 3, bias=False), layers.ReLU()), ROWS),
    "batch norm": (lambda: dense(layers.BatchNorm(9), layers.ReLU()), ROWS),
    "layer norm": (lambda: dense(layers.LayerNorm(9)), ROWS),
    "norm first": (lambda: xnn.Sequential(layers.BatchNorm(12), layers.Dense(12, 2)), ROWS),
    "reshape": (lambda: dense(layers.Reshape((3, 3)), layers.Flatten(), layers.Dense(9, 2)), ROWS),
    "reshape alone": (lambda: xnn.Sequential(layers.Reshape((3, 4))), ROWS),
    "nothing": (lambda: xnn.Sequential(), ROWS),
    "parallel": (lambda: dense(layers.Parallel(layers.Identity(), layers.Tanh()), layers.Dense(18, 2)), ROWS),
    "nested": (lambda: dense(xnn.Sequential(layers.ReLU(), layers.Dense(9, 4)), layers.Tanh()), ROWS),
    "function": (lambda: dense(layers.Function(ops.softmax, axis=1)), ROWS),
    "rescaled": (lambda: xnn.Sequential(layers.Rescale(0.5, 1.0), layers.Dense(12, 2)), ROWS),
    "standardized": (
        lambda: xnn.Sequential(layers.Rescale(np.arange(1.0, 13), 0.0, shift=np.arange(12.0)), layers.Dense(12, 2)),
        ROWS.astype(np.float64),
    ),
    "regression": (
        lambda: dense(layers.Dense(9, 1), layers.Rescale(1 / 1000, shift=2e5).inverse()), ROWS,
    ),
    "embedding": (
        lambda: xnn.Sequential(layers.Embedding(5, 3), layers.Flatten(), layers.Dense(12, 2)),
        np.random.default_rng(2).integers(0, 5, (1000, 4)),
    ),
    "pools": (
        lambda: images(layers.MaxPool2D(2), layers.ReLU(), layers.AvgPool2D(3), layers.Flatten()), PICTURES,
    ),
    "strides": (
        lambda: images(layers.Conv2D(4, 5, 3, stride=2, dilation=2, padding=2), layers.GlobalAvgPool()), PICTURES,
    ),
    "residual": (lambda: images(residual(), layers.GlobalAvgPool()), PICTURES),
    "images of float64": (lambda: images(layers.ReLU(), layers.Flatten(), dtype="float64"), PICTURES),
    "augmented": (
        lambda: xnn.Sequential(*layers.augmentation((28, 28)), layers.Dense(784, 3)),
        IMAGES.astype(np.float32),
    ),
}  # fmt: skip


def write_into_weights(model):
    for parameter in model.parameters():
        parameter.value[...] += 0.5
