"""Exact kernels of images on the CPU: convolution, maximum pooling, and changes of the shape.

A convolution is a dense layer of the windows of its images (`backends/exact/ops.py`). The windows of a few images are
copied side by side, as the columns of a matrix (C kh kw, places). So y = W columns and W^T dy have the layout of
images, and all buffers stay in the processor's cache.

    y      W is one slice; columns are two slices, each column (a window) on its own scale
    dx     W is the same slice; dy is two slices, each place on its own scale; windows are added up in float64
    dW     columns are one slice, each row on its scale over the whole batch; dy is two slices, each channel likewise

Sums of products of slices are not rounded, so their order changes no bit. The passes over windows exist twice, with
the same names: in plain NumPy (`numpy_images.py`) and as compiled loops (`compiled_images.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.exact.ops import DenseBits
from xnn.backends.exact.slices import FLUSH, sum_bits
from xnn.backends.kernels.calls import Call, Runnable, chain, nothing
from xnn.backends.kernels.image_kernels import conv_windows
from xnn.backends.kernels.pool_kernels import serves_pool
from xnn.ops.windows import Windows

__all__ = ["Convolution", "WeightSums", "gradient_of_images", "image_kernels", "round_to"]


@dataclass
class Convolution:
    """The arrays of a convolution, as the passes read them.

    x: images (n, C, H, W), float32; they stand for x times `scale`. one: the slice of W, (O, C kh kw).
    bias: (O,). y: (n, O, oh, ow). positive: whether y is max(y, 0). high, low: the tables (`splitters`) for the two
    slices of the windows; None where x has integers, which need none.
    """

    x: np.ndarray
    windows: tuple[Windows, Windows]
    one: np.ndarray
    bias: np.ndarray
    y: np.ndarray
    scale: float
    positive: bool
    high: Any
    low: Any
    bits: DenseBits

    @property
    def places(self) -> int:
        """The number of windows of an image."""
        return self.windows[0].number * self.windows[1].number

    @property
    def is_scaled(self) -> bool:
        """Whether x has integers."""
        return self.low is None


def _serves_conv2d(call: Call) -> bool:
    """Whether arrays are float32 and not empty, the activation is ReLU or none, and pixels need no gradient."""
    forward = call.forward or call
    x, *others = forward.reads
    y, *_ = forward.writes
    wanted = call is not forward and call.writes[0] is not None
    slots = [slot for slot in (x, *others, y) if slot is not None]
    plain = all(np.dtype(slot.dtype) == np.float32 and 0 not in slot.shape for slot in slots)
    return (
        plain
        and all(slot.scaled is None for slot in others)
        and forward.activation in (None, ops.relu)
        and not (wanted and x.scaled is not None)
    )


def _serves_pool(call: Call) -> bool:
    """Whether pooling moves numbers and adds none: each element of an image is in one window at most."""
    x = (call.forward or call).reads[0]
    return np.dtype(x.dtype) == np.float32 and x.scaled is None and serves_pool(call)


def _serves_shape(call: Call) -> bool:
    """Whether the elements are float32 or scaled integers, and stay what they are."""
    slots = (*call.reads, *call.writes)
    stored = all(s is not None and np.dtype(s.dtype) == np.float32 and 0 not in s.shape for s in slots)
    return stored and len({s is not None and s.scaled is not None for s in slots}) == 1


def gradient_of_images(lib: Any, passes: Any, splitters: Any, call: Call) -> list[Runnable]:
    """The steps of conv2d's backward pass that add up no images: dz from dy in place, then dx, from the weights."""
    assert call.forward is not None
    made: Convolution = call.forward.saved
    dz, slot = call.reads[0].array, call.writes[0]
    flat = made.y.reshape(len(dz), -1), None, dz.reshape(len(dz), -1)
    steps = [passes.activation_gradient(ops.relu, *flat)] if made.positive else []
    if slot is not None:
        high, low = splitters(lib, made.bits.dy), splitters(lib, 2 * made.bits.dy + 1)
        steps.append(passes.images.images_gradient(made, high, low, dz, slot.array))
    return steps


def round_to(totals: np.ndarray, out: np.ndarray) -> Runnable:
    """out <- sums, rounded to float32."""
    return lambda: np.copyto(out, (totals + FLUSH) - FLUSH, casting="same_kind")


