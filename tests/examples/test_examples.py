"""The five systems: every example runs, and prints what its article computed."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from test_new_examples import SHORT

pytestmark = pytest.mark.filterwarnings("error::xnn.errors.ScaleWarning")

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_there_is_a_test_for_each():
    articles = {"perceptron", "two_layer_net", "miniflow", "mnist_mlp", "blocks", "lenet5"}
    assert {p.stem for p in EXAMPLES.glob("*.py")} == articles | set(SHORT)


def test_perceptron_on_synthetic_digits(capsys):
    costs, train, test = load("perceptron")["main"]("synthetic", iterations=201)
    assert costs[0] == pytest.approx(np.log(2), rel=1e-6)  # zeros: every probability is a half
    assert len(costs) == 3
    assert costs[2] < costs[1] < costs[0]
    assert min(train, test) > 0.99
    assert "cost after iteration 200" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.data
def test_perceptron_on_mnist():
    costs, _, test = load("perceptron")["main"]("mnist")
    assert len(costs) == 20
    assert test >= 0.998


def test_two_layer_net(capsys):
    gap, accuracy = load("two_layer_net")["main"]("synthetic", iterations=300, learning_rate=0.5)
    assert gap < 1e-7
    assert accuracy > 0.9
    assert "numerical and analytic" in capsys.readouterr().out


def test_two_layer_nets_interface():
    cls = load("two_layer_net")["TwoLayerNet"]
    net = cls(input_size=5, hidden_size=4, output_size=3, weight_init_std=0.5)
    assert {k: v.shape for k, v in net.params.items()} == {"W1": (5, 4), "b1": (4,), "W2": (4, 3), "b2": (3,)}
    x = np.random.default_rng(0).normal(size=(6, 5))
    t = np.array([0, 1, 2, 0, 1, 2])
    numerical, analytic = net.numerical_gradient(x, t), net.gradient(x, t)
    for name in net.params:
        assert np.abs(numerical[name] - analytic[name]).max() < 1e-7
    assert net.loss(x, np.eye(3)[t]) == net.loss(x, t)
    assert net.accuracy(x, np.eye(3)[t]) == net.accuracy(x, t)
    np.testing.assert_allclose(net.predict(x).sum(axis=1), 1)


def test_miniflow_scripts(capsys):
    miniflow = load("miniflow")
    assert miniflow["multiply"]() == 200.0
    assert miniflow["linear"]() == 16.0
    assert len(miniflow["gradients"]()) == 4
    printed = capsys.readouterr().out
    for digits in (
        "3.34017280e-05",
        "5.01025919e-05",
        "6.68040138e-05",
        "1.00206021e-04",
        "0.9999833",
        "1.9999833",
    ):
        assert digits in printed
    for digits in ("5.01028709e-05", "1.00205742e-04"):
        assert digits in printed


@pytest.mark.data
def test_miniflow_on_boston(capsys):
    losses = load("miniflow")["boston"]()
    assert losses[0] > 100
    assert losses[-1] < 25
    load("miniflow")["main"]()


def test_miniflow_without_boston(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XNN_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("xnn.data.sources.cache_home", lambda: tmp_path / "cache")
    load("miniflow")["main"]()
    assert "boston_housing.csv" in capsys.readouterr().out


def test_mnist_mlp(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "curve.png"
    train, val = load("mnist_mlp")["main"]("synthetic", epochs=3, plot=str(plot), progress=False)
    assert min(train, val) > 0.97
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "100,710" in capsys.readouterr().out


@pytest.mark.data
@pytest.mark.slow
def test_mnist_mlp_on_mnist():
    train, val = load("mnist_mlp")["main"]("mnist", plot=None, progress=False)
    assert train == 1.0
    assert val >= 0.979


def test_lenet5(capsys):
    assert load("lenet5")["main"]("synthetic", epochs=1, progress=False) > 0.97
    assert "61,750" in capsys.readouterr().out


@pytest.mark.data
@pytest.mark.slow
def test_lenet5_on_mnist():
    assert load("lenet5")["main"]("mnist", progress=False) >= 0.99


def test_blocks():
    first, last = load("blocks")["main"](iterations=1000)
    assert first > 0.5
    assert last < 0.005
