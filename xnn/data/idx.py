"""Reads idx files, the format of MNIST, and checks everything in them.

Format: two zero bytes, a type code, the number of axes; the extent of each axis as a big-endian 32-bit integer; the
elements, big-endian, in C order. Source: LeCun, Cortes and Burges, "The MNIST database".
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from xnn.backends.memory import check_memory
from xnn.data.arrays import LARGE
from xnn.errors import CorruptFileError, DataNotFoundError
from xnn.files import as_path, reading

__all__ = ["read_idx"]

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_LIMIT = 2**31  # bytes: more than any data set of this format, less than the memory of a machine
_MOST_EXPANSION = 1032  # of gzip: a byte of a compressed file becomes at most this many


def read_idx(
    path: Path,
    sha256: str | None = None,
    shape: tuple[int | None, ...] | None = None,
    dtype: str | None = None,
) -> np.ndarray:
    """The array of an idx file, gzip-compressed or not.

    path: the file.
    sha256: the checksum that the decompressed bytes must have (compressed ones differ between mirrors). Default: any.
    shape: the shape that it must have; None in it stands for any extent. Default: any.
    dtype: the type that it must have, such as "u1". Default: any.

    A file of 1 GiB or more that is not compressed becomes a memory map, in the byte order of the file: its numbers
    are read where they are needed. Of others, no more is read or decompressed than the header announces, and at most
    2 GiB. A header that announces more than the file can hold is refused before memory is asked for.
    Raises CorruptFileError for a file that cannot be read, is not an idx file, is too short or too long, or has
    another type, shape or checksum.

        >>> import pathlib, tempfile
        >>> from xnn import data
        >>> path = pathlib.Path(tempfile.mkdtemp(), "labels")
        >>> _ = path.write_bytes(b"\\x00\\x00\\x08\\x01" + b"\\x00\\x00\\x00\\x03" + b"\\x07\\x02\\x01")
        >>> data.read_idx(path, shape=(None,)).tolist()
        [7, 2, 1]
    """
    path = as_path(path)
    try:
        with reading(path):
            with open(path, "rb") as raw:
                compressed = raw.read(2) == b"\x1f\x8b"
                most = os.fstat(raw.fileno()).st_size * (_MOST_EXPANSION if compressed else 1)
            with gzip.open(path, "rb") if compressed else open(path, "rb") as file:
                return _parse(path, file, most, sha256, shape, dtype)
    except DataNotFoundError as error:
        raise CorruptFileError(str(error)) from error
    except (EOFError, zlib.error) as error:
        raise CorruptFileError(f"{path} is damaged ({error}): delete it and fetch it again") from error
    except MemoryError as error:
        raise CorruptFileError(f"{path} does not fit into the memory that is free") from error


def _parse(
    path: Path,
    file: Any,
    most: int,
    sha256: str | None,
    shape: tuple[int | None, ...] | None,
    dtype: str | None,
) -> np.ndarray:
    """The array. `most` is the number of bytes that the file can hold."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\x00\x00" or magic[2] not in _TYPES or not 0 < magic[3] <= 8:
        raise CorruptFileError(
            f"{path} starts with {magic.hex(' ') or 'nothing'}; an idx file starts with 00 00, a type code and the "
            "number of axes: fetch it again"
        )
    kind, axes = np.dtype(_TYPES[magic[2]]), magic[3]
    header = file.read(4 * axes)
    if len(header) < 4 * axes:
        raise CorruptFileError(f"{path} ends inside its header: fetch it again")
    extents = tuple(int.from_bytes(header[4 * i : 4 * i + 4], "big") for i in range(axes))
    size = math.prod(extents) * kind.itemsize
    fits = shape is None or (
        len(shape) == axes and all(want in (None, got) for want, got in zip(shape, extents, strict=True))
    )
    if not fits or (dtype is not None and kind != np.dtype(dtype).newbyteorder(">")):
        raise CorruptFileError(
            f"{path} holds {kind.name}{list(extents)}; {dtype or 'any type'}"
            f"{['any' if n is None else n for n in shape or ()]} was expected: fetch it again"
        )
    begins = 4 + len(header)
    if isinstance(file, io.BufferedReader) and LARGE <= size == most - begins:
        return _mapped(path, kind, begins, extents, sha256)
    if math.prod(extent or 1 for extent in extents) * kind.itemsize > _LIMIT:
        raise CorruptFileError(
            f"{path} announces the shape {list(extents)} of {kind.name}; at most {_LIMIT:,} bytes are read"
        )
    if size > most:
        raise CorruptFileError(f"{path} is shorter than the {size:,} bytes that it announces: fetch it again")
    check_memory(str(path), size, "the file is meant for a larger machine", CorruptFileError)
    body = file.read(size + 1)
    if len(body) != size:
        which = "shorter" if len(body) < size else "longer"
        raise CorruptFileError(f"{path} is {which} than the {size:,} bytes that it announces: fetch it again")
    if sha256 is not None and hashlib.sha256(magic + header + body).hexdigest() != sha256:
        raise _other_checksum(path)
    return np.frombuffer(body, dtype=kind).astype(kind.newbyteorder("="), copy=False).reshape(extents)


def _mapped(
    path: Path, kind: np.dtype[Any], begins: int, extents: tuple[int, ...], sha256: str | None
) -> np.ndarray:
    """The array as a memory map. begins: the byte of the file where its numbers begin."""
    if sha256 is not None:
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise _other_checksum(path)
    return np.asarray(np.memmap(path, kind, "r", begins, extents))


def _other_checksum(path: Path) -> CorruptFileError:
    return CorruptFileError(
        f"{path} has another checksum than the published file: delete it and fetch it again"
    )
