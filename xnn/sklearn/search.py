"""MLPSearchCV: a grid search whose fits run in threads."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from sklearn.model_selection import GridSearchCV, ParameterGrid

from xnn.sklearn.many import in_threads, ways

__all__ = ["MLPSearchCV"]


class MLPSearchCV(GridSearchCV):  # type: ignore[misc]
    """scikit-learn's GridSearchCV, whose fits run in threads of this process and not in processes of their own.

    It has GridSearchCV's parameters, attributes and results. The estimator is xnn's, or holds one, as Pipelines do.

    n_jobs: how many threads. Default None: as many as there are cores. Each fit has one BLAS thread. On a GPU: 1 for
        one fit after another, else alike fits are trained together.

    Threads share the samples and what is compiled, and begin at once, where the processes of GridSearchCV import
    everything first. Alike fits also share their programs, as docs/sklearn.md says. Threads share Python's lock too,
    which a fit holds while it is prepared: with many cores, long searches are faster in processes. On a GPU the alike
    fits of all candidates and folds are trained as one network: docs/sklearn.md says which. The backend and
    the numerics that are in force count in each thread. After Ctrl-C all fits end after their step.

        >>> import numpy as np
        >>> from xnn.sklearn import MLPRegressor, MLPSearchCV
        >>> X = np.linspace(-1.0, 1.0, 60).reshape(-1, 1)
        >>> regressor = MLPRegressor(hidden_layer_sizes=8, solver="lbfgs", random_state=0)
        >>> MLPSearchCV(regressor, {"alpha": [1e-4, 1e3]}, cv=2).fit(X, X[:, 0]).best_params_
        {'alpha': 0.0001}
    """

    def fit(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Fit all candidates, then the best one on all samples; see GridSearchCV.fit."""
        grid = ParameterGrid(self.param_grid)
        tried = [(name, value) for part in grid.param_grid for name in part for value in part[name]]
        way = ways([*self.estimator.get_params().items(), *tried])
        cv = 5 if self.cv is None else self.cv
        folds = cv if isinstance(cv, int) else 1
        if hasattr(cv, "get_n_splits"):
            with suppress(TypeError, ValueError):  # the search says better what is wrong
                folds = cv.get_n_splits(X, y, params.get("groups"))
        with in_threads(len(grid) * folds, **way):
            return super().fit(X, y, **params)
