"""Losses and optimizers: their state, their refusals, and PyTorch's numbers for the same gradients."""

import numpy as np
import pytest

from xnn import layers, losses, optimizers
from xnn.errors import DTypeError, GraphError, LabelError, MixedArraysError, OptionError, ShapeError
from xnn.initializers import Zeros
from xnn.layers import Parameter


class TestLosses:
    @pytest.mark.parametrize(
        ("loss", "outputs", "targets", "torch_name"),
        [
            (losses.SoftmaxCrossEntropy(), (6, 4), "labels", "cross_entropy"),
            (losses.BinaryCrossEntropy(), (6, 2), "unit", "binary_cross_entropy_with_logits"),
            (losses.MSE(), (6, 3), "any", "mse_loss"),
        ],
    )
    def test_pytorch(self, loss, outputs, targets, torch_name):
        torch = pytest.importorskip("torch")
        rng = np.random.default_rng(1)
        z = rng.normal(size=outputs) * 5
        t = {"labels": rng.integers(0, 4, 6), "unit": rng.random(outputs), "any": rng.normal(size=outputs)}[
            targets
        ]
        zt = torch.tensor(z, requires_grad=True)
        expected = getattr(torch.nn.functional, torch_name)(zt, torch.tensor(t))
        expected.backward()
        np.testing.assert_allclose(loss.forward(z, t), expected.item(), rtol=1e-13)
        np.testing.assert_allclose(loss.backward(), zt.grad.numpy(), rtol=1e-11, atol=1e-16)

    def test_the_value_stays_on_the_device(self, lib):
        loss = losses.MSE()
        value = loss.forward(
            lib.to_device(np.ones((2, 1), np.float32)), lib.to_device(np.zeros((2, 1), np.float32))
        )
        assert type(value) is type(lib.xp.mean(lib.to_device(np.ones(2, np.float32))))
        assert lib.to_host(loss.backward()).tolist() == [[1.0], [1.0]]

    def test_backward_before_forward(self):
        with pytest.raises(GraphError, match="before its forward"):
            losses.MSE().backward()

    @pytest.mark.parametrize(
        ("loss", "outputs", "targets", "error", "message"),
        [
            (losses.SoftmaxCrossEntropy(), (2, 3), [0, 3], LabelError, r"0 \.\. 2"),
            (losses.SoftmaxCrossEntropy(), (2, 3), [-1, 0], LabelError, "from -1"),
            (losses.SoftmaxCrossEntropy(), (2, 3), [0.0, 1.0], LabelError, "integer"),
            (losses.SoftmaxCrossEntropy(), (2, 3), [[0], [1]], ShapeError, r"\(n,\)"),
            (losses.SoftmaxCrossEntropy(), (2, 3, 4), [0, 1], ShapeError, "classes"),
            (losses.BinaryCrossEntropy(), (2, 1), [[0.5], [1.5]], LabelError, r"\[0, 1\]"),
            (losses.BinaryCrossEntropy(), (2, 1), [0, 1], ShapeError, "nothing is broadcast"),
            (losses.MSE(), (2, 1), [0.0, 1.0], ShapeError, "nothing is broadcast"),
            (losses.MSE(), (2,), 3.0, ShapeError, "nothing is broadcast"),
            (losses.MSE(), (2, 1), [["a"], ["b"]], DTypeError, "numbers"),
            (losses.MSE(), (2, 1), [[np.nan], [1.0]], LabelError, "NaN"),
        ],
    )
    def test_refuses(self, loss, outputs, targets, error, message):
        with pytest.raises(error, match=message):
            loss.forward(np.ones(outputs), np.array(targets))


def parameter(value, gradient):
    p = Parameter("w", value.shape, Zeros(), "float64")
    p.value, p.grad = value, gradient
    return p


