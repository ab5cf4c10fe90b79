"""Tables: CSV files and NumPy's .npz and .npy, without pickles."""

from __future__ import annotations

import csv
import zipfile
import zlib
from pathlib import Path

import numpy as np

from xnn.errors import CorruptFileError, DataNotFoundError

__all__ = ["check_pair", "is_classification", "read_array", "read_csv", "read_npz"]


def read_csv(path: Path) -> np.ndarray:
    """A numeric CSV file as float64 (rows, columns); a first line without any number is the header.

    Raises CorruptFileError naming the line for text, a missing value or a row of another length.
    """
    rows: list[list[float]] = []
    width = 0
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            for line in lines:
                if not line:
                    continue
                if not width:
                    width = len(line)
                    if not any(map(_is_number, line)):
                        continue  # the header
                where = f"{path}, line {lines.line_num}"
                if len(line) != width:
                    raise CorruptFileError(f"{where}: {len(line)} fields where {width} were expected")
                try:
                    rows.append([float(field) for field in line])
                except ValueError:
                    wrong = next(field for field in line if not _is_number(field))
                    raise CorruptFileError(
                        f"{where}: {wrong!r} is not a number; every field must be one"
                    ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorruptFileError(f"{path} is not a CSV file: {error}") from error
    except OSError as error:
        raise DataNotFoundError(f"cannot read {path}: {error.strerror or error}") from error
    if not rows:
        raise CorruptFileError(f"{path} holds no rows of numbers")
    table = np.asarray(rows)
    if not np.isfinite(table).all():
        raise CorruptFileError(f"{path} holds NaN or infinite values; fill or drop those rows first")
    return table


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


# What NumPy and zipfile raise on damaged bytes; MemoryError is a header that announces petabytes.
_DAMAGE = (OSError, ValueError, EOFError, AttributeError, MemoryError, zipfile.BadZipFile, zlib.error)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Every array of an .npz file; objects (pickles) are refused."""
    found = _read(path, ".npz")
    if isinstance(found, np.ndarray):
        raise CorruptFileError(f"{path} holds a single array, not an .npz archive: name it .npy")
    return found


def read_array(path: Path) -> np.ndarray:
    """The array of an .npy file; objects (pickles) are refused."""
    found = _read(path, ".npy")
    if isinstance(found, dict):
        raise CorruptFileError(f"{path} is an .npz archive of {', '.join(found)}: name it .npz")
    return found


def _read(path: Path, kind: str) -> np.ndarray | dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            return {name: content[name] for name in content.files}
    except FileNotFoundError as error:
        raise DataNotFoundError(f"there is no file {path}") from error
    except _DAMAGE as error:
        raise CorruptFileError(f"{path} is not a readable {kind} file: {error}") from error


def check_pair(name: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, columns) and targets (n,) or (n, columns) that belong together: finite numbers, n of each."""
    if x.dtype.kind not in "iubf" or y.dtype.kind not in "iubf":
        raise CorruptFileError(f"{name}: features are {x.dtype} and targets {y.dtype}; both must be numbers")
    if x.ndim < 1 or y.ndim < 1 or len(x) != len(y):
        raise CorruptFileError(
            f"{name}: features {x.shape} and targets {y.shape} are not as many of one as the other"
        )
    for what, array in (("features", x), ("targets", y)):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
            raise CorruptFileError(
                f"{name}: the {what} of sample {row} hold NaN or infinity; fill or drop it first"
            )
    x = x.reshape(len(x), int(np.prod(x.shape[1:])))
    return x, y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def is_classification(y: np.ndarray) -> bool:
    """Whether targets (n,) are class labels: whole numbers 0 .. k - 1, k < 1000, each of them present."""
    if y.ndim != 1 or not y.size or y.dtype.kind not in "iubf" or y.min() < 0 or y.max() >= 1000:
        return False
    labels = np.unique(y)
    return bool(np.array_equal(labels, np.arange(labels.size)))
