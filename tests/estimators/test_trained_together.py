"""Alike fits that are trained as one network, as on a GPU: each estimator gets what its own fit gives.

Most tests run on NumPy, by the same code. tests/estimators/test_cuda_together.py looks at what a GPU is asked for.
"""

import _thread
import signal
import threading
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

from alike_fits import LABELS, LOSSES, OPTIONS, X, drawn
from sklearn.base import BaseEstimator
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import xnn
from xnn.callbacks import Callback
from xnn.errors import DeviceMemoryError, LabelError
from xnn.sklearn import MLPClassifier, MLPRegressor, MLPSearchCV, fit_many, meeting, stack, training

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def stacks(monkeypatch):
    """NumPy counts as a GPU. A list with the number of networks of each stack."""
    monkeypatch.setattr(meeting, "STACKED", ("numpy",))
    monkeypatch.setattr(training, "_FEW_PRODUCTS", np.inf)
    counts, train = [], stack.Stack.train

    def counting(self):
        counts.append(len(self.fits))
        return train(self)

    monkeypatch.setattr(stack.Stack, "train", counting)
    before = [*threading.enumerate()]
    yield counts
    assert [*threading.enumerate()] == before


def assert_close(one, other, tolerance, name=""):
    """Whether two attributes are the same within rounding, and those that are no real numbers exactly."""
    if isinstance(one, BaseEstimator | dict):
        one, other = (vars(x) if isinstance(x, BaseEstimator) else x for x in (one, other))
        assert one.keys() == other.keys(), name
        for key in one:
            assert_close(one[key], other[key], tolerance, f"{name}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), name
        for a, b in zip(one, other, strict=True):
            assert_close(a, b, tolerance, name)
    elif isinstance(one, np.random.RandomState):
        assert_close(one.get_state(), other.get_state(), tolerance, name)
    elif isinstance(one, np.ndarray) and one.dtype.kind != "f":
        np.testing.assert_array_equal(one, other, err_msg=name)
    elif isinstance(one, np.ndarray | float):
        assert np.asarray(one).dtype == np.asarray(other).dtype, name
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=name)
    else:
        assert type(one) is type(other), name
        assert one == other, name


def assert_equal_fits(many, alone, tolerance=1e-9):
    for one, other in zip(many, alone, strict=True):
        assert one.model_.numerics == other.model_.numerics
        assert_close(one.__getstate__(), other.__getstate__(), tolerance)


GROUPS = {
    "adam": {},
    "sgd": {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.1},
    "momentum": {"solver": "sgd", "learning_rate_init": 0.05},
    "no penalty": {"alpha": 0.0, "beta_1": 0.0, "beta_2": 0.5, "epsilon": 1e-3},
    "a batch": {"batch_size": 150},
    "a last batch of one": {"batch_size": 149},
    "as they are": {"shuffle": False},
    "tanh": {
        "activation": "tanh",
        "hidden_layer_sizes": (6, 5),
        "solver": "sgd",
        "nesterovs_momentum": False,
    },
    "identity": {"activation": "identity", "hidden_layer_sizes": (6, 5)},
    "float32": {"dtype": "float32", "activation": "logistic"},
}


#: The groups that .ci/full alone trains; each has what another one has, but for one option.
RARE = ("no penalty", "a batch", "as they are", "identity")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "group",
    [pytest.param(g, id=n, marks=[pytest.mark.slow] if n in RARE else []) for n, g in GROUPS.items()],
)
def test_every_attribute_is_that_of_an_own_fit(stacks, group):
    tolerance = 1e-5 if "dtype" in group else 1e-9
    alone, many = [e.fit(X, LABELS) for e in drawn(group)], fit_many(drawn(group), X, LABELS)
    assert stacks == [5]
    assert len({e.n_iter_ for e in alone}) > 1
    assert_equal_fits(many, alone, tolerance)
    for e in (*alone, *many):
        e.partial_fit(X, LABELS)
    assert_equal_fits(many, alone, tolerance)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("kind", "group", "y"), LOSSES.values(), ids=LOSSES.keys())
def test_every_loss_has_the_results_of_own_fits(stacks, kind, group, y):
    alone = [e.fit(X, y) for e in drawn(group, 4, kind)]
    many = fit_many(drawn(group, 4, kind), X, y)
    assert stacks == [4]
    assert_equal_fits(many, alone, 1e-5 if "dtype" in group else 1e-9)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("group", ["adam", "momentum", "float32"])
def test_every_backend(stacks, monkeypatch, other, group):
    monkeypatch.setattr(meeting, "STACKED", (other.name,))
    with xnn.backend(other.name):
        alone = [e.fit(X, LABELS) for e in drawn(GROUPS[group], 2)]
        many = fit_many(drawn(GROUPS[group], 2), X, LABELS)
        assert stacks == [2]
        assert_equal_fits(many, alone, 1e-5 if group == "float32" else 1e-9)


