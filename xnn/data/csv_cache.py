"""Reads a large CSV file once, into arrays in files, and reads those afterwards.

A folder in the user's cache has the features as float64, and the number of the line of each row. It has each target
as codes, which number its different fields, or as float64 if there are more than 65,536 of them. `state.json` says
how many rows are written, and where the next one begins in the CSV file. Reading that was interrupted goes on there.

When a new table is read, those that were not used for 30 days are removed, and, beyond 100 GiB, those that were not
used for longest. A table that a running process uses stays: the process has a lock on the file `used` in its folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from array import array as packed
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from xnn.data.csv_fields import is_code, is_missing, is_number
from xnn.data.csv_rows import Place, read_rows
from xnn.data.csv_targets import CodedFields, NumberFields
from xnn.data.sources import cache_home
from xnn.data.tables import Choose, Columns, Table, begin_table, is_class, note_of_classes, numbers_of
from xnn.errors import CorruptFileError, DataError, DiskError
from xnn.files import lock_file, notice, reading, write_atomically

__all__ = ["read_large_csv"]

_VERSION = 1
_NUMBERS = 2**21  # features that are written together
_MOST_CODES = 2**16  # different fields of a target; more are numbers
_SECONDS = 10.0  # between two lines of progress
_KEPT_SECONDS = 30 * 24 * 3600.0  # that a table is kept without being used
_KEPT_BYTES = 100 * 2**30  # that all tables have together, at most

#: The files `used` of the tables that this process uses, which it locks until it ends.
_used: dict[Path, IO[str]] = {}


def read_large_csv(
    path: Path, choose: Choose, header: bool | None = None, names: Sequence[str] = ()
) -> Table:
    """The rows of a CSV file for training, as `read_csv` gives them, in memory maps of files in the user's cache.

    The file is read when it is new, or other columns are chosen. The arguments are those of `read_csv`.
    Raises as `read_csv` does, and DiskError if the cache cannot be written.
    """
    columns, width, notes, _ = begin_table(path, read_rows(path), choose, header, names)
    with reading(path):
        status = os.stat(path)
    about = {
        "version": _VERSION, "path": str(path.absolute()), "size": status.st_size, "modified": status.st_mtime_ns,
        "features": list(columns.features), "targets": list(columns.targets), "names": list(columns.names),
    }  # fmt: skip
    key = json.dumps([about[name] for name in ("path", "features", "targets", "names")])
    folder = cache_home() / "tables" / hashlib.sha256(key.encode()).hexdigest()[:16]
    try:
        _use(folder)
        with _alone(folder):
            cache = _Cache(folder, path, columns, width, about)
            if not cache.done:
                _remove_unused(folder.parent)
                rows = read_rows(path, cache.place)
                if columns.names and not cache.rows:
                    next(rows)  # the header
                cache.fill(rows)
                with reading(path):
                    now = os.stat(path)
                if (now.st_size, now.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
                    raise CorruptFileError(
                        f"{path} was changed while it was read: start again when it is whole"
                    )
            return cache.table(notes)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise DataError(
                f"cannot map the numbers of {path}: {error.strerror}; raise the limit of this process (ulimit -v)"
            ) from error
        raise DiskError(
            f"cannot keep the numbers of {path} in {folder}: {error.strerror or error}; XDG_CACHE_HOME names another "
            "place for the cache"
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A `with` block that one process at a time enters, and others wait for its end or the process's."""
    with open(folder / "lock", "w") as file:
        lock_file(file, waits=True)
        yield


