"""Targets: whether they are classes or numbers, and classes of any name as 0 .. k - 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from xnn.errors import CorruptFileError, OptionError

__all__ = ["MOST_CLASSES", "Label", "Targets", "as_targets", "label_numbers", "usual_task"]

#: What a class is called in the data.
Label: TypeAlias = str | int | float

MOST_CLASSES = 1000
_FEW = 20


@dataclass(frozen=True)
class Targets:
    """y: int64 class numbers (n,) or float64 targets (n, columns), as `task` says.

    labels: what class 0, 1, ... is called in the data; empty if these are their names. note: a doubt.
    """

    y: np.ndarray
    task: str
    labels: tuple[Label, ...] = ()
    note: str = ""


def usual_task(y: np.ndarray) -> str:
    """ "classification" for one column of text, of two whole numbers, or of all of 0 .. k - 1 or 1 .. k, k < 1000.

    Otherwise "regression".
    """
    if y.ndim != 1 or not y.size:
        return "regression"
    if y.dtype.kind == "U":
        return "classification"
    labels = np.unique(y).astype(np.float64)
    first, last = labels[0], labels[-1]
    whole = bool(np.all(labels == np.floor(labels)))
    counted = first in (0, 1) and last - first + 1 == labels.size < MOST_CLASSES
    return "classification" if whole and (counted or labels.size == 2) else "regression"


def as_targets(name: str, y: np.ndarray, task: str | None = None) -> Targets:
    """Numbers (n,) or (n, columns), or text (n,), as their task has them; without `task`, their usual one.

    Classes are numbered in sorted order: text by its characters, numbers by size. Raises OptionError, naming the
    data `name`, for a task that these targets cannot have, CorruptFileError for columns of text.
    """
    if y.dtype.kind == "U" and y.ndim != 1:
        raise CorruptFileError(f"{name}: the targets are text {y.shape}; the names of classes are one column")
    chosen = task or usual_task(y)
    if chosen == "regression":
        if y.dtype.kind == "U":
            raise OptionError(
                f"{name}: the targets are text, which a regression cannot have: leave task='regression' away, "
                "or choose another target"
            )
        return Targets(y.reshape(len(y), -1).astype(np.float64), chosen, note="" if task else _doubt(y))
    if y.ndim != 1:
        raise OptionError(
            f"{name}: a classification has one target for each sample, got an array {y.shape}: choose one column"
        )
    labels = np.unique(y)
    if labels.size > MOST_CLASSES:
        raise OptionError(
            f"{name}: the target has {labels.size} different values; a classification takes up to "
            f"{MOST_CLASSES} classes: choose another target or task='regression'"
        )
    if labels.dtype.kind != "U" and np.array_equal(labels, np.arange(labels.size)):
        return Targets(y.astype(np.int64), chosen)
    return Targets(np.searchsorted(labels, y).astype(np.int64), chosen, tuple(map(_plain, labels.tolist())))


def _doubt(y: np.ndarray) -> str:
    if y.ndim == 1 and y.size and np.unique(y).size <= _FEW and bool(np.all(y == np.floor(y))):
        return (
            "the targets are whole numbers but not all of 0 .. k - 1 or 1 .. k: this is a regression, not classes; "
            "task='classification' makes it one"
        )
    return ""


def _plain(label: Label) -> Label:
    return int(label) if isinstance(label, float) and label.is_integer() else label


def label_numbers(y: np.ndarray, labels: tuple[Label, ...]) -> np.ndarray:
    """The number of each label, int64, -1 for what is none of `labels`; without labels, numbers are their own."""
    if not labels:
        return y.astype(np.int64) if y.dtype.kind == "U" and np.char.isdecimal(y).all() else y
    numbers = {label: number for number, label in enumerate(labels)}
    return np.asarray([numbers.get(_plain(label), -1) for label in y.tolist()], dtype=np.int64)
