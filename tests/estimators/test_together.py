"""Alike fits of fit_many and MLPSearchCV: the programs of the first serve the others, which get their own results."""

import threading
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("numba")

from alike_fits import LABELS, LOSSES, OPTIONS, X, drawn
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV

from xnn.errors import LabelError
from xnn.sklearn import MLPClassifier, MLPRegressor, MLPSearchCV, fit_many, together, training
from xnn.training.interrupt import ending_of_thread
from xnn.training.repeated import Repeated

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(autouse=True)
def compiled_kernels(monkeypatch):
    """Fits alone take the kernels of many."""
    monkeypatch.setattr(training, "_FEW_PRODUCTS", 0)


@pytest.fixture
def repeated(monkeypatch):
    """A list with an entry for each fit by the programs of an earlier one: whether all numbers stayed finite."""
    done, fit = [], Repeated.fit

    def counting(self, *given):
        done.append(fit(self, *given))
        return done[-1]

    monkeypatch.setattr(Repeated, "fit", counting)
    return done


def same(a, b):
    """Whether two attributes are the same, to the last bit."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.random.RandomState):
        return same(a.get_state(), b.get_state())
    if isinstance(a, BaseEstimator):
        return same(vars(a), vars(b))
    return type(a) is type(b) and a == b


def assert_same(estimators, others):
    for one, other in zip(estimators, others, strict=True):
        a, b = one.__getstate__(), other.__getstate__()
        assert a.keys() == b.keys()
        assert [name for name in a if not same(a[name], b[name])] == []
        assert one.model_.numerics == other.model_.numerics
        how = "predict_proba" if hasattr(one, "predict_proba") else "predict"
        assert same(getattr(one, how)(X), getattr(other, how)(X))


GROUPS = {
    "adam": {},
    "sgd": {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.1},
    "momentum": {"solver": "sgd", "learning_rate_init": 0.05},
    "no penalty": {"alpha": 0.0},
    "a batch": {"batch_size": 150},
    "a step": {"batch_size": 149},
    "as they are": {"shuffle": False},
    "tanh": {
        "activation": "tanh",
        "hidden_layer_sizes": (6, 5),
        "solver": "sgd",
        "nesterovs_momentum": False,
    },
    "float32": {"dtype": "float32", "activation": "logistic"},
    "gelu": {"activation": "gelu"},
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS.keys())
def test_every_attribute_is_that_of_an_own_fit(repeated, group):
    alone = [e.fit(X, LABELS) for e in drawn(group)]
    assert repeated == []
    many = fit_many(drawn(group), X, LABELS, threads=1)
    assert repeated == [True] * 4
    assert len({e.n_iter_ for e in alone}) > 1 or "shuffle" in group
    assert_same(many, alone)
    for one, other in zip(many, alone, strict=True):
        assert_same([one.partial_fit(X, LABELS)], [other.partial_fit(X, LABELS)])


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("kind", "group", "y"), LOSSES.values(), ids=LOSSES.keys())
def test_every_loss_has_the_results_of_own_fits(repeated, kind, group, y):
    alone = [e.fit(X, y) for e in drawn(group, 5, kind)]
    many = fit_many(drawn(group, 5, kind), X, y, threads=1)
    assert repeated == [True] * 4
    assert_same(many, alone)
    assert all(e.loss_ < e.loss_curve_[0] for e in many)


def test_negative_counts_are_refused_as_in_an_own_fit(repeated):
    counts = np.where(np.arange(150) == 120, -3.0, LABELS)
    rows = [np.arange(100), np.arange(50, 150)]

    def build():
        return list(drawn({"loss": "poisson"}, 2, MLPRegressor))

    with pytest.raises(LabelError, match="-3") as alone:
        build()[1].fit(X[rows[1]], counts[rows[1]])
    with pytest.raises(LabelError, match="-3") as many:
        fit_many(build(), X, counts, rows=rows, threads=1)
    assert str(many.value) == str(alone.value)
    assert repeated == []


def test_folds_of_two_sizes_and_two_threads(repeated):
    rows = [np.r_[0:fold, fold + 30 + fold % 2 : 150] for fold in range(12)]
    alone = [e.fit(X[part], LABELS[part]) for e, part in zip(drawn({}, 12), rows, strict=True)]
    assert_same(fit_many(drawn({}, 12), X, LABELS, rows=rows, threads=2), alone)
    assert len(repeated) >= 8
    assert all(repeated)


def test_text_labels_and_a_second_fit(repeated):
    names = np.array(["even", "odd", "prime"])[LABELS % 3]
    alone, many = list(drawn({})), list(drawn({}))
    for data in ((X, names), (X[:, :30], LABELS)):
        for e in alone:
            e.fit(*data)
        fit_many(many, *data, threads=1)
        for one, other in zip(many, alone, strict=True):
            assert same(one.__getstate__()["coefs_"], other.__getstate__()["coefs_"])
            assert same(one.classes_, other.classes_)
            assert same(one.predict(data[0]), other.predict(data[0]))
    assert len(repeated) == 8


def test_warm_starts_go_on(repeated):
    alone, many = (list(drawn({"warm_start": True})) for _ in range(2))
    for rates in (0.02, 0.01):
        for e in (*alone, *many):
            e.set_params(learning_rate_init=rates)
        for e in alone:
            e.fit(X, LABELS)
        assert_same(fit_many(many, X, LABELS, threads=1), alone)
    assert repeated == [True] * 8


class Reuses(BaseEstimator):
    """Fits two classifiers on arrays whose numbers it changes in between."""

    def fit(self, X, y):
        X, y = X.copy(), y.copy()
        self.fits = []
        for _ in range(2):
            self.fits.append(next(drawn({})).fit(X, y))
            X[:], y[:] = X[::-1].copy(), (y + 3) % 10
        return self


def test_arrays_may_be_changed_between_fits(repeated):
    alone, many = Reuses().fit(X, LABELS), fit_many([Reuses()], X, LABELS, threads=1)[0]
    assert repeated == [True]
    assert_same(many.fits, alone.fits)


def test_estimators_share_nothing_that_a_user_may_change():
    first, second = fit_many(drawn({}, 2), X, LABELS, threads=1)
    assert first.classes_ is not second.classes_
    assert first._label_binarizer is not second._label_binarizer
    arrays = [
        e.coefs_ + e.intercepts_ + [a for some in e._solver["arrays"] for a in some] for e in (first, second)
    ]
    assert not any(np.shares_memory(a, b) for a in arrays[0] for b in arrays[1])


def others():
    """Pairs of estimators that are not alike, or do more than train."""
    user = np.random.RandomState(0)
    yield from (MLPClassifier(early_stopping=True, random_state=seed, **OPTIONS) for seed in (0, 1))
    yield from (MLPClassifier(dropout=0.2, random_state=seed, **OPTIONS) for seed in (0, 1))
    yield from (MLPClassifier(batch_norm=True, random_state=seed, **OPTIONS) for seed in (0, 1))
    yield from (MLPClassifier(class_weight="balanced", random_state=seed, **OPTIONS) for seed in (0, 1))
    yield from (MLPClassifier(optimizer="nadam", random_state=seed, **OPTIONS) for seed in (0, 1))
    yield from (MLPClassifier(schedule="cosine", random_state=seed, **OPTIONS) for seed in (0, 1))
    sgd = {**OPTIONS, "solver": "sgd"}
    yield from (MLPClassifier(learning_rate="adaptive", random_state=seed, **sgd) for seed in (0, 1))
    yield from (MLPClassifier(learning_rate="invscaling", random_state=seed, **sgd) for seed in (0, 1))
    yield from (MLPClassifier(numerics="exact", random_state=seed, **OPTIONS) for seed in (0, 1))
    yield MLPClassifier(random_state=user, **OPTIONS)
    yield MLPRegressor(random_state=0, **OPTIONS)
    yield from (MLPClassifier(random_state=0, **{**OPTIONS, "hidden_layer_sizes": width}) for width in (3, 4))


def test_others_are_fitted_by_themselves(repeated):
    alone = [e.fit(X, LABELS) for e in others()]
    many = fit_many(others(), X, LABELS, threads=1)
    assert repeated == []
    for one, other in zip(many, alone, strict=True):
        a, b = one.__getstate__(), other.__getstate__()
        assert [name for name in a if name != "random_state" and not same(a[name], b[name])] == []


def test_a_fit_that_diverges_says_what_its_own_fit_says(repeated):
    def build():
        good, bad = drawn({"solver": "sgd"}, 2)
        return good, bad.set_params(learning_rate_init=1e300, max_iter=30)

    with pytest.raises(ValueError, match="non-finite") as alone:
        build()[1].fit(X, LABELS)
    with pytest.raises(ValueError, match="non-finite") as many:
        fit_many(build(), X, LABELS, threads=1)
    assert str(many.value) == str(alone.value)
    assert repeated == [False]


def test_invalid_parameters_and_samples_are_refused_as_ever():
    good, bad = drawn({}, 2)
    with pytest.raises(ValueError, match="'alpha' parameter"):
        fit_many([good, bad.set_params(alpha=-1.0)], X, LABELS, threads=1)
    wrong = X.copy()
    wrong[3, 4] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        fit_many(drawn({}), wrong, LABELS, threads=1)


def test_warnings_are_those_of_own_fits():
    def told(call):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        return [(warning.category, str(warning.message)) for warning in caught]

    assert told(lambda: fit_many(drawn({}), X, LABELS)) == told(lambda: [e.fit(X, LABELS) for e in drawn({})])


def test_an_ending_leaves_whole_epochs(repeated):
    first, second = drawn({"max_iter": 10}, 2)
    token, shared = together.workplace.set(together.Workplace()), []
    try:
        first.fit(X, LABELS)
        asked = iter([False, False, True])
        place = together.workplace.get()
        thread = threading.Thread(target=lambda: shared.append(_fit_until(second, asked, place)))
        thread.start()
        thread.join()
    finally:
        together.workplace.reset(token)
    assert repeated == [True]
    assert 0 < second.n_iter_ < second.max_iter
    assert "interrupted" in shared[0][-1]


def _fit_until(estimator, asked, place):
    """Fit in a thread that is told to end; return the warnings."""
    together.workplace.set(place)
    ending_of_thread.set(lambda: next(asked, True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator.set_params(max_iter=5000, tol=0.0, n_iter_no_change=5000).fit(X, LABELS)
    return [str(warning.message) for warning in caught]


def test_a_search_has_the_results_of_grid_search(repeated):
    grid = {"alpha": [1e-4, 1.0], "learning_rate_init": [0.01, 0.05]}
    options = {"cv": 4, "return_train_score": True}
    searches = [kind(next(drawn({})), grid, **options).fit(X, LABELS) for kind in (GridSearchCV, MLPSearchCV)]
    assert len(repeated) >= 10
    results = [search.cv_results_ for search in searches]
    for name in results[0]:
        if "time" not in name and name != "params":
            np.testing.assert_array_equal(results[0][name], results[1][name])
    assert_same([searches[0].best_estimator_], [searches[1].best_estimator_])
    assert (results[1]["mean_fit_time"] > 0.0).all()


def test_programs_of_many_kinds_are_forgotten(repeated):
    widths = [*range(2, 2 + together._KINDS + 1), 2]
    fit_many([next(drawn({"hidden_layer_sizes": width})) for width in widths], X, LABELS, threads=1)
    assert repeated == []


def test_numbers_of_the_labels_kind_are_scored_as_ever():
    e = next(drawn({})).fit(X, LABELS)
    for truth in (LABELS, LABELS.astype(np.int32), LABELS.astype(float), list(LABELS)):
        assert e.score(X, truth) == np.mean(e.predict(X) == LABELS)
    with pytest.raises(ValueError, match="inconsistent"):
        e.score(X, LABELS[:-1])


def test_nothing_is_shared_outside():
    fit_many(drawn({}), X, LABELS)
    assert together.workplace.get() is None