@pytest.mark.slow
def test_rows_of_two_numbers_are_two_stacks(stacks):
    rows = [np.r_[0:fold, fold + 30 + fold % 2 : 150] for fold in range(8)]
    alone = [e.fit(X[part], LABELS[part]) for e, part in zip(drawn({}, 8), rows, strict=True)]
    assert_equal_fits(fit_many(drawn({}, 8), X, LABELS, rows=rows), alone)
    assert stacks == [4, 4]


def test_a_network_that_has_ended_is_as_it_was(stacks):
    """Whatever becomes of the others: one that goes on, and one whose steps are so large that its loss grows."""
    short, ends = {"max_iter": 6, "n_iter_no_change": 50}, []
    for others in ({"max_iter": 6}, {"max_iter": 25}, {"max_iter": 25, "learning_rate_init": 3.0}):
        pair = [next(drawn({})).set_params(**(short | given)) for given in ({}, others)]
        ends.append(fit_many(pair, X, LABELS)[0])
    assert stacks == [2, 2, 2]
    for other in ends[1:]:
        assert_close(other.__getstate__(), ends[0].__getstate__(), 0.0)


@pytest.mark.slow
def test_half_of_many_networks_go_on_in_a_stack_of_their_own(stacks, monkeypatch):
    monkeypatch.setattr(stack, "_MANY", 4)
    alone, many = [e.fit(X, LABELS) for e in drawn({}, 9)], fit_many(drawn({}, 9), X, LABELS)
    assert stacks[0] == 9
    assert stacks[1] <= 4
    assert_equal_fits(many, alone)


@pytest.mark.slow
def test_text_labels_second_fits_and_warm_starts(stacks):
    names = np.array(["even", "odd", "prime"])[LABELS % 3]
    for start, other in ((False, (X[:, :30], LABELS)), (True, (X, names))):
        alone, many = (list(drawn({"warm_start": start}, 3)) for _ in range(2))
        for data in ((X, names), other):
            for e in alone:
                e.fit(*data)
            fit_many(many, *data)
            assert_equal_fits(many, alone)
    assert stacks == [3] * 4


def other_kinds():
    """Pairs of estimators that are not alike, or do more than train."""
    for options in (
        {"early_stopping": True}, {"dropout": 0.2}, {"batch_norm": True}, {"class_weight": "balanced"},
        {"optimizer": "nadam"}, {"schedule": "cosine"}, {"solver": "sgd", "learning_rate": "adaptive"},
        {"numerics": "exact"}, {"callbacks": [Callback()]}, {"solver": "lbfgs"},
    ):  # fmt: skip
        yield from (MLPClassifier(random_state=seed, **(OPTIONS | options)) for seed in (0, 1))
    yield MLPRegressor(random_state=0, **OPTIONS)
    yield from (
        MLPClassifier(random_state=0, **(OPTIONS | {"hidden_layer_sizes": width})) for width in (3, 4)
    )


@pytest.mark.slow
def test_others_are_fitted_one_after_another(stacks):
    for pair in (slice(None, 16), slice(18, None)):  # those of callbacks share one
        alone, many = (
            [e.fit(X, LABELS) for e in [*other_kinds()][pair]],
            fit_many([*other_kinds()][pair], X, LABELS),
        )
        assert_equal_fits(many, alone, 0.0)
    with xnn.numerics("exact"):
        alone, many = [e.fit(X, LABELS) for e in drawn({})], fit_many(drawn({}), X, LABELS)
    assert_equal_fits(many, alone, 0.0)
    alone, many = [e.fit(X, LABELS) for e in drawn({})], fit_many(drawn({}), X, LABELS, threads=1)
    assert_equal_fits(many, alone, 0.0)
    assert stacks == []


@pytest.mark.slow
def test_a_fit_that_diverges_says_what_its_own_fit_says_and_the_others_are_trained(stacks):
    def build():
        fits = [*drawn({"solver": "sgd"}, 6)]
        fits[2].set_params(learning_rate_init=1e300, max_iter=30)
        return fits

    alone, many = build(), build()
    with pytest.raises(ValueError, match="non-finite") as said:
        alone[2].fit(X, LABELS)
    with pytest.raises(ValueError, match="non-finite") as said_together:
        fit_many(many, X, LABELS)
    assert str(said_together.value) == str(said.value)
    assert stacks[0] == 6
    assert stacks.count(3) == 2
    grid = {"learning_rate_init": [0.05, 1e300, 0.1]}
    with pytest.warns(FitFailedWarning, match="2 fits failed"):
        search = MLPSearchCV(alone[0], grid, cv=2, error_score=-1.0).fit(X, LABELS)
    assert search.cv_results_["mean_test_score"][1] == -1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = GridSearchCV(alone[0], grid, cv=2, error_score=-1.0).fit(X, LABELS)
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"])


