"""What xnn.sklearn's estimators can do beyond scikit-learn's."""

import copy
import json

import numpy as np
import pytest
from naming import plain

pytest.importorskip("sklearn")

from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.utils.class_weight import compute_sample_weight

import xnn
from xnn import callbacks, layers, optimizers, schedules
from xnn.errors import BackendUnavailableError, OptionError, ShapeError
from xnn.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, LABELS = load_digits(return_X_y=True)
X, LABELS = X[:600] / 16.0, LABELS[:600]
OPTIONS = {"max_iter": 20, "random_state": 0, "learning_rate_init": 0.01, "hidden_layer_sizes": 30}


def logistic(features, outputs):
    return xnn.Sequential(layers.Dense(features, outputs))


def convolutional(features, outputs, seed):
    assert features == 64
    stack = (
        layers.Reshape((1, 8, 8)),
        layers.Conv2D(1, 8, 3),
        layers.ReLU(),
        layers.MaxPool2D(2),
        layers.Flatten(),
    )
    return xnn.Sequential(*stack, layers.Dense(72, outputs), seed=seed)


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    "options",
    [
        *(
            {"activation": name}
            for name in ("gelu", "silu", "elu", "selu", "leaky_relu", "softplus", "sigmoid")
        ),
        {"dropout": 0.2},
        {"batch_norm": True},
        {"batch_norm": True, "dropout": 0.1, "activation": "gelu", "early_stopping": True},
        {"optimizer": "adamw"},
        {"optimizer": "rmsprop", "schedule": "cosine"},
        {"optimizer": optimizers.Nadam(0.01, clip_norm=1.0)},
        {"schedule": "step:factor=0.5"},
        {"schedule": schedules.Cosine(0.2, steps=60), "solver": "sgd"},
        {"model": convolutional, "max_iter": 60},
        {"class_weight": "balanced"},
        {"numerics": "exact", "max_iter": 6, "learning_rate_init": 0.03},
        {"backend": "numpy", "threads": 1},
    ],
    ids=plain,
)
def test_each_option_learns_and_is_the_same_again(options):
    one, other = (MLPClassifier(**(OPTIONS | options)).fit(X, LABELS) for _ in range(2))
    assert one.score(X, LABELS) > 0.9
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))
    other.set_params(class_weight=None, early_stopping=False).partial_fit(X, LABELS)
    assert np.isfinite(other.predict_proba(X)).all()
    assert one.schedule or not np.array_equal(one.predict_proba(X), other.predict_proba(X))


def test_a_given_optimizer_or_schedule_is_not_changed_by_a_fit():
    rule = optimizers.Adam(0.01)
    MLPClassifier(**(OPTIONS | {"optimizer": rule, "schedule": "cosine", "max_iter": 2})).fit(X, LABELS)
    assert rule.state == {}
    assert rule.learning_rate == 0.01


def test_class_weights_are_sample_weights():
    weights = {n: float(n) for n in range(10)}
    one = MLPClassifier(class_weight=weights, **OPTIONS).fit(X, LABELS, sample_weight=np.full(600, 2.0))
    other = MLPClassifier(**OPTIONS).fit(X, LABELS, sample_weight=2.0 * LABELS)
    np.testing.assert_array_equal(one.coefs_[0], other.coefs_[0])
    balanced = MLPClassifier(class_weight="balanced", **OPTIONS)
    rare = (LABELS == 8).astype(int)
    weighed = MLPClassifier(**OPTIONS).fit(X, rare, sample_weight=compute_sample_weight("balanced", rare))
    np.testing.assert_array_equal(balanced.fit(X, rare).coefs_[0], weighed.coefs_[0])
    with pytest.raises(ValueError, match="cannot be used with partial_fit"):
        balanced.partial_fit(X, rare)
    several = np.stack([LABELS > 4, LABELS % 2 == 0], axis=1).astype(int)
    two = MLPClassifier(class_weight=[{0: 1.0, 1: 3.0}, {0: 2.0}], **OPTIONS).fit(X, several)
    other = MLPClassifier(**OPTIONS)
    other.fit(X, several, sample_weight=np.where(LABELS > 4, 3.0, 1.0) * np.where(LABELS % 2 == 0, 1.0, 2.0))
    np.testing.assert_array_equal(two.coefs_[0], other.coefs_[0])


