"""On which line of a TOML text each table and value stands: tomllib reads the values and does not tell.

The text is one that tomllib has taken, so nothing is checked here: it is cut into tokens (strings and comments whole,
so that no bracket inside them counts), and the tokens are followed as the grammar has them. https://toml.io/en/v1.0.0
"""

from __future__ import annotations

import re
import tomllib
from typing import TypeAlias

__all__ = ["Path", "lines_of"]

#: From the top: keys of tables and positions in arrays, ("layers", 2, "weight_init", "type").
Path: TypeAlias = tuple[str | int, ...]

_TOKEN = re.compile(
    r'''
    (?P<string> """ (?: [^"\\] | \\. | "{1,2}(?!") )* "{3,5}   # one or two quotes may stand before the last three
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
    """Line numbers, from 1: a table's is its header's, a value's its key's, an array's element's its own first."""
    return _Reader(text).lines


class _Reader:
    """Follows the tokens; `lines` is what it found."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str, int]] = []
        line = 1
        for match in _TOKEN.finditer(text):
            if match.lastgroup != "comment":
                self._tokens.append((str(match.lastgroup), match[0], line))
            line += match[0].count("\n")
        self._tokens.append(("end", "", line))
        self._place = 0
        self._lengths: dict[Path, int] = {}  # of arrays of tables, so far
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
        """[a.b] or [[a.b]]: the path of the table that it begins."""
        line, many = self._tokens[self._place][2], self._tokens[self._place + 1][1] == "["
        self._place += 1 + many
        *outer, last = self._key("]")
        self._place += many
        path: Path = ()
        for part in outer:
            path = (*path, part)
            if path in self._lengths:  # the table that was begun last
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
        """A key and its value; a dotted key begins tables of its own."""
        line = self._tokens[self._place][2]
        for part in self._key("="):
            path = (*path, part)
            self.lines.setdefault(path, line)
        self._value(path)

    def _key(self, end: str) -> list[str]:
        """The parts of a key, and past the mark that ends it."""
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
            while self._tokens[self._place][0] in ("string", "bare"):  # a date and its time are two
                self._place += 1

    def _next_is(self, mark: str) -> bool:
        kind, token, _ = self._tokens[self._place]
        return kind == "mark" and token == mark

    def _after_newlines(self) -> str:
        """Past the ends of lines; the token there, "" at the text's end."""
        while self._tokens[self._place][0] == "newline":
            self._place += 1
        return self._tokens[self._place][1]

    def _past_comma(self) -> None:
        if self._after_newlines() == ",":
            self._place += 1
