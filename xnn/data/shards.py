"""Opens the arrays of a file or a folder, of which large ones are read by their rows, from disk."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from xnn.backends.host_arrays import as_host_array
from xnn.backends.row_sources import Joined, is_on_host
from xnn.data.arrays import LARGE, read_array, read_npz
from xnn.data.idx import read_idx
from xnn.errors import CorruptFileError, OptionError, ShapeError
from xnn.files import as_path, by_numbers, reading
from xnn.options import shown

__all__ = ["Shards", "open_arrays"]

#: The number at the end of a shard's name: 0007 of x-0007.
_NUMBER = re.compile(r"[-_.]?\d+$")

#: The name of a file, and an array in it.
_Shard: TypeAlias = tuple[str, Any]


class Shards(Joined):
    """Several arrays as one that has all their rows, in order. Only the rows that are asked for are read.

    parts: a list of arrays, of paths of .npy files, which are mapped, or of IDX files. All have rows of one dtype and
        shape. float16 and the like become float32, as in `fit`.

    A Trainer takes it as samples, targets or both: its rows are shuffled as those of one array, and read where they
    are needed. `shards[rows]` reads rows, and `numpy.asarray(shards)` all of them.
    Raises OptionError for anything but a list, and for arrays of a GPU; ShapeError for arrays that do not fit
    together; DTypeError for what is no array of numbers or text, such as masked values; CorruptFileError or
    DataNotFoundError for files.

        >>> import numpy as np
        >>> from xnn import data
        >>> shards = data.Shards([np.zeros((2, 3)), np.ones((4, 3))])
        >>> shards
        <Shards (6, 3) float64>
        >>> shards[1:3].tolist()
        [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        if not isinstance(parts, (list, tuple)):
            raise OptionError(f"Shards takes a list of arrays or paths, got {shown(parts)}: put it in a list")
        super().__init__([_opened(part, number) for number, part in enumerate(parts)])


def _opened(part: Any, number: int) -> Any:
    """A part that was given to Shards, as an array on the host whose rows can be read; a path is opened.

    number: of the part, for messages.
    """
    if isinstance(part, (str, os.PathLike)):
        path = as_path(part)
        part = read_array(path, mapped=True) if path.suffix.lower() == ".npy" else read_idx(path)
    array = as_host_array(part, f"part {number}", by_rows=True)
    if not is_on_host(array):
        raise OptionError(
            f"part {number} of Shards must be an array on the host, got {shown(array)}, which is on a device: "
            "give arrays of NumPy"
        )
    return array


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
    found: dict[str, list[_Shard]] = {}
    for file in files:
        if file.suffix.lower() == ".npz":
            arrays = read_npz(file, by_rows)
        else:
            arrays = {_NUMBER.sub("", file.stem) or file.stem: read_array(file, by_rows)}
        for name, array in arrays.items():
            found.setdefault(name, []).append((file.name, array))
    _check_alike(path, found)
    whole = {name: [array for _, array in parts] for name, parts in found.items()}
    try:
        return {name: arrays[0] if len(arrays) == 1 else Shards(arrays) for name, arrays in whole.items()}
    except ShapeError as error:
        raise CorruptFileError(f"{path}: the shards do not fit together: {error}") from error


def _files_of(folder: Path) -> list[Path]:
    """The .npy and .npz files of a folder, in the order of the numbers in their names."""
    files = [
        file for file in folder.iterdir() if file.suffix.lower() in (".npy", ".npz") and file.name[0] != "."
    ]
    if not files:
        raise CorruptFileError(
            f"{folder} holds neither .npy or .npz files, which numpy.save and numpy.savez make, nor PNG or JPEG "
            "images in a folder for each class: name a folder that does"
        )
    return sorted(files, key=lambda file: by_numbers(file.name))


def _check_alike(folder: Path, found: dict[str, list[_Shard]]) -> None:
    """Raise CorruptFileError if shards of samples and of their targets differ in number or rows.

    Samples would be paired with targets of others. found: the shards of each array.
    """
    for name, parts in found.items():
        target = "y" + name[1:]
        others = found.get(target, []) if name[:1] == "x" else []
        if len(others) == len(parts) > 1:
            for place, ((file, x), (other, y)) in enumerate(zip(parts, others, strict=True)):
                if file != other and _number_of(file) != _number_of(other):
                    raise CorruptFileError(
                        f"{folder}: shard {place}, counted from 0, of {name} is {file}, and of {target} it is "
                        f"{other}: give their files the same numbers, or add those that are missing"
                    )
                if x.shape[:1] != y.shape[:1]:
                    raise CorruptFileError(
                        f"{folder}: shard {place}, counted from 0, has {name} {list(x.shape)} and {target} "
                        f"{list(y.shape)}: give as many targets as samples in each"
                    )
        if any(not part.ndim for _, part in parts):
            raise CorruptFileError(f"{folder}: a shard of {name} is a single number: shards hold rows")


def _number_of(file: str) -> int | None:
    """The number at the end of the name of a shard's file."""
    found = _NUMBER.search(Path(file).stem)
    return int(found.group().lstrip("-_.")) if found else None
