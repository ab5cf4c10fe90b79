"""Tells how much memory this process has used, and how much is free."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from xnn.errors import OptionError, XnnError

__all__ = ["check_memory", "explained", "free_memory", "peak_resident_bytes"]

_SMALL = 2**26  # bytes: less is not looked at, so that small arrays cost no time
_UNKNOWN = 2**45  # bytes: more than any machine has, where the system does not say


def free_memory() -> int:
    """The bytes of memory that this process can still take.

    On Linux they are what the kernel calls available, at most what the container (cgroup) and the limits of the
    process (ulimit -v, -d) leave. On other systems they are all of the machine's memory, or what its limits leave.
    """
    found = [*_available(), *_left_by_cgroups(), *_left_by_limits()]
    if not found and hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(found, default=_UNKNOWN))


def _words(path: str) -> list[list[str]]:
    """The words of each line of a file of the kernel; none if it cannot be read."""
    try:
        with open(path, encoding="ascii") as file:
            return [line.split() for line in file]
    except (OSError, ValueError):
        return []


def _available() -> list[int]:
    return [int(line[1]) * 1024 for line in _words("/proc/meminfo") if line[:1] == ["MemAvailable:"]]


#: Where the limit, what is used, and the name of the part of it that can be dropped stand in a cgroup, by version.
_CGROUPS = (
    ("", "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "memory",
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def _left_by_cgroups() -> list[int]:
    """What the process's cgroup and those above it leave. In a container its own one is at the top."""
    found = []
    groups = [":".join(line).split(":", 2) for line in _words("/proc/self/cgroup")]
    for controller, top, limit, usage, dropped in _CGROUPS:
        places = {path.rstrip("/") for _, names, path in groups if controller in names.split(",")} | {""}
        while places:
            place = places.pop()
            if place:
                places.add(place.rpartition("/")[0])
            allowed, used = _words(f"{top}{place}/{limit}"), _words(f"{top}{place}/{usage}")
            if allowed and allowed[0][0].isdecimal():
                cached = [int(n) for name, n in _words(f"{top}{place}/memory.stat") if name == dropped]
                found.append(int(allowed[0][0]) - (int(used[0][0]) if used else 0) + sum(cached))
    return found


def _left_by_limits() -> list[int]:
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows
        return []
    pages, found = _words("/proc/self/statm"), []
    for kind, column in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            found.append(limit - (int(pages[0][column]) * resource.getpagesize() if pages else 0))
    return found


@contextmanager
def explained(what: str, advice: str, kind: type[XnnError]) -> Iterator[None]:
    """A `with` block in which a MemoryError becomes an error that says how much memory is free.

    what: what was to be in memory. advice, kind: as in `check_memory`.
    """
    try:
        yield
    except MemoryError as error:
        if isinstance(error, XnnError):
            raise
        wanted = f" ({error})" if str(error) else ""
        free = f"{free_memory() / 2**20:,.0f} MiB"
        raise kind(f"{what} does not fit into memory{wanted}, of which {free} are free: {advice}") from error


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
    # On Linux getrusage begins with the memory of the process that started this one.
    for line in _words("/proc/self/status"):
        if line[:1] == ["VmHWM:"]:
            return int(line[1]) * 1024
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS reports bytes, Linux kibibytes
