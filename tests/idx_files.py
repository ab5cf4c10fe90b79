"""idx bytes written from the format's description, for the tests of data."""

from __future__ import annotations

import struct

import numpy as np

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array, code=None):
    """The idx bytes of an array, written here from the format's description."""
    kind = array.dtype.str[1:]
    head = bytes([0, 0, code or CODES[kind], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
GOOD = idx(PIXELS)


def files_in(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())