def _use(folder: Path) -> None:
    """Keep other processes from removing a table until this process ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.parent):
        folder.mkdir(exist_ok=True)
        file = open(folder / "used", "w")  # noqa: SIM115 - stays open
        os.utime(folder / "used")
        lock_file(file, shared=True)
        if folder in _used:
            _used[folder].close()
        _used[folder] = file


def _remove_unused(tables: Path) -> None:
    """Remove the tables that were not used for long, but none in use; see the head of this file."""
    with _alone(tables):
        found = sorted(filter(None, map(_last_use, tables.iterdir())), reverse=True)
        together = 0
        for used, size, folder in found:
            together += size
            if time.time() - used < _KEPT_SECONDS and together <= _KEPT_BYTES:
                continue
            with suppress(OSError), open(folder / "used", "a") as file:
                if lock_file(file):
                    shutil.rmtree(folder, ignore_errors=True)
                    day = time.strftime("%Y-%m-%d", time.localtime(used))
                    notice(f"xnn: removed {folder}, the numbers of a table that was last used on {day}")


def _last_use(folder: Path) -> tuple[float, int, Path] | None:
    """When a table was last used, how many bytes it has, and its folder; None for a folder of something else."""
    with suppress(OSError):
        if (folder / "lock").is_file() and folder.is_dir():
            used = folder / "used"
            last = os.stat(used if used.exists() else folder / "lock").st_mtime
            return last, sum(os.stat(file).st_size for file in folder.iterdir()), folder
    return None


class _Cache:
    """The files of one table, and what is known of its rows so far."""

    def __init__(self, folder: Path, path: Path, columns: Columns, width: int, about: dict[str, Any]) -> None:
        self.folder, self.path, self.columns, self.width, self.about = folder, path, columns, width, about
        state = self._state()
        self.rows, self.done = state.get("rows", 0), state.get("done", False)
        self.place = Place(state.get("byte", 0), state.get("line", 0))
        self.classes = set(state.get("classes", ()))
        #: Of each target its different fields with their first rows; None: all are numbers, and there are many.
        self.found: list[dict[str, int] | None] = state.get("found", [{} for _ in columns.targets])
        sizes = [("x", 8 * len(columns.features)), ("lines", 8)]
        self.sizes = dict(
            [*sizes, *((self._name(n), 8 if f is None else 2) for n, f in enumerate(self.found))]
        )
        if any(os.path.getsize(folder / n) < self.rows * s for n, s in self.sizes.items() if self.rows):
            raise CorruptFileError(f"{folder} is damaged: delete it, and the table is read again")

    def _name(self, target: int) -> str:
        return f"target{target}{'.numbers' if self.found[target] is None else ''}"

    def _state(self) -> dict[str, Any]:
        try:
            state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        same = isinstance(state, dict) and state.get("about") == self.about
        return state if same else {}

    def fill(self, rows: Iterator[Any]) -> None:
        """Read the rows that are missing, and write them."""
        told = time.monotonic()
        notice(f"xnn: {'reading on' if self.rows else 'reading'} {self.path} once, into {self.folder}")
        # New files, and not the old ones cut: a training on an earlier state of the table may have mapped those.
        if not self.rows:
            for old in self.folder.iterdir():
                if old.name not in ("lock", "used"):
                    old.unlink()
        for name, size in self.sizes.items():
            with open(self.folder / name, "ab") as file:
                file.truncate(self.rows * size)
        x, lines, fields = packed("d"), packed("q"), [list[str]() for _ in self.columns.targets]
        for row in rows:
            x.extend(numbers_of(self.path, row, self.columns, self.width, self.rows + len(lines)))
            for column, texts in zip(self.columns.targets, fields, strict=True):
                if is_missing(row.fields[column]) and is_class(self.path, row, column, self.columns, True):
                    self.classes.add(row.fields[column])
                texts.append(row.fields[column])
            lines.append(row.line)
            if len(x) >= _NUMBERS:
                byte, line = self.place.now()
                self._write(x, lines, fields, byte, line)
                x, lines, fields = packed("d"), packed("q"), [list[str]() for _ in self.columns.targets]
                if time.monotonic() - told > _SECONDS:
                    told = time.monotonic()
                    share = min(1.0, (byte % 2**64) / self.about["size"])
                    notice(f"xnn: {share:.0%} of {self.path.name} read, {self.rows:,} rows")
        self.done = True
        if not self.rows and not lines:
            raise CorruptFileError(f"{self.path} holds no rows of numbers: give another file")
        self._write(x, lines, fields, 0, 0)

    def _write(self, x: Any, lines: Any, fields: list[list[str]], byte: int, line: int) -> None:
        """Append rows to the files of the cache, and then write into state.json how many rows they have."""
        parts: dict[str, Any] = {"x": x, "lines": lines}
        for target, texts in enumerate(fields):
            made = self._codes(target, texts, lines)
            parts[self._name(target)] = made
        for name, part in parts.items():
            with open(self.folder / name, "ab") as file:
                file.write(memoryview(part).cast("B"))
                file.flush()
                os.fsync(file.fileno())
        self.rows += len(lines)
        state = {
            "about": self.about, "rows": self.rows, "byte": byte, "line": line, "done": self.done,
            "classes": sorted(self.classes), "found": self.found,
        }  # fmt: skip
        write_atomically(self.folder / "state.json", json.dumps(state).encode())

    def _codes(self, target: int, texts: list[str], lines: Any) -> np.ndarray:
        """The codes of some rows of a target; or their numbers, when it has too many different fields."""
        found = self.found[target]
        if found is not None:
            for row, text in enumerate(texts):
                found.setdefault(text, self.rows + row)
            if len(found) <= _MOST_CODES:
                place = {text: code for code, text in enumerate(found)}
                return np.asarray([place[text] for text in texts], np.uint16)
            self._make_numbers(target, found)
        column = self.columns.describe(self.columns.targets[target])
        for text, line in zip(texts, lines, strict=True):
            if not _is_plain_number(text):
                raise CorruptFileError(
                    f"{self.path}, line {line}, {column}: the target {text[:40]!r} is not a number without leading "
                    f"zeros, as the others are; a table of this size has up to {_MOST_CODES:,} classes"
                )
        return np.asarray([float(text) for text in texts], np.float64)

    def _make_numbers(self, target: int, found: dict[str, int]) -> None:
        """Write the numbers of the rows so far, of which there were codes."""
        codes = np.fromfile(self.folder / self._name(target), np.uint16)
        wrong = next((text for text in found if not _is_plain_number(text)), None)
        if wrong is not None:
            raise CorruptFileError(
                f"{self.path}: the target has over {_MOST_CODES:,} different values, and one is {wrong[:40]!r}, "
                "which is not a number without leading zeros: choose another target, or correct it"
            )
        numbers = np.asarray([float(text) for text in found])
        self.found[target] = None
        numbers[codes].tofile(self.folder / self._name(target))

    def table(self, notes: Sequence[str]) -> Table:
        """The whole table, in memory maps."""
        shape = (self.rows, len(self.columns.features))
        x = np.memmap(self.folder / "x", np.float64, "r", shape=shape)
        lines = np.memmap(self.folder / "lines", np.int64, "r", shape=(self.rows,))
        fields: list[Sequence[str]] = []
        for target, found in enumerate(self.found):
            kind = np.float64 if found is None else np.uint16
            rows = np.memmap(self.folder / self._name(target), kind, "r", shape=(self.rows,))
            fields.append(NumberFields(rows) if found is None else CodedFields(rows, found))
        said = (*notes, *note_of_classes(self.classes))
        numbers: Any = np.asarray(lines)
        return Table(self.path, self.columns, np.asarray(x), tuple(fields), numbers, (), said)


def _is_plain_number(text: str) -> bool:
    """Whether a target is a number, and no code such as 007, which a smaller table would take as a name."""
    return is_number(text) and not is_code(text)
