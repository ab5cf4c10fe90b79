"""Makes arrays of what users have: lists, arrays of other libraries, tables. What would come out wrong is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from numbers import Integral, Real
from typing import Any

import numpy as np

from xnn.backends.registry import is_device_array, widened
from xnn.backends.row_sources import Converted, RowSource, reads_rows
from xnn.errors import DTypeError, ShapeError
from xnn.options import shown

__all__ = ["as_host_array"]

#: Dtypes of plain arrays that stay as they are.
_COMPUTED = frozenset(map(np.dtype, ("float32", "float64", "int64", "uint8")))
# What `numpy.asarray` and the `__array__` of other libraries raise. PyTorch's is a RuntimeError for a tensor with a
# gradient, and a TypeError for one on a GPU.
_NO_ARRAYS = str, bytes, bytearray, Mapping, Set, Iterator
_FAILURES = (TypeError, ValueError, RuntimeError, OverflowError, AttributeError, MemoryError, RecursionError)


def as_host_array(value: Any, what: str, by_rows: bool = False) -> Any:
    """The value as a NumPy array of numbers or text. An array of another backend stays where it is.

    value: an array, a list, a number, or anything that NumPy can read, such as a pandas table or a PyTorch tensor.
        float16, bfloat16 and the like become float32, and long double becomes float64.
    what: the data, in the singular, for messages, such as "x".
    by_rows: whether a RowSource may be returned: a RowSource as it is, and one for a memory map that must be
        converted. Default False: they are read into memory.

    Raises DTypeError for masked values, sparse matrices, complex numbers, dates, records and Python objects, and for
    what is no array at all: text, None, a set, a dict, a generator. Raises ShapeError for rows of different lengths.

        >>> as_host_array([[1, 2], [3, 4]], "x").shape
        (2, 2)
    """
    if type(value) is np.ndarray and value.dtype in _COMPUTED and (value.base is None or not by_rows):
        return value
    if type(value) is not np.ndarray and is_device_array(value):
        return widened(value)
    array = value if by_rows and isinstance(value, RowSource) else _converted(value, what)
    if by_rows and reads_rows(array) and array.ndim and len(array) and array.dtype.kind not in "cmMOT":
        return _read_by_rows(array, what)
    array = widened(array)
    kind = array.dtype.kind
    if kind in "biuf":
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    if kind in "US":
        return array
    if kind == "T":  # text of any length, in NumPy 2
        return array.astype(object).astype(str)
    if kind == "c":
        raise DTypeError(
            f"{what} holds complex numbers: give their real and imaginary parts as features, or abs(x)"
        )
    if kind in "mM":
        raise DTypeError(
            f"{what} holds dates or times ({array.dtype}): give numbers, such as the days since a first day"
        )
    if kind == "O" and array.size and all(isinstance(item, str) for item in array.flat):
        return array.astype(str)
    if kind == "O":
        raise DTypeError(f"{what} {_objects(array)}")
    raise DTypeError(
        f"{what} holds {shown(array.dtype)}, which are no numbers that xnn computes with: x.astype('float32')"
    )


def _read_by_rows(array: Any, what: str) -> Any:
    """A memory map or RowSource whose rows have a dtype that is computed with; converted when they are read."""
    if as_host_array(np.array(array[:1]), what).dtype == array.dtype:
        return array
    return Converted(array, lambda rows: as_host_array(np.array(rows), what))


def _converted(value: Any, what: str) -> np.ndarray:
    """The value as NumPy makes an array of it, without masks."""
    if isinstance(value, np.ma.MaskedArray):
        masked = int(np.count_nonzero(np.ma.getmaskarray(value)))
        if masked:
            raise DTypeError(
                f"{what} has {masked} masked values: fill them, as x.filled(0) does, or drop those rows"
            )
        return np.asarray(value.data)
    if type(value).__module__.startswith("scipy.sparse"):
        raise DTypeError(
            f"{what} is a sparse matrix ({type(value).__name__}): x.toarray() makes an array of it"
        )
    if value is None or isinstance(value, _NO_ARRAYS):
        hint = (
            ": list(...) or numpy.asarray(list(...)) makes one" if isinstance(value, (Set, Iterator)) else ""
        )
        raise DTypeError(f"{what} must be an array of numbers, got {shown(value)}{hint}")
    if isinstance(value, (list, tuple)) and any(isinstance(row, np.ma.MaskedArray) for row in value):
        value = [_converted(row, what) for row in value]
    try:
        return np.asarray(value)
    except _FAILURES as error:
        if "inhomogeneous" in str(error):
            raise ShapeError(
                f"{what} has rows of different lengths{_lengths(value)}: pad or cut them to one length"
            ) from None
        raise DTypeError(
            f"{what} is a {type(value).__name__} that NumPy cannot convert to an array "
            f"({str(error)[:200] or type(error).__name__}): give an array or a list of numbers"
        ) from error


def _lengths(rows: Any) -> str:
    """The first two rows of different lengths, if the rows themselves differ."""
    lengths = [len(row) if hasattr(row, "__len__") else None for row in rows]
    other = next((row for row, length in enumerate(lengths) if length != lengths[0]), None)
    if other is None:
        return ""
    first, second = (f"{n} numbers" if n is not None else "one number" for n in (lengths[0], lengths[other]))
    return f" (row 0 has {first}, row {other} has {second})"


def _objects(array: np.ndarray) -> str:
    """What is wrong with an array of Python objects."""
    for place, item in np.ndenumerate(array):
        if not isinstance(item, (Real, np.bool_)):
            where = ", ".join(map(str, place))
            return f"holds Python objects, such as {shown(item)} at [{where}]: make them numbers, and then an array"
    whole = all(isinstance(item, (Integral, np.bool_)) and abs(int(item)) < 2**63 for item in array.flat)
    return (
        f"holds {'integers' if whole else 'numbers'} as Python objects: .astype('{'int64' if whole else 'float32'}') "
        "makes an array of them"
    )
