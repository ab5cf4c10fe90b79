"""Exact numerics refuse functions of yours that round differently from machine to machine."""

import math

import numpy as np
import pytest
from numpy import exp

import xnn
from xnn import layers, losses, optimizers
from xnn.backends import numerics
from xnn.errors import NumericsError
from xnn.ops.portable import check_portable

X = np.linspace(-1.0, 1.0, 24, dtype=np.float32).reshape(8, 3)
Y = X[:, :1]
closed = np


def in_a_closure():
    library = closed

    def forward(self, xp, x):
        return library.tanh(x), None

    return forward


def in_place(self, xp, x):
    x **= 2
    return x, None


#: What each function uses, and what is written in its place.
REFUSED = {
    r"\*\*.* write xp.pow, or products such as x \* x": lambda self, xp, x: (x**3, None),
    r"\*\*": in_place,
    "@.* write xp.matmul": lambda self, xp, x: (x @ x.T, None),
    r"the method .sum\(\) of an array.* write xp.sum": lambda self, xp, x: (x - x.sum(), None),
    r"the method .mean\(\)": lambda self, xp, x: (xp.abs(x).mean(axis=0), None),
    r"the method .dot\(\)": lambda self, xp, x: (x[0].dot(x[1]), None),
    r"the method .reduce\(\)": lambda self, xp, x: (np.add.reduce(x), None),
    r"numpy.exp,.* write xp.exp,": lambda self, xp, x: (np.exp(x), None),
    "numpy.exp,": lambda self, xp, x: (exp(x), None),
    "numpy.linalg": lambda self, xp, x: (np.linalg.norm(x) * x, None),
    "numpy.tanh": in_a_closure(),
    "math.exp": lambda self, xp, x: (x * math.exp(2.0), None),
    "numpy.log1p": lambda self, xp, x: ([np.log1p(row) for row in x][-1], None),
}


def op_of(forward):
    return type("Mine", (xnn.Op,), {"forward": forward, "backward": lambda self, xp, grad, saved: (grad,)})()


@pytest.mark.parametrize("message", REFUSED)
def test_an_op(message):
    op = op_of(REFUSED[message])
    op(X)  # fast numerics run it
    with numerics("exact"):
        for _ in range(2):
            with pytest.raises(NumericsError, match=f"the forward of mine uses {message}"):
                op(X)


def test_what_is_the_same_everywhere_passes():
    def forward(self, xp, x):
        total = xp.sum(x) + sum(float(n) for n in (1, 2)) + math.sqrt(2.0) * np.pi
        return xp.where(np.abs(x) > 0.5, x / (1.0 + xp.exp(x)), xp.mean(x)) + self.sum() - total, None

    op = op_of(forward)
    type(op).sum = lambda self: 1.0
    with numerics("exact"):
        assert op(X).shape == X.shape


def test_a_backward():
    op = op_of(lambda self, xp, x: (x, x))
    type(op).backward = lambda self, xp, grad, x: (grad * x**2,)
    with numerics("exact"), pytest.raises(NumericsError, match=r"the backward of mine uses \*\*"):
        xnn.grad(lambda x: xnn.ops.sum(op(x)))(X)


class Products(layers.Layer):
    def __init__(self):
        super().__init__()
        self.weight = layers.Parameter("weight", (3, 1), xnn.initializers.Glorot())

    def forward(self, x, training=False):
        self.x = x
        return x @ self.weight.value

    def backward(self, dout, input_gradient=True):
        self.weight.grad = self.x.T @ dout
        return dout @ self.weight.value.T


class Squares(losses.Loss):
    def forward(self, outputs, targets, sample_weight=None):
        self.difference = outputs - targets
        return (self.difference * self.difference).mean()

    def backward(self):
        return 2.0 * self.difference / len(self.difference)


class Powers(optimizers.Optimizer):
    @staticmethod
    def rule(xp, weight, gradient, *, learning_rate):
        return (weight - learning_rate * gradient**3,)


class Itself(optimizers.Optimizer):
    def update(self, parameter):
        parameter.value = parameter.value - 0.1 * np.tanh(parameter.grad)


def roots(xp, outputs, targets):
    return xp.sum(xp.abs(outputs - targets) ** 0.5)


def trainer(layer=None, loss=None, optimizer=None, metric=None):
    model = xnn.Sequential(layer or layers.Dense(3, 1), seed=0)
    return xnn.Trainer(
        model, loss or losses.MSE(), optimizer or optimizers.SGD(0.1), metrics=[metric or "mae"]
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"layer": Products()}, "Products.forward uses @,.* write xnn.ops.matmul"),
        ({"loss": Squares()}, r"Squares.forward uses the method .mean\(\) of an array,.* write xnn.ops.mean"),
        ({"optimizer": Powers(0.1)}, r"rule uses \*\*"),
        ({"optimizer": Itself(0.1)}, "Itself.update uses numpy.tanh,.* write xnn.ops.tanh"),
        ({"metric": roots}, r"roots uses \*\*"),
    ],
    ids=["layer", "loss", "rule", "update", "metric"],
)
def test_parts_of_a_training(parts, message):
    trainer(**parts).fit((X, Y), progress=False)
    with numerics("exact"), pytest.raises(NumericsError, match=message):
        trainer(**parts).fit((X, Y), progress=False)


def test_functions_without_code_of_python_pass():
    for function in (abs, np.tanh, print, xnn.ops.exp):
        check_portable(function, "it")
