"""Exact numerics refuse functions of yours that round differently from machine to machine."""

import functools
import math
import operator

import numpy as np
import pytest
from numpy import exp

import xnn
from xnn import layers, losses, optimizers, schedules
from xnn.backends import numerics
from xnn.errors import NumericsError
from xnn.ops.portable import INSTEAD, check_portable

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
    r"\*\*.* write xp.pow, or x \* x": lambda self, xp, x: (x**3, None),
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


def from_another_cell(text, **names):
    """A function that was written apart from the imports that it uses, as in a notebook."""
    space = dict(names)
    exec(text, space)
    return space["f"]


#: Each is the same on every machine, on every version of Python.
PASSED = {
    "functions of xp": lambda self, xp, x: xp.exp(x) + xp.sum(x) - math.sqrt(2.0) * np.pi,
    "a comprehension": lambda self, xp, x: xp.concat([xp.reshape(xp.sum(row), (1,)) for row in [x, x]]),
    "names on one line": lambda self, xp, x: (y := x * x) * xp.sum(x) + xp.mean(y),
    "a method of its own": lambda self, xp, x: x * self.sum(),
    "Python's sum": lambda self, xp, x: x * sum(float(n) for n in (1, 2)),
    "functions of NumPy that do not round": lambda self, xp, x: np.where(np.abs(x) > 0.5, x, np.sqrt(x)),
    "xnn.ops": lambda self, xp, x: x * (xnn.ops.mean is not None),
    "a parameter called np": lambda np, xp, x: xp.sum(x) * np.exp(1.0),
    "a function in functools": from_another_cell(
        "f = lambda self, xp, x: functools.reduce(operator.mul, [x, x])",
        functools=functools,
        operator=operator,
    ),
}


@pytest.mark.parametrize("name", PASSED)
def test_what_is_the_same_everywhere_passes(name):
    check_portable(PASSED[name], "it")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (functools.partial(REFUSED["@.* write xp.matmul"], None), "@"),
        (
            functools.wraps(REFUSED["math.exp"])(lambda *args: None),
            "math.exp.* write the number that it gives",
        ),
        (
            type("Called", (), {"__call__": lambda self, xp, x: np.median(x)})(),
            "numpy.median.* write it with functions",
        ),
        (lambda xp, x: pow(x, 3), "Python's pow.* write xp.pow"),
        (lambda xp, x: operator.matmul(x, x), "operator.matmul"),
        (from_another_cell("f = lambda xp, x: n.exp(x)", n=np), "numpy.exp"),
        (lambda xp, x: x.cumprod(), r"the method .cumprod\(\)"),
    ],
    ids=["partial", "wrapped", "object", "pow", "operator", "another name", "method"],
)
def test_other_ways_to_write_it(function, message):
    with pytest.raises(NumericsError, match=f"it uses {message}"):
        check_portable(function, "it")


def test_functions_of_one_code_are_looked_at_one_by_one():
    def made(library):
        return lambda xp, x: library.exp(x)

    check_portable(made(xnn.ops), "it")
    with pytest.raises(NumericsError):
        check_portable(made(np), "it")


def test_what_is_advised_is_there(lib):
    with numerics("exact"):
        for name in INSTEAD.values():
            assert callable(getattr(lib.math, name))
            assert callable(getattr(xnn.ops, name))


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


class Corrected(optimizers.Optimizer):
    first = (0.0,)

    def advance(self, numbers):
        return (numbers[0] + 1.0,)

    def derived(self, numbers):
        return {"share": 1.0 - 0.9 ** numbers[0]}

    @staticmethod
    def rule(xp, weight, gradient, *, learning_rate, share):
        return (weight - learning_rate * share * gradient,)


def decayed(step):
    return 0.1 * 0.95 ** (step // 10)


class Wave:
    def __call__(self, step):
        return 0.05 + 0.05 * math.cos(step)


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
        ({"optimizer": Corrected(0.1)}, r"Corrected.derived uses \*\*,.* write products, one step after the"),
        (
            {"optimizer": optimizers.SGD(decayed)},
            r"the schedule decayed uses \*\*,.* write a schedule of xnn.sche",
        ),
        (
            {"optimizer": optimizers.SGD(schedules.Warmup(Wave(), 3))},
            r"the schedule Wave uses math.cos,.* Cosine",
        ),
        (
            {"optimizer": optimizers.SGD(functools.partial(math.pow, 0.9))},
            "the schedule .* uses math.pow,.* Exponential",
        ),
    ],
    ids=[
        "layer",
        "loss",
        "rule",
        "update",
        "metric",
        "derived",
        "schedule",
        "schedule after a warm-up",
        "C's",
    ],
)
def test_parts_of_a_training(parts, message):
    trainer(**parts).fit((X, Y), progress=False)
    with numerics("exact"), pytest.raises(NumericsError, match=message):
        trainer(**parts).fit((X, Y), progress=False)


def test_functions_without_code_of_python_pass():
    for function in (abs, np.tanh, print, xnn.ops.exp):
        check_portable(function, "it")
