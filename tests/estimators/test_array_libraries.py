"""Arrays of other libraries in xnn.sklearn's estimators, with scikit-learn's array API dispatch and without it."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import xnn
from xnn.errors import DTypeError
from xnn.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, LABELS = load_digits(return_X_y=True)
X, LABELS = X[:300] / 16.0, LABELS[:300]
OPTIONS = {"max_iter": 3, "random_state": 0, "hidden_layer_sizes": 9}
TARGETS = {
    "ten": LABELS,
    "two": LABELS % 2,
    "several": np.stack([LABELS > 4, LABELS % 2 == 0], axis=1).astype(int),
}


def backend_that_works(name):
    if reason := xnn.backends.available_backends()[name]:
        pytest.skip(reason)
    return xnn.backends.get_backend(name)


@pytest.fixture(params=["torch", "array-api-strict", "cupy"])
def library(request):
    """A function that makes the library's arrays, and options of an estimator that takes them."""
    if request.param == "torch":
        return SimpleNamespace(make=pytest.importorskip("torch").asarray, options=OPTIONS)
    lib = backend_that_works(request.param)
    return SimpleNamespace(make=lib.to_device, options=OPTIONS | {"backend": request.param})


@pytest.fixture
def dispatch(monkeypatch):
    if sklearn.__version__.startswith("1.6."):
        pytest.skip("this scikit-learn sets array-api-strict back to an older standard")
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # scikit-learn asks for it
    with sklearn.config_context(array_api_dispatch=True):
        yield


def host(array):
    if type(array).__module__ == "torch":
        return np.from_dlpack(array)
    return xnn.backends.backend_of(array).to_host(array)


def results(estimator, samples):
    methods = ("predict", "predict_proba", "predict_log_proba")
    return [getattr(estimator, method)(samples) for method in methods if hasattr(estimator, method)]


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_with_dispatch_predictions_are_in_the_library_and_on_the_device_of_the_samples(
    kind, targets, library, dispatch
):
    samples, truth = library.make(X), library.make(TARGETS[targets])
    estimator = kind(**library.options).fit(samples, truth)
    assert {type(array) for array in (*estimator.coefs_, *estimator.intercepts_)} == {np.ndarray}
    there = results(estimator, samples)
    assert {type(array) for array in there} == {type(samples)}
    assert {str(array.device) for array in there} == {str(samples.device)}
    for one, other in zip(there, results(estimator, X), strict=True):
        assert type(other) is np.ndarray
        np.testing.assert_allclose(host(one), other, rtol=1e-6, atol=1e-9)
    score = estimator.score(samples, truth)
    assert type(score) is float
    assert score == pytest.approx(estimator.score(X, TARGETS[targets]))


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_without_dispatch_predictions_are_numpy_arrays(kind, library):
    samples, truth = library.make(X), library.make(LABELS)
    estimator = kind(**library.options).fit(samples, truth, sample_weight=library.make(np.ones(300)))
    for one, other in zip(results(estimator, samples), results(estimator, X), strict=True):
        assert type(one) is np.ndarray
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)
    assert estimator.score(samples, truth) == pytest.approx(estimator.score(X, LABELS))
    classes = {"classes": library.make(np.arange(10))} if kind is MLPClassifier else {}
    again = kind(**library.options).partial_fit(samples, truth, **classes)
    np.testing.assert_allclose(
        again.loss_, kind(**library.options).set_params(max_iter=1).fit(X, LABELS).loss_
    )


def test_with_dispatch_samples_and_predictions_of_a_device_never_come_to_the_host(dispatch, monkeypatch):
    lib = backend_that_works("array-api-strict")
    samples, truth = lib.to_device(np.tile(X, (10, 1))), lib.to_device(np.tile(LABELS, 10))
    estimator = MLPRegressor(backend="array-api-strict", **OPTIONS).fit(samples, truth)
    moved, original = [], type(lib).to_host
    monkeypatch.setattr(
        type(lib), "to_host", lambda self, array: moved.append(array) or original(self, array)
    )
    assert type(estimator.predict(samples)) is type(samples)
    assert all(array.size == 1 for array in moved)  # whether all numbers are finite


def test_a_validation_set_of_another_library_is_pickled_as_numpy_arrays(library):
    held_out = tuple(map(library.make, (X, LABELS, np.ones(300))))
    estimator = MLPClassifier(validation_set=held_out, early_stopping=True, **library.options)
    estimator.fit(library.make(X), library.make(LABELS))
    plain = MLPClassifier(**estimator.get_params(deep=False) | {"validation_set": (X, LABELS)}).fit(X, LABELS)
    np.testing.assert_allclose(estimator.validation_loss_curve_, plain.validation_loss_curve_, rtol=1e-6)
    loaded = pickle.loads(pickle.dumps(estimator))
    assert {type(array) for array in loaded.validation_set} == {np.ndarray}
    assert estimator.validation_set is held_out


def test_labels_that_are_text_are_numpy_arrays_with_dispatch_too(library, dispatch):
    names = np.array(["even", "odd"])[LABELS % 2]
    estimator = MLPClassifier(**library.options).fit(library.make(X), names)
    assert set(estimator.predict(library.make(X))) <= {"even", "odd"}
    assert estimator.score(library.make(X), names) > 0.3


def test_compositions_take_tensors_with_dispatch(dispatch):
    torch = pytest.importorskip("torch")
    samples, truth = torch.asarray(X), torch.asarray(LABELS)
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(**OPTIONS))
    scores = [cross_val_score(pipeline, *data, cv=2) for data in ((samples, truth), (X, LABELS))]
    np.testing.assert_allclose(*scores)


def test_half_precision_of_a_gpu_is_refused_by_its_name():
    lib = backend_that_works("cupy")
    with pytest.raises(DTypeError, match="float16"):
        MLPClassifier(backend="cupy").fit(lib.xp.asarray(X, dtype="float16"), LABELS)


class Tensor:
    """Stands for a tensor of PyTorch on a GPU: an array of a library that is no backend, which DLPack reads."""

    def __init__(self, array):
        self.array, self.dtype, self.shape = array, array.dtype, array.shape
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__

    def __array_namespace__(self, api_version=None):
        return SimpleNamespace(from_dlpack=Tensor, __name__="tensors")


def test_tensors_of_a_gpu_become_cupys_arrays_and_predictions_tensors(dispatch):
    lib = backend_that_works("cupy")
    samples = lib.to_device(X)
    estimator = MLPRegressor(backend="cupy", **OPTIONS).fit(Tensor(samples), LABELS)
    predicted = estimator.predict(Tensor(samples))
    assert type(predicted) is Tensor
    np.testing.assert_allclose(host(predicted.array), host(estimator.predict(samples)))
    assert estimator.score(Tensor(samples), Tensor(lib.to_device(LABELS))) == estimator.score(X, LABELS)
