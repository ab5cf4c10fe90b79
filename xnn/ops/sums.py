"""Sums of many numbers, whose rounding errors do not grow with the number of terms.

NumPy adds the terms of a sum over the last axis by pairs, but those over other axes one after the other: the sum of a
million rows of float32 is then wrong in the third digit. `pairwise_sum` adds by pairs over all axes, so that float32
sums are right to about 1e-6 whatever their length. `product_over_rows` does the same for a matrix product whose inner
axis is the batch. Up to SHORT terms, and up to LONG rows of a product, both give the array library's own bits.
Source: Higham, SIAM J. Sci. Comput. 14 (1993).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xnn.ops.boundary import Boundary

__all__ = [
    "LONG", "PIECE", "SHORT", "pairwise_mean", "pairwise_sum", "product_over_rows", "size_of",
    "sum_over_axes",
]  # fmt: skip

#: Up to so many terms are added one after the other. Longer sums are cut until PIECE terms are left.
SHORT, PIECE = 128, 32
#: Up to so many rows go into one matrix product. More are cut into blocks of this size.
LONG = 1024

#: A long axis is cut into this many parts, which are added to one another.
_PARTS = 8


def sum_over_axes(xp: Any, grad: Any, axes: tuple[int, ...]) -> Any:
    """The sum of a gradient over the axes along which an input was broadcast."""
    if 0 in axes and isinstance(xp, Boundary) and xp.over_rows:
        return xp.batch_sum(grad, axis=axes)
    return pairwise_sum(xp, grad, axis=axes)


def pairwise_sum(xp: Any, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The sum of x over `axis`, added by pairs if there are more than SHORT terms.

    axis, keepdims: as for xp.sum. Sums of integers, and all sums in exact numerics, are xp.sum itself.

    >>> import numpy as np
    >>> round(float(pairwise_sum(np, np.full((10**6, 1), 0.1, "float32"), axis=0)[0]), 1)
    100000.0
    """
    if _terms(x.shape, axis) <= SHORT or isinstance(xp, Boundary):
        return xp.sum(x, axis=axis, keepdims=keepdims)
    if not xp.isdtype(x.dtype, ("real floating", "complex floating")):
        return xp.sum(x, axis=axis, keepdims=keepdims)
    axes = _axes(x.ndim, axis)
    ordered = xp.reshape(xp.reshape(x, (-1,)), x.shape)  # a copy only if the elements lie in another order
    total = _sum(xp, ordered, axes, SHORT)
    return total if keepdims else xp.reshape(total, _without(x.shape, axes))


def pairwise_mean(xp: Any, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The mean of x over `axis`, whose sum is added by pairs if there are more than SHORT terms."""
    count = _terms(x.shape, axis)
    if count <= SHORT or isinstance(xp, Boundary) or not xp.isdtype(x.dtype, "real floating"):
        return xp.mean(x, axis=axis, keepdims=keepdims)
    return pairwise_sum(xp, x, axis, keepdims) / float(count)


def product_over_rows(xp: Any, a: Any, b: Any) -> Any:
    """The matrix product a^T b of a (..., n, k) and b (..., n, m): a sum over n rows.

    Of two matrices with more than LONG rows, blocks of LONG rows are multiplied, and the products are added by pairs.
    """
    rows = a.shape[0]
    if a.ndim == 2 and isinstance(xp, Boundary) and xp.over_rows:
        return xp.batch_product(a, b)
    if a.ndim != 2 or rows <= LONG or isinstance(xp, Boundary):
        return xp.matmul(xp.matrix_transpose(a), b)
    blocks = rows // LONG
    whole = blocks * LONG
    left, right = (xp.reshape(part[:whole, ...], (blocks, LONG, part.shape[1])) for part in (a, b))
    total = pairwise_sum(xp, xp.matmul(xp.matrix_transpose(left), right), axis=0)
    if whole == rows:
        return total
    return total + xp.matmul(xp.matrix_transpose(a[whole:, ...]), b[whole:, ...])


def size_of(shape: Sequence[int]) -> int:
    """The number of elements of an array of this shape."""
    size = 1
    for extent in shape:
        size *= extent
    return size


def _terms(shape: tuple[int, ...], axis: Any) -> int:
    """How many terms each sum over `axis` has; 0 for axes that do not exist, which are left to xp.sum."""
    if axis is None:
        return size_of(shape)
    try:
        return shape[axis] if not isinstance(axis, tuple) else size_of([shape[a] for a in axis])
    except IndexError:
        return 0


def _axes(ndim: int, axis: Any) -> tuple[int, ...]:
    """The axes as positive integers, in ascending order."""
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    return tuple(sorted({int(a) % ndim for a in given}))


def _without(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(extent for a, extent in enumerate(shape) if a not in axes)


def _sum(xp: Any, x: Any, axes: tuple[int, ...], most: int) -> Any:
    """The sum over `axes`, which stay with extent 1. At most `most` terms are added one after the other."""
    inside = 0  # how many of the last axes are summed: they lie side by side, and NumPy adds them by pairs
    while x.ndim - 1 - inside in axes:
        inside += 1
    others = [a for a in axes if a < x.ndim - inside]
    if size_of([x.shape[a] for a in others]) <= most:
        return xp.sum(x, axis=axes, keepdims=True)
    longest = max(others, key=lambda a: x.shape[a])
    before, n, after = x.shape[:longest], x.shape[longest], x.shape[longest + 1 :]
    parts = min(_PARTS, n)
    whole = n // parts * parts
    all_before = (slice(None),) * longest
    head = xp.reshape(x[(*all_before, slice(0, whole), ...)], (*before, parts, n // parts, *after))
    total = _sum(xp, xp.sum(head, axis=longest), axes, PIECE)
    if whole == n:
        return total
    return total + _sum(xp, x[(*all_before, slice(whole, n), ...)], axes, PIECE)
