"""The floating-point operations in a model's summary: counted, or left open for layers of the user's."""

import pytest

import xnn
from xnn import layers, ops
from xnn.errors import OptionError


class Pair(layers.Layer):
    def __init__(self):
        super().__init__()
        self.down, self.up = layers.Dense(8, 1000), layers.Dense(1000, 8)

    def compute(self, x):
        return self.up(self.down(x))


class Counted(Pair):
    def flops(self, shape):
        return self.down.flops(shape) + self.up.flops((1000,))


class Twice(layers.Dense):
    def compute(self, x):
        return super().compute(x) * 2.0


class ByHand(layers.Layer):
    def forward(self, x, training=False):
        return x * 2.0

    def backward(self, gradient):
        return 2.0 * gradient


class Double(xnn.Op):
    def forward(self, xp, x):
        return x + x, None

    def backward(self, xp, grad, saved):
        return (grad + grad,)


class OfOp(layers.Layer):
    op = Double()


class Model(xnn.Sequential):
    def compute(self, x, training):
        return super().compute(super().compute(x, training), training)


UNKNOWN = {
    "compute": Pair,
    "a subclass of Dense": lambda: Twice(8, 8),
    "by hand": ByHand,
    "an op": OfOp,
    "Function": lambda: layers.Function(Double()),
    "Lambda": lambda: layers.Lambda(lambda x: x @ x.T @ x),
    "a model": lambda: Model(layers.Dense(8, 8)),
    "in Add": lambda: layers.Add(Pair(), layers.Identity()),
    "in Parallel": lambda: layers.Parallel(layers.Dense(8, 4), Pair()),
    "in a Sequential": lambda: xnn.Sequential(layers.Dense(8, 8), Pair()),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_nobody_counts_is_left_open(name):
    model = xnn.Sequential(layers.Dense(8, 8), UNKNOWN[name](), layers.ReLU(), seed=0)
    rows = [line.split()[-1] for line in model.summary().splitlines()]
    assert rows[1:3] == [f"{2 * 64 + 8}", "-"]
    assert rows[-1] == "-"


def test_a_model_of_ones_own_has_no_total():
    assert Model(layers.Dense(8, 8)).summary().split()[-1] == "-"


def test_what_is_counted():
    model = xnn.Sequential(Counted(), layers.Function(ops.tanh), layers.Add(Counted(), Counted()), seed=0)
    rows = [line.split()[-1] for line in model.summary((8,)).splitlines()]
    assert rows[1:] == ["33,008", "8", "66,016", "99,032"]


def test_a_regression_in_the_units_of_its_targets_has_no_classes():
    scaling = xnn.data.standardize([[1.0], [3.0]])
    model = xnn.Sequential(layers.Dense(2, 1), scaling.inverse(), seed=0)
    with pytest.raises(OptionError, match="numbers of a regression: predict"):
        model.predict_classes([[1.0, 2.0]])
    assert model.predict([[1.0, 2.0]]).shape == (1, 1)
