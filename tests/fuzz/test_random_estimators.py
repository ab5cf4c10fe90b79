"""xnn.sklearn's estimators beside scikit-learn's own: random parameters, data and sequences of calls."""

import contextlib
import copy
import io
import pickle
import re
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("pandas")

from random_estimators import CHOICES, WEIGHTED, called, contained, one_of, scenario
from scipy import sparse
from sklearn import neural_network as theirs
from sklearn.utils.class_weight import compute_sample_weight

from xnn import sklearn as ours
from xnn.sklearn import engine, training

#: After these errors the attributes are not compared; the last is how scikit-learn 1.9 leaves None in them.
ENDS = (
    "non-finite",
    "sum to zero",
    "at least one non-zero",
    "early_stopping=True",
    "object has no attribute",
    "NoneType",
)


PUBLIC = [
    "classes_", "loss_", "best_loss_", "loss_curve_", "validation_scores_", "best_validation_score_", "t_", "coefs_",
    "intercepts_", "n_features_in_", "feature_names_in_", "n_iter_", "n_layers_", "n_outputs_", "out_activation_",
]  # fmt: skip


def seen(estimator, X, y, weight):
    """What a user can see of a fitted estimator, by name."""
    known = {name: copy.deepcopy(getattr(estimator, name)) for name in PUBLIC if hasattr(estimator, name)}
    for method in ("predict", "predict_proba", "predict_log_proba"):
        if hasattr(estimator, method):
            for of, data in X.items():
                found = getattr(estimator, method)(data)
                known[f"{method} {of}"] = np.exp(found) if "log" in method else found
    for key, extra in {"score": (), "weighted score": () if weight is None else (weight,)}.items():
        try:
            known[key] = estimator.score(X["samples"], y, *extra)
        except (ValueError, ZeroDivisionError) as error:
            known[key] = error
    known["parameters"] = {k: repr(v) for k, v in estimator.get_params().items() if k in CHOICES}
    return known


def told(kind, drawn_scenario, folder):
    """Run a scenario with a class. Returns a list of (step, name, value) of all that can be seen."""
    name, options, data, container, steps = drawn_scenario
    shared = np.random.RandomState(5)
    options = {**options, "random_state": shared if options["random_state"] == "shared" else 3}
    estimator, record, out = kind(**options), [], io.StringIO()
    for number, (what, how) in enumerate(steps):
        if (name, what, estimator.solver) == (
            "MLPRegressor",
            "partial_fit",
            "lbfgs",
        ):  # theirs trains by mistake
            continue
        error = None
        with (
            warnings.catch_warnings(record=True) as said,
            contextlib.redirect_stdout(out),
            np.errstate(all="ignore"),
        ):
            warnings.simplefilter("always")
            try:
                estimator = called(estimator, what, how, data, container, folder)
            except UnlikelyError:
                break
            except Exception as raised:
                error = raised
        record.append((number, "error", error))
        if any(text in str(error) for text in ENDS):
            break
        texts = [(w.category.__name__, str(w.message)) for w in said if w.category is not RuntimeWarning]
        record += [(number, "printed", out.getvalue()), (number, "warnings", texts)]
        if isinstance(estimator.random_state, np.random.RandomState):
            record.append((number, "random numbers", copy.deepcopy(estimator.random_state).uniform()))
        if hasattr(estimator, "coefs_") and error is None:
            X = data[0].astype(float) if data[0].dtype.char == "g" else data[0]  # of which ours are float64
            given = {"samples": contained(X, container, folder), "float32": X.astype(np.float32)}
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                record += [(number, key, value) for key, value in seen(estimator, given, *data[1:]).items()]
    return record


def flat(value):
    """A value as one float64 vector; None if it is not made of numbers."""
    if isinstance(value, (list, tuple)):
        parts = [flat(part) for part in value]
        return None if any(part is None for part in parts) else np.concatenate([*parts, np.zeros(0)])
    array = value.toarray() if sparse.issparse(value) else np.asarray(value)
    return array.astype(float).ravel() if array.dtype.kind in "fiub" else None


def forms(value):
    """Types, dtypes and shapes, of which Python's numbers count as NumPy's."""
    if isinstance(value, (list, tuple)):
        return [forms(part) for part in value]
    if isinstance(value, np.ndarray) or sparse.issparse(value):
        return type(value).__name__, str(value.dtype.newbyteorder("=")), value.shape
    return "float" if isinstance(value, (float, np.floating)) else type(value).__name__


def largest(one, other):
    """The largest difference between two values."""
    return np.max(np.abs(flat(one) - flat(other)), initial=0.0)


