"""The parts of exact kernels on a GPU, each a pass over some arrays; the table of kernels may join two of them.

Each is an object, an item: `build` returns its kernel launches, and `arrays` are those that it reads and writes. The
kernels are in `backends/kernels/cuda/exact.cu`. Where `join` can make one launch of two items, it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xnn.backends.exact.slices import sum_bits
from xnn.backends.kernels.calls import Runnable
from xnn.backends.kernels.cuda.cublas import Product, cublas_of
from xnn.backends.kernels.cuda.data_kernels import Gather
from xnn.backends.kernels.cuda.feed import DeviceFeed
from xnn.backends.kernels.cuda.launch import (
    MOST_BLOCKS,
    MOST_THREADS,
    THREADS,
    WARP,
    Launch,
    address,
    by_element,
    compiled,
    cupy,
    structure,
)
from xnn.backends.kernels.cuda.update_kernels import Segments, Update

__all__ = [
    "Changes",
    "ClipByNorm",
    "Columns",
    "ColumnsPass",
    "FloatGather",
    "IntegerGather",
    "RowsPass",
    "Step",
    "WeightGradients",
    "WeightSlices",
    "Widen",
    "overlap",
    "product",
    "touched",
]  # fmt: skip

_SHORTEST = 1024  # numbers in a part of a tensor, unless there would be more than _PARTS
_PARTS = 1024


def kernel(
    name: str, grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any], feed: DeviceFeed
) -> Any:
    """A launch of a kernel of exact.cu."""
    return Launch(compiled("exact", np.float64, exact=True), name, grid, block, arguments, feed.stream)


def product(feed: DeviceFeed, a: Any, b: Any, turned: tuple[bool, bool], out: Any) -> Product:
    """The product of two matrices of slices. No sum of it is rounded, so that its order does not matter."""
    return Product(cublas_of(feed.stream, exact=True), a, b, out, turned)


def overlap(a: Any, b: Any) -> bool:
    """Whether two contiguous arrays share memory."""
    return address(a) < address(b) + int(b.nbytes) and address(b) < address(a) + int(a.nbytes)


def touched(item: Any) -> list[Any] | None:
    """The arrays that an item or a launch reads and writes, or None if that is not known."""
    if isinstance(item, Segments):
        return [array for group in item.arrays for array in group]
    if hasattr(item, "arrays"):
        return [array for array in item.arrays if array is not None]
    if isinstance(item, Product):
        return list(item.held)
    call = getattr(item, "call", None)
    return None if call is None else [slot.array for slot in call.slots() if slot.scaled is None]


def _stretches(size: int) -> list[tuple[int, int]]:
    """The starts and lengths of the parts of an array, each of which a block does."""
    length = max(_SHORTEST, -(-size // _PARTS // THREADS) * THREADS)
    return [(start, min(length, size - start)) for start in range(0, size, length)]


def _table(rows: Sequence[Sequence[int | float]]) -> Any:
    """An array of structures of 8-byte numbers in the GPU's memory."""
    cells = np.empty((len(rows), len(rows[0])), np.int64)
    for row, numbers in zip(cells, rows, strict=True):
        for at, number in enumerate(numbers):
            row[at : at + 1] = np.array([number]).view(np.int64)
    return cupy().asarray(cells)


@dataclass(eq=False)
class Widen:
    """Converts integers to float64: wide <- the integers."""

    feed: DeviceFeed
    integers: Any
    wide: Any

    @property
    def arrays(self) -> list[Any]:
        return [self.integers, self.wide]

    def build(self) -> list[Runnable]:
        module = compiled("gather", np.float32, SOURCE=str(self.integers.dtype))
        arguments = self.integers, self.wide, self.wide.size
        return [by_element(module, "widen", self.wide.size, arguments, self.feed.stream)]


class FloatGather(Gather):
    """Copies the rows of a batch, and applies a Rescale to them as exact numerics do."""

    def module(self, real: Any, source: str) -> Any:
        return compiled("gather", np.float64, exact=True, SOURCE=source)


