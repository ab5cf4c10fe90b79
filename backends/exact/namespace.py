"""The namespace `xp` that ops are given in exact numerics. All its functions give the same bits on every backend.

Arrays are stored as float32. An op's inputs are converted to float64 (`enter`), and what it returns is rounded to
float32 (`leave`). In between, each operation is a correctly rounded float64 operation, or one of the functions below.
Sums and products are sums of slices (`slices.py`), which are exact, so that their order does not matter. A function
that is not in this file raises NoExactFormError, since nobody has checked that it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from xnn.backends.communicator import communicator, over_rows
from xnn.backends.exact import functions
from xnn.backends.exact.batch_sums import ProductSum, RowSum, ScatteredSum
from xnn.backends.exact.scaled import ScaledIntegers
from xnn.backends.exact.slices import (
    FLUSH,
    exponent,
    factor_exponent,
    product_bits,
    slice_one,
    slice_two,
    sum_bits,
    to32,
)
from xnn.errors import DTypeError, NoExactFormError
from xnn.ops.apply import Boundary
from xnn.ops.indexing import scatter_add
from xnn.ops.op import Op

__all__ = ["ExactNamespace"]

Axis: TypeAlias = int | tuple[int, ...] | None

#: Functions that give the same bits wherever arithmetic follows IEEE 754: they move, compare, count, or round once.
_PLAIN_NAMES = """
    abs add all any arange asarray bool broadcast_arrays broadcast_to bitwise_and bitwise_invert
    bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor ceil concat divide e empty empty_like equal
    expand_dims eye flip floor full full_like greater greater_equal inf int8 int16 int32 int64 isdtype isfinite
    isinf isnan less less_equal logical_and logical_not logical_or logical_xor matrix_transpose moveaxis multiply
    nan negative newaxis not_equal ones ones_like permute_dims pi positive repeat reshape roll round searchsorted
    sign sqrt square squeeze stack subtract take take_along_axis tile tril triu trunc uint8 uint16 uint32
    uint64 unstack where zeros zeros_like
