"""Kernels of GELU and SiLU in plain NumPy, which work in place, on a block of numbers at a time.

The ops make a temporary array for each operation, of which GELU has about sixty. Here a block stays in the
processor's cache, and the forward pass keeps the derivative. No number is chosen by a mask, which takes as long as
ten other operations. Both functions are y = x P(x), where P rises from 0 to 1 and P(-x) = 1 - P(x). With a = |x|,
Q = P(-a), s the sign of x, and H = (1 + s) / 2,

    y = max(x, 0) - a Q        dy/dx = H - s (Q + a Q')        Q' the derivative by a

which keeps the digits of small results below 0.

SiLU    Q = e^-a / (1 + e^-a), Q' = -Q (1 - Q).
GELU    Q is the normal distribution's, Q' = -e^(-a^2 / 2) / sqrt(2 pi). In float32 it has a shorter formula than the
        op's: Q / e^(-a^2 / 2) is smooth, and t times a polynomial of t = 1 / (1 + 0.35 a) is within 3.2e-8 of it,
        relatively, up to a = 14.5, from where on Q is 0. Such a t was used for this function by C. Hastings
        (Approximations for Digital Computers, 1955). The coefficients were found by least squares in t, weighted so
        that the largest relative error is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.kernels.batch_parts import in_parts
from xnn.backends.kernels.calls import Call, Runnable
from xnn.ops import activations

__all__ = ["BELL_KERNELS", "BEND", "TAIL"]

#: Numbers of a block: few calls of NumPy, and a few arrays of so many lie in a core's second cache.
_BLOCK = 1 << 15
BEND, _ROOT_2_PI = 0.35, 2.5066282746310002
TAIL = (
    -0.029158029705286026, 0.1440316140651703, -0.25584039092063904, 0.15932124853134155, -0.023213393986225128,
    0.10555292665958405, 0.11982118338346481, 0.1398635357618332, 0.139621302485466,
)  # fmt: skip


def _gelu(a: Any, tail: Any, fall: Any, scratch: Any) -> None:
    np.multiply(a, BEND, out=scratch)
    np.add(scratch, 1.0, out=scratch)
    np.divide(1.0, scratch, out=scratch)
    np.multiply(scratch, TAIL[0], out=tail)
    for c in TAIL[1:]:
        np.add(tail, c, out=tail)
        np.multiply(tail, scratch, out=tail)
    np.multiply(a, a, out=fall)
    np.multiply(fall, -0.5, out=fall)
    np.exp(fall, out=fall)
    np.multiply(tail, fall, out=tail)
    np.divide(fall, -_ROOT_2_PI, out=fall)


def _silu(a: Any, tail: Any, fall: Any, scratch: Any) -> None:
    np.negative(a, out=tail)
    np.exp(tail, out=tail)
    np.add(tail, 1.0, out=scratch)
    np.divide(tail, scratch, out=tail)
    np.subtract(tail, 1.0, out=fall)
    np.multiply(fall, tail, out=fall)


#: For each op the function that computes Q and Q' from a, and the a from which on Q is 0.
_BELLS: dict[Any, tuple[Callable[..., None], float]] = {
    ops.gelu: (_gelu, activations._FLAT),
    ops.silu: (_silu, -activations._LOGISTIC_ZERO),
}


def _blocks(*arrays: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Parts of arrays of one shape, cut along the first axis; of the flat arrays where they are contiguous."""
    if all(array.flags.c_contiguous for array in arrays):
        arrays = tuple(array.reshape(-1) for array in arrays)
    count = max(1, _BLOCK // max(1, math.prod(arrays[0].shape[1:])))
    firsts = range(0, len(arrays[0]), count)
    return [tuple(array[first : first + count] for array in arrays) for first in firsts]


def _forward(call: Call) -> Runnable:
    x, y = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    call.saved = slope = np.empty_like(y)
    parts = _blocks(x, y, slope)
    longest, (bell, end) = parts[0][0].shape if parts else (0,), _BELLS[call.op]
    scratch = np.empty((3, *longest), y.dtype)
    limits = np.zeros(longest, y.dtype), np.full(longest, end, y.dtype)  # faster than numbers in np.maximum
    work = [(*part, *(array[: len(part[0])] for array in (*scratch, *limits))) for part in parts]

    def run() -> None:
        with np.errstate(all="ignore"):
            for x, y, slope, a, tail, fall, zero, last in work:
                np.abs(x, out=a)
                np.minimum(a, last, out=a)  # inf * 0 would be NaN
                bell(a, tail, fall, slope)
                np.multiply(fall, a, out=fall)
                np.add(fall, tail, out=fall)
                np.multiply(tail, a, out=tail)
                np.copysign(1.0, x, out=slope)
                np.multiply(fall, slope, out=fall)
                np.add(slope, 1.0, out=slope)
                np.multiply(slope, 0.5, out=slope)
                np.subtract(slope, fall, out=slope)
                np.maximum(x, zero, out=y)
                np.subtract(y, tail, out=y)

    return run


def _backward(call: Call) -> Runnable:
    assert call.forward is not None
    slope, dy, dx = call.forward.saved, call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]

    def run() -> None:
        with np.errstate(all="ignore"):
            np.multiply(dy, slope, out=dx)

    return run


def _serves(call: Call) -> bool:
    """Whether all arrays have one dtype, of GELU float32, and there is no option but the usual one."""
    options = dict((call.forward or call).options)
    usual = options.pop("approximate", "none") == "none" and not options
    dtypes = {np.dtype(slot.dtype).name for slot in call.slots()}
    known = dtypes == {"float32"} or (call.op is ops.silu and dtypes == {"float64"})
    return usual and known and len(call.reads[0].shape) > 0


BELL_KERNELS = {
    (kind, op): (in_parts(make), _serves)
    for kind, make in (("forward", _forward), ("backward", _backward))
    for op in _BELLS
}
