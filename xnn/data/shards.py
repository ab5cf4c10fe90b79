"""Opens the arrays of a file or a folder, of which large ones are read by their rows, from disk."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xnn.backends.row_sources import Joined, RowSource
from xnn.data.arrays import LARGE, read_array, read_npz
from xnn.data.idx import read_idx
from xnn.errors import CorruptFileError, ShapeError
from xnn.files import as_path, reading

__all__ = ["Shards", "open_arrays"]

#: The number at the end of a shard's name: 0007 of x-0007.
_NUMBER = re.compile(r"[-_.]?\d+$")


class Shards(Joined):
    """Several arrays as one, the rows of the first before those of the second. None is read as a whole.

    parts: the arrays, or paths of .npy files, which are mapped, or IDX files; of one dtype and one shape of a row.

    A Trainer takes it as samples, targets or both: its rows are shuffled as those of one array, and read where they
    are needed. `shards[rows]` reads rows, and `numpy.asarray(shards)` all of them.
    Raises ShapeError for arrays that do not fit together, CorruptFileError or DataNotFoundError for files.

        >>> import numpy as np
        >>> from xnn import data
        >>> shards = data.Shards([np.zeros((2, 3)), np.ones((4, 3))])
        >>> shards
        <Shards (6, 3) float64>
        >>> shards[1:3].tolist()
        [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        super().__init__([_opened(part) for part in parts])


def _opened(part: Any) -> Any:
    if isinstance(part, (str, os.PathLike)):
        path = as_path(part)
        return read_array(path, mapped=True) if path.suffix.lower() == ".npy" else read_idx(path)
    return part if isinstance(part, RowSource) else np.asarray(part)


def open_arrays(path: str | os.PathLike[str], mapped: bool | None = None) -> dict[str, Any]:
    """The arrays of an .npz archive, or of the .npy and .npz files in a folder, by name.

    path: the archive, or the folder.
    mapped: True: arrays are read from the files where they are needed; members of an archive that are compressed are
        read into memory all the same. False: all are read into memory. Default: True from 1 GiB on.

    In a folder, the name of an .npy file is that of its array, and names that end in a number are shards: the rows of
    x-0, x-1, ..., x-10 together are x, in the order of the numbers. Several .npz files are shards of each of their
    arrays. Arrays of several shards are `Shards`.
    Raises DataNotFoundError for a file that is not there; CorruptFileError for one that is damaged, for a folder
    without arrays, and for shards that do not fit together.

        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from xnn import data
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for shard in range(3):
        ...     np.savez(folder / f"part-{shard}.npz", x=np.full((2, 4), shard), y=np.arange(2))
        >>> data.open_arrays(folder)
        {'x': <Shards (6, 4) int64>, 'y': <Shards (6,) int64>}
    """
    path = as_path(path)
    with reading(path):
        files = _files_of(path) if path.is_dir() else [path]
        size = sum(os.stat(file).st_size for file in files)
    by_rows = size >= LARGE if mapped is None else mapped
    if not path.is_dir():
        return dict(read_npz(path, by_rows))
    found: dict[str, list[Any]] = {}
    for file in files:
        if file.suffix.lower() == ".npz":
            arrays = read_npz(file, by_rows)
        else:
            arrays = {_NUMBER.sub("", file.stem) or file.stem: read_array(file, by_rows)}
        for name, array in arrays.items():
            found.setdefault(name, []).append(array)
    _check_alike(path, found)
    try:
        return {name: parts[0] if len(parts) == 1 else Shards(parts) for name, parts in found.items()}
    except ShapeError as error:
        raise CorruptFileError(f"{path}: the shards do not fit together: {error}") from error


def _files_of(folder: Path) -> list[Path]:
    """The .npy and .npz files of a folder, in the order of the numbers in their names."""
    files = [
        file for file in folder.iterdir() if file.suffix.lower() in (".npy", ".npz") and file.name[0] != "."
    ]
    if not files:
        raise CorruptFileError(f"{folder} holds no .npy or .npz file: numpy.save and numpy.savez make them")
    return sorted(
        files, key=lambda file: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", file.name)]
    )


def _check_alike(folder: Path, found: dict[str, list[Any]]) -> None:
    """Raise CorruptFileError if a shard has more samples than targets, or less: rows would be paired wrongly."""
    for name, parts in found.items():
        others = found.get("y" + name[1:]) if name[:1] == "x" else None
        if others is not None and len(others) == len(parts) > 1:
            for number, (x, y) in enumerate(zip(parts, others, strict=True)):
                if x.shape[:1] != y.shape[:1]:
                    raise CorruptFileError(
                        f"{folder}: shard {number}, counted from 0, has {name} {list(x.shape)} and y{name[1:]} "
                        f"{list(y.shape)}: give as many targets as samples in each"
                    )
        if any(not part.ndim for part in parts):
            raise CorruptFileError(f"{folder}: a shard of {name} is a single number: shards hold rows")
