"""Standardization: moves and scales columns to mean 0 and deviation 1, as a layer that a model keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from xnn.backends import backend_of, get_backend
from xnn.backends.host_arrays import as_host_array
from xnn.backends.row_sources import Selected, first_not_finite, is_on_host, row_blocks
from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.files import notice
from xnn.layers import Rescale
from xnn.layers.dense import check_exact
from xnn.options import check_dtype

__all__ = ["constant_columns", "extremes", "far_from_unit", "moments", "standard_layer", "standardize"]

#: Targets of a regression with a root mean square outside of these are far from unit size. With the options that
#: `xnn train` has by default, training is stable up to about 15; it diverges for some tables at 20, for most at 40.
_NEAR = 0.01, 15.0


def standardize(x: Any, dtype: str = "float32") -> Rescale:
    """A layer that standardizes: z = (x - mean) / std, for each column of these samples.

    x: the training samples (n, ...), or the training targets (n,) or (n, columns); finite numbers.
    dtype: the dtype of z, "float32" (the default) or "float64".

    Mean and deviation are computed in float64, and so is z, which is rounded at the end. A column whose numbers are
    all equal is moved to 0 and not scaled, and named on standard error. `Rescale.inverse` makes the layer that undoes
    it.
    Raises ShapeError without a sample or for rows of different lengths, DTypeError for anything but finite numbers,
    such as masked values, and for integers beyond 2^53, and OptionError for a column that varies by less than about
    1e-308, which has no scale.

    The first layer of a model of columns:

        >>> import numpy as np, xnn
        >>> from xnn import data, layers
        >>> x = np.array([[1.7e9, 1.0], [1.7e9 + 60, 1.0], [1.7e9 + 120, 1.0]])
        >>> data.standardize(x)(x).tolist()
        [[-1.2247449159622192, 0.0], [0.0, 0.0], [1.2247449159622192, 0.0]]

    Targets far from unit size, such as prices, are learned as z. The inverse becomes the model's last layer, so that
    it predicts prices:

        >>> prices = np.array([[250_000.0], [310_000.0], [190_000.0]])
        >>> scaling = data.standardize(prices)
        >>> model = xnn.Sequential(data.standardize(x), layers.Dense(2, 1))
        >>> trainer = xnn.Trainer(model, xnn.losses.MSE(), xnn.optimizers.SGD(0.1))
        >>> history = trainer.fit((x, scaling(prices)), epochs=100, progress=False)
        >>> whole = xnn.Sequential(*model.layers, scaling.inverse())
        >>> bool(np.abs(whole.predict(x[:1]) - 280_000.0).max() < 35_000.0)
        True
    """
    layer, constant = standard_layer(x, dtype)
    if constant.size:
        named = ", ".join(map(str, constant[:5].tolist())) + (", ..." if constant.size > 5 else "")
        notice(
            f"xnn: data.standardize: all numbers are equal in column {named} (counted from 0), which becomes 0"
        )
    return layer


def standard_layer(x: Any, dtype: str) -> tuple[Rescale, np.ndarray]:
    """The layer that `standardize` returns, and which columns are constant: their indices in a flattened sample."""
    check_dtype(dtype)
    given = as_host_array(x, "standardize: the data", by_rows=True)
    array = given if is_on_host(given) else backend_of(given).to_host(given)
    if array.dtype.kind not in "iubf":
        raise DTypeError(f"standardize takes numbers, got an array of {array.dtype}: convert it")
    if array.ndim < 1 or not array.size:
        raise ShapeError(f"standardize needs samples (n, ...), at least one, got shape {array.shape}")
    low, high = extremes(array)
    for numbers in (low, high):
        check_exact("samples", numbers)
    if not np.isfinite([low, high]).all():
        row = first_not_finite(array)
        raise DTypeError(f"standardize got NaN or infinity in sample {row}: fill or drop it")
    mean, std = moments(array, (low, high))
    constant = low == high
    mean = np.where(constant, np.asarray(array[0], np.float64), mean)  # without a rounding
    with np.errstate(over="ignore", divide="ignore"):
        scale = np.where(constant, 1.0, 1.0 / std)
    if not np.isfinite(scale).all():
        column = np.argwhere(~np.isfinite(np.atleast_1d(scale)))[0].tolist()
        raise OptionError(f"column {column}, counted from 0, varies by less than 1e-308: change its unit")
    return Rescale(scale, dtype=dtype, shift=mean), np.flatnonzero(constant)


def far_from_unit(y: Any) -> float | None:
    """The root mean square of the largest column of targets y (n, ...), if it is far from 1; else None.

    Such targets are hard to learn.
    """
    if not y.size:
        return None

    def columns() -> Iterator[np.ndarray]:
        for _, block in row_blocks(y):
            yield block.reshape(len(block), -1).astype(np.float64)

    each = np.max([np.abs(block).max(axis=0) for block in columns()], axis=0)
    column, largest = int(np.argmax(each)), max(float(each.max()), 1e-300)
    squares = sum(float(np.sum(np.square(block[:, column] / largest))) for block in columns())
    size = float(np.sqrt(squares / len(y))) * largest
    return size if size and not _NEAR[0] <= size <= _NEAR[1] else None


def extremes(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest number of each column of x (n, ...), which may be read from files."""
    found = [(block.min(axis=0), block.max(axis=0)) for block in _blocks(x)]
    lows, highs = zip(*found, strict=True)
    return np.min(lows, axis=0), np.max(highs, axis=0)


