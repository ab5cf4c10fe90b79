"""Models, layers and losses inside functions that are differentiated, inside graphs, and inside each other."""

from collections import namedtuple

import numpy as np
import pytest
from small_network import X, Y, by_hand, network, same_bits

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.errors import DTypeError, GraphError
from xnn.graph import Input, forward_and_backward, forward_pass, topological_sort


def test_the_gradient_with_respect_to_the_input(lib, mode):
    model, x, y = network(), lib.to_device(X), lib.to_device(Y)
    gradient = xnn.grad(lambda x: losses.MSE()(model(x), y))(x)
    assert same_bits(lib, gradient, by_hand(model, losses.MSE(), x, y)[1])


def test_the_gradients_with_respect_to_the_parameters(lib, mode):
    model, loss, x, y = network(), losses.MSE(), lib.to_device(X), lib.to_device(Y)
    cost, _, expected = by_hand(model, loss, x, y)
    value, gradients = xnn.value_and_grad(lambda p: loss(model(x), y))(model.parameters())
    assert same_bits(lib, value, cost)
    assert isinstance(gradients, list)
    assert all(map(same_bits, [lib] * 8, gradients, expected.values()))
    _, named = xnn.value_and_grad(lambda p: loss(model(x), y))(dict(model.named_parameters()))
    assert list(named) == list(expected)
    assert all(same_bits(lib, named[name], expected[name]) for name in expected)
    (single,) = xnn.grad(lambda p: loss(model(x), y))([model.layers[2].gain])
    assert same_bits(lib, single, expected["2.gain"])


def test_float64_gradients_agree_with_differences():
    model = xnn.Sequential(
        layers.Dense(4, 5, dtype="float64"), layers.Tanh(), layers.Dense(5, 2, dtype="float64"), seed=1
    )
    assert xnn.gradient_check(lambda x: losses.MSE()(model(x), Y.astype(np.float64)), X.astype(np.float64))


def test_a_model_and_a_loss_are_nodes_of_a_graph(lib, mode):
    model, loss = network(), losses.MSE()
    x, y = Input(), Input()
    outputs = model(x)
    cost = loss(outputs, y)
    graph = topological_sort({x: lib.to_device(X), y: lib.to_device(Y)})
    for rows in (6, 3):
        batch = lib.to_device(X[:rows]), lib.to_device(Y[:rows])
        value, dx, expected = by_hand(model, loss, *batch)
        for _, parameter in model.named_parameters():
            parameter.grad = None
        x.value, y.value = batch
        forward_and_backward(graph)
        assert outputs.value.shape == (rows, 2)
        assert same_bits(lib, cost.value, value)
        assert same_bits(lib, x.gradients[x], dx)
        assert all(same_bits(lib, p.grad, expected[name]) for name, p in model.named_parameters())
    assert same_bits(lib, forward_pass(cost, graph), value)


def test_a_loss_of_graph_nodes_and_arrays(lib):
    outputs = Input()
    cost = losses.MSE()(outputs, lib.to_device(Y))
    forward_and_backward(topological_sort({outputs: lib.to_device(X[:, :2])}))
    loss = losses.MSE()
    assert same_bits(lib, cost.value, loss.forward(lib.to_device(X[:, :2]), lib.to_device(Y)))
    assert same_bits(lib, outputs.gradients[outputs], loss.backward())


def test_what_a_layer_that_calls_layers_holds():
    names = [name for name, _ in network().named_parameters()]
    assert names[4:7] == ["2.gain", "2.inner.0.weight", "2.inner.0.bias"]


def test_a_layer_that_calls_layers_trains_as_by_hand(lib, mode, one_thread):
    """In a Trainer, by hand, and by value_and_grad."""
    x, y = lib.to_device(X), lib.to_device(Y)
    trained, stepped, looped = network(), network(), network()
    xnn.Trainer(trained, losses.MSE(), optimizers.SGD(0.1), kernels="ops").fit(
        (x, y), epochs=3, batch_size=6, shuffle=False, progress=False
    )
    loss, sgd = losses.MSE(), optimizers.SGD(0.1)
    for _ in range(3):
        loss.forward(stepped.forward(x, training=True), y)
        stepped.backward(loss.backward(), input_gradient=False)
        sgd.step(stepped.parameters())
    for _ in range(3):
        gradients = xnn.grad(lambda p: loss(looped(x, training=True), y))(looped.parameters())
        sgd.step(looped.parameters(), gradients)
    for (name, a), b, c in zip(
        trained.named_state(), dict(stepped.named_state()).values(), dict(looped.named_state()).values(),
        strict=True,
    ):  # fmt: skip
        assert same_bits(lib, a.value, b.value), name
        assert same_bits(lib, b.value, c.value), name