"""
_PLAIN = frozenset(_PLAIN_NAMES.split())


class ExactNamespace(Boundary):
    """The exact namespace for the arrays of one backend, `lib`. roles: the ops that have a form of their own here."""

    def __init__(self, lib: Any, roles: dict[Op, Op] | None = None) -> None:
        self.lib, self.base = lib, lib.xp
        self.roles = roles or {}

    def __getattr__(self, name: str) -> Any:
        if name in _PLAIN:
            return getattr(self.base, name)
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("float32", "float64"):  # inside an op all floating-point numbers are float64
            return self.base.float64
        raise NoExactFormError(
            f"xp.{name} has no exact form: use functions that have one (xnn.backends.exact.namespace lists them), or "
            "numerics='fast'"
        )

    def __repr__(self) -> str:
        return f"<exact namespace of {self.lib.name}>"

    @property
    def over_rows(self) -> bool:  # type: ignore[override]
        """Whether the gradients of parameters that are now computed are sums over a batch that workers share."""
        return over_rows.get() and communicator() is not None

    # The boundary of an op.

    def role(self, op: Op) -> Op:
        """The form of the op in exact numerics: another op, or the op itself."""
        return self.roles.get(op, op)

    def enter(self, x: Any) -> Any:
        """Convert a stored array to what ops compute with: float32 to float64, without subnormals and -0.

        Other things than floating-point arrays are returned as they are. Raises DTypeError for floating-point arrays
        that are not float32.
        """
        if isinstance(x, ScaledIntegers):
            x = x.materialize()
        if not hasattr(x, "dtype") or not self.base.isdtype(x.dtype, ("real floating", "complex floating")):
            return x
        if x.dtype != self.base.float32:
            raise DTypeError(
                f"exact numerics store float32 and got {x.dtype}: convert it (x.astype('float32'), "
                "layers with dtype='float32'), or use numerics='fast'"
            )
        return (self.base.asarray(x, dtype=self.base.float64) + FLUSH) - FLUSH

    def widen(self, x: Any) -> Any:
        """Convert an array to float64: float32 that is not an input of the op, integers before a multiplication."""
        if x.dtype == self.base.float64:
            return x
        if x.dtype == self.base.float32:
            return self.enter(x)
        return self.base.astype(x, self.base.float64)

    def _is_floating(self, x: Any) -> bool:
        return bool(self.base.isdtype(x.dtype, "real floating"))

    def leave(self, y: Any) -> Any:
        """Convert what an op returns to what is stored: float64 to float32, without subnormals and -0."""
        if not hasattr(y, "dtype") or isinstance(y, ScaledIntegers):
            return y
        if y.dtype == self.base.float64:
            return to32(self.lib, y)
        return to32(self.lib, self.enter(y)) if y.dtype == self.base.float32 else y

    # Reductions.

    def sum(self, x: Any, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Any:
        """The sum over `axis`. Each term is cut to one slice, relative to the largest; then all sums are exact."""
        if not self._is_floating(x):
            return self.base.sum(x, axis=axis, dtype=dtype, keepdims=keepdims)
        x, terms = self.widen(x), self._extent(x.shape, axis)
        cut = slice_one(self.lib, x, exponent(self.lib, x, axis), sum_bits(terms))
        return self.base.sum(cut, axis=axis, keepdims=keepdims) + 0.0

    def mean(self, x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
        """The mean: sum / n."""
        return self.sum(x, axis=axis, keepdims=keepdims) / float(self._extent(x.shape, axis))

    def var(self, x: Any, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Any:
        """The variance: the sum of (x - mean)^2, divided by n - correction."""
        away = self.widen(x) - self.mean(x, axis=axis, keepdims=True)
        count = self._extent(x.shape, axis) - correction
        return self.sum(away * away, axis=axis, keepdims=keepdims) / float(count)

    def std(self, x: Any, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Any:
        """The standard deviation: the square root of `var`."""
        return self.base.sqrt(self.var(x, axis=axis, correction=correction, keepdims=keepdims))

    def max(self, x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
        """The largest element; never -0, so that the order of zeros does not matter."""
        y = self.base.max(x, axis=axis, keepdims=keepdims)
        return y + 0.0 if self._is_floating(y) else y

    def min(self, x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
        """The smallest element; never -0."""
        y = self.base.min(x, axis=axis, keepdims=keepdims)
        return y + 0.0 if self._is_floating(y) else y

    def argmax(self, x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
        """The first index of the largest element, or of the first NaN if there is one."""
        return self._index_of(self.base.max, x, axis, keepdims)

    def _index_of(self, extreme: Any, x: Any, axis: int | None, keepdims: bool) -> Any:
        base = self.base
        if axis is None:
            found = self._index_of(extreme, base.reshape(x, (-1,)), 0, False)
            return base.reshape(found, (1,) * x.ndim) if keepdims else found
        axis = axis % x.ndim
        largest = base.logical_or(x == extreme(x, axis=axis, keepdims=True), x != x)
        count = x.shape[axis]
        index = base.reshape(
            base.arange(count, device=x.device), tuple(count if a == axis else 1 for a in range(x.ndim))
        )
        return base.min(base.where(largest, index, count), axis=axis, keepdims=keepdims)

    def argmin(self, x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
        """The first index of the smallest element, or of the first NaN if there is one."""
        return self._index_of(self.base.min, x, axis, keepdims)

    def argsort(self, x: Any, /, *, axis: int = -1, stable: bool = True) -> Any:
        """The indices that sort x. The sort is always stable, whatever `stable` is."""
        return self.base.argsort(x, axis=axis, stable=True)

    def sort(self, x: Any, /, *, axis: int = -1, stable: bool = True) -> Any:
        """x, sorted; never -0."""
        return self.base.sort(x, axis=axis, stable=True) + 0

    @staticmethod
    def _extent(shape: tuple[int, ...], axis: Axis) -> int:
        axes = range(len(shape)) if axis is None else ((axis,) if isinstance(axis, int) else axis)
        return math.prod(shape[a] for a in axes)

    # Reductions over the batch, which the workers share.

    def batch_count(self, rows: int) -> int:
        """The number of rows of the whole batch, given that of this worker."""
        shared = communicator()
        return rows if shared is None else shared.count(rows)

    def _fields(self, sizes: Any) -> Any:
        """The exponent field of each of these numbers."""
        return (self.lib.bits(sizes, "int64") >> 52) & 0x7FF

    def batch_largest(self, sizes: Any) -> Any:
        """The largest of the workers' numbers of at least 0. Their bits, read as integers, have the same order."""
        shared = communicator()
        if shared is None:
            return sizes
        return self.lib.bits(shared.maximum(self.lib.bits(sizes, "int64")), "float64")

    def batch_total(self, partial: Any) -> Any:
        """The sum of the partial sums of all workers. No sum is rounded."""
        shared = communicator()
        return partial if shared is None else shared.total(partial)

    def batch_sum(self, x: Any, axis: Axis = None, keepdims: bool = False, largest: Any = None) -> Any:
        """The sum over `axis`, where axis 0 is the batch: the rows of all workers are added.

        largest: the sizes of the largest numbers over `axis`, of all workers, where they are known; the axes stay.
        """
        axes = tuple(range(x.ndim)) if axis is None else ((axis,) if isinstance(axis, int) else axis)
        inside = tuple(a for a in axes if a % x.ndim)
        if len(inside) == len(axes):
            return self.sum(x, axis=axes, keepdims=keepdims)
        if not self._is_floating(x):
            counted = self.base.sum(x, axis=axes, keepdims=keepdims)
            return self.astype(self.batch_total(self.widen(counted)), counted.dtype)
        x = self.widen(x)
        terms = self._extent(x.shape, inside) * self.batch_count(int(x.shape[0]))
        return self.row_sum(RowSum(self.lib, x, tuple(a % x.ndim for a in axes), terms), keepdims, largest)

    def row_sum(self, summed: RowSum, keepdims: bool, largest: Any = None) -> Any:
        """`batch_sum` of floating-point numbers."""
        fields = self._agreed(summed.largest()) if largest is None else self._fields(largest)
        return self.batch_total(summed.partial(fields, keepdims))

    def _agreed(self, fields: Any) -> Any:
        """The largest of the workers' exponent fields."""
        shared = communicator()
        return fields if shared is None else shared.maximum(fields)

    def batch_sums(self, terms: Sequence[Any], axis: tuple[int, ...]) -> list[Any]:
        """`batch_sum` of several arrays of one shape over these axes, which stay, by one message of each kind."""
        base, inside = self.base, tuple(a for a in axis if a)
        wide = [self.widen(x) for x in terms]
        count = self._extent(wide[0].shape, inside) * self.batch_count(int(wide[0].shape[0]))
        summed = [RowSum(self.lib, x, axis, count) for x in wide]
        fields = self._agreed(base.stack([one.largest() for one in summed]))
        parts = [one.partial(fields[n, ...], keepdims=True) for n, one in enumerate(summed)]
        sums = self.batch_total(base.stack(parts))
        return [sums[n, ...] for n in range(len(wide))]

    # Products.

    def matmul(self, a: Any, b: Any, /) -> Any:
        """The matrix product. a is cut into two slices, scaled by its rows, and b into one, scaled by its columns."""
        if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
            raise ValueError(f"matmul of shapes {tuple(a.shape)} and {tuple(b.shape)}")
        lib, bits = self.lib, product_bits(a.shape[-1])
        a, b = self.widen(a), self.widen(b)
        high, low = slice_two(lib, a, factor_exponent(lib, a, -1), bits.two)
        one = slice_one(lib, b, factor_exponent(lib, b, -2 if b.ndim > 1 else 0), bits.one)
        return self.base.matmul(high, one) + self.base.matmul(low, one)

    def batch_product(self, a: Any, b: Any) -> Any:
        """The product a^T b, (k, m), of a (n, k) and b (n, m), whose rows are this worker's part of the batch.

        It is added up over all workers, and as exact as `matmul`.
        """
        a, b = self.widen(a), self.widen(b)
        bits = product_bits(self.batch_count(int(a.shape[0])))
        return self.product_sum(ProductSum(self.lib, b, a, bits, turned=True))

    def product_sum(self, summed: ProductSum) -> Any:
        """A product that is a sum over the batch."""
        return summed.whole(self.batch_total(summed.partial(self._agreed(summed.largest()))))

    def scatter_add(self, count: int, indices: Any, rows: Any, batch: bool = False) -> Any:
        """Make `count` rows of zeros, and add rows[i] to the row with the number indices[i], for each i.

        The rows are cut to one slice first, so the order of additions does not matter.

        batch: whether the rows are the batch's, and are added to a table that the workers share, as for the gradient
            of an embedding.
        """
        if not self._is_floating(rows):
            added = scatter_add(self.base, count, indices, rows)
            return self.astype(self.batch_total(self.widen(added)), added.dtype) if batch else added
        rows, own = self.widen(rows), int(rows.shape[0])
        summed = ScatteredSum(self.lib, count, indices, rows, self.batch_count(own) if batch else own)
        return self.scattered_sum(summed) if batch else summed.partial(summed.largest())

    def scattered_sum(self, summed: ScatteredSum) -> Any:
        """`scatter_add` of the batch's floating-point rows."""
        return self.batch_total(summed.partial(self._agreed(summed.largest())))

    # Elementwise.

    def astype(self, x: Any, dtype: Any, /, *, copy: bool = True) -> Any:
        """Convert to a dtype. Every floating-point dtype is float64 here.

        Conversion to integers: numbers beyond the range become its ends, and NaN becomes 0. Hardware differs there.
        """
        if self.base.isdtype(dtype, "real floating"):
            wide = self.enter(x) if x.dtype == self.base.float32 else x
            return self.base.astype(wide, self.base.float64, copy=copy)
        if self._is_floating(x) and self.base.isdtype(dtype, "integral"):
            ends = self.base.iinfo(dtype)
            top = float(ends.max)
            top = math.nextafter(top, 0.0) if int(top) > ends.max else top
            x = self.minimum(self.maximum(self.base.where(x == x, x, 0.0), float(ends.min)), top)
        return self.base.astype(x, dtype, copy=copy)

    def maximum(self, a: Any, b: Any, /) -> Any:
        """The larger of two; never -0."""
        return self.base.maximum(a, b) + 0

    def minimum(self, a: Any, b: Any, /) -> Any:
        """The smaller of two; never -0."""
        return self.base.minimum(a, b) + 0

    def clip(self, x: Any, /, min: Any = None, max: Any = None) -> Any:
        """x, limited to min .. max."""
        x = x if min is None else self.maximum(x, min)
        return x if max is None else self.minimum(x, max)

    def exp(self, x: Any, /) -> Any:
        """The exponential e^x."""
        return functions.exp(self.lib, self.widen(x))

    def expm1(self, x: Any, /) -> Any:
        """e^x - 1, accurate near x = 0."""
        return functions.expm1(self.lib, self.widen(x))

    def log(self, x: Any, /) -> Any:
        """The natural logarithm."""
        return functions.log(self.lib, self.widen(x))

    def log1p(self, x: Any, /) -> Any:
        """ln(1 + x), accurate near x = 0."""
        return functions.log1p(self.lib, self.widen(x))

    def tanh(self, x: Any, /) -> Any:
        """The hyperbolic tangent."""
        return functions.tanh(self.lib, self.widen(x))

    def erf(self, x: Any, /) -> Any:
        """The error function."""
        return functions.erf(self.lib, self.widen(x))

    def erfc(self, x: Any, /) -> Any:
        """The complementary error function, accurate also where it is small."""
        return functions.erfc(self.lib, self.widen(x))

    def sin(self, x: Any, /) -> Any:
        """The sine; NaN for |x| > 2^25."""
        return functions.sin(self.lib, self.widen(x))

    def cos(self, x: Any, /) -> Any:
        """The cosine; NaN for |x| > 2^25."""
        return functions.cos(self.lib, self.widen(x))

    def pow(self, a: Any, p: Any, /) -> Any:
        """The power a^p."""
        wide = (self.widen(v) if hasattr(v, "dtype") else v for v in (a, p))
        return functions.power(self.lib, *wide)
