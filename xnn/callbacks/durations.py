"""Durations in words, such as 30s, 10min, 2h or 3h50m."""

from __future__ import annotations

import re

__all__ = ["seconds_of"]

#: The units as regular expressions, in the order in which they are written, with their lengths in seconds.
_UNITS = {"d": 86400, "h": 3600, "m(?:in)?": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:(\d{{1,9}})\s*{unit})?\s*" for unit in _UNITS))


def seconds_of(text: object) -> int | None:
    """The seconds of a duration such as "30s", "10min", "2h", "3h50m" or "1d12h"; None for anything else, and for 0.

    The units are d, h, min (or m) and s, each at most once, the longest first.

        >>> seconds_of("3h50m"), seconds_of("10min"), seconds_of("10"), seconds_of("5min 1h")
        (13800, 600, None, None)
    """
    found = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        return None
    seconds = sum(int(many or 0) * each for many, each in zip(found.groups(), _UNITS.values(), strict=True))
    return seconds or None
