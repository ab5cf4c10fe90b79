"""Weights of Keras files in models of xnn. What needs no Keras is tested with files made by hand."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from xnn import exchange, layers
from xnn.errors import (
    CorruptFileError,
    DataNotFoundError,
    DTypeError,
    MissingExtraError,
    OptionError,
    ShapeError,
)
from xnn.layers import Sequential

h5py = pytest.importorskip("h5py", reason="the package h5py is not installed")
RANDOM = np.random.default_rng(1)


def keras_file(path, **groups):
    """A file as Keras 3 writes it: the arrays of each layer; "name" among them is the layer's own name."""
    with h5py.File(path, "w") as file:
        file.create_group("layers/dropout/seed_generator/vars")["0"] = np.array([1, 2], np.uint32)
        file.create_group("optimizer/vars")["0"] = np.array(3)
        for group, arrays in groups.items():
            made = file.create_group(f"layers/{group}/vars")
            made.attrs["name"] = group
            for number, array in enumerate(arrays):
                made[str(number)] = array
    return path


def f32(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def test_each_kind_in_its_order(tmp_path):
    given = [f32(4, 3), f32(3), f32(3, 3), f32(3, 3), f32(3)]
    statistics = [f32(3), f32(3), f32(3), f32(3)]
    file = keras_file(
        tmp_path / "net.weights.h5", batch_normalization=statistics, dense=given[:2], dense_10=given[3:],
        dense_2=given[2:3], layer_normalization=[f32(3), f32(3)],
    )  # fmt: skip
    model = Sequential(
        layers.Dense(4, 3), layers.ReLU(), Sequential(layers.Dense(3, 3, bias=False), layers.LayerNorm(3)),
        layers.Dense(3, 3), layers.BatchNorm(3), seed=0,
    )  # fmt: skip
    assert exchange.from_keras(file, model) is model
    norm = model[4]
    first, second, third = model[0], model[2].layers[0], model[3]
    pairs = [
        *zip((first.weight, first.bias, second.weight, third.weight, third.bias), given, strict=True),
        *zip((norm.weight, norm.bias, norm.running_mean, norm.running_var), statistics, strict=True),
    ]
    assert all(np.array_equal(ours.value, theirs) for ours, theirs in pairs)


def test_channels_last_become_channels_first(tmp_path):
    """A Dense that computes the mean of the last channel, behind a convolution that keeps pixels as they are."""
    kernel = np.zeros((1, 1, 2, 2), np.float32)
    kernel[0, 0] = [[1, 0], [0, 10]]
    weight = np.zeros((2, 3, 2), np.float32)  # rows, columns, channels
    weight[0, 2, 1], weight[1, 0, 0] = 1.0, 100.0
    file = keras_file(tmp_path / "net.weights.h5", conv2d=[kernel], dense=[weight.reshape(12, 1)])
    model = Sequential(layers.Conv2D(2, 2, 1, bias=False), layers.Flatten(), layers.Dense(12, 1, bias=False))
    x = RANDOM.normal(size=(4, 2, 2, 3)).astype(np.float32)
    y = exchange.from_keras(file, model, input_shape=(2, 2, 3)).predict(x)
    np.testing.assert_allclose(y[:, 0], 10 * x[:, 1, 0, 2] + 100 * x[:, 0, 1, 0], rtol=1e-5)


def test_the_numbers_behind_a_flatten_have_keras_order(tmp_path):
    """Of the inputs alone, in each branch, and behind a Reshape that flattens as well."""
    x = f32(5, 2, 3, 4)
    rows = np.moveaxis(x, 1, -1).reshape(5, 24)  # as Keras flattens them
    square, few, many = [f32(24, 24), f32(24)], [f32(24, 2), f32(2)], [f32(48, 2), f32(2)]
    dense = {len(weight): weight @ rows.T for weight in (few[0].T, square[0].T)}
    cases = (
        ([layers.Flatten(), layers.Dense(24, 24)], [square], dense[24].T + square[1]),
        ([layers.Reshape((24,)), layers.Dense(24, 2)], [few], dense[2].T + few[1]),
        (
            [layers.Flatten(), layers.Add(layers.Dense(24, 2), layers.Dense(24, 2))],
            [few, few],
            2 * (dense[2].T + few[1]),
        ),
        (
            [layers.Parallel(Sequential(layers.Flatten()), layers.Flatten()), layers.Dense(48, 2)],
            [many],
            np.concatenate([rows, rows], axis=1) @ many[0] + many[1],
        ),
    )
    for network, arrays, right in cases:
        groups = {f"dense_{number}": each for number, each in enumerate(arrays)}
        file = keras_file(tmp_path / "net.weights.h5", **groups)
        model = exchange.from_keras(file, Sequential(*network), input_shape=(2, 3, 4))
        np.testing.assert_allclose(model.predict(x), right, rtol=1e-4, atol=1e-4)


def test_what_has_another_order_in_keras_is_refused(tmp_path):
    file = keras_file(tmp_path / "net.weights.h5", dense=[f32(24, 24), f32(24)])
    residual = Sequential(layers.Flatten(), layers.Add(layers.Identity(), layers.Dense(24, 24)))
    images = Sequential(layers.Dense(24, 24), layers.Reshape((2, 3, 4)))
    for model, shape in ((residual, (2, 3, 4)), (images, (24,))):
        with pytest.raises(OptionError, match=r"layer 1, .* in another order in Keras"):
            exchange.from_keras(file, model, input_shape=shape)


def test_names(tmp_path):
    file = keras_file(tmp_path / "net.weights.h5", dense=[f32(3, 3)], dense_1=[f32(3, 3)])
    model = Sequential(layers.Dense(3, 3, bias=False), layers.Dense(3, 3, bias=False))
    exchange.from_keras(file, model, {"dense": "1", "dense_1": "0"})
    back = model[0].weight.value
    exchange.from_keras(file, model)
    assert np.array_equal(model[1].weight.value, back)
    for names in ({"dense": "0"}, {"dense": "0", "dense_1": "0"}, {"dense": "0", "other": "1"}):
        with pytest.raises(OptionError, match="its position once"):
            exchange.from_keras(file, model, names)


def test_what_does_not_fit_leaves_the_model_as_it_was(tmp_path):
    model = Sequential(layers.Dense(4, 3), layers.Dense(3, 2), seed=1)
    before = [array.value.copy() for array in model.parameters()]
    first, path = [f32(4, 3), f32(3)], tmp_path / "net.weights.h5"
    wrong = {
        "do not belong together": (OptionError, {"dense": first}),
        r"has arrays of shapes \[\(3, 3\)": (ShapeError, {"dense": first, "dense_1": [f32(3, 3), f32(3)]}),
        r"lstm": (OptionError, {"dense": first, "dense_1": [f32(3, 2), f32(2)], "lstm": [f32(2)]}),
        "float32 that are no finite": (
            DTypeError,
            {"dense": first, "dense_1": [np.full((3, 2), 1e300), f32(2)]},
        ),
        "no finite floats": (DTypeError, {"dense": first, "dense_1": [f32(3, 2) * np.nan, f32(2)]}),
    }
    for said, (error, groups) in wrong.items():
        with pytest.raises(error, match=said):
            exchange.from_keras(keras_file(path, **groups), model)
    assert all(np.array_equal(a.value, b) for a, b in zip(model.parameters(), before, strict=True))


def test_damaged_files_are_refused(tmp_path):
    good = keras_file(tmp_path / "net.weights.h5", dense=[f32(4, 3), f32(3)]).read_bytes()
    random, refused = np.random.default_rng(5), 0
    for _ in range(60):
        bad = bytearray(good)
        for place in random.integers(0, len(bad), 4):
            bad[place] = random.integers(256)
        (tmp_path / "net.weights.h5").write_bytes(bad)
        try:
            exchange.from_keras(tmp_path / "net.weights.h5", Sequential(layers.Dense(4, 3)))
        except (CorruptFileError, OptionError, ShapeError, DTypeError):
            refused += 1
    assert refused


def test_wrong_calls_and_files(tmp_path, monkeypatch):
    model = Sequential(layers.Dense(4, 3))
    with pytest.raises(DataNotFoundError):
        exchange.from_keras(tmp_path / "no.keras", model)
    (tmp_path / "net.keras").write_bytes(b"nothing")
    with pytest.raises(CorruptFileError, match="is not a file of weights of Keras 3"):
        exchange.from_keras(tmp_path / "net.keras", model)
    with pytest.raises(OptionError, match="needs input_shape"):
        exchange.from_keras(tmp_path / "net.keras", Sequential(layers.Conv2D(1, 1, 1)))
    keras_file(tmp_path / "net.keras", dense=[f32(4, 3), f32(3)])
    with pytest.raises(OptionError, match="names must be a dict"):
        exchange.from_keras(tmp_path / "net.keras", model, ["dense"])
    with pytest.raises(OptionError, match="into a Sequential"):
        exchange.from_keras(tmp_path / "net.keras", model[0])
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[keras\]"'):
        exchange.from_keras(tmp_path / "net.keras", model)


# Keras itself, in a process of its own: it chooses its backend when it is imported.

NETWORKS = """
import json, sys
import numpy as np
import keras
from keras import layers

folder = sys.argv[1]
images = keras.Sequential([
    keras.Input((8, 7, 2)), layers.Conv2D(4, 3, activation="relu", name="first"), layers.BatchNormalization(),
    layers.Conv2D(3, 3, padding="same"), layers.MaxPooling2D(), layers.Dropout(0.1), layers.Flatten(),
    layers.BatchNormalization(), layers.Dense(5, activation="gelu", name="head"), layers.Dense(3, use_bias=False),
])
words = keras.Sequential([
    keras.Input((6,), dtype="int32"), layers.Embedding(9, 4), layers.LayerNormalization(epsilon=1e-3),
    layers.Flatten(), layers.Dense(3),
])
random = np.random.default_rng(0)
samples = {"images": random.normal(size=(5, 8, 7, 2)).astype("float32"), "words": random.integers(0, 9, (5, 6))}
for name, network in {"images": images, "words": words}.items():
    for variable in network.weights:
        shape, least = variable.shape, 0.5 if "variance" in variable.path else -1.0
        if "seed" not in variable.path:
            variable.assign(random.uniform(least, 1.0, shape))
    network.save_weights(f"{folder}/{name}.weights.h5")
    network.save(f"{folder}/{name}.keras")
    np.savez(f"{folder}/{name}.npz", x=samples[name], y=np.asarray(network(samples[name], training=False)))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    if importlib.util.find_spec("keras") is None:
        pytest.skip("Keras is not installed: .ci/full installs it")
    folder = tmp_path_factory.mktemp("keras")
    done = subprocess.run(
        [sys.executable, "-c", NETWORKS, str(folder)], env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
def test_networks_of_keras(saved, ending):
    images = Sequential(
        layers.Conv2D(2, 4, 3), layers.ReLU(), layers.BatchNorm(4, epsilon=1e-3, momentum=0.01),
        layers.Conv2D(4, 3, 3, padding="same"), layers.MaxPool2D(2), layers.Dropout(0.1), layers.Flatten(),
        layers.BatchNorm(18, epsilon=1e-3), layers.Dense(18, 5), layers.GELU(),
        layers.Dense(5, 3, bias=False), seed=0,
    )  # fmt: skip
    words = Sequential(
        layers.Embedding(9, 4),
        layers.LayerNorm(4, epsilon=1e-3),
        layers.Flatten(),
        layers.Dense(24, 3),
        seed=0,
    )
    for name, model, shape in (("images", images, (2, 8, 7)), ("words", words, (6,))):
        arrays = np.load(saved / f"{name}.npz")
        x = np.moveaxis(arrays["x"], -1, 1) if name == "images" else arrays["x"]
        exchange.from_keras(saved / f"{name}{ending}", model, input_shape=shape)
        np.testing.assert_allclose(model.predict(x), arrays["y"], rtol=1e-4, atol=1e-4)