@pytest.mark.parametrize("given", [[1.0, 2.0], {0: -1.0}, {0: "2"}, {0: np.nan}, [{0: 1.0}, 2.0]], ids=str)
def test_class_weights_that_are_no_weights_are_refused(given):
    with pytest.raises(ValueError, match=r"class_weight=.* must be 'balanced'"):
        MLPClassifier(class_weight=given).fit(X, LABELS)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_a_validation_set_gives_curves(kind, early):
    held = X[500:], LABELS[500:]
    estimator = kind(validation_set=held, early_stopping=early, **OPTIONS).fit(X[:500], LABELS[:500])
    curve = estimator.validation_loss_curve_
    assert len(curve) == estimator.n_iter_
    assert curve[-1] < curve[0]
    if not early:
        assert estimator.validation_scores_ is None
        if kind is MLPClassifier:
            chances = estimator.predict_proba(held[0])[np.arange(100), held[1]]
            assert curve[-1] == pytest.approx(-np.log(chances).mean(), rel=1e-6)
        else:
            assert curve[-1] == pytest.approx(
                0.5 * np.mean((estimator.predict(held[0]) - held[1]) ** 2), rel=1e-6
            )
        return
    assert estimator.best_validation_score_ == max(estimator.validation_scores_)
    assert estimator.score(*held) == pytest.approx(estimator.best_validation_score_)
    split = kind(early_stopping=True, **OPTIONS).fit(X, LABELS)
    assert len(split.validation_loss_curve_) == split.n_iter_


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((X,), "validation_set has 1 parts: it must be"),
        ((X, LABELS[:-1]), r"validation_set: .*inconsistent numbers of samples: \[600, 599\]"),
        ((X, LABELS + 5), "validation_set: labels that the training data do not have"),
        ((X, LABELS[:, None] + 5), "validation_set: labels that the training data do not have"),
        ((X, LABELS.astype(str)), "validation_set: labels that the training data do not have: \\['0', '1'"),
        ((X[:, :5], LABELS), "validation_set: X has 5 features"),
        ((X * np.nan, LABELS), "validation_set: Input X contains NaN"),
        ((X, LABELS, np.ones(3)), r"validation_set: sample_weight.shape == \(3,\)"),
        ((X, LABELS, -np.ones(600)), "validation_set: sample_weight must be at least 0"),
    ],
)
def test_a_validation_set_that_does_not_fit_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        MLPClassifier(validation_set=given, max_iter=1).fit(X, LABELS)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (LABELS * np.nan, "validation_set: Input contains NaN"),
        (LABELS.astype(str), "validation_set: .*strings"),
        (
            np.stack([LABELS, LABELS], axis=1),
            "validation_set: 2 targets a sample, and the training data have 1",
        ),
    ],
)
def test_targets_of_a_validation_set_that_do_not_fit_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        MLPRegressor(validation_set=(X, targets), max_iter=1).fit(X, LABELS)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_scaled_targets_of_any_size_are_learned_alike(scale, solver):
    samples, targets = load_diabetes(return_X_y=True)
    samples, targets = 20.0 * samples, np.stack([targets, 500.0 - 2.0 * targets], axis=1)
    options = {"solver": solver, "target_scaling": True, "random_state": 0, "max_iter": 30}
    plain, scaled = (MLPRegressor(**options).fit(samples, s * targets) for s in (1.0, scale))
    np.testing.assert_allclose(scaled.predict(samples), scale * plain.predict(samples), rtol=1e-5)
    assert plain.score(samples, targets) > 0.4
    if solver != "lbfgs":
        scaled.partial_fit(samples[:10], scale * targets[:10])  # keeps the scale
        assert scaled.score(samples, scale * targets) > 0.4


def test_targets_of_a_poisson_loss_are_not_scaled():
    with pytest.raises(ValueError, match="target_scaling"):
        MLPRegressor(loss="poisson", target_scaling=True).fit(X, LABELS)


def test_callbacks_of_xnn_see_the_training():
    seen = []

    class Watch(callbacks.Callback):
        def on_epoch_end(self, history, entry):
            seen.append(entry["loss"])
            if len(seen) == 4:
                history.stopped = "enough"

    watch = Watch()
    estimator = MLPClassifier(callbacks=[watch], **OPTIONS).fit(X, LABELS)
    assert seen == estimator.loss_curve_
    assert estimator.n_iter_ == 4
    assert vars(watch) == {}  # and so no network in pickles of the estimator