def absolute(outputs, targets):
    return ops.mean(ops.abs(outputs - targets))


def fitted(loss):
    model = network()
    history = xnn.Trainer(model, loss, optimizers.SGD(0.1)).fit((X, Y), epochs=2, progress=False)
    return history["loss"], [p.value.tobytes() for p in model.parameters()]


def test_a_function_is_a_loss(lib, mode):
    x, y = lib.to_device(X), lib.to_device(Y)
    value, dx, _ = by_hand(network(), losses.Lambda(absolute), x, y)
    model = network()
    ours = xnn.value_and_grad(lambda x: absolute(model(x), y))(x)
    assert same_bits(lib, value, ours[0])
    assert same_bits(lib, dx, ours[1])


def test_a_function_is_a_loss_in_a_trainer(mode):
    assert fitted(absolute) == fitted(losses.Lambda(absolute))
    assert fitted(losses.Lambda(lambda a, b: ops.mse(a, b)))[1] == fitted(losses.MSE())[1]


def test_a_model_inside_a_loss():
    """A perceptual loss: outputs and targets are compared after a frozen model."""
    features = xnn.Sequential(layers.Dense(2, 3), layers.Tanh(), seed=5)
    for parameter in features.parameters():
        parameter.frozen = True
    before = [p.value.copy() for p in features.parameters()]
    history, weights = fitted(lambda a, b: ops.mse(features(a), features(b)))
    assert history[1] < history[0]
    assert weights != [p.value.tobytes() for p in network().parameters()]
    assert all((p.value == old).all() for p, old in zip(features.parameters(), before, strict=True))


class Doubled(xnn.Sequential):
    """Its layers, and something besides: the output twice."""

    def compute(self, x, training):
        y = super().compute(x, training)
        return ops.concat((y, 2.0 * y), axis=1)


def test_a_sequential_with_a_compute_of_its_own():
    model = Doubled(layers.Dense(4, 1), layers.Tanh(), seed=1)
    assert model.output_shape((4,)) == (2,)
    expected, loss = model.predict(X), losses.MSE()
    assert model.forward(X).tobytes() == expected.tobytes()
    np.testing.assert_array_equal(expected[:, 1], 2.0 * expected[:, 0])
    x = Input()
    cost = loss(model(x), Y)
    forward_and_backward(topological_sort({x: X}))
    value, dx, gradients = by_hand(model, loss, X, Y)
    assert cost.value == value
    assert x.gradients[x].tobytes() == dx.tobytes()
    history = xnn.Trainer(model, loss, optimizers.SGD(0.1)).fit((X, Y), epochs=2, progress=False)
    assert history["loss"][1] < history["loss"][0] == pytest.approx(float(value), rel=1e-6)
    assert sorted(gradients) == ["0.bias", "0.weight"]


# The structure of arguments.

Pair = namedtuple("Pair", "left right")


def test_arguments_may_be_nested(lib):
    a, b, c = (lib.to_device(np.arange(n, n + 3.0)) for n in (1, 2, 3))

    def f(p, q):
        return ops.sum(p.left * q["w"][0] + p.right * q["w"][1] * q["scale"])

    value, (dp, dq) = xnn.value_and_grad(f, (0, 1))(Pair(a, b), {"w": (b, c), "scale": 2.0})
    assert float(value) == float(
        (np.array([1, 2, 3]) * [2, 3, 4] + np.array([2, 3, 4]) * [3, 4, 5] * 2).sum()
    )
    assert isinstance(dp, Pair)
    assert isinstance(dq["w"], tuple)
    found = [lib.to_host(x).tolist() for x in (dp.left, dp.right, *dq["w"])]
    assert found == [[2, 3, 4], [6, 8, 10], [1, 2, 3], [4, 6, 8]]
    assert float(dq["scale"]) == float((np.array([2, 3, 4]) * [3, 4, 5]).sum())


