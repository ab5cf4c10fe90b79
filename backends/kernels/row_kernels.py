"""Kernels of convolution in plain NumPy for images of several channels: one product for each row of the windows.

A batch's images are written as planes, a few images at a time (`shifts.py`). The kw elements of a window's row are
kw shifted copies of the planes: the columns. The rows of a window need no copies, since row i of all windows is the
columns from a later place on. So with W_i the weights of row i,

    y = sum over i of W_i columns[i pitch ...],   dW_i = dy columns[i pitch ...]^T

and dx is a sum over the columns j of the windows, each of which is a sum over their rows of W_ij^T dy. That is a
third of the memory of all windows (`image_kernels.py`) for windows of 3 x 3, and long products by BLAS, which adds
them up (`blas.gemm`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels.batch_parts import in_parts
from xnn.backends.kernels.blas import gemm
from xnn.backends.kernels.calls import Call, Runnable
from xnn.backends.kernels.image_kernels import (
    conv2d_by_windows,
    conv2d_by_windows_backward,
    conv_windows,
    serves_conv2d,
)
from xnn.backends.kernels.shifts import Shifts
from xnn.ops.sums import pairwise_sum

__all__ = ["CONVOLUTION_KERNELS"]

_PLACES = 1800  #: of the planes of the images that are worked on together, at most, unless one has more


def _has_long_rows(call: Call) -> bool:
    """Whether a row of a window has so many elements that a product for each row is worth while."""
    _, channels, _, width = (call.forward or call).reads[1].shape
    return channels * width >= 16


def _conv2d(call: Call) -> Runnable:
    return _by_rows(call) if _has_long_rows(call) else conv2d_by_windows(call)


def _conv2d_backward(call: Call) -> Runnable:
    return _by_rows_backward(call) if _has_long_rows(call) else conv2d_by_windows_backward(call)


class _Planes:
    """The planes of a few images, and what is in which slices of them.

    together: images. length: places of all planes of a channel and phase.
    """

    def __init__(self, call: Call) -> None:
        x, w = call.reads[0].array, call.reads[1].array
        self.shifts = shifts = Shifts(conv_windows(call))
        (self.n, self.channels), (self.outputs, _, self.kh, self.kw) = x.shape[:2], w.shape
        self.together = max(1, min(self.n, _PLACES // shifts.size))
        self.length, self.pitch = self.together * shifts.size, shifts.pitch
        h, v = shifts.windows
        self.phases, self.across = shifts.phases, shifts.across
        #: Of each row and column of a window the phase, and the distance in rows or places.
        self.rows = [divmod(i * h.dilation, h.stride)[::-1] for i in range(self.kh)]
        self.columns = [divmod(j * v.dilation, v.stride)[::-1] for j in range(self.kw)]
        self.down = self.rows[-1][1] * self.pitch

    def batches(self) -> list[slice]:
        """The images that are worked on together, in order."""
        return [slice(k, min(k + self.together, self.n)) for k in range(0, self.n, self.together)]

    def images(self, flat: np.ndarray, count: int) -> np.ndarray:
        """The planes of the first images as (images, channels, rows, places of a row)."""
        planes = flat.reshape(len(flat), self.together, self.shifts.rows, self.pitch)
        return planes[:, :count].transpose(1, 0, 2, 3)

    def places(self, count: int) -> int:
        """The places from the first window of the first image to the last window of the last one."""
        return (count - 1) * self.shifts.size + self.shifts.places


def _columns(planes: _Planes, x: np.ndarray) -> tuple[dict[int, np.ndarray], Callable[[slice], None]]:
    """For each phase of rows an array (channels kw, places), and a function that fills them with some images."""
    spread = np.zeros((len(planes.phases), planes.channels, planes.length + planes.across), x.dtype)
    used = sorted({a for a, _ in planes.rows})
    whole = {a: np.zeros((planes.channels, planes.kw, planes.length), x.dtype) for a in used}
    stride, across = planes.shifts.windows[1].stride, planes.across
    copies = [
        (whole[a][:, j], spread[a * stride + b, :, at : at + planes.length])
        for a in used
        for j, (b, at) in enumerate(planes.columns)
    ]
    flat = [spread[phase.index, :, : spread.shape[2] - across] for phase in planes.phases]

    def fill(images: slice) -> None:
        given = x[images]
        for phase, own in zip(planes.phases, flat, strict=True):
            here, there = planes.shifts.inside(phase)
            np.copyto(planes.images(own, len(given))[:, :, *there], given[:, :, *here])
        for target, source in copies:
            np.copyto(target, source)

    return {a: columns.reshape(-1, planes.length) for a, columns in whole.items()}, fill


def _by_rows(call: Call) -> Runnable:
    x, w, *bias = (slot.array for slot in call.reads)
    y: Any = call.writes[0].array  # type: ignore[union-attr]
    planes = _Planes(call)
    columns, fill = _columns(planes, x)
    weights = np.empty((planes.kh, planes.outputs, w[0, :, 0].size), w.dtype)
    result = np.zeros((planes.outputs, planes.length), x.dtype)
    height, width = y.shape[2:]
    call.saved = planes, columns, fill

    def products(images: slice) -> list[Callable[..., None]]:
        places = planes.places(images.stop - images.start)
        starts = [(a, at * planes.pitch) for a, at in planes.rows]
        return [
            gemm(weights[i], columns[a][:, at : at + places], result[:, :places], accumulate=i > 0)
            for i, (a, at) in enumerate(starts)
        ]

    batches = [(images, products(images)) for images in planes.batches()]
    offset = bias[0].reshape(-1, 1, 1) if bias else None

    def run() -> None:
        np.copyto(weights.reshape(planes.kh, planes.outputs, -1, planes.kw), w.transpose(2, 0, 1, 3))
        for images, steps in batches:
            fill(images)
            for step in steps:
                step()
            found = planes.images(result, images.stop - images.start)[:, :, :height, :width]
            if offset is None:
                np.copyto(y[images], found)
            else:
                np.add(found, offset, out=y[images])

    return run


def _by_rows_backward(call: Call) -> Runnable:
    assert call.forward is not None
    planes, columns, fill = call.forward.saved
    dy: Any = call.reads[0].array
    dx, dw, *rest = (None if slot is None else slot.array for slot in call.writes)
    db = rest[0] if rest else None
    lead = planes.down + planes.across
    spread = np.zeros((planes.outputs, lead + planes.length), dy.dtype)
    height, width = dy.shape[2:]
    own = spread[:, lead:]
    steps = [] if dw is None else [_weights_gradient(planes, columns, fill, own, dw)]
    if dx is not None:
        steps.append(_images_gradient(planes, spread, call.forward.reads[1].array, dx))

    def run() -> None:
        for number, images in enumerate(planes.batches()):
            given = dy[images]
            whole = own.reshape(planes.outputs, planes.together, planes.shifts.rows, planes.pitch)
            np.copyto(whole[:, : len(given), :height, :width].transpose(1, 0, 2, 3), given)
            for step in steps:
                step(images, number)
        if db is not None:
            np.copyto(db, pairwise_sum(np, dy.reshape(*dy.shape[:2], -1), axis=(0, 2)))

    return run


def _weights_gradient(
    planes: _Planes, columns: dict[int, np.ndarray], fill: Callable[[slice], None], dy: np.ndarray, dw: np.ndarray
) -> Callable[[slice, int], None]:  # fmt: skip
    """Return a function that adds up the weights' gradient over some images, and writes dw after the last ones."""
    found = np.empty((planes.kh, planes.outputs, planes.channels * planes.kw), dw.dtype)
    batches = planes.batches()

    def products(images: slice) -> list[Callable[..., None]]:
        places = planes.places(images.stop - images.start)
        return [
            gemm(dy[:, :places], columns[a][:, at * planes.pitch :][:, :places].T, found[i], images.start > 0)
            for i, (a, at) in enumerate(planes.rows)
        ]

    steps = [products(images) for images in batches]
    by_row = found.reshape(planes.kh, planes.outputs, planes.channels, planes.kw).transpose(1, 2, 0, 3)

    def run(images: slice, number: int) -> None:
        fill(images)
        for step in steps[number]:
            step()
        if number == len(steps) - 1:
            np.copyto(dw, by_row)

    return run