@pytest.mark.parametrize(("kind", "score"), [(MLPClassifier, "val_accuracy"), (MLPRegressor, "val_r2")])
def test_callbacks_of_xnn_see_the_numbers_of_a_validation_set(kind, score, tmp_path):
    given = [callbacks.EarlyStopping(patience=2, restore_best=True), callbacks.JsonLines(tmp_path / "log")]
    options = OPTIONS | {"max_iter": 100, "tol": 0.0, "learning_rate_init": 0.05}
    estimator = kind(callbacks=given, validation_set=(X[500:], LABELS[500:]), **options)
    estimator.fit(X[:500], LABELS[:500])
    assert estimator.n_iter_ < 100
    assert given[0].best == min(estimator.validation_loss_curve_)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    logged = [line["val_loss"] for line in lines if "val_loss" in line]
    np.testing.assert_allclose(logged, estimator.validation_loss_curve_)
    best = next(line for line in lines if line.get("val_loss") == given[0].best)
    assert estimator.score(X[500:], LABELS[500:]) == pytest.approx(best[score])
    with pytest.raises(OptionError, match="val_ numbers need validation data"):
        kind(callbacks=[callbacks.EarlyStopping()], max_iter=2).fit(X, LABELS)


def test_clones_have_callbacks_of_their_own():
    class Count(callbacks.Callback):
        epochs = 0

        def on_epoch_end(self, history, entry):
            self.epochs += 1

    count = Count()
    search = GridSearchCV(MLPClassifier(callbacks=[count], **OPTIONS), {"alpha": [0.1, 1.0]}, cv=2)
    search.fit(X[:100], LABELS[:100])
    assert count.epochs == 0
    (own,) = search.best_estimator_.callbacks
    assert own.epochs == search.best_estimator_.n_iter_


def test_the_model_is_an_xnn_model_with_the_weights_of_the_attributes(tmp_path):
    estimator = MLPClassifier(dropout=0.1, batch_norm=True, **OPTIONS).fit(X, LABELS)
    estimator.model_.save(tmp_path / "digits.safetensors")
    loaded = xnn.load(tmp_path / "digits.safetensors")
    assert [type(layer).__name__ for layer in loaded.layers] == [
        "Dense",
        "BatchNorm",
        "ReLU",
        "Dropout",
        "Dense",
    ]
    np.testing.assert_array_equal(loaded.predict_classes(X), estimator.predict(X))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"optimizer": "adamx"}, OptionError, "one of the names sgd, adam"),
        ({"optimizer": optimizers.SGD}, ValueError, "optimizer"),
        ({"optimizer": "lbfgs"}, OptionError, "solver='lbfgs'"),
        ({"optimizer": "adam", "solver": "lbfgs"}, OptionError, "solver='lbfgs' has no optimizer"),
        ({"schedule": "cosinus"}, OptionError, "there is no schedule 'cosinus'"),
        ({"activation": "swish"}, ValueError, "'activation' parameter of MLPClassifier"),
        ({"dropout": 1.0}, ValueError, "'dropout' parameter of MLPClassifier"),
        ({"threads": 0}, ValueError, "'threads' parameter of MLPClassifier"),
        ({"numerics": "slow"}, ValueError, "'numerics' parameter of MLPClassifier"),
        ({"dtype": "float16"}, ValueError, "'dtype' parameter of MLPClassifier"),
        ({"model": lambda features, outputs: None}, OptionError, "returned NoneType"),
        ({"model": lambda: None}, OptionError, "must be a function of the numbers of features and outputs"),
        ({"model": xnn.Sequential(layers.Dense(64, 10))}, OptionError, "must be a function of the numbers"),
        ({"model": logistic, "batch_norm": True}, OptionError, "batch_norm and dropout have no effect"),
        ({"model": logistic, "dropout": 0.1}, OptionError, "batch_norm and dropout have no effect"),
        ({"model": logistic, "dtype": "float64"}, OptionError, "has layers of float32, and dtype='float64'"),
        (
            {"model": lambda n, k: xnn.Sequential(logistic(n, k), layers.Softmax())},
            OptionError,
            "ends in softmax",
        ),
        (
            {"schedule": "cosine", "solver": "sgd", "learning_rate": "adaptive"},
            OptionError,
            "schedule='cosine' and learning_rate='adaptive' both change the learning rate",
        ),
        ({"callbacks": callbacks.TimeLimit("1h")}, ValueError, "'callbacks' parameter of MLPClassifier"),
        (
            {"callbacks": [callbacks.EarlyStopping]},
            OptionError,
            "callbacks takes objects of xnn.callbacks",
        ),
        (
            {"model": lambda features, outputs: xnn.Sequential(layers.Dense(features, 2))},
            ShapeError,
            "must have 10 outputs",
        ),
        ({"backend": "cupy"}, BackendUnavailableError, "cupy"),
    ],
    ids=plain,
)
def test_options_that_do_not_fit_are_refused(options, kind, message):
    if options.get("backend") == "cupy" and not xnn.backends.available_backends()["cupy"]:
        pytest.skip("CuPy works here")
    with pytest.raises(kind, match=message):
        MLPClassifier(**options).fit(X, LABELS)


