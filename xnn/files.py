"""Writes files atomically: after a failure the old file is unchanged, and no file is half written."""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xnn.errors import DataError, DataNotFoundError, MissingExtraError, OptionError

__all__ = [
    "as_path",
    "check_plot",
    "check_writable",
    "reading",
    "save_figure",
    "to_json",
    "write_atomically",
]


def as_path(path: str | os.PathLike[str]) -> Path:
    """The path of a string or path. Raises OptionError for anything else."""
    try:
        return Path(path)
    except TypeError:
        raise OptionError(
            f"got {repr(path)[:60]} as a file's name; a file is named by a string or a path"
        ) from None


@contextmanager
def reading(path: str | os.PathLike[str], what: str = "") -> Iterator[None]:
    """A `with` block that reads a file. An OSError in it becomes a DataNotFoundError that names the file.

    what: what the file holds, with an article, such as "the record". Default "".
    """
    named = f"{what} {path}".strip()
    try:
        yield
    except FileNotFoundError as error:
        raise DataNotFoundError(f"there is no file {path}") from error
    except OSError as error:
        raise DataNotFoundError(f"cannot read {named}: {error.strerror or error}") from error


def check_writable(
    path: str | os.PathLike[str], suffixes: tuple[str, ...] = (), replaced: bool = True
) -> Path:
    """Check that a file can be written at this path, before hours of training, and return the path.

    suffixes: the endings that the name may have, such as (".png", ".svg"); any if empty.
    replaced: whether a new file will replace the old one; a device or pipe is then refused. False if the file is
        only opened and appended to.

    Raises OptionError for another ending, a folder, device or pipe of this name, a folder that is missing, or one
    that may not be written to.
    """
    path = as_path(path)
    folder = path.parent
    fault = ""
    if suffixes and path.suffix.lower() not in suffixes:
        fault = f"its name must end in {' or '.join(suffixes)}"
    elif path.is_dir():
        fault = "it is a folder; name a file"
    elif replaced and path.exists() and not path.is_file():
        fault = "it is not a regular file; name one, or a new one"
    elif not folder.is_dir():
        fault = f"there is no folder {folder}; make it first"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        fault = "no permission; choose another place"
    if fault:
        raise OptionError(f"cannot write {path}: {fault}")
    return path


def to_json(value: Any) -> str:
    """One line of strict JSON. NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file under another name in the same folder, flush it to the disk, then rename it.

    After a full disk, a crash or Ctrl-C the old file is still there. Raises DataError with the reason.
    """
    path = check_writable(path).resolve()  # so that a link stays a link
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


def check_plot(path: str | os.PathLike[str]) -> None:
    """Raise the error of saving a plot there: OptionError for the path, MissingExtraError without matplotlib."""
    check_writable(path, (".png", ".svg"))
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError('plots need matplotlib: pip install ".[plot]"') from error


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a matplotlib figure as a PNG or SVG file, by the path's ending."""
    content = io.BytesIO()
    figure.savefig(content, format=os.fspath(path).rsplit(".", 1)[-1].lower(), dpi=130)
    write_atomically(path, content.getvalue())
