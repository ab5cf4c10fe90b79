"""Tells how much memory this process has used, and how much is free."""

from __future__ import annotations

import os
import sys

from xnn.errors import OptionError, XnnError

__all__ = ["check_memory", "free_memory", "peak_resident_bytes"]

_SMALL = 2**26  # bytes: less is not looked at, so that small arrays cost no time
_UNKNOWN = 2**45  # bytes: more than any machine has, where the system does not say


def free_memory() -> int:
    """The bytes of memory that are free.

    On Linux they are what the kernel calls available, and at most what the container may use. On other systems they
    are all of the machine's memory.
    """
    found = []
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found += [int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")]
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            found += [int(number) for number in file.read().split() if number.isdecimal()]
    except OSError:
        pass
    if not found and hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=_UNKNOWN)


def check_memory(what: str, size: int, advice: str, kind: type[XnnError] = OptionError) -> None:
    """Raise an error if an array is larger than the memory that is free.

    what: the array, for the message.
    size: its bytes.
    advice: what the user should do.
    kind: the class of the error. Default OptionError.
    """
    if size > _SMALL and size > (free := free_memory()):
        raise kind(
            f"{what} is too large for memory, of which {_gigabytes(free)} are free and {_gigabytes(size)} are "
            f"needed: {advice}"
        ) from MemoryError(size)  # which gives commands their exit code


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size < 2**60 else "over a billion GiB"


def peak_resident_bytes() -> int:
    """Return the largest resident memory of this process so far, in bytes; 0 on Windows, which does not report it."""
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS reports bytes, Linux kibibytes
