"""A warning where samples are badly scaled: pixels as bytes into the first weights, or data that are scaled twice."""

import warnings

import numpy as np
import pytest
from command_line import run

import xnn
from xnn import layers, losses, optimizers
from xnn.errors import ScaleWarning
from xnn.layers import Dense, Rescale, Sequential

pytestmark = pytest.mark.filterwarnings("error::xnn.errors.ScaleWarning")

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 16)).astype(np.uint8)
ONES = PIXELS / np.float32(255)
TABLE = np.column_stack([RNG.integers(18, 80, 40), RNG.normal(size=40), RNG.normal(2000, 10, 40)])
NORMAL = RNG.normal(size=(40, 16)).astype("float32")


def fit(model, x, **options):
    shape = model.output_shape(x.shape[1:])
    loss = losses.L1()
    trainer = xnn.Trainer(model, loss, optimizers.SGD(1e-6))
    return trainer.fit((x, np.zeros((len(x), *shape))), progress=False, **options)


def warned(model, x):
    """The messages of a fit."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, x)
    assert all(found.category is ScaleWarning for found in caught)
    return [str(found.message) for found in caught]


def convolutions(*first):
    return Sequential(
        layers.Reshape((1, 4, 4)), *first, layers.Conv2D(1, 2, 3), layers.Flatten(), Dense(8, 1)
    )


LARGE = {
    "bytes": (lambda: Sequential(Dense(16, 1)), PIXELS),
    "float pixels": (lambda: Sequential(Dense(16, 1)), PIXELS.astype("float32")),
    "float64 pixels": (lambda: Sequential(Dense(16, 1, dtype="float64")), PIXELS.astype("float64")),
    "integers": (lambda: Sequential(Dense(16, 1)), PIXELS.astype(np.int64)),
    "sixteen bits": (lambda: Sequential(Dense(16, 1)), PIXELS.astype(np.uint16) * 257),
    "images": (convolutions, PIXELS),
    "not flat": (lambda: Sequential(layers.Flatten(), Dense(16, 1)), PIXELS.reshape(-1, 4, 4)),
    "a Rescale by one": (lambda: Sequential(Rescale(1.0), Dense(16, 1)), PIXELS),
    "nested": (lambda: Sequential(Sequential(layers.Dropout(0.1), Sequential(Dense(16, 1)))), PIXELS),
    "a table": (lambda: Sequential(Dense(3, 1)), TABLE),
    "a list": (lambda: Sequential(Dense(1, 1)), np.arange(100.0)[:, None]),
    "normalized too late": (
        lambda: Sequential(Dense(16, 4), layers.ReLU(), layers.LayerNorm(4), Dense(4, 1)),
        PIXELS,
    ),
}
TWICE = {
    "standardized twice": (lambda: Sequential(Rescale(1 / 60, shift=120.0), Dense(16, 1)), ONES),
    "pixels": (lambda: Sequential(Rescale(1 / 255), Dense(16, 1)), ONES),
    "twice in the model": (
        lambda: Sequential(Rescale(1 / 255), Rescale(1 / 255), Dense(16, 1)),
        PIXELS // 26,
    ),
    "binary bytes": (lambda: Sequential(Rescale(1 / 255), Dense(16, 1)), PIXELS // 128),
    "standardized": (lambda: Sequential(Rescale(1 / 255), Dense(16, 1)), NORMAL),
    "with an offset": (lambda: Sequential(Rescale(1 / 127.5, -1.0), Dense(16, 1)), ONES),
    "for each column": (
        lambda: Sequential(Rescale(np.full(16, 1 / 300), np.full(16, -6.0)), Dense(16, 1)),
        NORMAL,
    ),
    "images": (lambda: convolutions(Rescale(1 / 255)), ONES),
}
STAMPS = 1.7e9 + 60.0 * RNG.normal(size=(40, 3))
WELL = {
    "times": (lambda: Sequential(xnn.data.standardize(STAMPS), Dense(3, 1)), STAMPS),
    "a shift for each pixel": (
        lambda: convolutions(Rescale(np.full((1, 4, 4), 1 / 60), shift=np.full((1, 4, 4), 120.0))),
        PIXELS,
    ),
    "a number for each value behind a pooling layer": (
        lambda: Sequential(
            layers.Reshape((1, 4, 4)), layers.MaxPool2D(2), layers.Flatten(), Rescale([1 / 255] * 4), Dense(4, 1)
        ),
        PIXELS,
    ),
    "images, and a number for each pixel behind Flatten": (
        lambda: Sequential(layers.Flatten(), Rescale(np.full(16, 1 / 255)), Dense(16, 1)),
        PIXELS.reshape(-1, 1, 4, 4),
    ),
    "rescaled bytes": (lambda: Sequential(Rescale(1 / 255), Dense(16, 1)), PIXELS),
    "to minus one": (lambda: Sequential(Rescale(1 / 127.5, -1.0), Dense(16, 1)), PIXELS),
    "dark bytes": (lambda: Sequential(Rescale(1 / 255), Dense(16, 1)), PIXELS // 12),
    "scaled pixels": (lambda: Sequential(Dense(16, 1)), ONES),
    "digits of 16 greys": (lambda: Sequential(Dense(16, 1)), PIXELS // 15),
    "standard normal": (lambda: Sequential(Dense(16, 1)), NORMAL),
    "small numbers": (lambda: Sequential(Dense(16, 1)), NORMAL * np.float32(1e-3)),
    "one hot": (lambda: Sequential(Dense(40, 1)), np.eye(40, dtype="float32")),
    "constant": (lambda: Sequential(Rescale(1 / 255), Dense(16, 1)), np.ones((40, 16))),
    "one damaged sample": (lambda: Sequential(Dense(16, 1)), np.vstack([NORMAL, NORMAL[:1] * 1e6])),
    "BatchNorm first": (lambda: Sequential(layers.BatchNorm(16), Dense(16, 1)), PIXELS),
    "LayerNorm first": (lambda: Sequential(layers.LayerNorm(16), Dense(16, 1)), PIXELS),
    "BatchNorm after": (lambda: Sequential(Dense(16, 4), layers.BatchNorm(4), Dense(4, 1)), PIXELS),
    "standardized by the model": (
        lambda: Sequential(Rescale(1 / TABLE.std(0), -TABLE.mean(0) / TABLE.std(0)), Dense(3, 1)),
        TABLE,
    ),
    "an Embedding": (lambda: Sequential(layers.Embedding(256, 2), layers.Flatten(), Dense(32, 1)), PIXELS),
    "a layer of one's own": (
        lambda: Sequential(layers.Lambda(lambda x: x / 255.0), Dense(16, 1)),
        PIXELS.astype("float32"),
    ),
    "no weights of a product": (lambda: Sequential(layers.LayerNorm(16)), PIXELS),
}  # fmt: skip


@pytest.mark.parametrize("case", LARGE)
def test_large_numbers(case):
    make, x = LARGE[case]
    (message,) = warned(make(), x)
    assert f"training samples ({len(x)} were looked at) run from {x.min():.6g} to {x.max():.6g}" in message
    pixels = x.max() <= 255 and x.min() >= 0 and (x == np.round(x)).all()
    assert ("layers.Rescale(1 / 255) if they are pixels" in message) == pixels
    assert "standardize the columns of a table" in message


@pytest.mark.parametrize("case", TWICE)
def test_scaled_twice(case):
    make, x = TWICE[case]
    (message,) = warned(make(), x)
    assert "so that they are scaled already" in message
    assert "remove the Rescale" in message


@pytest.mark.parametrize("case", WELL)
def test_no_false_alarm(case):
    make, x = WELL[case]
    assert warned(make(), x) == []


def test_weights_that_do_not_learn_are_as_they_are():
    model = Sequential(Dense(16, 4), Dense(4, 1))
    model[0].weight.frozen = True
    assert warned(model, PIXELS) == []


def test_once_for_each_model_and_only_in_training():
    model = Sequential(Dense(16, 1), seed=0)
    assert len(warned(model, PIXELS)) == 1
    assert warned(model, PIXELS) == []
    other = Sequential(Dense(16, 1), seed=0)
    trainer = xnn.Trainer(other, losses.MSE(), optimizers.SGD(0.1))
    trainer.evaluate((PIXELS, PIXELS[:, :1]))
    other.predict(PIXELS)
    assert len(warned(other, PIXELS)) == 1


def test_it_names_the_line_that_called_fit():
    trainer = xnn.Trainer(Sequential(Dense(16, 1)), losses.MSE(), optimizers.SGD(1e-6))
    with pytest.warns(ScaleWarning) as caught:
        trainer.fit((PIXELS, PIXELS[:, :1]), progress=False)
    assert caught[0].filename == __file__


def test_it_can_be_turned_off():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=xnn.errors.ScaleWarning)
        fit(Sequential(Dense(16, 1)), PIXELS)


def test_wrong_data_are_refused_without_a_word_about_their_scale():
    with pytest.raises(xnn.errors.ShapeError):
        xnn.Trainer(Sequential(Dense(16, 1)), losses.MSE(), optimizers.SGD(0.1)).fit((PIXELS, PIXELS[:3]))


def test_the_command_says_it_in_a_line_of_its_own(monkeypatch, tmp_path):
    (tmp_path / "network.toml").write_text(
        '[[layers]]\ntype = "Rescale"\nscale = 1.0\n[[layers]]\ntype = "Dense"\noutputs = "classes"\n'
    )
    monkeypatch.setattr("xnn.data.datasets._SYNTHETIC", (600, 100, 100))
    words = ("--dataset", "synthetic", "--lr", "1e-5", "--model", tmp_path / "network.toml", "--epochs", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("default", ScaleWarning)
        result = run("train", *words)
    assert result.exit_code == 0, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("xnn: training samples (86 were looked at) run from 0 to 25")
    assert "warning" not in result.stderr.lower()


def test_data_on_another_backend():
    with xnn.backend("array-api-strict") as lib:
        model = Sequential(Dense(16, 1))
        trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(1e-6))
        x = lib.to_device(PIXELS.astype("float32"))
        with pytest.warns(ScaleWarning, match="from 0 to 255"):
            trainer.fit((x, ONES[:, :1]), progress=False)


def test_only_some_samples_are_looked_at(monkeypatch):
    """So that it costs nothing to speak of, however many samples there are."""
    from xnn.training import scale

    seen = []
    real = scale._some
    monkeypatch.setattr(scale, "_some", lambda x: seen.append(real(x)) or seen[-1])
    for rows in (1, 255, 256, 1000, 100_000):
        fit(Sequential(Dense(1, 1)), np.linspace(-1, 1, rows)[:, None].astype("float32"), batch_size=1024)
    assert all(1 <= len(part) < 512 for part in seen)
    assert [len(part) for part in seen[:3]] == [1, 255, 256]
    assert seen[-1].min() == -1.0
    assert seen[-1].max() > 0.99