@pytest.mark.slow
def test_a_stack_has_as_many_networks_as_there_is_memory_for(stacks, monkeypatch):
    needs = []

    def most(trainer, data, rows):
        needs.append(xnn.backends.get_backend("numpy").free_memory() // 7)  # half of it is for three
        return needs[-1]

    monkeypatch.setattr(stack, "most_memory", most)
    alone, many = [e.fit(X, LABELS) for e in drawn({}, 8)], fit_many(drawn({}, 8), X, LABELS)
    assert sorted(stacks) == [2, 3, 3]
    assert_equal_fits(many, alone)


@pytest.mark.slow
def test_a_stack_for_which_there_is_no_memory_is_halved(stacks, monkeypatch):
    train = stack.Stack.train

    def refusing(self):
        if len(self.fits) > 2:
            raise DeviceMemoryError("the memory is full")
        return train(self)

    monkeypatch.setattr(stack.Stack, "train", refusing)
    alone, many = [e.fit(X, LABELS) for e in drawn({}, 5)], fit_many(drawn({}, 5), X, LABELS)
    assert stacks == [2, 2]
    assert_equal_fits(many, alone)


def test_wrong_data_and_parameters_are_refused_as_ever(stacks):
    counts = np.where(np.arange(150) == 120, -3.0, LABELS)
    with pytest.raises(LabelError, match="-3"):
        fit_many(drawn({"loss": "poisson"}, 2, MLPRegressor), X, counts)
    good, bad = drawn({}, 2)
    with pytest.raises(ValueError, match="'alpha' parameter"):
        fit_many([good, bad.set_params(alpha=-1.0)], X, LABELS)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("Thread-")] == []


def test_an_error_of_the_common_training_is_raised(stacks, monkeypatch):
    def broken(self):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(stack.Stack, "train", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        fit_many(drawn({}), X, LABELS)


def test_warnings_are_those_of_own_fits(stacks):
    def told(call):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        return [(warning.category, str(warning.message)) for warning in caught]

    assert told(lambda: fit_many(drawn({}), X, LABELS)) == told(lambda: [e.fit(X, LABELS) for e in drawn({})])


@pytest.mark.sampled(8)
@pytest.mark.parametrize("cv", [3, GroupKFold(3), [(np.arange(100), np.arange(100, 150))] * 2], ids=str)
def test_a_search_has_the_results_of_grid_search(stacks, monkeypatch, cv):
    if isinstance(cv, list):  # of which it is not known how many folds there are
        monkeypatch.setattr(meeting, "_PATIENCE", 0.1)
    grid = {"mlpclassifier__alpha": [1e-4, 1.0], "mlpclassifier__learning_rate_init": [0.01, 0.05]}
    pipeline = make_pipeline(StandardScaler(), next(drawn({})))
    groups = {"groups": np.arange(150) % 6} if isinstance(cv, GroupKFold) else {}
    theirs, ours = (
        kind(pipeline, grid, cv=cv, return_train_score=True).fit(X, LABELS, **groups)
        for kind in (GridSearchCV, MLPSearchCV)
    )
    assert stacks == [12] or isinstance(cv, list)
    for name, values in theirs.cv_results_.items():
        if "time" not in name and name != "params":
            assert_close(np.asarray(ours.cv_results_[name]).tolist(), np.asarray(values).tolist(), 1e-9)
    assert ours.best_params_ == theirs.best_params_


class Twice(BaseEstimator):
    """Fits two classifiers, and perhaps none."""

    def __init__(self, count=2):
        self.count = count

    def fit(self, X, y):
        self.fits = [e.fit(X, y) for e in drawn({}, self.count)]
        return self


def test_fits_inside_other_estimators(stacks, monkeypatch):
    alone = Twice().fit(X, LABELS)

    class Ours(Twice):
        def get_params(self, deep=True):
            return super().get_params(deep) | {"backend": "numpy"}

    many = fit_many([Ours(count) for count in (2, 0, 2, 1)], X, LABELS)
    assert stacks == [3, 2]
    assert_equal_fits([*many[0].fits, *many[2].fits], [*alone.fits, *alone.fits])


class Interrupts(Callback):
    """Presses Ctrl-C after the third epoch."""

    def on_epoch_end(self, history, entry):
        if len(history.epochs) == 3:
            _thread.interrupt_main()


def test_ctrl_c_ends_all_fits(stacks, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    endless = {"max_iter": 10**7, "tol": 0.0, "n_iter_no_change": 10**7}
    told = stack.OwnFit.told

    def pressing(self, loss):
        if self.e.random_state == 0 and len(self.history.epochs) == 3:
            _thread.interrupt_main()
        return told(self, loss)

    monkeypatch.setattr(stack.OwnFit, "told", pressing)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit_many([e.set_params(**endless) for e in drawn({})], X, LABELS)
        waiting = next(drawn({})).set_params(**endless)
        alone = MLPClassifier(callbacks=[Interrupts()], **(OPTIONS | endless))
        with pytest.raises(KeyboardInterrupt):
            fit_many([waiting, alone], X, LABELS)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stacks == [5]
