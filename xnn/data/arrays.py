"""Reads NumPy's .npy and .npz files, without pickles."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from xnn.errors import CorruptFileError, DataNotFoundError

__all__ = ["read_array", "read_npz"]

# What NumPy and zipfile raise for damaged bytes; MemoryError comes from a header that announces petabytes.
_DAMAGE = (OSError, ValueError, EOFError, AttributeError, MemoryError, zipfile.BadZipFile, zlib.error)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz archive by name. Objects (pickles) are refused.

    Raises CorruptFileError or DataNotFoundError.
    """
    arrays: dict[str, np.ndarray] = _read(path, ".npz")
    return arrays


def read_array(path: Path) -> np.ndarray:
    """The array of an .npy file. Objects (pickles) are refused. Raises CorruptFileError or DataNotFoundError."""
    array: np.ndarray = _read(path, ".npy")
    return array


def _read(path: Path, kind: str) -> Any:
    try:
        with open(path, "rb") as file:
            content: Any = np.load(file, allow_pickle=False)
            found = ".npy" if isinstance(content, np.ndarray) else ".npz"
            if found == kind:
                return content if found == ".npy" else {name: content[name] for name in content.files}
    except FileNotFoundError as error:
        raise DataNotFoundError(f"there is no file {path}") from error
    except _DAMAGE as error:
        if "allow_pickle" in str(error):
            raise CorruptFileError(
                f"{path} holds Python objects, or is no {kind} file; only numbers and text are read, because "
                "unpickling runs code: save arrays of one dtype, such as array.astype('float32')"
            ) from error
        raise CorruptFileError(f"{path} is not a readable {kind} file: {error}") from error
    raise CorruptFileError(f"{path} has the content of an {found} file: give it that ending")
