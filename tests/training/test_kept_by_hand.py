"""Layers and losses written by hand may keep the arrays that they are given and that they return."""

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = X[:, :1]


@pytest.fixture(params=("ops", "numpy", "compiled"))
def kernels(request):
    if request.param == "compiled":
        pytest.importorskip("numba")
    return request.param


class Keeps:
    def remember(self, *arrays):
        for array in arrays:
            self.remembered.append((array, np.array(array, copy=True)))


class Double(layers.Layer, Keeps):
    def __init__(self):
        super().__init__()
        self.remembered = []

    def forward(self, x, training=False):
        y = 2.0 * x
        self.remember(x, y)
        return y

    def backward(self, dout, input_gradient=True):
        dx = 2.0 * dout
        self.remember(dout, dx)
        return dx


class Same(layers.Layer, Keeps):
    """Its output is its input itself, and so is its gradient."""

    def __init__(self):
        super().__init__()
        self.remembered = []

    def forward(self, x, training=False):
        self.remember(x)
        return x

    def backward(self, dout, input_gradient=True):
        self.remember(dout)
        return dout


class Squares(losses.Loss, Keeps):
    def __init__(self):
        super().__init__()
        self.remembered = []

    def forward(self, outputs, targets, sample_weight=None):
        self.away = outputs - targets
        self.remember(outputs, targets, *([] if sample_weight is None else [sample_weight]))
        return (self.away * self.away).mean()

    def backward(self):
        gradient = 2.0 * self.away / self.away.size
        self.remember(gradient)
        return gradient


@pytest.mark.sampled(2)
@pytest.mark.parametrize("layer", [Double, Same])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_what_is_kept_stays_as_it_was(layer, place, kernels):
    by_hand, loss = layer(), Squares()
    inner = [layers.Dense(3, 4), layers.ReLU(), layers.Dense(4, 1)]
    model = xnn.Sequential(*inner[:place], by_hand, *inner[place:], seed=0)
    trainer = xnn.Trainer(model, loss, optimizers.SGD(0.1), kernels=kernels)
    trainer.fit((X, Y), epochs=3, batch_size=16, progress=False, sample_weight=np.ones(len(X), np.float32))
    trainer.evaluate((X, Y))
    for owner, least in ((by_hand, 9), (loss, 18)):
        assert len(owner.remembered) >= least
        for number, (array, copy) in enumerate(owner.remembered):
            np.testing.assert_array_equal(array, copy, err_msg=f"{type(owner).__name__}, array {number}")


def test_the_numbers_are_those_of_the_ops(kernels):
    """Layers of xnn's own in place of those by hand give the same weights."""

    def weights(by_hand):
        doubled = Double() if by_hand else layers.Rescale(2.0)
        model = xnn.Sequential(layers.Dense(3, 4), doubled, layers.Tanh(), layers.Dense(4, 1), seed=0)
        loss = Squares() if by_hand else losses.MSE()
        trainer = xnn.Trainer(model, loss, optimizers.SGD(0.1), kernels=kernels)
        trainer.fit((X, Y), epochs=3, batch_size=16, progress=False)
        return [parameter.value for parameter in model.parameters()]

    for one, two in zip(weights(True), weights(False), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
