"""Random parameters, data and sequences of calls: xnn.sklearn's estimators beside scikit-learn's own.

`python tests/estimators/test_random_parameters.py FIRST LAST` runs the seeds from FIRST to before LAST, and prints what
differs. `--compiled`: with Numba's kernels also for short fits, and without scikit-learn's own forward pass.
"""

import contextlib
import copy
import io
import pickle
import re
import sys
import tempfile
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

import sklearn
from scipy import sparse
from sklearn import neural_network as theirs
from sklearn.base import clone

from xnn import sklearn as ours

NEWEST = tuple(map(int, sklearn.__version__.split(".")[:2]))
WEIGHTED = NEWEST >= (1, 7)  # scikit-learn's own MLP takes sample_weight, and has loss="poisson"

#: What a parameter may be; the first value is drawn as often as all others together.
CHOICES = {
    "solver": ["adam", "sgd", "sgd", "lbfgs"],
    "activation": ["relu", "identity", "logistic", "tanh"],
    "hidden_layer_sizes": [(7,), (), (1,), (5, 3), 4, [6, 2], (3, 3, 3, 3, 3), np.array([8, 1]), (40,)],
    "alpha": [1e-4, 0.0, 0.1, 5.0, 0],
    "batch_size": ["auto", 1, 3, 8, 16, 10_000],
    "learning_rate": ["constant", "invscaling", "adaptive"],
    "learning_rate_init": [1e-3, 1e-5, 0.05, 0.3],
    "power_t": [0.5, 0.0, 0.1, 2.0, 1],
    "max_iter": [4, 1, 2, 9, 25],
    "shuffle": [True, False],
    "tol": [1e-4, 0.0, 0.1, 10.0, 1e9, 1],
    "verbose": [False, True, 2, 0],
    "warm_start": [False, True],
    "momentum": [0.9, 0.0, 0.5, 1.0, 1, 0],
    "nesterovs_momentum": [True, False],
    "early_stopping": [False, True],
    "validation_fraction": [0.1, 0.3, 0.5, 0.05, 0.9],
    "beta_1": [0.9, 0.0, 0.5, 0.99, 0],
    "beta_2": [0.999, 0.0, 0.9, 0.9999, 0],
    "epsilon": [1e-8, 1e-3, 1.0, 1e-12],
    "n_iter_no_change": [10, 1, 2, np.inf],
    "max_fun": [15000, 1, 5, 20],
}
CONTAINERS = [
    "array", "array", "fortran", "strided", "reversed", "read-only", "memmap", "list", "frame", "csr", "csc", "coo",
    "csr_array", "object",
]  # fmt: skip
DTYPES = (
    ["float64"] * 8 + ["float32"] * 4 + ["float16", "int64", "int8", "uint8", "bool", ">f8", "longdouble"]
)
TARGETS = {
    "MLPClassifier": [
        "two", "three", "text", "bool", "float", "signs", "gaps", "one", "column", "labels", "label", "sparse labels",
        "object",
    ],
    "MLPRegressor": ["float", "int", "column", "three", "constant", "large", "counts", "zeros", "float32", "list"],
}  # fmt: skip


def drawn(values, random):
    """One of the values; the first in half of the cases."""
    return values[0] if random.random() < 0.5 else values[random.integers(len(values))]


