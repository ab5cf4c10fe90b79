"""How a run is executed: BLAS threads, a limit that is put back, and the plan that results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xnn.backends.base import Backend
from xnn.backends.registry import numerics
from xnn.options import check_count

__all__ = ["blas_libraries", "blas_threads", "execution_plan", "limit_threads"]


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
    threads = check_count("threads", threads)
    from threadpoolctl import threadpool_limits

    allowed = min(threads, blas_threads())
    with threadpool_limits(limits=allowed, user_api="blas"):
        yield allowed


def execution_plan(lib: Backend, dtype: str, batch_size: int, threads: int, kernels: str) -> dict[str, Any]:
    """All that the numbers of a fast run depend on; the same plan gives the same bits."""
    blas = [f"{b['internal_api']} {b['version']} {b['architecture']}" for b in blas_libraries()]
    return {
        "numerics": numerics(),
        "backend": lib.name,
        **lib.describe(),
        "blas": ", ".join(blas),
        "threads": threads,
        "kernels": kernels,
        "fused": kernels != "ops",
        "dtype": dtype,
        "batch_size": batch_size,
    }
