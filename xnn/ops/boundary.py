"""Namespaces that know more than the Array API: of a batch that workers share, and of exact numerics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Boundary", "SharedBatch"]


class SharedBatch:
    """A namespace in which sums over the batch are those of all workers, each of which holds some of its rows.

    It has the functions of the Array API, and the methods below.
    """

    def batch_sum(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        """The sum over `axis`, where axis 0 is the batch: the rows of all workers are added."""
        raise NotImplementedError

    def batch_sums(self, terms: Sequence[Any], axis: Any) -> list[Any]:
        """`batch_sum` of several arrays of one shape over these axes, which stay with extent 1, by one message."""
        raise NotImplementedError

    def batch_largest(self, sizes: Any) -> Any:
        """The largest of the workers' numbers, which are at least 0, for each element of the array."""
        raise NotImplementedError

    def batch_count(self, rows: int) -> int:
        """The rows of the whole batch, given this worker's rows."""
        raise NotImplementedError


class Boundary(SharedBatch):
    """A namespace in which ops compute with other numbers than those that are stored. Exact numerics have one.

    It has the functions of the Array API, and the methods below.
    """

    def enter(self, x: Any) -> Any:
        """Convert a stored array to the numbers that an op computes with."""
        raise NotImplementedError

    def leave(self, y: Any) -> Any:
        """Convert what an op returns to the form in which it is stored."""
        raise NotImplementedError

    #: Whether axis 0 of the gradients that are now computed is a batch that workers share, and the gradients of
    #: parameters are sums over it.
    over_rows = False

    def batch_sum(self, x: Any, axis: Any = None, keepdims: bool = False, largest: Any = None) -> Any:
        """As SharedBatch's. largest: the size of the largest numbers over `axis`, where it is known."""
        raise NotImplementedError

    def role(self, op: Any) -> Any:
        """The form of the op in this namespace: another op, or the op itself."""
        raise NotImplementedError

    def batch_product(self, a: Any, b: Any) -> Any:
        """The product a^T b of two matrices whose rows are the batch's: a sum over the rows of all workers."""
        raise NotImplementedError

    def scatter_add(self, count: int, indices: Any, rows: Any, batch: bool = False) -> Any:
        """`count` rows of zeros to which rows[i] is added at indices[i]; batch: add the rows of all workers."""
        raise NotImplementedError

    def erf(self, x: Any) -> Any:
        """The error function."""
        raise NotImplementedError

    def erfc(self, x: Any) -> Any:
        """The complementary error function 1 - erf(x)."""
        raise NotImplementedError
