"""Networks of images in exact numerics by several ranks: two messages a step, and the bits of one process."""

import numpy as np
import pytest
from trainings import on_each, outcome, steps_and_messages

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends import Purpose, Stream
from xnn.data import synthetic_digits
from xnn.errors import DivergenceError

SIZES = (2, 3, 4, 7, 13)


def lenet(kernels="auto", metrics=None):
    """LeNet-5 with a third of its channels and images of half the width."""
    model = xnn.Sequential(
        layers.Rescale(1 / 255), layers.Reshape((1, 14, 14)),
        layers.Conv2D(1, 3, 5, padding=2), layers.ReLU(), layers.MaxPool2D(2),
        layers.Conv2D(3, 5, 3), layers.ReLU(), layers.MaxPool2D(2), layers.Flatten(),
        layers.Dense(20, 12), layers.ReLU(), layers.Dense(12, 10), seed=1,
    )  # fmt: skip
    optimizer = optimizers.Adam(0.01)
    return xnn.Trainer(
        model, losses.SoftmaxCrossEntropy(), optimizer, metrics, numerics="exact", kernels=kernels
    )


def pixels(n=90):
    x, y = synthetic_digits(n)
    return np.ascontiguousarray(x.reshape(n, 28, 28)[:, ::2, ::2]).reshape(n, -1), y


def numbers(shape, part=0):
    """float32 numbers of very different sizes; every ninth is 0."""
    stream = Stream(5, Purpose.DIRECTIONS, part)
    x = np.asarray(stream.uniform(shape, -1.0, 1.0)) * np.exp2(np.round(stream.uniform(shape, -20.0, 9.0)))
    x.reshape(-1)[::9] = 0.0
    return x.astype(np.float32)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kernels", ["auto", "numpy", "ops"])
@pytest.mark.parametrize("size", SIZES)
def test_lenet(size, kernels):
    data = pixels()

    def train():
        trainer = lenet(kernels)
        history = trainer.fit(data, validation=data, epochs=2, batch_size=40, progress=False)
        return outcome(trainer, history, data)

    assert on_each(size, train) == train()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kernels", ["auto", "numpy"])
@pytest.mark.parametrize("size", SIZES)
def test_all_options_of_a_convolution(size, kernels, monkeypatch):
    """Stride, padding, dilation, no bias, a ReLU or none, poolings, a frozen layer; a row of windows at a time."""
    if kernels == "numpy":
        monkeypatch.setattr("xnn.backends.exact.kernels.numpy_images._ROOM", 1)
    x, y = numbers((50, 2, 9, 12)), np.arange(50) % 4

    def train():
        model = xnn.Sequential(
            layers.Conv2D(2, 4, (3, 2), stride=(1, 2), padding=(2, 1), bias=False), layers.MaxPool2D((2, 1)),
            layers.Conv2D(4, 3, 3, padding="same", dilation=(1, 2)), layers.Tanh(), layers.AvgPool2D(2),
            layers.Conv2D(3, 3, 1), layers.ReLU(), layers.Conv2D(3, 4, 2), layers.GlobalAvgPool(),
            seed=1,
        )  # fmt: skip
        model.layers[5].weight.frozen = model.layers[2].bias.frozen = True
        trainer = xnn.Trainer(
            model, losses.SoftmaxCrossEntropy(), optimizers.SGD(1e-3, 0.9), numerics="exact", kernels=kernels
        )
        return outcome(trainer, trainer.fit((x, y), epochs=2, batch_size=20, progress=False), (x, y))

    assert on_each(size, train) == train()


@pytest.mark.parametrize("kernels", ["auto", "numpy"])
def test_a_step_of_lenet_sends_two_messages(kernels):
    steps, messages = steps_and_messages(lambda: lenet(kernels, []), 3, pixels(), batch_size=30)
    assert (messages["maximum"], messages["sum"]) == (steps, steps)


def vgg(metrics=None):
    model = xnn.Sequential(
        layers.Rescale(1 / 255), layers.Reshape((1, 14, 14)),
        layers.Conv2D(1, 4, 3, padding=1), layers.BatchNorm(4), layers.ReLU(), layers.MaxPool2D(2),
        layers.Conv2D(4, 6, 3, padding=1), layers.ReLU(), layers.MaxPool2D(2), layers.Flatten(),
        layers.Dense(54, 8), layers.ReLU(), layers.Dropout(0.3), layers.Dense(8, 10), seed=2,
    )  # fmt: skip
    return xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.05), metrics, numerics="exact")


def test_convolutions_with_batch_normalization():
    data = pixels()

    def train():
        trainer = vgg()
        return outcome(trainer, trainer.fit(data, epochs=2, batch_size=40, progress=False), data)

    assert on_each(4, train) == train()
    steps, messages = steps_and_messages(lambda: vgg([]), 2, data, batch_size=30)
    assert messages["maximum"] + messages["sum"] == 8 * steps


def test_a_convolution_that_is_used_twice_is_computed_by_ops():
    class Twice(layers.Composite):
        def __init__(self):
            super().__init__()
            self.convolution = layers.Conv2D(2, 2, 3, padding=1)

        def compute(self, x):
            return self.convolution(ops.relu(self.convolution(x)))

    x, y = numbers((40, 2, 5, 4)), np.arange(40) % 3

    def train():
        model = xnn.Sequential(Twice(), layers.Conv2D(2, 3, 2), layers.GlobalAvgPool(), seed=1)
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(1e-3), numerics="exact")
        return outcome(trainer, trainer.fit((x, y), epochs=2, batch_size=16, progress=False), (x, y))

    assert on_each(3, train) == train()


def test_one_image_that_overflows_is_a_divergence_on_all_ranks():
    x, y = numbers((32, 1, 5, 5)), np.arange(32) % 3
    x[30, 0, 2, 2] = 3e38

    def train():
        model = xnn.Sequential(
            layers.Conv2D(1, 2, 3), layers.ReLU(), layers.Flatten(), layers.Dense(18, 3), seed=1
        )
        model.layers[0].weight.value = model.layers[0].weight.value * np.float32(1000.0)
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(1e-9), numerics="exact")
        with pytest.raises(DivergenceError) as error:
            trainer.fit((x, y), epochs=3, batch_size=16, progress=False)
        return str(error.value), trainer.step, trainer.history.losses_sha256

    assert on_each(3, train) == train()
