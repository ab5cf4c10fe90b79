"""What users give as arrays: each is right, or refused by name. Nothing that NumPy makes of it silently gets in."""

from __future__ import annotations

import array
import collections
import datetime

import numpy as np
import pytest

import xnn
from xnn import data, layers, losses, metrics, ops, optimizers
from xnn.backends.host_arrays import as_host_array
from xnn.errors import DTypeError, LabelError, OptionError, ShapeError, XnnError

pytestmark = pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")

X = np.arange(12.0, dtype=np.float32).reshape(4, 3) / 8
Y = np.array([0, 1, 0, 1])


def model():
    return xnn.Sequential(layers.Dense(3, 2), seed=1)


def trainer():
    return xnn.Trainer(model(), losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))


def masked(where):
    """X as a masked array; the values behind the mask are wrong."""
    hidden = np.ma.array(X.copy(), mask=False)
    for place in where:
        hidden.data[place] = -9999
        hidden[place] = np.ma.masked
    return hidden


class Protocol:
    """An array of another library: all that is known of it is `__array__`."""

    def __init__(self, content):
        self.content, self.shape, self.dtype = content, content.shape, content.dtype

    def __array__(self, dtype=None, copy=None):
        return self.content


class Broken:
    """An array that cannot come to the CPU."""

    shape = (4, 3)

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("it is on a device; call .cpu() first")


def scipy_sparse():
    return pytest.importorskip("scipy.sparse").csr_matrix(X)


def frame(**columns):
    """A pandas table of X, with other columns in the place of its own."""
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({f"c{k}": X[:, k] for k in range(3)} | columns)


def torch_tensor(**options):
    torch = pytest.importorskip("torch")
    return torch.tensor(X.tolist(), **options)


RIGHT = {
    "list": X.tolist,
    "tuple of lists": lambda: tuple(X.tolist()),
    "list of arrays": lambda: list(X),
    "deque": lambda: collections.deque(X.tolist()),
    "nothing masked": lambda: masked([]),
    "list of rows with nothing masked": lambda: list(masked([])),
    "matrix": lambda: np.matrix(X),
    "float64": lambda: X.astype(np.float64),
    "float16": lambda: X.astype(np.float16),
    "big-endian": lambda: X.astype(">f4"),
    "Fortran order": lambda: np.asfortranarray(X),
    "backwards": lambda: X[::-1].copy()[::-1],
    "read-only": lambda: np.broadcast_to(X, X.shape),
    "__array__": lambda: Protocol(X),
    "pandas": frame,
    "torch": torch_tensor,
    "nested array.array": lambda: [array.array("d", row) for row in X.tolist()],
}

