"""From a table or an .npz archive to a data set, and from a table to the samples of a model that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xnn.backends import Purpose, Stream
from xnn.data.dataset import Dataset
from xnn.data.splits import split_rows, take_out
from xnn.data.tables import Choose, Columns, check_pair, every_column, read_csv, read_npz
from xnn.data.targets import MOST_CLASSES, Targets, as_targets, label_numbers
from xnn.errors import CorruptFileError, OptionError, ShapeError
from xnn.options import check_real

__all__ = ["TableOptions", "from_arrays", "from_csv", "from_npz", "samples_from_csv"]

#: A column by its name, or by its number from 0, or from -1 backwards.
Column = str | int


@dataclass(frozen=True)
class TableOptions:
    """How a table becomes a data set; `xnn.data.load` says what each option means. Raises OptionError."""

    target: Column | Sequence[Column] | None = None
    header: bool | None = None
    task: str | None = None
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    stratify: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("header", self.header), ("stratify", self.stratify)):
            if value is not None and not isinstance(value, bool):
                raise OptionError(f"{name} must be True, False or None, got {value!r}")
        if self.task not in (None, "classification", "regression"):
            raise OptionError(f"task must be 'classification', 'regression' or None, got {self.task!r}")
        if not isinstance(self.split, (tuple, list)) or len(self.split) != 3:
            raise OptionError(
                f"split must be three shares for training, validation and test, as in (0.8, 0.1, 0.1), "
                f"got {self.split!r}"
            )
        shares = tuple(check_real("a share of split", share, 0.0, 1.0) for share in self.split)
        if min(shares) <= 0.0 or abs(sum(shares) - 1.0) > 1e-9:
            raise OptionError(f"split must be three positive shares whose sum is 1, got {self.split!r}")
        object.__setattr__(self, "split", shares)
        Stream(self.seed, Purpose.SPLIT)  # raises for what is no seed

    def refuse(self, what: str, *names: str) -> None:
        """Raise OptionError if one of these is not at its default."""
        for name in names or ("target", "header", "task", "split", "stratify", "seed"):
            if getattr(self, name) != getattr(TableOptions, name):
                raise OptionError(f"{name} is no option for {what}, but for tables: leave it away")


def from_csv(path: Path, options: TableOptions, name: str = "") -> Dataset:
    """A CSV file's rows as a data set. Raises CorruptFileError, DataNotFoundError or OptionError."""
    table = read_csv(path, _by_target(path, options.target), options.header)
    return from_arrays(name or path.name, table.x, table.targets(), options, columns=table.columns)


def from_arrays(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    options: TableOptions,
    scale: float | None = None,
    columns: Columns | None = None,
) -> Dataset:
    """Samples and targets, split as the options say."""
    shape = x.shape[1:]
    x, y = check_pair(name, x, y)
    if len(x) < 3:
        raise CorruptFileError(f"{name} holds {len(x)} samples; it takes 3 to train, validate and test")
    targets = as_targets(name, y, options.task)
    classes = _stratified(name, targets, options)
    rows = split_rows(name, len(x), options.split, options.seed, classes)
    train, validation, test = ((x[part], targets.y[part]) for part in rows)
    return Dataset(
        name, *train, *validation, *test, task=targets.task, scale=_pixel_scale(x) if scale is None else scale,
        note=targets.note, labels=targets.labels, columns=columns, sample_shape=shape,
    )  # fmt: skip


def _stratified(name: str, targets: Targets, options: TableOptions) -> np.ndarray | None:
    """The classes by which to split, None if not by classes."""
    if targets.task == "classification":
        return None if options.stratify is False else targets.y
    if options.stratify:
        raise OptionError(f"{name} is a regression: it has no classes to stratify by")
    return None


def _pixel_scale(x: np.ndarray) -> float | None:
    return 1 / 255 if x.dtype == np.uint8 else None


def _by_target(path: Path, target: Any) -> Choose:
    """The target's columns, by default the last; all others are features."""

    def choose(names: tuple[str, ...], width: int) -> tuple[Sequence[int], Sequence[int]]:
        if width < 2:
            other = next((sign for sign in ";\t|" if names and sign in names[0]), "")
            hint = f", not {other!r}, and numbers written 1.5" if other else ""
            raise CorruptFileError(
                f"{path} has one column; a table needs features and a target, with commas between the fields{hint}"
            )
        chosen = target if isinstance(target, (list, tuple)) else (-1 if target is None else target,)
        targets = tuple(_position(path, column, names, width) for column in chosen)
        features = tuple(column for column in range(width) if column not in targets)
        if not targets or not features or len(set(targets)) < len(targets):
            raise OptionError(f"{path}: target={target!r} must be different columns, and leave a feature")
        return features, targets

    return choose


