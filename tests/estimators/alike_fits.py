"""Estimators whose fits are alike, and data for them."""

import numpy as np
from sklearn.datasets import load_digits

from xnn.sklearn import MLPClassifier, MLPRegressor

__all__ = ["LABELS", "LOSSES", "OPTIONS", "X", "drawn"]

X, LABELS = load_digits(return_X_y=True)
X, LABELS = X[:150] / 16.0, LABELS[:150]
OPTIONS = {"max_iter": 14, "learning_rate_init": 0.02, "hidden_layer_sizes": 8, "batch_size": 40}
#: Kinds of estimators by their losses, with parameters and targets.
LOSSES = {
    "two classes": (MLPClassifier, {}, LABELS % 2),
    "several labels": (MLPClassifier, {}, np.stack([LABELS % 2, LABELS > 4, LABELS % 3 == 0], axis=1)),
    "a number": (MLPRegressor, {}, LABELS / 4.0),
    "two numbers": (MLPRegressor, {"dtype": "float32"}, np.stack([LABELS / 4.0, X[:, 20]], axis=1)),
    "scaled": (MLPRegressor, {"target_scaling": True}, 1000.0 * LABELS),
    "counts": (MLPRegressor, {"loss": "poisson"}, LABELS),
}


def drawn(group, count=5, kind=MLPClassifier):
    """Estimators of a group, which differ in what alike ones may differ in."""
    random = np.random.default_rng(0)
    for seed in range(count):
        given = {**OPTIONS, "alpha": 10.0 ** random.integers(-6, 1), **group, "random_state": seed}
        given["learning_rate_init"] *= random.uniform(0.5, 2.0)
        yield kind(**given).set_params(
            max_iter=int(random.integers(9, 30)),
            tol=float(random.choice([1e-4, 0.05, 0.5])),
            n_iter_no_change=int(random.integers(1, 5)),
        )
