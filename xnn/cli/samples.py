"""Reads the samples that `xnn predict` is given, part by part, in memory that does not grow with their number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xnn.backends.row_sources import row_range
from xnn.cli.model_notes import Notes
from xnn.data import dataset_names, load, open_arrays, read_idx
from xnn.data.arrays import read_array
from xnn.data.loading import tables_for_model
from xnn.data.targets import samples_and_targets
from xnn.errors import DataNotFoundError, OptionError, ShapeError
from xnn.files import reading

__all__ = ["BATCH", "Samples", "read_samples"]

#: Samples that go through the model at a time. Parts have whole batches, so that outputs are those of all at once.
BATCH = 1024

_NUMBERS, _MOST_ROWS = 2**22, 2**16  # of a part, at most; but a batch at least
_MOST_SHARES = 16  # times as many for several processes, at most


@dataclass(frozen=True)
class Samples:
    """Some samples (n, features), their targets if the data hold them, and what the user should be told so far.

    names: of the samples' files, if each has one.
    """

    x: np.ndarray
    y: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def read_samples(
    data: str, data_home: str | None, header: bool | None, notes: Notes, width: int, shares: int = 1
) -> Iterator[Samples]:
    """The samples that DATA names, in parts; one part without samples if there are none.

    header: whether the first line of a table holds names; None if that was not said.
    notes: those of the model's file: the columns of the table that it was trained on, the task and the classes.
    width: the number of features that the model takes; 0 if unknown.
    shares: how many processes share each part, which is larger for more of them; 1 by default.
    """
    path = Path(data)
    table = path.suffix.lower() == ".csv"
    if header is not None and not table:
        raise OptionError(f"--header and --no-header are for .csv files, and {data} is none: omit them")
    if data in dataset_names():
        named = load(data, data_home)
        return _parts(named.x_test, named.y_test, shares)
    with reading(path):
        there = path.is_file()
    if not there:
        is_name = not path.suffix and len(path.parts) == 1  # a misspelt data set, as in `xnn train --dataset`
        raise (OptionError if is_name else DataNotFoundError)(
            f"{data} is neither a file, a folder of images, nor one of {', '.join(dataset_names())}"
        )
    if table:
        return _of_table(path, header, notes, width, shares)
    return _parts(*_arrays(data, path), shares)


def _arrays(data: str, path: Path) -> tuple[Any, np.ndarray | None]:
    """The samples of a file of arrays, and their targets if it has them. They are read where they are needed."""
    y: np.ndarray | None = None
    if path.suffix.lower() == ".npz":
        arrays = open_arrays(path, mapped=True)
        x_name = next((name for name in ("x", "x_test") if name in arrays), None)
        if x_name is None:
            raise OptionError(f"{data} holds {', '.join(arrays) or 'nothing'}; predict needs x (or x_test)")
        x, y = arrays[x_name], arrays.get(x_name.replace("x", "y"))
    elif path.suffix.lower() == ".npy":
        x = read_array(path, mapped=True)
    else:
        x = read_idx(path)
    if x.ndim < 2:
        raise ShapeError(f"{data} holds an array of shape {x.shape}; predict needs one row for each sample")
    return (x, None) if y is None else samples_and_targets(data, x, y)


def _parts(x: Any, y: np.ndarray | None, shares: int) -> Iterator[Samples]:
    width = math.prod(x.shape[1:])
    rows = _together(width, shares)
    for start in range(0, max(1, len(x)), rows):
        part = np.array(row_range(x, start, start + rows))
        yield Samples(
            part.reshape(len(part), width), None if y is None else row_range(y, start, start + rows)
        )


def _together(width: int, shares: int) -> int:
    """How many samples of this many features a part has, of which so many processes share each part."""
    numbers, rows = (most * min(shares, _MOST_SHARES) for most in (_NUMBERS, _MOST_ROWS))
    return min(max(1, numbers // max(1, width) // BATCH) * BATCH, rows)


def _of_table(path: Path, header: bool | None, notes: Notes, width: int, shares: int) -> Iterator[Samples]:
    """The samples of a CSV file. Its targets are read if the model is a classifier, for the accuracy."""
    names = any(isinstance(label, str) for label in notes.labels)
    features = width if notes.columns is None else len(notes.columns.features)
    rows = missing = first = 0
    for table in tables_for_model(path, notes.columns, width, header, _together(features, shares)):
        if not table.columns.targets or notes.task != "classification":
            yield Samples(table.x, None, table.notes)
            continue
        rows, missing = rows + len(table.x), missing + len(table.unlabelled)
        first = first or next(iter(table.unlabelled), 0)
        said = f"no accuracy: {missing} of {rows} rows have no target, the first in line {first}"
        told = 0 < missing < rows  # a column without any target is to be filled: of it nothing need be said
        y = None if table.unlabelled else table.targets("classification", text=names)
        yield Samples(table.x, y, (*table.notes, said) if told else table.notes)
