"""Autograd: gradients of functions that users write."""

import numpy as np
import pytest

import xnn
from xnn import ops
from xnn.errors import DTypeError, GraphError, MixedArraysError, OptionError, ShapeError
from xnn.graph import Input, forward_and_backward, topological_sort
from xnn.graph.backward import backpropagate

X = np.array([[1.0, -2.0], [0.5, 3.0]])


def test_operators(lib):
    def f(a):
        b = (2.0 + a) * (1.0 - a) / (3.0 + a * a) - (-a)
        return ops.sum(b**2 + 2.0**b + (a - 1.0) / 2.0 + 1.0 / (a + 10.0) - a * 3.0 + (a @ a))

    report = xnn.gradient_check(f, lib.to_device(X))
    assert report, report


def test_arrays_on_either_side_of_an_operator():
    for f in (
        lambda a: X + a,
        lambda a: X - a,
        lambda a: X * a,
        lambda a: X / a,
        lambda a: X @ a,
        lambda a: a @ X,
    ):
        report = xnn.gradient_check(f, X)
        assert report, report


def test_value_and_grad_of_several_arguments():
    value, (dw, dx) = xnn.value_and_grad(lambda w, x: ops.sum(w * x), (0, 1))(
        np.full(2, 3.0), np.array([1.0, 2.0])
    )
    assert value == 9.0
    assert dw.tolist() == [1.0, 2.0]
    assert dx.tolist() == [3.0, 3.0]


def test_python_numbers_become_float64_and_constants_widen_nothing():
    assert xnn.grad(lambda x: x * x)(3.0) == 6.0
    gradient = xnn.grad(lambda x: ops.sum(2.0 * x / 3 + 1))(np.ones(2, np.float32))
    assert gradient.dtype == np.float32


def test_an_argument_that_is_not_used_gets_zeros():
    _, unused = xnn.grad(lambda a, b: ops.sum(a), (0, 1))(X, X)
    assert unused.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_comparisons_choose_without_a_gradient():
    f = lambda a: ops.sum(ops.where(a > 0.0, a * a, ops.where(a <= -2.0, a, 0.0 * a)))  # noqa: E731
    np.testing.assert_array_equal(xnn.grad(f)(X), [[2.0, 1.0], [1.0, 6.0]])
    assert xnn.grad(lambda a: ops.sum(ops.where(a < a * 2.0, a, 0.0)))(X).tolist() == [[1, 0], [1, 1]]
    assert xnn.grad(lambda a: ops.sum(ops.where(a == 0.5, 5.0, a)))(X).tolist() == [[1, 1], [0, 1]]
    assert xnn.grad(lambda a: ops.sum(ops.where(a != 0.5, 5.0, a)))(X).tolist() == [[0, 0], [1, 0]]
    assert xnn.grad(lambda a: ops.sum(ops.where(a >= 0.5, a, 0.0)))(X).tolist() == [[1, 0], [1, 1]]


def test_readers_are_added_in_order_of_creation(lib):
    """Four readers whose gradients, in float32, have another sum in any other order."""
    sizes = (1e8, 1.0, -1e8, 1.0)

    def f(x):
        readers = [x * size for size in sizes]
        # The sum reads them backwards, so that the order of reading is not the order of creation.
        return ops.sum(ops.add(*reversed(readers)))

    x = lib.to_device(np.ones(1, np.float32))
    right = np.float32(0)
    for size in sizes:
        right = np.float32(right + np.float32(size))
    assert right == 1.0  # and 2 or 0 in other orders
    assert lib.to_host(xnn.grad(f)(x)).tolist() == [right]

    # The graph: its nodes are created in the same order, but sorted in another.
    source = Input(x)
    readers = [ops.mul(source, Input(lib.to_device(np.full(1, size, np.float32)))) for size in sizes]
    total = ops.sum(ops.add(*reversed(readers)))
    order = topological_sort({source: x})
    forward_and_backward(order)
    assert lib.to_host(source.gradients[source]).tolist() == [right]
    for shuffled in (order, sorted(order, key=lambda node: (node is total, len(node.inbound_nodes) > 1))):
        one = lib.to_device(np.float32(1))
        assert lib.to_host(backpropagate(shuffled, {total: one})[source][0]).tolist() == [right]


