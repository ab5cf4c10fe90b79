"""The line on which each table and value of a TOML text stands, which Python's tomllib does not report.

tomllib has accepted the text before, so nothing is checked here. The text is cut into tokens, with strings and
comments in one piece, so that brackets inside them do not count. The tokens are then read by the grammar of
https://toml.io/en/v1.0.0.
"""

from __future__ import annotations

import re
import tomllib
from typing import TypeAlias

__all__ = ["Path", "lines_of"]

#: The way to a value: keys of tables and positions in arrays, as in ("layers", 2, "weight_init", "type").
Path: TypeAlias = tuple[str | int, ...]

_TOKEN = re.compile(
    r'''
    (?P<string> """ (?: [^"\\] | \\. | "{1,2}(?!") )* "{3,5}   # the text may end in one or two quotes
              | \'\'\' (?: [^'] | '{1,2}(?!') )* '{3,5}
              | " (?: [^"\\] | \\. )* "
              | ' [^']* ' )
    | (?P<comment> \#[^\n]* )
    | (?P<newline> \n )
    | (?P<mark> [\[\]{}=,] )
    | (?P<bare> [^\s\[\]{}=,\#"']+ )
    ''',
    re.VERBOSE | re.DOTALL,
)


def lines_of(text: str) -> dict[Path, int]:
    """The line of each table and value in a TOML text, counted from 1.

    The line of a table is that of its header, the line of a value that of its key. An element of an array has the
    line on which it begins.

    >>> lines_of("a = 1\\n[b]\\nc = [2,\\n3]")
    {('a',): 1, ('b',): 2, ('b', 'c'): 3, ('b', 'c', 0): 3, ('b', 'c', 1): 4}
    """
    return _Reader(text).lines


class _Reader:
    """Reads the tokens one after the other, and collects the lines."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str, int]] = []
        line = 1
        for match in _TOKEN.finditer(text):
            if match.lastgroup != "comment":
                self._tokens.append((str(match.lastgroup), match[0], line))
            line += match[0].count("\n")
        self._tokens.append(("end", "", line))
        self._place = 0
        self._lengths: dict[Path, int] = {}  # the number of tables read so far in each array of tables
        self.lines: dict[Path, int] = {}
        self._read()

    def _read(self) -> None:
        table: Path = ()
        while self._after_newlines() != "":
            if self._next_is("["):
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        """Read [a.b] or [[a.b]]; returns the path of the table that begins there."""
        line, many = self._tokens[self._place][2], self._tokens[self._place + 1][1] == "["
        self._place += 1 + many
        *outer, last = self._key("]")
        self._place += many
        path: Path = ()
        for part in outer:
            path = (*path, part)
            if path in self._lengths:  # a key in an array of tables means the last table
                path = (*path, self._lengths[path] - 1)
            self.lines.setdefault(path, line)
        path = (*path, last)
        if many:
            self.lines.setdefault(path, line)
            self._lengths[path] = self._lengths.get(path, 0) + 1
            path = (*path, self._lengths[path] - 1)
        self.lines[path] = line
        return path

    def _pair(self, path: Path) -> None:
        """Read a key and its value. A dotted key makes tables."""
        line = self._tokens[self._place][2]
        for part in self._key("="):
            path = (*path, part)
            self.lines.setdefault(path, line)
        self._value(path)

    def _key(self, end: str) -> list[str]:
        """Read a key up to the mark that ends it; returns its parts."""
        parts: list[str] = []
        while not self._next_is(end):
            kind, token, _ = self._tokens[self._place]
            if kind == "string":
                parts.append(tomllib.loads(f"key = {token}")["key"])
            else:
                parts += [part for part in token.split(".") if part]
            self._place += 1
        self._place += 1
        return parts

    def _value(self, path: Path) -> None:
        if self._next_is("["):
            self._place += 1
            position = 0
            while self._after_newlines() != "]":
                self.lines[(*path, position)] = self._tokens[self._place][2]
                self._value((*path, position))
                position += 1
                self._past_comma()
            self._place += 1
        elif self._next_is("{"):
            self._place += 1
            while self._after_newlines() != "}":
                self._pair(path)
                self._past_comma()
            self._place += 1
        else:
            while self._tokens[self._place][0] in ("string", "bare"):  # a date and a time are two tokens
                self._place += 1

    def _next_is(self, mark: str) -> bool:
        kind, token, _ = self._tokens[self._place]
        return kind == "mark" and token == mark

    def _after_newlines(self) -> str:
        """Skip ends of lines; returns the next token, "" at the end of the text."""
        while self._tokens[self._place][0] == "newline":
            self._place += 1
        return self._tokens[self._place][1]

    def _past_comma(self) -> None:
        if self._after_newlines() == ",":
            self._place += 1
