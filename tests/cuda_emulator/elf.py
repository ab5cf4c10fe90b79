"""Reads the symbol tables of shared libraries for x86-64 Linux (ELF, 64 bits, little-endian)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Symbol", "functions", "undefined"]

_SYMBOL_TABLE, _DYNAMIC_SYMBOLS = 2, 11  # types of sections
_FUNCTION = 2  # a type of symbols


@dataclass(frozen=True)
class Symbol:
    """A function: its name, its offset from where the library is loaded, and its size in bytes."""

    name: str
    offset: int
    size: int


def functions(path: Path) -> list[Symbol]:
    """The functions that a library defines, also those that are local to it."""
    return [
        symbol for symbol, kind, section in _symbols(path, _SYMBOL_TABLE) if kind == _FUNCTION and section
    ]


def undefined(path: Path) -> set[str]:
    """The names that a library takes from others."""
    return {symbol.name for symbol, _, section in _symbols(path, _DYNAMIC_SYMBOLS) if not section}


def _symbols(path: Path, table: int) -> Iterator[tuple[Symbol, int, int]]:
    """Each symbol of the tables of a type, its own type, and the section that defines it, 0 for none."""
    data = path.read_bytes()
    (start,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    # name, type, flags, address, offset, size, link, ...
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, start + i * size) for i in range(count)]
    for _, kind, _, _, offset, length, link, *_ in sections:
        if kind != table:
            continue
        names = sections[link][4]
        for at in range(offset, offset + length, 24):
            name, info, _, section, value, extent = struct.unpack_from("<IBBHQQ", data, at)
            begin = names + name
            text = data[begin : data.index(b"\0", begin)].decode("latin1")
            yield Symbol(text, value, extent), info & 15, section
