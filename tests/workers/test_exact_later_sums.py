"""Ops without kernels of their own whose sums over the batch go with the two messages of a step."""

import numpy as np
import pytest
from trainings import digits, mlp, on_each, outcome, steps_and_messages

import xnn
from xnn import initializers, layers, losses, ops, optimizers
from xnn.ops.apply import batch_sum

SIZES = (2, 3, 7)


def both(steps, messages):
    """How many maxima and how many sums a step takes."""
    return messages["maximum"] / steps, messages["sum"] / steps


def words(frozen=(), metrics=None):
    model = xnn.Sequential(
        layers.Embedding(12, 6), layers.LayerNorm((5, 6)), layers.Flatten(),
        layers.Dense(30, 8), layers.LayerNorm(8), layers.GELU(), layers.Dense(8, 3), seed=1,
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        parameter.frozen = name in frozen
    return xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.Adam(0.01), metrics, numerics="exact")


def sentences(n=70):
    rng = np.random.default_rng(2)
    return rng.integers(0, 12, (n, 5)), rng.integers(0, 3, n)


def names():
    return [name for name, _ in words().model.named_parameters()]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2, 3, 6)], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_embeddings_and_layer_normalization(size, frozen):
    data, still = sentences(), {names()[n] for n in frozen}

    def train():
        trainer = words(still)
        return outcome(trainer, trainer.fit(data, epochs=2, batch_size=32, progress=False), data)

    assert on_each(size, train) == train()
    steps, messages = steps_and_messages(lambda: words(still, []), size, data, batch_size=35)
    assert both(steps, messages) == (1, 1)


class Scaled(layers.Composite):
    """x * scale + shift, where a weight has fewer axes than x."""

    def __init__(self):
        super().__init__()
        self.scale = layers.Parameter("scale", (8,), initializers.Constant(0.5))
        self.shift = layers.Parameter("shift", (8,), initializers.Constant(0.1))

    def compute(self, x):
        return x * self.scale + self.shift


def test_weights_that_are_spread_over_the_rows():
    data = digits()

    def make(metrics=None):
        return mlp(layers.Dense(20, 8), layers.Tanh(), Scaled(), numerics="exact", metrics=metrics)

    def train():
        trainer = make()
        return outcome(trainer, trainer.fit(data, epochs=2, progress=False), data)

    assert on_each(3, train) == train()
    assert both(*steps_and_messages(lambda: make([]), 2, data, batch_size=32)) == (1, 1)


class Product(layers.Composite):
    """x @ weight."""

    def __init__(self):
        super().__init__()
        self.weight = layers.Parameter("weight", (8, 8), initializers.Glorot())

    def compute(self, x):
        return x @ self.weight


@pytest.mark.parametrize("size", SIZES)
def test_products_of_rows_with_weights(size):
    """Dense of sequences: of numbers with and without a bias, of pixels, and with frozen weights."""
    x, y = np.random.default_rng(4).integers(0, 256, (70, 15), dtype=np.uint8), np.arange(70) % 4

    def make(metrics=None):
        model = xnn.Sequential(
            layers.Rescale(1 / 255), layers.Reshape((3, 5)), layers.Dense(5, 6), layers.Tanh(),
            layers.Dense(6, 4, bias=False), layers.GELU(), layers.Dense(4, 3), layers.Dense(3, 3), layers.Flatten(),
            layers.Dense(9, 8), layers.Tanh(), Product(), layers.Dense(8, 4), seed=3,
        )  # fmt: skip
        model.layers[6].weight.frozen = model.layers[7].bias.frozen = True
        return xnn.Trainer(
            model, losses.SoftmaxCrossEntropy(), optimizers.Adam(0.01), metrics, numerics="exact"
        )

    def train():
        trainer = make()
        return outcome(trainer, trainer.fit((x, y), epochs=2, batch_size=32, progress=False), (x, y))

    assert on_each(size, train) == train()
    assert both(*steps_and_messages(lambda: make([]), size, (x, y), batch_size=35)) == (1, 1)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("reduction", ["mean", "sum_over_batch_size", "sum"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda how: losses.SoftmaxCrossEntropy(class_weight=(0.5, 1.0, 3.0, 0.0), reduction=how),
        lambda how: losses.SoftmaxCrossEntropy(ignore_index=2, reduction=how),
        lambda how: losses.SoftmaxCrossEntropy(label_smoothing=0.1, reduction=how),
    ],
    ids=["class weights", "ignored labels", "smoothed"],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_with_weights(loss, reduction, weighted):
    """Only the divisor of a mean has to be known before the gradient, so that it takes two messages more."""
    x, y = digits(96)
    weights = np.where(np.arange(96) < 40, 0.0, np.linspace(0.1, 3.0, 96)).astype(
        np.float32
    )  # some ranks have none
    made = loss(reduction)

    def trainer(metrics=None):
        model = xnn.Sequential(
            layers.Rescale(1 / 255), layers.Dense(20, 6), layers.Tanh(), layers.Dense(6, 4), seed=1
        )
        return xnn.Trainer(model, made, optimizers.SGD(0.01), metrics, numerics="exact")

    options = {"batch_size": 32, "sample_weight": weights} if weighted else {"batch_size": 32}

    def train():
        one = trainer()
        history = one.fit((x, y), validation=(x, y), epochs=2, progress=False, **options)
        return outcome(one, history, (x, y))

    assert on_each(5, train) == train()
    counts = weighted or made.class_weight is not None or made.ignore_index is not None
    found = both(*steps_and_messages(lambda: trainer([]), 3, (x, y), **options))
    assert found == ((2, 2) if reduction == "mean" and counts else (1, 1))


class Sized(ops.LossOp):
    """(y - t)^2 / (1 + sum t^2), with a sum over the batch that the terms need at once."""

    def terms(self, xp, outputs, targets):
        away, size = outputs - targets, 1.0 + batch_sum(xp, targets * targets)
        return away * away / size, (away, size)

    def slopes(self, xp, share, saved):
        away, size = saved
        return share * 2.0 * away / size, None


class SizedLoss(losses.Loss):
    def compute(self, outputs, targets):
        return sized(outputs, targets)


sized = Sized()


@pytest.mark.parametrize("size", SIZES)
def test_a_loss_that_adds_up_the_batch_by_itself(size):
    rng = np.random.default_rng(4)
    data = rng.normal(size=(70, 5)).astype("f4"), rng.normal(size=(70, 2)).astype("f4")

    def train():
        model = xnn.Sequential(layers.Dense(5, 2), seed=1)
        trainer = xnn.Trainer(model, SizedLoss(), optimizers.SGD(0.1), numerics="exact")
        return outcome(trainer, trainer.fit(data, epochs=2, batch_size=32, progress=False), data)

    assert on_each(size, train) == train()
