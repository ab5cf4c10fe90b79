"""Communicator: how data-parallel workers combine the values that a step reduces over its batch.

When a batch is split over workers, each worker holds a shard: some of its rows. A sum over the batch - a loss, a
weight's gradient, BatchNorm's statistics - then needs the rows of all workers. In exact numerics the workers first
exchange the largest exponent of their shards, round their numbers to that common scale, and exchange partial sums.
Sums of numbers rounded like this have no rounding error, so the result does not depend on the order of the sum or on
the number of workers. A single worker has no communicator, and no cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

__all__ = ["Communicator", "communicator", "over_rows", "with_communicator"]


class Communicator(Protocol):
    """Reductions over all workers. Every worker makes the same calls in the same order."""

    def maximum(self, x: Any) -> Any:
        """Return the elementwise maximum of the workers' integer arrays, all of one shape."""

    def total(self, x: Any) -> Any:
        """Return the elementwise sum of the workers' float64 arrays, all of one shape.

        The order of the sum is free, since no sum of these numbers is rounded.
        """

    def count(self, rows: int) -> int:
        """Return the sum of the workers' integers, such as the rows of the whole batch from those of each shard."""


#: See `Boundary.over_rows`. A program sets it for the backward calls that it names.
over_rows: ContextVar[bool] = ContextVar("xnn_over_rows", default=False)
_current: ContextVar[Communicator | None] = ContextVar("xnn_communicator", default=None)


def communicator() -> Communicator | None:
    """Return the communicator of this thread or task, or None if there is a single worker."""
    return _current.get()


@contextmanager
def with_communicator(chosen: Communicator | None) -> Iterator[None]:
    """Reduce over the batch with this communicator inside the block; None means a single worker."""
    token = _current.set(chosen)
    try:
        yield
    finally:
        _current.reset(token)
