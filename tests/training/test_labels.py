"""Class labels in every form in which beginners have them: taken as they are, or refused with what to do."""

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers
from xnn.errors import LabelError, ShapeError

X = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
Y = np.arange(60) % 3


def run(y):
    """The weights after two epochs, and what `evaluate` says."""
    model = xnn.Sequential(layers.Dense(4, 3), seed=0)
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
    trainer.fit((X, y), validation=(X, y), epochs=2, progress=False)
    return b"".join(p.value.tobytes() for p in model.parameters()), trainer.evaluate((X, y))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64", "list"])
def test_integers_of_every_size_give_the_same_bits(dtype):
    assert run(Y.tolist() if dtype == "list" else Y.astype(dtype)) == run(Y)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
def test_one_hot_rows_train_as_labels_do(dtype):
    weights, found = run(np.eye(3, dtype=dtype)[Y])
    expected, as_labels = run(Y)
    np.testing.assert_allclose(
        np.frombuffer(weights, "f4"), np.frombuffer(expected, "f4"), rtol=1e-5, atol=1e-6
    )
    assert found["accuracy"] == as_labels["accuracy"]
    assert found["loss"] == pytest.approx(as_labels["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (Y.astype("float32"), LabelError, r"needs integer labels, got float32: labels\.astype\('int64'\)"),
        (Y + 0.5, LabelError, "needs integer labels, got float64"),
        (Y > 1, LabelError, "needs integer labels, got bool"),
        (Y + 1, LabelError, "labels run from 1 to 3, the model has 3 outputs: .* number the classes from 0"),
        (Y - 1, LabelError, "labels run from -1 to 1, the model has 3 outputs"),
        (Y[:, None], ShapeError, r"give it labels of shape \(n,\), or probabilities"),
        (np.array(["a", "b", "c"])[Y], LabelError, r"names, y = numpy\.unique\(names, return_inverse=True\)"),
    ],
)  # fmt: skip
def test_others_are_refused_with_what_to_do(y, error, message):
    with pytest.raises(error, match=message):
        run(y)


@pytest.mark.parametrize(
    "y",
    [
        Y.astype("float32").astype("int64"),
        (Y + 1) - 1,
        Y[:, None].reshape(-1),
        np.unique(np.array(["a", "b", "c"])[Y], return_inverse=True)[1],
    ],
)
def test_what_the_messages_say_works(y):
    assert run(y) == run(Y)
