"""The notes that `xnn train --save` puts into a model file, and that `xnn predict` reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

from xnn.data.tables import Columns
from xnn.data.targets import Label
from xnn.errors import CorruptFileError
from xnn.layers import files
from xnn.options import shown

__all__ = ["Notes", "read_notes"]


@dataclass(frozen=True)
class Notes:
    """What a model was trained on.

    task: "classification" or "regression".
    features: the number of features of a sample; 0 if the file does not say it.
    labels: the names of class 0, 1, ...; empty if there are none.
    columns: those of the table, None if it was none.
    classes: the number of classes; 0 for a regression, and if the file does not say it.
    """

    task: str = "classification"
    features: int = 0
    labels: tuple[Label, ...] = ()
    columns: Columns | None = None
    classes: int = 0


def read_notes(path: str) -> Notes:
    """The notes of a model file. Raises CorruptFileError for values that `xnn train` does not write."""
    said = files.metadata(path)["notes"]
    features, labels, classes = said.get("features") or 0, said.get("labels") or [], said.get("classes") or 0
    columns = said.get("columns")
    task = said.get("task", "classification")
    fits = {
        "task": task in ("classification", "regression"),
        "features": type(features) is int and features >= 0,
        "classes": type(classes) is int and classes >= 0,
        "labels": _is_list(labels, str, int, float),
        "columns": columns is None or _is_columns(columns),
    }
    wrong = next((name for name, right in fits.items() if not right), None)
    if wrong:
        raise CorruptFileError(
            f"{path}: its notes say that {wrong} is {shown(said[wrong])}, which `xnn train` does not write: "
            "train again"
        )
    if columns is not None:
        names, features_of, targets = (tuple(columns[key]) for key in ("names", "features", "targets"))
        columns = Columns(names, features_of, targets, columns.get("header"))
    return Notes(task, features, tuple(labels), columns, classes if task == "classification" else 0)


def _is_list(value: Any, *kinds: type) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and all(type(item) in kinds for item in value)


def _is_columns(value: Any) -> bool:
    """Whether a JSON value is a table's columns: positions that all have a name, or no names at all."""
    if not isinstance(value, dict) or value.get("header") not in (None, True, False):
        return False
    names, features, targets = (value.get(key) for key in ("names", "features", "targets"))
    if not _is_list(names, str) or not _is_list(features, int) or not _is_list(targets, int):
        return False
    columns = [*features, *targets]
    return all(0 <= column < (len(names) or len(columns)) for column in columns)