def test_gradients_are_fresh_and_have_their_arguments_dtype():
    da, db = xnn.grad(lambda a, b: ops.sum(a + b), (0, 1))(X, X)
    assert da is not db
    assert not np.shares_memory(da, db)
    narrow = xnn.grad(lambda w: ops.sum(w * X))(X.astype(np.float32))
    assert narrow.dtype == np.float32


def test_the_gradient_of_a_constant_first_input_is_not_computed(monkeypatch):
    def fail(*arguments):
        raise AssertionError("x W: nobody asked for the gradient with respect to x")

    monkeypatch.setattr("xnn.ops.linear._left_gradient", fail)
    gradient = xnn.grad(lambda w: ops.sum(ops.dense(X, w)))(np.ones((2, 1)))
    assert gradient.tolist() == [[1.5], [1.0]]


def test_a_deep_recording_does_not_recurse():
    def f(x):
        for _ in range(5000):
            x = x + 1.0
        return ops.sum(x)

    assert xnn.grad(f)(np.ones(2)).tolist() == [1.0, 1.0]


def test_a_recording_is_freed_without_the_garbage_collector():
    import gc
    import weakref

    class Big(np.ndarray):
        pass

    gc.collect()
    gc.disable()
    try:
        x = np.ones(10).view(Big)
        alive = weakref.ref(x)
        xnn.grad(lambda a: ops.sum(a * a))(x)
        del x
        assert alive() is None
    finally:
        gc.enable()


class Square(xnn.Op):
    def forward(self, xp, x):
        return x * x, x

    def backward(self, xp, grad, x):
        return (2.0 * x * grad,)


def test_an_op_of_your_own_works_through_every_door(lib):
    square = Square()
    x = lib.to_device(X)
    doubled = lib.to_host(2.0 * x)
    assert xnn.gradient_check(square, x)
    assert lib.to_host(square(x)).tolist() == (X * X).tolist()
    assert lib.to_host(xnn.grad(lambda a: ops.sum(square(a)))(x)).tolist() == doubled.tolist()
    layer = xnn.layers.Function(square)
    layer.forward(x)
    assert lib.to_host(layer.backward(lib.xp.ones_like(x))).tolist() == doubled.tolist()
    node = Input()
    total = ops.sum(square(node))
    forward_and_backward(topological_sort({node: x}))
    assert float(total.value) == (X * X).sum()
    assert lib.to_host(node.gradients[node]).tolist() == doubled.tolist()


def test_what_cannot_be_recorded_is_refused():
    with pytest.raises(GraphError, match=r"float\(\)"):
        xnn.grad(lambda a: float(a))(2.0)
    with pytest.raises(GraphError, match="truth value"):
        xnn.grad(lambda a: a if a else -a)(2.0)
    with pytest.raises(GraphError, match="one number"):
        xnn.grad(lambda a: a * 2.0)(X)
    with pytest.raises(GraphError, match="one number"):
        xnn.grad(lambda a: 3.0)(X)
    with pytest.raises(GraphError, match="second derivatives"):
        xnn.grad(lambda a: xnn.grad(lambda b: b * b)(a))(2.0)
    with pytest.raises(GraphError, match="another grad"):
        xnn.grad(lambda a: xnn.grad(lambda b: ops.mul(a, b))(2.0))(3.0)
    with pytest.raises(GraphError, match="one number computed from its arguments"):
        xnn.grad(lambda a: np.sum(a.value**2))(X)
    with pytest.raises(DTypeError, match="uint8"):
        xnn.grad(lambda a: ops.sum(a * a))(np.array([200], np.uint8))
    with pytest.raises(OptionError, match="argnums=1"):
        xnn.grad(lambda a: a, 1)(2.0)
    with pytest.raises(GraphError, match="one or the other"):
        xnn.grad(lambda a: ops.add(a, Input(1.0)))(2.0)
    with pytest.raises(GraphError, match=r"use ops\.exp"):
        xnn.grad(lambda a: np.sum(np.exp(a)))(X)
    with pytest.raises(ShapeError):
        xnn.grad(lambda a: ops.sum(a @ np.ones((5, 1))))(X)


def test_host_and_device_arrays_do_not_mix(other):
    with pytest.raises(MixedArraysError, match=f"{other.address} and of numpy"):
        xnn.grad(lambda a: ops.sum(a * X))(other.to_device(np.ones((2, 2))))
