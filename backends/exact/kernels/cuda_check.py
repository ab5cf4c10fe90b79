"""Compares the CUDA kernels of exact numerics with the ops on a few numbers, once for each GPU of a process.

The self-check of exact numerics tests CuPy's own kernels and products. Those here are other ones: kernels that would
differ if the compiler fused a multiplication with an addition, and products on a handle of our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends.exact.kernels.cuda_passes import RowsPass, product
from xnn.backends.exact.namespace import ExactNamespace
from xnn.backends.exact.reference import near_maximal
from xnn.backends.exact.slices import product_bits
from xnn.backends.kernels.cuda.dense_kernels import KINDS
from xnn.backends.numpy_backend import NumpyBackend
from xnn.errors import BackendUnavailableError
from xnn.ops.apply import forward_of

__all__ = ["check", "differences"]

#: Terms, rows, columns of products.
_PRODUCTS = (1, 33, 65), (32, 60, 13), (784, 17, 18), (4096, 5, 12)
_passed = set[int]()


@dataclass
class _Feed:
    """The part of a feed that the launches here read: the stream."""

    stream: Any


def check(lib: Any) -> None:
    """Raise BackendUnavailableError, naming what failed, unless the kernels give the bits of the ops on this GPU."""
    if lib.number in _passed:
        return
    with lib.stream():
        wrong = list(differences(lib))
    if wrong:
        raise BackendUnavailableError(
            f"{lib.name}: kernels of exact numerics: {', '.join(wrong)} came out with other bits than by the ops: "
            "use kernels='ops'"
        )
    _passed.add(lib.number)


def differences(lib: Any) -> Iterator[str]:
    """Say what comes out with other bits than it should."""
    feed: Any = _Feed(lib.cupy.cuda.get_current_stream())
    for terms, rows, columns in _PRODUCTS:
        bits = product_bits(terms)
        a, b = near_maximal(bits.two, (rows, terms), 1), near_maximal(bits.one, (terms, columns), 2)
        a[::2] *= -1
        for first, second in ((False, False), (True, False), (False, True)):
            left, right = (
                lib.to_device(np.ascontiguousarray(x.T if turned else x).astype(np.float64))
                for x, turned in ((a, first), (b, second))
            )
            out = lib.buffer((rows, columns), np.float64)
            product(feed, left, right, (first, second), out)()
            if not np.array_equal(lib.to_host(out), (a @ b).astype(np.float64)):
                yield f"a product of {terms} terms"
                break
    x = np.linspace(-9.0, 9.0, 36, dtype=np.float32).reshape(9, 4)
    for op in (ops.sigmoid, ops.tanh):
        y, full = lib.buffer(x.shape, np.float32), lib.buffer(x.shape, np.float64)
        _run(RowsPass(feed, y, lib.to_device(x), kind=KINDS[op], full=full))
        by_op = forward_of(op, ExactNamespace(NumpyBackend()), (x,), {})
        if [lib.to_host(a).tobytes() for a in (y, full)] != [np.asarray(a).tobytes() for a in by_op]:
            yield op.name
    # Rounded twice, (1 + 2^-30) (1 - 2^-30) - 1 is 0; rounded once, by a fused multiply-add, it is -2^-60.
    y, one = lib.buffer((1, 1), np.float32), np.ones((1, 1))
    products, bias = lib.to_device(one + 2.0**-30), lib.to_device(np.asarray([-1.0], np.float32))
    _run(RowsPass(feed, y, None, products, 1.0 - 2.0**-30, bias))
    if lib.to_host(y)[0, 0] != 0.0:
        yield "a multiplication and an addition"


def _run(item: RowsPass) -> None:
    for launch in item.build():
        launch()
