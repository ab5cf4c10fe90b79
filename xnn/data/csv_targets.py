"""The fields of a target column, of which a large table keeps each different one once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np

__all__ = ["CodedFields", "NumberFields", "first_rows", "mapped_fields"]


class _Fields(Sequence[str]):
    """The fields of one column, row by row, as a sequence of texts."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, row: int) -> str:
        raise NotImplementedError

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> list[str]: ...

    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self.text(number) for number in range(*row.indices(len(self)))]
        return self.text(row)


class CodedFields(_Fields):
    """Fields of which few are different. codes: (rows,), the number of each row's field in `found`.

    found: the different fields in the order in which they come, with the first row of each.
    """

    def __init__(self, codes: np.ndarray, found: dict[str, int]) -> None:
        super().__init__(codes)
        self.found, self.texts = found, list(found)

    def text(self, row: int) -> str:
        return self.texts[int(self.rows[row])]


class NumberFields(_Fields):
    """Fields that are all numbers, and more different ones than classes can be. numbers: float64 (rows,)."""

    @property
    def numbers(self) -> np.ndarray:
        return self.rows

    def text(self, row: int) -> str:
        return repr(float(self.rows[row]))


def first_rows(fields: Sequence[str]) -> dict[str, int]:
    """Each different field with the first row that has it, in the order in which they come."""
    if isinstance(fields, CodedFields):
        return fields.found
    found: dict[str, int] = {}
    for row, field in enumerate(fields):
        found.setdefault(field, row)
    return found


def mapped_fields(fields: Sequence[str], function: Callable[[str], Any]) -> np.ndarray:
    """An array of a function of each field."""
    if isinstance(fields, CodedFields):
        each: np.ndarray = np.asarray([function(text) for text in fields.texts])
        return np.asarray(each[fields.rows])
    return np.asarray([function(field) for field in fields])