def difference(one, other, tolerance, least):
    """What differs between two values that were seen: its kind and a text. None if nothing does.

    tolerance: relative to the largest number. least: absolute.
    """
    if isinstance(one, Exception) or isinstance(other, Exception):
        unset = any(text in str(one) for text in ENDS[-2:])  # a fault of scikit-learn's, where ours may go on
        late = "non-finite" in str(other) and ENDS[1] in str(one)  # theirs has trained with NaN up to there
        same = unset or late or (type(one) is type(other) and str(other).startswith(str(one)))
        return None if same else ("errors", f"{one!r} is {other!r}")
    if isinstance(one, str) and isinstance(other, str):  # printed numbers have 8 places
        words, others = (re.split(r"([-+\d.]+(?:e[-+]?\d+)?)", text) for text in (one, other))
        if words[::2] == others[::2]:
            one, other = (
                [float(word) for word in text[1::2] if word.strip(".-+")] for text in (words, others)
            )
            tolerance = max(tolerance, 1e-7)
    if forms(one) != forms(other):
        return "types", f"{forms(one)} is {forms(other)}: {one!r} is {other!r}"
    a, b = flat(one), flat(other)
    if a is None or b is None:
        same = np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
        return None if same else ("values", f"{one!r} is {other!r}")
    with np.errstate(all="ignore"):
        scale = np.max(np.abs(a[np.isfinite(a)]), initial=0.0)
        if np.allclose(a, b, rtol=tolerance, atol=tolerance * scale + least, equal_nan=True):
            return None
        return "numbers", f"{a[:6]} is {b[:6]}, by {largest(a, b):.1e}"


class UnlikelyError(Exception):
    """scikit-learn's loss has few digits or is cut off, since a probability is small, or is NaN while it goes on."""


class Compared:
    """scikit-learn's estimator, where it does what its documentation says.

    The best weights of an earlier fit are not those that are trained on: a fit with warm_start and early_stopping
    would change them, and could not return to them. Raises UnlikelyError.
    """

    def _backprop(self, X, y, *others):
        result = super()._backprop(X, y, *others)
        if self.solver == "lbfgs" and (np.isnan(result[0]) or result[0] < 1e-13):
            raise UnlikelyError
        p = others[-4][-1]  # the last activations
        if self.loss == "log_loss":
            p = np.where(y, p, 1.0) if self.out_activation_ == "softmax" else np.where(y, p, 1.0 - p)
            if p.min() < 1e3 * np.sqrt(np.finfo(p.dtype).eps) ** 1.5:
                raise UnlikelyError
        return result

    def _update_no_improvement_count(self, early_stopping, *validation):
        super()._update_no_improvement_count(early_stopping, *validation)
        finite = all(np.isfinite(array).all() for array in (*self.coefs_, *self.intercepts_))
        squares = [np.isfinite(array).all() for array in getattr(self._optimizer, "vs", [])]
        if not (np.isfinite(self.loss_) and all(squares)) and (early_stopping or finite):
            raise UnlikelyError

    def _fit_stochastic(self, *arguments):
        self.coefs_, self.intercepts_ = (
            [a.copy() for a in arrays] for arrays in (self.coefs_, self.intercepts_)
        )
        super()._fit_stochastic(*arguments)


class Shaken(Compared):
    """scikit-learn's estimator with initial weights that differ by a rounding error."""

    def _init_coef(self, *sizes):
        noise = np.random.default_rng(0)
        return tuple(
            (w * (1.0 + 4.0 * np.finfo(w.dtype).eps * noise.choice([-1.0, 1.0], w.shape))).astype(w.dtype)
            for w in super()._init_coef(*sizes)
        )


def kind_of(name, mixin):
    """scikit-learn's estimator with changed methods, which can be pickled."""
    kind = type(name, (mixin, getattr(theirs, name)), {"__module__": __name__})
    kind.__qualname__ = f"{mixin.__name__}{name}"
    globals()[kind.__qualname__] = kind
    return kind


def differences(rng, folder):
    """What differs between the two estimators in a scenario, and by more than rounding errors make it differ."""
    drawn_scenario = scenario(rng)
    name, _, (X, _, weight), _, steps = drawn_scenario
    single = np.float32 in (X.dtype, getattr(weight, "dtype", None))
    tolerance, least = (1e-4, 1e-6) if single else (1e-9, 1e-15)
    expected = told(kind_of(name, Compared), drawn_scenario, folder)
    got = told(getattr(ours, name), drawn_scenario, folder)
    found, shaken = [], None
    for number, ((step, key, one), (_, other_key, other)) in enumerate(zip(expected, got, strict=False)):
        if key != other_key:
            found.append(f"step {step}: {key} where ours has {other_key}")
            break
        if (what := difference(one, other, tolerance, least)) is None:
            continue
        if not WEIGHTED and ("set is too small" in str(other) or "contains NaN" in str(one)):
            break  # what scikit-learn 1.4 does with a validation set of one sample, or a score that is NaN
        shaken = shaken or told(kind_of(name, Shaken), drawn_scenario, folder)
        if number >= len(shaken) or shaken[number][:2] != (step, key):
            break
        limit = difference(one, shaken[number][2], 1e-3 * tolerance, 1e-3 * least)
        if limit and limit[0] == what[0]:
            if what[0] != "numbers":  # which rounding errors decide
                break
            if largest(one, other) <= 1e3 * largest(one, shaken[number][2]):
                continue
        found.append(f"{steps[step]}: {key}: {': '.join(what)}")
        if what[0] == "errors":
            break
    return [*found, str(drawn_scenario)] if found else []