WRONG = {
    "a masked value": (lambda: masked([(1, 1)]), DTypeError, "1 masked values"),
    "all masked": (lambda: masked([(slice(None), slice(None))]), DTypeError, "12 masked"),
    "list of masked rows": (lambda: list(masked([(2, 0)])), DTypeError, "[Mm]asked"),
    "ragged": (lambda: [[1, 2, 3], [1, 2]], ShapeError, r"row 0 has 3 numbers, row 1 has 2 numbers"),
    "ragged with a number": (lambda: [[1, 2, 3], 4], ShapeError, "row 1 has one number"),
    "ragged deep": (lambda: [[[1, 2], [3]], [[1, 2], [3, 4]]], ShapeError, "different lengths"),
    "objects": (lambda: X.astype(object), DTypeError, "numbers as Python objects"),
    "ragged objects": (lambda: np.array([[1, 2], [3]], dtype=object), DTypeError, r"such as \[1, 2\] at \[0\]"),
    "None in a list": (lambda: [[1, 2, None]] * 4, DTypeError, r"None at \[0, 2\]"),
    "a huge integer": (lambda: [[1, 2, 10**400]] * 4, DTypeError, "Python objects"),
    "complex": (lambda: X * 1j, DTypeError, "complex"),
    "complex list": (lambda: [[1j, 2, 3]] * 4, DTypeError, "complex"),
    "dates": (lambda: np.full((4, 3), "2020-01-01", "M8[D]"), DTypeError, "dates or times"),
    "durations": (lambda: np.ones((4, 3), "m8[s]"), DTypeError, "dates or times"),
    "datetimes": (lambda: [[datetime.date(2020, 1, 1)] * 3] * 4, DTypeError, "Python objects"),
    "records": (lambda: np.zeros(4, [("a", "f4"), ("b", "f4"), ("c", "f4")]), DTypeError, "no numbers"),
    "text": (lambda: X.astype(str), DTypeError, "with numbers|be numbers"),
    "bytes": (lambda: X.astype("S8"), DTypeError, "with numbers|be numbers"),
    "text of any length": (lambda: X.astype(np.dtypes.StringDType()), DTypeError, "with numbers|be numbers"),
    "one text": (lambda: "1,2,3", DTypeError, "must be an array of numbers, got '1,2,3'"),
    "None": (lambda: None, DTypeError, "got None"),
    "set": (lambda: {1, 2, 3}, DTypeError, "must be an array"),
    "dict": (lambda: {"x": X}, DTypeError, "must be an array"),
    "generator": (lambda: (row for row in X), DTypeError, "list"),
    "map": (lambda: map(list, X), DTypeError, "list"),
    "zip": (lambda: zip(X, X, strict=True), DTypeError, "list"),
    "an object": (lambda: object(), DTypeError, "Python objects"),
    "a function": (lambda: len, DTypeError, "Python objects"),
    "on a device": (Broken, DTypeError, r"call \.cpu\(\) first"),
    "sparse": (scipy_sparse, DTypeError, r"sparse matrix \(csr_matrix\): x\.toarray\(\)"),
    "pandas with text": (lambda: frame(c1=list("abcd")), DTypeError, r"'a' at \[0, 1\]|text"),
    "pandas with a gap": (lambda: frame(c1=[1, None, 2, 3]).astype(object), DTypeError, "Python objects"),
    "torch with a gradient": (lambda: torch_tensor(requires_grad=True), DTypeError, "detach"),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_samples_in_every_form_are_the_same_numbers(name):
    """fit, evaluate and predict get the numbers that the plain array has."""
    given = RIGHT[name]()
    assert model().predict(given).tobytes() == model().predict(X).tobytes()
    assert trainer().evaluate((given, Y)) == trainer().evaluate((X, Y))
    ends = []
    for x in (given, X):
        fitted = trainer()
        fitted.fit((x, Y), epochs=2, validation=(x, Y), progress=False)
        ends.append(fitted.model.predict(X).tobytes())
    assert ends[0] == ends[1]


def refused_by(call, error, message=None):
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, XnnError)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", WRONG)
def test_samples_that_are_no_numbers_are_refused(name):
    make, error, message = WRONG[name]
    refused_by(lambda: model().predict(make()), error, message)
    refused_by(lambda: trainer().evaluate((make(), Y)), error, message)
    refused_by(lambda: trainer().fit((make(), Y), progress=False), error, message)
    refused_by(lambda: trainer().fit((X, Y), validation=(make(), Y), progress=False), error, message)


