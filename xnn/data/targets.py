"""Targets: checks them with their samples, tells classes from numbers, and numbers the classes 0 .. k - 1."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from xnn.backends.row_sources import Converted, RowSource, first_not_finite, reads_rows
from xnn.errors import CorruptFileError, OptionError
from xnn.layers.dense import check_exact

__all__ = [
    "MOST_CLASSES",
    "Label",
    "Targets",
    "as_numbers",
    "as_targets",
    "label_numbers",
    "one_hot_classes",
    "samples_and_targets",
    "usual_task",
]

#: The name of a class in the data.
Label: TypeAlias = str | int | float

MOST_CLASSES = 1000
#: The number of a class, as text.
_NUMBER = re.compile("0{0,99}[0-9]{1,18}")
_FEW = 20
_TOGETHER = 2**18  # targets that are sorted together


@dataclass(frozen=True)
class Targets:
    """Targets as a model needs them.

    y: int64 classes (n,), or float64 targets (n, columns) of a regression.
    task: "classification" or "regression".
    labels: the names of class 0, 1, ... in the data; empty if the data name them 0, 1, ... Default ().
    note: a doubt about the task, "" if there is none.
    """

    y: np.ndarray
    task: str
    labels: tuple[Label, ...] = ()
    note: str = ""


def samples_and_targets(name: str, x: Any, y: Any) -> tuple[Any, np.ndarray]:
    """Arrays as samples (n, features) and targets (n,) or (n, columns).

    name: the name of the data, for messages.
    x: (n, ...), finite numbers; also a RowSource.
    y: (n, ...), finite numbers; or (n,) or (n, 1), names of classes.

    Raises CorruptFileError for other arrays.
    """
    y = y[:] if isinstance(y, RowSource) else y
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    numbers = x.dtype.kind in "iubf" and (y.dtype.kind in "iubf" or (y.dtype.kind == "U" and y.ndim == 1))
    if not numbers or 0 in (x.ndim, y.ndim) or len(x) != len(y):
        raise CorruptFileError(
            f"{name}: got features {x.dtype}{list(x.shape)} and targets {y.dtype}{list(y.shape)}; both must be "
            "numbers, equally many (or targets (n,) the names of classes)"
        )
    for what, array in (("features", x), ("targets", y)):
        row = first_not_finite(array)
        if row is not None:
            raise CorruptFileError(
                f"{name}: the {what} of sample {row} hold NaN or infinity: fill or drop it"
            )
    width = int(np.prod(x.shape[1:]))
    if reads_rows(x) and x.ndim != 2 and not (isinstance(x, np.ndarray) and x.flags.c_contiguous):
        return Converted(x, lambda rows: rows.reshape(len(rows), width)), np.asarray(y)
    return x if x.ndim == 2 else x.reshape(len(x), width), np.asarray(y)


def distinct(y: np.ndarray) -> np.ndarray:
    """The different values of targets, sorted, as numpy.unique gives them, in less memory."""
    if y.size <= _TOGETHER:
        return np.unique(y)
    flat = y.reshape(-1)
    parts = [np.unique(flat[start : start + _TOGETHER]) for start in range(0, flat.size, _TOGETHER)]
    return np.unique(np.concatenate(parts))


def usual_task(y: np.ndarray) -> str:
    """The task that targets (n,) or (n, columns) suggest, "classification" or "regression".

    It is a classification if there is one column, of text, of two whole numbers, or of all of 0 .. k - 1 or 1 .. k
    with k < 1000. Where more than three of four samples would be classes of their own, it is a regression.
    """
    if y.ndim != 1 or not y.size:
        return "regression"
    if y.dtype.kind == "U":
        return "classification"
    labels = distinct(y).astype(np.float64)
    first, last = labels[0], labels[-1]
    whole = bool(np.all(labels == np.floor(labels)))
    counted = (
        first in (0, 1) and last - first + 1 == labels.size < MOST_CLASSES and 4 * labels.size <= 3 * y.size
    )
    return "classification" if whole and (counted or labels.size == 2) else "regression"


def as_targets(name: str, y: np.ndarray, task: str | None = None) -> Targets:
    """Targets as a model needs them.

    name: the name of the data, for messages.
    y: numbers (n,) or (n, columns), or text (n,).
    task: "classification" or "regression". Default: what usual_task says.

    Classes are numbered in sorted order, text by its characters and numbers by size. One-hot rows are classes by
    their column, unless the task is a regression.
    Raises OptionError for a task that does not fit the targets.
    """
    hot = None if task == "regression" else one_hot_classes(y)
    if hot is not None:
        width = y.shape[1]
        labels = (
            () if width == hot.max() + 1 else tuple(range(width))
        )  # so that a class without a sample counts
        return Targets(
            hot, "classification", labels,
            f"the targets are one-hot rows: taken as the classes 0 .. {width - 1}; task='regression' keeps the "
            f"{width} numbers",
        )  # fmt: skip
    chosen = task or usual_task(y)
    if chosen == "regression":
        if y.dtype.kind == "U":
            raise OptionError(
                f"{name}: the targets are text, and task='regression' needs numbers: omit it or change the target"
            )
        return Targets(as_numbers(name, y), chosen, note="" if task else _doubt(y))
    doubt = "" if task else _doubt_of_classes(y)
    if y.ndim != 1:
        raise OptionError(
            f"{name}: the targets are {y.shape}, and a classification has one target a sample: choose one column"
        )
    found = distinct(y)
    if found.size > MOST_CLASSES:
        raise OptionError(
            f"{name}: the target has {found.size} different values; a classification takes up to {MOST_CLASSES} "
            "classes: choose another target or task='regression'"
        )
    if found.dtype.kind != "U" and np.array_equal(found, np.arange(found.size)):
        return Targets(y.astype(np.int64, copy=False), chosen, note=doubt)
    names = tuple(map(_plain, found.tolist()))
    return Targets(np.searchsorted(found, y).astype(np.int64), chosen, names, doubt)


def as_numbers(name: str, y: np.ndarray) -> np.ndarray:
    """Targets of a regression, float64 (n, columns). Raises DTypeError for integers that float64 cannot hold."""
    check_exact(f"{name}: the targets", y)
    return y.reshape(len(y), math.prod(y.shape[1:])).astype(np.float64)


def one_hot_classes(y: np.ndarray) -> np.ndarray | None:
    """The classes, int64 (n,), of targets (n, k) of which each row has a single 1 among zeros; None for others."""
    if y.ndim != 2 or y.shape[1] < 2 or not y.size or y.dtype.kind not in "biuf":
        return None
    ones = y == 1
    hot = bool((ones.sum(axis=1) == 1).all() and ((y == 0) | ones).all())
    return ones.argmax(axis=1).astype(np.int64) if hot else None


def _doubt(y: np.ndarray) -> str:
    """A note for targets of a regression that could be classes."""
    if y.ndim != 1 or not y.size or not bool(np.all(y == np.floor(y))):
        return ""
    found = distinct(y)
    many = found.size > _FEW
    if many and not (found[0] in (0, 1) and found[-1] - found[0] + 1 == found.size < MOST_CLASSES):
        return ""
    why = "with hardly one twice" if 4 * found.size > 3 * y.size else "but not all of 0 .. k - 1 or 1 .. k"
    return (
        f"the targets are whole numbers {why}: this is a regression, not classes; task='classification' (--task "
        "classification) makes it one"
    )


def _doubt_of_classes(y: np.ndarray) -> str:
    """A note for targets of a classification that could be numbers: three or more, in floats or more than 20."""
    if y.dtype.kind == "U":
        return ""
    found = distinct(y)
    if found.size < 3 or (found.size <= _FEW and y.dtype.kind != "f"):
        return ""
    return (
        f"the targets are the whole numbers {found[0]:g} .. {found[-1]:g}: taken as {found.size} classes; "
        "task='regression' (--task regression) predicts numbers"
    )


def _plain(label: Label) -> Label:
    return int(label) if isinstance(label, float) and label.is_integer() else label


def label_numbers(y: np.ndarray, labels: tuple[Label, ...]) -> np.ndarray:
    """The number of each target's class, int64 (n,); -1 for targets that are not in `labels`.

    Without labels numbers are used as they are, and text that has other fields than the digits of a number.
    """
    if not labels:
        whole = y.dtype.kind == "U" and all(map(_NUMBER.fullmatch, y.tolist()))
        return y.astype(np.int64) if whole else y
    numbers = {label: number for number, label in enumerate(labels)}
    return np.asarray([numbers.get(_plain(label), -1) for label in y.tolist()], dtype=np.int64)