def test_parameters_that_are_changed_after_a_fit_count_or_are_refused():
    estimator = MLPClassifier(**OPTIONS).fit(X, LABELS)
    many = np.tile(X, (20, 1))
    before = estimator.predict_proba(many)
    estimator.set_params(hidden_layer_sizes=7)
    np.testing.assert_array_equal(estimator.predict_proba(many), before)
    estimator.set_params(activation="tanh")
    np.testing.assert_allclose(estimator.predict_proba(many)[:600], estimator.predict_proba(X), rtol=1e-6)
    estimator.set_params(batch_norm=True)
    with pytest.raises(OptionError, match="fit again"):
        estimator.predict(X)


@pytest.mark.parametrize("solvers", [("lbfgs", "adam"), ("lbfgs", "sgd"), ("adam", "sgd"), ("sgd", "adam")])
def test_another_solver_goes_on_from_the_weights_and_with_a_state_of_its_own(solvers):
    first, then = solvers
    samples, labels = X[:200], LABELS[:200]  # a single batch
    estimator = MLPClassifier(**(OPTIONS | {"solver": first, "max_iter": 5})).fit(samples, labels)
    estimator.set_params(solver=then)
    fresh = copy.deepcopy(estimator)
    fresh._solver = None
    for one in (estimator, fresh):
        one.partial_fit(samples, labels)
        assert np.isfinite(one.loss_curve_[-1])
    np.testing.assert_array_equal(estimator.coefs_[0], fresh.coefs_[0])
    assert (
        estimator.set_params(warm_start=True, early_stopping=True).fit(samples, labels).score(samples, labels)
        > 0.3
    )


@pytest.mark.parametrize("changed", [{"target_scaling": True}, {"loss": "poisson"}], ids=str)
def test_targets_of_another_scale_are_refused_until_a_new_fit(changed):
    estimator = MLPRegressor(**OPTIONS).fit(X, LABELS).set_params(**changed)
    with pytest.raises(OptionError, match="loss or target_scaling were changed after the fit"):
        estimator.partial_fit(X, LABELS)
    assert estimator.fit(X, LABELS).score(X, LABELS) > 0.5


def test_a_divergence_is_scikit_learns_error_with_what_xnn_knows():
    with pytest.raises(ValueError, match=r"Solver produced non-finite.*step"):
        MLPRegressor(activation="identity", solver="sgd", learning_rate_init=1e3).fit(X, LABELS)


def test_negative_targets_of_a_poisson_loss_are_refused():
    with pytest.raises(ValueError, match="has a target of -1"):
        MLPRegressor("poisson").fit(X[:3], [0.0, 2.0, -1.0])


@pytest.mark.parametrize("rows", [2, 201, 401])
def test_automatic_batches_of_batch_norm_have_more_than_one_sample(rows):
    samples = np.resize(X, (rows, X.shape[1]))
    assert MLPClassifier((3,), batch_norm=True, max_iter=2).fit(samples, np.arange(rows) % 2).n_iter_ == 2


def test_partial_fit_with_another_optimizer_begins_it_anew():
    one, other = (MLPClassifier((3,), optimizer="adamw", random_state=0) for _ in range(2))
    for estimator in (one, other):
        estimator.partial_fit(X, LABELS, classes=np.unique(LABELS)).set_params(optimizer="nadam")
    other._solver = None
    assert one.partial_fit(X, LABELS).loss_ == other.partial_fit(X, LABELS).loss_
    np.testing.assert_array_equal(one.coefs_[0], other.coefs_[0])
