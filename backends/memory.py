"""Tells how much memory this process has used."""

from __future__ import annotations

import sys

__all__ = ["peak_resident_bytes"]


def peak_resident_bytes() -> int:
    """Return the largest resident memory of this process so far, in bytes; 0 on Windows, which does not report it."""
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS reports bytes, Linux kibibytes
