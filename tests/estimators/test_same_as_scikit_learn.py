"""xnn.sklearn's estimators beside scikit-learn's own: the same parameters, curves, weights, warnings and errors."""

import inspect
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn
from sklearn import neural_network as theirs
from sklearn.datasets import load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from xnn import sklearn as ours
from xnn.benchmarks.studies.scikit_learn_scores import compared
from xnn.sklearn import training

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings(
        "ignore:scipy.optimize. The `disp`:DeprecationWarning"
    ),  # scikit-learn before 1.7
]
NEWEST = tuple(map(int, sklearn.__version__.split(".")[:2]))
WEIGHTED = NEWEST >= (1, 7)  # scikit-learn's own MLP takes sample_weight, and has loss="poisson"

X, LABELS = load_digits(return_X_y=True)
X, LABELS = X[:400] / 16.0, LABELS[:400]
PATIENTS, GROWTH = load_diabetes(return_X_y=True)
PATIENTS, GROWTH = 20.0 * PATIENTS, GROWTH / 100.0
RANDOM = np.random.RandomState(0)

CLASSES = {
    "ten": LABELS,
    "two": LABELS > 4,
    "text": np.array(["even", "odd"])[LABELS % 2],
    "one": np.zeros(len(LABELS)),
    "several": np.stack([LABELS > 4, LABELS % 2 == 0, LABELS % 3 == 0], axis=1).astype(int),
}
NUMBERS = {"one": GROWTH, "column": GROWTH[:, None], "two": np.stack([GROWTH, GROWTH**2], axis=1)}


def both(name, data, fit=None, **options):
    """The two estimators, fitted on the same data from the same random state; ours computes in float64."""
    options = {"random_state": 3, "max_iter": 8, "hidden_layer_sizes": (12, 7)} | options
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A column-vector y was passed")
        return [getattr(module, name)(**options).fit(*data, **(fit or {})) for module in (theirs, ours)]


