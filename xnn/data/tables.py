"""Tables: CSV files and NumPy's .npz and .npy, without pickles."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import numpy as np

from xnn.errors import CorruptFileError, DataNotFoundError

__all__ = ["is_classification", "read_array", "read_csv", "read_npz"]


def read_csv(path: Path) -> np.ndarray:
    """A numeric CSV file as float64 (rows, columns); a first line that is not all numbers is the header.

    Raises CorruptFileError naming the line for text, a missing value or a row of another length.
    """
    rows: list[list[float]] = []
    width = 0
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for line in csv.reader(file):
                if not line:
                    continue
                try:
                    row = [float(field) for field in line]
                except ValueError:
                    if not rows and not width:
                        width = len(line)
                        continue
                    number = next(field for field in line if not _is_number(field))
                    raise CorruptFileError(
                        f"{path}, line {len(rows) + 2}: {number!r} is not a number; every field must be one"
                    ) from None
                width = width or len(row)
                if len(row) != width:
                    raise CorruptFileError(f"{path}: a row of {len(row)} fields where {width} were expected")
                rows.append(row)
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


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Every array of an .npz file; objects (pickles) are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise DataNotFoundError(f"there is no file {path}") from error
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise CorruptFileError(f"{path} is not a readable .npz file: {error}") from error


def read_array(path: Path) -> np.ndarray:
    """The array of an .npy file; objects (pickles) are refused."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataNotFoundError(f"there is no file {path}") from error
    except (OSError, ValueError, EOFError) as error:
        raise CorruptFileError(f"{path} is not a readable .npy file: {error}") from error
    return np.asarray(array)


def is_classification(y: np.ndarray) -> bool:
    """Whether targets (n,) are class labels: whole numbers 0 .. k - 1, k < 1000, each of them present."""
    if y.ndim != 1 or not y.size or y.dtype.kind not in "iuf" or y.min() < 0 or y.max() >= 1000:
        return False
    labels = np.unique(y)
    return bool(np.array_equal(labels, np.arange(labels.size)))
