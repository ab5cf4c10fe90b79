"""Samples, targets and weights of samples, as scikit-learn checks them and as xnn trains on them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
from sklearn import config_context, get_config
from sklearn.utils import assert_all_finite
from sklearn.utils._array_api import device, get_namespace

from xnn.backends import backend_of, current_backend, get_backend
from xnn.backends.row_sources import Converted, RowSource
from xnn.errors import MixedArraysError, XnnError

__all__ = [
    "NOT_FINITE", "SparseRows", "checked_samples", "checked_there", "dispatches", "dtype_of_predictions", "floating",
    "handed_back", "in_dtype", "is_on_device", "namespace", "on_host", "received", "rows_of", "samples_of",
    "stand_in", "validate",
]  # fmt: skip

#: scikit-learn's message for weights that are NaN or infinite.
NOT_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
    "preprocessed."
)
#: How DLPack numbers the devices: a CPU, and a GPU of NVIDIA's.
_CPU, _CUDA = 1, 2

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # before scikit-learn 1.6 it is a method

    def validate_data(estimator: Any, *data: Any, **options: Any) -> Any:
        return estimator._validate_data(*data, **options)


#: Of more samples than this, rows times features, a prediction checks each batch when it reads it.
_MANY_NUMBERS = 2**20


class SparseRows(RowSource):
    """The rows of a sparse matrix, which become dense when they are read: a batch at a time.

    matrix: of SciPy, with rows that can be chosen. dtype: of the dense rows.
    """

    def __init__(self, matrix: Any, dtype: Any) -> None:
        super().__init__(matrix.shape, dtype)
        self.matrix = matrix.tocsr()

    def take(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.matrix[rows].toarray(), self.dtype)


def received(array: Any) -> Any:
    """Samples as they were given; arrays of PyTorch and the like become NumPy's, those on a GPU CuPy's, uncopied."""
    if not _is_foreign(array):
        return array
    try:
        backend_of(array)
    except XnnError:  # of a library that is no backend, or of a dtype that is not computed with
        where = array.__dlpack_device__()[0]
        if where == _CPU:
            return np.asarray(array)
        if where != _CUDA or type(array).__module__.startswith("cupy"):
            raise
        return get_backend("cupy").xp.from_dlpack(array)
    return array


def namespace(array: Any) -> Any:
    """NumPy, or the functions of the backend that an array belongs to. NumPy's arrays may be of any dtype."""
    return np if isinstance(array, np.ndarray) else backend_of(array).xp


def _is_foreign(array: Any) -> bool:
    """Whether it is an array of another library than NumPy."""
    return not isinstance(array, np.ndarray) and hasattr(array, "__dlpack__")


def dispatches(X: Any) -> bool:
    """Whether predictions belong to the library of these samples, by scikit-learn's `array_api_dispatch`."""
    return _is_foreign(X) and bool(get_config()["array_api_dispatch"])


def handed_back(outputs: Any, X: Any) -> Any:
    """Predictions in the library and on the device of the samples, where scikit-learn dispatches; else NumPy arrays.

    Labels that are text are NumPy arrays in any case.
    """
    if not dispatches(X):
        return outputs
    xp = get_namespace(X)[0]
    if is_on_device(outputs):
        return outputs if type(outputs) is type(X) else xp.from_dlpack(outputs)
    return xp.asarray(outputs, device=device(X)) if outputs.dtype.kind in "biuf" else outputs


def on_host(array: Any) -> Any:
    """Targets or weights as they were given; those on a GPU as a copy on the host."""
    array = received(array)
    return backend_of(array).to_host(array) if is_on_device(array) else array


def is_on_device(array: Any) -> bool:
    """Whether it is an array of a backend that is not NumPy."""
    return not isinstance(array, (np.ndarray, RowSource)) and hasattr(array, "__dlpack__")


def _dtype_of(X: Any) -> np.dtype[Any]:
    return np.dtype(str(X.dtype).rpartition(".")[2]).newbyteorder("=")


def floating(X: Any) -> np.dtype[Any] | None:
    """The dtype of samples of any backend; None if it is not one of floating-point numbers."""
    return dtype if (dtype := _dtype_of(X)).kind == "f" else None


