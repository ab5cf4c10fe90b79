"""Models as scripts of PyTorch: run there, and compared with predict. What needs no PyTorch is tested without it."""

import ast
import importlib.util
import sys

import exported_models
import numpy as np
import pytest
from safetensors.numpy import load_file

import xnn
from xnn import exchange, layers, ops
from xnn.errors import OptionError
from xnn.layers import Function, Sequential

with_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: .ci/full installs it"
)
MODELS = list(exported_models.all_models())


def loaded(path):
    """The network of a script, as its `load()` returns it."""
    spec = importlib.util.spec_from_file_location("exported_network", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


@with_torch
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize(("name", "model", "shape", "positive"), MODELS, ids=[case[0] for case in MODELS])
def test_pytorch_computes_what_predict_does(name, model, shape, positive, tmp_path):
    import torch

    exchange.to_torch(model, tmp_path / "net.py", shape)
    network = loaded(tmp_path / "net.py")
    for count in (1, 7):
        x = exported_models.samples(model, shape, count, positive)
        right = model.predict(x)
        with torch.no_grad():
            found = network(torch.from_numpy(x)).numpy()
        assert (found.dtype, found.shape) == (right.dtype, right.shape)
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)


@with_torch
def test_models_of_float64(tmp_path):
    import torch

    model = Sequential(
        layers.Conv2D(1, 2, 3, dtype="float64"), layers.BatchNorm(2, dtype="float64"), layers.Flatten(),
        layers.LayerNorm(8, dtype="float64"), layers.Dense(8, 2, dtype="float64"), seed=1,
    )  # fmt: skip
    exported_models.changed(model)
    exchange.to_torch(model, tmp_path / "net.py", (1, 4, 4))
    x = np.random.default_rng(0).normal(size=(5, 1, 4, 4))
    with torch.no_grad():
        found = loaded(tmp_path / "net.py")(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, model.predict(x), rtol=1e-12, atol=1e-12)


@with_torch
def test_the_weights_go_back(tmp_path):
    """Arrays have the same names in both, so from_torch takes them without being told."""
    inside = [layers.Dense(4, 6), layers.BatchNorm(6), layers.Add(layers.Identity(), layers.Dense(6, 6))]
    model = exported_models.changed(Sequential(*inside, seed=1))
    exchange.to_torch(model, tmp_path / "net.py")
    again = Sequential(
        layers.Dense(4, 6), layers.BatchNorm(6), layers.Add(layers.Identity(), layers.Dense(6, 6)), seed=2
    )
    xnn.from_torch(loaded(tmp_path / "net.py").state_dict(), again)
    for (name, ours), (_, theirs) in zip(model.named_state(), again.named_state(), strict=True):
        assert np.array_equal(ours.value, theirs.value), name


# Without PyTorch.


@pytest.mark.parametrize(("name", "model", "shape", "positive"), MODELS, ids=[case[0] for case in MODELS])
def test_the_script_is_python_and_the_weights_are_there(name, model, shape, positive, tmp_path):
    exchange.to_torch(model, tmp_path / "net.py", shape)
    text = (tmp_path / "net.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    used = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    known = {"module", "super", "hasattr", "sum", "print", "Path", "load_file"}
    assert used - known <= defined
    assert defined <= used | {"build", "load"}
    arrays = load_file(tmp_path / "net_weights.safetensors")
    named = {
        key: value
        for key, value in arrays.items()
        if key.rpartition(".")[2] not in (*NUMBERS, "num_batches_tracked")
    }
    ours = dict(model.named_state())
    assert named.keys() == ours.keys()
    assert all(value.size == ours[key].size for key, value in named.items())


NUMBERS = ("shift", "scale", "offset")


def test_the_weight_of_dense_is_transposed(tmp_path):
    model = Sequential(layers.Dense(3, 2), seed=1)
    exchange.to_torch(model, tmp_path / "net.py")
    arrays = load_file(tmp_path / "net_weights.safetensors")
    assert np.array_equal(arrays["0.weight"], model[0].weight.value.T)


def test_pytorch_is_not_imported(tmp_path):
    before = "torch" in sys.modules
    exchange.to_torch(Sequential(layers.Dense(3, 2)), tmp_path / "net.py")
    assert ("torch" in sys.modules) == before


def test_infinity_is_a_number_of_the_script(tmp_path):
    clip = Function(ops.clip, min=-np.inf, max=0.5)
    exchange.to_torch(Sequential(layers.Dense(2, 2), clip), tmp_path / "net.py")
    assert "x.clip(float('-inf'), 0.5)" in (tmp_path / "net.py").read_text()


def test_what_is_refused(tmp_path):
    with pytest.raises(
        OptionError, match=r"layer 1 of the model, Lambda\(tanh\), cannot be exported to PyTorch"
    ):
        exchange.to_torch(Sequential(layers.Dense(2, 2), layers.Lambda(ops.tanh)), tmp_path / "net.py")
    with pytest.raises(OptionError, match="joins the samples of a batch"):
        exchange.to_torch(Sequential(layers.Dense(2, 2), Function(ops.max)), tmp_path / "net.py")
    with pytest.raises(OptionError, match=r"Softmax\(axis=-2\) joins the samples of a batch"):
        exchange.to_torch(Sequential(layers.Dense(2, 2), layers.Softmax(axis=-2)), tmp_path / "net.py")
    with pytest.raises(OptionError, match=r"must end in \.py"):
        exchange.to_torch(Sequential(layers.Dense(2, 2)), tmp_path / "net.pt")
    with pytest.raises(OptionError, match="cannot stand in a script"):
        exchange.to_torch(Sequential(layers.Dense(2, 2)), tmp_path / "a{b}'.py")
    for name in ("torch", "json"):
        with pytest.raises(OptionError, match=f"in place of the package {name}"):
            exchange.to_torch(Sequential(layers.Dense(2, 2)), tmp_path / f"{name}.py")
    assert list(tmp_path.iterdir()) == []
