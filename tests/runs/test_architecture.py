"""Networks as TOML files: what they build, and that an error names the line."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from network_texts import DENSE, FULL, layer

import xnn
from xnn import initializers, layers, ops
from xnn.data import synthetic_digits
from xnn.errors import OptionError, ShapeError
from xnn.initializers import Initializer
from xnn.layers import Layer
from xnn.layers.files import metadata, weights_sha256
from xnn.runs import architecture
from xnn.runs.mlp import mlp

EXAMPLES = Path(__file__).parents[2] / "examples"


def built(found, shape=(6,), classes=3, **options):
    return found.build(shape, classes, **options)


def same(model, other):
    """The same layers with the same weights."""
    assert repr(model) == repr(other)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(a.value, b.value)


@pytest.mark.parametrize("text", [FULL, FULL.replace("\n", "\r\n"), "\ufeff" + FULL])
def test_everything_at_once(read, text):
    model = built(read(text), seed=5)
    he, normal = initializers.He("uniform"), initializers.Normal(1.0)
    inner = xnn.Sequential(layers.Dense(8, 4, bias=False), layers.Tanh())
    expected = xnn.Sequential(
        layers.Dense(6, 8, weight_init=he, bias_init=normal),
        xnn.Sequential(layers.Dropout(0.25), inner),
        xnn.Sequential(layers.Function(ops.exp), layers.Dense(4, 5, weight_init=initializers.Zeros())),
        layers.Flatten(),
        layers.Dense(5, 3),
        seed=5,
    )
    same(model, expected)


def test_the_example_is_the_commands_own_network():
    model = architecture.read(EXAMPLES / "mlp.toml").build((784,), 10, (1 / 255, 0.0), seed=3)
    same(model, mlp(784, (100, 200), 10, rescale=(1 / 255, 0.0), seed=3))


def test_lenet():
    model = architecture.read(EXAMPLES / "lenet5.toml").build((784,), 10, (1 / 255, 0.0))
    sizes = [parameter.size for parameter in model.parameters()]
    assert sizes == [150, 6, 2400, 16, 48000, 120, 10080, 84, 840, 10]
    assert model.predict(np.zeros((2, 784), np.uint8)).shape == (2, 10)


def test_the_networks_of_the_documentation(read):
    text = (EXAMPLES.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^( +)(\[\[layers\]\]\n(?:(?:\1.*)?\n)*)", text, re.MULTILINE)
    models = [built(read(textwrap.dedent(indent + block))) for indent, block in blocks]
    assert [len(model.layers) for model in models] == [4, 2]


def test_layers_put_before_the_first_one(read):
    scaling = np.array([2.0, 1.0]), np.array([0.0, -1.0])
    model = read(DENSE).build((2,), 1, scaling)
    assert repr(model.layers[0]) == "Rescale((2.0, 1.0), offset=(0.0, -1.0))"
    wide = read(DENSE + 'dtype = "float64"').build((2,), 1, scaling)
    assert wide.layers[0].dtype == "float64"
    assert wide.predict([[1, 2], [3, 4]]).dtype == np.float64
    own = read('[[layers]]\ntype = "Rescale"\nscale = [1.0, 0.5]\n' + DENSE).build((2,), 1, scaling)
    assert [type(layer).__name__ for layer in own.layers] == ["Rescale", "Dense"]
    assert own.layers[0].scale.tolist() == [1.0, 0.5]
    behind = read(
        '[[layers]]\ntype = "Reshape"\nshape = 2\n[[layers]]\ntype = "Rescale"\nscale = 0.5\n' + DENSE
    ).build((2,), 1, scaling)
    assert [type(layer).__name__ for layer in behind.layers] == ["Reshape", "Rescale", "Dense"]
    assert len(read(DENSE).build((2,), 1).layers) == 1


class Both(Layer):
    """A layer with other layers as positional arguments, as an option, and in a list."""

    def __init__(self, *layers: Layer, last: Layer | None = None, many: list[Layer] = ()) -> None:
        super().__init__()
        self.inside = [*layers, *many, *([last] if last else [])]

    def config(self):
        return {"inside": self.inside}

    def output_shape(self, shape):
        found = {layer.output_shape(shape) for layer in self.inside}
        if len(found) > 1:
            raise ShapeError(f"branches of shapes {found}")
        return found.pop()


class Shaped(Layer):
    """A layer whose positional arguments are numbers."""

    def __init__(self, *shape: int, pair: int | None = None, init: Initializer | None = None) -> None:
        super().__init__()
        self.shape, self.pair, self.init = shape, pair, init

    def config(self):
        return {"shape": list(self.shape), "pair": self.pair}


@pytest.fixture
def _more_layers(monkeypatch):
    for kind in (Both, Shaped):
        monkeypatch.setitem(architecture._LAYERS, kind.__name__, kind)


@pytest.mark.usefixtures("_more_layers")
def test_layers_that_hold_layers_and_are_no_chain(read):
    """Each inner layer takes the input of the layer that holds it."""
    dense = '{type = "Dense", outputs = 4}'
    text = (
        f'[[layers]]\ntype = "Both"\nlast = {dense}\nlayers = [{dense}, {dense}]\nmany = [{dense}]\n' + DENSE
    )
    model = built(read(text))
    assert [layer.inputs for layer in model.layers[0].inside] == [6, 6, 6, 6]
    assert model.layers[1].inputs == 4
    with pytest.raises(ShapeError, match=r"net.toml:1: branches"):
        built(read(text.replace("outputs = 4", "outputs = 5", 1)))
    with pytest.raises(OptionError, match=r"net.toml:4: there is no layer 'Dence'"):
        read(text.replace('= [{type = "Dense"', '= [{type = "Dence"', 1))
    with pytest.raises(OptionError, match=r"net.toml:4: Dense: outputs"):
        built(read(text.replace('= [{type = "Dense", outputs = 4', '= [{type = "Dense", outputs = 0', 1)))


@pytest.mark.usefixtures("_more_layers")
def test_arguments_one_after_another(read):
    text = '[[layers]]\ntype = "Shaped"\nshape = [1, "classes", 28]\ninit = {type = "He"}\npair = 2'
    layer = built(read(text)).layers[0]
    assert (layer.shape, layer.pair, layer.init) == ((1, 3, 28), 2, initializers.He())
    assert built(read('[[layers]]\ntype = "Shaped"')).layers[0].shape == ()
    with pytest.raises(OptionError, match=r"net.toml:3: Shaped: shape must be a whole number, got 1.5"):
        read(text.replace("[1,", "[1.5,"))
    with pytest.raises(OptionError, match=r"net.toml:3: Shaped: shape must be an array"):
        read(text.replace('[1, "classes", 28]', "7"))
    with pytest.raises(OptionError, match=r"net.toml:5: Shaped: pair must be a whole number, got True"):
        read(text.replace("pair = 2", "pair = true"))


# On the command line.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """digits.npz, 300 synthetic digits; net.toml; same.toml, which is --hidden 16 --dropout 0.25."""
    path = tmp_path_factory.mktemp("architecture")
    x, y = synthetic_digits(300, seed=1)
    np.savez(path / "digits.npz", x=x, y=y)
    (path / "net.toml").write_text(FULL)
    same = layer("Dense", "outputs = 16") + layer("ReLU") + layer("Dropout", "rate = 0.25") + DENSE
    (path / "same.toml").write_text(same)
    return path


def train(folder, *options):
    result = run("train", "--dataset", folder / "digits.npz", "--batch-size", 50, *options)
    assert result.exit_code == 0, result.output
    return result


def test_a_file_trains_as_the_same_options_do(folder, tmp_path):
    saved = tmp_path / "m.safetensors"
    options = ("--epochs", 2, "--seed", 4, "--json")
    by_file = json.loads(train(folder, "--model", folder / "same.toml", *options, "--save", saved).stdout)
    by_options = json.loads(train(folder, "--hidden", 16, "--dropout", 0.25, *options).stdout)
    for key in ("weights_sha256", "losses_sha256", "test_accuracy"):
        assert by_file[key] == by_options[key]
    assert weights_sha256(xnn.load(saved)) == by_file["weights_sha256"]


def test_one_file_for_a_classification_and_a_regression(folder, tmp_path):
    """The model's file has the number of features, by which a table with targets differs from one without."""
    table, saved = tmp_path / "t.csv", tmp_path / "m.safetensors"
    x = np.random.default_rng(0).normal(size=(80, 5))
    np.savetxt(table, np.column_stack([x, x.sum(axis=1)]), delimiter=",")
    net = tmp_path / "net.toml"
    net.write_text(layer("Sequential", "layers = [{type = 'Dense', outputs = 4}]") + DENSE)
    result = run("train", "--dataset", table, "--model", net, "--epochs", 1, "--save", saved, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["task"] == "regression"
    assert metadata(saved)["notes"]["features"] == 5
    predicted = run("predict", saved, table)
    assert (predicted.exit_code, len(predicted.stdout.splitlines())) == (0, 80)
    assert train(folder, "--model", net, "--epochs", 1, "--quiet").output == ""


def test_a_record_holds_the_layers_themselves(folder, tmp_path):
    """A record verifies without the file. Another network is another run."""
    net, path, other = tmp_path / "gone.toml", tmp_path / "r.jsonl", tmp_path / "other.jsonl"
    net.write_text(FULL)
    exact = ("--numerics", "exact", "--epochs", 1, "--quiet", "--kernels", "ops")
    train(folder, "--model", net, *exact, "--record", path)
    net.unlink()
    header = json.loads(path.read_text().splitlines()[0])["run"]
    assert set(header) == {"dataset", "model", "optimizer", "lr", "batch_size", "seed"}
    assert header["model"][0]["weight_init"] == {"type": "He", "distribution": "uniform"}
    result = run("verify", path, "kernels=ops,threads=1", "--dataset", folder / "digits.npz")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "5 steps, loss, 7 gradients, 7 weights each: all bits agree"
    assert "Dense(bias=False, outputs=4),Tanh()" in result.stdout
    net.write_text(FULL.replace("rate = 0.25", "rate = 0.5"))
    train(folder, "--model", net, *exact, "--record", other)
    result = run("verify", path, other)
    assert result.exit_code == 2
    assert "two different runs: model is " in result.stderr
    train(folder, "--hidden", 8, *exact, "--record", other)
    assert "two different runs" in run("verify", path, other).stderr


@pytest.mark.slow
def test_two_live_sides_of_a_file(folder):
    words = ("--model", folder / "net.toml", "--dataset", folder / "digits.npz", "--steps", 3)
    result = run("verify", "kernels=ops,threads=1", "kernels=ops,threads=2", *words)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].endswith("all bits agree")