RULES = [
    ("SGD", {"learning_rate": 0.1}, {"lr": 0.1}),
    ("SGD", {"learning_rate": 0.1, "momentum": 0.9}, {"lr": 0.1, "momentum": 0.9}),
    (
        "SGD",
        {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ),
    ("SGD", {"learning_rate": 0.1, "weight_decay": 0.1}, {"lr": 0.1, "weight_decay": 0.1}),
    ("Adam", {}, {}),
    (
        "Adam",
        {"learning_rate": 0.02, "betas": (0.8, 0.99), "epsilon": 1e-6, "weight_decay": 0.03},
        {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.03},
    ),
]


@pytest.mark.parametrize(("name", "ours", "theirs"), RULES)
def test_twenty_steps_of_pytorch(name, ours, theirs):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    start = rng.normal(size=(3, 4))
    p = parameter(start.copy(), None)
    optimizer = getattr(optimizers, name)(**ours)
    w = torch.tensor(start, requires_grad=True)
    reference = getattr(torch.optim, name)([w], **theirs)
    for _ in range(20):
        gradient = rng.normal(size=(3, 4))
        p.grad, w.grad = gradient, torch.tensor(gradient)
        optimizer.step([p])
        reference.step()
        np.testing.assert_allclose(p.value, w.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_update_formulas_written_out():
    """The same two rules without PyTorch: two steps by hand."""
    w, g1, g2 = 1.0, 0.5, -0.25
    p = parameter(np.array([w]), np.array([g1]))
    sgd = optimizers.SGD(0.1, momentum=0.9, nesterov=True)
    sgd.step([p])
    v1 = g1
    w1 = w - 0.1 * (g1 + 0.9 * v1)
    np.testing.assert_allclose(p.value, [w1], rtol=1e-15)
    p.grad = np.array([g2])
    sgd.step([p])
    v2 = 0.9 * v1 + g2
    np.testing.assert_allclose(p.value, [w1 - 0.1 * (g2 + 0.9 * v2)], rtol=1e-15)

    p = parameter(np.array([w]), np.array([g1]))
    adam = optimizers.Adam(0.01)
    adam.step([p])
    np.testing.assert_allclose(p.value, [w - 0.01 * g1 / (abs(g1) + 1e-8)], rtol=1e-12)
    p.grad = np.array([g2])
    adam.step([p])
    m = 0.9 * 0.1 * g1 + 0.1 * g2
    s = 0.999 * 0.001 * g1**2 + 0.001 * g2**2
    step = 0.01 * (m / (1 - 0.9**2)) / (np.sqrt(s / (1 - 0.999**2)) + 1e-8)
    np.testing.assert_allclose(p.value, [w - 0.01 * g1 / (abs(g1) + 1e-8) - step], rtol=1e-12)


@pytest.mark.parametrize("optimizer", [optimizers.SGD(0.1, momentum=0.9), optimizers.Adam()])
def test_updates_leave_the_arrays_they_were_given_alone(lib, optimizer):
    value, gradient = lib.to_device(np.ones(3)), lib.to_device(np.full(3, 2.0))
    p = parameter(value, gradient)
    optimizer.step([p])
    optimizer.step([p])
    assert lib.to_host(value).tolist() == [1, 1, 1]
    assert lib.to_host(gradient).tolist() == [2, 2, 2]
    assert (lib.to_host(p.value) < 1).all()


def test_frozen_parameters_and_those_without_a_gradient_stay():
    frozen, idle = parameter(np.ones(2), np.ones(2)), parameter(np.ones(2), None)
    frozen.frozen = True
    moving = parameter(np.ones(2), np.ones(2))
    optimizers.SGD(0.1).step([frozen, idle, moving])
    assert frozen.value.tolist() == idle.value.tolist() == [1.0, 1.0]
    assert moving.value.tolist() == [0.9, 0.9]
    optimizers.SGD(0.1).step([frozen])
    assert frozen.value.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "kind", [optimizers.SGD, optimizers.Adam, lambda rate: optimizers.SGD(rate, average=0.9)]
)
def test_a_step_without_any_gradient_is_refused(kind):
    frozen, idle, optimizer = parameter(np.ones(2), np.ones(2)), parameter(np.ones(2), None), kind(0.1)
    frozen.frozen = True
    for given in ([idle], [idle, idle], [frozen, idle]):
        with pytest.raises(
            OptionError, match=r"no parameter has a gradient.* call loss.backward and model.backward"
        ):
            optimizer.step(given)
    with pytest.raises(OptionError, match="no parameter has a gradient"):
        optimizer.step([idle], [None])
    assert (optimizer.steps, optimizer.state, optimizer.averages) == (0, {}, {})


@pytest.mark.parametrize("make", [lambda: optimizers.SGD(0.1, momentum=0.9), lambda: optimizers.Adam()])
def test_snapshot_and_restore(make):
    p, optimizer = parameter(np.ones(2), np.array([1.0, -2.0])), make()
    optimizer.step([p])
    value, kept = p.value, optimizer.snapshot()
    optimizer.step([p])
    after = p.value
    p.value = value
    optimizer.restore(kept)
    optimizer.step([p])
    assert p.value.tolist() == after.tolist()


@pytest.mark.parametrize(
    "build",
    [
        lambda: optimizers.SGD(-0.1),
        lambda: optimizers.SGD(float("nan")),
        lambda: optimizers.SGD(float("inf")),
        lambda: optimizers.SGD("0.1"),
        lambda: optimizers.SGD(0.1, momentum=1.0),
        lambda: optimizers.SGD(0.1, nesterov=True),
        lambda: optimizers.SGD(0.1, weight_decay=-1),
        lambda: optimizers.Adam(betas=(0.9, 1.0)),
        lambda: optimizers.Adam(epsilon=-1),
    ],
)
def test_options(build):
    with pytest.raises(OptionError, match=r"must be a finite number|needs a momentum"):
        build()


def test_state_and_weights_on_two_backends_do_not_mix(other):
    for optimizer in (optimizers.Adam(), optimizers.SGD(0.1, momentum=0.9)):
        layer = layers.Dense(1, 1, seed=0)
        layer.weight.grad = np.ones((1, 1), np.float32)
        optimizer.step(layer.parameters())
        layer.to(other.name)
        with pytest.raises(MixedArraysError):
            optimizer.step(layer.parameters())


def test_adam_counts_each_parameters_own_steps():
    """One unfrozen late takes the step of a first one, whatever the others did meanwhile."""
    early, late = parameter(np.zeros(1), np.ones(1)), parameter(np.zeros(1), np.ones(1))
    late.frozen = True
    optimizer = optimizers.Adam(0.01)
    for _ in range(50):
        optimizer.step([early, late])
    late.frozen = False
    optimizer.step([early, late])
    np.testing.assert_allclose(late.value, -0.01, rtol=1e-6)


def test_numpys_numbers_are_numbers():
    assert optimizers.SGD(np.float32(0.5)).learning_rate == 0.5
    assert layers.Dense(np.int64(3), np.int32(2)).weight.shape == (3, 2)
