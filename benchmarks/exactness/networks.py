"""The small networks of the digest matrix. Together they use every layer, loss, optimizer, schedule and metric.

Add each new class but an activation to one of them: tests/benchmarks/test_digests.py names those that are in none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn import initializers, layers, losses, metrics, ops, optimizers, schedules
from xnn.backends import Purpose, Stream, backend_of
from xnn.graph.node import array_of
from xnn.layers import Sequential
from xnn.layers.activations import elementwise
from xnn.losses import Loss
from xnn.optimizers import Optimizer

__all__ = ["EPOCHS", "ROWS", "SMALL", "Network", "Parts"]

Parts = tuple[Sequential, Loss, Optimizer]

#: The number of samples of each network and of epochs. Batches have 32 samples, the last one 11.
ROWS, EPOCHS = 75, 3
_STEPS = EPOCHS * 3


@dataclass(frozen=True)
class Network:
    """How to make a model, its loss and optimizer, and its data.

    build: returns (model, loss, optimizer). samples: returns the samples, ROWS of them. targets: returns the
    targets, made from an array (ROWS, 2) of numbers in (-1, 1). metrics: as for Trainer.
    """

    build: Callable[[], Parts]
    samples: Callable[[], np.ndarray]
    targets: Callable[[np.ndarray], np.ndarray]
    metrics: tuple[Any, ...] | None = None
    #: Whether samples have weights. Some of the weights are 0.
    weighted: bool = False

    def data(self) -> tuple[np.ndarray, ...]:
        """(samples, targets), or (samples, targets, weights) of a weighted network."""
        u = _uniform(7, (ROWS, _FEATURES + 2))[:, _FEATURES:]
        arrays = self.samples(), self.targets(u)
        return (*arrays, np.maximum(u[:, 1] + 0.5, 0.0).astype(np.float32)) if self.weighted else arrays


# Samples and targets.

_FEATURES, _WORDS, _SIZE = 6, 12, (9, 8)
#: Each feature's scale, which the Rescale layer divides out. The first is subnormal: exact numerics store zeros.
_SIZES = np.array([2.0**-127, 1e-4, 1.0, 3.0, 1e3, 1e9])
#: The scales of the two channels of images.
_CHANNELS = np.array([1e-5, 1e4]).reshape(2, 1, 1)


def _uniform(part: int, shape: tuple[int, ...]) -> np.ndarray:
    return Stream(9, Purpose.SYNTHETIC, part).uniform(shape, -1.0, 1.0)


def _features() -> np.ndarray:
    numbers = _uniform(7, (ROWS, _FEATURES + 2))
    # Subnormal float32 numbers are made from their bits: on a processor that flushes them, a conversion gives zero.
    x = np.asarray(numbers[:, :_FEATURES] * _SIZES, dtype=np.float32)
    x[:, 0] = (np.abs(numbers[:, 0]) * 2.0**22).astype(np.uint32).view(np.float32)
    return x


def _images() -> np.ndarray:
    return np.asarray(_CHANNELS * _uniform(8, (ROWS, 2, *_SIZE)), dtype=np.float32)


def _bytes() -> np.ndarray:
    return np.asarray((_uniform(10, (ROWS, 2, *_SIZE)) + 1.0) * 127.5, dtype=np.uint8)


def _flat_bytes() -> np.ndarray:
    return _bytes()[:, 0].reshape(ROWS, -1)


def _words() -> np.ndarray:
    return np.floor((_uniform(11, (ROWS, 5)) + 1.0) * (_WORDS / 2)).astype(np.int64)


def _numbers(u: np.ndarray) -> np.ndarray:
    return u.astype(np.float32)


def _yes(u: np.ndarray) -> np.ndarray:
    return (u[:, :1] > 0.0).astype(np.float32)


def _two_yes(u: np.ndarray) -> np.ndarray:
    return (u > 0.0).astype(np.float32)


def _labels(u: np.ndarray) -> np.ndarray:
    return np.floor((u[:, 0] + 1.0) * 2.5).astype(np.int64)


def _probabilities(u: np.ndarray) -> np.ndarray:
    parts = np.stack([np.abs(u[:, 0]), np.maximum(u[:, 1], 0.0), np.abs(u[:, 0] - u[:, 1]) + 0.1], axis=1)
    return np.asarray(parts / (parts[:, :1] + parts[:, 1:2] + parts[:, 2:]), dtype=np.float32)


def _label_maps(u: np.ndarray) -> np.ndarray:
    return np.floor((_uniform(12, (ROWS, 5, 4)) + 1.0) * 1.5).astype(np.int64)


# Networks of numbers of very different sizes.


def _rescale() -> layers.Rescale:
    return layers.Rescale(1.0 / _SIZES, np.linspace(-1.0, 0.5, _FEATURES))


def _adam() -> Parts:
    model = Sequential(
        _rescale(),
        layers.Dense(_FEATURES, 16),
        layers.Tanh(),
        layers.Dropout(0.25),
        layers.Dense(16, 12, weight_init=initializers.Glorot("uniform")),
        layers.Sigmoid(),
        layers.Dense(12, 2, weight_init=initializers.Normal(0.3)),
        seed=2,
    )
    return model, losses.MSE(), optimizers.Adam(schedules.OneCycle(0.02, _STEPS), weight_decay=1e-3)


def _nesterov() -> Parts:
    model = Sequential(
        _rescale(),
        layers.Dense(_FEATURES, 16, bias=False),
        layers.Sigmoid(),
        layers.Dropout(0.4),
        layers.Dense(16, 1),
        seed=3,
    )
    rate = schedules.OneCycle(0.3, _STEPS, shape="cosine")
    return (
        model,
        losses.BinaryCrossEntropy(),
        optimizers.SGD(rate, 0.9, nesterov=True, weight_decay=1e-3),
    )


def _momentum() -> Parts:
    model = Sequential(
        _rescale(),
        layers.Dense(_FEATURES, 16, weight_init=initializers.He()),
        layers.ReLU(),
        layers.Dense(16, 8, weight_init=initializers.He("uniform")),
        layers.Softmax(),
        layers.Function(ops.exp),
        layers.Dense(8, 5),
        seed=4,
    )
    return model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1, momentum=0.9)


class _Gate(layers.Composite):
    """x * sigmoid(x @ weight + bias): a layer of several ops with parameters of its own."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = layers.Parameter("weight", (features, features), initializers.Uniform(-0.5, 0.5))
        self.bias = layers.Parameter("bias", (features,), initializers.Constant(0.5))

    def compute(self, x: Any) -> Any:
        return x * ops.sigmoid(ops.dense(x, self.weight, self.bias))


