"""Activations with options: as layers, at their limits, and against PyTorch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xnn import layers, ops
from xnn.errors import OptionError

OWN = {
    "LeakyReLU": (layers.LeakyReLU(0.2), lambda nn: nn.LeakyReLU(0.2)),
    "ELU": (layers.ELU(1.5), lambda nn: nn.ELU(1.5)),
    "SELU": (layers.SELU(), lambda nn: nn.SELU()),
    "GELU": (layers.GELU(), lambda nn: nn.GELU()),
    "GELU tanh": (layers.GELU("tanh"), lambda nn: nn.GELU(approximate="tanh")),
    "SiLU": (layers.SiLU(), lambda nn: nn.SiLU()),
    "Softplus": (layers.Softplus(beta=2.0), lambda nn: nn.Softplus(beta=2.0, threshold=1e9)),
    "LogSoftmax": (layers.LogSoftmax(axis=1), lambda nn: nn.LogSoftmax(1)),
    "Softmax": (layers.Softmax(axis=1), lambda nn: nn.Softmax(1)),
    "ReLU": (layers.ReLU(), lambda nn: nn.ReLU()),
    "Sigmoid": (layers.Sigmoid(), lambda nn: nn.Sigmoid()),
    "Tanh": (layers.Tanh(), lambda nn: nn.Tanh()),
}


@pytest.mark.parametrize("name", OWN)
@settings(max_examples=25)
@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1.0, 30.0]),
)
def test_outputs_and_gradients_are_pytorchs(name, shape, seed, scale):
    torch = pytest.importorskip("torch")
    own, theirs = OWN[name]
    rng = np.random.default_rng(seed)
    x, grad = rng.normal(size=shape) * scale, rng.normal(size=shape)
    given_x = torch.tensor(x, requires_grad=True)
    wanted = theirs(torch.nn)(given_x)
    wanted.backward(torch.tensor(grad))
    np.testing.assert_allclose(own.forward(x), wanted.detach().numpy(), rtol=1e-12, atol=1e-14 * scale)
    np.testing.assert_allclose(own.backward(grad), given_x.grad.numpy(), rtol=1e-11, atol=1e-13 * scale)


FAR = {
    "leaky_relu": (-1e4, 1e6), "elu": (-1.0, 1e6), "selu": (-1.7580993408473766, 1.0507009873554805e6),
    "gelu": (0.0, 1e6), "silu": (0.0, 1e6), "softplus": (0.0, 1e6),
}  # fmt: skip


@pytest.mark.parametrize("name", FAR)
def test_far_out_nothing_overflows_and_nan_stays(lib, name):
    op = getattr(ops, name)
    with np.errstate(over="raise", invalid="ignore"):
        y = lib.to_host(op(lib.to_device(np.array([-1e6, 1e6, np.nan]))))
    np.testing.assert_allclose(y[:2], FAR[name], rtol=1e-12)
    assert np.isnan(y[2])


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_the_dtype_stays(lib, kind):
    for layer, _ in OWN.values():
        y = layer.forward(lib.to_device(np.ones((2, 3), kind)))
        assert str(lib.to_host(y).dtype) == str(lib.to_host(layer.backward(y)).dtype) == kind
        layer.forget()


def test_options_go_by_position_or_name_and_are_kept():
    assert (
        repr(layers.LeakyReLU(0.2))
        == repr(layers.LeakyReLU(negative_slope=0.2))
        == "LeakyReLU(negative_slope=0.2)"
    )
    assert layers.GELU("tanh").config() == {"approximate": "tanh"}
    assert layers.Softmax().config() == {"axis": -1}
    assert "Maas" in layers.LeakyReLU.__doc__


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: layers.GELU("sigmoid"), "GELU: approximate must be 'none' or 'tanh', got 'sigmoid'"),
        (lambda: layers.LeakyReLU("0.1"), "negative_slope must be a finite number, got '0.1'"),
        (lambda: layers.ELU(float("nan")), "alpha must be a finite number"),
        (lambda: layers.Softmax(axis=1.5), "axis must be an integer, got 1.5"),
        (lambda: layers.ELU(slope=1.0), r"ELU has no option 'slope'; it takes alpha$"),
        (lambda: layers.ReLU(0.1), r"ReLU: too many positional arguments; it takes no options$"),
        (lambda: layers.Softplus(0).forward(np.ones(3)), "beta must be above 0"),
        (lambda: ops.gelu(np.ones(3), approximate="fast"), "approximate must be 'none' or 'tanh'"),
    ],
)  # fmt: skip
def test_a_wrong_option_says_what_is_allowed(make, said):
    with pytest.raises(OptionError, match=said):
        make()
