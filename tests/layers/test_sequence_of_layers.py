"""A Sequential, an Add and a Parallel are sequences of their layers."""

import numpy as np
import pytest

import xnn
from xnn import layers


@pytest.fixture(params=[xnn.Sequential, layers.Add, layers.Parallel])
def container(request):
    return request.param(layers.Dense(3, 3), layers.Tanh(), layers.Dense(3, 3))


def test_positions_length_and_iteration(container):
    assert len(container) == 3
    assert list(container) == container.layers
    assert [layer for layer in container] == container.layers  # noqa: C416
    assert container[0] is container.layers[0]
    assert container[-1] is container.layers[-1]
    assert container[:2] == container.layers[:2]
    assert container[1] in container
    assert layers.Tanh() not in container
    with pytest.raises(IndexError):
        container[3]


def test_a_model_without_layers_is_true():
    """As every other model; `if model:` asks whether there is one."""
    assert xnn.Sequential()
    assert len(xnn.Sequential()) == 0


def test_a_model_of_some_of_the_layers():
    model = xnn.Sequential(layers.Dense(3, 4), layers.Tanh(), layers.Dense(4, 2), seed=0)
    x = np.ones((2, 3), np.float32)
    weights = model[0].weight.value
    model[0].weight.value = weights  # assigned weights stay as they are in another model
    body = xnn.Sequential(*model[:-1])
    assert np.array_equal(body.predict(x), np.tanh(x @ weights))
