"""Decides whether the first line of a table holds the names of its columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from xnn.data.csv_fields import is_missing, is_number, is_whole
from xnn.data.csv_rows import Row
from xnn.errors import OptionError

__all__ = ["is_header"]

#: The name of a column, and hardly a damaged number.
_WORD = re.compile(r"[^\W\d][\w .()/%\u00b0-]*")

#: The most digits of a number that names a column.
_LONGEST_NUMBER = 18


def is_header(path: object, first: Row, rows: Sequence[Row], wanted: Sequence[str] = ()) -> tuple[bool, str]:
    """Whether the first row of a table is its header, and what the user should be told about it, or "".

    path: the file, for messages.
    first: its first row.
    rows: rows after it; the first thousand are enough.
    wanted: names that a header must have: if the first row has all of them, it is one. Default: none.

    A row without a number is a header. A row with numbers is one if they are different whole numbers that count up
    from 0 or 1, as the names that pandas gives do, or if the rows below hold fractions: 0, 1, y above 0.5, 1.5, 3.
    Raises OptionError for a row that may be either.
    """
    names = first.fields
    shown = _shown(names)
    if wanted and set(wanted) <= set(names):
        return True, (f"took line {first.line} as a header: {shown}" if any(map(is_number, names)) else "")
    rows = [row for row in rows if len(row.fields) == len(names)]
    numeric = [column for column, name in enumerate(names) if is_number(name)]
    texts = [column for column in range(len(names)) if column not in numeric]
    # A class that comes again below is no name of a column.
    again = [c for c in texts if names[c] and any(row.fields[c] == names[c] for row in rows)]
    if not numeric:
        if again:
            raise OptionError(
                f"{path}, line {first.line} ({shown}) may be a header or a row: {names[again[0]]!r} comes again in "
                "its column. --header (header=True) or --no-header (header=False) says which it is"
            )
        return True, ""
    values = [names[column] for column in numeric]
    short = all(value.isdecimal() and len(value) <= _LONGEST_NUMBER for value in values)
    can_be_names = short and len(set(values)) == len(values)
    # pandas writes its index as a first column with the name ''.
    missing = any(is_missing(names[column]) and (names[column] or column) for column in texts)
    if again or missing or not can_be_names or not rows:
        return False, ""
    start = int(values[0])
    counted = all(int(b) == int(a) + 1 for a, b in pairwise(values))
    fractions = [any(not is_whole(row.fields[column]) for row in rows) for column in numeric]
    words = all(not names[column] or _WORD.fullmatch(names[column]) for column in texts)
    as_header = f"took line {first.line} as a header: {shown} (--no-header, header=False, reads it as data)"
    if not texts:
        if counted and start < 2 and (all(fractions) or (start == 0 and len(values) > 2 and any(fractions))):
            return True, as_header
        as_data = f"took line {first.line} ({shown}) as data, not as names (--header, header=True, reads it as names)"
        return False, as_data if counted and len(values) > 1 else ""
    several = len(values) > 1 or start < 2
    if words and all(fractions) and ((counted and several) or len(texts) > 1):
        return True, as_header
    if words and counted and len(values) > 1 and start < 2:
        return True, as_header
    if any(names[column] and all(is_number(row.fields[column]) for row in rows) for column in texts):
        raise OptionError(
            f"{path}, line {first.line} ({shown}) may be a header or a damaged row: it has text above numbers. "
            "--header (header=True) or --no-header (header=False) says which it is"
        )
    return False, ""


def _shown(names: Sequence[str]) -> str:
    return ", ".join(name or "''" for name in names[:8]) + (", ..." if len(names) > 8 else "")
