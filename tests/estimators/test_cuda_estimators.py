"""xnn.sklearn's estimators on a GPU, or on the emulated one: the numbers of the CPU, and pickles without CuPy."""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.datasets import load_digits

import xnn
from xnn.sklearn import MLPClassifier, MLPRegressor, MLPSearchCV

_REASON = xnn.backends.available_backends()["cupy"]
pytestmark = [
    pytest.mark.skipif(bool(_REASON), reason=_REASON or "CuPy works"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

X, LABELS = load_digits(return_X_y=True)
X, LABELS = X[:300].astype("float32") / 16.0, LABELS[:300]
CASES = [
    {},
    {"solver": "sgd", "learning_rate": "invscaling"},
    {"solver": "lbfgs"},
    {"early_stopping": True},
    {"batch_norm": True, "dropout": 0.1},
    {"alpha": 1.0, "activation": "tanh"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_a_gpu_gives_the_numbers_of_the_cpu_and_pickles_hold_numpy_arrays(kind, options):
    options = {"max_iter": 3, "random_state": 0, "hidden_layer_sizes": 9} | options
    there, here = (kind(backend=backend, **options).fit(X, LABELS) for backend in ("cupy", "numpy"))
    assert there.model_.backend.name == "cupy"
    assert {type(array) for array in (*there.coefs_, *there.intercepts_, *there._others.values())} == {
        np.ndarray
    }
    np.testing.assert_allclose(there.coefs_[0], here.coefs_[0], rtol=1e-3, atol=1e-4)
    samples = xnn.backends.get_backend("cupy").to_device(X)
    on_device = kind(backend="cupy", **options).fit(samples, LABELS)
    np.testing.assert_array_equal(on_device.coefs_[0], there.coefs_[0])
    np.testing.assert_array_equal(on_device.predict(samples), there.predict(X))
    text = pickle.dumps(there)
    assert b"cupy." not in text
    loaded = pickle.loads(text).set_params(backend="numpy")
    np.testing.assert_allclose(loaded.model_.predict(X), there.model_.predict(X), rtol=1e-3, atol=1e-4)
    if there.solver != "lbfgs" and not there.early_stopping:
        for estimator in (there, loaded):
            estimator.partial_fit(X, LABELS)
        np.testing.assert_allclose(there.coefs_[0], loaded.coefs_[0], rtol=1e-3, atol=1e-4)


def test_a_search_over_backends():
    estimator = MLPClassifier(9, max_iter=3, random_state=0)
    search = MLPSearchCV(estimator, {"backend": ["cupy", "numpy"]}, cv=2, n_jobs=2).fit(X, LABELS)
    scores = search.cv_results_["mean_test_score"]
    assert abs(scores[0] - scores[1]) < 0.05
