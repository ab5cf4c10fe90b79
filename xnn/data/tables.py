"""Tables: CSV files and NumPy's .npz and .npy, without pickles."""

from __future__ import annotations

import csv
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from xnn.errors import CorruptFileError, DataNotFoundError

__all__ = ["Choose", "Columns", "Table", "check_pair", "every_column", "read_array", "read_csv", "read_npz"]


@dataclass(frozen=True)
class Columns:
    """Which columns of a CSV file are features and which are targets, counted from 0.

    names: of all columns, empty without a header. header: as it was asked for, None if it was found out.
    """

    names: tuple[str, ...]
    features: tuple[int, ...]
    targets: tuple[int, ...]
    header: bool | None = None

    def describe(self, column: int) -> str:
        """field 3 ('height'), counted from 1."""
        return f"field {column + 1}" + (f" ({self.names[column]!r})" if self.names else "")


#: Says which columns are features and which targets, given their names (none without a header) and their number.
Choose: TypeAlias = Callable[[tuple[str, ...], int], tuple[Sequence[int], Sequence[int]]]


def every_column(names: tuple[str, ...], width: int) -> tuple[Sequence[int], Sequence[int]]:
    """All columns are features."""
    return range(width), ()


@dataclass(frozen=True)
class Table:
    """A CSV file: features x, float64 (rows, columns), and the fields of each target column as text.

    lines: each row's line in the file.
    """

    path: Path
    columns: Columns
    x: np.ndarray
    fields: tuple[list[str], ...]
    lines: list[int]

    def targets(self) -> np.ndarray:
        """Numbers (rows,) or (rows, targets); text (rows,) if the one target's fields are not all numbers.

        Raises CorruptFileError naming the line for text in one of several targets, and for infinity.
        """
        numbers: list[np.ndarray] = []
        for column, fields in zip(self.columns.targets, self.fields, strict=True):
            wrong = [row for row, field in enumerate(fields) if not _is_number(field)]
            if wrong and len(self.fields) == 1:
                return np.asarray(fields)
            if wrong:
                raise CorruptFileError(
                    f"{self.path}, line {self.lines[wrong[0]]}, {self.columns.describe(column)}: "
                    f"{fields[wrong[0]]!r} is not a number; with several targets each must be one"
                )
            numbers.append(np.asarray([float(field) for field in fields]))
        y = np.stack(numbers, axis=1)
        self._check_finite(y, self.columns.targets)
        return y[:, 0] if y.shape[1] == 1 else y

    def _check_finite(self, numbers: np.ndarray, columns: Sequence[int]) -> None:
        if not np.isfinite(numbers).all():
            row, column = np.argwhere(~np.isfinite(numbers))[0]
            where = f"{self.path}, line {self.lines[row]}, {self.columns.describe(columns[column])}"
            raise CorruptFileError(f"{where}: the value is infinite; correct it or drop the row")


def read_csv(path: Path, choose: Choose = every_column, header: bool | None = None) -> Table:
    """A CSV file of numbers, whose targets may be text. header: whether the first line holds the columns' names;
    None if that is to be found out, by its not holding a single number.

    Raises CorruptFileError naming line and field for text among the features, a missing value (empty, ?, NA, N/A,
    null or NaN) or a row of another length; what `choose` raises; and DataNotFoundError.
    """
    rows: list[list[float]] = []
    fields: list[list[str]] = []
    numbers: list[int] = []
    columns: Columns | None = None
    width = 0
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            for line in lines:
                if not line:
                    continue
                if columns is None:
                    width = len(line)
                    named = header if header is not None else not any(map(_is_number, line))
                    names = tuple(field.strip() for field in line) if named else ()
                    features, targets = map(tuple, choose(names, width))
                    columns = Columns(names, features, targets, header)
                    fields = [[] for _ in targets]
                    if named:
                        continue
                where = f"{path}, line {lines.line_num}"
                if len(line) != width:
                    hint = "; a comma in a number? 1.5 is written with a point" if len(line) > width else ""
                    raise CorruptFileError(f"{where}: {len(line)} fields where {width} were expected{hint}")
                row = [_as_number(line[column]) for column in columns.features]
                texts = [line[column].strip() for column in columns.targets]
                if any(x != x for x in row) or any(map(_is_missing, texts)):
                    raise _wrong_field(where, line, columns, len(rows))
                rows.append(row)
                numbers.append(lines.line_num)
                for column, text in zip(fields, texts, strict=True):
                    column.append(text)
    except UnicodeDecodeError as error:
        raise CorruptFileError(
            f"{path} is not a CSV file in UTF-8 (byte 0x{error.object[error.start]:02x}): save it as CSV, encoded as "
            "UTF-8"
        ) from error
    except csv.Error as error:
        raise CorruptFileError(f"{path} is not a CSV file: {error}") from error
    except OSError as error:
        raise DataNotFoundError(f"cannot read {path}: {error.strerror or error}") from error
    if columns is None or not rows:
        raise CorruptFileError(f"{path} holds no rows of numbers")
    table = Table(path, columns, np.asarray(rows, dtype=np.float64), tuple(fields), numbers)
    table._check_finite(table.x, columns.features)
    return table


_MISSING = frozenset({"", "?", "na", "n/a", "nan", "null"})


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field  # Python's 2024_01 is 202401


def _as_number(field: str) -> float:
    """NaN for what is none."""
    try:
        number = float(field)
    except ValueError:
        return math.nan
    return math.nan if "_" in field else number


def _is_missing(field: str) -> bool:
    text = field.strip().lower()
    return text in _MISSING or text in ("+nan", "-nan")


def _wrong_field(where: str, line: list[str], columns: Columns, rows: int) -> CorruptFileError:
    """The error for the first field that is missing, or is a feature and no number, after so many rows."""
    for column, field in enumerate(line):
        if column not in (*columns.features, *columns.targets):
            continue
        what = f"{where}, {columns.describe(column)}"
        if _is_missing(field):
            return CorruptFileError(
                f"{what}: the value is missing ({field!r}); fill it, with the column's mean for example, or drop "
                "the row"
            )
        if column in columns.features and not _is_number(field):
            if _is_number(field.replace(",", ".")) or ";" in field:
                return CorruptFileError(
                    f"{what}: {field!r} is not a number: numbers are written 1.5, and fields have commas between them"
                )
            if not rows and columns.header is False:
                return CorruptFileError(
                    f"{what}: {field!r} is not a number; if the first line holds the columns' names, leave "
                    "--no-header (header=False) away"
                )
            return CorruptFileError(
                f"{what}: {field!r} is not a number; a feature must be one: write categories as columns of 0 and 1, "
                "or drop the column"
            )
    raise AssertionError("no field is wrong")


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
        if "allow_pickle" in str(error):
            raise CorruptFileError(
                f"{path} holds Python objects, or is no {kind} file: xnn reads numbers and text alone, since "
                "unpickling runs code; save arrays of one dtype, as of array.astype('float32')"
            ) from error
        raise CorruptFileError(f"{path} is not a readable {kind} file: {error}") from error


def check_pair(name: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, columns) and targets (n,) or (n, columns) that belong together: n of each, finite numbers.

    Targets (n,) may be text, the names of classes.
    """
    if x.dtype.kind not in "iubf" or y.dtype.kind not in "iubfU":
        raise CorruptFileError(
            f"{name}: features are {x.dtype} and targets {y.dtype}; both must be numbers, or targets classes by name"
        )
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
