"""The graph, on the MiniFlow article's own examples and beyond them."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest

import xnn
from xnn import ops
from xnn.errors import DTypeError, GraphError, ShapeError
from xnn.graph import (
    MSE,
    Add,
    Input,
    Linear,
    Mul,
    Node,
    Sigmoid,
    forward_and_backward,
    forward_pass,
    sgd_update,
    topological_sort,
)

X_, W_, B_ = np.array([[-1.0, -2.0], [-1.0, -2.0]]), np.array([[2.0], [3.0]]), np.array([-3.0])


def test_n_ary_nodes():
    x, y, z = Input(), Input(), Input()
    total, product = Add(x, y, z), Mul(x, y, z)
    assert forward_pass(product, topological_sort({x: 4, y: 5, z: 10})) == 200.0
    assert total.value == 19.0
    assert total.value.dtype == np.float64


def test_linear_node_on_lists():
    inputs, weights, bias = Input(), Input(), Input()
    f = Linear(inputs, weights, bias)
    assert forward_pass(f, topological_sort({inputs: [6, 20, 4], weights: [0.5, 0.25, 1.5], bias: 2})) == 16.0


def article_graph(targets):
    X, W, b, y = Input(), Input(), Input(), Input()
    cost = MSE(y, Sigmoid(Linear(X, W, b)))
    return [X, y, W, b], cost, topological_sort({X: X_, y: targets, W: W_, b: B_})


@pytest.mark.parametrize("targets", [np.array([1, 2]), np.array([[1.0], [2.0]])])
def test_the_articles_four_gradients(targets):
    inputs, cost, graph = article_graph(targets)
    forward_and_backward(graph)
    gradients = [t.gradients[t] for t in inputs]
    np.testing.assert_allclose(
        gradients[0], [[-3.34017280e-05, -5.01025919e-05], [-6.68040138e-05, -1.00206021e-04]], rtol=5e-9
    )
    np.testing.assert_allclose(gradients[1].ravel(), [0.9999833, 1.9999833], rtol=5e-8)
    np.testing.assert_allclose(gradients[2], [[5.01028709e-05], [1.00205742e-04]], rtol=5e-9)
    np.testing.assert_allclose(gradients[3], [-5.01028709e-05], rtol=5e-9)
    assert [g.shape for g in gradients] == [(2, 2), targets.shape, (2, 1), (1,)]
    assert graph[-1] is cost


def test_mse_node():
    y, a = Input(), Input()
    cost = MSE(y, a)
    forward_pass(topological_sort({y: np.array([1, 2, 3]), a: np.array([4.5, 5, 10])}))
    assert cost.value == pytest.approx(23.4166666667)


def test_node_attributes():
    x, w, b = Input(), Input(), Input()
    f = Linear(x, w, b)
    assert f.inbound_nodes == [x, w, b]
    assert x.outbound_nodes == [f]
    assert x.value is None
    assert isinstance(f, Node)


def test_values_change_between_passes_and_fed_arrays_stay():
    x, w, b, y = Input(), Input(), Input(), Input()
    cost = MSE(y, Linear(x, w, b))
    weights, bias = np.array([[0.5]]), np.array([0.0])
    graph = topological_sort({x: [[1.0]], w: weights, b: bias, y: [2.0]})
    costs = []
    for value in (1.0, 2.0, 1.0, 2.0):
        x.value, y.value = np.array([[value]]), np.array([2.0 * value])
        forward_and_backward(graph)
        costs.append(float(cost.value))
        sgd_update([w, b], learning_rate=0.1)
    assert costs[0] == pytest.approx(2.25)
    assert costs[-1] < costs[1] < costs[0] * 4
    assert weights.tolist() == [[0.5]]
    assert bias.tolist() == [0.0]
    assert w.value.tolist() != [[0.5]]


def test_float32_is_kept():
    x, w = Input(), Input()
    total = ops.sum(ops.matmul(x, w))
    forward_and_backward(topological_sort({x: np.ones((2, 3), np.float32), w: np.ones((3, 1), np.float32)}))
    assert total.value.dtype == w.gradients[w].dtype == np.float32


def test_any_op_makes_a_node_with_options_and_constants():
    x = Input()
    y = ops.sum(ops.mul(ops.softmax(x, axis=0), np.array([[1.0], [2.0]])), axis=1)
    z = ops.sum(y)
    forward_and_backward(topological_sort({x: X_}))
    f = lambda v: ops.sum(ops.sum(ops.mul(ops.softmax(v, axis=0), np.array([[1.0], [2.0]])), axis=1))  # noqa: E731
    value, gradient = xnn.value_and_grad(f)(X_)
    assert z.value == value
    assert x.gradients[x].tobytes() == gradient.tobytes()


def test_a_value_read_twice_by_one_node():
    x = Input()
    y = Mul(x, x)
    total = ops.sum(y)
    forward_and_backward(topological_sort({x: [1.0, 2.0, 3.0]}))
    assert total.value == 14.0
    assert x.gradients[x].tolist() == [2.0, 4.0, 6.0]
    assert y.gradients[x].tolist() == [2.0, 4.0, 6.0]


def test_the_sort_does_not_depend_on_the_order_of_feeding():
    """Whatever the order, the gradients have the same bits: readers are added in order of creation."""
    found = set()
    for order in itertools.permutations(range(3)):
        a, b, c = Input(), Input(), Input()
        shared = ops.tanh(ops.add(a, b, c))
        total = ops.sum(
            ops.add(ops.mul(shared, a), ops.exp(shared), ops.mul(shared, shared, b), ops.sigmoid(shared))
        )
        fed = {a: np.array([0.1, 0.7]), b: np.array([0.3, -1.1]), c: np.array([1e-3, 0.2])}
        keys = list(fed)
        graph = topological_sort({keys[i]: fed[keys[i]] for i in order})
        forward_and_backward(graph)
        places = {node: i for i, node in enumerate(graph)}
        assert all(places[source] < places[node] for node in graph for source in node.inbound_nodes)
        assert graph[-1] is total
        found.add(b"".join(node.gradients[node].tobytes() for node in (a, b, c)))
    assert len(found) == 1


def test_only_what_depends_on_the_fed_inputs_is_sorted():
    x, other = Input(), Input()
    total = ops.sum(x)
    ops.sum(other)
    assert topological_sort({x: [1.0]}) == [x, total]


def test_refusals():
    x, w = Input(), Input()
    f = Mul(x, w)
    with pytest.raises(GraphError, match="no value"):
        forward_pass(topological_sort({x: 1.0}))
    with pytest.raises(GraphError, match="feeds Input nodes"):
        topological_sort({f: 1.0})
    with pytest.raises(GraphError, match="no gradient"):
        sgd_update([x])
    with pytest.raises(DTypeError, match="got str"):
        x.value = "text"
    g = Add(f, x)
    Add(f, w)
    with pytest.raises(GraphError, match="2 outputs"):
        forward_and_backward(topological_sort({x: 1.0, w: 2.0}))
    g.inbound_nodes.append(g)
    g.outbound_nodes.append(g)
    with pytest.raises(GraphError, match="cycle"):
        topological_sort({x: 1.0, w: 2.0})
    y, a = Input(), Input()
    MSE(y, a)
    with pytest.raises(ShapeError):
        forward_pass(topological_sort({y: [1.0, 2.0], a: [1.0, 2.0, 3.0]}))


def test_a_layer_a_graph_and_autograd_train_alike(lib):
    """Five steps of the same network through the three doors: every weight the same, bit for bit."""
    spec = importlib.util.find_spec("xnn.layers")
    assert spec is not None
    assert Path(spec.origin or "").exists()
    layers, losses, optimizers = xnn.layers, xnn.losses, xnn.optimizers
    rng = np.random.default_rng(0)
    x = lib.to_device(rng.normal(size=(7, 4)).astype(np.float32))
    t = lib.to_device(rng.integers(0, 3, 7))
    model = xnn.Sequential(layers.Dense(4, 5), layers.Tanh(), layers.Dense(5, 3), seed=2)
    weights = [p.value for p in model.parameters()]
    loss, optimizer = losses.SoftmaxCrossEntropy(), optimizers.SGD(0.5)

    nodes = [Input(w) for w in weights]
    data = Input(x)
    hidden = ops.tanh(ops.dense(data, nodes[0], nodes[1]))
    cost = ops.softmax_cross_entropy(ops.dense(hidden, nodes[2], nodes[3]), Input(t))
    graph = topological_sort({data: x})

    def f(w1, b1, w2, b2):
        return ops.softmax_cross_entropy(ops.dense(ops.tanh(ops.dense(x, w1, b1)), w2, b2), t)

    recorded = list(weights)
    for _ in range(5):
        by_layer = loss.forward(model.forward(x, training=True), t)
        model.backward(loss.backward())
        optimizer.step(model.parameters())
        forward_and_backward(graph)
        by_graph = cost.value
        sgd_update(nodes, learning_rate=0.5)
        by_autograd, gradients = xnn.value_and_grad(f, (0, 1, 2, 3))(*recorded)
        recorded = [
            ops.updates.sgd(lib.xp, w, g, None, learning_rate=0.5)[0]
            for w, g in zip(recorded, gradients, strict=True)
        ]
        assert float(by_layer) == float(by_graph) == float(by_autograd)
    for p, node, w in zip(model.parameters(), nodes, recorded, strict=True):
        assert lib.to_host(p.value).tobytes() == lib.to_host(node.value).tobytes() == lib.to_host(w).tobytes()