@pytest.mark.parametrize("command", [("train",), ("verify", "threads=1", "threads=2")])
@pytest.mark.parametrize("options", [("--hidden", "100,200"), ("--dropout", 0.0), ("--activation", "relu")])
def test_two_options_that_describe_the_network(folder, command, options):
    """Even where the option only repeats its default."""
    result = run(*command, "--model", folder / "net.toml", *options, "--dataset", "nosuch")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{options[0]} and --model both describe the network" in result.stderr


@pytest.mark.parametrize("command", [("train",), ("verify", "threads=1", "threads=2")])
def test_a_wrong_file_is_refused_before_data_are_fetched(folder, tmp_path, command):
    net = tmp_path / "net.toml"
    net.write_text(layer("Dense", "units = 3"))
    result = run(*command, "--model", net, "--dataset", "nosuch")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "net.toml:3: Dense has no argument units" in result.stderr
    result = run(*command, "--model", tmp_path / "nosuch.toml", "--dataset", "nosuch")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "nosuch.toml: No such file" in result.stderr


def test_a_network_that_does_not_fit_the_data(folder, tmp_path):
    net = tmp_path / "net.toml"
    for text, message in (
        (layer("Dense", "outputs = 9"), "the model has 9 outputs"),
        (layer("Dense", "inputs = 9", "outputs = 10"), "net.toml:1: Dense(9, 10) cannot take"),
        (DENSE + layer("Softmax"), "remove that layer"),
        (
            layer("Function", "op = 'transpose'") + DENSE,
            "returned shape (784, 2) for two samples of shape (784,)",
        ),
    ):
        net.write_text(text)
        result = run("train", "--dataset", folder / "digits.npz", "--model", net)
        assert result.exit_code in (2, 4)
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
