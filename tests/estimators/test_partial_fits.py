"""One partial_fit after the other: they go on with what was prepared, and train as if each prepared everything."""

import copy
import gc
import pickle
import sys
import weakref

import numpy as np
import pytest
from naming import plain

pytest.importorskip("sklearn")

from sklearn.base import clone

import xnn
from xnn import initializers, layers
from xnn.sklearn import MLPClassifier, MLPRegressor, training
from xnn.training import steps

N, FEATURES = 60, 4


def parts(count=5, rows=N, weighted=False):
    random = np.random.default_rng(0)
    for _ in range(count):
        X = random.standard_normal((rows, FEATURES))
        weights = random.uniform(0.5, 2.0, rows) if weighted else None
        yield X, (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5), weights


def train(estimator, stream, prepares=False, between=lambda estimator, n: None):
    """Call partial_fit on each part. prepares: whether each prepares everything. between: is called after each."""
    classes = {"classes": [0, 1, 2]} if hasattr(estimator, "class_weight") else {}
    for n, (X, y, weights) in enumerate(stream):
        if prepares:
            estimator._prepared = None
        estimator.partial_fit(X, y, weights, **classes)
        between(estimator, n)
    return estimator


def assert_same(a, b):
    for one, other in zip((*a.coefs_, *a.intercepts_), (*b.coefs_, *b.intercepts_), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (a.loss_curve_, a.t_, a.n_iter_) == (b.loss_curve_, b.t_, b.n_iter_)


class Scale(layers.Layer):
    """y = a x for each feature, written by hand: it reads the parameter's array in each step."""

    def __init__(self, features):
        self.a = layers.Parameter("a", (features,), initializers.Ones(), "float64")
        super().__init__()

    def forward(self, x, training=False):
        self.x = x
        return x * self.a.value

    def backward(self, dout, input_gradient=True):
        self.a.grad = (dout * self.x).sum(axis=0)
        return dout * self.a.value


def by_hand(features, outputs):
    stack = Scale(features), layers.Dense(features, outputs, dtype="float64")
    return xnn.Sequential(*stack, seed=0)


@pytest.fixture
def prepared(monkeypatch):
    """A list that gets an entry for each time that programs are made."""
    made = []
    begin = steps.Stepper.begin_anew
    monkeypatch.setattr(
        steps.Stepper, "begin_anew", lambda self: [made.append(self.batches.rows), begin(self)][1]
    )
    return made


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "sgd", "batch_size": 25},
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 10.0, "n_iter_no_change": 1},
        {"solver": "sgd", "learning_rate": "invscaling"},
        {"dropout": 0.3, "batch_norm": True, "dtype": "float32"},
        {"optimizer": "adamw", "schedule": "cosine"},
        {"numerics": "exact"},
        {"model": by_hand, "batch_size": 25},
        {"hidden_layer_sizes": (), "alpha": 0.0, "threads": 1},
    ],
    ids=plain,
)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_bits_are_those_of_fits_that_prepare_everything(prepared, kind, weighted, options):
    options = {"hidden_layer_sizes": (7,), "random_state": 0} | options
    one = train(kind(**options), parts(weighted=weighted))
    assert prepared == [N]
    assert_same(one, train(kind(**options), parts(weighted=weighted), prepares=True))


def _scaled(estimator, n):
    estimator.coefs_ = [2.0 * coef for coef in estimator.coefs_]


def _written(estimator, n):
    estimator.intercepts_[0][...] = n


def _frozen(estimator, n):
    estimator.model_.layers[0].weight.frozen = n == 1


def _other_parameters(estimator, n):
    estimator.set_params(alpha=0.1 * n, learning_rate_init=0.01 * (n + 1))


def _fitted(estimator, n):
    X, y, _ = next(parts(1))
    estimator.set_params(max_iter=2, warm_start=True, n_iter_no_change=5).fit(X, y)


def _layer_changed(estimator, n):
    estimator.model_.layers[1].rate = 0.1 * n


@pytest.mark.parametrize(
    "between",
    [_scaled, _written, _frozen, _other_parameters, _fitted, _layer_changed],
    ids=lambda f: f.__name__,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_changes_between_parts_counts(between):
    options = {"hidden_layer_sizes": (7,), "random_state": 0, "dropout": 0.5, "activation": "identity"}
    one, other = (train(MLPClassifier(**options), parts(), prepares, between) for prepares in (False, True))
    assert_same(one, other)


@pytest.mark.parametrize("state", [None, np.random.RandomState(3), np.int64(3)], ids=str)
def test_the_random_state_may_change_between_parts(state):
    options = {"hidden_layer_sizes": (7,), "batch_size": 25, "dropout": 0.5}
    several = []
    for prepares in (False, True):
        np.random.seed(5)  # noqa: NPY002
        given = copy.deepcopy(state)
        states = [3, 4, given, 3]
        several.append(
            train(
                MLPClassifier(**options, random_state=3),
                parts(4),
                prepares,
                lambda estimator, n: estimator.set_params(random_state=states[n]),  # noqa: B023
            )
        )
        if isinstance(given, np.random.RandomState):
            assert given.rand() != np.random.RandomState(3).rand()
    assert_same(*several)


def test_masks_of_compiled_kernels_are_those_of_each_part(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(training, "_FEW_PRODUCTS", 0)
    options = {"hidden_layer_sizes": (7,), "batch_size": 25, "dropout": 0.5, "random_state": 0}
    assert_same(*(train(MLPClassifier(**options), parts(), prepares) for prepares in (False, True)))


def test_parts_of_another_size_or_with_weights_prepare_anew(prepared):
    stream = [*parts(2), *parts(2, rows=9), *parts(2, weighted=True), *parts(1)]
    estimators = [train(MLPClassifier((7,), random_state=0), stream, prepares) for prepares in (False, True)]
    assert_same(*estimators)
    assert prepared[:4] == [N, 9, N, N]


def test_nothing_of_the_data_is_kept_or_written_to():
    stream = [*parts(3, weighted=True)]
    copies = copy.deepcopy(stream)
    estimator = train(MLPClassifier((7,)), stream)
    for given, before in zip(stream, copies, strict=True):
        for array, earlier in zip(given, before, strict=True):
            np.testing.assert_array_equal(array, earlier)
    alive = [weakref.ref(array) for given in stream for array in given]
    count = sys.getrefcount(estimator)
    del stream, given, array
    assert [ref for ref in alive if ref() is not None] == []
    gc.collect()
    assert sys.getrefcount(estimator) == count


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_prepare_themselves(copied):
    estimator = train(MLPClassifier((7,), random_state=0), parts(2))
    other = copied(estimator)
    assert other._prepared is None
    assert not hasattr(clone(estimator), "coefs_")
    assert_same(train(estimator, parts()), train(other, parts()))


def test_errors_are_those_of_the_first_part():
    estimator = train(MLPClassifier((7,), random_state=0), parts(2, weighted=True))
    before = [coef.copy() for coef in estimator.coefs_]
    X, y, weights = next(parts(1, weighted=True))
    for args, message in (
        ((np.full_like(X, np.nan), y), "contains NaN"),
        ((X, y + 1), "classes"),
        ((X, y, -weights), "at least 0"),
        ((np.full_like(X, 1.7e308), y, weights), "non-finite parameter weights"),
    ):
        with pytest.raises(ValueError, match=message), np.errstate(all="ignore"):
            estimator.partial_fit(*args)
        for coef, earlier in zip(estimator.coefs_, before, strict=True):
            np.testing.assert_array_equal(coef, earlier)
    train(estimator, parts(2, weighted=True))
