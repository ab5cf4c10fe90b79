"""How a run is executed: BLAS threads, a limit that is put back, and the plan that results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from xnn.backends.base import Backend
from xnn.backends.registry import numerics
from xnn.errors import OptionError
from xnn.options import check_count

__all__ = [
    "Threads", "blas_libraries", "blas_threads", "check_threads", "choose_threads", "execution_plan", "limit_threads",
]  # fmt: skip

# Multiplications for which a further thread pays: batch size times weights, the products of one forward pass.
# Fitted to benchmarks/results/threads-*.txt: below it two threads gain little alone and lose much beside another
# process, since each product ends with the slower of them.
_WORK_PER_THREAD = 5_000_000
#: Variables by which users tell BLAS how many threads to take.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip


@dataclass(frozen=True)
class Threads:
    """How many threads a matrix product may use, and why so many."""

    count: int
    reason: str


def blas_libraries() -> list[dict[str, Any]]:
    """What threadpoolctl says of each BLAS in the process: name, version, core, threads."""
    import numpy as np  # noqa: F401 - loads the BLAS that is to be found
    from threadpoolctl import threadpool_info

    keys = ("internal_api", "version", "architecture", "num_threads")
    return [{key: info.get(key) for key in keys} for info in threadpool_info() if info["user_api"] == "blas"]


def blas_threads() -> int:
    """The number of threads a matrix product may use now: the smallest of the BLAS libraries' limits."""
    return min((int(library["num_threads"]) for library in blas_libraries()), default=1)


def check_threads(threads: Any) -> int | str | None:
    """A positive integer, "auto", or None for the rule. Raises OptionError for anything else."""
    if threads is None or threads == "auto":
        return threads  # type: ignore[no-any-return]
    if isinstance(threads, str):
        raise OptionError(f"threads must be a positive integer, 'auto' or None, got {threads!r}")
    return check_count("threads", threads)


def choose_threads(
    asked: int | str | None, work: int, measure: Callable[[int], float] | None = None
) -> Threads:
    """The number of BLAS threads for `work` multiplications a step (batch size times weights).

    asked: a number; "auto", which takes the fastest of 1, 2, 4, ... by measure(threads) -> seconds a step, and so
    may choose otherwise next time; or None: what the environment says, else the rule

        threads = work / 5,000,000, at least 1, at most what BLAS may use now.
    """
    allowed = blas_threads()
    if isinstance(asked, int):
        return Threads(
            min(asked, allowed), "asked for" if asked <= allowed else f"limited to {allowed} already"
        )
    if asked == "auto" and measure is not None:
        counts = sorted({allowed, *(2**n for n in range(allowed.bit_length()) if 2**n <= allowed)})
        times = {count: measure(count) for count in counts}
        told = ", ".join(f"{count}: {1e3 * seconds:.3g} ms" for count, seconds in times.items())
        return Threads(min(times, key=times.__getitem__), f"measured ({told} a step)")
    for name in THREAD_VARIABLES:
        if os.environ.get(name):
            return Threads(allowed, f"{name}={os.environ[name]}")
    rule = f"{work:,} multiplications a pass, {_WORK_PER_THREAD:,} a thread, {allowed} to be had"
    return Threads(max(1, min(allowed, work // _WORK_PER_THREAD)), f"rule: {rule}")


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


def execution_plan(
    lib: Backend, dtype: str, batch_size: int, threads: Threads, kernels: str
) -> dict[str, Any]:
    """All that the numbers of a fast run depend on; the same plan gives the same bits."""
    blas = [f"{b['internal_api']} {b['version']} {b['architecture']}" for b in blas_libraries()]
    return {
        "numerics": numerics(),
        "backend": lib.name,
        **lib.describe(),
        "blas": ", ".join(blas),
        "threads": threads.count,
        "threads_because": threads.reason,
        "kernels": kernels,
        "fused": kernels != "ops",
        "dtype": dtype,
        "batch_size": batch_size,
    }
