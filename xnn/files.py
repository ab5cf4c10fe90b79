"""Writes files atomically, and lines for the user: a file is never half written, and a line never ends a run."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import secrets
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows has no locks of this kind
    fcntl = None  # type: ignore[assignment]

from xnn.errors import DataNotFoundError, DiskError, MissingExtraError, OptionError, XnnError
from xnn.options import shown

__all__ = [
    "StandardError", "as_path", "by_numbers", "check_folder", "check_matplotlib", "check_plot", "check_writable",
    "flush_folder", "lock_file", "notice", "printable", "reading", "replace_file", "save_figure", "to_json",
    "write_atomically", "written_by_parts",
]  # fmt: skip


def as_path(path: str | os.PathLike[str]) -> Path:
    """The path of a string or path. Raises OptionError for anything else."""
    try:
        return Path(path)
    except TypeError:
        raise OptionError(
            f"got {shown(path)} as a file's name; a file is named by a string or a path"
        ) from None


def by_numbers(name: str) -> tuple[list[str | int], str]:
    """A key that sorts names with the numbers in them by size: "2.png" before "10.png".

    >>> sorted(["10.png", "a.png", "2.png"], key=by_numbers)
    ['2.png', '10.png', 'a.png']
    """
    return [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", name)], name


@contextmanager
def reading(path: str | os.PathLike[str], what: str = "") -> Iterator[None]:
    """A `with` block that reads a file. An OSError in it becomes a DataNotFoundError that names the file.

    what: what the file holds, with an article, such as "the record". Default "".
    """
    named = f"{what} {path}".strip()
    if "\0" in os.fspath(path):
        raise DataNotFoundError(f"there is no file {os.fspath(path)!r}: a name has no null character")
    try:
        if Path(path).is_fifo() or Path(path).is_socket():
            raise DataNotFoundError(f"{named} is a pipe or socket, which may never end: name a file")
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        if isinstance(error, FileNotFoundError) and not what:
            folder = f"{path} is a folder: name a file in it"
            raise DataNotFoundError(folder if os.path.isdir(path) else f"there is no file {path}") from error
        raise DataNotFoundError(f"cannot read {named}: {_reason(error)}") from error


def check_writable(
    path: str | os.PathLike[str], suffixes: tuple[str, ...] = (), replaced: bool = True, begins: str = ""
) -> Path:
    """Check that a file can be written at this path, before hours of training, and return the path.

    suffixes: the endings that the name may have, such as (".png", ".svg"); any if empty.
    replaced: whether a new file will replace the old one; a device or pipe is then refused. False if the file is
        only opened and appended to.
    begins: how an old file must begin. An old file with other content is not overwritten. Default: any.

    The check makes a temporary file in the same folder, as `write_atomically` does, and removes it.

    Raises OptionError for another ending, a folder, device or pipe of this name, a folder that is missing, a place
    that cannot be written to, and an old file with other content.
    """
    path = _named(path, suffixes)
    try:
        fault = _fault(path, replaced, begins.encode())
    except (OSError, ValueError, RuntimeError) as error:  # also NUL in the name, and a loop of links
        raise OptionError(f"cannot write {path}: {_reason(error)}; choose another place") from error
    if fault:
        raise OptionError(f"cannot write {path}: {fault}")
    return path


def _named(path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> Path:
    """The path of a file to write. Raises OptionError unless its name has one of these endings."""
    path = as_path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise OptionError(f"cannot write {path}: its name must end in {' or '.join(suffixes)}")
    return path


def _fault(path: Path, replaced: bool, begins: bytes) -> str:
    """Why a file cannot be written at this path, or "". Raises OSError if the system says it, and not we."""
    there = path.exists()
    if path.is_dir():
        return "it is a folder; name a file"
    if replaced and there and not path.is_file():
        return "it is not a regular file; name one, or a new one"
    if path.is_file() or not there:  # /dev/stdout may lead to a pipe, which has no path
        path = path.resolve()
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}; make it first"
    if there and not os.access(path, os.W_OK):
        return "no permission; choose another place"
    if path.is_file() and begins:
        with open(path, "rb") as file:
            if not begins.startswith(file.read(len(begins))):
                return (
                    "there is a file of that name with other content; choose another name, or remove the file"
                )
    if there and replaced and _is_mount(path):
        return "it is a mount of its own, which no new file can replace; mount its folder instead"
    if not there:
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)  # raises for a name that is too long, and for a loop of links
    if replaced or not there:
        name, descriptor = _temporary(path, 0o600)
        os.close(descriptor)
        os.unlink(name)
    return ""


def check_folder(folder: Path, what: str) -> None:
    """Raise OptionError if a folder cannot be made, or be written to. what: what is to be written there."""
    try:
        place = folder.absolute()
        while not place.exists():
            place = place.parent
        fault = "" if place.is_dir() else f"{place} is a file"
    except (OSError, ValueError) as error:
        fault = _reason(error)
    if not fault and not os.access(place, os.W_OK | os.X_OK):
        fault = "no permission"
    if fault:
        raise OptionError(f"cannot write {what} into {folder}: {fault}; choose another folder")


def _is_mount(path: Path) -> bool:
    """Whether a file is mounted by itself, as with a container's `--volume FILE:FILE`. Only Linux can tell."""
    if not hasattr(os, "O_PATH"):
        return False
    mounts = []
    for place in (path, path.parent):
        descriptor = os.open(place, os.O_PATH)
        try:
            with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as lines:
                mounts += [line.split()[1] for line in lines if line.startswith("mnt_id:")]
        except OSError:  # no /proc here
            return False
        finally:
            os.close(descriptor)
    return len(set(mounts)) > 1


