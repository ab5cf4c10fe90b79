"""fit_many and MLPSearchCV: in threads, the same as one fit after another and as GridSearchCV."""

import _thread
import signal
import threading
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import xnn
from xnn.backends.threads import blas_threads
from xnn.callbacks import Callback
from xnn.errors import OptionError
from xnn.sklearn import MLPClassifier, MLPRegressor, MLPSearchCV, fit_many, training

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, LABELS = load_digits(return_X_y=True)
X, LABELS = X[:120] / 16.0, LABELS[:120]
WEIGHTS = np.linspace(0.5, 1.5, len(X))
OPTIONS = {"max_iter": 6, "learning_rate_init": 0.02, "hidden_layer_sizes": 8, "batch_size": 20}
ENDLESS = {"max_iter": 10**7, "tol": 0.0, "n_iter_no_change": 10**7, "hidden_layer_sizes": 4}
PIPELINE = make_pipeline(StandardScaler(), MLPClassifier(random_state=0, **OPTIONS))


@pytest.fixture(autouse=True)
def nothing_stays():
    """Threads, their limit and warning filters are as before after each test."""

    def state():
        return [*threading.enumerate()], blas_threads(), [*warnings.filters]

    before = state()
    yield
    assert state() == before


def networks():
    """Estimators of several kinds and shapes, in order."""
    return [
        *(MLPClassifier(random_state=seed, **OPTIONS) for seed in range(4)),
        MLPClassifier(random_state=0, early_stopping=True, **OPTIONS),
        MLPClassifier(random_state=1, solver="lbfgs", **OPTIONS),
        MLPClassifier(random_state=0, dropout=0.2, batch_norm=True, **OPTIONS),
        MLPRegressor(random_state=0, solver="sgd", learning_rate="adaptive", **OPTIONS),
        make_pipeline(StandardScaler(), MLPRegressor(random_state=0, **OPTIONS)),
    ]


def weights_of(estimator):
    last = estimator[-1] if hasattr(estimator, "steps") else estimator
    return [*last.coefs_, *last.intercepts_]


