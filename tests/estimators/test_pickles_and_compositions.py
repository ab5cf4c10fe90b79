"""xnn.sklearn's estimators in pickles and skops files, and inside what scikit-learn builds of estimators."""

import copy
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from naming import plain

pytest.importorskip("sklearn")

import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_digits
from sklearn.ensemble import BaggingClassifier, BaggingRegressor, StackingClassifier, VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - as scikit-learn asks
from sklearn.inspection import permutation_importance
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_val_score, learning_curve
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.utils.validation import check_is_fitted

import xnn
from xnn.sklearn import MLPClassifier, MLPRegressor, network

try:
    import cloudpickle
except ImportError:  # joblib before 1.6 holds its own
    from joblib.externals import cloudpickle

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:Metadata routing:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:scipy.optimize. The `disp`:DeprecationWarning"
    ),  # scikit-learn before 1.7
]

X, LABELS = load_digits(return_X_y=True)
X, LABELS = X[:300] / 16.0, LABELS[:300]
OPTIONS = {"max_iter": 15, "random_state": 0, "learning_rate_init": 0.02, "hidden_layer_sizes": 20}
MANY = np.tile(X, (20, 1))


def modules_in(pickled):
    """The modules that a pickle names."""
    found = set()

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            found.add(module)
            return super().find_class(module, name)

    Reader(io.BytesIO(pickled)).load()
    return found


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "sgd"},
        {"solver": "lbfgs"},
        {"early_stopping": True},
        {"batch_norm": True, "dropout": 0.1},
        {"random_state": np.random.RandomState(0)},
    ],
    ids=plain,
)
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_pickles_hold_numpy_arrays_and_predict_and_train_the_same(kind, options):
    estimator = kind(**(OPTIONS | options)).fit(X, LABELS)
    text = pickle.dumps(estimator)
    foreign = {
        name for name in modules_in(text) if name.split(".")[0] not in ("numpy", "sklearn", "builtins")
    }
    assert foreign == {"xnn.sklearn.estimators"}
    for other in (pickle.loads(text), pickle.loads(cloudpickle.dumps(estimator)), copy.deepcopy(estimator)):
        np.testing.assert_array_equal(other.predict(MANY), estimator.predict(MANY))
        np.testing.assert_array_equal(other.model_.predict(X), estimator.model_.predict(X))
        if estimator.solver != "lbfgs" and not estimator.early_stopping:
            again = copy.deepcopy(estimator)
            np.testing.assert_array_equal(
                other.partial_fit(X, LABELS).coefs_[0], again.partial_fit(X, LABELS).coefs_[0]
            )


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_skops_files_need_no_trust_but_in_the_class(kind, solver):
    io_ = pytest.importorskip("skops.io")
    estimator = kind(solver=solver, batch_norm=True, **OPTIONS).fit(X, LABELS)
    text = io_.dumps(estimator)
    assert io_.get_untrusted_types(data=text) == [f"xnn.sklearn.estimators.{kind.__name__}"]
    loaded = io_.loads(text, trusted=io_.get_untrusted_types(data=text))
    np.testing.assert_array_equal(loaded.predict(MANY), estimator.predict(MANY))
    if solver != "lbfgs":
        np.testing.assert_array_equal(
            loaded.partial_fit(X, LABELS).coefs_[0], estimator.partial_fit(X, LABELS).coefs_[0]
        )


def test_a_model_of_a_gpu_loads_where_there_is_none():
    pytest.importorskip("array_api_strict")
    estimator = MLPClassifier(backend="array-api-strict", **OPTIONS).fit(X, LABELS)
    assert estimator.model_.backend.name == "array-api-strict"
    assert {type(array) for array in (*estimator.coefs_, *estimator.intercepts_)} == {np.ndarray}
    loaded = pickle.loads(pickle.dumps(estimator)).set_params(backend=None)
    assert loaded.model_.backend.name == "numpy"
    np.testing.assert_allclose(loaded.predict_proba(MANY), estimator.predict_proba(MANY), rtol=1e-9)
    if xnn.backends.available_backends()["cupy"]:  # it does not run here
        elsewhere = loaded.set_params(backend="cupy")
        np.testing.assert_allclose(elsewhere.predict_proba(MANY), estimator.predict_proba(MANY), rtol=1e-9)


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_a_clone_has_the_parameters_and_nothing_else(kind):
    options = {"optimizer": xnn.optimizers.AdamW(0.01), "schedule": "cosine", "validation_set": (X, LABELS)}
    estimator = kind(**options).fit(X, LABELS)
    other = clone(estimator)
    assert repr(other) == repr(estimator)
    assert not [name for name in vars(other) if name.endswith("_") or name.startswith("_")]
    assert "<style" in estimator._repr_html_() or "<div" in estimator._repr_html_()