class WeightSums:
    """dW = dz columns^T and db, the sum of dz, over all images of a batch, in three turns (`shared_table.py`).

    call: the backward call of conv2d. count: the images of the whole batch. fields, sums: how many exponents it
    looks for, and how many sums it makes. look, cut, finish: the turns, which `attach` makes.
    """

    def __init__(self, lib: Any, passes: Any, splitters: Any, call: Call, count: int) -> None:
        assert call.forward is not None
        self.made: Convolution = call.forward.saved
        self.passes, self.dz = passes, call.reads[0].array
        _, self.dw, *rest = (None if slot is None else slot.array for slot in call.writes)
        self.db = rest[0] if rest else None
        bits, rows, cuts_x = self.made.bits, count * self.made.places, not self.made.is_scaled
        self.outputs, self.width = self.made.one.shape
        columns = bits.dy_column(rows)
        self.table, high = splitters(lib, sum_bits(rows)), splitters(lib, columns)
        self.tables = (
            (splitters(lib, bits.x_column(rows)), high, splitters(lib, 2 * columns + 1))
            if cuts_x
            else (None, high, None)
        )
        needed = self.dw is not None or self.db is not None
        self.fields = (self.outputs if needed else 0) + (self.width if cuts_x and self.dw is not None else 0)
        self.size = 0 if self.dw is None else (2 if cuts_x else 1) * self.outputs * self.width
        self.sums = self.size + (0 if self.db is None else self.outputs)

    def attach(self, fields: np.ndarray, sums: np.ndarray) -> None:
        """Take the arrays for exponents and sums, and make the turns."""
        self.look = self.cut = self.finish = nothing
        if not self.fields:
            return
        made, images, of_dz, of_x = (
            self.made,
            self.passes.images,
            fields[: self.outputs],
            fields[self.outputs :],
        )
        cuts, ends = [], []
        self.look = images.largest_fields(made, self.dz, of_dz, of_x if of_x.size else None)
        if self.db is not None:
            totals = sums[self.size :]
            cuts.append(images.sum_images(self.dz, self.table, of_dz, totals))
            ends.append(round_to(totals, self.db))
        if self.dw is not None:
            products = sums[: self.size].reshape(-1, self.width)
            dw = self.dw.reshape(made.one.shape)
            cuts.append(images.weight_products(made, self.tables, self.dz, of_dz, of_x, products))
            ends.append(self.passes.finish(products, made.scale, None, dw, None, None))
        self.cut, self.finish = chain(*cuts), chain(*ends)


def image_kernels(lib: Any, passes: Any, splitters: Any) -> dict[tuple[str, Any], Any]:
    """The kernels of images for `ExactTable`."""
    images = passes.images

    def conv2d(call: Call) -> Runnable:
        """y = f(W columns + b). The slice of W is kept for the backward call."""
        x, w, *rest = (slot.array for slot in call.reads)
        y, scaled = call.writes[0].array, call.reads[0].scaled  # type: ignore[union-attr]
        outputs, width = w.shape[0], w[0].size
        bits = DenseBits(width, outputs, None if scaled is None else scaled.bits)
        one, enter = lib.buffer((outputs, width), np.float64), nothing
        high, low = splitters(lib, bits.x), splitters(lib, 2 * bits.x + 1)
        if scaled is not None:
            high = low = None
            integers, x = x.integers, lib.buffer(x.shape, np.float32)
            enter = lambda: np.copyto(x, integers)  # noqa: E731
        bias = rest[0] if rest else np.zeros(outputs, np.float32)
        call.saved = Convolution(
            x, conv_windows(call), one, bias, y,
            1.0 if scaled is None else scaled.scale, call.activation is not None, high, low, bits,
        )  # fmt: skip
        cut = passes.slice_tensor(w, splitters(lib, bits.weight), one, np.zeros(2, np.int64))
        return chain(enter, cut, images.convolve(call.saved))

    def conv2d_backward(call: Call) -> Runnable:
        """Compute dz from dy in place, then dx, dW and db."""
        sums = WeightSums(lib, passes, splitters, call, len(call.reads[0].array))
        sums.attach(np.empty(sums.fields, np.int32), lib.buffer((sums.sums,), np.float64))
        return chain(*gradient_of_images(lib, passes, splitters, call), sums.look, sums.cut, sums.finish)

    def move(call: Call) -> Runnable:
        source, target = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
        if call.reads[0].scaled is not None:
            source, target = source.integers, target.integers
        return lambda: np.copyto(target, source.reshape(target.shape))

    shapes = ops.flatten, ops.reshape, ops.identity
    return {
        ("forward", ops.conv2d): (conv2d, _serves_conv2d),
        ("backward", ops.conv2d): (conv2d_backward, _serves_conv2d),
        ("forward", ops.max_pool2d): (images.pool, _serves_pool),
        ("backward", ops.max_pool2d): (images.pool, _serves_pool),
        **{(kind, op): (move, _serves_shape) for kind in ("forward", "backward") for op in shapes},
    }