def assert_same(estimators, others):
    for one, other in zip(estimators, others, strict=True):
        for a, b in zip(weights_of(one), weights_of(other), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("kernels", ["numpy", "auto"])
@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("threads", [None, 3])
def test_fits_in_threads_have_the_bits_of_fits_one_after_another(monkeypatch, kernels, numerics, threads):
    monkeypatch.setattr(training, "_kernels", lambda *_: kernels)
    kinds = [e for e in networks() if numerics == "fast" or getattr(e, "solver", "adam") != "lbfgs"]
    with xnn.numerics(numerics):
        alone = [e.fit(X, LABELS) for e in kinds]
        again = [e for e in networks() if numerics == "fast" or getattr(e, "solver", "adam") != "lbfgs"]
        together = fit_many(again, X, LABELS, threads=threads)
    assert all(a is b for a, b in zip(together, again, strict=True))
    assert_same(together, alone)


class Assigns(Callback):
    """Builds a layer in another thread, as fits in other threads do: its attributes are assigned."""

    def on_epoch_end(self, history, entry):
        thread = threading.Thread(target=xnn.layers.Dropout, args=(0.1,))
        thread.start()
        thread.join()


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_assignments_in_other_threads_change_nothing(solver):
    pair = [
        MLPClassifier(random_state=0, solver=solver, callbacks=callbacks, **OPTIONS)
        for callbacks in (None, [Assigns()])
    ]
    assert_same([pair[0].fit(X, LABELS)], [pair[1].fit(X, LABELS)])


class Kernels(Callback):
    def on_fit_start(self, history, epochs, steps_per_epoch):
        self.name = history.plan["kernels"]


def test_many_short_fits_take_the_kernels_of_a_long_one(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(training, "_FEW_PRODUCTS", 10 * len(X) * 6 * (64 * 8 + 8 + 8 * 10 + 10))

    def kernels(estimator):
        return estimator.callbacks[0].name.partition(" ")[0]

    def build():
        return MLPClassifier(random_state=0, callbacks=[Kernels()], **OPTIONS)

    assert kernels(build().fit(X, LABELS)) == "numpy"
    assert {kernels(e) for e in fit_many([build() for _ in range(9)], X, LABELS)} == {"numpy"}
    assert {kernels(e) for e in fit_many([build() for _ in range(10)], X, LABELS, threads=1)} == {"compiled"}
    search = MLPSearchCV(build(), {"alpha": np.logspace(-5, -4, 10)}, cv=2).fit(X, LABELS)
    assert kernels(search.best_estimator_) == "compiled"


def test_rows_and_weights_of_samples():
    rows = [np.arange(0, 80), np.arange(len(X)) % 3 != 0, [*range(40, 120)], np.arange(100)]
    estimators = fit_many(networks()[:4], X, LABELS, WEIGHTS, rows=rows, threads=2)
    alone = [e.fit(X[r], LABELS[r], WEIGHTS[r]) for e, r in zip(networks()[:4], rows, strict=True)]
    assert_same(estimators, alone)
    with pytest.raises(OptionError, match="rows has 3 entries for 4 estimators"):
        fit_many(networks()[:4], X, LABELS, rows=rows[:3])


class Told(BaseEstimator):
    """Keeps what a fit finds in its thread."""

    def fit(self, X, y):
        self.found_ = (
            xnn.backends.current_numerics(), xnn.backends.current_backend().name, blas_threads(),
            sklearn.get_config()["assume_finite"], np.geterr()["divide"],
        )  # fmt: skip
        self.thread_ = threading.get_ident()
        return self


def test_threads_have_the_context_of_the_caller():
    told = [Told() for _ in range(4)]
    with xnn.numerics("exact"), sklearn.config_context(assume_finite=True), np.errstate(divide="raise"):
        fit_many(told, X, LABELS, threads=2)
    assert {e.found_ for e in told} == {("exact", "numpy", 1, True, "raise")}
    assert threading.get_ident() not in {e.thread_ for e in told}


class Thread(Callback):
    def on_fit_start(self, history, epochs, steps_per_epoch):
        self.backend, self.number = self.model.backend.name, threading.get_ident()


def test_a_device_has_one_fit_at_a_time():
    pytest.importorskip("array_api_strict")

    def build(**options):
        options = OPTIONS | {"max_iter": 1} | options
        return [MLPClassifier(callbacks=[Thread()], random_state=n, **options) for n in range(2)]

    with xnn.backend("array-api-strict"):
        current = fit_many(build(), X, LABELS, threads=2)
    asked = fit_many(build(backend="array-api-strict"), X, LABELS, threads=2)
    for watcher in (e.callbacks[0] for e in (*current, *asked)):
        assert (watcher.backend, watcher.number) == ("array-api-strict", threading.get_ident())


class Counts(Callback):
    def __init__(self):
        self.models = []

    def on_epoch_end(self, history, entry):
        self.models.append(self.model)


@pytest.mark.parametrize("what", ["random_state", "callback", "transformer", "estimator"])
def test_estimators_that_share_what_a_fit_changes_are_fitted_in_order(what):
    def build():
        if what == "random_state":
            random = np.random.RandomState(0)
            return [MLPClassifier(random_state=random, **OPTIONS) for _ in range(4)]
        if what == "callback":
            counts = Counts()
            return [MLPClassifier(random_state=n, callbacks=[counts], **OPTIONS) for n in range(4)]
        if what == "transformer":
            scaler = StandardScaler()
            return [make_pipeline(scaler, MLPClassifier(random_state=n, **OPTIONS)) for n in range(4)]
        return [MLPClassifier(random_state=np.random.RandomState(0), warm_start=True, **OPTIONS)] * 2

    together = build()
    assert_same(fit_many(together, X, LABELS, threads=4), [e.fit(X, LABELS) for e in build()])
    if what == "callback":
        models = together[0].callbacks[0].models
        assert [m for m in dict.fromkeys(models) for _ in range(6)] == models


def test_warnings_come_in_the_order_of_the_estimators_at_the_call():
    kinds = [MLPClassifier(random_state=0, **(OPTIONS | {"max_iter": n, "tol": 0.0})) for n in (9, 2, 5, 1)]
    with pytest.warns(ConvergenceWarning) as told:
        fit_many(kinds, X, LABELS, threads=2)
    assert [str(w.message).split("(")[1].split(")")[0] for w in told] == ["9", "2", "5", "1"]
    assert {w.filename for w in told} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConvergenceWarning):
            fit_many(kinds, X, LABELS, threads=2)


def test_the_exception_of_a_fit_is_raised_and_the_others_end():
    wrong = MLPClassifier(hidden_layer_sizes=(-1,))
    endless = [MLPClassifier(**ENDLESS), MLPClassifier(**(ENDLESS | {"solver": "lbfgs", "tol": 1e-300}))]
    with pytest.raises(ValueError, match="hidden_layer_sizes must be > 0"):
        fit_many([endless[0], wrong, endless[1]], X, LABELS, threads=3)


class Interrupts(Callback):
    """Presses Ctrl-C after the third epoch."""

    def on_epoch_end(self, history, entry):
        if len(history.epochs) == 3:
            _thread.interrupt_main()


@pytest.fixture
def ctrl_c():
    """Python's handler, also where pytest was started in the background of a shell, which ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_all_fits(ctrl_c):
    fits = [MLPClassifier(callbacks=[Interrupts()], **ENDLESS), MLPClassifier(**ENDLESS)]
    with pytest.raises(KeyboardInterrupt):
        fit_many(fits, X, LABELS, threads=2)
    search = MLPSearchCV(MLPClassifier(**ENDLESS), {"callbacks": [[Interrupts()], None]}, cv=2, n_jobs=2)
    with pytest.raises(KeyboardInterrupt):
        search.fit(X, LABELS)


def same_results(estimator, grid, fit_params=None, **options):
    """The results of MLPSearchCV, which must be GridSearchCV's."""
    theirs, ours = (
        kind(estimator, grid, n_jobs=n, **options).fit(X, LABELS, **(fit_params or {}))
        for kind, n in ((GridSearchCV, 1), (MLPSearchCV, 2))
    )
    assert [*ours.cv_results_] == [*theirs.cv_results_]
    for name, values in theirs.cv_results_.items():
        if not name.endswith("_time") and not name.startswith("param"):
            np.testing.assert_array_equal(ours.cv_results_[name], values, name)
    assert {n for n in vars(ours) if n.endswith("_")} == {n for n in vars(theirs) if n.endswith("_")}
    if ours.refit:
        assert (ours.best_index_, ours.best_params_) == (theirs.best_index_, theirs.best_params_)
        assert_same([ours.best_estimator_], [theirs.best_estimator_])
    return ours


GRID = {"alpha": [1e-4, 1.0], "solver": ["adam", "sgd"]}
IN_PIPELINE = [
    {"mlpclassifier__alpha": [1e-4, 1.0]},
    {"mlpclassifier__numerics": ["exact"], "mlpclassifier__learning_rate_init": [0.1]},
]


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    "options",
    [
        {"return_train_score": True},
        {"scoring": ["accuracy", "f1_macro"], "refit": "f1_macro"},
        {"scoring": ["accuracy"], "refit": False},
        {"refit": lambda results: int(np.argmin(results["mean_test_score"]))},
        {"scoring": lambda e, X, y: {"a": e.score(X, y), "b": e.loss_}, "refit": "a"},
        {"cv": GroupKFold(3), "fit_params": {"groups": np.arange(len(X)) % 5}},
        {"fit_params": {"sample_weight": WEIGHTS}},
    ],
    ids=lambda options: "-".join(options),
)
def test_the_search_has_the_results_of_grid_search(options):
    same_results(MLPClassifier(random_state=0, **OPTIONS), GRID, **({"cv": 3} | options))


