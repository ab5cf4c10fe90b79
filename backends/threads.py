"""The number of threads of a run: how it is chosen, how it is limited for a while, and the execution plan.

There are threads of BLAS, which share a matrix product, and threads of xnn's own, which share the images of a batch
or the rows of a table (`kernels/workers.py`). A limit holds for both. Where xnn's own share most of a step, BLAS is
limited to one thread, since its idle threads keep cores busy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

from xnn.backends.base import Backend
from xnn.backends.numerics import current_numerics
from xnn.errors import OptionError
from xnn.options import check_count, shown

__all__ = [
    "THREAD_VARIABLES", "HeldLimits", "Threads", "blas_libraries", "blas_threads", "check_threads", "choose_threads",
    "execution_plan", "limit_threads", "own_threads", "threads_of_rank", "use_threads",
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


def own_threads() -> int:
    """Return how many threads of its own, beside those of BLAS, xnn may use now.

    It is the number that `limit_threads` was given, and without a limit as many as BLAS may use.
    """
    return _limits.own()


def check_threads(threads: Any) -> int | str | None:
    """Return `threads` if it is a positive integer, "auto" or None. Raises OptionError for anything else."""
    if threads is None or threads == "auto":
        return threads  # type: ignore[no-any-return]
    if isinstance(threads, str):
        raise OptionError(f"threads={shown(threads)} is not a positive integer, 'auto' or None")
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


def _set_num_threads(library: Any, threads: int) -> None:
    """Set the number of threads of one of threadpoolctl's libraries.

    From 3.8 on, threadpoolctl lets only the first Python thread that sets a number set it again, and does nothing
    in all others. `_Limits` has a lock and a rule of its own, so each setting begins and ends without that thread.
    """
    release = getattr(library, "clear_controlling_thread", lambda force: None)
    release(force=True)
    library.set_num_threads(threads)
    release(force=True)


class _Limits:
    """The limits now in force in the process. BLAS has one number for all Python threads, so they share this object.

    asked: the limits of all open `limit_threads` blocks, and that of `use_threads`. products: the lower ones of these
    blocks for matrix products alone. before: each BLAS library's number before the first of them. changed: whether a
    library has another number now. chosen: the limit of `use_threads`, None if there is none.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked: list[int] = []
        self.products: list[int] = []
        self.before: list[int] = []
        self.changed = False
        self.chosen: int | None = None

    def own(self) -> int:
        with self.lock:
            before = self.before if self.asked or self.products else [blas_threads() or 1]
            return min([*before, *self.asked], default=1)

    def enter(self, threads: int | None, products: int | None) -> int:
        """Add limits. Returns how many threads BLAS has now."""
        with self.lock:
            self._add(threads, products)
            return self._apply()

    def choose(self, threads: int | None) -> None:
        """Replace the limit of `use_threads`."""
        with self.lock:
            if threads == self.chosen:
                return
            self._add(threads)
            if self.chosen is not None:
                self.asked.remove(self.chosen)
            self.chosen = threads
            self._apply()

    def _add(self, threads: int | None, products: int | None = None) -> None:
        if not self.asked and not self.products:
            self.before = [library.get_num_threads() for library in _blas()]
        self.asked += [] if threads is None else [threads]
        self.products += [] if products is None else [products]

    def leave(self, threads: int | None, products: int | None) -> None:
        """Remove limits."""
        with self.lock:
            if threads is not None:
                self.asked.remove(threads)
            if products is not None:
                self.products.remove(products)
            self._apply()

    def _apply(self) -> int:
        least = min([*self.asked, *self.products], default=None)
        wanted = [before if least is None else min(before, least) for before in self.before]
        if self.changed or wanted != self.before:
            for library, threads in zip(_blas(), wanted, strict=True):
                if library.get_num_threads() != threads:
                    _set_num_threads(library, threads)
            self.changed = wanted != self.before
        return min(wanted, default=1 if least is None else least)


_limits = _Limits()


@contextmanager
def limit_threads(threads: int | None, products: int | None = None) -> Iterator[int | None]:
    """Limit the threads of matrix products (BLAS) inside a `with` block. It is also called `xnn.threads`.

    threads: a positive integer, or None to change nothing. The block's value is the limit in force, which is never
        above the limit that was in force before; None if no BLAS is known.
    products: a lower limit for matrix products alone, where threads of xnn's own share other work; default None.

    For a loop that you write yourself. A Trainer chooses its own number. Small networks are fastest with one thread,
    above all while other programs are busy: a second thread pays from about five million multiplications of a
    forward pass (batch size times weights). Raises OptionError for any other number.

    BLAS has one limit for the whole process. Where blocks of several Python threads overlap, the smallest limit
    holds, and the last block to end restores the limit that was there before the first.

        >>> import xnn
        >>> with xnn.threads(1) as limit:
        ...     print(limit)
        1
    """
    if threads is None and products is None:
        yield blas_threads()
        return
    threads = None if threads is None else check_count("threads", threads)
    products = None if products is None else check_count("products", products)
    holds = _limits.enter(threads, products)
    try:
        yield holds
    finally:
        _limits.leave(threads, products)


class HeldLimits:
    """Limits of `limit_threads` that last from one block to the next, where nothing else computes between them.

    To set a limit and take it back takes about as long as a step of a small network.
    """

    def __init__(self) -> None:
        self._held = ExitStack()
        self._asked: tuple[int | None, int | None] = None, None

    def limit(self, threads: int | None, products: int | None = None) -> AbstractContextManager[None]:
        """As `limit_threads`, but what is limited stays so until another limit is asked for, or `end`."""
        if (threads, products) != self._asked:
            self.end()
            self._held.enter_context(limit_threads(threads, products))
            self._asked = threads, products
        return nullcontext()

    def end(self) -> None:
        """Restore the limit that was there before the first block."""
        self._held.close()
        self._asked = None, None


def use_threads(threads: int | None) -> None:
    """Limit the threads of matrix products (BLAS) for the whole process. It is also called `xnn.use_threads`.

    threads: a positive integer; or None to go back to the limit that was in force before the first call.

    `with xnn.threads(...)` blocks and Trainers may use fewer threads, but not more. Raises OptionError for any other
    number.

        >>> import xnn
        >>> xnn.use_threads(1)
        >>> xnn.use_threads(None)
    """
    _limits.choose(None if threads is None else check_count("threads", threads))


def threads_of_rank(ranks: int) -> int:
    """How many threads a process may use that shares this machine with others: its cores divided by the ranks.

    ranks: how many processes of a training run here. Where the launcher has given each its own cores, all of those.
    """
    cores = os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return max(1, bound if bound < cores else cores // ranks)


def execution_plan(
    lib: Backend, dtype: str, batch_size: int, threads: Threads, kernels: str
) -> dict[str, Any]:
    """Return everything that decides the bits of a run in fast numerics. The same plan gives the same bits.

    lib: the backend. dtype: the model's, such as "float32". threads: from `choose_threads`. kernels: the name of the
    table of kernels.
    """
    host = [f"{b['internal_api']} {b['version']} {b['architecture']}" for b in blas_libraries()]
    return {
        "numerics": current_numerics(),
        "backend": lib.address,
        **lib.describe(),
        "blas": lib.blas() or ", ".join(host),
        "threads": threads.count,
        "threads_because": threads.reason,
        "kernels": kernels,
        "fused": kernels != "ops",
        "dtype": dtype,
        "batch_size": batch_size,
    }