def _other_ops(x: Any) -> Any:
    """Applies ops that no layer uses to x (n, 8); the result is (n, 4)."""
    halves = ops.reshape(x, shape=(-1, 2, 4))
    products = ops.flatten(ops.matmul(halves, ops.transpose(halves, axes=(0, 2, 1))))
    away = ops.sub(ops.max(x, axis=1, keepdims=True), x)
    spread = ops.div(ops.pow(away, 1.5), ops.add(ops.mean(away, axis=1, keepdims=True), 0.1))
    bent = ops.where(x > 0.3, ops.maximum(x, spread), ops.mul(x, -0.5))
    places = backend_of(array_of(x)).to_device(np.array([2, 0, 2, 7]))
    grown = ops.log(ops.add(ops.take(bent, places, axis=1) ** 2, ops.exp(ops.mul(products, -1.0))))
    swapped = ops.concat((halves[:, 1:], halves[:, :1]), axis=1)
    return ops.add(grown, ops.sum(swapped, axis=1))


def _huber() -> Parts:
    model = Sequential(
        _rescale(),
        layers.Dense(_FEATURES, 12, weight_init=initializers.TruncatedNormal(0.5)),
        layers.BatchNorm(12),
        layers.ELU(0.5),
        layers.Parallel(
            layers.Dense(12, 4, weight_init=initializers.Glorot()),
            Sequential(layers.Dense(12, 4, weight_init=initializers.LeCun()), layers.Softplus(2.0)),
        ),
        _Gate(8),
        layers.Lambda(_other_ops),
        layers.BatchNorm(4, momentum=0.3, affine=False),
        layers.Dense(4, 2),
        seed=5,
    )
    rate = schedules.Polynomial(0.02, _STEPS, 0.9)
    return model, losses.Huber(0.5), optimizers.Nadam(rate, weight_decay={"weight": 1e-2}, average=0.8)


def _hinge() -> Parts:
    model = Sequential(
        _rescale(),
        layers.Dense(_FEATURES, 16, weight_init=initializers.LeCun("uniform")),
        layers.SELU(),
        layers.LayerNorm(16),
        layers.Dense(16, 8, weight_init=initializers.Orthogonal()),
        layers.GELU("tanh"),
        layers.Dense(8, 1, bias_init=initializers.Ones()),
        seed=6,
    )
    optimizer = optimizers.Adam(0.01, amsgrad=True, average=0.5, clip_value=0.5)
    return model, losses.Hinge(reduction="sum"), optimizer


