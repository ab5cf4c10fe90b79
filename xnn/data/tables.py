"""Reads tables: CSV files."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from xnn.errors import CorruptFileError
from xnn.files import reading

__all__ = [
    "Choose",
    "Columns",
    "Table",
    "every_column",
    "read_csv",
    "samples_and_targets",
]


@dataclass(frozen=True)
class Columns:
    """Which columns of a CSV file are features and which are targets.

    names: the names of all columns; empty without a header.
    features, targets: the numbers of columns, from 0.
    header: whether a header was asked for; None if that was not said. Default None.
    """

    names: tuple[str, ...]
    features: tuple[int, ...]
    targets: tuple[int, ...]
    header: bool | None = None

    def describe(self, column: int) -> str:
        """The column in words, counted from 1: field 3 ('height')."""
        return f"field {column + 1}" + (f" ({self.names[column]!r})" if self.names else "")


#: choose(names, width) -> the numbers of the feature columns and of the target columns, given the names of all
#: columns (none without a header) and how many there are.
Choose: TypeAlias = Callable[[tuple[str, ...], int], tuple[Sequence[int], Sequence[int]]]


def every_column(names: tuple[str, ...], width: int) -> tuple[Sequence[int], Sequence[int]]:
    """Chooses all columns as features."""
    return range(width), ()


@dataclass(frozen=True)
class Table:
    """The rows of a CSV file.

    path: the file. columns: which of its columns are features and targets.
    x: the features, float64 (rows, features).
    fields: the text of each target column, row by row.
    lines: the line of each row in the file, counted from 1.
    """

    path: Path
    columns: Columns
    x: np.ndarray
    fields: tuple[list[str], ...]
    lines: list[int]

    def targets(self) -> np.ndarray:
        """The targets: numbers (rows,) or (rows, targets); or text (rows,) for a single column with text in it.

        Raises CorruptFileError, naming the line, for text in one of several columns, and for infinity.
        """
        numbers: list[np.ndarray] = []
        for column, fields in zip(self.columns.targets, self.fields, strict=True):
            wrong = [row for row, field in enumerate(fields) if not _is_number(field)]
            if wrong and len(self.fields) == 1:
                return np.asarray(fields)
            if wrong:
                raise CorruptFileError(
                    f"{self.path}, line {self.lines[wrong[0]]}, {self.columns.describe(column)}: "
                    f"{fields[wrong[0]]!r} is not a number; several targets must all be numbers"
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
    """The rows of a CSV file. Features must be numbers; targets may be text.

    path: the file, in UTF-8.
    choose: says which columns are features and which targets. Default: all are features.
    header: whether the first line holds the names of the columns. Default None: it does if nothing in it is a number.

    Raises CorruptFileError, naming line and field, for text among the features, a missing value (empty, ?, NA, N/A,
    null or NaN) or a row of another length; DataNotFoundError without the file; and what `choose` raises.
    """
    rows: list[list[float]] = []
    fields: list[list[str]] = []
    numbers: list[int] = []
    columns: Columns | None = None
    width = 0
    try:
        with reading(path), open(path, newline="", encoding="utf-8-sig") as file:
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
                    hint = "; a comma in a number? write 1.5, with a point" if len(line) > width else ""
                    if any("\n" in field for field in line):
                        hint = "; a quotation mark that is not closed? This row began in an earlier line"
                    raise CorruptFileError(f"{where}: {len(line)} fields, and {width} were expected{hint}")
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
            f"{path} is not a CSV file in UTF-8 (byte 0x{error.object[error.start]:02x}): save it as CSV with the "
            "encoding UTF-8"
        ) from error
    except csv.Error as error:
        raise CorruptFileError(f"{path} is not a CSV file: {error}") from error
    if columns is None or not rows:
        raise CorruptFileError(f"{path} holds no rows of numbers: give another file")
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
    """The field as a number; NaN if it is not one."""
    try:
        number = float(field)
    except ValueError:
        return math.nan
    return math.nan if "_" in field else number


def _is_missing(field: str) -> bool:
    text = field.strip().lower()
    return text in _MISSING or text in ("+nan", "-nan")


def _wrong_field(where: str, line: list[str], columns: Columns, rows: int) -> CorruptFileError:
    """The error for the first field of a line that is missing, or that is a feature and no number.

    rows: how many rows came before.
    """
    for column, field in enumerate(line):
        if column not in (*columns.features, *columns.targets):
            continue
        if _is_missing(field):
            fault = f"the value is missing ({field!r}); fill it, with the column's mean for example, or drop the row"
        elif column not in columns.features or _is_number(field):
            continue
        elif _is_number(field.replace(",", ".")) or ";" in field:
            fault = f"{field!r} is not a number: numbers are written 1.5, and fields have commas between them"
        elif not rows and columns.header is False:
            fault = (
                f"{field!r} is not a number; if the first line holds the names of the columns, omit --no-header "
                "(header=False)"
            )
        else:
            fault = (
                f"{field!r} is not a number; a feature must be one: write categories as columns of 0 and 1, or drop "
                "the column"
            )
        return CorruptFileError(f"{where}, {columns.describe(column)}: {fault}")
    raise AssertionError("no field is wrong")


def samples_and_targets(name: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Arrays as samples (n, features) and targets (n,) or (n, columns).

    name: the name of the data, for messages.
    x: (n, ...), finite numbers.
    y: (n, ...), finite numbers; or (n,) or (n, 1), names of classes.

    Raises CorruptFileError for other arrays.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    numbers = x.dtype.kind in "iubf" and (y.dtype.kind in "iubf" or (y.dtype.kind == "U" and y.ndim == 1))
    if not numbers or 0 in (x.ndim, y.ndim) or len(x) != len(y):
        raise CorruptFileError(
            f"{name}: got features {x.dtype}{list(x.shape)} and targets {y.dtype}{list(y.shape)}; both must be "
            "numbers, equally many (or targets (n,) the names of classes)"
        )
    for what, array in (("features", x), ("targets", y)):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
            raise CorruptFileError(
                f"{name}: the {what} of sample {row} hold NaN or infinity: fill or drop it"
            )
    return x.reshape(len(x), int(np.prod(x.shape[1:]))), y
