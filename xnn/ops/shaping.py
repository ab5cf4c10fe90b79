"""Functions that move elements about, or leave them: identity, reshape, flatten, transpose, getitem, take, concat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xnn.errors import OptionError, ShapeError
from xnn.ops.op import Array, Boundary, Namespace, Op, positive_axis, size_of

__all__ = ["concat", "flatten", "getitem", "identity", "ordered_scatter_add", "reshape", "take", "transpose"]


class Identity(Op):
    """y = x, the array itself: a place where several readers' gradients meet before they go on."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return x, None

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        return (grad,)


class Reshape(Op):
    """The same elements in another shape; one extent may be -1, as in NumPy."""

    def forward(self, xp: Namespace, x: Array, *, shape: tuple[int, ...]) -> tuple[Array, Any]:
        return xp.reshape(x, shape), x.shape

    def backward(self, xp: Namespace, grad: Array, shape: Any) -> tuple[Array | None, ...]:
        return (xp.reshape(grad, shape),)


class Flatten(Op):
    """(n, a, b, ...) becomes (n, a * b * ...): every axis but the batch's joined into one."""

    def forward(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        return xp.reshape(x, (x.shape[0], size_of(x.shape[1:]))), x.shape

    def backward(self, xp: Namespace, grad: Array, shape: Any) -> tuple[Array | None, ...]:
        return (xp.reshape(grad, shape),)


class Transpose(Op):
    """Axes in another order: y.shape[i] = x.shape[axes[i]]; reversed when `axes` is not given."""

    def forward(self, xp: Namespace, x: Array, *, axes: tuple[int, ...] | None = None) -> tuple[Array, Any]:
        order = (
            tuple(reversed(range(x.ndim))) if axes is None else tuple(positive_axis(a, x.ndim) for a in axes)
        )
        return xp.permute_dims(x, order), order

    def backward(self, xp: Namespace, grad: Array, order: Any) -> tuple[Array | None, ...]:
        inverse = tuple(order.index(axis) for axis in range(len(order)))
        return (xp.permute_dims(grad, inverse),)


class GetItem(Op):
    """x[index] by integers, slices of step 1 and `...`, as in NumPy; v[:, 1:] of a recorded value or node is this.

    Its gradient is zeros but for that part. Other steps, arrays of indices and masks: `take` and `where`.
    """

    def __call__(self, *inputs: Any, index: Any) -> Any:
        """The index may be one item or a tuple of them."""
        return super().__call__(*inputs, index=index if isinstance(index, tuple) else (index,))

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
                    raise ShapeError(f"index {part} of axis {axis}, which has {extent} elements")
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
    """The index with an item for each axis."""
    items = index if isinstance(index, tuple) else (index,)  # a layer's options come as they are
    for item in items:
        fits = item is Ellipsis or _is_integer(item)
        if isinstance(item, slice):
            fits = all(bound is None or _is_integer(bound) for bound in (item.start, item.stop))
            fits = fits and item.step in (None, 1)
        if not fits:
            raise OptionError(
                f"an index is made of integers, slices of step 1 and `...`, got {repr(item)[:60]}; ops.take has "
                "arrays of indices, ops.where masks, ops.reshape new axes"
            )
    ellipses = [place for place, item in enumerate(items) if item is Ellipsis]
    missing = ndim - len(items) + len(ellipses)
    if missing < 0 or len(ellipses) > 1:
        raise ShapeError(f"an index of {len(items)} items, and an array of {ndim} axes")
    place = ellipses[0] if ellipses else len(items)
    rest = items[place + len(ellipses) :]
    return (*items[:place], *(slice(None) for _ in range(missing)), *rest)


def _is_integer(item: Any) -> bool:
    """Whether it is a Python integer or NumPy's; arrays have an `ndim`, and booleans are masks."""
    return hasattr(item, "__index__") and not isinstance(item, bool) and getattr(item, "ndim", 0) == 0


class Take(Op):
    """Rows (or slices along `axis`) chosen by a 1-d integer array: y[i] = x[indices[i]].

    An index may come several times: its gradients are added, two by two in the order of the indices.
    Indices lie in -n .. n - 1, negative ones counted from the end as in NumPy; beyond that NumPy raises,
    and CuPy wraps without a word.
    """

    def forward(self, xp: Namespace, x: Array, indices: Array, *, axis: int = 0) -> tuple[Array, Any]:
        axis = positive_axis(axis, x.ndim)
        if indices.ndim != 1:
            raise ShapeError(f"take needs indices of one axis, got shape {tuple(indices.shape)}")
        counting = xp.arange(1, device=indices.device).dtype  # int64: uint8 could not count the rows
        indices = xp.astype(indices, counting)
        indices = xp.where(indices < 0, indices + x.shape[axis], indices)
        return xp.take(x, indices, axis=axis), (x.shape, indices, axis)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        shape, indices, axis = saved
        front = (axis, *(a for a in range(len(shape)) if a != axis))
        rows = scatter_add(xp, shape[axis], indices, xp.permute_dims(grad, front))
        return xp.permute_dims(rows, tuple(front.index(a) for a in range(len(shape)))), None


class Concat(Op):
    """Arrays joined along an existing axis: concat((a, b, ...), axis=0)."""

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Accepts the arrays as one sequence, as NumPy's concat does, or one by one."""
        if len(inputs) == 1 and isinstance(inputs[0], Sequence):
            inputs = tuple(inputs[0])
        return super().__call__(*inputs, **options)

    def forward(self, xp: Namespace, *inputs: Array, axis: int = 0) -> tuple[Array, Any]:
        if not inputs:
            raise ShapeError("concat needs at least one array")
        axis = positive_axis(axis, inputs[0].ndim)
        return xp.concat(inputs, axis=axis), (tuple(x.shape[axis] for x in inputs), axis)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        extents, axis = saved
        grads, start = [], 0
        for extent in extents:
            grads.append(grad[(slice(None),) * axis + (slice(start, start + extent), ...)])
            start += extent
        return tuple(grads)


def scatter_add(xp: Namespace, count: int, indices: Array, rows: Array, batch: bool = False) -> Array:
    """`count` rows of zeros to which rows[i] is added at indices[i], in a defined order.

    Exact numerics have a `scatter_add` of their own. batch: whether the rows are the batch's and belong to a table
    that all workers share, as an embedding's gradient does.
    """
    if isinstance(xp, Boundary):
        return xp.scatter_add(count, indices, rows, batch)
    return ordered_scatter_add(xp, count, indices, rows)


def ordered_scatter_add(xp: Namespace, count: int, indices: Array, rows: Array) -> Array:
    """scatter_add in one order of additions, exact numerics too: a target's sum follows from its own rows.

    The Array API has no such function, so: sort the rows by their index, and of those that name one target add
    the second to the first, the fourth to the third, ..., then these sums two by two, and so on. That is a gather of
    all rows for each doubling of the most that one target gets, which is read from the device once; the order of
    additions follows from the order of i alone (atomic additions on a GPU have none).
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
    """rows[source[i]] where it is to be, else zeros."""
    mask = xp.reshape(where, (where.shape[0],) + (1,) * (rows.ndim - 1))
    return xp.where(mask, xp.take(rows, xp.where(where, source, 0), axis=0), 0)


identity = Identity()
reshape = Reshape()
flatten = Flatten()
transpose = Transpose()
getitem = GetItem()
take = Take()
concat = Concat()
