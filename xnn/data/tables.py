"""Reads tables: CSV files."""

from __future__ import annotations

import math
from array import array as packed
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

import numpy as np

from xnn.data.csv_fields import as_number, is_code, is_date, is_missing, is_number, like_number, loses_digits
from xnn.data.csv_rows import Row, read_rows
from xnn.data.csv_targets import NumberFields, first_rows, mapped_fields
from xnn.data.headers import is_header
from xnn.errors import CorruptFileError

__all__ = [
    "Choose",
    "Columns",
    "Table",
    "csv_parts",
    "every_column",
    "read_csv",
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
    lines: the line in which each row begins, counted from 1.
    unlabelled: the lines of rows without a target; only read_csv(targets_needed=False) takes them. Default ().
    notes: what the user should be told of how the file was read. Default ().
    """

    path: Path
    columns: Columns
    x: np.ndarray
    fields: tuple[Sequence[str], ...]
    lines: Sequence[int]
    unlabelled: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def targets(self, task: str | None = None, text: bool = False) -> np.ndarray:
        """The targets: numbers (rows,) or (rows, targets); or text (rows,) for a single column of names of classes.

        task: "classification" or "regression"; default None, as the fields suggest.
        text: whether a single column is text in any case, because a model knows its classes by text. Default False.

        Integers with leading zeros, and those beyond 2^53 that float64 cannot hold, are names unless the task is a
        regression. Raises CorruptFileError, naming the line, for infinity; for text in one of several columns; and
        for text among numbers, or written like numbers, that looks like a damaged number and not like a class.
        """
        if len(self.fields) == 1 and (text or self._are_names(task)):
            return self._names()
        numbers: list[np.ndarray] = []
        for column, fields in zip(self.columns.targets, self.fields, strict=True):
            if isinstance(fields, NumberFields):
                numbers.append(np.asarray(fields.numbers))
                continue
            for field, row in first_rows(fields).items():
                if not is_number(field):
                    several = "; several targets must all be numbers" if len(self.fields) > 1 else ""
                    raise self._error(row, column, f"{field!r} is not a number{several}")
                if loses_digits(field):
                    raise self._error(
                        row, column, f"{field} is {_TOO_LONG}: write it as 1.5e16 if digits may go"
                    )
            numbers.append(mapped_fields(fields, float))
        y = np.stack(numbers, axis=1)
        if not np.isfinite(y).all():
            row, place = np.argwhere(~np.isfinite(y))[0].tolist()
            raise self._error(row, self.columns.targets[place], _INFINITE)
        return y[:, 0] if y.shape[1] == 1 else y

    def target_notes(self, task: str | None = None) -> tuple[str, ...]:
        """What the user should be told of targets that were taken as names although some look like numbers."""
        if len(self.fields) != 1 or task is not None or not self._are_names(None):
            return ()
        (fields,) = self.fields
        found = first_rows(fields)
        column = self.columns.describe(self.columns.targets[0])
        if not any(map(is_number, found)):
            like = next(filter(like_number, found), None)
            if like is None:
                return ()
            return (
                f"the target, {column}, is text such as {like[:40]!r}: taken as {len(found)} classes; for a "
                "regression write it as numbers, 1234.5",
            )
        other = next((field for field in found if not is_number(field)), None)
        if other is not None:
            why = f"mixes numbers with text ({other[:40]!r} in line {self.lines[found[other]]})"
        else:
            why = f"holds {next(filter(is_code, found))}, which as a number would lose digits"
        return (f"the target, {column}, {why}: its values are names of classes",)

    def _are_names(self, task: str | None) -> bool:
        """Whether a single target column is text: names of classes."""
        (fields,), (column,) = self.fields, self.columns.targets
        if isinstance(fields, NumberFields):
            return False
        found = first_rows(fields)
        texts = [field for field in found if not is_number(field)]
        like = [field for field in texts if like_number(field)]
        if task == "regression":
            if like:
                raise self._damaged(found[like[0]], column, "")
            return bool(found) and len(texts) == len(found)  # as_targets says that this is no regression
        if not texts:
            return any(map(is_code, found))
        mark = next((mark for mark in ";\t|" if all(mark in field for field in found)), None)
        if task is None and mark:
            raise self._error(
                0,
                column,
                f"{fields[0][:40]!r} is a single field: fields have commas between them, not {mark!r}",
            )
        if task is None:
            damaged, different = texts if len(texts) < len(found) else like, len(found)
            rare = bool(like) and different > 2 and 4 * different > 3 * len(fields)
            if damaged and (different > _FEW or rare):
                hint = "; task='classification' (--task) takes all targets as names of classes"
                raise self._damaged(found[damaged[0]], column, hint)
        return True

    def _damaged(self, row: int, column: int, hint: str) -> CorruptFileError:
        """The error for a target that is not written as a number. hint: what else to do."""
        return self._error(
            row,
            column,
            f"the target {self.fields[0][row][:40]!r} is not a number, and it looks damaged: numbers are written "
            f"1234.5, without a unit{hint}",
        )

    def _names(self) -> np.ndarray:
        (fields,), (column,) = self.fields, self.columns.targets
        for field, row in first_rows(fields).items():
            if len(field) > _LONGEST_NAME:
                raise self._error(row, column, f"a name of a class has up to {_LONGEST_NAME} characters")
        return mapped_fields(fields, str)

    def _error(self, row: int, column: int, fault: str) -> CorruptFileError:
        return CorruptFileError(
            f"{self.path}, line {self.lines[row]}, {self.columns.describe(column)}: {fault}"
        )


_INFINITE = "the value is infinite; correct it or drop the row"
_TOO_LONG = "an integer beyond 2^53, whose last digits would change as a number"
_FEW = 20
_LONGEST_NAME = 1000
#: How many rows are looked at to decide whether the first line is a header.
_AHEAD = 1000


def read_csv(
    path: Path,
    choose: Choose = every_column,
    header: bool | None = None,
    names: Sequence[str] = (),
    training: bool = True,
) -> Table:
    """The rows of a CSV file. Features must be numbers; targets may be text.

    path: the file, in UTF-8; csv_rows.py says how it is split into fields.
    choose: says which columns are features and which targets. Default: all are features.
    header: whether the first line holds the names of the columns. Default None: headers.py decides.
    names: names that make a header of the first line if it has them all. Default: none.
    training: whether the table must have rows, and each a target. Default True.

    Raises CorruptFileError, naming line and field, for text among the features, a missing value (empty, ?, NA, N/A,
    null or NaN; in quotation marks, NA is text) or a row of another length; DataNotFoundError without the file;
    OptionError if the first line may be a header or a row; and what `choose` raises.
    """
    (table,) = csv_parts(path, choose, header, names, training)
    return table


def csv_parts(
    path: Path,
    choose: Choose = every_column,
    header: bool | None = None,
    names: Sequence[str] = (),
    training: bool = True,
    rows: int | None = None,
) -> Iterator[Table]:
    """The rows of a CSV file as tables of `rows` rows each, read one after the other; the last one may have fewer.

    rows: default None: all. The notes of the last table are those of all rows. The other arguments, and what is
    raised, are those of `read_csv`.
    """
    columns, width, notes, everything = begin_table(path, read_rows(path), choose, header, names)
    classes, before = set[str](), 0
    while True:
        x, lines, unlabelled = packed("d"), packed("q"), []
        texts: list[list[str]] = [[] for _ in columns.targets]
        for row in islice(everything, rows):
            x.extend(numbers_of(path, row, columns, width, before + len(lines)))
            for column, fields in zip(columns.targets, texts, strict=True):
                field = row.fields[column]
                if is_missing(field) and not is_class(path, row, column, columns, training):
                    unlabelled.append(row.line_of(column))
                elif is_missing(field):
                    classes.add(field)
                fields.append(field)
            lines.append(row.line)
        if training and not lines and not before:
            raise CorruptFileError(f"{path} holds no rows of numbers: give another file")
        if before and not lines:
            return
        before += len(lines)
        samples = np.frombuffer(x, dtype=np.float64) if len(x) else np.zeros(0)
        shape, said = (len(lines), len(columns.features)), (*notes, *note_of_classes(classes))
        yield Table(path, columns, samples.reshape(shape), tuple(texts), lines, tuple(unlabelled), said)
        if rows is None or len(lines) < rows:
            return


def begin_table(
    path: Path, rows: Iterator[Row], choose: Choose, header: bool | None, names: Sequence[str]
) -> tuple[Columns, int, list[str], Iterator[Row]]:
    """The columns of a table, how many there are, what the user should be told, and the rows behind the header.

    rows: all rows. The other arguments, and what is raised, are those of `read_csv`.
    """
    first = next(rows, None)
    if first is None:
        raise CorruptFileError(f"{path} holds no rows of numbers: give another file")
    ahead = list(islice(rows, _AHEAD))
    notes: list[str] = []
    named = header
    if named is None:
        named, note = is_header(path, first, ahead, names)
        notes += [note] if note else []
    labels = tuple(first.fields) if named else ()
    features, targets = map(tuple, choose(labels, len(first.fields)))
    behind = chain(ahead, rows) if named else chain([first], ahead, rows)
    return Columns(labels, features, targets, header), len(first.fields), notes, behind


def numbers_of(path: Path, row: Row, columns: Columns, width: int, rows: int) -> list[float]:
    """The features of a row. Raises CorruptFileError if the row is damaged.

    width: the fields that it must have. rows: how many rows came before.
    """
    if len(row.fields) != width:
        raise _wrong_length(path, row, width)
    if row.lines:
        _check_lines(path, row, width)
    numbers = [as_number(row.fields[column]) for column in columns.features]
    if not all(-(2.0**53) < number < 2.0**53 for number in numbers):  # NaN fails, too
        _check_features(path, row, columns, rows)
    return numbers


def is_class(path: Path, row: Row, column: int, columns: Columns, needed: bool) -> bool:
    """Whether a target that stands for a missing value is a class of this name, in quotation marks.

    needed: whether a missing target is an error: CorruptFileError.
    """
    if row.fields[column] and column in row.quoted:
        return True
    if needed:
        raise _error(path, row, columns, column, _missing(row, column, columns))
    return False


def note_of_classes(classes: Set[str]) -> list[str]:
    """What the user should be told of classes whose names stand for a missing value elsewhere."""
    shown = ", ".join(f'"{name}"' for name in sorted(classes))
    because = "because of the quotation marks; NA alone is missing"
    return [f"took {shown} among the targets as a class, {because}"] if classes else []


def _wrong_length(path: Path, row: Row, width: int) -> CorruptFileError:
    hint = "; a comma in a number? write 1.5, with a point" if len(row.fields) > width else ""
    if row.fields[0].startswith("#"):
        hint = "; lines of comments are not skipped: remove it"
    elif row.lines:
        hint = "; a quotation mark that is not closed? This row goes on over several lines"
    return CorruptFileError(
        f"{path}, line {row.line}: {len(row.fields)} fields, and {width} were expected{hint}"
    )


def _check_lines(path: Path, row: Row, width: int) -> None:
    """Raise CorruptFileError if a field in quotation marks holds what looks like another row of the table."""
    for column, field in enumerate(row.fields):
        if any(line.count(",") == width - 1 for line in field.split("\n")[1:]):
            raise CorruptFileError(
                f"{path}, line {row.line_of(column)}: field {column + 1} begins with a quotation mark and holds "
                "whole rows of the table: close or remove the mark"
            )


def _error(path: Path, row: Row, columns: Columns, column: int, fault: str) -> CorruptFileError:
    return CorruptFileError(f"{path}, line {row.line_of(column)}, {columns.describe(column)}: {fault}")


def _missing(row: Row, column: int, columns: Columns) -> str:
    field = row.fields[column]
    fault = f"the value is missing ({field!r}); fill it, with the column's mean for example, or drop the row"
    if column not in columns.targets:
        return fault
    if field:
        return f'{fault}; a class of this name is written "{field}", in quotation marks'
    if column == len(row.fields) - 1 and not (columns.names and columns.names[-1]):
        return f"{fault}; or is there a comma at the end of each line?"
    return fault


def _check_features(path: Path, row: Row, columns: Columns, rows: int) -> None:
    """Raise CorruptFileError for the first feature of a row that is missing, no number, or cannot be held as one.

    rows: how many rows came before.
    """
    for column in columns.features:
        field = row.fields[column]
        number = as_number(field)
        if math.isfinite(number) and not loses_digits(field):
            continue
        if math.isinf(number):
            fault = _INFINITE
        elif loses_digits(field):
            fault = f"{field} is {_TOO_LONG}: drop the column if it holds names, else write 1.5e16"
        elif is_missing(field):
            fault = _missing(row, column, columns)
        elif is_number(field.replace(",", ".")) or ";" in field:
            fault = f"{field!r} is not a number: numbers are written 1.5, and fields have commas between them"
        elif not rows and columns.header is False:
            fault = (
                f"{field!r} is not a number; if the first line holds the names of the columns, omit --no-header "
                "(header=False)"
            )
        elif not rows and not columns.names:
            fault = (
                f"{field!r} is not a number; correct it, or if the first line holds the names of the columns, give "
                "--header (header=True)"
            )
        else:
            how = "write categories as columns of 0 and 1, or drop the column"
            if is_date(field):
                how = "write a date or time as a number, such as the days or seconds since a first one"
            elif like_number(field):
                how = "write numbers as 1234.5, without a unit"
            fault = f"{field[:60]!r} is not a number; a feature must be one: {how}"
        raise _error(path, row, columns, column, fault)
