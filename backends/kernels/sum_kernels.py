"""Kernels in plain NumPy for sums: of two arrays, of rows, and the L2 penalty of weights and its gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xnn import ops
from xnn.backends.kernels.batch_parts import in_parts
from xnn.backends.kernels.blas import gemm
from xnn.backends.kernels.calls import Call, Runnable, chain
from xnn.ops.sums import LONG, PIECE, SHORT, pairwise_sum

__all__ = ["SUM_KERNELS", "add_rows", "into", "is_sum", "serves_penalty"]

_REALS = {np.dtype("float32"), np.dtype("float64")}


def is_sum(call: Call) -> bool:
    """Whether the call adds two arrays of the same shape and the same dtype, float32 or float64."""
    slots = [slot for slot in (*call.reads, *call.writes) if slot is not None]
    alike = {(slot.shape, np.dtype(slot.dtype)) for slot in slots}
    return len(slots) == 3 and len(alike) == 1 and slots[0].dtype in _REALS


def serves_penalty(call: Call) -> bool:
    """Whether all arrays are of one floating-point dtype; a backward call may add to other gradients."""
    slots = [slot for slot in (*(call.forward or call).reads, *call.reads, *call.writes) if slot is not None]
    dtypes = {np.dtype(slot.dtype) for slot in slots}
    return len(dtypes) == 1 and dtypes <= _REALS


def add_rows(x: np.ndarray, out: np.ndarray, accumulate: bool) -> Callable[..., None]:
    """Return a function of alpha that computes out <- alpha times the sum of x's rows, plus out if `accumulate`.

    Up to SHORT rows are added by a product with ones, up to LONG in two steps, and more by `pairwise_sum`.
    """
    n, row = len(x), out.reshape(1, -1)
    if n <= SHORT:
        return gemm(np.ones((1, n), x.dtype), x, row, accumulate)
    if n > LONG:
        return into(out, lambda: pairwise_sum(np, x, axis=0), accumulate)
    each, rest = divmod(n, PIECE)
    pieces, added = x[: n - rest].reshape(PIECE, each, -1), np.empty((each, x.shape[1]), x.dtype)
    add = gemm(np.ones((1, each), x.dtype), added, row, accumulate)
    add_rest = gemm(np.ones((1, rest), x.dtype), x[n - rest :], row, accumulate=True)

    def run(alpha: float = 1.0) -> None:
        np.add.reduce(pieces, axis=0, out=added)
        add(alpha)
        if rest:
            add_rest(alpha)

    return run


def into(out: np.ndarray, total: Callable[[], np.ndarray], accumulate: bool) -> Callable[..., None]:
    """Return a function of alpha that computes out <- alpha total(), plus out if `accumulate`."""

    def run(alpha: float = 1.0) -> None:
        found = total() if alpha == 1.0 else alpha * total()
        np.copyto(out, found + out if accumulate else found)

    return run


def _sum(call: Call) -> Runnable:
    (a, b), y = (slot.array for slot in call.reads), call.writes[0].array  # type: ignore[union-attr]

    def run() -> None:
        np.add(a, b, out=y)

    return run


def _penalty(call: Call) -> Runnable:
    flat = [slot.array.reshape(-1) for slot in call.reads]
    y, half = call.writes[0].array, 0.5 * call.options.get("strength", 1.0)  # type: ignore[union-attr]

    def run() -> None:
        total = np.matmul(flat[0], flat[0])
        for a in flat[1:]:
            total = total + np.matmul(a, a)
        y[()] = total * half

    return run


def _penalty_backward(call: Call) -> Runnable:
    """Compute dy/da = strength a for each array, and add the gradients that the call reads, if it reads any."""
    assert call.forward is not None
    strength, (grad, *others) = call.forward.options.get("strength", 1.0), (s.array for s in call.reads)

    def slope(y: np.ndarray, w: np.ndarray, other: np.ndarray | None) -> Runnable:
        product = y if other is None else np.empty_like(y)

        def run() -> None:
            np.multiply(w, grad * strength, out=product)
            if other is not None:
                np.add(other, product, out=y)

        return run

    beside = others or [None] * len(call.writes)
    each = zip(call.writes, call.forward.reads, beside, strict=True)
    return chain(*(slope(y.array, w.array, other) for y, w, other in each if y is not None))


SUM_KERNELS = {
    ("forward", ops.l2_penalty): (_penalty, serves_penalty),
    ("backward", ops.l2_penalty): (_penalty_backward, serves_penalty),
    ("forward", ops.add): (in_parts(_sum), is_sum),
    ("add", None): (in_parts(_sum), is_sum),
}
