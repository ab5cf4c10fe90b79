"""What data-parallel workers must agree on in a step, as one small interface.

A batch may be split over workers. Whatever is reduced over the batch - a loss, a weight's gradient, BatchNorm's
statistics - is then reduced over all of them. In exact numerics each worker first learns the largest exponent of
all shards, cuts its numbers to that scale, and adds; sums of such numbers are exact, so their order and the
number of workers do not show. With one worker there is no communicator, and nothing is paid.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

__all__ = ["Communicator", "communicator", "with_communicator"]


class Communicator(Protocol):
    """Reductions over all workers; each is called by all of them, in the same order."""

    def maximum(self, x: Any) -> Any:
        """The elementwise maximum of the workers' integer arrays of one shape."""

    def total(self, x: Any) -> Any:
        """The elementwise sum of the workers' float64 arrays of one shape, in any order: no sum is rounded."""

    def count(self, rows: int) -> int:
        """The sum of the workers' numbers: rows of the whole batch, given this shard's, or rows times elements."""


_current: ContextVar[Communicator | None] = ContextVar("xnn_communicator", default=None)


def communicator() -> Communicator | None:
    """The communicator of this thread or task; None with a single worker."""
    return _current.get()


@contextmanager
def with_communicator(chosen: Communicator | None) -> Iterator[None]:
    """Reduce over the batch by this communicator inside the block."""
    token = _current.set(chosen)
    try:
        yield
    finally:
        _current.reset(token)