def _position(path: Path, column: Any, names: tuple[str, ...], width: int) -> int:
    """A column's number. Text may be a number, too, where no column is called so: the command line has only text."""
    found = [position for position, name in enumerate(names) if name == column]
    if len(found) == 1:
        return found[0]
    if isinstance(column, str) and not found:
        sign, digits = ("-", column[1:]) if column.startswith("-") else ("", column)
        column = int(sign + digits) if digits.isdecimal() else column
    if isinstance(column, (int, np.integer)) and not isinstance(column, bool) and -width <= column < width:
        return int(column) % width
    several = f"{len(found)} columns are called so; " if found else ""
    called = f"its columns are {', '.join(map(repr, names))}" if names else "it has no header"
    raise OptionError(
        f"{path} has no single column {column!r} to be the target; {several}{called}, and numbers go from 0 to "
        f"{width - 1}, or from -1 backwards"
    )


def samples_from_csv(path: Path, columns: Columns | None, width: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The samples of a CSV file for a model that was trained on these columns, and its targets if it has them.

    By the columns' names if both files have some, other columns being passed over; otherwise by their number: that
    of the features, or of features and targets. Without `columns`: `width` features, and perhaps a target behind.
    Raises CorruptFileError, DataNotFoundError or ShapeError.
    """
    if columns is None:
        columns = Columns((), tuple(range(width)), (width,))
    table = read_csv(path, _as_trained(path, columns), columns.header)
    return table.x, table.targets() if table.columns.targets else None


def _as_trained(path: Path, trained: Columns) -> Choose:
    both = len(trained.features) + len(trained.targets)

    def choose(names: tuple[str, ...], width: int) -> tuple[Sequence[int], Sequence[int]]:
        if names and trained.names and len(set(trained.names)) == both:
            features, targets = (
                [trained.names[column] for column in part] for part in (trained.features, trained.targets)
            )
            missing = [name for name in features if name not in names]
            if missing:
                raise CorruptFileError(
                    f"{path} has no column {', '.join(map(repr, missing))}, which the model was trained on; its "
                    f"columns are {', '.join(map(repr, names))}"
                )
            known = all(name in names for name in targets)
            return [names.index(name) for name in features], [names.index(name) for name in targets if known]
        if width == both:
            return trained.features, trained.targets
        if width == len(trained.features):
            return every_column(names, width)
        raise ShapeError(
            f"{path} has {width} columns; the model takes {len(trained.features)} features, and "
            f"{len(trained.targets)} more columns may be the targets"
        )

    return choose


def from_npz(path: Path, options: TableOptions) -> Dataset:
    """An archive of x and y, or of x_train, y_train, x_test, y_test and perhaps x_val, y_val."""
    options.refuse(f"{path}: targets are its y", "target", "header")
    arrays = read_npz(path)
    if {"x", "y"} <= arrays.keys():
        return from_arrays(path.name, arrays["x"], arrays["y"], options)
    if not {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        raise CorruptFileError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; it needs x and y, or x_train, y_train, x_test, "
            "y_test (and x_val, y_val)"
        )
    parts = {
        part: check_pair(f"{path.name}, {part}", arrays[f"x_{part}"], arrays[f"y_{part}"])
        for part in ("train", "val", "test")
        if f"x_{part}" in arrays and f"y_{part}" in arrays
    }
    x, y = parts["train"]
    if len(x) < 2:
        raise CorruptFileError(f"{path} holds {len(x)} training samples; it takes 2 or more")
    targets = as_targets(path.name, y, options.task)
    for part, (xs, ys) in parts.items():
        numbers = None if xs.shape[1] != x.shape[1] else _alike(targets, ys)
        if numbers is None:
            known = f", classes {', '.join(map(str, targets.labels))}" if targets.labels else ""
            if targets.task == "classification" and not targets.labels:
                known = f", classes from 0 (up to {MOST_CLASSES - 1})"
            raise CorruptFileError(
                f"{path}: x_{part} is {xs.shape} and y_{part} {ys.dtype}{list(ys.shape)}; the training samples have "
                f"{x.shape[1]} features and are a {targets.task}{known}"
            )
        parts[part] = xs, numbers
    if "val" not in parts:
        x, y = parts["train"]
        order = Stream(options.seed, Purpose.SPLIT).permutation(len(x))
        classes = _stratified(path.name, targets, options)
        train, validation = take_out(order, max(1, int(len(x) * options.split[1] + 1e-9)), classes)
        parts["val"], parts["train"] = (x[validation], y[validation]), (x[train], y[train])
    if len({ys.shape[1:] for _, ys in parts.values()}) > 1:
        raise CorruptFileError(f"{path}: the parts' targets have different numbers of columns")
    return Dataset(
        path.name, *parts["train"], *parts["val"], *parts["test"], task=targets.task, scale=_pixel_scale(x),
        note=targets.note, labels=targets.labels, sample_shape=arrays["x_train"].shape[1:],
    )  # fmt: skip


def _alike(targets: Targets, y: np.ndarray) -> np.ndarray | None:
    """Another part's targets as the training part's are; None if they cannot be."""
    if targets.task == "regression":
        return None if y.dtype.kind == "U" else y.reshape(len(y), -1).astype(np.float64)
    if y.ndim != 1:
        return None
    if targets.labels:
        numbers = label_numbers(y, targets.labels)
        return numbers if bool(np.all(numbers >= 0)) else None
    whole = y.dtype.kind != "U" and bool(np.all((y >= 0) & (y < MOST_CLASSES) & (y == np.floor(y))))
    return y.astype(np.int64) if whole else None
