"""Ops of a user's whose backward does not fit its forward are heard of, whichever door they came through."""

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.errors import DTypeError, GraphError
from xnn.graph import Input, forward_and_backward, topological_sort
from xnn.layers import Dense, Function, Parameter, Sequential
from xnn.ops.op import unbroadcast


class Scaled(xnn.Op):
    """x * weight, with a backward as a test wants it."""

    def __init__(self, backward):
        self.wrong = backward

    def forward(self, xp, x, weight):
        return x * weight, (x, weight)

    def backward(self, xp, grad, saved):
        x, weight = saved
        return self.wrong(xp, grad, x, weight)


WRONG = {
    "too few": (lambda xp, g, x, w: (g * w,), "1 gradients for 2 inputs"),
    "too many": (lambda xp, g, x, w: (g * w, xp.sum(g * x, axis=0), g), "3 gradients for 2 inputs"),
    "not summed": (lambda xp, g, x, w: (g * w, g * x), r"shape \(4, 3\) for input 1 of shape \(3,\)"),
    "one number": (lambda xp, g, x, w: (g * w, xp.sum(g * x)), r"shape \(\) for input 1 of shape \(3,\)"),
    "of x": (lambda xp, g, x, w: (xp.sum(g * w), xp.sum(g * x, axis=0)), r"shape \(\) for input 0 of shape"),
}


class Gain(layers.Layer):
    def __init__(self, op):
        self.op = op
        super().__init__(Parameter("gain", (3,), xnn.initializers.Ones(), "float32"))


def train(model, x, y, loss=None, **options):
    trainer = xnn.Trainer(model, loss or losses.MSE(), optimizers.SGD(0.1), **options)
    return trainer.fit((x, y), batch_size=4, progress=False)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("door", ["layer", "graph", "autograd", "program"])
def test_a_backward_that_does_not_fit_is_refused_at_every_door(lib, wrong, door):
    backward, message = WRONG[wrong]
    op = Scaled(backward)
    x, w = (lib.to_device(np.ones(shape, np.float32)) for shape in ((4, 3), (3,)))
    data = np.ones((8, 3), np.float32)
    layer, a, b = Gain(op), Input(), Input()
    op(a, b)
    doors = {
        "layer": lambda: layer.backward(layer.forward(x)),
        "graph": lambda: forward_and_backward(topological_sort({a: x, b: w})),
        "autograd": lambda: xnn.grad(lambda x, w: ops.sum(op(x, w)), argnums=(0, 1))(x, w),
        "program": lambda: train(Sequential(Dense(3, 3), Gain(op)), data, data),
    }
    with pytest.raises(GraphError, match=message):
        doors[door]()


def test_numbers_and_inputs_without_a_gradient_have_none(lib):
    x = lib.to_device(np.ones((4, 3), np.float32))
    op = Scaled(lambda xp, g, x, w: (g * w, unbroadcast(xp, g * x, w)))
    assert lib.to_host(xnn.grad(lambda x: ops.sum(op(x, 2.0)))(x)).tolist() == [[2.0] * 3] * 4


@pytest.mark.parametrize("kernels", ["ops", "numpy"])
def test_a_loss_of_ones_own_must_fit_too(kernels):
    class Wrong(xnn.Op):
        def forward(self, xp, outputs, targets):
            return xp.mean((outputs - targets) * (outputs - targets)), outputs - targets

        def backward(self, xp, grad, gap):
            return xp.mean(gap * grad), None

    class OwnLoss(losses.Loss):
        op = Wrong()

    x = np.ones((8, 3), np.float32)
    loss = OwnLoss()
    loss.forward(x, x)
    with pytest.raises(GraphError, match=r"shape \(\) for input 0 of shape \(8, 3\)"):
        loss.backward()
    with pytest.raises(GraphError, match=r"shape \(\) for input 0 of shape \(4, 3\)"):
        train(Sequential(Dense(3, 3)), x, x, OwnLoss(), kernels=kernels)


def test_a_layers_own_backward_must_fit():
    class Own(layers.Layer):
        def __init__(self):
            super().__init__(Parameter("gain", (3,), xnn.initializers.Ones(), "float32"))

        def forward(self, x, training=False):
            return x * self.own_parameters[0].value

        def backward(self, dout, input_gradient=True):
            self.own_parameters[0].grad = dout.sum()
            return dout

    x = np.ones((8, 3), np.float32)
    with pytest.raises(GraphError, match=r"gain has shape \(3,\), and its gradient shape \(\)"):
        train(Sequential(Own()), x, x)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_op_that_widens_is_heard_of_in_training(where):
    class Widening(xnn.Op):
        def forward(self, xp, x):
            return x * (np.ones(3) if where == "forward" else 1.0), None

        def backward(self, xp, grad, saved):
            return (grad * np.ones(3),)

    x = np.ones((8, 3), np.float32)
    with pytest.raises(DTypeError, match=f"{'makes' if where == 'forward' else 'gradient of'} float64"):
        train(Sequential(Dense(3, 3), Function(Widening())), x, x)
    train(Sequential(Dense(3, 3, dtype="float64"), Function(Widening())), x, x)