def test_searches_over_pipelines_and_inside_others():
    same_results(PIPELINE, IN_PIPELINE, cv=3)
    search = MLPSearchCV(PIPELINE, IN_PIPELINE, cv=2)
    assert cross_val_score(search, X, LABELS, cv=2, n_jobs=1).mean() > 0.5
    assert sklearn.base.clone(search).get_params()["param_grid"] == IN_PIPELINE
    with xnn.numerics("exact"):
        same_results(PIPELINE, {"mlpclassifier__alpha": [1e-4, 1.0]}, cv=2)


def test_fits_of_a_search_that_fail():
    estimator, grid = MLPClassifier(random_state=0, **OPTIONS), {"hidden_layer_sizes": [(-1,), 8]}
    with pytest.warns(sklearn.exceptions.FitFailedWarning), np.errstate(invalid="ignore"):
        found = same_results(estimator, grid, cv=2, error_score=-1.0)
    assert found.cv_results_["mean_test_score"][0] == -1.0
    with pytest.raises(ValueError, match="hidden_layer_sizes must be > 0"):
        MLPSearchCV(estimator, grid, cv=2, error_score="raise").fit(X, LABELS)


def test_progress_and_warnings_of_a_search(capsys):
    estimator, grid = MLPClassifier(random_state=0, **(OPTIONS | {"tol": 0.0})), {"alpha": [1e-4, 1.0]}
    counts = []
    for kind in (GridSearchCV, MLPSearchCV):
        with pytest.warns(ConvergenceWarning) as told:
            kind(estimator, grid, cv=3, verbose=3, n_jobs=None).fit(X, LABELS)
        counts.append(
            (len(told), sorted(line.split(";")[0] for line in capsys.readouterr().out.splitlines()))
        )
    assert counts[0] == counts[1]
    assert counts[0][0] == 7
