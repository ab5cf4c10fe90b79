"""Random masks, as a loop that Numba compiles: Philox4x64-10, with the bits of `xnn.backends.random`.

`image_loops.py` explains the loop's arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from xnn.backends.kernels.image_loops import numbers
from xnn.backends.kernels.intrinsics import pointer
from xnn.backends.kernels.jit import inner
from xnn.backends.random import MULTIPLIERS, WEYL

__all__ = ["keep_mask", "philox"]

_M0, _M1 = map(np.uint64, MULTIPLIERS)
_W0, _W1 = map(np.uint64, WEYL)
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


@intrinsic  # type: ignore[untyped-decorator]
def _high(context: Any, x: Any, y: Any) -> Any:
    """The upper 64 bits of the product of two uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(argument, wide) for argument in arguments))
        return builder.trunc(builder.lshr(product, wide(64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


@inner
def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any) -> Any:
    """The four words of a block, from its counter c0 to c3 and the key k0 and 0: ten rounds."""
    k1 = np.uint64(0)
    for _ in range(10):
        high0, high1 = _high(c0, _M0), _high(c2, _M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, c2 * _M1, high0 ^ c3 ^ k1, c0 * _M0
        k0, k1 = k0 + _W0, k1 + _W1
    return c0, c1, c2, c3


def keep_mask(row: Any, first: Any, last: Any, fresh: Any, scratch: Any, part: Any, like: Any) -> None:
    """Write booleans first .. last - 1: whether a half word is at least the threshold. A block of words makes eight.

    r[1]: the booleans. r[2]: seed and step. r[3]: how often the layer has drawn before in this step. r[4]: the
    stream's index, r[5]: its purpose. r[6]: the threshold.
    """
    r = numbers(row)
    keep, given = carray(pointer(r[1], np.uint8(0)), last), carray(pointer(r[2], np.uint64(0)), 2)
    step, threshold = given[1] + np.uint64(r[3]), np.uint64(r[6])
    for start in range(first, last, 8):  # first is a multiple of 8
        block = np.uint64(start // 8 + 1)  # NumPy adds 1 to the counter before it makes the first block
        words = philox(block, step, np.uint64(r[4]), np.uint64(r[5]), given[0])
        for j in range(4):
            for k in range(2):
                i = start + 2 * j + k
                if i < last:
                    half = words[j] >> _HALF if k else words[j] & _LOW
                    keep[i] = half >= threshold