@pytest.mark.fuzz(100)
def test_random_parameters_and_data_give_the_same(rng, tmp_path, monkeypatch):
    if rng.random() < 0.3:  # with Numba's kernels also for short fits, and not by scikit-learn's forward pass
        monkeypatch.setattr(training, "_FEW_PRODUCTS", 0)
        monkeypatch.setattr(engine, "_FEW_PRODUCTS", 0)
        monkeypatch.setattr(training, "_ROWS_AT_A_TIME", 7)
    assert not differences(rng, tmp_path)


def options_of_xnn(rng):
    """Parameters of which some are xnn's own. Batches of BatchNorm have more than one sample."""
    batch_norm, schedule = rng.random() < 0.4, one_of(rng, None, None, "cosine", "step:factor=0.5")
    return {
        "hidden_layer_sizes": one_of(rng, (6,), (5, 4), ()),
        "activation": one_of(rng, "relu", "gelu", "silu", "elu", "selu", "leaky_relu", "softplus", "tanh"),
        "solver": one_of(rng, "adam", "sgd"),
        "learning_rate": one_of(rng, "constant", "adaptive", "invscaling")
        if schedule is None
        else "constant",
        "batch_size": "auto" if batch_norm else one_of(rng, "auto", 7, 16, 1),
        "max_iter": int(rng.integers(1, 6)),
        "random_state": int(rng.integers(9)),
        "early_stopping": bool(rng.random() < 0.3),
        "validation_fraction": 0.3,
        "warm_start": bool(rng.random() < 0.5),
        "dropout": one_of(rng, 0.0, 0.3),
        "batch_norm": bool(batch_norm),
        "numerics": one_of(rng, None, "exact", "fast"),
        "threads": one_of(rng, None, 1, 2),
        "optimizer": one_of(rng, None, None, "adamw", "nadam", "rmsprop", "lion"),
        "schedule": schedule,
    }


def assert_equal(one, other, tolerance=0.0):
    """The weights and curves of two estimators are the same bits, or the same within rounding."""
    for name in ("coefs_", "intercepts_", "loss_curve_", "validation_scores_"):
        assert difference(getattr(one, name), getattr(other, name), tolerance, tolerance) is None
    assert difference([*one._others.values()], [*other._others.values()], tolerance, tolerance) is None


@pytest.mark.fuzz(20)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_options_of_xnn_mean_what_they_say(rng):
    """The same fit has the same bits, also after pickling; a weight of a class is that of its samples; and so on."""
    kind, options, rows = one_of(rng, ours.MLPClassifier, ours.MLPRegressor), options_of_xnn(rng), 60
    X = rng.normal(size=(rows, int(rng.integers(1, 6)))).astype(one_of(rng, "float32", "float64"))
    y, weight = X.sum(axis=1) + 0.2 * rng.normal(size=rows), one_of(rng, None, rng.random(rows))
    own = {"target_scaling": bool(rng.random() < 0.5)}
    if kind is ours.MLPClassifier:
        y, own = (
            np.digitize(y, [-0.5, 0.5][: rng.integers(1, 3)]),
            {"class_weight": one_of(rng, None, "balanced")},
        )

    def fitted(**others):
        return kind(**{**options, **own, **others}).fit(X, y, weight)

    one = fitted()
    assert_equal(one, fitted())
    copied = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(copied.predict(X), one.predict(X))
    assert_equal(copied.fit(X, y, weight), one.fit(X, y, weight))
    threaded = fitted(threads=1), fitted(threads=2)
    assert_equal(*threaded, 0.0 if options["numerics"] == "exact" else 1e-4)
    if own.get("class_weight"):
        weights = compute_sample_weight("balanced", y) * (1.0 if weight is None else weight)
        assert_equal(fitted(), kind(**options).fit(X, y, weights), 1e-4)
    elif not options["early_stopping"]:
        extra = {} if kind is ours.MLPRegressor else {"classes": np.unique(y)}
        first = kind(**{**options, **own}).partial_fit(X, y, weight, **extra)
        if options["schedule"] is None:  # which ends with the last epoch
            assert_equal(first, fitted(max_iter=1))
        copied = pickle.loads(pickle.dumps(first))
        for _ in range(2):
            assert_equal(first.partial_fit(X, y, weight), copied.partial_fit(X, y, weight))
