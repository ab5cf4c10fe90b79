"""BLAS threads: how many there are, and a limit that is put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xnn.errors import OptionError

__all__ = ["blas_libraries", "blas_threads", "limit_threads"]


def blas_libraries() -> list[dict[str, Any]]:
    """What threadpoolctl says of each BLAS in the process: name, version, core, threads."""
    import numpy as np  # noqa: F401 - loads the BLAS that is to be found
    from threadpoolctl import threadpool_info

    keys = ("internal_api", "version", "architecture", "num_threads")
    return [{key: info.get(key) for key in keys} for info in threadpool_info() if info["user_api"] == "blas"]


def blas_threads() -> int:
    """The number of threads a matrix product may use now: the smallest of the BLAS libraries' limits."""
    return min((int(library["num_threads"]) for library in blas_libraries()), default=1)


@contextmanager
def limit_threads(threads: int | None) -> Iterator[int]:
    """Limit BLAS to `threads` inside the block, never above the limit in force; yields what holds.

    None leaves everything as it is. The limit is the process's (BLAS has no other) and is restored.
    """
    if threads is None:
        yield blas_threads()
        return
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise OptionError(f"threads must be a positive integer, got {threads!r}")
    from threadpoolctl import threadpool_limits

    allowed = min(threads, blas_threads())
    with threadpool_limits(limits=allowed, user_api="blas"):
        yield allowed
