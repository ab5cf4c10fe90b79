"""A loss that gives no parameter a gradient is refused before training."""

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.errors import OptionError

X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
Y = X[:, :2]

FLAT = {
    "sign": lambda o, t: ops.mean(ops.sign(o - t)),
    "a comparison": lambda o, t: ops.mean(ops.where(o > t, 1.0, 0.0, dtype=o.dtype)),
    "equal": lambda o, t: ops.mean(ops.where(ops.equal(o, t), t, 2.0 * t)),
    "a constant": lambda o, t: ops.mean((ops.stop_gradient(o) - t) ** 2.0),
}


def fit(loss, *more):
    model = xnn.Sequential(layers.Dense(3, 2), *more, seed=0)
    return xnn.Trainer(model, loss, optimizers.SGD(0.1)).fit((X, Y), epochs=1, progress=False)


@pytest.mark.parametrize("name", FLAT)
def test_a_loss_without_slope(name):
    with pytest.raises(OptionError, match=r"gives no parameter a gradient, since .* has none"):
        fit(FLAT[name])


def test_a_model_without_slope():
    with pytest.raises(OptionError, match="since sign has none"):
        fit(losses.MSE(), layers.Function(ops.sign))
    with pytest.raises(OptionError, match="since greater has none"):
        fit(losses.MSE(), layers.Lambda(lambda x: ops.where(x > 0.0, 1.0, 0.0, dtype=x.dtype)))


def test_one_way_for_the_gradient_is_enough():
    assert np.isfinite(fit(lambda o, t: ops.mean((o - t) ** 2.0 + ops.sign(o)))["loss"][0])
    straight = layers.Lambda(lambda x: x + ops.stop_gradient(ops.sign(x) - x))
    assert np.isfinite(fit(losses.MSE(), straight)["loss"][0])
