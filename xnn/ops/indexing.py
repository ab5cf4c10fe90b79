"""Functions that choose elements of an array by index: getitem, take and embedding."""

from __future__ import annotations

from typing import Any

from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.ops.apply import Boundary
from xnn.ops.axes import positive_axis
from xnn.ops.op import Array, Namespace, Op, size_of
from xnn.options import is_integer, shown

__all__ = ["embedding", "getitem", "ordered_scatter_add", "scatter_add", "take"]


class GetItem(Op):
    """x[index] by integers, slices of step 1 and `...`, as in NumPy. `v[:, 1:]` of a recorded value calls it.

    The gradient is zero outside the chosen part. For other steps and arrays of indices use `take`, for masks `where`.

    index: an integer, a slice, `...`, or a tuple of these.

    >>> import numpy as np
    >>> getitem(np.arange(6.0).reshape(2, 3), (..., 1))
    array([1., 4.])
    """

    def __call__(self, x: Any, index: Any) -> Any:
        return super().__call__(x, index=index if isinstance(index, tuple) else (index,))

    def forward(self, xp: Namespace, x: Array, *, index: Any) -> tuple[Array, Any]:
        bounds: list[tuple[int, int]] = []
        chosen: list[Any] = []
        for axis, (part, extent) in enumerate(zip(_whole_index(index, x.ndim), x.shape, strict=True)):
            if isinstance(part, slice):
                start, stop, _ = part.indices(extent)
                stop = stop if stop > start else start
                chosen.append(slice(start, stop))
            else:
                if not -extent <= part < extent:
                    allowed = (
                        f"it must lie in {-extent} .. {extent - 1}" if extent else "it has nothing to choose"
                    )
                    raise ShapeError(f"index {part} of axis {axis}, which has {extent} elements: {allowed}")
                start = int(part) % extent
                stop = start + 1
                chosen.append(start)
            bounds.append((start, stop))
        return x[tuple(chosen)], (x.shape, bounds)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        shape, bounds = saved
        extents = tuple(stop - start for start, stop in bounds)
        grad = xp.reshape(grad, extents)
        for axis, (start, stop) in enumerate(bounds):
            before, after = (
                xp.zeros((*shape[:axis], n, *extents[axis + 1 :]), dtype=grad.dtype, device=grad.device)
                for n in (start, shape[axis] - stop)
            )
            grad = xp.concat((before, grad, after), axis=axis)
        return (grad,)


def _whole_index(index: Any, ndim: int) -> tuple[Any, ...]:
    """The index as a tuple with one item for each axis: `...` and missing axes become whole slices."""
    items = index if isinstance(index, tuple) else (index,)  # a layer's options come as they are
    for item in items:
        fits = item is Ellipsis or is_integer(item)
        if isinstance(item, slice):
            fits = all(bound is None or is_integer(bound) for bound in (item.start, item.stop))
            fits = fits and item.step in (None, 1)
        if not fits:
            raise OptionError(
                f"index {shown(item)}: an index is made of integers, slices of step 1 and `...`. Use ops.take "
                "for arrays of indices, ops.where for masks, ops.reshape for new axes"
            )
    ellipses = [place for place, item in enumerate(items) if item is Ellipsis]
    missing = ndim - len(items) + len(ellipses)
    if missing < 0 or len(ellipses) > 1:
        raise ShapeError(
            f"an index of {len(items)} items for an array of {ndim} axes: it may have one item for each "
            "axis, and `...` once"
        )
    place = ellipses[0] if ellipses else len(items)
    rest = items[place + len(ellipses) :]
    return (*items[:place], *(slice(None) for _ in range(missing)), *rest)


class Take(Op):
    """Rows of x chosen by number: y[i] = x[indices[i]]; slices along another axis with `axis`.

    If an index comes several times, its gradients are added, in a fixed order.

    indices: integers, shape (m,), from -n to n - 1 for an axis of n elements; negative ones count from the end.
    axis: integer; default 0.

    Other indices raise in NumPy. CuPy wraps them around without an error.

    >>> import numpy as np
    >>> take(np.array([5.0, 6.0, 7.0]), np.array([2, 0, 2]))
    array([7., 5., 7.])
    """

    positional, arity = ("axis",), 2

    def forward(self, xp: Namespace, x: Array, indices: Array, *, axis: int = 0) -> tuple[Array, Any]:
        axis = positive_axis(axis, x.ndim)
        if indices.ndim != 1:
            raise ShapeError(
                f"take got indices of shape {tuple(indices.shape)}: it needs indices of one axis"
            )
        counting = xp.arange(1, device=indices.device).dtype  # int64: uint8 could not count the rows
        indices = xp.astype(indices, counting)
        indices = xp.where(indices < 0, indices + x.shape[axis], indices)
        return xp.take(x, indices, axis=axis), (x.shape, indices, axis)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        shape, indices, axis = saved
        front = (axis, *(a for a in range(len(shape)) if a != axis))
        rows = scatter_add(xp, shape[axis], indices, xp.permute_dims(grad, front))
        return xp.permute_dims(rows, tuple(front.index(a) for a in range(len(shape)))), None