def _smooth() -> Parts:
    model = Sequential(
        _rescale(),
        layers.Dense(_FEATURES, 10, weight_init=initializers.Orthogonal(1.5)),
        layers.SiLU(),
        layers.Dense(10, 3),
        seed=7,
    )
    loss = losses.SoftmaxCrossEntropy(label_smoothing=0.2, class_weight=(0.5, 1.0, 3.0))
    return model, loss, optimizers.AdaDelta(schedules.Constant(2.0), clip_norm=0.5)


# Networks of words and of images.


def _words_to_classes() -> Parts:
    model = Sequential(
        layers.Embedding(_WORDS, 6),
        layers.LayerNorm((5, 6)),
        layers.Add(
            layers.Identity(),
            Sequential(layers.Dense(6, 6, weight_init=initializers.Identity(0.5)), layers.SiLU()),
        ),
        layers.Parallel(layers.Identity(), layers.Dense(6, 2), axis=-1),
        layers.Flatten(),
        layers.Dense(40, 3),
        layers.LogSoftmax(),
        seed=8,
    )
    rate = schedules.Step(0.01, every=4, factor=0.5)
    return model, losses.KLDivergence(), optimizers.RMSProp(rate, momentum=0.5, centered=True, clip_norm=1.0)


def _convolution() -> Parts:
    model = Sequential(
        layers.Rescale(1 / 255),
        layers.Conv2D(2, 6, 3, padding="same", weight_init=initializers.He(mode="fan_out")),
        layers.BatchNorm(6),
        layers.ReLU(),
        layers.MaxPool2D(2, padding=1),
        layers.Conv2D(6, 8, 3, stride=2, padding=1, bias=False, weight_init=initializers.Orthogonal()),
        layers.GELU(),
        layers.GlobalAvgPool(),
        layers.Dense(8, 5),
        seed=9,
    )
    rate = schedules.Cosine(0.2, _STEPS, 0.01)
    optimizer = optimizers.SGD(rate, 0.9, weight_decay={"weight": 1e-3}, clip_norm=1.0, average=0.7)
    return model, losses.SoftmaxCrossEntropy(ignore_index=2), optimizer


def _augmented() -> Parts:
    model = Sequential(
        layers.Rescale(1 / 255),
        layers.ElasticDeformation(8.0, 2.0, shape=_SIZE),
        layers.Reshape((1, *_SIZE)),
        layers.RandomAffine(1.0, 15.0, 0.1),
        layers.Conv2D(1, 5, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)),
        layers.LeakyReLU(0.2),
        layers.AvgPool2D((3, 2), stride=2, padding=(1, 0)),
        layers.Dropout(0.3),
        layers.Flatten(),
        layers.Dense(50, 2),
        seed=10,
    )
    rate = schedules.Warmup(schedules.CosineRestarts(0.02, 2, growth=2), 2)
    optimizer = optimizers.AdamW(rate, amsgrad=True, clip_value=0.01, clip_norm=0.05)
    return model, losses.BinaryCrossEntropy(pos_weight=(2.0, 0.5)), optimizer


def _trained_augmentation() -> Parts:
    """A convolution before the augmentation layers, so that gradients flow back through them; focal loss."""
    model = Sequential(
        layers.Rescale(1.0 / _CHANNELS, 0.25),
        layers.Conv2D(2, 3, 1),
        layers.RandomAffine(0.5, 20.0, 0.2),
        layers.ElasticDeformation(4.0, 1.5),
        layers.MaxPool2D((2, 3), stride=(3, 1), dilation=(2, 1)),
        layers.Flatten(),
        layers.Dense(54, 2),
        seed=11,
    )
    rate = schedules.MultiStep(0.1, (3, 6), 0.3)
    return model, losses.Focal(1.5, 0.4), optimizers.AdaGrad(rate, weight_decay=1e-3)


def _maps() -> Parts:
    """A network that classifies each pixel: labels (n, 5, 4)."""
    model = Sequential(
        layers.Rescale(1.0 / _CHANNELS),
        layers.LayerNorm((2, *_SIZE)),
        layers.Conv2D(2, 4, 3, stride=2, padding=1),
        layers.Tanh(),
        layers.BatchNorm(4),
        layers.Softmax(axis=1),
        layers.Conv2D(4, 3, 1, weight_init=initializers.Normal(0.5)),
        seed=12,
    )
    loss = losses.SoftmaxCrossEntropy(class_weight=(1.0, 0.2, 2.0), reduction="sum")
    return model, loss, optimizers.SGD(1e-3)


