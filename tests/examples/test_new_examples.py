"""The examples of what can be built: each learns what it says, in under 25 lines, and each is listed."""

import ast
import runpy
from pathlib import Path

import numpy as np
import pytest

import xnn
from xnn import layers, ops

pytestmark = pytest.mark.filterwarnings("error::xnn.errors.ScaleWarning")

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = ("adversarial", "gan", "q_network", "transfer", "vae")


def run(name):
    """What a script's names stand for in the end."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def lines_of_code(text):
    """The lines that are neither blank, comment, docstring nor import."""
    passed_over = set()
    for node in ast.walk(ast.parse(text)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, (ast.Import, ast.ImportFrom)):
            passed_over.update(range(node.lineno, node.end_lineno + 1))
    rest = [line for number, line in enumerate(text.splitlines(), 1) if number not in passed_over]
    return [line for line in rest if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize("name", SHORT)
def test_under_25_lines(name):
    assert len(lines_of_code((EXAMPLES / f"{name}.py").read_text())) < 25


def test_every_example_is_listed():
    text = (EXAMPLES / "README.md").read_text()
    assert [p.name for p in EXAMPLES.glob("*.py") if f"`{p.name}`" not in text] == []


def test_adversarial():
    found = run("adversarial")
    accuracy = found["accuracy"]
    assert accuracy(found["images"]) > 0.97
    assert accuracy(found["attacked"]) < 0.1
    assert np.abs(found["attacked"] - found["images"]).max() <= 40
    assert accuracy(found["salient"]) < 0.8 < 0.95 < accuracy(found["others"])


@pytest.mark.slow
def test_gan():
    """The points lie on the circle, and all around it."""
    found = run("gan")
    points = found["generator"].predict(np.random.default_rng(1).normal(size=(1000, 2)))
    radius = np.hypot(*points.T)
    assert abs(radius.mean() - 1) < 0.1
    assert radius.std() < 0.15
    quarters, _ = np.histogram(np.arctan2(*points.T), bins=4, range=(-np.pi, np.pi))
    assert quarters.min() > 100


def test_q_network():
    found = run("q_network")
    assert found["path"][-1] == (4, 4)
    assert len(found["path"]) == 9
    worth = found["network"].predict(np.eye(25, dtype="float32")).max(axis=1)
    distance = np.add.outer(range(4, -1, -1), range(4, -1, -1)).ravel()
    np.testing.assert_allclose(worth[:-1], 0.9 ** (distance[:-1] - 1.0), atol=0.08)


def test_transfer():
    found = run("transfer")
    assert found["transferred"] > found["from_scratch"] + 0.05
    assert found["transferred"] > 0.85
    assert found["before"].tobytes() == found["features"].predict(found["x"][:5]).tobytes()
    assert all(parameter.frozen for parameter in found["features"].parameters())


@pytest.mark.slow
def test_vae():
    found, again = run("vae"), run("vae")
    assert found["history"]["loss"] == again["history"]["loss"]  # the same noise
    assert found["history"]["loss"][-1] < 0.7 * found["history"]["loss"][0]
    images = found["x"][:200]
    logits = found["vae"].forward(images)[:, 16:]
    decoded = 1 / (1 + np.exp(-logits))
    assert np.mean((decoded - images) ** 2) < 0.5 * np.mean((images.mean(axis=0) - images) ** 2)


class Doubling(layers.Drawing):
    """Twice the features and noise of its own, over a layer that drops."""

    def __init__(self):
        super().__init__()
        self.dropout = layers.Dropout(0.5)

    def draw(self, lib, stream, x):
        return lib.to_device(stream.normal(x.shape), dtype="float32")

    def compute(self, x, training):
        x = self.dropout(x)
        return ops.concat((x, x + self.drawn(x) if training else x), axis=1)


def test_a_layer_that_draws_may_change_the_shape_and_hold_others_that_draw():
    layer = Doubling()
    model = xnn.Sequential(layer, layers.Dense(6, 1))
    assert model.output_shape((3,)) == (1,)
    x = np.ones((4, 3), np.float32)
    model.set_stream(0, 7)
    first = layer.forward(x, training=True)
    other = layer.forward(x, training=True)
    model.set_stream(0, 7)
    again = layer.forward(x, training=True)
    assert first.tobytes() == again.tobytes()
    assert (first[:, :3] != other[:, :3]).any()
    assert (first[:, 3:] - first[:, :3] != other[:, 3:] - other[:, :3]).all()