class Embedding(Op):
    """Rows of a table, chosen by number: y[..., :] = weight[indices[...], :]. As PyTorch's embedding.

    The gradient of a row is the sum over all places where it was chosen, over the whole batch.

    indices: integers of any shape, from 0 to num - 1.
    weight: shape (num, dim).

    Another index gives a row of NaN and no gradient: an op cannot read a GPU's memory to raise an error, and an index
    that wraps around would train unnoticed. `layers.Embedding` checks the indices on the host and raises.
    """

    def forward(self, xp: Namespace, indices: Array, weight: Array) -> tuple[Array, Any]:
        if weight.ndim != 2:
            raise ShapeError(f"embedding got a weight of shape {tuple(weight.shape)}: it needs (num, dim)")
        if not xp.isdtype(indices.dtype, "integral"):
            raise DTypeError(f"embedding got indices of {indices.dtype}: it needs integers")
        counting = xp.arange(1, device=indices.device).dtype  # int64: uint8 could not count the rows
        numbers = xp.astype(xp.reshape(indices, (size_of(indices.shape),)), counting)
        valid = xp.logical_and(numbers >= 0, numbers < weight.shape[0])
        numbers, valid = xp.where(valid, numbers, 0), xp.expand_dims(valid, axis=1)
        rows = xp.where(valid, xp.take(weight, numbers, axis=0), float("nan"))
        y = xp.reshape(rows, (*indices.shape, weight.shape[1]))
        return y, (numbers, valid, weight.shape)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        numbers, valid, (count, width) = saved
        rows = xp.where(valid, xp.reshape(grad, (numbers.shape[0], width)), 0.0)
        return None, scatter_add(xp, count, numbers, rows, batch=True)


def scatter_add(xp: Namespace, count: int, indices: Array, rows: Array, batch: bool = False) -> Array:
    """`count` rows of zeros, to which rows[i] is added at indices[i]. The order of additions is fixed.

    batch: whether the rows are the batch's and are added to a table that all workers share, as for the gradient of
    an embedding. Only exact numerics distinguish this.
    """
    if isinstance(xp, Boundary):
        return xp.scatter_add(count, indices, rows, batch)
    return ordered_scatter_add(xp, count, indices, rows)


def ordered_scatter_add(xp: Namespace, count: int, indices: Array, rows: Array) -> Array:
    """`scatter_add` whose sum for one target depends on that target's rows only, also in exact numerics.

    The Array API has no scatter-add. So the rows are sorted by index. Of the rows for one target, the second is added
    to the first, the fourth to the third, and so on; then the sums are added two by two in the same way. Each round
    is one gather of all rows. The number of rounds follows from the largest number of rows for one target, which is
    read from the device once. The order of additions follows from the order of the indices alone, whereas atomic
    additions on a GPU have no fixed order.
    """
    if not count or not rows.shape[0]:
        return xp.zeros((count, *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
    order = xp.argsort(indices, stable=True)
    ordered, rows = xp.take(indices, order, axis=0), xp.take(rows, order, axis=0)
    targets = xp.arange(count, dtype=ordered.dtype, device=ordered.device)
    first = xp.searchsorted(ordered, targets, side="left")
    past = xp.searchsorted(ordered, targets, side="right")
    place = xp.arange(rows.shape[0], dtype=first.dtype, device=rows.device)
    rank, left = place - xp.take(first, ordered), xp.take(past, ordered) - place
    most, step = int(xp.max(past - first)), 1
    while step < most:
        joined = xp.logical_and(rank % (2 * step) == 0, left > step)
        rows = rows + _chosen(xp, rows, joined, place + step)
        step *= 2
    return _chosen(xp, rows, past > first, first)


def _chosen(xp: Namespace, rows: Array, where: Array, source: Array) -> Array:
    """Row i is rows[source[i]] where the mask `where` is true, else zeros."""
    mask = xp.reshape(where, (where.shape[0],) + (1,) * (rows.ndim - 1))
    return xp.where(mask, xp.take(rows, xp.where(where, source, 0), axis=0), 0)


getitem = GetItem()
take = Take()
embedding = Embedding()
