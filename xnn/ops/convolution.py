"""Convolution of images, computed as a matrix product of their windows."""

from __future__ import annotations

from typing import Any

from xnn.errors import ShapeError
from xnn.ops.apply import batch_part
from xnn.ops.linear import dense
from xnn.ops.op import Array, Namespace, Op, size_of
from xnn.ops.windows import Windows, fold, unfold, windows_of

__all__ = ["conv2d"]


class Conv2D(Op):
    """Convolution of images, in PyTorch's layout and by its formula (strictly speaking a cross-correlation).

        y[n, o, u, v] = b[o] + sum over c, i, j of w[o, c, i, j] x[n, c, u s + i d - p, v s + j d - p]

    Outside the image, x is 0. The result has shape (n, O, oh, ow), oh = floor((H + 2 p - d (kh - 1) - 1) / s) + 1,
    ow likewise.

    x: images, shape (n, C, H, W).
    weight: shape (O, C, kh, kw).
    bias: shape (O,); may be omitted.
    stride s: an integer, or a pair for rows and columns; default 1.
    padding p: an integer, a pair, or "same", which gives y the size of x and needs stride 1; default 0.
    dilation d: an integer or a pair; default 1.

    Raises ShapeError for shapes that do not fit, OptionError for options that are not as above.

    It is computed as `dense` of the windows, as rows (n oh ow, C kh kw), and the weights, as a matrix (C kh kw, O).
    So dw is the gradient of dense; dx is the gradient of dense for the rows, added up where windows overlap; db is
    the sum over images and positions.
    """

    #: The op that computes the matrix product. Exact numerics put their form of dense here.
    product: Op = dense

    def forward(
        self,
        xp: Namespace,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
    ) -> tuple[Array, Any]:
        _check(x.shape, weight.shape, None if bias is None else getattr(bias, "shape", ()))
        outputs = weight.shape[0]
        windows = windows_of("conv2d", x.shape, weight.shape[2:], stride, padding, dilation)
        matrix = xp.matrix_transpose(xp.reshape(weight, (outputs, size_of(weight.shape[1:]))))
        y, saved = self.product.forward(xp, self.rows(xp, x, windows), matrix)
        y = xp.reshape(y, (x.shape[0], windows[0].number, windows[1].number, outputs))
        y = _side_by_side(xp, xp.permute_dims(y, (0, 3, 1, 2)))
        if bias is not None:
            y = y + xp.reshape(bias, (outputs, 1, 1))
        return y, (saved, x.shape, weight.shape, windows, bias is not None)

    def backward(self, xp: Namespace, grad: Array, saved: Any) -> tuple[Array | None, ...]:
        product_saved, x_shape, weight_shape, windows, has_bias = saved
        n, outputs, height, width = grad.shape
        dy = xp.reshape(xp.permute_dims(grad, (0, 2, 3, 1)), (n * height * width, outputs))
        d_rows, d_matrix = self.product.backward(xp, dy, product_saved)
        dx = None if d_rows is None else self.d_images(xp, d_rows, x_shape, windows)
        dw = xp.reshape(xp.matrix_transpose(d_matrix), weight_shape)
        return (dx, dw, batch_part(xp, grad, axis=(0, 2, 3))) if has_bias else (dx, dw)

    def without_input_gradient(self, saved: Any) -> Any:
        """Return `saved` without the arrays that only dx, the gradient of the images, needs."""
        product_saved, *rest = saved
        return self.product.without_input_gradient(product_saved), *rest

    def rows(self, xp: Namespace, x: Array, windows: tuple[Windows, Windows]) -> Array:
        """Every window of every image as a row: (n oh ow, C kh kw)."""
        return unfold(xp, x, windows)

    def d_images(
        self, xp: Namespace, d_rows: Array, shape: tuple[int, ...], windows: tuple[Windows, Windows]
    ) -> Array:
        """dx from the gradient of the rows. Channels are the last axis until all is added, which is faster."""
        (n, channels), (rows, columns) = shape[:2], windows
        d = xp.reshape(d_rows, (n, rows.number, columns.number, channels, rows.kernel, columns.kernel))
        parts = [d[..., i, j] for i in range(rows.kernel) for j in range(columns.kernel)]
        return _side_by_side(xp, xp.permute_dims(fold(xp, parts, windows, axis=1), (0, 3, 1, 2)))


def _side_by_side(xp: Namespace, x: Array) -> Array:
    """A copy with each image's pixels side by side in memory, where the next op reads them fastest."""
    flat = xp.reshape(x, (-1,))  # an array with permuted axes has no flat view, so this copies
    return xp.reshape(flat, x.shape)


def _check(x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None) -> None:
    """Raise ShapeError unless the shapes fit one another. Sizes of windows are checked by windows_of."""
    if len(weight) != 4:
        raise ShapeError(
            f"conv2d got weights of shape {tuple(weight)}: it needs (outputs, channels, height, width)"
        )
    if len(x) == 4 and x[1] != weight[1]:
        raise ShapeError(
            f"conv2d of images of shape {tuple(x)} with weights of shape {tuple(weight)}: the images have "
            f"{x[1]} channels and the weights {weight[1]}"
        )
    if bias is not None and tuple(bias) != (weight[0],):
        raise ShapeError(
            f"conv2d got a bias of shape {tuple(bias)} for {weight[0]} outputs: it must have shape ({weight[0]},)"
        )


conv2d = Conv2D()
