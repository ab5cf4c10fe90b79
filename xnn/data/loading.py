"""Makes data sets from tables and .npz archives, and reads samples for a trained model from a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xnn.backends import Purpose, Stream
from xnn.backends.row_sources import Selected, reads_rows
from xnn.data.arrays import LARGE
from xnn.data.csv_cache import read_large_csv
from xnn.data.csv_fields import is_number
from xnn.data.dataset import Dataset
from xnn.data.images import checked_size
from xnn.data.shards import open_arrays
from xnn.data.splits import random_order, split_rows, take_out
from xnn.data.tables import Choose, Columns, Table, csv_parts, every_column, read_csv
from xnn.data.targets import (
    MOST_CLASSES,
    Targets,
    as_numbers,
    as_targets,
    label_numbers,
    one_hot_classes,
    samples_and_targets,
)
from xnn.errors import CorruptFileError, OptionError, ShapeError
from xnn.files import reading
from xnn.options import check_real, is_one_of, shown

__all__ = ["TableOptions", "from_arrays", "from_csv", "from_npz", "samples_from_csv", "tables_for_model"]

#: A column by its name, or by its number: from 0, or from -1 for the last.
Column = str | int


@dataclass(frozen=True)
class TableOptions:
    """The options of `xnn.data.load` for tables, which describes them. Raises OptionError for wrong ones."""

    target: Column | Sequence[Column] | None = None
    header: bool | None = None
    task: str | None = None
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    stratify: bool | None = None
    seed: int = 0
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, value in (("header", self.header), ("stratify", self.stratify)):
            if value is not None and not isinstance(value, bool):
                raise OptionError(f"{name} must be True, False or None, got {shown(value)}")
        if not is_one_of(self.task, (None, "classification", "regression")):
            raise OptionError(f"task must be 'classification', 'regression' or None, got {self.task!r}")
        three = isinstance(self.split, (tuple, list)) and len(self.split) == 3
        shares = tuple(
            check_real("a share of split", share, 0.0, 1.0) for share in (self.split if three else ())
        )
        if not shares or min(shares) <= 0.0 or abs(sum(shares) - 1.0) > 1e-9:
            raise OptionError(
                "split must be three positive shares, of training, validation and test, whose sum is 1, such as "
                f"(0.8, 0.1, 0.1); got {self.split!r}"
            )
        object.__setattr__(self, "split", shares)
        object.__setattr__(self, "image_size", checked_size(self.image_size))
        Stream(self.seed, Purpose.SPLIT)  # raises OptionError unless it is a seed

    def refuse(self, what: str, *names: str) -> None:
        """Raise OptionError if one of these options is not at its default; without names, all options are checked.

        what: the data that do not take it, for the message.
        """
        for name in names or ("target", "header", "task", "split", "stratify", "seed", "image_size"):
            if getattr(self, name) != getattr(TableOptions, name):
                raise OptionError(f"{name} is no option for {what}: omit it")


def from_csv(path: Path, options: TableOptions, name: str = "") -> Dataset:
    """A data set of the rows of a CSV file. Raises CorruptFileError, DataNotFoundError or OptionError."""
    given = options.target if isinstance(options.target, (list, tuple)) else [options.target]
    names = [name for name in given if isinstance(name, str) and not is_number(name)]
    with reading(path):
        read = read_large_csv if path.is_file() and path.stat().st_size >= LARGE else read_csv
    table = read(path, _by_target(path, options.target), options.header, names)
    notes = (*table.notes, *_about_names(table), *table.target_notes(options.task))
    y = table.targets(options.task)
    return from_arrays(name or path.name, table.x, y, options, columns=table.columns, notes=notes)


def _about_names(table: Table) -> Iterator[str]:
    """What the user should be told of columns without a name, or with the same name."""
    names = table.columns.names
    for name in dict.fromkeys(name for name in names if name and names.count(name) > 1):
        places = [str(place) for place, other in enumerate(names, 1) if other == name]
        yield (
            f"columns {', '.join(places)} have one name, {name!r}: xnn predict takes all columns by their places and "
            "not by their names"
        )
    for column, numbers in zip(table.columns.features, table.x.T, strict=True):
        if not names or names[column] or len(numbers) < 2 or numbers[0] not in (0, 1):
            continue
        if np.array_equal(numbers, np.arange(len(numbers)) + numbers[0]):
            yield (
                f"column {column + 1} has no name and counts the rows, as an index does: it is used as a feature; "
                "remove it if it means nothing (pandas: to_csv(..., index=False))"
            )


def from_arrays(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    options: TableOptions,
    scale: float | None = None,
    columns: Columns | None = None,
    notes: Sequence[str] = (),
) -> Dataset:
    """A data set of samples and targets, split as the options say. notes: what the user should be told of them."""
    shape = x.shape[1:]
    x, y = samples_and_targets(name, x, y)
    targets = as_targets(name, y, options.task)
    classes = _stratified(name, targets, options)
    rows = split_rows(name, len(x), options.split, options.seed, classes)
    train, validation, test = ((rows_of(x, part), targets.y[part]) for part in rows)
    return Dataset(
        name, *train, *validation, *test, task=targets.task, scale=_pixel_scale(x) if scale is None else scale,
        note="; ".join(filter(None, (*notes, targets.note))), labels=targets.labels, columns=columns,
        sample_shape=shape,
    )  # fmt: skip


def rows_of(x: Any, rows: np.ndarray) -> Any:
    """These rows of an array: a copy, or for an array in a file a RowSource that reads them where they are needed."""
    if not reads_rows(x):
        return x[rows]
    return Selected(x, rows.astype(np.uint32, copy=False) if len(x) < 2**32 else rows)


def _stratified(name: str, targets: Targets, options: TableOptions) -> np.ndarray | None:
    """The class of each sample if the split is stratified, else None."""
    if targets.task == "classification":
        return None if options.stratify is False else targets.y
    if options.stratify:
        raise OptionError(f"stratify=True needs classes, and {name} is a regression: omit it")
    return None


def _pixel_scale(x: np.ndarray) -> float | None:
    return 1 / 255 if x.dtype == np.uint8 else None


def _by_target(path: Path, target: Any) -> Choose:
    """Chooses the columns of the target, by default the last one; all others are features."""

    def choose(names: tuple[str, ...], width: int) -> tuple[Sequence[int], Sequence[int]]:
        if width < 2:
            other = next((sign for sign in ";\t|" if names and sign in names[0]), "")
            hint = f", not {other!r}, and numbers such as 1.5" if other else ""
            if names and names[0].startswith("#"):
                hint = "; lines of comments are not skipped: remove them"
            raise CorruptFileError(
                f"{path} has one column; a table needs features and a target, with commas between the fields{hint}"
            )
        chosen = target if isinstance(target, (list, tuple)) else (-1 if target is None else target,)
        targets = tuple(_position(path, column, names, width) for column in chosen)
        features = tuple(column for column in range(width) if column not in targets)
        if not targets or not features or len(set(targets)) < len(targets):
            raise OptionError(
                f"{path}: target={shown(target)} must name different columns, at least one, but not all"
            )
        return features, targets

    return choose


def _position(path: Path, column: Any, names: tuple[str, ...], width: int) -> int:
    """Return the position of a column, counted from 0. It is given by its name or its position.

    Text that is not a column's name may be a number, because the command line has only text.
    """
    found = [position for position, name in enumerate(names) if name == column]
    if len(found) == 1:
        return found[0]
    if isinstance(column, str) and not found:
        sign, digits = ("-", column[1:]) if column.startswith("-") else ("", column)
        column = int(sign + digits) if digits.isdecimal() and len(digits) < 10 else column
    if isinstance(column, (int, np.integer)) and not isinstance(column, bool) and -width <= column < width:
        return int(column) % width
    several = f"{len(found)} columns have this name; " if found else ""
    called = f"its columns are {', '.join(map(repr, names))}" if names else "it has no header"
    raise OptionError(
        f"{path} has no single column {shown(column)} for the target; {several}{called}, and numbers go from 0 to "
        f"{width - 1}, or from -1 backwards"
    )


def samples_from_csv(path: Path, columns: Columns | None, width: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The samples of a CSV file for a trained model, and their targets if the file has them, else None.

    The arguments and errors are those of `tables_for_model`.
    """
    (table,) = tables_for_model(path, columns, width)
    known = table.columns.targets and not table.unlabelled
    return table.x, table.targets() if known else None


