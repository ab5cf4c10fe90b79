"""How a run is executed: BLAS threads, a limit that is put back, and the plan that results."""

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

# Multiplications for which a further thread pays: batch size times weights, the products of one forward pass.
# Fitted to benchmarks/results/threads-*.txt: below it two threads gain little alone and lose much beside another
# process, since each product ends with the slower of them.
_WORK_PER_THREAD = 5_000_000
#: Variables by which users tell BLAS how many threads to take, by BLAS.
THREAD_VARIABLES = {
    "openblas": ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"),
    "mkl": ("MKL_NUM_THREADS", "OMP_NUM_THREADS"),
    "blis": ("BLIS_NUM_THREADS", "OMP_NUM_THREADS"),
    "flexiblas": ("OMP_NUM_THREADS",),
}


@dataclass(frozen=True)
class Threads:
    """How many threads a matrix product may use, and why so many; None where that cannot be set."""

    count: int | None
    reason: str


@cache
def _blas() -> list[Any]:
    """threadpoolctl's handles of the BLAS libraries loaded by now; looking for them takes milliseconds."""
    import numpy as np  # noqa: F401 - loads the BLAS that is to be found
    from threadpoolctl import ThreadpoolController

    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


def blas_libraries() -> list[dict[str, Any]]:
    """What threadpoolctl says of each BLAS in the process: name, version, core, threads.

    Sorted, since threadpoolctl's order is another one in each process.
    """
    keys = ("internal_api", "version", "architecture", "num_threads")
    return sorted(({key: library.info().get(key) for key in keys} for library in _blas()), key=str)


def blas_threads() -> int | None:
    """The threads a matrix product may use now: the smallest of the BLAS libraries' limits; None if none is known."""
    return min((int(library.get_num_threads()) for library in _blas()), default=None)


def check_threads(threads: Any) -> int | str | None:
    """A positive integer, "auto", or None for the rule. Raises OptionError for anything else."""
    if threads is None or threads == "auto":
        return threads  # type: ignore[no-any-return]
    if isinstance(threads, str):
        raise OptionError(f"threads must be a positive integer, 'auto' or None, got {threads!r}")
    return check_count("threads", threads)


def choose_threads(
    asked: int | str | None,
    work: int,
    measure: Callable[[int], float] | None = None,
    on_host: bool = True,
) -> Threads:
    """The number of BLAS threads for `work` multiplications in a forward pass (batch size times weights).

    asked: a number; "auto", which takes the fastest of 1, 2, 4, ... by measure(threads) -> seconds a step, and so
    may choose otherwise next time; or None: what the environment says, else the rule

        threads = work / 5,000,000, at least 1, at most what BLAS may use now.

    on_host: whether products are the CPU's at all.
    """
    if not on_host:
        return Threads(None, "products are the device's")
    allowed = blas_threads()
    if allowed is None:
        return Threads(None, "NumPy's BLAS is one that threadpoolctl does not know")
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
        if (first := value.split(",")[0]).isdecimal() and int(first):  # BLAS passes over anything else
            return Threads(allowed, f"{name}={value}")
    rule = f"{work:,} multiplications a pass, {_WORK_PER_THREAD:,} a thread, {allowed} to be had"
    return Threads(max(1, min(allowed, work // _WORK_PER_THREAD)), f"rule: {rule}")


class _Limits:
    """The limits in force, of all threads of the process: BLAS has one number for all of them."""

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
    """Limit BLAS to `threads` inside the block, never above the limit in force; yields what holds.

    None leaves everything as it is. The limit is the process's (BLAS has no other): where blocks of several
    Python threads overlap the smallest holds, and the last to leave restores what was before the first.
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
    """All that the numbers of a fast run depend on; the same plan gives the same bits."""
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
