"""xnn.sklearn's estimators in other processes: the workers of n_jobs, and one that loads what was saved."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")

import joblib
from sklearn.datasets import load_digits

from xnn.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, LABELS = load_digits(return_X_y=True)
X, LABELS = X[:200] / 16.0, LABELS[:200]


def printed(program, *arguments, **options):
    """What a program prints in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


SEARCH = """
import json, os, sys
import joblib
import numpy as np
import threadpoolctl
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from xnn import callbacks
from xnn.sklearn import MLPClassifier

class Watch(callbacks.Callback):
    def on_epoch_end(self, history, entry):
        libraries = [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
        self.threads, self.process = max(libraries), os.getpid()

def scores(pipeline, X, y):
    watch = pipeline[-1].callbacks[0]
    return {"accuracy": pipeline.score(X, y), "threads": watch.threads, "process": watch.process}

X, y = load_digits(return_X_y=True)
mlp = MLPClassifier(max_iter=5, random_state=0, learning_rate_init=0.02, callbacks=[Watch()])
pipeline = make_pipeline(StandardScaler(), mlp)
grid = {"mlpclassifier__threads": [None, "auto"]}
found = {"cores": joblib.cpu_count(), "here": os.getpid()}
for n_jobs in (1, 2):
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=n_jobs, scoring=scores, refit=False)
    results = search.fit(X[:300], y[:300]).cv_results_
    names = "accuracy", "threads", "process"
    found[n_jobs] = {name: [results[f"split{k}_test_{name}"].tolist() for k in (0, 1)] for name in names}
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_search_in_two_processes_finds_what_one_finds_and_takes_no_more_threads():
    found = json.loads(printed(SEARCH))
    assert found["1"]["accuracy"] == found["2"]["accuracy"]
    assert np.mean(found["1"]["accuracy"]) > 0.5
    assert {*np.ravel(found["1"]["process"])} == {found["here"]}
    assert found["here"] not in np.ravel(found["2"]["process"])
    assert 2 * np.max(found["2"]["threads"]) <= max(2, found["cores"])


LOADED = """
import sys
sys.modules["numba"] = sys.modules["cupy"] = None
import pickle
import joblib
import numpy as np

folder = sys.argv[1]
X, LABELS = np.load(folder + "/X.npy"), np.load(folder + "/labels.npy")
for name in ("classifier", "regressor"):
    with open(f"{folder}/{name}.pickle", "rb") as file:
        estimator = pickle.load(file)
    wanted = np.load(f"{folder}/{name}.npy")
    np.testing.assert_allclose(estimator.predict(X), wanted, rtol=1e-6)
    for mmap_mode in (None, "r"):  # whose arrays cannot be written to
        other = joblib.load(f"{folder}/{name}.joblib", mmap_mode=mmap_mode)
        np.testing.assert_array_equal(other.predict(X), estimator.predict(X))
        assert other.partial_fit(X, LABELS).n_iter_ == 1
"""


def test_saved_estimators_predict_and_train_in_a_process_without_numba_and_cupy(tmp_path):
    options = {"max_iter": 3, "random_state": 0, "batch_norm": True}
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "labels.npy", LABELS)
    for name, kind in (("classifier", MLPClassifier), ("regressor", MLPRegressor)):
        estimator = kind(**options).fit(X, LABELS)
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps(estimator))
        joblib.dump(estimator, tmp_path / f"{name}.joblib")
        np.save(tmp_path / f"{name}.npy", estimator.predict(X))
    printed(LOADED, tmp_path)


IMAGES = """
import json, os, sys, threading
import joblib
import numpy as np
from sklearn.datasets import load_digits
import xnn
from xnn import layers
from xnn.backends.threads import own_threads
from xnn.sklearn import MLPClassifier

def lenet(features, outputs, seed):
    return xnn.Sequential(
        layers.Reshape((1, 8, 8)), layers.Conv2D(1, 6, 3, padding="same"), layers.ReLU(), layers.MaxPool2D(2),
        layers.Conv2D(6, 8, 3), layers.ReLU(), layers.Flatten(), layers.Dense(32, outputs), seed=seed)

def fit(seed):
    mlp = MLPClassifier(model=lenet, threads=2, max_iter=3, batch_size=50, random_state=seed).fit(X[:200], y[:200])
    helpers = sum(thread.name == "xnn" for thread in threading.enumerate())
    return mlp.predict_proba(X[200:]).tobytes().hex(), helpers, own_threads(), os.getpid()

X, y = load_digits(return_X_y=True)
X, y = (X[:300] / 16.0).astype(np.float32), y[:300]
here = [fit(seed) for seed in (0, 1)]
there = joblib.Parallel(n_jobs=2, backend=sys.argv[1])(joblib.delayed(fit)(seed) for seed in (0, 1))
print(json.dumps([here, there, joblib.cpu_count()]))
"""


@pytest.mark.parametrize("started", [pytest.param("loky", marks=pytest.mark.slow), "multiprocessing"])
def test_a_network_for_images_is_fitted_in_other_processes_after_a_fit_by_threads(started):
    """Those that joblib starts anew, and those that are forked: they have threads of their own, and the same bits."""
    pytest.importorskip("numba")
    here, there, cores = json.loads(printed(IMAGES, started, env={**os.environ, "OMP_NUM_THREADS": "2"}))
    assert [probabilities for probabilities, *_ in here] == [probabilities for probabilities, *_ in there]
    assert {helpers for _, helpers, *_ in here} == {min(2, cores) - 1}
    for _, helpers, threads, process in there:
        assert helpers == min(2, threads) - 1
        assert 2 * threads <= max(2, cores) or started == "multiprocessing"
        assert process != here[0][-1]
