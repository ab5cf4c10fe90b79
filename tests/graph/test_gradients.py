"""The gradient checker must find what is wrong, name it, and stay quiet about what is right."""

import numpy as np
import pytest

import xnn
from xnn import ops
from xnn.errors import DTypeError
from xnn.graph.check import numerical_gradient


class Wrong(xnn.Op):
    """The identity, with a gradient that is wrong in one place."""

    def __init__(self, place, by=1e-3):
        self.place, self.by = place, by

    def forward(self, xp, x):
        return x * 1.0, None

    def backward(self, xp, grad, saved):
        grad = grad.copy()
        grad[self.place] += self.by
        return (grad,)


@pytest.mark.parametrize(("shape", "place"), [((3, 4), (1, 2)), ((20, 20), (13, 7))])
def test_names_the_worst_entry(shape, place):
    report = xnn.gradient_check(Wrong(place), np.ones(shape))
    assert not report
    assert report.index == place
    assert report.argument == 0
    assert report.computed - report.numerical == pytest.approx(1e-3, rel=1e-4)
    assert str(place) in str(report)


def test_a_fault_that_only_directions_show():
    # 100,000 entries: the search looks at some of them, and the directions at all.
    report = xnn.gradient_check(Wrong((0,), by=10.0), np.ones(100_000))
    assert not report
    assert report.error > 1e-3


def test_small_gradients_are_held_to_their_own_size():
    class Tiny(xnn.Op):
        def forward(self, xp, x):
            return 1e-6 * x, None

        def backward(self, xp, grad, saved):
            return (-1e-6 * grad,)

    assert not xnn.gradient_check(Tiny(), np.ones(3))


def test_nan_is_a_failure():
    report = xnn.gradient_check(Wrong((0,), by=np.nan), np.ones(3))
    assert not report
    assert report.error == float("inf")


def test_large_inputs_are_checked_along_few_directions():
    report = xnn.gradient_check(ops.tanh, np.linspace(-2, 2, 10_000))
    assert report
    assert report.checked == 8
    assert "gradients agree" in str(report)


def test_integers_are_passed_and_numbers_differentiated():
    report = xnn.gradient_check(
        lambda x, rows, k: ops.take(x, rows) * k, np.ones((3, 2)), np.array([0, 2]), 3.0
    )
    assert report
    assert report.checked == 7
    report = xnn.gradient_check(lambda rows: rows * 1, np.array([1]))
    assert report.checked == 0
    assert "no floating-point" in str(report)


def test_float32_inputs_are_checked_in_float64(lib):
    assert xnn.gradient_check(ops.sigmoid, lib.to_device(np.ones((2, 2), np.float32)))


def test_text_is_refused():
    with pytest.raises(DTypeError):
        xnn.gradient_check(ops.tanh, np.array(["a"]))


def test_numerical_gradient(lib):
    x = lib.to_device(np.array([[1.0, 2.0], [3.0, -1.0]]))
    got = numerical_gradient(lambda v: ops.sum(v * v * v), x)
    np.testing.assert_allclose(lib.to_host(got), 3 * lib.to_host(x) ** 2, rtol=1e-8)
    assert float(numerical_gradient(lambda v: v * v, 3.0)) == pytest.approx(6.0)
