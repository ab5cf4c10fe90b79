"""Sums over a batch that workers share, in the two turns between which they exchange numbers.

    largest    the largest exponent fields of this worker's rows; the workers take the maximum
    partial    what this worker's rows add, cut to slices on that common scale; the workers add it up

    whole      what the added sums make

`namespace.py` exchanges after each turn. `kernels/shared_sums.py` takes the turns of many sums together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from xnn.backends.exact.slices import ProductBits, exponent, factor_exponent, slice_one, slice_two, sum_bits
from xnn.ops.indexing import scatter_add

__all__ = ["BatchSum", "ProductSum", "RowSum", "ScatteredSum"]


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

    def whole(self, sums: Any) -> Any:
        """The sums themselves."""
        return sums


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

    def whole(self, sums: Any) -> Any:
        """The sums themselves."""
        return sums


@dataclass(frozen=True)
class ProductSum:
    """The matrix product one^T two, over the rows of the batch. `one` is cut to one slice, and `two` to two.

    one: (n, k), float64. two: (n, m), float64. bits: of the slices. scale: None; or a number, and then `one` has
    integers that stand for themselves times the number: they are not cut, and `two` is cut to one slice. turned:
    whether the result is two^T one.
    """

    lib: Any
    one: Any
    two: Any
    bits: ProductBits
    scale: float | None = None
    turned: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the product."""
        k, m = self.one.shape[1], self.two.shape[1]
        return (m, k) if self.turned else (k, m)

    def largest(self) -> Any:
        """The exponent fields of the columns of what is cut, (1, ...)."""
        cut = (self.two,) if self.scale is not None else (self.one, self.two)
        return self.lib.xp.concat([factor_exponent(self.lib, x, 0) for x in cut], axis=1)

    def partial(self, fields: Any) -> Any:
        """The products of this worker's slices, (1 or 2, k, m)."""
        lib, xp, width = self.lib, self.lib.xp, self.one.shape[1]
        if self.scale is not None:
            one, parts = self.one, [slice_one(lib, self.two, fields, self.bits.two)]
        else:
            one = slice_one(lib, self.one, fields[:, :width], self.bits.one)
            parts = [*slice_two(lib, self.two, fields[:, width:], self.bits.two)]
        return xp.stack([xp.matmul(xp.matrix_transpose(one), part) for part in parts])

    def whole(self, sums: Any) -> Any:
        """The product: the sums of all workers' products added to one another, or times the scale."""
        slices = 2 if self.scale is None else 1
        sums = self.lib.xp.reshape(sums, (slices, self.one.shape[1], self.two.shape[1]))
        found = sums[0, ...] + sums[1, ...] if self.scale is None else sums[0, ...] * self.scale
        return self.lib.xp.matrix_transpose(found) if self.turned else found


BatchSum: TypeAlias = RowSum | ScatteredSum | ProductSum
