"""What xnn.sklearn's estimators take: arrays, tables, sparse matrices; and the dtype of what they give."""

import re

import numpy as np
import pytest

pytest.importorskip("sklearn")

import scipy.sparse
import sklearn
from sklearn import neural_network
from sklearn.datasets import load_digits

import xnn
from xnn.errors import MixedArraysError
from xnn.sklearn import MLPClassifier, MLPRegressor
from xnn.sklearn.inputs import SparseRows

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

NEWEST = tuple(map(int, sklearn.__version__.split(".")[:2]))
X, LABELS = load_digits(return_X_y=True)
X, LABELS = X[:300] / 16.0, LABELS[:300]


def fitted(samples, kind=MLPClassifier, targets=LABELS, **options):
    return kind(**{"max_iter": 3, "random_state": 0, "hidden_layer_sizes": 9} | options).fit(samples, targets)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
@pytest.mark.parametrize("container", ["array", "matrix"])
@pytest.mark.parametrize(
    "options", [{}, {"solver": "lbfgs"}, {"early_stopping": True}, {"batch_size": 7}], ids=str
)
def test_sparse_samples_give_the_numbers_of_dense_ones(form, container, options):
    sparse = getattr(scipy.sparse, f"{form}_{container}")(X)
    dense, other = fitted(X, **options), fitted(sparse, **options)
    np.testing.assert_allclose(other.predict_proba(sparse), dense.predict_proba(X), rtol=1e-6)
    many = scipy.sparse.vstack([sparse] * 10, format="csr")  # too many for scikit-learn's forward pass
    big = fitted(many, targets=np.tile(LABELS, 10), hidden_layer_sizes=100, max_iter=1)
    np.testing.assert_allclose(
        big.predict_proba(many)[:300], big.predict_proba(np.tile(X, (10, 1)))[:300], rtol=1e-6
    )


