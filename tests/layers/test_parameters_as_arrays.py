"""Parameters in the place of arrays: allowed outside of computations, refused where a gradient would be lost."""

import numpy as np
import pytest

import xnn
from xnn import initializers, layers, losses, ops, optimizers
from xnn.errors import GraphError, MixedArraysError

X = np.ones((4, 3), np.float32)


@pytest.fixture
def weight():
    return layers.Dense(3, 2, seed=0).weight


@pytest.mark.parametrize("make", [np.asarray, np.asanyarray, np.ascontiguousarray])
def test_numpy_gets_a_read_only_copy(weight, make):
    """Read-only, since what is written there would not be trained; a copy, since training may write into its own."""
    array = make(weight)
    assert array.tobytes() == weight.value.tobytes()
    assert (array.shape, array.dtype) == ((3, 2), np.float32)
    assert not np.shares_memory(array, weight.value)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


def test_a_copy_that_was_asked_for_is_ones_own(weight):
    before = weight.value.copy()
    array = np.array(weight)
    array[...] = 0
    assert np.array_equal(weight.value, before)
    assert np.asarray(weight, dtype="float64").dtype == np.float64
    with pytest.raises(ValueError, match="weight gives NumPy copies only"):
        np.asarray(weight, copy=False)


def test_an_array_stays_as_it_was_while_training_goes_on():
    model = xnn.Sequential(layers.Dense(3, 3), seed=0)
    weight = model.layers[0].weight
    before, bits = np.asarray(weight), weight.value.tobytes()
    xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1)).fit((X, X), progress=False)
    assert before.tobytes() == bits != weight.value.tobytes()


def test_an_array_of_the_users_takes_it(weight):
    mine = np.zeros((3, 2))
    mine[...] = weight
    assert np.array_equal(mine, weight.value)
    np.testing.assert_array_equal(weight, weight.value)


def test_python_gets_lengths_rows_and_numbers(weight):
    assert len(weight) == 3
    assert [row.tolist() for row in weight] == weight.value.tolist()
    assert weight[1, 0] == weight.value[1, 0]
    assert weight[:, 1].shape == (3,)
    assert float(layers.Dense(1, 1, bias_init=initializers.Ones()).bias) == 1.0
    assert float(layers.Parameter("scale", (), initializers.Ones())) == 1.0
    with pytest.raises(
        TypeError, match=r"weight has shape \(3, 2\), and only a single number becomes a float"
    ):
        float(weight)


def test_a_buffer_too():
    assert np.asarray(layers.BatchNorm(3).running_var).tolist() == [1.0, 1.0, 1.0]


def test_only_numpys_arrays_are_given_to_numpy(other):
    with xnn.backend(other.name):
        layer = layers.Dense(1, 1, seed=0)
        assert float(layer.bias) == 0.0
        with pytest.raises(
            MixedArraysError, match=f"weight is an array of {other.address}, and arrays are never"
        ):
            np.asarray(layer.weight)


def run_in_a_graph(model):
    node = xnn.graph.Input()
    output = model(node)
    return xnn.graph.forward_pass(output, xnn.graph.topological_sort({node: X}))


LOSING = {
    "asarray": lambda p: np.asarray(p),
    "array": lambda p: np.array(p),
    "float": lambda p: float(p[0]) if p.ndim > 1 else float(p),
    "assigned": lambda p: np.zeros(p.shape).__setitem__(..., p),
    "numpy.mean": lambda p: np.mean(p),
}


@pytest.mark.parametrize("kind", [layers.Parameter, layers.Buffer])
@pytest.mark.parametrize("way", LOSING)
def test_inside_a_computation_they_are_refused(way, kind):
    """In training, in prediction, by hand, under grad and in a graph: a gradient would be lost without a word."""

    class Lossy(layers.Layer):
        def __init__(self):
            super().__init__()
            self.gain = kind("gain", (1,), initializers.Ones())

        def compute(self, x):
            LOSING[way](self.gain)
            return x * self.gain

    model = xnn.Sequential(layers.Dense(3, 3), Lossy(), seed=0)
    trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1))
    gain = model.layers[1].gain
    for run in (
        lambda: trainer.fit((X, X), progress=False),
        lambda: model.predict(X),
        lambda: model.forward(X),
        lambda: xnn.grad(lambda x: ops.sum(model(x)))(X),
        lambda: xnn.grad(lambda x: ops.sum(x * LOSING[way](gain)))(X),
        lambda: run_in_a_graph(model),
    ):
        with pytest.raises(GraphError, match="would lose the gradient"):
            run()
