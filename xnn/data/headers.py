"""Decides whether the first line of a table holds the names of its columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from xnn.data.csv_fields import is_missing, is_number, is_whole
from xnn.data.csv_rows import Row
from xnn.errors import OptionError

__all__ = ["is_header"]


def is_header(path: object, first: Row, rows: Sequence[Row], wanted: Sequence[str] = ()) -> tuple[bool, str]:
    """Whether the first row of a table is its header, and what the user should be told about it, or "".

    path: the file, for messages.
    first: its first row.
    rows: rows after it; the first thousand are enough.
    wanted: names that a header must have: if the first row has all of them, it is one. Default: none.

    A row without a number is a header. A row with numbers is one if they can be names, and the rows below are of
    another kind: 0, 1, target above 0.5, 1.5, 3. Numbers can be names if they are different
    whole numbers without a sign. Raises OptionError for a row that may be either.
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
    can_be_names = all(map(str.isdecimal, values)) and len(set(values)) == len(values)
    missing = any(
        is_missing(names[c]) and (names[c] or c) for c in texts
    )  # pandas' index has the name '', in front
    if again or missing or not can_be_names or not rows:
        return False, ""
    unlike = all(any(not is_whole(row.fields[c]) for row in rows) for c in numeric)
    counted = all(int(b) == int(a) + 1 for a, b in pairwise(values))
    counted = counted and (len(values) > 1 or (unlike and int(values[0]) < 2))
    if not texts:
        if counted and unlike and int(values[0]) in (0, 1):
            return (
                True,
                f"took line {first.line} as a header: {shown} (--no-header, header=False, reads it as data)",
            )
        return False, (
            f"took line {first.line} ({shown}) as data, not as a header (--header, header=True, reads it as names)"
            if counted
            else ""
        )
    if counted or (unlike and len(texts) > 1):
        return (
            True,
            f"took line {first.line} as a header: {shown} (--no-header, header=False, reads it as data)",
        )
    if any(names[c] and all(is_number(row.fields[c]) for row in rows) for c in texts):
        raise OptionError(
            f"{path}, line {first.line} ({shown}) may be a header or a damaged row: it has text above numbers. "
            "--header (header=True) or --no-header (header=False) says which it is"
        )
    return False, ""


def _shown(names: Sequence[str]) -> str:
    return ", ".join(name or "''" for name in names[:8]) + (", ..." if len(names) > 8 else "")
