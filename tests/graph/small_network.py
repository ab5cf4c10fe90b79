"""A small network, data for it, and its gradients by hand."""

import numpy as np

import xnn
from xnn import initializers, layers

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 4)).astype(np.float32), RNG.normal(size=(6, 2)).astype(np.float32)


class Gate(layers.Layer):
    """Layers inside a layer, one of them read twice, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.inner = [layers.Dense(5, 5), layers.Tanh()]
        self.gain = layers.Parameter("gain", (5,), initializers.Ones())

    def compute(self, x, training):
        dense, tanh = self.inner
        return tanh(dense(dense(x))) * self.gain + x


def network():
    return xnn.Sequential(layers.Dense(4, 5), layers.BatchNorm(5), Gate(), layers.Dense(5, 2), seed=1)


def by_hand(model, loss, x, y):
    """The loss, its gradient for x, and the parameters' gradients."""
    cost = loss.forward(model.forward(x), y)
    dx = model.backward(loss.backward())
    return cost, dx, {name: p.grad for name, p in model.named_parameters()}


def same_bits(lib, ours, theirs):
    return lib.to_host(ours).tobytes() == lib.to_host(theirs).tobytes()
