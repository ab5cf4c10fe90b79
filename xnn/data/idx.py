"""The idx format of the MNIST files: a magic number, the sizes, then the bytes. Nothing in it is believed.

Format: two zero bytes, a type code, the number of axes; each axis's extent as a big-endian 32-bit
integer; the elements, big-endian, in C order. Source: LeCun, Cortes and Burges, "The MNIST database".
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from xnn.errors import CorruptFileError

__all__ = ["read_idx"]

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_LIMIT = 2**31  # bytes; more than any data set of this format, less than a machine's memory


def read_idx(
    path: Path,
    sha256: str | None = None,
    shape: tuple[int | None, ...] | None = None,
    dtype: str | None = None,
) -> np.ndarray:
    """The array in an idx file, gzip-compressed or not.

    sha256 is of the decompressed bytes (gzip differs between mirrors); shape may hold None for any
    extent. No more is ever decompressed than the header announces and the limit of 2 GiB allows.
    Raises CorruptFileError: not idx, truncated, too long, another type, shape or checksum.
    """
    try:
        with open(path, "rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if compressed else open(path, "rb") as file:
            return _parse(path, file, sha256, shape, dtype)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorruptFileError(f"{path} is damaged ({error}); delete it and fetch it again") from error
    except OSError as error:
        raise CorruptFileError(f"cannot read {path}: {error.strerror or error}") from error


def _parse(
    path: Path, file: Any, sha256: str | None, shape: tuple[int | None, ...] | None, dtype: str | None
) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\x00\x00" or magic[2] not in _TYPES or not 0 < magic[3] <= 8:
        raise CorruptFileError(
            f"{path} is not an idx file: it starts with {magic.hex(' ') or 'nothing'}, "
            "not with 00 00, a type code and the number of axes"
        )
    kind, axes = np.dtype(_TYPES[magic[2]]), magic[3]
    header = file.read(4 * axes)
    if len(header) < 4 * axes:
        raise CorruptFileError(f"{path} is truncated: it ends inside its header; fetch it again")
    extents = tuple(int.from_bytes(header[4 * i : 4 * i + 4], "big") for i in range(axes))
    size = math.prod(extents) * kind.itemsize
    fits = shape is None or (
        len(shape) == axes and all(want in (None, got) for want, got in zip(shape, extents, strict=True))
    )
    if not fits or (dtype is not None and kind != np.dtype(dtype).newbyteorder(">")):
        raise CorruptFileError(
            f"{path} holds {kind.name}{list(extents)}, expected {dtype or 'any type'}"
            f"{['any' if n is None else n for n in shape or ()]}; is it another file under this name?"
        )
    if size > _LIMIT:
        raise CorruptFileError(f"{path} announces {size:,} bytes, more than the limit of {_LIMIT:,}")
    body = file.read(size + 1)
    if len(body) != size:
        verdict = "truncated" if len(body) < size else "longer than it says"
        raise CorruptFileError(f"{path} is {verdict}: its header announces {size:,} bytes; fetch it again")
    if sha256 is not None and hashlib.sha256(magic + header + body).hexdigest() != sha256:
        raise CorruptFileError(
            f"{path} has the right form but another checksum than the published file; delete it and fetch it again"
        )
    return np.frombuffer(body, dtype=kind).astype(kind.newbyteorder("="), copy=False).reshape(extents)
