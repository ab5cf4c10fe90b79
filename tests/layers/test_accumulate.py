"""backward(accumulate=True) adds the gradients to those of earlier passes; by default they replace them."""

import numpy as np
import pytest

import xnn
from xnn import initializers, layers, losses, ops, optimizers
from xnn.errors import GraphError

RNG = np.random.default_rng(0)
X = [RNG.normal(size=(5, 4)).astype("float32") for _ in range(2)]


class ByHand(layers.Layer):
    """y = x * gain. Its new gradient is written into the array of the old one."""

    def __init__(self):
        super().__init__()
        self.gain = layers.Parameter("gain", (4,), initializers.Ones())

    def forward(self, x, training=False):
        self.x = x
        return x * self.gain.value

    def backward(self, dout, input_gradient=True):
        new = ops.sum(dout * self.x, axis=0)
        if self.gain.grad is None:
            self.gain.grad = new
        else:
            self.gain.grad[...] = new
        return dout * self.gain.value


class Sometimes(layers.Layer):
    """Uses one of its parameters, or the other."""

    def __init__(self):
        super().__init__()
        self.first = layers.Parameter("first", (4,), initializers.Ones())
        self.second = layers.Parameter("second", (4,), initializers.Ones())
        self.which = "first"

    def compute(self, x):
        return x * getattr(self, self.which)


KINDS = {
    "Dense": lambda: layers.Dense(4, 3, seed=1),
    "LayerNorm": lambda: layers.LayerNorm(4),
    "float64": lambda: layers.Dense(4, 3, dtype="float64", seed=1),
    "Sequential": lambda: xnn.Sequential(layers.Dense(4, 4), layers.Tanh(), layers.Dense(4, 2), seed=1),
    "nested": lambda: xnn.Sequential(xnn.Sequential(layers.Dense(4, 4)), layers.Dense(4, 2), seed=1),
    "branches": lambda: xnn.Sequential(
        layers.Add(layers.Identity(), layers.Dense(4, 4)),
        layers.Parallel(layers.Dense(4, 1), layers.Dense(4, 1)),
        seed=1,
    ),
    "by hand": lambda: xnn.Sequential(layers.Dense(4, 4), ByHand(), layers.Dense(4, 2), seed=1),
}


def backward(layer, x, **options):
    """Forward and backward of the sum of squares; returns copies of the gradients, and the one for x."""
    y = layer.forward(x.astype(layer.parameters()[0].dtype))
    dx = layer.backward(2 * y, **options)
    return [None if p.grad is None else p.grad.copy() for p in layer.parameters()], dx


@pytest.mark.parametrize(
    ("kind", "numerics"),
    [
        (kind, numerics)
        for kind in KINDS
        for numerics in ("fast", "exact")
        if (kind, numerics) != ("float64", "exact")
    ],
)
def test_gradients_are_added_only_if_asked_to(kind, numerics):
    layer = KINDS[kind]()
    with xnn.numerics(numerics):
        (first, _), (second, dx) = backward(layer, X[0]), backward(layer, X[1])
        alone = KINDS[kind]()
        assert all(np.array_equal(a, b) for a, b in zip(second, backward(alone, X[1])[0], strict=True))

        backward(layer, X[0])
        both, dx_again = backward(layer, X[1], accumulate=True)
    for one, other, total in zip(first, second, both, strict=True):
        assert total.tobytes() == (one + other).tobytes()
        assert not np.array_equal(total, other)
    assert dx_again.tobytes() == dx.tobytes()  # the gradient for x is this pass's alone


def test_the_first_pass_may_add_to_none():
    layer = layers.Dense(4, 3, seed=1)
    first, _ = backward(layer, X[0], accumulate=True)
    expected, _ = backward(layers.Dense(4, 3, seed=1), X[0])
    assert all(np.array_equal(a, b) for a, b in zip(first, expected, strict=True))


def test_a_parameter_that_a_pass_does_not_use_keeps_its_gradient_or_loses_it():
    layer = Sometimes()
    (first, none), _ = backward(layer, X[0])
    assert none is None
    layer.which = "second"
    (kept, second), _ = backward(layer, X[1], accumulate=True)
    assert np.array_equal(kept, first)
    assert second is not None
    (gone, replaced), _ = backward(layer, X[1])
    assert gone is None
    assert np.array_equal(replaced, second)


def test_arrays_of_earlier_gradients_are_not_changed():
    layer = layers.Dense(4, 3, seed=1)
    backward(layer, X[0])
    kept = layer.weight.grad
    copy = kept.copy()
    backward(layer, X[1], accumulate=True)
    assert np.array_equal(kept, copy)
    assert layer.weight.grad is not kept


def test_one_step_of_two_half_batches_is_a_step_of_the_whole():
    """As docs/extending.md shows it."""
    x, y = np.concatenate(X).astype("float64"), RNG.normal(size=(10, 2))
    models = [xnn.Sequential(layers.Dense(4, 2, dtype="float64"), seed=3) for _ in range(2)]
    loss = losses.MSE()
    loss.forward(models[0].forward(x), y)
    models[0].backward(loss.backward())
    for i in range(2):
        rows = slice(5 * i, 5 * i + 5)
        loss.forward(models[1].forward(x[rows]), y[rows])
        models[1].backward(loss.backward() / 2, accumulate=i > 0)
    for model in models:
        optimizers.SGD(0.1).step(model.parameters())
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        np.testing.assert_allclose(one.value, other.value, rtol=1e-12)


def test_gradients_that_training_did_not_keep_are_not_taken_for_zeros():
    model = xnn.Sequential(layers.Dense(4, 2), seed=1)
    xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1)).fit((X[0], X[0][:, :2]), progress=False)
    model.forward(X[0])
    if not model.layers[0].weight._grad_folded:
        pytest.skip("these kernels keep the gradients")
    with pytest.raises(GraphError, match="has no gradient: training computed gradient and update in one"):
        model.backward(X[0][:, :2], accumulate=True)
    model.backward(X[0][:, :2])


def test_a_losss_gradients_are_new_each_time():
    class Scaled(losses.Loss):
        def __init__(self):
            super().__init__()
            self.scale = layers.Parameter("scale", (), initializers.Ones())

        def compute(self, outputs, targets):
            return ops.mean((outputs * self.scale - targets) ** 2)

    loss = Scaled()
    found = []
    for _ in range(2):
        loss.forward(X[0], X[1])
        found.append(loss.gradients([loss.scale])[1][loss.scale])
    assert found[0] == found[1]
    assert loss.scale.grad is None
