"""Options of xnn.sklearn's estimators that do not go together, and messages in the words of their users."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.datasets import load_iris

from xnn.errors import OptionError
from xnn.sklearn import MLPClassifier, MLPRegressor, fit_many

IRIS = load_iris(return_X_y=True)


def test_partial_fits_draw_other_masks_of_dropout():
    """Also with an integer random_state, which begins every partial_fit with the same random numbers."""
    X, y = np.ones((1, 4)), [0]
    options = {"activation": "identity", "dropout": 0.5, "solver": "sgd", "momentum": 0.0, "alpha": 0.0}
    classifier, moved = MLPClassifier((50,), random_state=0, **options), []
    for _ in range(4):
        before = getattr(classifier, "coefs_", None)
        classifier.partial_fit(X, y, classes=[0, 1, 2])
        if before is not None:
            moved.append(tuple(np.any(classifier.coefs_[1] != before[1], axis=1)))
    assert len(set(moved)) == 3
    again = MLPClassifier((50,), random_state=0, **options)
    for _ in range(4):
        again.partial_fit(X, y, classes=[0, 1, 2])
    assert all(np.array_equal(a, b) for a, b in zip(again.coefs_, classifier.coefs_, strict=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"solver": "lbfgs", "dropout": 0.1}, "set it to 0, or the solver to 'adam'"),
        ({"solver": "lbfgs", "validation_set": (IRIS[0], IRIS[1])}, "solver='lbfgs' has no validation_set"),
        ({"numerics": "exact", "dtype": "float64"}, "leave out dtype='float64'"),
        ({"callbacks": [print]}, "set_callbacks"),
    ],
    ids=["dropout", "validation", "exact", "callback"],
)
def test_parameters_that_do_not_go_together_are_said(options, said):
    with pytest.raises(OptionError, match=said):
        MLPClassifier(**options).fit(*IRIS)


def test_a_divergence_is_explained_by_the_estimators_parameters():
    X, y = np.random.default_rng(0).normal(size=(2, 60, 5)) * 1e4
    with pytest.raises(
        ValueError, match="learning_rate_init, or for large targets target_scaling=True"
    ) as error:
        MLPRegressor(solver="sgd", learning_rate_init=10, random_state=0).fit(X, y)
    assert "--lr" not in str(error.value)


@pytest.mark.parametrize("wrong", [MLPClassifier(), [MLPClassifier], None], ids=["one", "a class", "none"])
def test_fit_many_says_what_it_takes(wrong):
    with pytest.raises(OptionError, match="fit_many takes a list of estimators"):
        fit_many(wrong, *IRIS)
    with pytest.raises(OptionError, match="threads"):
        fit_many([MLPClassifier()], *IRIS, threads=0)