def assert_same(a, b, samples, tolerance=1e-9):
    """The curves, weights and predictions of two estimators are the same within rounding."""
    assert a.n_iter_ == b.n_iter_
    for name in ("loss_", "best_loss_", "best_validation_score_"):
        if getattr(a, name, None) is None:
            assert getattr(b, name, None) is None
        else:
            assert getattr(b, name) == pytest.approx(getattr(a, name), rel=tolerance)
    for name in ("loss_curve_", "validation_scores_"):
        if getattr(a, name, None) is not None:
            np.testing.assert_allclose(getattr(b, name), getattr(a, name), rtol=tolerance)
    for name in ("coefs_", "intercepts_"):
        for one, other in zip(getattr(a, name), getattr(b, name), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(other, one, rtol=tolerance, atol=tolerance)
    for name in ("t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(a, name) == getattr(b, name)
    for method in ("predict", "predict_proba", "predict_log_proba"):
        if hasattr(a, method):
            one, other = getattr(a, method)(samples), getattr(b, method)(samples)
            assert one.dtype == other.dtype
            if one.dtype.kind == "f":
                np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-9)
            else:
                np.testing.assert_array_equal(other, one)


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_classifier_has_the_same_numbers(kind, solver):
    assert_same(
        *both("MLPClassifier", (X, CLASSES[kind]), solver=solver), X, 1e-6 if solver == "lbfgs" else 1e-9
    )


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("kind", NUMBERS)
def test_a_regressor_has_the_same_numbers(kind, solver):
    assert_same(*both("MLPRegressor", (PATIENTS, NUMBERS[kind]), solver=solver), PATIENTS, 1e-6)


@pytest.mark.sampled(2)
@pytest.mark.skipif(not WEIGHTED, reason="scikit-learn's own has no sample_weight")
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize(
    ("name", "data", "options"),
    [
        ("MLPClassifier", (X, CLASSES["ten"]), {}),
        ("MLPClassifier", (X, CLASSES["two"]), {}),
        ("MLPClassifier", (X, CLASSES["several"]), {}),
        ("MLPRegressor", (PATIENTS, NUMBERS["two"]), {}),
        ("MLPRegressor", (PATIENTS, np.round(GROWTH)), {"loss": "poisson"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sample_weights_and_a_large_penalty_count_the_same(name, data, options, solver):
    weights = np.random.RandomState(1).uniform(0.0, 2.0, len(data[0]))
    pair = both(name, data, {"sample_weight": weights}, solver=solver, alpha=3.0, batch_size=64, **options)
    assert_same(*pair, data[0], 1e-6)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "options",
    [
        *({"activation": name} for name in ("identity", "logistic", "tanh", "relu")),
        {"learning_rate_init": 0.02, "beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3},
        {"beta_1": 0.0, "beta_2": 0.0, "epsilon": 1e-3},
        {"solver": "sgd", "nesterovs_momentum": False},
        {"solver": "sgd", "momentum": 0.0},
        {"solver": "sgd", "momentum": 1.0, "learning_rate_init": 1e-4},
        {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.1, "learning_rate_init": 0.3},
        {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.3, "tol": 0.1, "max_iter": 30,
         "n_iter_no_change": 2},
        {"shuffle": False},
        {"batch_size": 7, "max_iter": 2},
        {"batch_size": 399, "max_iter": 3},
        {"early_stopping": True, "max_iter": 40, "learning_rate_init": 0.02, "n_iter_no_change": 3},
        {"tol": 0.05, "max_iter": 40, "n_iter_no_change": 3},
        {"tol": 1e9, "n_iter_no_change": np.inf},
        {"hidden_layer_sizes": 5},
        {"hidden_layer_sizes": ()},
        {"alpha": 0.0},
        {"solver": "lbfgs", "max_fun": 5},
        {"solver": "lbfgs", "tol": 0.05, "max_iter": 100},
    ],
    ids=str,
)  # fmt: skip
def test_every_parameter_means_the_same(options):
    assert_same(*both("MLPClassifier", (X, LABELS), **options), X, 1e-7)


@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_partial_fit_and_warm_start_go_on_the_same(name, solver):
    one, other = both(name, (X, LABELS), solver=solver, warm_start=True)
    for estimator in (one, other):
        estimator.fit(X, LABELS)
    assert_same(one, other, X)
    for estimator in (one, other):
        for part in (slice(0, 150), slice(150, 400)):
            estimator.partial_fit(X[part], LABELS[part])
    assert_same(one, other, X)
    fresh = [getattr(module, name)(random_state=0, solver=solver) for module in (theirs, ours)]
    for estimator in fresh:
        classes = {"classes": np.arange(12)} if name == "MLPClassifier" else {}
        estimator.partial_fit(X[:100], LABELS[:100], **classes)
        estimator.partial_fit(X[100:], LABELS[100:])
    assert_same(*fresh, X)


@pytest.mark.parametrize("batch_size", ["auto", 100])
def test_fits_that_share_a_random_state_take_the_same_numbers_from_it(batch_size):
    shared, drawn = [np.random.RandomState(5), np.random.RandomState(5)], []
    for module, state in zip((theirs, ours), shared, strict=True):
        model = module.MLPClassifier((4,), batch_size=batch_size, max_iter=3, random_state=state)
        drawn.append([model.fit(X[:150], LABELS[:150]).loss_ for _ in range(2)])
    np.testing.assert_allclose(drawn[1], drawn[0])
    assert shared[0].uniform() == shared[1].uniform()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"beta_1": 0.1, "beta_2": 0.5, "epsilon": 1.0, "learning_rate_init": 0.5}),
        ({"solver": "sgd"}, {"momentum": 0.1, "nesterovs_momentum": False, "learning_rate_init": 0.5}),
        ({"solver": "sgd", "learning_rate": "invscaling"}, {"power_t": 2.0, "learning_rate_init": 0.5}),
        ({}, {"alpha": 5.0, "batch_size": 50, "shuffle": False}),
    ],
    ids=str,
)
def test_partial_fit_goes_on_with_the_optimizer_that_it_began_with(before, after):
    pair = [module.MLPClassifier((5,), random_state=0, **before) for module in (theirs, ours)]
    for estimator in pair:
        estimator.partial_fit(X, LABELS, classes=np.arange(10)).set_params(**after)
        estimator.partial_fit(X, LABELS).partial_fit(X, LABELS)
    assert_same(*pair, X)


@pytest.mark.parametrize("trained", ["float32", "float64", "int8", ">f8"])
@pytest.mark.parametrize("given", ["float16", "float32", "float64", "int8", "bool", ">f8"])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_predictions_have_scikit_learns_dtype(trained, given, solver):
    pair = both("MLPRegressor", ((16 * X).astype(trained), LABELS), solver=solver, max_iter=1)
    one, other = (estimator.predict(X.astype(given)) for estimator in pair)
    assert one.dtype == other.dtype
    assert pair[0].coefs_[0].dtype == pair[1].coefs_[0].dtype
    np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-3)