def tables_for_model(
    path: Path, columns: Columns | None, width: int, header: bool | None = None, rows: int | None = None
) -> Iterator[Table]:
    """The rows of a CSV file as tables that a trained model takes, as of `csv_parts`.

    The file may have no rows, and rows without a target.

    path: the file.
    columns: those of the file that the model was trained on. If both files have names, columns are found by name, and
        others are ignored. Otherwise the file must have the features, or the features and the targets, in the same
        places. None: the features come first, and perhaps a target after them.
    width: the number of features of the model, for columns=None.
    header: whether the first line holds the names of the columns. Default None: it does if it has the names of the
        features that the model was trained on, and otherwise headers.py decides.
    rows: how many rows a table has. Default None: all.

    Raises CorruptFileError, DataNotFoundError, OptionError or ShapeError.
    """
    if columns is None:
        columns = Columns((), tuple(range(width)), (width,))
    if header is None and columns.header is False:
        header = False
    names = [columns.names[column] for column in columns.features] if columns.names else []
    choose = _as_trained(path, columns)
    for table in csv_parts(path, choose, header, names if any(names) else (), training=False, rows=rows):
        note = _taken_by_place(table, columns)
        yield replace(table, notes=(*table.notes, note)) if note else table


def _taken_by_place(table: Table, trained: Columns) -> str:
    """A note that columns were taken in the order in which the model was trained, "" if they were found by name."""
    if bool(table.columns.names) == bool(trained.names):
        return ""
    if trained.names:
        places = sorted([*trained.features, *(trained.targets if table.columns.targets else ())])
        return (
            f"no header: columns taken as {', '.join(trained.names[place] or repr('') for place in places)}"
        )
    return (
        "the model was trained on a table without a header: columns taken by their places, as "
        f"{', '.join(table.columns.names[place] for place in table.columns.features)}"
    )