def numbers(rows, features, largest, random):
    """Samples as a float64 array, with constant, tiny, large and repeated columns and rows here and there."""
    X = random.normal(size=(rows, features))
    for column in range(features):
        kind = random.random()
        if kind < 0.1:
            X[:, column] = random.integers(3)
        elif kind < 0.3:
            X[:, column] *= 10.0 ** random.integers(-12, largest)
    if random.random() < 0.2:
        X[random.integers(rows, size=rows // 2)] = X[0]
    if random.random() < 0.1:
        X[random.random(X.shape) < 0.7] = 0.0
    return X


def contained(X, kind, folder):
    """The same samples in another container."""
    if kind in ("csr", "csc", "coo", "csr_array"):
        if X.dtype in (np.float16, np.longdouble) or X.dtype.byteorder == ">":
            X = X.astype(float)
        return getattr(sparse, kind if "_" in kind else f"{kind}_matrix")(X)
    if kind == "strided":
        return np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3]
    if kind == "reversed":
        return X[::-1, ::-1][::-1, ::-1]
    if kind == "memmap":
        name = f"{folder}/{np.random.default_rng().integers(2**60)}.npy"
        np.save(name, X)
        return np.load(name, mmap_mode="r")
    if kind == "read-only":
        X = X.copy()
        X.flags.writeable = False
        return X
    if kind == "frame":
        pandas = pytest.importorskip("pandas") if "pytest" in sys.modules else __import__("pandas")
        if X.dtype.byteorder == ">" or X.dtype == np.longdouble:
            X = X.astype(float)
        return pandas.DataFrame(X, columns=[f"f{i}" for i in range(X.shape[1])])
    if kind == "list":
        return X.tolist()
    return X.astype(object) if kind == "object" else np.asarray(X, order="F" if kind == "fortran" else "C")


def targets(kind, X, random):
    """Targets that depend on the samples, so that there is something to learn."""
    rows = len(X)
    mix = np.tanh(X @ random.normal(size=(X.shape[1], 3))) + 0.3 * random.normal(size=(rows, 3))
    classes = np.digitize(mix[:, 0], [-0.4, 0.4])
    return {
        "two": lambda: (mix[:, 0] > 0).astype(int),
        "bool": lambda: mix[:, 0] > 0,
        "float": lambda: mix[:, 0],
        "text": lambda: np.array(["none", "some", "many"])[classes],
        "object": lambda: np.array(["none", "some", "many"], object)[classes],
        "signs": lambda: np.where(mix[:, 0] > 0, 1, -1),
        "gaps": lambda: classes * 7 - 3,
        "one": lambda: np.full(rows, 5),
        "column": lambda: mix[:, :1],
        "labels": lambda: (mix > 0).astype(int),
        "label": lambda: np.column_stack([mix[:, 0] > 0, np.ones(rows)]).astype(int),
        "sparse labels": lambda: sparse.csr_matrix((mix > 0).astype(int)),
        "int": lambda: np.round(5 * mix[:, 0]).astype(int),
        "three": lambda: mix,
        "constant": lambda: np.full(rows, 2.5),
        "large": lambda: 1e5 * mix[:, 0] + 1e6,
        "counts": lambda: random.poisson(np.exp(mix[:, 0])),
        "zeros": lambda: np.maximum(mix[:, :2], 0.0),
        "float32": lambda: mix[:, 0].astype(np.float32),
        "list": lambda: mix[:, 0].tolist(),
    }[kind]()  # fmt: skip


def scenario(seed):
    """The name of an estimator, its parameters, data and a list of steps (name, arguments)."""
    random = np.random.default_rng(seed)
    name = ("MLPClassifier", "MLPRegressor")[random.integers(2)]
    options = {key: drawn(values, random) for key, values in CHOICES.items() if random.random() < 0.7}
    options.setdefault("max_iter", 4)
    options.setdefault("hidden_layer_sizes", (7,))
    kind = TARGETS[name][random.integers(len(TARGETS[name]))]
    if name == "MLPRegressor" and WEIGHTED and kind in ("counts", "zeros"):
        options["loss"] = ("poisson", "squared_error")[random.integers(2)]
    options["random_state"] = ("int", "shared")[random.integers(2)]
    rows, features = int(drawn([40, 1, 2, 3, 9, 90, 210], random)), int(drawn([4, 1, 2, 9], random))
    X = numbers(rows, features, 1 if name == "MLPClassifier" else 4, random)
    y = targets(kind if (name, kind) != ("MLPClassifier", "float") else "signs", X, random)
    if name == "MLPClassifier" and kind == "float":
        y = y.astype(float)
    if name == "MLPClassifier" and kind == "column":
        y = (y > 0).astype(int)
    if name == "MLPClassifier" and kind == "three":
        y = y.argmax(axis=1)
    weight = None
    if WEIGHTED and random.random() < 0.4:
        weight = [
            random.random(rows), random.integers(0, 3, rows), np.ones(rows), random.random(rows).astype(np.float32),
            np.full(rows, 2.5), 1e-3 * random.random(rows), random.random(rows).tolist(),
        ][random.integers(7)]  # fmt: skip
    steps = []
    for _ in range(random.integers(1, 5)):
        what = ["fit", "partial_fit", "set", "assign", "copy"][random.choice(5, p=[0.4, 0.3, 0.1, 0.1, 0.1])]
        if what == "set":
            key = [key for key in CHOICES if key != "hidden_layer_sizes"]
            key = key[random.integers(len(key))]
            steps.append((what, {key: CHOICES[key][random.integers(len(CHOICES[key]))]}))
        elif what == "assign":
            steps.append((what, float(random.normal())))
        elif what == "copy":
            steps.append((what, ("pickle", "deepcopy", "clone")[random.integers(3)]))
        else:
            part = slice(None) if random.random() < 0.6 else slice(0, int(random.integers(1, rows + 1)))
            steps += [(what, part)] * (1 if random.random() < 0.6 else 2)
    if steps[0][0] in ("set", "assign", "copy"):
        steps.insert(0, ("fit", slice(None)))
    dtype, container = (random.choice(values) for values in (DTYPES, CONTAINERS))
    X = (np.abs(X) if dtype == "uint8" else X).astype(dtype)
    if X.dtype == np.float32 and isinstance(y, np.ndarray) and y.dtype.kind == "f":
        y = y.astype(np.float32)
    return name, options, (X, y, weight), container, steps


def shortened(values, part):
    return values if values is None or part == slice(None) else values[part]


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
    name, options, (X, y, weight), container, steps = drawn_scenario
    shared = np.random.RandomState(5)
    options = {**options, "random_state": shared if options["random_state"] == "shared" else 3}
    estimator, record = kind(**options), []
    for number, (what, how) in enumerate(steps):
        if (name, what, estimator.solver) == ("MLPRegressor", "partial_fit", "lbfgs"):  # trains by mistake
            continue
        out, error = io.StringIO(), None
        with (
            warnings.catch_warnings(record=True) as said,
            contextlib.redirect_stdout(out),
            np.errstate(all="ignore"),
        ):
            warnings.simplefilter("always")
            try:
                if what == "set":
                    estimator.set_params(**how)
                elif what == "assign":
                    for arrays in (estimator.coefs_, estimator.intercepts_):
                        arrays[-1] *= how
                        arrays[0] = np.asarray(arrays[0] + 0.1, arrays[0].dtype)
                elif what == "copy":
                    copies = {"pickle": lambda e: pickle.loads(pickle.dumps(e)), "deepcopy": copy.deepcopy}
                    estimator = copies.get(how, clone)(estimator)
                    shared = estimator.random_state
                else:
                    extra = {} if weight is None else {"sample_weight": shortened(weight, how)}
                    if (
                        what == "partial_fit"
                        and name == "MLPClassifier"
                        and not hasattr(estimator, "classes_")
                    ):
                        extra["classes"] = np.unique(y) if not sparse.issparse(y) else np.arange(y.shape[1])
                    samples = contained(shortened(X, how), container, folder)
                    getattr(estimator, what)(samples, shortened(y, how), **extra)
            except Exception as raised:
                error = raised
        if isinstance(error, UnlikelyError):
            break
        record.append((number, "error", error))
        if any(text in str(error) for text in ("non-finite", "sum to zero", "early_stopping=True")):
            break
        record.append((number, "printed", out.getvalue()))
        record.append((number, "warnings", [
            (w.category.__name__, str(w.message)) for w in said if w.category is not RuntimeWarning
        ]))  # fmt: skip
        if isinstance(shared, np.random.RandomState):
            record.append((number, "random numbers", copy.deepcopy(shared).uniform()))
        if hasattr(estimator, "coefs_") and error is None:
            given = {"samples": contained(X, container, folder), "float32": X.astype(np.float32)}
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                record += [(number, key, value) for key, value in seen(estimator, given, y, weight).items()]
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
        return type(value).__name__, str(value.dtype), value.shape
    return "float" if isinstance(value, (float, np.floating)) else type(value).__name__


def difference(one, other, tolerance):
    """What differs between two values that were seen: its kind and a text. None if nothing does."""
    if isinstance(one, Exception) or isinstance(other, Exception):
        unset = "object has no attribute" in str(one)  # which one, is not compared
        same = type(one) is type(other) and (unset or str(other).startswith(str(one)))
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
        if np.allclose(a, b, rtol=tolerance, atol=tolerance * scale + 1e-15, equal_nan=True):
            return None
        return "numbers", f"{a[:6]} is {b[:6]}, by {np.max(np.abs(a - b)):.1e}"


class UnlikelyError(Exception):
    """scikit-learn's loss has few digits or is cut off, since a probability is small, or is NaN while it goes on."""


class Compared:
    """scikit-learn's estimator, where it does what its documentation says.

    The best weights of an earlier fit are not those that are trained on: a fit with warm_start and early_stopping
    would change them, and could not return to them. Raises UnlikelyError.
    """

    def _backprop(self, X, y, *others):
        result = super()._backprop(X, y, *others)
        if np.isnan(result[0]) and self.solver == "lbfgs":
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
        if not np.isfinite(self.loss_) and (early_stopping or finite):
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


def differences(seed, folder):
    """What differs between the two estimators in a scenario, and by more than rounding errors make it differ."""
    drawn_scenario = scenario(seed)
    name, X = drawn_scenario[0], drawn_scenario[2][0]
    single = np.float32 in (X.dtype, getattr(drawn_scenario[2][2], "dtype", None))
    tolerance = 1e-4 if single else 1e-9
    expected = told(kind_of(name, Compared), drawn_scenario, folder)
    got = told(getattr(ours, name), drawn_scenario, folder)
    found, shaken = [], None
    for number, ((step, key, one), (_, other_key, other)) in enumerate(zip(expected, got, strict=False)):
        if key != other_key:
            found.append(f"step {step}: {key} where ours has {other_key}")
            break
        if (what := difference(one, other, tolerance)) is None:
            continue
        shaken = shaken or told(kind_of(name, Shaken), drawn_scenario, folder)
        if number >= len(shaken) or shaken[number][:2] != (step, key):
            break
        if not WEIGHTED and ("set is too small" in str(other) or "contains NaN" in str(one)):
            break
        limit = difference(one, shaken[number][2], 1e-3 * tolerance)
        if limit and limit[0] == what[0]:
            if what[0] != "numbers":  # which rounding errors decide
                break
            if np.max(np.abs(flat(one) - flat(other))) <= 1e3 * np.max(
                np.abs(flat(one) - flat(shaken[number][2]))
            ):
                continue
        found.append(f"step {step} {drawn_scenario[4][step]}: {key}: {': '.join(what)}")
        if what[0] == "errors":
            break
    return found


@pytest.mark.parametrize("seed", range(100))
def test_random_parameters_and_data_give_the_same(seed, tmp_path):
    assert not differences(seed, tmp_path)


if __name__ == "__main__":
    if "--compiled" in sys.argv:
        from xnn.sklearn import engine, training

        training._FEW_PRODUCTS = engine._FEW_PRODUCTS = 0
    first, last = (int(a) for a in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, last):
            if found := differences(seed, folder):
                name, options, (X, y, weight), container, steps = scenario(seed)
                print(
                    f"SEED {seed} {name} {options} {X.dtype} {X.shape} {container} {steps} weighted {weight is not None}"
                )
                for text in found[:4]:
                    print("   ", text[:300])
