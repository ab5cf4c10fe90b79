"""Fields of a CSV file: which are numbers, which are missing, and which only look like numbers."""

from __future__ import annotations

import math
import re

__all__ = [
    "MISSING",
    "as_number",
    "is_code",
    "is_date",
    "is_missing",
    "is_number",
    "is_whole",
    "like_number",
    "loses_digits",
]

#: Fields that stand for a missing value, in lower case.
MISSING = frozenset({"", "?", "na", "n/a", "#n/a", "<na>", "nan", "+nan", "-nan", "null"})

#: Largest magnitude up to which float64 has all integers.
_EXACT = 2**53

_WHOLE = re.compile(r"[+-]?[0-9]+")
_DATE = re.compile(r"[0-9]{1,4}[-/.][0-9]{1,2}[-/.][0-9]{1,4}.*", re.DOTALL)
_LIKE = re.compile(
    r"""[+\-\u2212]? \s* ([$\u20ac\u00a3\u00a5] | [a-z]{3}\s)? \s*  # $ or USD
    [0-9] [0-9.,'_\s]* (e[+-]?[0-9]+)? \s*  # 1,234.50
    ([%$\u20ac\u00a3\u00a5\u00b0] | k | m | b | bn | mio
    | eur | usd | gbp | chf | jpy | kg | g | mg | lbs? | km | cm | mm
    | ms | s | min | h | hrs? | l | ml | [kmgt]b | (?<=\s) [^\W\d_]{1,12} [23\u00b2\u00b3]?)?  # 250k, 12 people
    | 0x[0-9a-f]+""",
    re.VERBOSE | re.IGNORECASE,
)


def as_number(field: str) -> float:
    """The field as a number; NaN if it is not one. Python's 2024_01 and digits of other scripts are none."""
    try:
        number = float(field)
    except ValueError:
        return math.nan
    return number if "_" not in field and field.isascii() else math.nan


def is_number(field: str) -> bool:
    """Whether the field is a number; missing values are none."""
    return not math.isnan(as_number(field))


def is_whole(field: str) -> bool:
    """Whether the field is an integer without point or exponent."""
    return _WHOLE.fullmatch(field) is not None


def is_missing(field: str) -> bool:
    """Whether the field stands for a missing value."""
    return field.lower() in MISSING


def like_number(field: str) -> bool:
    """Whether a text looks like a number that is written in another way: 1,234, 5 %, $3, 250k, 3 km, 0x1F, a date."""
    return _LIKE.fullmatch(field) is not None or is_date(field)


def is_date(field: str) -> bool:
    """Whether a text begins like a date: 2024-01-31, 31.1.2024, 1/31/24, with or without a time."""
    return _DATE.fullmatch(field) is not None


def loses_digits(field: str) -> bool:
    """Whether the field is an integer that float64 cannot hold: one beyond 2^53 whose last digits would change."""
    if not is_whole(field):
        return False
    number = abs(float(field))
    digits = field.lstrip("+-").lstrip("0")  # Python reads no integer of more than 4300 digits
    return number >= _EXACT and math.isfinite(number) and int(number) != int(digits)


def is_code(field: str) -> bool:
    """Whether an integer is a name and no number: it has leading zeros, or digits that float64 cannot hold."""
    digits = field.lstrip("+-")
    return is_whole(field) and ((len(digits) > 1 and digits[0] == "0") or loses_digits(field))