def _as_trained(path: Path, trained: Columns) -> Choose:
    """Chooses the columns that a model was trained on."""
    both = len(trained.features) + len(trained.targets)
    features, targets = (
        [trained.names[column] for column in part] if trained.names else []
        for part in (trained.features, trained.targets)
    )

    def choose(names: tuple[str, ...], width: int) -> tuple[Sequence[int], Sequence[int]]:
        if names and trained.names and len(set(trained.names)) == both:
            missing = [name for name in features if name not in names]
            if missing:
                raise CorruptFileError(
                    f"{path} has no column {', '.join(map(repr, missing))}, which the model was trained on: its "
                    f"columns are {', '.join(map(repr, names))}"
                )
            for name in (*features, *targets):
                if names.count(name) > 1:
                    raise CorruptFileError(
                        f"{path} has {names.count(name)} columns {name!r}, and the model was trained on one: rename "
                        "or remove the others"
                    )
            known = all(name in names for name in targets)
            return [names.index(name) for name in features], [names.index(name) for name in targets if known]
        if names and trained.names and list(names) not in (list(trained.names), features):
            raise CorruptFileError(
                f"{path} has the columns {', '.join(map(repr, names))}, and the model was trained on "
                f"{', '.join(map(repr, trained.names))}, of which some have the same name: give the same in the same "
                "order"
            )
        if width == both:
            return trained.features, trained.targets
        if width == len(trained.features):
            return every_column(names, width)
        raise ShapeError(
            f"{path} has {width} columns; the model takes {len(trained.features)} features, or {both} columns "
            "with the targets"
        )

    return choose