def test_arguments_may_hold_parameters_and_arrays(mode):
    dense = layers.Dense(4, 2, seed=3)
    x = X if mode == "exact" else X.copy()
    gradients = xnn.grad(lambda p: losses.MSE()(dense(p["x"]) * p["k"], Y))(
        {"x": x, "layers": [dense.parameters()], "k": np.ones(2, np.float32)}
    )
    loss = losses.MSE()
    loss.forward(dense.forward(X), Y)
    dx = dense.backward(loss.backward())
    assert gradients["x"].tobytes() == dx.tobytes()
    assert [g.tobytes() for g in gradients["layers"][0]] == [p.grad.tobytes() for p in dense.parameters()]
    assert gradients["k"].shape == (2,)


def test_a_list_of_numbers_is_an_array_and_an_empty_structure_has_no_gradient():
    assert xnn.grad(lambda v: ops.sum(v * v))([1.0, 2.0]).tolist() == [2.0, 4.0]
    assert xnn.grad(lambda v: ops.sum(v * v))([[1.0, 2.0], [3.0, 4.0]]).tolist() == [[2.0, 4.0], [6.0, 8.0]]
    assert xnn.grad(lambda p, x: ops.sum(x * x), (0, 1))({}, 3.0) == ({}, 6.0)


def test_what_is_refused_in_arguments():
    with pytest.raises(DTypeError, match="argument 0 is int64"):
        xnn.grad(lambda p: ops.sum(p["x"]))({"x": np.arange(3)})
    dense = layers.Dense(4, 2)
    with pytest.raises(GraphError, match=r"ops\.sum or ops\.mean makes one"):
        xnn.grad(lambda p: dense(X))(dense.parameters())
    with pytest.raises(GraphError, match=r"weight\.value read"):
        xnn.grad(lambda p: ops.sum(X @ dense.weight.value))(dense.parameters())


def test_a_parameter_that_is_not_an_argument_is_a_constant():
    dense = layers.Dense(4, 2)
    gradient = xnn.grad(lambda x: ops.sum(dense(x)))(X)
    np.testing.assert_allclose(gradient, np.tile(dense.weight.value.sum(axis=1), (6, 1)), rtol=1e-6)
    assert dense.weight.grad is None


# What a recorded value can do.


def test_values_have_what_arrays_have(lib):
    x = lib.to_device(X.astype(np.float64))

    def f(v):
        assert (v.shape, v.ndim, v.size, len(v)) == ((6, 4), 2, 24, 6)
        assert v.T.shape == (4, 6)
        rows = list(v)
        assert [row.shape for row in rows] == [(4,)] * 6
        first, second, *_ = v
        return (
            ops.sum(abs(first) * 2.0) + ops.sum(v.T[1]) + ops.sum(second @ rows[2]) + sum(row[0] for row in v)
        )

    gradient = lib.to_host(xnn.grad(f)(x))
    on_host = X.astype(np.float64)
    assert xnn.gradient_check(f, on_host)
    np.testing.assert_allclose(gradient, xnn.grad(f)(on_host), rtol=1e-12)
    with pytest.raises(TypeError, match="no len"):
        xnn.grad(lambda v: ops.sum(v) * len(ops.sum(v)))(x)


def test_a_value_shows_what_it_holds():
    shown = []
    xnn.grad(lambda v: shown.append(repr(v)) or ops.sum(v))(np.array([1.5, 2.0]))
    assert shown == ["Value(array([1.5, 2. ]))"]


def test_a_node_shows_its_value_and_its_gradient():
    x = Input()
    total = ops.sum(x * x)
    assert repr(x) == "<Input>"
    assert repr(total) == "<Node sum>"
    forward_and_backward(topological_sort({x: [1.0, 2.0]}))
    assert repr(x) == "<Input: value [1. 2.], gradient [2. 4.]>"
    assert repr(total) == "<Node sum: value 5.0>"
    forward_and_backward(topological_sort({x: np.ones((4, 5), np.float32)}))
    assert repr(x) == "<Input: value float32 (4, 5), gradient float32 (4, 5)>"


def test_a_node_of_a_layer_and_of_a_loss_is_named_after_it():
    x = Input()
    outputs = layers.Dense(4, 2)(x)
    assert repr(outputs) == "<Node Dense>"
    assert repr(losses.MSE()(outputs, Y)) == "<Node MSE>"
    assert repr(losses.Lambda(absolute)(outputs, Y)) == "<Node Lambda>"