TARGETS = {
    "a masked value": np.ma.array(Y, mask=[0, 1, 0, 0]),
    "ragged": [[0], [1, 1], [0], [1]],
    "objects": Y.astype(object),
    "None in a list": [0, None, 0, 1],
    "complex": Y * 1j,
    "dates": np.zeros(4, "M8[D]"),
    "text": list("abab"),
    "one text": "abab",
    "None": None,
    "set": {0, 1},
    "dict": dict(enumerate(Y)),
    "generator": iter(Y),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_and_weights_that_are_no_numbers_are_refused(name):
    def fresh():
        return iter(Y) if name == "generator" else TARGETS[name]

    wrong = (DTypeError, ShapeError, LabelError)
    refused_by(lambda: trainer().fit((X, fresh()), progress=False), wrong)
    refused_by(lambda: trainer().evaluate((X, fresh())), wrong)
    refused_by(lambda: metrics.Accuracy().update(X[:, :2], fresh()), wrong)
    refused_by(lambda: metrics.Accuracy().update(fresh(), Y), wrong)
    if name != "text":  # batches may hold names
        refused_by(lambda: data.Batches((X, fresh())), (*wrong, OptionError))
    if name != "None":
        refused_by(lambda: trainer().fit((X, Y), sample_weight=fresh(), progress=False), wrong)
        weighted = losses.SoftmaxCrossEntropy()
        refused_by(lambda: weighted(X[:, :2], Y, fresh()), wrong)


def test_targets_in_every_form_are_the_same_classes():
    right = trainer().evaluate((X, Y))
    for targets in (
        Y.tolist(),
        tuple(Y),
        Y.astype(np.uint8),
        Y.astype(">i4"),
        np.ma.array(Y),
        Protocol(Y),
        np.eye(2)[Y],
    ):
        assert trainer().evaluate((X, targets)) == pytest.approx(right)
    weights = np.array([1.0, 0.0, 2.0, 1.0])
    right = trainer().fit((X, Y), sample_weight=weights, progress=False)["loss"]
    for given in (weights.tolist(), weights.astype(">f4"), np.ma.array(weights), Protocol(weights)):
        assert trainer().fit((X, Y), sample_weight=given, progress=False)["loss"] == right


def test_big_endian_integers_reach_a_layer_that_takes_integers():
    pixels = np.arange(12, dtype=np.int16).reshape(4, 3)
    net = xnn.Sequential(layers.Rescale(1 / 255), layers.Dense(3, 2), seed=1)
    assert net.predict(pixels.astype(">i2")).tobytes() == net.predict(pixels).tobytes()
    ends = []
    for x in (pixels, pixels.astype(">i2")):
        net = xnn.Sequential(layers.Rescale(1 / 255), layers.Dense(3, 2), seed=1)
        fitted = xnn.Trainer(net, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
        ends.append(fitted.fit((x, Y), epochs=2, progress=False)["loss"])
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    "name", ["ragged", "None in a list", "complex list", "a huge integer", "list of masked rows"]
)
def test_lists_in_parameters_graphs_and_checks_are_refused(name):
    make, error, _ = WRONG[name]
    dense = layers.Dense(3, 4)
    for call in (
        lambda: setattr(dense.weight, "value", make()),
        lambda: xnn.grad(ops.sum)(make()),
        lambda: xnn.graph.Input(make()),
        lambda: xnn.gradient_check(ops.sum, make()),
    ):
        refused_by(call, error)


@pytest.mark.parametrize("make", [lambda: masked([(1, 1)]), lambda: masked([]), lambda: np.matrix(X)])
def test_ops_refuse_masked_arrays_and_matrices(make):
    """In them a number may be missing, and * is another product."""
    for call in (
        lambda: ops.exp(make()),
        lambda: ops.maximum(X, make()),
        lambda: layers.Dense(3, 2)(make()),
        lambda: losses.MSE()(make(), X),
        lambda: xnn.grad(ops.sum)(make()),
    ):
        refused_by(call, DTypeError, "numpy")


def test_a_parameter_takes_what_predict_takes():
    dense = layers.Dense(4, 3)
    for make in (value for name, value in RIGHT.items() if name not in ("pandas", "torch")):
        dense.weight.value = np.zeros((4, 3))
        dense.weight.value = make()
        np.testing.assert_array_equal(dense.weight.value, X)
    refused_by(lambda: setattr(dense.weight, "value", masked([(0, 0)])), DTypeError, "masked")
    refused_by(lambda: setattr(dense.weight, "value", X * 1j), DTypeError, "complex")
    refused_by(lambda: setattr(dense.weight, "value", X.astype(str)), DTypeError, "text")
    np.testing.assert_array_equal(dense.weight.value, X)


def test_arrays_of_a_device_stay_where_they_are(lib):
    given = lib.to_device(X)
    assert as_host_array(given, "x") is given or lib.is_host


@pytest.mark.parametrize("arrays", [(1, 2), (X, 3.0), (X, Y[:3]), ()])
def test_batches_need_rows(arrays):
    refused_by(lambda: data.Batches(arrays), ShapeError, "rows")