def _blocks(x: Any) -> Iterator[np.ndarray]:
    """The samples, block by block, in the order in which they lie in a file."""
    if isinstance(x, Selected):
        x = Selected(x.source, np.sort(x.rows))
    return (block for _, block in row_blocks(x))


def constant_columns(x: Any) -> np.ndarray:
    """Whether all samples have the same number, for each column of x (n, ...)."""
    low, high = extremes(x)
    return np.asarray(low == high)


def moments(x: Any, limits: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column of x (n, ...), float64, the same bits on every machine.

    limits: what `extremes` returns for x.

    Each column is first divided by the power of two above its largest number, so that no square overflows or is 0.
    The mean is then corrected by the mean of what is left, in a second pass. The samples are read block by block.
    """
    ends = [numbers.astype(np.float64) for numbers in limits]
    _, exponent = np.frexp(np.max(np.abs(ends), axis=0))

    def near(block: np.ndarray) -> np.ndarray:
        return np.asarray(np.ldexp(block, -exponent))

    mean = _mean(x, near, ends)
    mean = mean + _mean(x, lambda block: near(block) - mean, ends)
    _, spread = np.frexp(np.max([np.abs(near(end) - mean) for end in ends], axis=0))

    def away(block: np.ndarray) -> np.ndarray:
        return np.asarray(np.ldexp(near(block) - mean, -spread))

    centre = _mean(x, away, ends)
    variance = _mean(x, lambda block: np.square(away(block) - centre), ends)
    return np.ldexp(mean, exponent), np.ldexp(np.ldexp(np.sqrt(variance), spread), exponent)


def _mean(x: Any, of: Callable[[np.ndarray], np.ndarray], ends: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of each column of a function of the samples, as exact numerics compute it.

    of: a function that is monotonic in each number, or the square of one.
    ends: the smallest and the largest number of each column, where such a function is largest.

    Each number is cut to a slice, relative to the largest of its column. Sums of slices are exact in any order.
    """
    from xnn.backends.exact.slices import exponent, slice_one, sum_bits

    lib = get_backend("numpy")  # the sums of NumPy depend on the processor
    exponents = exponent(lib, np.max([np.abs(of(end)) for end in ends], axis=0)[None], 0)
    total, bits = 0.0, sum_bits(len(x))
    for block in _blocks(x):
        total = total + slice_one(lib, of(block.astype(np.float64)), exponents, bits).sum(axis=0)
    return np.asarray((total + 0.0) / float(len(x)))