def test_searches_and_validation():
    halving = HalvingGridSearchCV(MLPClassifier(**OPTIONS), {"alpha": [1e-4, 1.0]}, cv=2, random_state=0)
    assert halving.fit(X, LABELS).best_score_ > 0.5
    assert cross_val_score(MLPClassifier(**OPTIONS), X, LABELS, cv=2).mean() > 0.7
    _, _, scores = learning_curve(MLPClassifier(**OPTIONS), X, LABELS, cv=2, train_sizes=[0.5, 1.0])
    assert scores.mean() > 0.5


MLP = MLPClassifier(**OPTIONS)
REGRESSOR = MLPRegressor(**(OPTIONS | {"max_iter": 60}))
PAIRED = np.stack([LABELS, LABELS // 5], axis=1)
UNKNOWN = np.where(np.arange(300) % 3, LABELS, -1)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("built", "targets"),
    [
        (make_pipeline(StandardScaler(), MLP), LABELS),
        (
            make_pipeline(
                ColumnTransformer([("some", StandardScaler(), slice(0, 40))], remainder="passthrough"), MLP
            ),
            LABELS,
        ),
        (CalibratedClassifierCV(MLP, cv=2), LABELS),
        (BaggingClassifier(MLP, n_estimators=2, random_state=0), LABELS),
        (VotingClassifier([("a", MLP), ("b", clone(MLP).set_params(solver="sgd"))], voting="soft"), LABELS),
        (StackingClassifier([("a", MLP), ("b", clone(MLP).set_params(solver="lbfgs"))], cv=2), LABELS),
        (SelfTrainingClassifier(MLP), UNKNOWN),
        (OneVsRestClassifier(MLP), LABELS),
        (MultiOutputClassifier(MLP), PAIRED),
        (ClassifierChain(MLP), PAIRED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_composition_learns(built, targets):
    built.fit(X, targets)
    predicted, truth = built.predict(X), PAIRED if targets is PAIRED else LABELS
    assert predicted.shape == truth.shape
    assert np.mean(predicted == truth) > 0.8
    assert "MLPClassifier" in built._repr_html_()


@pytest.mark.parametrize(
    ("built", "targets"),
    [
        (MultiOutputRegressor(REGRESSOR), PAIRED),
        (TransformedTargetRegressor(REGRESSOR, transformer=StandardScaler()), PAIRED),
        (TransformedTargetRegressor(REGRESSOR, func=np.sqrt, inverse_func=np.square), LABELS),
        (BaggingRegressor(REGRESSOR, n_estimators=2, random_state=0), LABELS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_composition_of_regressors_learns(built, targets):
    assert built.fit(X, targets).predict(X).shape == targets.shape
    assert built.score(X, targets) > 0.6


def test_permutation_importance_finds_the_pixels_that_count():
    found = permutation_importance(clone(MLP).fit(X, LABELS), X, LABELS, n_repeats=1, random_state=0)
    assert found.importances_mean.shape == (64,)
    assert found.importances_mean[X.std(axis=0) == 0.0].tolist() == [0.0] * int((X.std(axis=0) == 0.0).sum())
    assert found.importances_mean.max() > 0.01


def test_a_pipeline_that_gives_tables_trains_on_tables():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=[f"pixel {n}" for n in range(64)])
    pipeline = make_pipeline(StandardScaler(), clone(MLP)).set_output(transform="pandas").fit(table, LABELS)
    assert list(pipeline[-1].feature_names_in_) == list(table.columns)
    assert pipeline.score(table, LABELS) > 0.9


def test_sample_weights_are_routed():
    with sklearn.config_context(enable_metadata_routing=True):
        mlp = MLPClassifier(**OPTIONS).set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        weights = (LABELS < 5).astype(float)
        pipeline = make_pipeline(scaler, mlp).fit(X, LABELS, sample_weight=weights)
        scorer = get_scorer("accuracy").set_score_request(sample_weight=True)
        search = GridSearchCV(
            make_pipeline(scaler, mlp), {"mlpclassifier__alpha": [1e-4]}, cv=2, scoring=scorer
        )
        search.fit(X, LABELS, sample_weight=weights)
    assert set(pipeline.predict(X)) <= {0, 1, 2, 3, 4}
    assert set(search.predict(X)) <= {0, 1, 2, 3, 4}
    assert search.best_score_ > 0.7  # of those that count


def test_callbacks_of_scikit_learn():
    pytest.importorskip("sklearn.callback", reason="scikit-learn before 1.9 has no callbacks")

    class Recorder:
        def __init__(self, stop_at=1000):
            self.tasks, self.scores, self.stop_at, self.open = 0, [], stop_at, 0

        def setup(self, estimator, context):
            self.open += 1

        def teardown(self, estimator, context):
            self.open -= 1

        def on_fit_task_begin(self, estimator, context):
            self.tasks += 1

        def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator):
            self.scores.append(fitted_estimator.score(X, y))
            return len(self.scores) == self.stop_at

    names = np.array([f"digit {n}" for n in LABELS])
    for solver in ("adam", "sgd", "lbfgs"):
        recorder = Recorder()
        estimator = MLPClassifier(solver=solver, **OPTIONS).set_callbacks(recorder).fit(X, names)
        assert (recorder.open, recorder.tasks, len(recorder.scores)) == (0, 16, 16)  # one for the fit itself
        assert recorder.scores[-1] == estimator.score(X, names) > recorder.scores[0]
        stopped = MLPClassifier(solver=solver, **OPTIONS).set_callbacks(Recorder(stop_at=4)).fit(X, names)
        assert stopped.n_iter_ == 4


WITH_CALLBACKS = """
import numpy as np
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from xnn.sklearn import MLPClassifier

X, y = np.random.RandomState(0).normal(size=(60, 4)), np.arange(60) % 3
monitor = ScoringMonitor(scoring="accuracy")
mlp = MLPClassifier(max_iter=5, tol=0.0).set_callbacks(monitor).fit(X, y)
log = monitor.get_logs()
log = log[0] if isinstance(log, list) else log
scores = [row["accuracy"] for row in log.data if row["task_name"] == "iteration"]
assert len(scores) == 5 and scores[-1] == mlp.score(X, y)
make_pipeline(StandardScaler(), mlp).set_callbacks(ProgressBar()).fit(X, y)
"""


# In a process of its own, since a ScoringMonitor listens until the process ends.
def test_the_callbacks_that_scikit_learn_has():
    pytest.importorskip("sklearn.callback", reason="scikit-learn before 1.9 has no callbacks")
    pytest.importorskip("rich", reason="scikit-learn draws its progress bar with it")
    command = [sys.executable, "-W", "ignore", "-c", WITH_CALLBACKS]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "MLPClassifier" in done.stdout + done.stderr


def test_threads_predict_with_a_loaded_estimator(monkeypatch):
    """Two threads build its network at the same time: each predicts with the weights."""
    fitted = MLPClassifier(hidden_layer_sizes=4, activation="gelu", max_iter=2, random_state=0).fit(X, LABELS)
    expected, loaded = fitted.predict_proba(X), pickle.loads(pickle.dumps(fitted))
    plain, others = network.put, []

    def put_while_another_thread_builds(model, *weights):
        plain(model, *weights)
        if not others:
            others.append(None)
            # And has not put the weights into it yet.
            loaded._model = network.build(loaded, X.shape[1], [4], 10, loaded._trained_in)

    monkeypatch.setattr(network, "put", put_while_another_thread_builds)
    np.testing.assert_array_equal(loaded.predict_proba(X), expected)


def test_whether_it_is_fitted_is_seen_while_another_thread_predicts():
    fitted = MLPClassifier(hidden_layer_sizes=4, max_iter=2).fit(X, LABELS)

    class Attributes(dict):
        def __iter__(self):
            raise RuntimeError("dictionary changed size during iteration")

    fitted.__dict__ = Attributes(vars(fitted))
    check_is_fitted(fitted)