def test_only_the_rows_of_a_batch_become_dense(monkeypatch):
    wide = scipy.sparse.random(1000, 500, density=0.01, format="csr", random_state=0)
    most = []

    def counted(self, rows, original=SparseRows.take):
        most.append(len(rows))
        return original(self, rows)

    monkeypatch.setattr(SparseRows, "take", counted)
    fitted(wide, targets=np.arange(1000) % 3, batch_size=50)
    # 50 rows of 500 numbers are 0.2 MB, and about 4 MB are read ahead at a time.
    assert sum(most) >= 3 * 1000
    dense = 1000 * 500 * 8
    assert max(most) * 500 * 8 <= max(2**22, dense // 4)


@pytest.mark.parametrize("given", ["float32", "float64", "float16", "longdouble", "int64", "uint8", "bool"])
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_weights_and_predictions_have_the_dtype_of_the_samples(kind, given):
    samples = (X * 16).astype(given)
    estimator = fitted(samples, kind)
    wanted = given if given in ("float32", "float64") else "float64"
    assert {a.dtype.name for a in (*estimator.coefs_, *estimator.intercepts_)} == {wanted}
    outputs = estimator.predict(samples) if kind is MLPRegressor else estimator.predict_proba(samples)
    assert outputs.dtype == wanted
    if kind is MLPClassifier:
        two = fitted(samples, targets=LABELS % 2)
        assert {two.predict_proba(samples).dtype, two.predict_log_proba(samples).dtype} == {outputs.dtype}
        assert estimator.predict(samples).dtype == two.predict(samples).dtype == LABELS.dtype
    assert estimator.model_.dtype == wanted


def test_many_samples_are_trained_on_in_float32_unless_asked_otherwise():
    many = np.tile(X, (60, 1))  # more than a million numbers
    targets = np.tile(LABELS, 60)
    names = {
        dtype: fitted(many, targets=targets, max_iter=1, dtype=dtype)
        for dtype in (None, "float32", "float64")
    }
    assert {dtype: e.model_.dtype for dtype, e in names.items()} == {
        None: "float32",
        "float32": "float32",
        "float64": "float64",
    }
    assert {e.coefs_[0].dtype.name for e in names.values()} == {"float64"}
    assert {e.predict_proba(many).dtype.name for e in names.values()} == {"float64"}
    np.testing.assert_allclose(names[None].loss_, names["float64"].loss_, rtol=1e-4)
    assert fitted(X, dtype="float32").model_.dtype == "float32"
    assert fitted(many, targets=targets, max_iter=1, solver="lbfgs").model_.dtype == "float64"


@pytest.mark.parametrize("given", ["float32", "float64"])
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_many_samples_with_nan_or_infinity_are_refused_as_by_scikit_learn(kind, given):
    """They are checked batch by batch, and not all of them before the first."""
    estimator = fitted(X.astype(given), kind, dtype="float32")
    theirs = getattr(neural_network, kind.__name__)(max_iter=1).fit(X.astype(given), LABELS)
    many = np.tile(X, (60, 1)).astype(given)
    for row, number in ((0, np.nan), (9000, -np.inf), (len(many) - 1, np.nan), (0, np.inf)):
        wrong = many.copy()
        wrong[row, 1] = number
        with pytest.raises(ValueError, match="Input X contains") as theirs_raised:
            theirs.predict(wrong)
        with pytest.raises(ValueError, match=re.escape(str(theirs_raised.value))):
            estimator.predict(wrong)
    with sklearn.config_context(assume_finite=True):
        assert len(estimator.predict(np.where(many > 0.9, np.nan, many))) == len(many)
    large = np.full_like(many, np.finfo("float32").max / 4096)  # their sum is infinite
    assert len(estimator.predict(large)) == len(many)
    if given == "float64":
        with pytest.raises(ValueError, match="too large for float32; dtype='float64' takes them"):
            estimator.predict(large * 1e4)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables_are_samples_with_names(library):
    frames = pytest.importorskip(library)
    if library == "polars" and not (NEWEST >= (1, 9) or hasattr(frames.DataFrame, "__dataframe__")):
        pytest.skip("this scikit-learn does not see the names of this polars")
    names = [f"pixel {n}" for n in range(64)]
    table = frames.DataFrame(dict(zip(names, X.T, strict=True)))
    estimator = fitted(table, early_stopping=True)
    assert list(estimator.feature_names_in_) == names
    np.testing.assert_array_equal(estimator.predict(table), fitted(X, early_stopping=True).predict(X))
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(table[names[::-1]])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        estimator.predict(X)


def test_lists_are_samples_and_text_is_labels():
    estimator = fitted(
        X.tolist(), targets=[f"digit {n}" for n in LABELS], max_iter=30, learning_rate_init=0.01
    )
    assert estimator.classes_.tolist() == [f"digit {n}" for n in range(10)]
    assert np.mean(estimator.predict(X) == [f"digit {n}" for n in LABELS]) > 0.9


@pytest.mark.parametrize("targets", [LABELS.astype(str), LABELS.astype("S"), LABELS.astype(str).tolist()])
def test_a_regressor_refuses_text(targets):
    with pytest.raises(ValueError, match="the targets of a MLPRegressor must be numbers"):
        fitted(X, MLPRegressor, targets)


def test_fit_leaves_samples_targets_and_weights_as_they_are():
    weights = np.linspace(0.5, 2.0, 300)
    given = [array.copy() for array in (X, LABELS, weights)]
    for array in given:
        array.flags.writeable = False
    MLPClassifier(max_iter=2).fit(given[0], given[1], given[2]).predict(given[0])
    assert all(np.array_equal(a, b) for a, b in zip(given, (X, LABELS, weights), strict=True))


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    "options", [{}, {"early_stopping": True}, {"solver": "lbfgs"}, {"batch_norm": True}], ids=str
)
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
@pytest.mark.parametrize("given", ["float32", "float64", "int64"])
def test_arrays_of_a_device_stay_there(kind, options, given, monkeypatch):
    """The backend array-api-strict stands for a GPU: its arrays are not NumPy's, and lie on a device of their own."""
    pytest.importorskip("array_api_strict")
    lib = xnn.backends.get_backend("array-api-strict")
    samples, labels = np.tile((X * 16).astype(given), (3, 1)), np.tile(LABELS, 3)
    there, weights = lib.to_device(samples), np.linspace(0.5, 2.0, 900)
    options = {"max_iter": 3, "random_state": 0, "hidden_layer_sizes": 9} | options
    here = kind(**options).fit(samples, labels, sample_weight=weights)
    moved, original = [], type(lib).to_host

    def to_host(self, array):
        moved.append(tuple(array.shape))
        return original(self, array)

    monkeypatch.setattr(type(lib), "to_host", to_host)
    device = kind(backend="array-api-strict", **options)
    device.fit(there, lib.to_device(labels), sample_weight=lib.to_device(weights))
    predicted = device.predict(there)
    assert samples.shape not in moved  # some rows are looked at
    assert type(predicted) is np.ndarray
    assert device.n_features_in_ == 64
    assert predicted.dtype == here.predict(samples).dtype
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if given == "float32" else {"rtol": 1e-9}
    np.testing.assert_allclose(device.coefs_[0], here.coefs_[0], **tolerance)
    with pytest.raises(ValueError, match="X has 63 features"):
        device.predict(there[:, 1:])


def test_arrays_of_a_device_that_hold_nan_or_belong_to_another_backend_are_refused():
    pytest.importorskip("array_api_strict")
    lib = xnn.backends.get_backend("array-api-strict")
    with pytest.raises(ValueError, match="Input X contains NaN"):
        MLPClassifier(backend="array-api-strict").fit(lib.to_device(np.full((9, 2), np.nan)), [0, 1, 2] * 3)
    with pytest.raises(MixedArraysError, match="array-api-strict"):
        MLPClassifier().fit(lib.to_device(X), LABELS)
