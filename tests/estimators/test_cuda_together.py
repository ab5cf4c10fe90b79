"""Alike fits on a GPU, or on the emulated one, are trained as one network, whose steps are one graph."""

import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from test_cuda_estimators import pytestmark

import xnn
from xnn.sklearn import MLPClassifier, MLPRegressor, MLPSearchCV, fit_many, stack
from xnn.training import fit as fitting

__all__ = ["pytestmark"]

X, LABELS = load_digits(return_X_y=True)
X, LABELS = X[:150] / 16.0, LABELS[:150]
OPTIONS = {"learning_rate_init": 0.02, "hidden_layer_sizes": 8, "batch_size": 50, "backend": "cupy"}
CASES = {
    "adam": (MLPClassifier, {}, LABELS),
    "float32": (MLPClassifier, {"dtype": "float32", "activation": "tanh"}, LABELS),
    "sgd": (MLPClassifier, {"solver": "sgd"}, LABELS % 2),
    "numbers": (MLPRegressor, {"alpha": 0.0, "batch_size": 40}, np.stack([LABELS / 4.0, X[:, 20]], axis=1)),
}


def built(kind, options, count):
    """Estimators that end after different numbers of epochs."""
    for seed in range(count):
        rates = OPTIONS | {"alpha": 10.0 ** (seed - 3), "max_iter": 4 + 5 * seed} | options
        yield kind(**rates, random_state=seed, n_iter_no_change=3)


def all_numbers(e):
    solver = [array for arrays in e._solver["arrays"] for array in arrays]
    return [
        *e.coefs_,
        *e.intercepts_,
        *solver,
        np.array(e.loss_curve_),
        np.array([e.best_loss_, e.t_, e.n_iter_]),
    ]


@pytest.mark.parametrize(("kind", "options", "y"), CASES.values(), ids=CASES.keys())
def test_each_has_the_numbers_of_its_own_fit(monkeypatch, capsys, kind, options, y):
    stacks, train = [], stack.Stack.train
    monkeypatch.setattr(stack.Stack, "train", lambda self: stacks.append(len(self.fits)) or train(self))
    many = fit_many(built(kind, options, 4), X, y)
    assert stacks == [4]
    tolerance = 1e-5 if "dtype" in options else 1e-9
    for one, other in zip(many, [e.fit(X, y) for e in built(kind, options, 4)], strict=True):
        for a, b in zip(all_numbers(one), all_numbers(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    again = fit_many(built(kind, options, 2), X, y, threads=1)
    assert stacks == [4]
    for one, other in zip(again, [e.fit(X, y) for e in built(kind, options, 2)], strict=True):
        np.testing.assert_array_equal(one.coefs_[0], other.coefs_[0])
    assert "no CUDA graph can hold" not in capsys.readouterr().err


def last_epoch(monkeypatch, options, count):
    """What is asked of the emulated GPU in the last epoch of networks that are trained together."""
    attached = sys.modules.get("cuda_emulator.attach")
    if attached is None or attached._driver is None:
        pytest.skip("only the emulated GPU records what is asked of it")
    logs, epoch = [], fitting.Fit.epoch

    def logged(fit):
        with attached.recorded() as lines:
            result = epoch(fit)
        logs.append([*lines])
        return result

    with monkeypatch.context() as patch:
        patch.setattr(fitting.Fit, "epoch", logged)
        fits = [MLPClassifier(**(OPTIONS | options), max_iter=6, random_state=seed) for seed in range(count)]
        fit_many(fits, X, LABELS)
    assert len(logs) == 6
    return logs[-1]


@pytest.mark.parametrize(("options", "most"), [({}, 145), ({"solver": "sgd"}, 125)], ids=["adam", "sgd"])
def test_an_epoch_of_all_networks_is_one_graph(monkeypatch, options, most):
    """Of three steps, each with as many launches for seven networks as for two."""
    few, many = (last_epoch(monkeypatch, options, count) for count in (2, 7))
    assert [line for line in few if line.startswith("GRAPH")] == [
        line for line in many if line.startswith("GRAPH")
    ]
    (graph,) = [line for line in many if line.startswith("GRAPH")]
    assert int(graph.split()[1]) <= 3 * most
    kinds = [[line.split()[0] for line in lines] for lines in (few, many)]
    for kind in ("KERNEL", "COPY", "SYNC", "CUBLAS"):
        assert kinds[0].count(kind) == kinds[1].count(kind)
    assert kinds[1].count("SYNC") == 2


def test_a_search_trains_all_candidates_and_folds_together(monkeypatch):
    stacks, train = [], stack.Stack.train
    monkeypatch.setattr(stack.Stack, "train", lambda self: stacks.append(len(self.fits)) or train(self))
    estimator, grid = MLPClassifier(**OPTIONS, max_iter=5, random_state=0), {"alpha": [1e-4, 1.0, 10.0]}
    theirs, ours = (kind(estimator, grid, cv=2).fit(X, LABELS) for kind in (GridSearchCV, MLPSearchCV))
    assert stacks == [6]
    for name in ("mean_test_score", "std_test_score", "rank_test_score"):
        np.testing.assert_allclose(ours.cv_results_[name], theirs.cv_results_[name])
    np.testing.assert_array_equal(ours.best_estimator_.coefs_[0], theirs.best_estimator_.coefs_[0])
    with xnn.numerics("exact"):
        theirs, ours = (kind(estimator, grid, cv=2).fit(X, LABELS) for kind in (GridSearchCV, MLPSearchCV))
    assert stacks == [6]
    np.testing.assert_array_equal(ours.best_estimator_.coefs_[0], theirs.best_estimator_.coefs_[0])