def from_npz(path: Path, options: TableOptions) -> Dataset:
    """Read a data set from an .npz archive, or a folder of .npy or .npz files (`open_arrays`).

    It has the arrays x and y; or x_train, y_train, x_test and y_test, with or without x_val and y_val.

    Raises CorruptFileError, DataNotFoundError or OptionError.
    """
    options.refuse(f"{path}: targets are its y", "target", "header")
    arrays = open_arrays(path)
    parts = _parts_of(path, arrays)
    if not parts:
        return from_arrays(path.name, arrays["x"], arrays["y"], options)
    x, y = parts["train"]
    if len(x) < 2:
        raise CorruptFileError(
            f"{path} holds {len(x)} training sample{'s' * (len(x) != 1)}; 2 or more are needed: add samples"
        )
    targets = as_targets(path.name, y, options.task)
    for part, (xs, ys) in parts.items():
        numbers = None if xs.shape[1] != x.shape[1] else _alike(targets, ys)
        if numbers is None:
            known = f"classes {', '.join(map(str, targets.labels))}" if targets.labels else ""
            if targets.task == "regression":
                known = f"{targets.y.shape[1]} numbers as targets"
            raise CorruptFileError(
                f"{path}: x_{part} is {xs.shape} and y_{part} {ys.dtype}{list(ys.shape)}; the training samples have "
                f"{x.shape[1]} features and {known or f'classes from 0 (up to {MOST_CLASSES - 1})'}"
            )
        parts[part] = xs, numbers
    if "val" not in parts:
        x, y = parts["train"]
        order = random_order(options.seed, len(x))
        classes = _stratified(path.name, targets, options)
        train, validation = take_out(order, max(1, int(len(x) * options.split[1] + 1e-9)), classes)
        parts["val"] = rows_of(x, validation), y[validation]
        parts["train"] = rows_of(x, train), y[train]
    return Dataset(
        path.name, *parts["train"], *parts["val"], *parts["test"], task=targets.task, scale=_pixel_scale(x),
        note=targets.note, labels=targets.labels, sample_shape=arrays["x_train"].shape[1:],
    )  # fmt: skip


def _parts_of(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The samples and targets of each part of an archive that is split already; nothing for one of x and y.

    Raises CorruptFileError if the arrays are not x and y alone, or pairs of parts alone, or if a part is empty.
    """
    whole, split = {"x", "y"}, ("train", "val", "test")
    known = [name for name in arrays if name in whole or (name[:2] in ("x_", "y_") and name[2:] in split)]
    if whole == set(known):
        return {}
    found = [part for part in split if f"x_{part}" in known and f"y_{part}" in known]
    if len(known) != 2 * len(found) or not {"train", "test"} <= set(found):
        raise CorruptFileError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; it must hold x and y, or x_train, y_train, x_test and "
            "y_test (and x_val, y_val), and not some of both"
        )
    parts = {
        part: samples_and_targets(f"{path.name}, {part}", arrays[f"x_{part}"], arrays[f"y_{part}"])
        for part in found
    }
    if empty := [part for part, (x, _) in parts.items() if not len(x)]:
        raise CorruptFileError(
            f"{path} holds no sample in x_{empty[0]}: add samples, or omit x_val and y_val"
        )
    return parts


def _alike(targets: Targets, y: np.ndarray) -> np.ndarray | None:
    """Bring the targets of the validation or test part into the form of the training part's.

    Returns None if that is not possible, as with a label that the training part does not have.
    """
    if targets.task == "regression":
        width = targets.y.shape[1]
        fits = y.dtype.kind != "U" and y.size == len(y) * width
        return as_numbers("the archive", y) if fits else None
    hot = one_hot_classes(y)
    y = y if hot is None else hot
    if y.ndim != 1:
        return None
    if targets.labels:
        numbers = label_numbers(y, targets.labels)
        return numbers if bool(np.all(numbers >= 0)) else None
    whole = y.dtype.kind != "U" and bool(np.all((y >= 0) & (y < MOST_CLASSES) & (y == np.floor(y))))
    return y.astype(np.int64) if whole else None
