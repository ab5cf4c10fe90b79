"""How a layer and a trainer are called."""

import numpy as np
import pytest

import xnn
from xnn import initializers, layers, losses, optimizers
from xnn.errors import OptionError

X = np.ones((2, 3), np.float32)


def test_a_second_input_is_not_taken_for_training():
    dense = layers.Dense(3, 3, seed=1)
    with pytest.raises(OptionError, match=r"(?s)Dense is called with one input, .* join several inputs"):
        dense(X, X)

    class Two(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3, 3)

        def compute(self, x):
            return self.dense(x, x)

    with pytest.raises(OptionError, match="Dense is called with one input"):
        Two().forward(X)
    assert dense(X, np.True_).shape == (2, 3)


def test_a_trainer_says_how_to_wrap_a_layer():
    with pytest.raises(OptionError, match=r"wrap it, as in xnn\.Sequential\(Net\(\)\)"):
        xnn.Trainer(layers.Dense(3, 3), losses.MSE(), optimizers.SGD(0.1))


def test_gradients_by_hand_share_no_memory():
    class Two(layers.Layer):
        def __init__(self):
            super().__init__()
            self.a = layers.Parameter("a", (3,), initializers.Ones())
            self.b = layers.Parameter("b", (3,), initializers.Ones())

        def compute(self, x):
            return x * (self.a + self.b)

    layer = Two()
    layer.backward(layer.forward(X))
    layer.a.grad *= 0.5
    assert layer.a.grad.tolist() == [2.0, 2.0, 2.0]
    assert layer.b.grad.tolist() == [4.0, 4.0, 4.0]
