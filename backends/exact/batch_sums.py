"""Sums over a batch that workers share, in the two turns between which they exchange numbers.

    largest    the largest exponent fields of this worker's rows; the workers take the maximum
    partial    what this worker's rows add, cut to slices on that common scale; the workers add it up

`namespace.py` exchanges after each turn. `kernels/shared_sums.py` takes the turns of many sums together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xnn.backends.exact.slices import exponent, slice_one, sum_bits
from xnn.ops.indexing import scatter_add

__all__ = ["RowSum", "ScatteredSum"]


@dataclass(frozen=True)
class RowSum:
    """The sum of x over some axes, of which axis 0 is the batch.

    x: float64. axes: non-negative. terms: how many numbers the workers add up for each sum.
    """

    lib: Any
    x: Any
    axes: tuple[int, ...]
    terms: int

    def largest(self) -> Any:
        """The exponent fields; the axes stay, with extent 1."""
        return exponent(self.lib, self.x, self.axes)

    def partial(self, fields: Any, keepdims: bool = False) -> Any:
        """This worker's sums. fields: the largest of all workers, in the shape of `largest`."""
        cut = slice_one(self.lib, self.x, fields, sum_bits(self.terms))
        return self.lib.xp.sum(cut, axis=self.axes, keepdims=keepdims) + 0.0


@dataclass(frozen=True)
class ScatteredSum:
    """`count` rows of zeros, to which rows[i] is added at indices[i].

    rows: float64. terms: how many rows the workers add up at most.
    """

    lib: Any
    count: int
    indices: Any
    rows: Any
    terms: int

    def largest(self) -> Any:
        """The exponent fields of the columns, (1, ...)."""
        return exponent(self.lib, self.rows, 0)

    def partial(self, fields: Any) -> Any:
        """The rows that this worker makes. fields: the largest of all workers."""
        cut = slice_one(self.lib, self.rows, fields, sum_bits(self.terms))
        return scatter_add(self.lib.xp, self.count, self.indices, cut) + 0.0
