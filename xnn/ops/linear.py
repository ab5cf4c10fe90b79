"""Matrix products: matmul, and dense, the affine map of a fully connected layer."""

from __future__ import annotations

from typing import Any

from xnn.errors import ShapeError
from xnn.ops.op import Array, Namespace, Op, unbroadcast
from xnn.ops.sums import product_over_rows

__all__ = ["dense", "matmul"]


def _columns(xp: Namespace, grad: Array, a_ndim: int, b_ndim: int) -> Array:
    """Insert into the gradient of a product the axes that a 1-d operand lacks, with extent 1."""
    if b_ndim == 1:
        grad = xp.expand_dims(grad, axis=-1)
    return xp.expand_dims(grad, axis=-2) if a_ndim == 1 else grad


def check_product(a: Array, b: Array) -> None:
    """Raise ShapeError if the matrices cannot be multiplied."""
    inner = b.shape[-2] if b.ndim > 1 else (b.shape[0] if b.ndim else None)
    if a.ndim == 0 or a.shape[-1] != inner:
        raise ShapeError(
            f"matrix product of shapes {a.shape} and {b.shape}: the last axis of the first must equal "
            f"the {'last but one' if b.ndim > 1 else 'only'} axis of the second"
        )


def check_bias(b: Any, outputs: tuple[int, ...]) -> None:
    """Raise ShapeError if a bias cannot be added to outputs of this shape without stretching them."""
    shape = getattr(b, "shape", ())
    if shape == outputs[-1:]:
        return
    fits = zip(reversed(shape), reversed(outputs), strict=False)
    if len(shape) > len(outputs) or any(mine not in (1, theirs) for mine, theirs in fits):
        raise ShapeError(f"dense: a bias of shape {shape} does not fit outputs of shape {outputs}")


def _left_gradient(xp: Namespace, grad: Array, a_shape: tuple[int, ...], b: Array) -> Array:
    """da = grad b^T, in a's shape."""
    grad = _columns(xp, grad, len(a_shape), b.ndim)
    b = b if b.ndim > 1 else xp.expand_dims(b, axis=-1)
    product = xp.matmul(grad, xp.matrix_transpose(b))
    if product.shape == a_shape:
        return product
    return xp.reshape(unbroadcast(xp, product, a_shape if len(a_shape) > 1 else (1, *a_shape)), a_shape)


def _right_gradient(xp: Namespace, grad: Array, a: Array, b_shape: tuple[int, ...]) -> Array:
    """db = a^T grad, in b's shape."""
    grad = _columns(xp, grad, a.ndim, len(b_shape))
    a = a if a.ndim > 1 else xp.expand_dims(a, axis=0)
    product = product_over_rows(xp, a, grad)
    if product.shape == b_shape:
        return product
    return xp.reshape(unbroadcast(xp, product, b_shape if len(b_shape) > 1 else (*b_shape, 1)), b_shape)


class Matmul(Op):
    """Matrix product: y = a b; da = grad b^T, db = a^T grad.

    a: shape (..., n, k), or (k,) as in NumPy.
    b: shape (..., k, m), or (k,) as in NumPy.

    Leading axes are broadcast. Raises ShapeError if the shapes do not fit.

    >>> import numpy as np
    >>> matmul(np.ones((2, 3)), np.ones((3, 4))).shape
    (2, 4)
    """

    def forward(self, xp: Namespace, a: Array, b: Array) -> tuple[Array, Any]:
        check_product(a, b)
        return xp.matmul(a, b), (a, b)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        a, b = saved
        return _left_gradient(xp, grad, a.shape, b), _right_gradient(xp, grad, a, b.shape)


class Dense(Op):
    """Affine map: y = x W + b; dx = grad W^T, dW = x^T grad, db = the sum of grad over the batch.

    x: shape (n, inputs), or one row (inputs,).
    W: shape (inputs, outputs), or (inputs,) for a single output.
    b: shape (outputs,); may be omitted; a number for a single output.

    Raises ShapeError if the shapes do not fit.

    >>> import numpy as np
    >>> dense(np.ones((2, 3)), np.ones((3, 4)), np.zeros(4)).shape
    (2, 4)
    """

    def forward(self, xp: Namespace, x: Array, w: Array, b: Array | None = None) -> tuple[Array, Any]:
        check_product(x, w)
        y = xp.matmul(x, w)
        if b is None:
            return y, (x, w, w.shape, None)
        check_bias(b, y.shape)
        return y + b, (x, w, w.shape, b)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        x, w, w_shape, b = saved
        dx = None if w is None else _left_gradient(xp, grad, x.shape, w)
        dw = _right_gradient(xp, grad, x, w_shape)
        return (dx, dw) if b is None else (dx, dw, unbroadcast(xp, grad, b))

    def without_input_gradient(self, saved: Any) -> Any:
        """Return `saved` without the weights, which only dx, the gradient of the inputs, needs."""
        x, _, w_shape, b = saved
        return x, None, w_shape, b


matmul = Matmul()
dense = Dense()
