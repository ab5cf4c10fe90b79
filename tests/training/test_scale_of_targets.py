"""Warnings of targets far from unit size, and of samples in another scale than those that a model was trained on."""

import warnings

import numpy as np
import pytest
from naming import plain

import xnn
from xnn import data, layers, losses, ops, optimizers
from xnn.errors import ScaleWarning
from xnn.layers import Dense, Rescale, Sequential

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype(np.float32)
Y = 2.0 * X[:, :1] + 1.0
RAW = RNG.integers(0, 256, (64, 4))


def caught(run):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run()
    assert all(one.category is ScaleWarning and one.filename == __file__ for one in found)
    return [str(one.message) for one in found]


def trainer(loss=None, *around):
    before, after = around or ((), ())
    model = Sequential(*before, Dense(4, 1), *after, seed=0)
    return xnn.Trainer(model, loss or losses.MSE(), optimizers.SGD(0.0))


def squared(o, t):
    return ops.mean((o - t) ** 2.0)


FAR = {"dollars": Y * 1e5 + 6e5, "small": Y * 1e-4, "one column of two": np.column_stack([Y, Y * 1e6])}


@pytest.mark.parametrize("loss", [losses.MSE(), losses.L1(), losses.Huber(), squared], ids=plain)
@pytest.mark.parametrize("y", FAR.values(), ids=FAR)
def test_targets_far_from_unit_size_are_said_once(y, loss):
    t = xnn.Trainer(Sequential(Dense(4, y.shape[1]), seed=0), loss, optimizers.SGD(0.0))
    (message,) = caught(lambda: t.fit((X, y), progress=False))
    size = np.sqrt(np.mean(y.astype(float)[:, -1] ** 2))
    assert f"training targets (typically {size:.3g}) are far from unit size" in message
    assert "data.standardize(y)" in message
    assert caught(lambda: t.fit((X, y), progress=False)) == []


@pytest.mark.parametrize("y", FAR.values(), ids=FAR)
def test_the_advice_of_a_data_set_is_given_for_the_same_targets(y):
    size = np.sqrt(np.mean(y.astype(float)[:, -1] ** 2))
    whole = data.Dataset("mine", X, y, X, y, X, y, task="regression")
    assert f"far from unit size (typically {size:.3g})" in whole.advice


QUIET = {
    "unit size": lambda: trainer().fit((X, Y), progress=False),
    "medium size": lambda: trainer().fit((X, Y * 5), progress=False),
    "zeros": lambda: trainer().fit((X, Y * 0), progress=False),
    "a last Rescale": lambda: trainer(None, (), (Rescale(1e5),)).fit((X, FAR["dollars"]), progress=False),
    "evaluation": lambda: trainer().evaluate((X, FAR["dollars"])),
    "probabilities": lambda: trainer(losses.BinaryCrossEntropy()).fit((X, Y * 0 + 1e-4), progress=False),
    "labels of a function": lambda: xnn.Trainer(
        Sequential(Dense(4, 500), seed=0), lambda o, t: ops.softmax_cross_entropy(o, t), optimizers.SGD(0.0)
    ).fit((X, np.arange(64) + 400), progress=False),
    "validation in the same scale": lambda: trainer().fit((X, Y), (X * 10, Y), progress=False),
    "few samples": lambda: trainer().fit((X, Y), (X[:5] * 1e-3, Y[:5]), progress=False),
    "one as large": lambda: trainer().fit(
        (X, Y), (np.vstack([X[:63] * 0.01, X[:1] * 0 + 9]), Y), progress=False
    ),
    "zeros in validation": lambda: trainer().fit((X, Y), (X * 0, Y), progress=False),
    "word numbers": lambda: xnn.Trainer(
        Sequential(layers.Embedding(2000, 4), layers.Flatten(), Dense(8, 1), seed=0),
        losses.MSE(),
        optimizers.SGD(0.0),
    ).fit((RAW[:, :2] + 900, Y), (RAW[:, :2] // 40, Y), progress=False),
    "an evaluation without a fit": lambda: trainer().evaluate((RAW, Y)),
}


@pytest.mark.parametrize("name", QUIET)
def test_no_false_alarm(name):
    assert caught(QUIET[name]) == []


def warned_in_fit(t, x, other):
    return caught(lambda: t.fit((x, Y), (other, Y), progress=False))


def warned_in_evaluate(t, x, other):
    t.fit((x, Y), progress=False)
    found = caught(lambda: t.evaluate((other, Y)))
    assert caught(lambda: t.evaluate((other, Y))) == []
    return found


@pytest.mark.parametrize("way", [warned_in_fit, warned_in_evaluate])
@pytest.mark.parametrize("pair", ["raw, then scaled", "scaled, then raw", "standardized twice"])
def test_samples_in_another_scale_than_those_of_training(pair, way):
    first = ()
    if pair == "raw, then scaled":
        x, other, first = RAW, RAW / 255, (Rescale(1 / 255),)
    elif pair == "scaled, then raw":
        x, other = RAW / 255, RAW
    else:
        x, first = X * 300 + 2000, (data.standardize(X * 300 + 2000),)
        other = first[0](x)
    (message,) = way(trainer(None, first, ()), x, other)
    assert "samples (64 were looked at) have a root mean square of" in message
    assert "give the model all samples in the scale that it was trained on" in message