def _images_gradient(
    planes: _Planes, dy: np.ndarray, w: np.ndarray, dx: np.ndarray
) -> Callable[[slice, int], None]:
    """Return a function that computes dx of some images.

    For each column j of the windows one product for each of their rows: W_ij^T dy from an earlier place on. dx is the
    sum of what the columns give, each from a place of its own on. The phases use the same memory one after the other.
    """
    stride, length = planes.shifts.windows[1].stride, planes.length + planes.across
    by_column = {b: [j for j, (own, _) in enumerate(planes.columns) if own == b] for b in range(stride)}
    packing, phases, covers = [], [], planes.shifts.covers()
    total = np.empty((planes.channels, planes.length), dy.dtype)
    results = np.empty((planes.kw, planes.channels, length), dy.dtype)
    for phase in planes.phases:
        a, b = divmod(phase.index, stride)
        products: list[Callable[..., None]] = []
        found = results[: len(by_column[b])]
        for i, (own, at) in enumerate(planes.rows):
            if own == a and by_column[b]:
                weights = np.empty((len(found), planes.channels, planes.outputs), w.dtype)
                packing.append((weights, w[:, :, i, _slice(by_column[b])].transpose(2, 1, 0)))
                moved = dy[:, planes.down - at * planes.pitch :][:, :length]
                flat = weights.reshape(-1, planes.outputs)
                products.append(gemm(flat, moved, found.reshape(-1, length), accumulate=bool(products)))
        starts = [planes.across - planes.columns[j][1] for j in by_column[b]]
        terms = [one[:, start : start + planes.length] for one, start in zip(found, starts, strict=True)]
        phases.append((products, terms, *planes.shifts.inside(phase)))

    def run(images: slice, number: int) -> None:
        if number == 0:
            for target, source in packing:
                np.copyto(target, source)
            if not covers:
                dx.fill(0.0)
        for products, terms, here, there in phases:
            if products:
                for product in products:
                    product()
                whole = _sum(terms, total)
                count = images.stop - images.start
                np.copyto(dx[images][:, :, *here], planes.images(whole, count)[:, :, *there])

    return run


def _sum(terms: list[np.ndarray], total: np.ndarray) -> np.ndarray:
    """The sum of arrays, from left to right, in `total` unless there is only one."""
    if len(terms) == 1:
        return terms[0]
    np.add(terms[0], terms[1], out=total)
    for term in terms[2:]:
        np.add(total, term, out=total)
    return total


def _slice(numbers: list[int]) -> slice:
    """Numbers at equal distances as a slice, which gives a view."""
    return slice(numbers[0], numbers[-1] + 1, numbers[1] - numbers[0] if len(numbers) > 1 else 1)


CONVOLUTION_KERNELS = {
    ("forward", ops.conv2d): (in_parts(_conv2d, sums=True, is_heavy=True), serves_conv2d),
    ("backward", ops.conv2d): (in_parts(_conv2d_backward, sums=True, is_heavy=True), serves_conv2d),
}