def to_json(value: Any) -> str:
    """One line of strict JSON. NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomically(
    path: str | os.PathLike[str], content: bytes, suffixes: tuple[str, ...] = (), begins: str = ""
) -> None:
    """Write a file under another name in the same folder, flush it to the disk, then rename it.

    suffixes, begins: as in `check_writable`, which is called first.

    After a full disk, a crash or Ctrl-C the old file is still there. If the file cannot be written, the content is
    saved in the folder for temporary files instead, and the error says where. For a name with another ending nothing
    is written. Raises the OptionError of `check_writable`, or DiskError with the system's reason.
    """
    asked = _named(path, suffixes)
    try:
        place = check_writable(asked, suffixes, begins=begins).resolve()  # a link stays a link
        replace_file(place, content)
    except OptionError as error:
        raise OptionError(f"{error}{_rescued(asked, content)}") from error
    except OSError as error:
        raise DiskError(
            f"cannot write {asked}: {_reason(error)}; what was there before is untouched"
            f"{_rescued(asked, content)}"
        ) from error


def replace_file(path: Path, content: bytes, check: Callable[[Path], object] | None = None) -> None:
    """Write a file under another name in the same folder, flush it to the disk, rename it, and flush the folder.

    check: is called with the new file before it gets its name, and may raise. Default none.

    After a crash the old file or the new one is there, and whole. Raises the system's OSError.
    """
    with _replacing(path, check) as file:
        file.write(content)


@contextmanager
def written_by_parts(path: str | os.PathLike[str], suffixes: tuple[str, ...] = ()) -> Iterator[IO[bytes]]:
    """A `with` block that writes a file part by part. The file gets its name at the end, and not after an error.

    suffixes: as in `check_writable`, which is called first.

    Raises the OptionError of `check_writable`, or DiskError with the system's reason.
    """
    asked = _named(path, suffixes)
    try:
        with _replacing(check_writable(asked, suffixes).resolve()) as file:
            yield file
    except XnnError:  # of the block
        raise
    except OSError as error:
        raise DiskError(
            f"cannot write {asked}: {_reason(error)}; what was there before is untouched"
        ) from error


@contextmanager
def _replacing(path: Path, check: Callable[[Path], object] | None = None) -> Iterator[IO[bytes]]:
    """A `with` block that writes a new file; at its end the file is flushed, checked and renamed to `path`."""
    mode = path.stat().st_mode & 0o7777 if path.exists() else None
    temporary, descriptor = _temporary(path, 0o666 if mode is None else 0o600)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(temporary, mode)
        if check is not None:
            check(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Write a folder's list of files to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_locked: weakref.WeakSet[IO[Any]] = weakref.WeakSet()


def _forget_locks() -> None:
    """Let locked files lead nowhere in a forked process, which may outlive its parent and would keep the lock."""
    with open(os.devnull, "r+b") as nowhere:
        for file in _locked:
            if not file.closed:
                os.dup2(nowhere.fileno(), file.fileno(), inheritable=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def lock_file(file: IO[Any], shared: bool = False, waits: bool = False) -> bool:
    """Lock an open file for this process until it is closed; a process that is killed leaves no lock behind.

    shared: whether others may have such a lock, too. Default False.
    waits: whether to wait until other processes have ended theirs. Default False.

    Returns whether it is locked; where there are no locks it is not. Raises BlockingIOError if another has a lock.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if waits else fcntl.LOCK_NB))
            _locked.add(file)
            return True
        except BlockingIOError:
            raise
        except OSError:  # this file system has no locks
            pass
    return False


def _temporary(path: Path, mode: int) -> tuple[Path, int]:
    """Make a new file beside `path`; the umask applies to `mode`. Returns the file's path and descriptor.

    Its name does not contain that of `path`, which may be as long as the system allows.
    """
    temporary = path.parent / f".xnn-{secrets.token_hex(8)}"
    binary = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    return temporary, os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | binary, mode)


def _rescued(path: Path, content: bytes) -> str:
    """Save content that cannot be written to `path` in the folder for temporary files. Returns words that say so."""
    try:
        place = Path(tempfile.mkdtemp(prefix="xnn-")) / f"{path.stem[:40] or 'file'}{path.suffix[:20]}"
        replace_file(place, content)
    except (OSError, ValueError):
        return ""
    return f"; it was saved as {place} instead"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def printable(text: str) -> str:
    """Return a text in which control characters are escaped, so that it stays on one line of a terminal.

    >>> len("\\n"), len(printable("\\n"))
    (1, 2)
    """
    if text.isprintable():  # usually, and much faster
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class StandardError:
    """Standard error as a file to which writing never fails: on a full disk or a closed stream the text is lost.

    Progress bars and notices are written to it, so that they cannot end a run.
    """

    def __init__(self) -> None:
        self._stream = (
            sys.stderr
        )  # None without a console; a progress bar of rich replaces it while it is shown

    def write(self, text: str) -> int:
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether a person is likely to read along."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def notice(text: str) -> None:
    """Print a line on standard error. A line that cannot be printed, as on a full disk, is lost."""
    StandardError().write(f"{printable(text)}\n")
    StandardError().flush()


_PLOTS = (".png", ".svg")


def check_plot(path: str | os.PathLike[str]) -> None:
    """Raise the error of saving a plot there: OptionError for the path, MissingExtraError without matplotlib."""
    check_writable(path, _PLOTS)
    check_matplotlib()


def check_matplotlib() -> None:
    """Raise MissingExtraError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError('plots need matplotlib: pip install ".[plot]"') from error


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a matplotlib figure as a PNG or SVG file, by the path's ending."""
    content, ending = io.BytesIO(), as_path(path).suffix.lower()
    figure.savefig(content, format=(ending if ending in _PLOTS else _PLOTS[0])[1:], dpi=130)
    write_atomically(path, content.getvalue(), _PLOTS)
