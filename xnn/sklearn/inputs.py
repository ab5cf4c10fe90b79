"""Samples, targets and weights of samples, as scikit-learn checks them and as xnn trains on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from xnn.backends.row_sources import Converted, RowSource

__all__ = ["SparseRows", "in_dtype", "samples_of", "validate"]

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # before scikit-learn 1.6 it is a method

    def validate_data(estimator: Any, *data: Any, **options: Any) -> Any:
        return estimator._validate_data(*data, **options)


class SparseRows(RowSource):
    """The rows of a sparse matrix, which become dense when they are read: a batch at a time.

    matrix: of SciPy, with rows that can be chosen. dtype: of the dense rows.
    """

    def __init__(self, matrix: Any, dtype: Any) -> None:
        super().__init__(matrix.shape, dtype)
        self.matrix = matrix.tocsr()

    def take(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.matrix[rows].toarray(), self.dtype)


def validate(estimator: Any, X: Any) -> Any:
    """Samples to predict from, checked by scikit-learn against those of the fit."""
    return validate_data(estimator, X, accept_sparse=["csr", "csc"], reset=False)


def in_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array in the dtype of training. Raises ValueError for numbers that are too large for it."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if array.dtype.kind == "f" and np.isinf(cast).any():
        raise ValueError(
            "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
            f"preprocessed. (They hold numbers that are too large for {dtype}; dtype='float64' takes them.)"
        )
    return cast


def samples_of(X: Any, dtype: str, whole: bool) -> Any:
    """Samples as a network takes them.

    X: a NumPy array or a sparse matrix. dtype: the network's. whole: whether to convert an array at once, for many
    passes over it; otherwise its rows are converted when they are read.
    """
    if hasattr(X, "toarray"):
        return SparseRows(X, dtype)
    if X.dtype == dtype or whole:
        return in_dtype(X, dtype)
    return Converted(X, lambda rows: in_dtype(rows, dtype))
