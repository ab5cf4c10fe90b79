"""Kernels of batch normalization in plain NumPy for rows of features; `normalization_kernels.py` has the formulas.

Each sum over the batch is a product with ones. A kernel is a few calls of NumPy on whole arrays, one after the other:
after a large product Python's own code is no longer in the processor's cache, and each line of it takes about as long
as a pass over a batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from xnn.backends.kernels.calls import Call, Runnable
from xnn.backends.kernels.normalization_numbers import Numbers, complete_moments
from xnn.backends.kernels.sum_kernels import add_rows

__all__ = ["moments", "normalize", "normalize_backward"]


def moments(call: Call) -> Runnable:
    """Mean and variance of each feature."""
    x, m = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    mean, variance = m.reshape(len(m), -1)[:2]
    away, share = np.empty_like(x), 1.0 / len(x)
    add, add_squares = add_rows(x, mean, accumulate=False), add_rows(away, variance, accumulate=False)
    rest = np.empty_like(mean)
    add_rest = add_rows(away, rest, accumulate=False)

    def run() -> None:
        with np.errstate(all="ignore"):
            add(share)
            np.subtract(x, mean, out=away)
            add_rest(share)  # what rounding has left of the mean: much, if it is large beside the deviations
            np.add(mean, rest, out=mean)
            np.subtract(x, mean, out=away)
            np.multiply(away, away, out=away)
            add_squares(share)
            complete_moments(m, call)

    return run


def normalize(call: Call) -> Runnable:
    """y = (x s - m) g + b. The numbers x s - m are kept for the backward call."""
    x, y = call.reads[0].array, call.writes[0].array  # type: ignore[union-attr]
    found, away = Numbers(call), np.empty_like(x)
    call.saved = found, away
    s, m, slope, bias = found.about

    def run() -> None:
        found.compute()
        with np.errstate(all="ignore"):
            if found.is_scaled:
                np.multiply(x, s, out=away)
                np.subtract(away, m, out=away)
            else:
                np.subtract(x, m, out=away)
            np.multiply(away, slope, out=y)
            np.add(y, bias, out=y)

    return run


def normalize_backward(call: Call) -> Runnable:
    """dx = a dy + q (x s - m) + c, after the sums of dy and of dy (x s - m)."""
    assert call.forward is not None
    dy, (found, away) = call.reads[0].array, call.forward.saved
    dx, _, *affine = (None if slot is None else slot.array for slot in call.writes)
    product, stats = np.empty_like(dy), np.empty((1, 2, dy.shape[1]), dy.dtype)
    about: Any = np.empty((5, dy.shape[1]), dy.dtype)
    sums = [
        add_rows(array, out, accumulate=False) for array, out in zip((dy, product), stats[0], strict=True)
    ]
    finish = partial(found.finish, stats, len(dy), affine, about)
    _, _, slope, by_place, shift = about

    def run() -> None:
        with np.errstate(all="ignore"):
            np.multiply(dy, away, out=product)
            for add in sums:
                add()
            finish()
            if dx is None:
                return
            np.multiply(away, by_place, out=product)
            np.multiply(dy, slope, out=dx)
            np.add(dx, product, out=dx)
            np.add(dx, shift, out=dx)

    return run
