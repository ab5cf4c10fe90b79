"""Random parameters, data and calls of scikit-learn's multilayer perceptrons."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pandas
import sklearn
from scipy import sparse
from sklearn.base import clone

#: Whether scikit-learn's own MLP takes sample_weight, and has loss="poisson".
WEIGHTED = tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 7)

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
    "beta_2": [0.999, 0.5, 0.9, 0.9999],
    "epsilon": [1e-8, 1e-3, 1.0, 1e-12],
    "n_iter_no_change": [10, 1, 2, np.inf],
    "max_fun": [15000, 1, 5, 20],
}
CONTAINERS = [
    "array", "array", "fortran", "strided", "reversed", "read-only", "memmap", "list", "frame", "object",
    "csr_matrix", "csc_matrix", "coo_matrix", "csr_array",
]  # fmt: skip
DTYPES = ["float64"] * 8 + ["float32"] * 4 + ["float16", "int64", "int8", "uint8", "bool", ">f8", "g"]
TARGETS = {
    "MLPClassifier": [
        "two", "text", "object", "bool", "float classes", "signs", "gaps", "one", "column of classes", "labels",
        "label", "sparse labels",
    ],
    "MLPRegressor": ["float", "int", "column", "three", "constant", "large", "counts", "zeros", "float32", "list"],
}  # fmt: skip


def one_of(random, *choices):
    return choices[int(random.integers(len(choices)))]


def drawn(values, random):
    """One of the values; the first in half of the cases."""
    return values[0] if random.random() < 0.5 else one_of(random, *values)


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
    if kind in ("csr_matrix", "csc_matrix", "coo_matrix", "csr_array", "frame") and X.dtype.char in "eg":
        X = X.astype(float)
    if kind.endswith(("_matrix", "_array")):
        return getattr(sparse, kind)(X)
    if kind == "memmap":
        name = f"{folder}/{len(os.listdir(folder))}.npy"
        np.save(name, X)
        return np.load(name, mmap_mode="r")
    if kind == "read-only":
        X = X.copy()
        X.flags.writeable = False
    return {
        "strided": lambda: np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3],
        "reversed": lambda: X[::-1, ::-1].copy()[::-1, ::-1],
        "frame": lambda: pandas.DataFrame(X, columns=[f"f{i}" for i in range(X.shape[1])]),
        "list": X.tolist,
        "object": lambda: X.astype(object),
        "fortran": lambda: np.asfortranarray(X),
    }.get(kind, lambda: X)()


def targets(kind, X, random):
    """Targets that depend on the samples, so that there is something to learn."""
    rows = len(X)
    mix = np.tanh(X @ random.normal(size=(X.shape[1], 3))) + 0.3 * random.normal(size=(rows, 3))
    classes = np.digitize(mix[:, 0], [-0.4, 0.4])
    return {
        "two": lambda: (mix[:, 0] > 0).astype(int),
        "bool": lambda: mix[:, 0] > 0,
        "float classes": lambda: (mix[:, 0] > 0).astype(float),
        "text": lambda: np.array(["none", "some", "many"])[classes],
        "object": lambda: np.array(["none", "some", "many"], object)[classes],
        "signs": lambda: np.where(mix[:, 0] > 0, 1, -1),
        "gaps": lambda: classes * 7 - 3,
        "one": lambda: np.full(rows, 5),
        "column of classes": lambda: (mix[:, :1] > 0).astype(int),
        "labels": lambda: (mix > 0).astype(int),
        "label": lambda: np.column_stack([mix[:, 0] > 0, np.ones(rows)]).astype(int),
        "sparse labels": lambda: sparse.csr_matrix((mix > 0).astype(int)),
        "float": lambda: mix[:, 0],
        "int": lambda: np.round(5 * mix[:, 0]).astype(int),
        "column": lambda: mix[:, :1],
        "three": lambda: mix,
        "constant": lambda: np.full(rows, 2.5),
        "large": lambda: 1e5 * mix[:, 0] + 1e6,
        "counts": lambda: random.poisson(np.exp(mix[:, 0])),
        "zeros": lambda: np.maximum(mix[:, :2], 0.0),
        "float32": lambda: mix[:, 0].astype(np.float32),
        "list": lambda: mix[:, 0].tolist(),
    }[kind]()  # fmt: skip


def weights(rows, random):
    """Weights of samples."""
    return [
        random.random(rows), random.integers(0, 3, rows), np.ones(rows), random.random(rows).astype(np.float32),
        np.full(rows, 2.5), 1e-3 * random.random(rows), random.random(rows).tolist(),
    ][random.integers(7)]  # fmt: skip


def step(rows, random):
    """A call of an estimator: its name and its argument."""
    what = ["fit", "partial_fit", "set", "assign", "copy"][random.choice(5, p=[0.4, 0.3, 0.1, 0.1, 0.1])]
    if what == "set":
        key = random.choice([key for key in CHOICES if key not in ("hidden_layer_sizes", "solver")])
        return what, {key: CHOICES[key][random.integers(len(CHOICES[key]))]}
    if what == "assign":
        return what, float(random.normal())
    if what == "copy":
        return what, ("pickle", "deepcopy", "clone")[random.integers(3)]
    return what, slice(None) if random.random() < 0.6 else slice(0, int(random.integers(1, rows + 1)))


def scenario(random):
    """The name of an estimator, its parameters, data, their container and a list of steps (name, argument)."""
    name = ("MLPClassifier", "MLPRegressor")[random.integers(2)]
    options = {key: drawn(values, random) for key, values in CHOICES.items() if random.random() < 0.7}
    options = {"max_iter": 4, "hidden_layer_sizes": (7,), **options}
    kind = random.choice(TARGETS[name])
    if kind in ("counts", "zeros") and WEIGHTED:
        options["loss"] = str(random.choice(["poisson", "squared_error"]))
    options["random_state"] = ("int", "shared")[random.integers(2)]
    rows, features = drawn([40, 1, 2, 3, 9, 90, 210], random), drawn([4, 1, 2, 9], random)
    X = numbers(rows, features, 1 if name == "MLPClassifier" else 4, random)
    y = targets(kind, X, random)
    weight = weights(rows, random) if WEIGHTED and random.random() < 0.4 else None
    steps = []
    for _ in range(random.integers(1, 5)):
        steps += [step(rows, random)] * (2 if random.random() < 0.3 else 1)
    if steps[0][0] in ("set", "assign", "copy"):
        steps.insert(0, ("fit", slice(None)))
    dtype, container = (random.choice(values) for values in (DTYPES, CONTAINERS))
    X = (np.abs(X) if dtype == "uint8" else X).astype("float64" if kind == "large" else dtype)
    if X.dtype == np.float32 and isinstance(y, np.ndarray) and y.dtype.kind == "f":
        y = y.astype(np.float32)
    return name, options, (X, y, weight), container, steps


def shortened(values, part):
    return values if values is None or part == slice(None) else values[part]


def called(estimator, what, how, data, container, folder):
    """Take a step. Returns the estimator, which a copy replaces."""
    X, y, weight = data
    if what == "set":
        return estimator.set_params(**how)
    if what == "copy":
        copies = {
            "pickle": lambda e: pickle.loads(pickle.dumps(e)),
            "deepcopy": copy.deepcopy,
            "clone": clone,
        }
        return copies[how](estimator)
    if what == "assign":
        for arrays in (estimator.coefs_, estimator.intercepts_):
            arrays[-1] *= how
            arrays[0] = np.asarray(arrays[0] + 0.1, arrays[0].dtype)
        return estimator
    extra = {} if weight is None else {"sample_weight": shortened(weight, how)}
    if what == "partial_fit" and hasattr(estimator, "predict_proba") and not hasattr(estimator, "classes_"):
        extra["classes"] = np.arange(y.shape[1]) if sparse.issparse(y) else np.unique(y)
    return getattr(estimator, what)(
        contained(shortened(X, how), container, folder), shortened(y, how), **extra
    )
