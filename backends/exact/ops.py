"""The ops that have their own form in exact numerics: dense, conv2d, rescale, and those that keep integers.

A product is exact if its operands are cut into slices of few enough bits (`slices.py`). How an operand is cut follows
from its role in the op, never from its values:

- x W and dy W^T: the weights W are one slice, scaled by the largest element of the tensor; x and dy are two slices,
  scaled by the largest element of each row.
- x^T dy: x is one slice and dy is two, scaled by the largest element of each column of the whole batch.
- Pixels (`ScaledIntegers`) are integers, and are not cut.
- conv2d is dense of the windows of its images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xnn import ops
from xnn.backends.exact.batch_sums import ProductSum
from xnn.backends.exact.namespace import ExactNamespace
from xnn.backends.exact.scaled import ScaledIntegers, integer_bits
from xnn.backends.exact.slices import ProductBits, budget, exponent, product_bits, slice_one, slice_two
from xnn.ops import Array, Op
from xnn.ops.activations import Rescale
from xnn.ops.convolution import Conv2D
from xnn.ops.linear import Dense, check_bias, check_product
from xnn.ops.op import size_of
from xnn.ops.windows import Windows

__all__ = ["ROLES", "DenseBits"]


@dataclass(frozen=True)
class DenseBits:
    """The bits of each slice in y = x W + b and in its gradients. integers: the bits of x if it is ScaledIntegers."""

    inputs: int
    outputs: int
    integers: int | None = None

    @property
    def weight(self) -> int:
        """Bits of the one slice of W in x W."""
        return self.shared if self.integers is None else min(50, budget(self.inputs) - self.integers)

    @property
    def shared(self) -> int:
        """Bits of the one slice of W in dy W^T, and in x W as well if x is cut."""
        return product_bits(max(self.inputs, self.outputs)).one

    @property
    def x(self) -> int:
        """Bits of the two slices of x in x W."""
        return budget(self.inputs) - self.shared

    @property
    def dy(self) -> int:
        """Bits of the two slices of dy in dy W^T."""
        return budget(self.outputs) - self.shared

    def x_column(self, rows: int) -> int:
        """Bits of the one slice of x in x^T dy."""
        return product_bits(rows).one

    def dy_column(self, rows: int) -> int:
        """Bits of the two slices of dy in x^T dy, or of its one slice if x is integers."""
        return product_bits(rows).two if self.integers is None else min(50, budget(rows) - self.integers)


class ExactDense(Dense):
    """dense: x_high W and x_low W are computed exactly and added with one rounding; then b is added."""

    takes_stored = True
    name = "dense"

    def forward(self, xp: ExactNamespace, x: Array, w: Array, b: Array | None = None) -> tuple[Array, Any]:
        check_product(x, w)
        lib, base = xp.lib, xp.base
        rows, (inputs, outputs) = _rows(x.shape), _matrix(w.shape)
        w64 = base.reshape(xp.widen(xp.enter(w)), (inputs, outputs))
        if isinstance(x, ScaledIntegers):
            bits = DenseBits(inputs, outputs, x.bits)
            one = slice_one(lib, w64, exponent(lib, w64), bits.weight)
            y = base.matmul(base.reshape(x.widened(), (rows, inputs)), one) * x.scale
        else:
            bits = DenseBits(inputs, outputs)
            one = slice_one(lib, w64, exponent(lib, w64), bits.weight)
            x64 = base.reshape(xp.widen(xp.enter(x)), (rows, inputs))
            high, low = slice_two(lib, x64, exponent(lib, x64, 1), bits.x)
            y = base.matmul(high, one) + base.matmul(low, one)
        y = base.reshape(y, (*x.shape[:-1], *w.shape[1:]))
        if b is not None:
            check_bias(b, y.shape)
            y = y + xp.enter(b)
        return y, (x, w, w.shape, b)

    def backward(self, xp: ExactNamespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        x, w, w_shape, b = saved
        base = xp.base
        inputs, outputs = _matrix(w_shape)
        grad = xp.enter(grad)
        dy = base.reshape(grad, (_rows(x.shape), outputs))
        bits = DenseBits(inputs, outputs, x.bits if isinstance(x, ScaledIntegers) else None)
        dx = None if w is None else base.reshape(self._dx(xp, dy, w, bits), x.shape)
        dw = base.reshape(self._dw(xp, x, dy, bits), w_shape)
        if b is None:
            return dx, dw
        return dx, dw, self._db(xp, grad, b, x.ndim > 1)

    @staticmethod
    def _db(xp: ExactNamespace, grad: Array, b: Any, batch: bool) -> Array | None:
        """db: grad summed to the shape of b. The axes follow from b alone, so they are the same for all workers."""
        if not hasattr(b, "shape"):
            return None
        extents = (1,) * (grad.ndim - b.ndim) + tuple(b.shape)
        axes = tuple(axis for axis, extent in enumerate(extents) if extent == 1)
        total = xp.batch_sum if batch else xp.sum
        return xp.base.reshape(total(grad, axis=axes, keepdims=True), b.shape) if axes else grad

    @staticmethod
    def _dx(xp: ExactNamespace, dy: Array, w: Array, bits: DenseBits) -> Array:
        lib, base = xp.lib, xp.base
        w64 = base.reshape(xp.widen(xp.enter(w)), (bits.inputs, bits.outputs))
        one = base.matrix_transpose(slice_one(lib, w64, exponent(lib, w64), bits.shared))
        high, low = slice_two(lib, dy, exponent(lib, dy, 1), bits.dy)
        return base.matmul(high, one) + base.matmul(low, one)

    @staticmethod
    def _dw(xp: ExactNamespace, x: Array, dy: Array, bits: DenseBits) -> Array:
        """dW = x^T dy, summed over the rows of all workers. A single sample (inputs,) is the whole sum."""
        batch = x.ndim > 1
        rows = xp.batch_count(int(dy.shape[0])) if batch else 1
        scaled = x if isinstance(x, ScaledIntegers) else None
        x64 = xp.widen(xp.enter(x)) if scaled is None else scaled.widened()
        summed = ProductSum(
            xp.lib, xp.base.reshape(x64, (dy.shape[0], bits.inputs)), dy,
            ProductBits(bits.x_column(rows), bits.dy_column(rows)), None if scaled is None else scaled.scale,
        )  # fmt: skip
        return xp.product_sum(summed) if batch else summed.whole(summed.partial(summed.largest()))


def _rows(shape: tuple[int, ...]) -> int:
    return size_of(shape[:-1])


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """The numbers of inputs and outputs of W; shape (inputs,) is one output."""
    return shape[0], size_of(shape[1:])


class ExactConv2D(Conv2D):
    """conv2d, whose matrix product is that of ExactDense. The rows are the windows of the images."""

    takes_stored = True
    name = "conv2d"
    product = ExactDense()

    def forward(
        self, xp: ExactNamespace, x: Array, weight: Array, bias: Array | None = None, **options: Any
    ) -> tuple[Array, Any]:
        return super().forward(xp, x, weight, None if bias is None else xp.enter(bias), **options)

    def rows(self, xp: ExactNamespace, x: Array, windows: tuple[Windows, Windows]) -> Array:
        """The windows as rows. ScaledIntegers stay integers."""
        if isinstance(x, ScaledIntegers):
            return x.with_integers(super().rows(xp.base, x.integers, windows))
        return super().rows(xp, x, windows)


class ExactRescale(Rescale):
    """rescale, which makes ScaledIntegers of integers of at most 16 bits."""

    takes_stored = True
    gives_stored = True
    name = "rescale"

    def forward(
        self,
        xp: ExactNamespace,
        x: Array,
        *,
        scale: Any,
        offset: Any = 0.0,
        dtype: Any = None,
        shift: Any = None,
        wide: Any = None,
    ) -> tuple[Array, Any]:
        if shift is not None:  # x, y and the options may be float64: that is what `shift` is for
            x = x.materialize() if isinstance(x, ScaledIntegers) else x
            wide = xp.base.float64
            y, saved = super().forward(xp.base, x, scale=scale, offset=offset, shift=shift, wide=wide)
            return (y if dtype == wide else xp.leave(y)), saved
        y, saved = self._unshifted(xp, x, scale, offset, dtype)
        return xp.leave(y), saved

    def _unshifted(
        self, xp: ExactNamespace, x: Array, scale: Any, offset: Any, dtype: Any
    ) -> tuple[Array, Any]:
        if dtype is not None and dtype == xp.base.float64:
            xp.enter(xp.base.empty(0, dtype=dtype))  # raises DTypeError, since nothing is stored as float64
        plain = isinstance(scale, float) and isinstance(offset, float) and offset == 0.0
        if plain and not isinstance(x, ScaledIntegers) and integer_bits(xp.base, x.dtype) is not None:
            return ScaledIntegers(xp.lib, x, scale), (scale, x.dtype)
        scale, offset = xp.enter(scale), xp.enter(offset)
        y, (_, _) = super().forward(xp, xp.enter(x), scale=scale, offset=offset, dtype=dtype)
        return y, (scale, x.dtype)

    def backward(self, xp: ExactNamespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        stored_wide = grad.dtype == xp.base.float64  # after a Rescale to float64, the last layer of a model
        return super().backward(xp, grad if stored_wide else xp.enter(grad), saved)


class _Moved(Op):
    """flatten, reshape or identity, applied to the integers of ScaledIntegers; the scale stays the same."""

    takes_stored = True

    def __init__(self, op: Op) -> None:
        self.op = op

    @property
    def name(self) -> str:
        return self.op.name

    def forward(self, xp: ExactNamespace, x: Array, **options: Any) -> tuple[Array, Any]:
        if not isinstance(x, ScaledIntegers):
            return self.op.forward(xp, xp.enter(x), **options)
        integers, saved = self.op.forward(xp.base, x.integers, **options)
        return x.with_integers(integers), saved

    def backward(self, xp: ExactNamespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        return self.op.backward(xp, xp.enter(grad), saved)


#: The ops that have a form of their own in exact numerics, and that form.
ROLES: dict[Op, Op] = {
    ops.dense: ExactDense(),
    ops.conv2d: ExactConv2D(),
    ops.rescale: ExactRescale(),
    ops.flatten: _Moved(ops.flatten),
    ops.reshape: _Moved(ops.reshape),
    ops.identity: _Moved(ops.identity),
}
