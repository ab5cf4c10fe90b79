"""The benchmark's networks with other layers than dense ones: xnn, PyTorch and JAX train the same network."""

import numpy as np
import pytest
from click.testing import CliRunner

from xnn.benchmarks import networks, presets
from xnn.benchmarks.contestants import Task, make
from xnn.cli import main
from xnn.errors import OptionError


def task_of(name):
    return Task((784, 10), 8, 16, network=name, learning_rate=0.002 if name == "lenet-adamw" else 0.01)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_xnn_learns(name):
    task = task_of(name)
    contestant = make("xnn-numpy", task, 1)
    losses = [contestant.epoch(np.arange(16)).mean() for _ in range(6)]
    assert losses[-1] < losses[0]
    assert len(contestant.parameters()) == len(task.weights()[0])
    assert task.flops() > 0


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
@pytest.mark.parametrize("form", ["torch", "torch-channels-last", "jax-scan", "keras-jax"])
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_other_libraries_have_the_same_network(monkeypatch, name, form):
    """Up to numbers within rounding of 0, which ReLU, and AdamW's division, may take for one or the other sign."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    pytest.importorskip(form.partition("-")[0])
    plain = [layer for layer in networks.NETWORKS[name] if layer[0] != "Dropout"]
    monkeypatch.setitem(networks.NETWORKS, name, plain)
    own, other = (make(which, task_of(name), 1) for which in ("xnn-numpy", form))
    for _ in range(2):
        given, found = own.epoch(np.arange(16)), other.epoch(np.arange(16))
        if form == "keras-jax":  # which gives an epoch's mean only
            given = np.full(len(given), given.mean())
        np.testing.assert_allclose(given, found, rtol=5e-3)
    for a, b in zip(own.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2)


def test_flops_of_lenet():
    """Products of the forward pass, and twice as many backward, except for the gradient of the images."""
    products = [2 * 25 * 6 * 784, 2 * 150 * 16 * 100, 2 * 400 * 120, 2 * 120 * 84, 2 * 84 * 10]
    assert networks.flops("lenet", 3) == pytest.approx(3 * (3 * sum(products) - products[0]), rel=0.01)


def test_presets():
    assert [(n, b) for n, b, _ in presets.tasks(presets.read("lenet,vgg"), (), "synthetic")] == [
        (name, batch) for name in ("lenet", "vgg") for batch in (32, 64, 128)
    ]
    assert [b for _, b, _ in presets.tasks(presets.read(None), (4,), "synthetic")] == [4]
    for wrong, message in (
        ("lenet,large", "mixes"),
        ("targets,large", "already"),
        ("alexnet", "choose article"),
    ):
        with pytest.raises(OptionError, match=message):
            presets.read(wrong)


@pytest.mark.parametrize("peer", ["sklearn", "numpy"])
def test_a_library_that_has_no_such_network(peer):
    result = CliRunner().invoke(main, ["bench", "--preset", "vgg", "--peers", peer])
    assert result.exit_code == 2
    assert "choose torch" in result.output
    with pytest.raises(OptionError, match="torch-channels-last"):
        make(peer, task_of("vgg"), 1)


@pytest.mark.slow
def test_the_command(tmp_path):
    words = [
        "bench",
        "--preset",
        "lenet",
        "--batch-sizes",
        "32",
        "--repeat",
        "1",
        "--json",
        str(tmp_path / "f.json"),
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "lenet, batch 32" in result.output
    assert "xnn-numpy" in result.output
