"""The namespace in which ops are exact: `xp` for the same ops, with numbers and functions of its own.

An op's inputs, stored as float32, are widened to float64 once (`enter`), what it returns is rounded to float32
(`leave`), and in between every operation is one correctly rounded float64 operation. Reductions are sums of slices.
Whatever is not in this file is refused by name: a function that was not looked at is not exact.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from xnn.backends.communicator import communicator
from xnn.backends.exact import functions
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

#: What is exact wherever IEEE arithmetic is: it moves, compares or counts, or rounds once.
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
    """Exact functions over the arrays of one backend, `lib`."""

    def __init__(self, lib: Any, roles: dict[Op, Op] | None = None) -> None:
        self.lib, self.base = lib, lib.xp
        #: Ops that have an exact form of their own, since their operands have roles.
        self.roles = roles or {}

    def __getattr__(self, name: str) -> Any:
        if name in _PLAIN:
            return getattr(self.base, name)
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("float32", "float64"):  # inside an op there is one format
            return self.base.float64
        raise NoExactFormError(
            f"xp.{name} has no exact form: compose it of functions that have one (xnn.backends.exact.namespace lists "
            "them), or train with numerics='fast'"
        )

    def __repr__(self) -> str:
        return f"<exact namespace of {self.lib.name}>"

    # The boundary of an op.

    def role(self, op: Op) -> Op:
        """The op's exact form."""
        return self.roles.get(op, op)

    def enter(self, x: Any) -> Any:
        """A stored array as ops compute with it: float32 as float64 without subnormals and -0, all else as it is.

        Raises DTypeError for float64 arrays and other floating-point formats.
        """
        if isinstance(x, ScaledIntegers):
            x = x.materialize()
        if not hasattr(x, "dtype") or not self.base.isdtype(x.dtype, ("real floating", "complex floating")):
            return x
        if x.dtype != self.base.float32:
            raise DTypeError(
                f"exact numerics store float32 and got {x.dtype}: convert it (x.astype('float32'), layers with "
                "dtype='float32'), or compute in float64 with numerics='fast'"
            )
        return (self.base.asarray(x, dtype=self.base.float64) + FLUSH) - FLUSH

    def widen(self, x: Any) -> Any:
        """An array as float64: float32 that an op has from elsewhere than its inputs, and integers to multiply."""
        if x.dtype == self.base.float64:
            return x
        if x.dtype == self.base.float32:
            return self.enter(x)
        return self.base.astype(x, self.base.float64)

    def _is_floating(self, x: Any) -> bool:
        return bool(self.base.isdtype(x.dtype, "real floating"))

    def leave(self, y: Any) -> Any:
        """What an op returns, as it is stored; also what a function of the user's returns as float32."""
        if not hasattr(y, "dtype") or isinstance(y, ScaledIntegers):
            return y
        if y.dtype == self.base.float64:
            return to32(self.lib, y)
        return to32(self.lib, self.enter(y)) if y.dtype == self.base.float32 else y

    # Reductions.

    def sum(self, x: Any, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Any:
        """The sum over `axis`: of float64 by one slice, rounded nowhere but at its terms' last bit."""
        if not self._is_floating(x):
            return self.base.sum(x, axis=axis, dtype=dtype, keepdims=keepdims)
        x, terms = self.widen(x), self._extent(x.shape, axis)
        cut = slice_one(self.lib, x, exponent(self.lib, x, axis), sum_bits(terms))
        return self.base.sum(cut, axis=axis, keepdims=keepdims) + 0.0

    def mean(self, x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
        """sum / n."""
        return self.sum(x, axis=axis, keepdims=keepdims) / float(self._extent(x.shape, axis))

    def var(self, x: Any, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Any:
        """The mean of (x - mean)^2, of which `correction` samples are left out of the count."""
        away = self.widen(x) - self.mean(x, axis=axis, keepdims=True)
        count = self._extent(x.shape, axis) - correction
        return self.sum(away * away, axis=axis, keepdims=keepdims) / float(count)

    def std(self, x: Any, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Any:
        """The square root of var."""
        return self.base.sqrt(self.var(x, axis=axis, correction=correction, keepdims=keepdims))

    def max(self, x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
        """The largest element; never -0, so that it does not matter which zero came first."""
        y = self.base.max(x, axis=axis, keepdims=keepdims)
        return y + 0.0 if self._is_floating(y) else y

    def min(self, x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
        """The smallest element; never -0."""
        y = self.base.min(x, axis=axis, keepdims=keepdims)
        return y + 0.0 if self._is_floating(y) else y

    def argmax(self, x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
        """The least index of the largest element, of the first NaN where there is one."""
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
        """The least index of the smallest element, of the first NaN where there is one."""
        return self._index_of(self.base.min, x, axis, keepdims)

    def argsort(self, x: Any, /, *, axis: int = -1, stable: bool = True) -> Any:
        """The indices that sort x, equal elements in the order of their indices, whatever `stable` says."""
        return self.base.argsort(x, axis=axis, stable=True)

    def sort(self, x: Any, /, *, axis: int = -1, stable: bool = True) -> Any:
        """x in order; never -0."""
        return self.base.sort(x, axis=axis, stable=True) + 0

    @staticmethod
    def _extent(shape: tuple[int, ...], axis: Axis) -> int:
        axes = range(len(shape)) if axis is None else ((axis,) if isinstance(axis, int) else axis)
        return math.prod(shape[a] for a in axes)

    # Reductions over the batch, which all workers share.

    def batch_count(self, rows: int) -> int:
        """The rows of the whole batch, given this worker's."""
        shared = communicator()
        return rows if shared is None else shared.count(rows)

    def batch_exponent(self, x: Any, axis: Axis = 0) -> Any:
        """exponent(x) over the whole batch."""
        own, shared = exponent(self.lib, x, axis), communicator()
        return own if shared is None else shared.maximum(own)

    def batch_total(self, partial: Any) -> Any:
        """The sum of all workers' partial sums, none of which was rounded."""
        shared = communicator()
        return partial if shared is None else shared.total(partial)

    def batch_sum(self, x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
        """The sum over `axis`, of which axis 0 is the batch's."""
        axes = tuple(range(x.ndim)) if axis is None else ((axis,) if isinstance(axis, int) else axis)
        inside = tuple(a for a in axes if a % x.ndim)
        if len(inside) == len(axes):
            return self.sum(x, axis=axes, keepdims=keepdims)
        if not self._is_floating(x):
            counted = self.base.sum(x, axis=axes, keepdims=keepdims)
            return self.astype(self.batch_total(self.widen(counted)), counted.dtype)
        x = self.widen(x)
        terms = self._extent(x.shape, inside) * self.batch_count(int(x.shape[0]))
        cut = slice_one(self.lib, x, self.batch_exponent(x, axes), sum_bits(terms))
        return self.batch_total(self.base.sum(cut, axis=axes, keepdims=keepdims) + 0.0)

    # Products.

    def matmul(self, a: Any, b: Any, /) -> Any:
        """The matrix product of float64 a, cut row by row into two slices, and b, column by column into one."""
        if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
            raise ValueError(f"matmul of shapes {tuple(a.shape)} and {tuple(b.shape)}")
        lib, bits = self.lib, product_bits(a.shape[-1])
        a, b = self.widen(a), self.widen(b)
        high, low = slice_two(lib, a, factor_exponent(lib, a, -1), bits.two)
        one = slice_one(lib, b, factor_exponent(lib, b, -2 if b.ndim > 1 else 0), bits.one)
        return self.base.matmul(high, one) + self.base.matmul(low, one)

    def scatter_add(self, count: int, indices: Any, rows: Any, batch: bool = False) -> Any:
        """`count` rows of zeros to which rows[i] is added at indices[i], in any order: the rows are cut first.

        batch: whether they are the batch's rows, and go to one table of all workers (an embedding's gradient).
        """
        if not self._is_floating(rows):
            added = scatter_add(self.base, count, indices, rows)
            return self.astype(self.batch_total(self.widen(added)), added.dtype) if batch else added
        rows, own = self.widen(rows), int(rows.shape[0])
        terms = self.batch_count(own) if batch else own
        largest = self.batch_exponent(rows) if batch else exponent(self.lib, rows, 0)
        cut = slice_one(self.lib, rows, largest, sum_bits(terms))
        added = scatter_add(self.base, count, indices, cut) + 0.0
        return self.batch_total(added) if batch else added

    # Elementwise.

    def astype(self, x: Any, dtype: Any, /, *, copy: bool = True) -> Any:
        """As the Array API's; floating-point numbers are float64 here, whatever they are called outside.

        Numbers beyond an integer's range become its ends, and NaN 0: hardware has its own ideas.
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
        """The larger; never -0."""
        return self.base.maximum(a, b) + 0

    def minimum(self, a: Any, b: Any, /) -> Any:
        """The smaller; never -0."""
        return self.base.minimum(a, b) + 0

    def clip(self, x: Any, /, min: Any = None, max: Any = None) -> Any:
        """x, but no less than `min` and no more than `max`."""
        x = x if min is None else self.maximum(x, min)
        return x if max is None else self.minimum(x, max)

    def exp(self, x: Any, /) -> Any:
        """e^x."""
        return functions.exp(self.lib, self.widen(x))

    def expm1(self, x: Any, /) -> Any:
        """e^x - 1."""
        return functions.expm1(self.lib, self.widen(x))

    def log(self, x: Any, /) -> Any:
        """ln x."""
        return functions.log(self.lib, self.widen(x))

    def log1p(self, x: Any, /) -> Any:
        """ln (1 + x)."""
        return functions.log1p(self.lib, self.widen(x))

    def tanh(self, x: Any, /) -> Any:
        """The hyperbolic tangent."""
        return functions.tanh(self.lib, self.widen(x))

    def erf(self, x: Any, /) -> Any:
        """The error function."""
        return functions.erf(self.lib, self.widen(x))

    def sin(self, x: Any, /) -> Any:
        """The sine."""
        return functions.sin(self.lib, self.widen(x))

    def cos(self, x: Any, /) -> Any:
        """The cosine."""
        return functions.cos(self.lib, self.widen(x))

    def pow(self, a: Any, p: Any, /) -> Any:
        """a^p."""
        wide = (self.widen(v) if hasattr(v, "dtype") else v for v in (a, p))
        return functions.power(self.lib, *wide)
