"""Writing a file so that nothing is ever lost: whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from xnn.errors import DataError, OptionError

__all__ = ["as_path", "check_writable", "to_json", "write_atomically"]


def as_path(path: str | os.PathLike[str]) -> Path:
    """The path. Raises OptionError for what names no file."""
    try:
        return Path(path)
    except TypeError:
        raise OptionError(f"a file is named by a string or a path, got {repr(path)[:60]}") from None


def check_writable(
    path: str | os.PathLike[str], suffixes: tuple[str, ...] = (), replaced: bool = True
) -> Path:
    """The path, if a file can be written there later; better to hear it before hours of training.

    replaced: whether the file will be made anew, and a device or pipe in its place be lost, or be added to.
    Raises OptionError for a missing or read-only folder, a folder, device or pipe in the file's place, or a wrong
    suffix.
    """
    path = as_path(path)
    folder = path.parent
    if suffixes and path.suffix.lower() not in suffixes:
        raise OptionError(f"cannot write {path}: its name must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise OptionError(f"cannot write {path}: it is a folder; name a file")
    if replaced and path.exists() and not path.is_file():
        raise OptionError(f"cannot write {path}: it is no regular file; name one, or a new one")
    if not folder.is_dir():
        raise OptionError(f"cannot write {path}: there is no folder {folder}; make it first")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise OptionError(f"cannot write {path}: no permission; choose another place")
    return path


def to_json(value: Any) -> str:
    """One line of strict JSON: NaN and infinities, which JSON has not, become null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write the file beside its place, flush it to the disk, then move it there.

    A full disk, a crash or Ctrl-C leaves what was there before. Raises DataError naming the reason.
    """
    path = check_writable(path).resolve()  # a link stays one
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, path.stat().st_mode & 0o7777)
        else:
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise DataError(
                f"cannot write {path}: {error.strerror or error}; what was there before is untouched"
            ) from error
        raise