def _absolute() -> Parts:
    model = Sequential(
        layers.Rescale(1.0 / 255),
        layers.Dense(72, 10, weight_init=initializers.Uniform(-0.2, 0.2)),
        layers.Softplus(),
        layers.Dense(10, 2, bias_init=initializers.Constant(0.1)),
        seed=13,
    )
    rate = schedules.Exponential(0.01, 0.5, every=4)
    return model, losses.L1(), optimizers.Lion(rate, weight_decay=lambda p: 0.1 * (len(p.shape) > 1))


class _Comparing(layers.Layer):
    """A layer of ops that no layer of xnn uses: comparisons, functions of a row, stop_gradient. It has a list."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.branches = [layers.Dense(features, features), layers.Dense(features, features)]

    def compute(self, x: Any) -> Any:
        a, b = (branch(x) for branch in self.branches)
        equal = ops.where(ops.equal(a, b), x, ops.where(ops.not_equal(a, x), a, b))
        between = ops.where(a > b, a, ops.where(a >= 0.1, b, ops.abs(a)))
        below = ops.where(a < x, b, ops.where(b <= x, x, a))
        return between + ops.stop_gradient(b) * below + equal + self.functions(a, b)

    def functions(self, a: Any, b: Any) -> Any:
        wave = ops.stack((ops.sin(a), ops.cos(b), ops.erf(a - b)), axis=1)
        spread = ops.sqrt(ops.var(a, 1, keepdims=True, correction=1) + 0.1)
        near = ops.clip(ops.minimum(a, b), -1.0, 1.0) - ops.min(b, 1, keepdims=True)
        small = ops.expm1(0.1 * near) + ops.log1p(ops.abs(a)) * ops.sign(b)
        return 0.1 * (ops.sum(wave, 1) / spread + small)


def _comparisons() -> Parts:
    model = Sequential(_rescale(), layers.Dense(_FEATURES, 6), _Comparing(6), layers.Dense(6, 2), seed=14)
    return model, losses.MSE(), optimizers.SGD(0.05)


_ABOVE = {"relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus", "sigmoid", "tanh"}


def _newer() -> Parts:
    """One layer of each activation that is not in the networks above, which are `_ABOVE`."""
    newer = [kind() for name, kind in elementwise().items() if name not in _ABOVE]
    stack = [part for layer in newer for part in (layers.Dense(8, 8), layer)]
    model = Sequential(_rescale(), layers.Dense(_FEATURES, 8), *stack, layers.Dense(8, 2), seed=15)
    return model, losses.MSE(), optimizers.SGD(0.05)


_YES_OR_NO = (metrics.Accuracy(), metrics.Precision(), metrics.Recall(), metrics.F1())
_OF_NUMBERS = (metrics.MAE(), metrics.MSE(), metrics.RMSE(), metrics.R2())
_CALIBRATION = (metrics.CalibrationError(), metrics.Reliability())
_OF_CLASSES = (metrics.TopK(2), metrics.F1(average="weighted"), metrics.ConfusionMatrix(), *_CALIBRATION)
#: Each network under a name that says its loss and optimizer.
SMALL: dict[str, Network] = {
    "mse, adam": Network(_adam, _features, _numbers, _OF_NUMBERS),
    "bce, nesterov": Network(_nesterov, _features, _yes, _YES_OR_NO),
    "softmax, momentum": Network(_momentum, _features, _labels),
    "huber, nadam": Network(_huber, _features, _numbers, _OF_NUMBERS, weighted=True),
    "hinge, amsgrad": Network(_hinge, _features, lambda u: 2.0 * _yes(u) - 1.0),
    "smoothed softmax, adadelta": Network(_smooth, _features, _probabilities, (), weighted=True),
    "divergence of words, rmsprop": Network(_words_to_classes, _words, _probabilities),
    "softmax of images, averaged sgd": Network(_convolution, _bytes, _labels, _OF_CLASSES, weighted=True),
    "bce of moved images, adamw": Network(_augmented, _flat_bytes, _two_yes, weighted=True),
    "focal loss of moved images, adagrad": Network(_trained_augmentation, _images, _two_yes),
    "softmax of maps, sgd": Network(_maps, _images, _label_maps, ("accuracy",)),
    "l1 of bytes, lion": Network(_absolute, _flat_bytes, _numbers),
    "mse of comparisons, sgd": Network(_comparisons, _features, _numbers, ()),
}
if elementwise().keys() - _ABOVE:
    SMALL["mse of newer activations, sgd"] = Network(_newer, _features, _numbers, ())