def dtype_of_predictions(X: Any, coef: np.ndarray) -> np.dtype[Any]:
    """The dtype of predictions: that of a product of samples and weights in NumPy, but at most float64."""
    return min(np.result_type(_dtype_of(X), coef.dtype), np.dtype(float), key=lambda dtype: dtype.itemsize)


def stand_in(X: Any) -> np.ndarray:
    """A NumPy array of the same shape and dtype, which takes no memory, for scikit-learn's checks."""
    return np.broadcast_to(np.zeros((), _dtype_of(X)), tuple(X.shape))


def checked_there(estimator: Any, X: Any, dtype: np.dtype[Any]) -> Any:
    """Samples on a GPU in this dtype. Raises scikit-learn's ValueError for NaN and infinity.

    Raises MixedArraysError if the estimator computes elsewhere.
    """
    lib, there = backend_of(X), estimator.backend or current_backend().address
    if lib.name != there.partition(":")[0]:
        raise MixedArraysError(
            f"X is an array of {lib.name}, and the {type(estimator).__name__} computes on {there}: set "
            f"backend={lib.name!r}, or give a NumPy array"
        )
    X = lib.xp.astype(X, getattr(lib.xp, dtype.name), copy=False)
    if not lib.finite([X]):
        raise ValueError("Input X contains NaN or infinity.")
    return X


def validate(estimator: Any, X: Any, finite: bool = True) -> Any:
    """Samples to predict from, checked by scikit-learn against those of the fit.

    finite: whether to look for NaN and infinity in any case. If not, `checked_samples` does so in large arrays.
    """
    X = received(X)
    given = stand_in(X) if is_on_device(X) else X
    with nullcontext() if finite or not _is_large(X) else config_context(assume_finite=True):
        checked = validate_data(estimator, given, accept_sparse=["csr", "csc"], reset=False)
    if not is_on_device(X):
        return checked
    return checked_there(
        estimator, X, checked.dtype if checked.dtype.kind == "f" else estimator.coefs_[0].dtype
    )


def _is_large(X: Any) -> bool:
    return isinstance(X, np.ndarray) and X.dtype.kind == "f" and X.size > _MANY_NUMBERS


def checked_samples(estimator: Any, X: Any, dtype: str) -> Any:
    """Samples as a network takes them, from `validate(..., finite=False)`.

    Large arrays are converted and checked batch by batch: each is read from memory once, and then lies in the
    processor's cache. Reading a batch raises scikit-learn's ValueError for NaN and infinity.
    """

    def checked(rows: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            cast = rows.astype(dtype, copy=False)
        if _sum_is_finite(cast):
            return cast
        assert_all_finite(rows, estimator_name=type(estimator).__name__, input_name="X")
        return in_dtype(rows, dtype)

    return Converted(X, checked) if _is_large(X) else samples_of(X, dtype, whole=False)


def _sum_is_finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite, in one pass without memory. A sum that overflows gives False, too."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum()))


def rows_of(X: Any, rows: np.ndarray) -> Any:
    """These rows of samples, where the samples are."""
    if not is_on_device(X):
        return X[rows]
    lib = backend_of(X)
    return lib.xp.take(X, lib.to_device(rows), axis=0)


def in_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array in the dtype of training. Raises ValueError for numbers that are too large for it."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if array.dtype.kind == "f" and not _sum_is_finite(cast) and np.isinf(cast).any():
        raise ValueError(
            f"{NOT_FINITE} (They hold numbers that are too large for {dtype}; dtype='float64' takes them.)"
        )
    return cast


def samples_of(X: Any, dtype: str, whole: bool) -> Any:
    """Samples as a network takes them.

    X: a NumPy array, an array on a GPU or a sparse matrix. dtype: the network's. whole: whether to convert an array
    at once, for many passes over it; otherwise its rows are converted when they are read.
    """
    if hasattr(X, "toarray"):
        return SparseRows(X, dtype)
    if is_on_device(X):
        xp = backend_of(X).xp
        return xp.astype(X, getattr(xp, dtype), copy=False)
    if X.dtype == dtype or whole:
        return in_dtype(X, dtype)
    return Converted(X, lambda rows: in_dtype(rows, dtype))