def test_a_poisson_loss_that_is_infinite_on_the_way_does_not_end_l_bfgs():
    if not WEIGHTED:
        pytest.skip("scikit-learn's own has no such loss")
    counts, ends = np.random.RandomState(0).poisson(2.0 * np.exp(X[:, 20])), []
    for module in (theirs, ours):
        model = module.MLPRegressor("poisson", (), solver="lbfgs", random_state=0, max_iter=20)
        with np.errstate(all="ignore"):
            ends.append(np.isfinite(model.fit(100.0 * X, counts).predict(100.0 * X)).all())
    assert ends[0] == ends[1]


@pytest.mark.skipif(not WEIGHTED, reason="scikit-learn's own has no sample_weight")
@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
def test_l_bfgs_weighs_samples_alike_that_it_computes_in_parts(name, monkeypatch):
    monkeypatch.setattr(training, "_ROWS_AT_A_TIME", 90)
    weights = np.repeat([0.0, 0.1, 3.0, 1.0], 100)
    assert_same(*both(name, (X, LABELS), {"sample_weight": weights}, solver="lbfgs"), X, 1e-6)


@pytest.mark.skipif(not WEIGHTED, reason="scikit-learn's own has no sample_weight")
@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"alpha": 0.0}, {"solver": "lbfgs"}], ids=str)
@pytest.mark.parametrize("zeros", [slice(None), slice(100, 200)], ids=["all", "a batch"])
def test_a_batch_of_samples_without_weight_is_scikit_learns_error(zeros, options):
    weight, errors = np.ones(len(X)), []
    weight[zeros] = 0.0
    for module in (theirs, ours):
        model = module.MLPClassifier((3,), batch_size=1, max_iter=2, random_state=0).set_params(**options)
        try:
            errors.append(model.fit(X, LABELS, weight).n_iter_)
        except (ValueError, ZeroDivisionError) as error:
            errors.append((type(error), str(error)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("hidden", [2.5, (5, 2.0), ((3,),)])
def test_widths_that_are_no_integers_are_refused(hidden):
    for module in (theirs, ours):
        with pytest.raises((TypeError, ValueError)):
            module.MLPClassifier(hidden).fit(X, LABELS)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", ["wine", "diabetes"])
def test_scores_are_within_noise_of_scikit_learns_over_ten_seeds(name):
    scores = compared(name, seeds=10, max_iter=60, learning_rate_init=0.02)
    theirs = scores.pop("scikit-learn")
    assert theirs.mean() > {"wine": 0.9, "diabetes": 0.3}[name]
    for found in scores.values():
        assert abs(found.mean() - theirs.mean()) < theirs.std() / np.sqrt(10)


def test_weights_that_were_assigned_are_those_that_predict_and_train():
    one, other = both("MLPClassifier", (X, LABELS))
    for estimator in (one, other):
        estimator.coefs_[0] *= 0.5
        estimator.intercepts_[-1] = np.arange(10.0)
    assert_same(one, other, X)
    assert np.shares_memory(other.model_.layers[0].weight.value, other.coefs_[0])
    many = np.tile(X, (20, 1))  # too many for scikit-learn's forward pass
    np.testing.assert_allclose(other.predict_proba(many), one.predict_proba(many), rtol=1e-9)
    for estimator in (one, other):
        estimator.partial_fit(X, LABELS)
    assert_same(one, other, X)


@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
def test_the_parameters_are_scikit_learns_in_its_order_and_then_ours(name):
    mine = inspect.signature(getattr(ours, name)).parameters
    known = inspect.signature(getattr(theirs, name)).parameters
    order = [parameter for parameter in mine if parameter in known]
    assert order == [*known]
    assert all(
        mine[p].default == known[p].default and mine[p].kind == known[p].kind for p in known if p != "loss"
    )
    own = [*mine][[*mine].index("max_fun") + 1 :]
    assert all(mine[parameter].kind is inspect.Parameter.KEYWORD_ONLY for parameter in own)
    assert set(mine) - set(known) - set(own) <= {"loss"}
    assert isinstance(getattr(ours, name)(), getattr(theirs, name))


CASES = {
    "alpha": ({"alpha": -1.0}, {}),
    "hidden": ({"hidden_layer_sizes": (5, 0)}, {}),
    "solver": ({"solver": "newton"}, {}),
    "nan": ({}, {"X": np.full((4, 2), np.nan), "y": [0, 1, 0, 1]}),
    "lengths": ({}, {"y": LABELS[:-1]}),
    "stratify": ({"early_stopping": True}, {"X": [[1, 2], [2, 3], [3, 4], [4, 5]], "y": [0, 0, 0, 1]}),
    "small": ({"early_stopping": True}, {"X": [[1, 2], [2, 3], [3, 4]], "y": [0, 0, 0]}),
    "overflow": ({}, {"X": np.finfo(float).max * RANDOM.uniform(size=(9, 2)), "y": [0, 1, 0] * 3}),
}


def error_of(module, case):
    """The message of the ValueError that a fit raises."""
    options, data = CASES[case]
    name = "MLPRegressor" if case == "overflow" else "MLPClassifier"
    try:
        with np.errstate(all="ignore"):
            getattr(module, name)(**options).fit(**({"X": X, "y": LABELS} | data))
    except ValueError as error:
        return str(error)
    return pytest.fail(f"{module.__name__}: no ValueError")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_errors_are_scikit_learns(case):
    if case == "small" and not WEIGHTED:
        pytest.skip("scikit-learn's own takes a validation set of one sample")
    # Where weights are not finite, ours says more.
    assert error_of(ours, case).startswith(error_of(theirs, case))


@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
def test_what_is_refused_before_a_fit_and_after_it(name):
    kind = getattr(ours, name)
    with pytest.raises(NotFittedError):
        kind().predict(X)
    with pytest.raises(NotFittedError):
        kind().model_  # noqa: B018 - raises
    assert not hasattr(kind(solver="lbfgs"), "partial_fit")
    fitted = kind(early_stopping=True, max_iter=2).fit(X, LABELS)
    with pytest.raises(ValueError, match="partial_fit does not support early_stopping=True"):
        fitted.partial_fit(X, LABELS)
    with pytest.raises(ValueError, match="X has 63 features"):
        fitted.predict(X[:, 1:])


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_a_fit_that_has_not_converged_warns(solver):
    with pytest.warns(ConvergenceWarning):
        ours.MLPClassifier(solver=solver, max_iter=3, random_state=0).fit(X, LABELS)


def test_a_batch_larger_than_the_data_is_clipped_with_a_warning():
    with pytest.warns(UserWarning, match="It is going to be clipped"):
        ours.MLPClassifier(batch_size=1000, max_iter=2).fit(X, LABELS)


def test_progress_is_printed_as_scikit_learn_prints_it(capsys):
    options = {
        "learning_rate": "adaptive",
        "solver": "sgd",
        "tol": 0.5,
        "n_iter_no_change": 1,
        "verbose": True,
    }
    said = []
    for early in (False, True):
        for module in (theirs, ours):
            module.MLPClassifier(random_state=0, max_iter=5, early_stopping=early, **options).fit(X, LABELS)
            said.append(capsys.readouterr().out)
    assert "Setting learning rate" in said[0]
    assert said[0] == said[1]
    assert said[2] == said[3]