class IntegerGather(Gather):
    """Copies the rows of a batch of integers.

    If `Widen` joined it, the same launch also writes them as float64, as the matrix product takes them.
    """

    wide: Any = None

    @property
    def integers(self) -> Any:
        """The batch."""
        return self.call.writes[0].array.integers  # type: ignore[union-attr]

    @property
    def arrays(self) -> list[Any]:
        batches = [side.call.writes[0].array for side in self.sides]  # type: ignore[union-attr]
        return [self.integers, self.wide, *batches]

    def join(self, other: Any) -> Any:
        if isinstance(other, Widen):
            if self.wide is None and other.integers is self.integers:
                self.wide = other.wide
            return self if other.wide is self.wide else None
        return super().join(other) if isinstance(other, Gather) else None

    def build(self) -> list[Runnable]:
        source, n = self.feed.data.there(self.call.options["source"]), len(self.integers)
        module = compiled("gather", np.float32, SOURCE=str(source.dtype))
        arrays = source, self.integers, self.wide
        return self.launches(module, "gather_integers", (n, self.integers.size // n), arrays)


@dataclass(eq=False)
class WeightSlices:
    """Rounds tensors to one slice each, on the scale of the largest element of each.

    tensors: for each, the array, the float64 array that receives the slice, and the bits.
    """

    feed: DeviceFeed
    tensors: list[tuple[Any, Any, int]]

    @property
    def arrays(self) -> list[Any]:
        return [array for w, one, _ in self.tensors for array in (w, one)]

    def parts(self) -> list[tuple[int, ...]]:
        """The kernels' table: for each part of a tensor its places, its length, and which parts the tensor has."""
        parts: list[tuple[int, ...]] = []
        for w, one, bits in self.tensors:
            stretches, first = _stretches(w.size), len(parts)
            parts += [
                (address(w) + 4 * start, address(one) + 8 * start, count, first, len(stretches), bits)
                for start, count in stretches
            ]
        return parts

    def join(self, other: Any) -> bool:
        """Take over the tensors of another item of this kind."""
        if type(other) is WeightSlices:
            self.tensors += other.tensors
            return True
        return False

    def build(self) -> list[Runnable]:
        table = _table(self.parts())
        fields = cupy().empty(len(table), np.int32)
        names, grid = ("largest_fields", "slice_parts"), (len(table),)
        return [kernel(name, grid, (THREADS,), (table, fields), self.feed) for name in names]


@dataclass(eq=False)
class ClipByNorm(WeightSlices):
    """Clips gradients together by their norm. tensors: gradients, None, and the bits of a sum of their squares."""

    limit: float = 0.0

    def join(self, other: Any) -> bool:
        return False

    def build(self) -> list[Runnable]:
        table = _table(self.parts())
        fields, sums = (cupy().empty(len(table), kind) for kind in (np.int32, np.float64))
        given = (
            ("square_fields", (fields,)),
            ("square_sums", (fields, sums)),
            ("clip_parts", (sums, self.limit)),
        )
        grid, block = (len(table),), (THREADS,)
        return [kernel(name, grid, block, (table, *rest), self.feed) for name, rest in given]


@dataclass(eq=False)
class RowsPass:
    """What happens to the rows of y (n, width) between two products; each part may be absent.

    x: where y comes from if there are no products; None: from y itself.
    products, scale, b, kind, full: y = f(products + b), see `numpy_passes.finish`; `full` keeps f's float64 values.
    back, out, of: y is a gradient, and is multiplied by the slope of an activation, at the output `out` or `of`.
    wide, bits: receives the two slices of each row.
    """

    feed: DeviceFeed
    y: Any
    x: Any = None
    products: Any = None
    scale: float = 1.0
    b: Any = None
    kind: int = 0
    full: Any = None
    back: int = 0
    out: Any = None
    of: Any = None
    wide: Any = None
    bits: int = 0

    @property
    def arrays(self) -> list[Any]:
        return [self.y, self.x, self.products, self.b, self.full, self.out, self.of, self.wide]

    def follows(self, y: Any) -> bool:
        """Whether this changes or reads only rows that are in y."""
        in_place = self.products is None and (self.x is None or self.x is self.y)
        return in_place and address(self.y) == address(y) and self.y.shape == y.shape

    def join(self, other: Any) -> bool:
        """Take over what the next item does to the same rows."""
        if not isinstance(other, RowsPass) or not other.follows(self.y) or other.kind:
            return False
        if self.wide is not None or (self.back and other.back):
            return False
        if other.back:
            self.back, self.out, self.of = other.back, other.out, other.of
        self.wide, self.bits = other.wide, other.bits
        return True

    def build(self) -> list[Runnable]:
        width = self.y.shape[-1] if self.y.ndim else 1
        n = self.y.size // width
        two = self.products is not None and len(self.products) > n
        rows = structure(
            "Rows", products=self.products, b=self.b, x=self.y if self.x is None else self.x, y=self.y,
            full=self.full, out=self.out, of=self.of, wide=self.wide, n=n, width=width, two=int(two),
            kind=self.kind, back=self.back, bits=self.bits, scale=self.scale,
        )  # fmt: skip
        threads = min(MOST_THREADS if width > THREADS * 4 else THREADS, -(-width // WARP) * WARP)
        return [kernel("rows", (min(n, MOST_BLOCKS),), (threads,), (rows,), self.feed)]


@dataclass(eq=False)
class Columns:
    """An array (n, width) that is sliced by columns; `wide` and `sums` may be None.

    wide: receives one slice, or two side by side, of `bits` bits. sums: receives the sums of the columns. group:
    None, or the group of parameters that `sums`, a bias, belongs to; it then takes the step of plain SGD.
    """

    x: Any
    wide: Any = None
    bits: int = 0
    sums: Any = None
    group: Any = None

    def structure(self, feed: DeviceFeed) -> Any:
        """The kernel's structure."""
        n, width = self.x.shape
        options = None if self.group is None else feed.options_of(self.group)
        two = self.wide is not None and self.wide.shape[1] > width
        return structure(
            "Columns", x=self.x, wide=self.wide, sums=self.sums, options=options, width=width, two=int(two),
            bits=self.bits, sum_bits=sum_bits(n), stride=feed.width, blocks=-(-width // WARP),
        )  # fmt: skip


@dataclass(eq=False)
class ColumnsPass:
    """Slices one or two arrays of equally many rows by columns, and sums their columns."""

    feed: DeviceFeed
    sides: list[Columns]

    @property
    def arrays(self) -> list[Any]:
        return [array for side in self.sides for array in (side.x, side.wide, side.sums)]

    def build(self) -> list[Runnable]:
        sides = [side.structure(self.feed) for side in self.sides]
        blocks = sum(-(-side.x.shape[1] // WARP) for side in self.sides)
        arguments = *(sides * 2)[:2], len(self.sides[0].x), self.feed.position
        return [kernel("columns", (blocks,), (WARP, WARP), arguments, self.feed)]


@dataclass(eq=False)
class WeightGradients:
    """Rounds the gradients of weights, or takes the step of plain SGD with them.

    weights: for each, the products of slices (k, m) or (k, 2 m), their scale, the array that receives the gradient
    (k, m), and None or the group of parameters that this array, the weight itself, belongs to.
    """

    feed: DeviceFeed
    weights: list[tuple[Any, float, Any, Any]] = field(default_factory=list)

    @property
    def arrays(self) -> list[Any]:
        return [array for products, _, w, _ in self.weights for array in (products, w)]

    def join(self, other: Any) -> bool:
        """Take over the weights of another item of this kind."""
        if isinstance(other, WeightGradients):
            self.weights += other.weights
            return True
        return False

    def build(self) -> list[Runnable]:
        rows = [
            (
                address(products), address(w), 0 if group is None else address(self.feed.options_of(group)), start,
                count, w.shape[1], int(products.shape[1] > w.shape[1]), scale,
            )
            for products, scale, w, group in self.weights
            for start, count in _stretches(w.size)
        ]  # fmt: skip
        arguments = _table(rows), self.feed.width, self.feed.position
        return [kernel("weight_gradients", (len(rows),), (THREADS,), arguments, self.feed)]


class _Exact:
    """The kernels of updates.cu in exact numerics."""

    @property
    def module(self) -> Any:
        return compiled("updates", np.float64, exact=True)


class Changes(_Exact, Segments):
    """A kernel of updates.cu over segments of gradients or averages."""


class Step(_Exact, Update):
    """A kernel of an optimizer's rule."""
