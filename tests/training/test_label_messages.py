"""Messages about labels, class weights, dtypes and devices say what to write, and what they say works."""

from __future__ import annotations

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.errors import DTypeError, OptionError, ShapeError, UnknownBackendError

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = np.arange(40) % 2


def fit(y, outputs=2, loss=None, x=X):
    model = xnn.Sequential(layers.Dense(3, outputs), seed=0)
    trainer = xnn.Trainer(model, loss or losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
    return trainer.fit((x, y), epochs=1, progress=False)


@pytest.mark.parametrize("form", [Y, Y.astype(bool), Y.astype(np.int8), list(Y)])
def test_labels_as_objects_are_told_to_become_integers(form):
    y = np.array(list(form), dtype=object)
    with pytest.raises(DTypeError, match=r"y holds integers as Python objects: \.astype\('int64'\)"):
        fit(y)
    assert fit(y.astype("int64")).epochs


@pytest.mark.parametrize("item", [0.5, 2**63, -(2**64)])
def test_other_numbers_as_objects_are_told_to_become_floats(item):
    with pytest.raises(DTypeError, match=r"x holds numbers as Python objects: \.astype\('float32'\)"):
        fit(Y, x=np.array([[1, 2, item]] * 40, dtype=object))


@pytest.mark.parametrize("value", [0, 1, None])
@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_a_column_of_labels_for_one_output_is_for_another_loss(value, dtype):
    y = (Y if value is None else np.full(40, value)).astype(dtype)[:, None]
    with pytest.raises(ShapeError, match=r"outputs \(n, 1\), one class.*BinaryCrossEntropy takes one output"):
        fit(y, outputs=1)
    assert fit(y, outputs=1, loss=losses.BinaryCrossEntropy()).epochs


@pytest.mark.parametrize(
    ("build", "option"),
    [
        (lambda w: losses.SoftmaxCrossEntropy(class_weight=w), "class_weight"),
        (lambda w: losses.BinaryCrossEntropy(pos_weight=w), "pos_weight"),
        (lambda w: ops.softmax_cross_entropy(X, Y, class_weight=w), "class_weight"),
        (lambda w: ops.binary_cross_entropy(X[:, :1], Y[:, None], pos_weight=w), "pos_weight"),
    ],
)
def test_weights_of_other_libraries_are_answered_with_how_to_compute_them(build, option):
    formula = r"len\(y\) / \(classes \* numpy\.bincount\(y\)\)"
    if option == "pos_weight":
        formula = r"\(y == 0\)\.sum\(axis=0\) / \(y == 1\)\.sum\(axis=0\)"
    with pytest.raises(
        OptionError, match=f"{option} must be a .*got 'balanced': balanced weights .* are {formula}"
    ):
        build("balanced")
    with pytest.raises(
        OptionError, match=rf"got {{0: 1.0, 1: 2.0}}: \[{option}\[c\] for c in range\(classes\)\]"
    ):
        build({0: 1.0, 1: 2.0})


def test_the_formulas_of_balanced_weights():
    from xnn.runs.spec import balanced_weights

    y = np.array([0, 0, 0, 1, 2, 2])
    np.testing.assert_allclose(len(y) / (3 * np.bincount(y)), balanced_weights(np.bincount(y)))
    assert (
        len(losses.SoftmaxCrossEntropy(class_weight=len(y) / (3 * np.bincount(y))).options["class_weight"])
        == 3
    )
    columns = (y[:, None] == [1, 2]).astype(int)
    losses.BinaryCrossEntropy(pos_weight=(columns == 0).sum(axis=0) / (columns == 1).sum(axis=0))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuda", "for cuda write 'cupy'"),
        ("cuda:0", "for cuda write 'cupy'"),
        ("GPU", "for gpu write 'cupy'"),
        ("cpu", "for cpu write 'numpy'"),
        ("mps", "array-api-strict$"),
    ],
)
def test_devices_of_other_libraries(name, said):
    for use in (xnn.Sequential(layers.Dense(3, 2), seed=0).to, xnn.use_backend):
        with pytest.raises(UnknownBackendError, match=said):
            use(name)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "float64"])
@pytest.mark.parametrize("layer", [layers.Dense(3, 2), layers.LayerNorm(3), layers.Conv2D(1, 1, 1)])
def test_numbers_of_another_dtype_are_told_to_be_converted(layer, dtype):
    x = np.ones((2, 1, 3, 3) if isinstance(layer, layers.Conv2D) else (2, 3), dtype)
    with pytest.raises(DTypeError, match=r"x\.astype\('float32'\), or") as raised:
        layer(x)
    assert ("dtype='float64'" in str(raised.value)) is (dtype == "float64")
    assert ("Rescale" in str(raised.value)) is (dtype != "float64")
    assert layer(x.astype("float32")) is not None
