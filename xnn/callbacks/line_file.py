"""LineFile: a file that gets lines while a training runs, for logs and records."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import IO, Any

from xnn.errors import DiskError, OptionError
from xnn.files import check_writable, lock_file, notice

__all__ = ["LineFile"]

_END = 200  # bytes at the end of a file, which tell it from the file of another run
_BLOCK = 2**20  # bytes


class LineFile:
    """A file to which a training appends lines, and which goes on after a checkpoint without a line twice.

    path: the file. `open` empties an older one. what: what it is, for messages, such as "log".
    begins: how it begins. A file with other content is refused.

    Each line is handed to the system at once, so that a process that is killed leaves all lines before. If a line
    cannot be written, as on a full disk, a notice says so, the whole lines before it stay, and `fault` is the reason:
    no more lines are written.
    """

    def __init__(self, path: str | os.PathLike[str], what: str, begins: str) -> None:
        self.path = check_writable(path, replaced=False, begins=begins)
        self.what, self.begins, self.fault = what, begins, ""
        #: The bytes of all whole lines; -1 before the file is opened.
        self.size = -1
        self._file: IO[bytes] | None = None
        self._regular = True

    def open(self, goes_on: bool) -> None:
        """Lock the file, and empty it unless it goes on. Raises OptionError or DiskError if it cannot be written."""
        check_writable(self.path, replaced=False, begins=self.begins)  # it may have changed since __init__
        self.path = self.path.absolute()  # the same one after os.chdir
        self._regular = self.path.is_file() or not self.path.exists()  # and not a pipe or device
        try:
            mode = "a+b" if self._regular else "ab"
            self._file = open(self.path, mode, buffering=0)  # noqa: SIM115 - `close` closes it
            if self._regular:
                lock_file(self._file)
                if not goes_on:
                    self._file.truncate(0)
            self.fault, self.size = "", os.fstat(self._file.fileno()).st_size if self._regular else 0
        except BlockingIOError:
            self.close()
            raise OptionError(
                f"cannot write the {self.what} {self.path}: another run is writing it; choose another name"
            ) from None
        except OSError as error:
            self.close()
            raise DiskError(f"cannot write the {self.what} {self.path}: {error.strerror or error}") from error

    @property
    def is_open(self) -> bool:
        """Whether lines are written."""
        return self._file is not None and not self.fault

    @property
    def is_there(self) -> bool:
        """Whether the open file still has its name, so that it was neither removed nor replaced."""
        if self._file is None or not self._regular:
            return False
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except OSError:
            return False

    def write(self, line: str, last: bool = False) -> None:
        """Append a line.

        last: whether it is the last one. It is tried after a fault, too, since there may be room again.
        """
        if self._file is None or (self.fault and not last):
            return
        content = rest = f"{line}\n".encode()
        try:
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        except OSError as error:
            self.fault = error.strerror or str(error)
            if not last:
                notice(f"xnn: the {self.what} {self.path} ends here ({self.fault}); training goes on")
            self.cut(self.size)
        else:
            self.size += len(content)

    def cut(self, size: int) -> None:
        """Remove all that comes after this many bytes."""
        if self._file is not None and self._regular:
            with suppress(OSError):
                self._file.truncate(size)
            self.size = size

    def mark(self, flush: bool = False) -> dict[str, Any]:
        """How long the file is and how it ends, for a checkpoint. flush: whether to write it to the disk first."""
        if not self.is_there:
            return {"bytes": -1, "end": b""}
        if flush and self._file is not None:
            with suppress(OSError):
                os.fsync(self._file.fileno())
        return {"bytes": self.size, "end": self._end(self.size)}

    def go_back(self, mark: Mapping[str, Any]) -> bool:
        """Remove the lines after a mark. Returns whether the file is the one that has the mark; else it stays.

        With a "fault" in the mark no more lines are written; without one, they are tried again.
        """
        size = int(mark["bytes"])
        if not 0 <= size <= self.size or self._end(size) != mark["end"]:
            return False
        self.cut(size)
        self.fault = str(mark.get("fault", ""))
        return True

    def blocks(self) -> Iterator[bytes]:
        """The content, in pieces. It is read from the open file, which may have lost its name."""
        for start in range(0, self.size, _BLOCK):
            yield self._read(start, min(_BLOCK, self.size - start))

    def close(self) -> None:
        """Close the file, and unlock it."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _end(self, size: int) -> bytes:
        return self._read(max(0, size - _END), min(size, _END))

    def _read(self, start: int, size: int) -> bytes:
        if self._file is None:
            return b""
        self._file.seek(start)
        return self._file.read(size)
