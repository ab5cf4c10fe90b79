"""Splits a CSV file into rows of fields, and refuses what is not one, with line and field.

The rules are those of RFC 4180: commas between fields; a field in quotation marks may hold commas, line ends and
doubled quotation marks. Lines end in LF, CRLF or CR. Blank lines and spaces around fields are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from xnn.errors import CorruptFileError
from xnn.files import reading

__all__ = ["Place", "Row", "read_rows"]

#: The most characters of a field and of a line: a file that is no table may have no line end at all.
_LONGEST_FIELD = 2**17
_LONGEST_LINE = 2**26
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a CSV file.

    line: the line of the file in which it begins, counted from 1.
    fields: the text of each field, without spaces around it.
    quoted: the numbers of the fields that stand in quotation marks, from 0. Default (): none.
    lines: the line in which each field begins. Default (): all in `line`.
    """

    line: int
    fields: list[str]
    quoted: tuple[int, ...] = ()
    lines: tuple[int, ...] = ()

    def line_of(self, column: int) -> int:
        """The line in which a field begins."""
        return self.lines[column] if self.lines else self.line


class Place:
    """A place between two rows of a CSV file, from which reading can go on: `read_rows` keeps it up to date.

    byte: where the next row begins, as the text file tells it. line: the number of the last line before. Default: 0,
    the beginning.
    """

    def __init__(self, byte: int = 0, line: int = 0) -> None:
        self.byte, self.line = byte, line
        self.lines: _Lines | None = None

    def now(self) -> tuple[int, int]:
        """Byte and line after the last row that was read."""
        assert self.lines is not None
        return self.lines.file.tell(), self.lines.number


def read_rows(path: Path, place: Place | None = None) -> Iterator[Row]:
    """The rows of a CSV file in UTF-8. place: where to begin. Default: at the beginning.

    Raises DataNotFoundError without the file; CorruptFileError, naming the line, for bytes that are not UTF-8 or are
    0, for quotation marks that are not closed or stand inside a field, and for a line or field without end.
    """
    # Bytes that are not UTF-8 become surrogates, so that the line they are in is known.
    with reading(path), open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = _Lines(path, file)
        if place is not None:
            place.lines = lines
            if place.byte:
                file.seek(place.byte)
                lines.number = place.line
        for line in lines:
            if '"' in line:
                yield _Quoted(lines, line).row()
            elif line and not line.isspace():
                fields = [field.strip() for field in line.split(",")]
                if len(line) > _LONGEST_FIELD:
                    lines.check_lengths(fields)
                yield Row(lines.number, fields)


class _Lines(Iterator[str]):
    """The lines of a file without their ends. `number` is the last one's, counted from 1."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file, self.number = path, file, 0

    def __next__(self) -> str:
        line = self.file.readline(_LONGEST_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) == _LONGEST_LINE:
            raise self.error("has no end within 64 MiB: this is no table")
        wrong = None if line.isascii() else _NOT_UTF8.search(line)
        if wrong:
            byte = ord(wrong[0]) - 0xDC00
            what = " (UTF-16)" if self.number == 1 and wrong.start() == 0 and byte in (0xFE, 0xFF) else ""
            raise CorruptFileError(
                f"{self.path}, line {self.number}: this is not a CSV file in UTF-8 (byte 0x{byte:02x}{what}): save "
                "it as CSV with the encoding UTF-8"
            )
        if "\0" in line:
            raise self.error(
                "holds a byte 0, so this is no text in UTF-8: save the table as CSV with the encoding UTF-8"
            )
        return line.rstrip("\r\n")

    def error(self, what: str, line: int = 0) -> CorruptFileError:
        return CorruptFileError(f"{self.path}, line {line or self.number}: {what}")

    def check_lengths(self, fields: list[str]) -> None:
        """Raise CorruptFileError for a field that is too long to be one."""
        for number, field in enumerate(fields, 1):
            if len(field) > _LONGEST_FIELD:
                raise self.error(
                    f"field {number} has {len(field):,} characters; up to {_LONGEST_FIELD:,} are read"
                )


class _Quoted:
    """Reads a row with quotation marks, which may go on over several lines.

    Python's csv module would not do: it tells neither which fields are quoted, on which a class "NA" depends, nor in
    which line a field begins; and it takes a"b for text, so that a missing quotation mark is not seen.
    """

    def __init__(self, lines: _Lines, text: str) -> None:
        self.lines, self.text, self.place = lines, text, 0
        self.first = lines.number

    def row(self) -> Row:
        fields: list[str] = []
        quoted: list[int] = []
        numbers: list[int] = []
        while True:
            self._skip_spaces()
            numbers.append(self.lines.number)
            if self.text.startswith('"', self.place):
                quoted.append(len(fields))
                fields.append(self._in_quotes(len(fields) + 1).strip())
            else:
                fields.append(self._plain(len(fields) + 1).strip())
            if self.place == len(self.text):
                break
            self.place += 1  # the comma
        self.lines.check_lengths(fields)
        several = self.lines.number > self.first
        return Row(self.first, fields, tuple(quoted), tuple(numbers) if several else ())

    def _skip_spaces(self) -> None:
        while self.text[self.place : self.place + 1] in (" ", "\t"):
            self.place += 1

    def _plain(self, number: int) -> str:
        end = self.text.find(",", self.place)
        end = len(self.text) if end < 0 else end
        field, self.place = self.text[self.place : end], end
        if '"' in field:
            raise self.lines.error(
                f"field {number} has a quotation mark inside it, {field[:40]!r}: put the whole field in quotation "
                "marks and double those inside, or remove them"
            )
        return field

    def _in_quotes(self, number: int) -> str:
        """The text of a field in quotation marks; the place moves to the comma behind it, or to the end."""
        began, parts, length = self.lines.number, [], 0
        self.place += 1
        while True:
            end = self.text.find('"', self.place)
            part = self.text[self.place :] if end < 0 else self.text[self.place : end]
            parts.append(part)
            length += len(part)
            if end >= 0 and not self.text.startswith('"', end + 1):
                self.place = end + 1
                break
            if end >= 0:
                parts.append('"')
                self.place = end + 2
                continue
            following = next(self.lines, None)
            if following is None or length > _LONGEST_FIELD:
                raise self.lines.error(
                    f"field {number} begins with a quotation mark that is not closed: close or remove it",
                    began,
                )
            parts.append("\n")
            self.text, self.place = following, 0
        self._skip_spaces()
        if self.place < len(self.text) and self.text[self.place] != ",":
            raise self.lines.error(
                f"field {number} has text behind its closing quotation mark, {self.text[self.place :][:40]!r}; "
                f"is the mark that opens it, in line {began}, closed where it should be?"
            )
        return "".join(parts)
