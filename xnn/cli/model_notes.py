"""The notes that `xnn train --save` puts into a model file, and that `xnn predict` reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

from xnn.data.tables import Columns
from xnn.data.targets import Label
from xnn.errors import CorruptFileError
from xnn.layers import files
from xnn.options import shown

__all__ = ["Notes", "read_notes", "unfit"]


@dataclass(frozen=True)
class Notes:
    """What a model was trained on.

    task: "classification" or "regression".
    features: the number of features of a sample; 0 if the file does not say it.
    labels: the names of class 0, 1, ...; empty if there are none.
    columns: those of the table, None if it was none.
    classes: the number of classes; 0 for a regression, and if the file does not say it.
    dataset: the name of the data; "" if the file does not say it.
    image: the shape of a sample, (height, width), (channels, height, width) or (height, width, channels), if samples
        are images of bytes; otherwise ().
    loss: the name of the loss, such as "hinge"; "" if the file does not say it.
    """

    task: str = "classification"
    features: int = 0
    labels: tuple[Label, ...] = ()
    columns: Columns | None = None
    classes: int = 0
    dataset: str = ""
    image: tuple[int, ...] = ()
    loss: str = ""


def unfit(said: dict[str, Any]) -> list[str]:
    """The names of notes whose values `xnn train` does not write."""
    features, labels, classes = said.get("features") or 0, said.get("labels") or [], said.get("classes") or 0
    fits = {
        "task": said.get("task", "classification") in ("classification", "regression"),
        "features": type(features) is int and features >= 0,
        "classes": type(classes) is int and classes >= 0,
        "labels": _is_list(labels, str, int, float),
        "image": _is_list(said.get("image") or [], int) and all(side > 0 for side in said.get("image") or []),
        "columns": said.get("columns") is None or _is_columns(said["columns"]),
    }
    return [name for name, right in fits.items() if not right]


def read_notes(path: str) -> Notes:
    """The notes of a model file. Raises CorruptFileError for values that `xnn train` does not write."""
    said = files.metadata(path)["notes"]
    features, labels, classes = said.get("features") or 0, said.get("labels") or [], said.get("classes") or 0
    columns = said.get("columns")
    task = said.get("task", "classification")
    if wrong := unfit(said):
        raise CorruptFileError(
            f"{path}: its notes say that {wrong[0]} is {shown(said[wrong[0]])}, which `xnn train` does not write: "
            "train again"
        )
    if columns is not None:
        names, features_of, targets = (tuple(columns[key]) for key in ("names", "features", "targets"))
        columns = Columns(names, features_of, targets, columns.get("header"))
    name, loss = (said[key] if isinstance(said.get(key), str) else "" for key in ("dataset", "loss"))
    image, classes = tuple(said.get("image") or ()), classes if task == "classification" else 0
    return Notes(task, features, tuple(labels), columns, classes, name, image, loss)


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
