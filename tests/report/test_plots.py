"""Plots by matplotlib: the numbers that they draw, the files, and what is refused."""

import numpy as np
import pytest

import xnn
from xnn import layers
from xnn.errors import OptionError, ShapeError
from xnn.report import plot_confusion, plot_samples, plot_weights

pytest.importorskip("matplotlib")

X = np.random.default_rng(0).integers(0, 256, (30, 16)).astype(np.uint8)
Y = np.arange(30) % 3
MODEL = xnn.Sequential(layers.Rescale(1 / 255), layers.Dense(16, 3), seed=0)


def test_the_confusion_matrix_has_the_counts():
    axes = plot_confusion(MODEL, X, Y, names=["a", "b", "c"]).axes[0]
    said = MODEL.predict_classes(X)
    drawn = {tuple(map(int, text.get_position())): int(text.get_text()) for text in axes.texts}
    assert drawn == {
        (p, t): n for t in range(3) for p in range(3) if (n := int(((t == Y) & (said == p)).sum()))
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]


def test_weights_and_samples_are_drawn_as_images():
    tiles = [axes.images[0].get_array() for axes in plot_weights(MODEL).axes if axes.images]
    np.testing.assert_array_equal(tiles, MODEL[1].weight.value.T.reshape(3, 4, 4))
    conv = xnn.Sequential(layers.Conv2D(1, 5, 3), seed=0)
    assert sum(bool(axes.images) for axes in plot_weights(conv).axes) == 5
    axes = plot_samples(X, [f"row {n}" for n in range(30)], most=7).axes
    assert [one.get_title() for one in axes] == [f"row {n}" for n in range(7)]
    np.testing.assert_array_equal(axes[6].images[0].get_array(), X[6].reshape(4, 4))


def test_files_and_refusals(tmp_path):
    assert plot_samples(X[:2], path=tmp_path / "a.png") is None
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert plot_weights(MODEL, tmp_path / "b.svg") is None
    assert b"<svg" in (tmp_path / "b.svg").read_bytes()
    with pytest.raises(OptionError, match=r"must end in \.png or \.svg"):
        plot_confusion(MODEL, X, Y, tmp_path / "a.pdf")
    with pytest.raises(OptionError, match="3 classes"):
        plot_confusion(MODEL, X, Y, names=["a"])
    with pytest.raises(OptionError, match="a matrix or filters"):
        plot_weights(xnn.Sequential(layers.ReLU()))
    with pytest.raises(ShapeError, match="needs images"):
        plot_samples(np.zeros((3, 7)))
    with pytest.raises(OptionError, match="titles"):
        plot_samples(X, ["a"])
