"""SharedRows: the namespace of fast numerics while ranks share a batch, whose sums are those of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xnn.backends.communicator import communicator
from xnn.ops.boundary import SharedBatch
from xnn.ops.sums import pairwise_sum

__all__ = ["SharedRows"]


class SharedRows(SharedBatch):
    """A backend's namespace in fast numerics, in which sums over axis 0 are those of all workers.

    lib: the backend, with its namespace `fast`. The workers are those of `communicator()`; without one, sums are
    those of this process.
    """

    def __init__(self, lib: Any) -> None:
        self.lib, self.base = lib, lib.fast

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def __repr__(self) -> str:
        return f"<shared namespace of {self.lib.name}>"

    def batch_sum(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        own, shared = pairwise_sum(self.base, x, axis=axis, keepdims=keepdims), communicator()
        axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
        return own if shared is None or all(a % x.ndim for a in axes) else shared.total(own)

    def batch_sums(self, terms: Sequence[Any], axis: Any) -> list[Any]:
        own = [pairwise_sum(self.base, x, axis=axis, keepdims=True) for x in terms]
        shared = communicator()
        if shared is None:
            return own
        sums = shared.total(self.base.stack(own))
        return [sums[n, ...] for n in range(len(own))]

    def batch_largest(self, sizes: Any) -> Any:
        shared = communicator()
        if shared is None:
            return sizes
        integers = f"int{8 * sizes.dtype.itemsize}"  # in the order of the numbers; NaN is the largest
        return self.lib.bits(shared.maximum(self.lib.bits(sizes, integers)), str(sizes.dtype))

    def batch_count(self, rows: int) -> int:
        shared = communicator()
        return rows if shared is None else shared.count(rows)
