"""The number of BLAS threads of a run: how it is chosen, how it is limited for a while, and the execution plan."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from xnn.backends.base import Backend
from xnn.backends.numerics import current_numerics
from xnn.errors import OptionError
from xnn.options import check_count

__all__ = [
    "THREAD_VARIABLES", "Threads", "blas_libraries", "blas_threads", "check_threads", "choose_threads",
    "execution_plan", "limit_threads",
]  # fmt: skip

# How many multiplications make one more thread worth while; the products of one forward pass are counted, batch
# size times weights. Fitted to benchmarks/results/threads-*.txt: with fewer, two threads gain little on a quiet
# machine and lose much on a busy one, since each product waits for the slower thread.
_WORK_PER_THREAD = 5_000_000
#: For each BLAS, the environment variables by which users set its number of threads.
THREAD_VARIABLES = {
    "openblas": ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"),
    "mkl": ("MKL_NUM_THREADS", "OMP_NUM_THREADS"),
    "blis": ("BLIS_NUM_THREADS", "OMP_NUM_THREADS"),
    "flexiblas": ("OMP_NUM_THREADS",),
}


@dataclass(frozen=True)
class Threads:
    """The number of threads that a matrix product may use.

    count: the number; None if it cannot be set. reason: why it is this number, for people to read.
    """

    count: int | None
    reason: str


@cache
def _blas() -> list[Any]:
    """Return threadpoolctl's handles of the loaded BLAS libraries. Cached: the search takes milliseconds."""
    import numpy as np  # noqa: F401 - loads the BLAS that the search is for
    from threadpoolctl import ThreadpoolController

    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


def blas_libraries() -> list[dict[str, Any]]:
    """Return, for each BLAS in the process, its name, version, CPU architecture and threads, as threadpoolctl says.

    The list is sorted, since threadpoolctl's order differs from process to process.
    """
    keys = ("internal_api", "version", "architecture", "num_threads")
    return sorted(({key: library.info().get(key) for key in keys} for library in _blas()), key=str)


def blas_threads() -> int | None:
    """Return how many threads a matrix product may use now: the smallest limit of all BLAS libraries.

    None if threadpoolctl knows none of them.
    """
    return min((int(library.get_num_threads()) for library in _blas()), default=None)


def check_threads(threads: Any) -> int | str | None:
    """Return `threads` if it is a positive integer, "auto" or None. Raises OptionError for anything else."""
    if threads is None or threads == "auto":
        return threads  # type: ignore[no-any-return]
    if isinstance(threads, str):
        raise OptionError(f"threads={threads!r} is not a positive integer, 'auto' or None")
    return check_count("threads", threads)


def choose_threads(
    asked: int | str | None,
    work: int,
    measure: Callable[[int], float] | None = None,
    on_host: bool = True,
) -> Threads:
    """Choose the number of BLAS threads for a run.

    asked: a number; "auto" for the fastest of 1, 2, 4, ..., which may be another one next time; or None for the
        number in the environment, or else the rule below.
    work: multiplications in a forward pass, batch size times weights.
    measure: for "auto", a function that gives the seconds of a step with a number of threads.
    on_host: whether the CPU computes the products; if not, nothing is chosen.

    The rule: threads = work / 5,000,000, at least 1, at most the limit of BLAS now.
    """
    if not on_host:
        return Threads(None, "products are the device's")
    allowed = blas_threads()
    if allowed is None:
        return Threads(None, "threadpoolctl does not know NumPy's BLAS")
    if isinstance(asked, int):
        return Threads(
            min(asked, allowed), "asked for" if asked <= allowed else f"limited to {allowed} already"
        )
    if asked == "auto" and measure is not None:
        counts = sorted({allowed, *(2**n for n in range(allowed.bit_length()))})
        times = {count: measure(count) for count in counts}
        return Threads(
            min(times, key=times.__getitem__), f"measured: fastest of {', '.join(map(str, counts))}"
        )
    for name in [name for library in _blas() for name in THREAD_VARIABLES.get(library.internal_api, ())]:
        value = os.environ.get(name, "").strip()
        if (first := value.split(",")[0]).isdecimal() and int(first):  # BLAS ignores anything else
            return Threads(allowed, f"{name}={value}")
    rule = f"{work:,} multiplications a pass, {_WORK_PER_THREAD:,} a thread, {allowed} to be had"
    return Threads(max(1, min(allowed, work // _WORK_PER_THREAD)), f"rule: {rule}")


class _Limits:
    """The limits now in force in the process. BLAS has one number for all Python threads, so they share this object.

    asked: the limits of all open `limit_threads` blocks. before: each library's number before the first of them.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked: list[int] = []
        self.before: list[int] = []

    def enter(self, threads: int) -> int:
        with self.lock:
            if not self.asked:
                self.before = [library.get_num_threads() for library in _blas()]
            self.asked.append(threads)
            return self._apply()

    def leave(self, threads: int) -> None:
        with self.lock:
            self.asked.remove(threads)
            self._apply()

    def _apply(self) -> int:
        for library, before in zip(_blas(), self.before, strict=True):
            library.set_num_threads(min([before, *self.asked]))
        return min([*self.before, *self.asked], default=1)


_limits = _Limits()


@contextmanager
def limit_threads(threads: int | None) -> Iterator[int | None]:
    """Limit BLAS to a number of threads inside a `with` block; never above the limit already in force.

    threads: a positive integer, or None to change nothing. The block's value is the limit in force.

    BLAS has one limit for the whole process. Where blocks of several Python threads overlap, the smallest limit
    holds, and the last block to end restores the limit that was there before the first.
    """
    if threads is None:
        yield blas_threads()
        return
    threads = check_count("threads", threads)
    holds = _limits.enter(threads)
    try:
        yield holds
    finally:
        _limits.leave(threads)


def execution_plan(
    lib: Backend, dtype: str, batch_size: int, threads: Threads, kernels: str
) -> dict[str, Any]:
    """Return everything that decides the bits of a run in fast numerics. The same plan gives the same bits.

    lib: the backend. dtype: the model's, such as "float32". threads: from `choose_threads`. kernels: the name of the
    table of kernels.
    """
    blas = [f"{b['internal_api']} {b['version']} {b['architecture']}" for b in blas_libraries()]
    return {
        "numerics": current_numerics(),
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
