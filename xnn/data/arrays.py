"""Reads NumPy's .npy and .npz files: numbers and text, no pickles, and never more than the file holds.

Format of .npy: NumPy Enhancement Proposal 1. An .npz file is a ZIP archive of .npy files.
"""

from __future__ import annotations

import errno
import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from xnn.backends.memory import check_memory
from xnn.errors import CorruptFileError
from xnn.files import reading

__all__ = ["LARGE", "read_array", "read_npz"]

#: Bytes from which data in files are mapped, and not read into memory. The results are the same.
LARGE = 2**30

_LONGEST_HEADER = 10_000  # bytes: NumPy's own limit. Python's parser is asked to read no more than this
_CHUNK = 2**20  # bytes

# What NumPy and zipfile raise for damaged bytes. zipfile raises NotImplementedError for a compression that it does
# not know, and RuntimeError for an archive with a password.
_DAMAGE = (
    ValueError, EOFError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError, NotImplementedError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_npz(path: Path, mapped: bool = False) -> dict[str, np.ndarray]:
    """The arrays of an .npz archive by name.

    mapped: whether arrays that are not compressed become memory maps, as numpy.savez writes them. They are read once
        to compare their checksums. Default False.

    Raises CorruptFileError for a file that is damaged, holds Python objects or anything but arrays, or unpacks to
    more bytes than memory has; DataNotFoundError for one that cannot be read.
    """
    with reading(path), open(path, "rb") as file:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise CorruptFileError(f"{path} has the content of an .npy file: give it that ending")
        try:
            with zipfile.ZipFile(file) as archive:
                return _members(path, archive, mapped)
        except CorruptFileError:
            raise
        except _DAMAGE as error:
            raise _unreadable(path, ".npz", error) from error
        except OSError as error:
            if error.errno != errno.EINVAL:  # zipfile seeks to where a damaged directory says
                raise
            raise _unreadable(path, ".npz", error) from error


def _members(path: Path, archive: zipfile.ZipFile, mapped: bool) -> dict[str, np.ndarray]:
    members = archive.infolist()
    advice = "the archive is damaged, or meant for a larger machine"
    maps = {m.filename for m in members if mapped and m.compress_type == zipfile.ZIP_STORED and m.file_size}
    size = sum(member.file_size for member in members if member.filename not in maps)
    check_memory(f"unpacked, {path}", size, advice, CorruptFileError)
    arrays: dict[str, np.ndarray] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name == member.filename or name in arrays:
            fault = "twice" if name in arrays else "which is no .npy file"
            raise CorruptFileError(
                f"{path} holds {member.filename[:60]!r}, {fault}: numpy.savez makes an archive of arrays"
            )
        with archive.open(member) as file:  # checks the header that stands before the member's bytes
            begins = _first_byte(path, member.header_offset) if member.filename in maps else None
            arrays[name] = _parse(path, file, member.file_size, f" in {name[:60]}", begins)
    return arrays


def _first_byte(path: Path, header: int) -> int:
    """Where the bytes of an archive's member begin, after its header. header: where that begins."""
    with open(path, "rb") as file:
        file.seek(header + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return header + 30 + name + extra


def read_array(path: Path, mapped: bool = False) -> np.ndarray:
    """The array of an .npy file.

    mapped: whether it is a memory map of the file, and not read into memory. Default False.

    Raises CorruptFileError for a file that is damaged, holds Python objects, or is shorter or longer than its header
    says; DataNotFoundError for one that cannot be read.
    """
    with reading(path), open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise CorruptFileError(f"{path} has the content of an .npz file: give it that ending")
        file.seek(0)
        try:
            return _parse(path, file, os.fstat(file.fileno()).st_size, begins=0 if mapped else None)
        except CorruptFileError:
            raise
        except _DAMAGE as error:
            raise _unreadable(path, ".npy", error) from error


def _unreadable(path: Path, kind: str, error: BaseException) -> CorruptFileError:
    why = str(error)[:200] or type(error).__name__
    return CorruptFileError(f"{path} is not a readable {kind} file: {why}")


def _parse(path: Path, file: IO[bytes], size: int, where: str = "", begins: int | None = None) -> np.ndarray:
    """The array of an .npy file, in the machine's byte order unless it is mapped.

    size: the bytes that the file has.
    where: the member of an archive, as " in x". Default "".
    begins: where its bytes begin in the file at `path`, if it is to be a memory map. Default None: it is read.
    """
    shape, fortran_order, dtype = _header(path, file, where)
    if dtype.hasobject:
        raise CorruptFileError(
            f"{path} holds Python objects{where}; only numbers and text are read, because unpickling runs code: save "
            "arrays of one dtype, such as array.astype('float32')"
        )
    if dtype.names is not None:
        raise CorruptFileError(
            f"{path} holds records of {', '.join(dtype.names)[:60]}{where}; only numbers and text are read: save "
            "each field as an array of its own"
        )
    announced, follow = math.prod(shape) * dtype.itemsize, size - file.tell()
    if announced != follow or any(extent >= 2**63 for extent in shape):
        raise CorruptFileError(
            f"{path} is damaged: its header{where} announces {dtype.name}{list(shape)}, {announced:,} bytes, and "
            f"{follow:,} follow"
        )
    if begins is not None and announced:
        order: Any = "F" if fortran_order else "C"
        array = np.asarray(np.memmap(path, dtype, "r", begins + file.tell(), shape or (1,), order))
        while where and file.read(_CHUNK):  # of an archive: zipfile compares the checksum at the end
            pass
        return array.reshape(shape)
    content = np.empty(announced, np.uint8)  # memory that is not written yet costs nothing
    place = 0
    while place < announced:
        chunk = file.read(min(_CHUNK, announced - place))
        if not chunk:
            raise EOFError("it ends too early")
        content[place : place + len(chunk)] = np.frombuffer(chunk, np.uint8)
        place += len(chunk)
    file.read(1)  # of an archive: zipfile compares the checksum when it reaches the end
    array = content.view(dtype).reshape(shape, order="F" if fortran_order else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _header(path: Path, file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype of an .npy file."""
    layout = np.lib.format
    try:
        version = layout.read_magic(file)
        read = {(1, 0): layout.read_array_header_1_0, (2, 0): layout.read_array_header_2_0}[version]
        shape, fortran_order, dtype = read(file, max_header_size=_LONGEST_HEADER)
    except Exception as error:  # NumPy gives the text to Python's parser, which has many errors
        raise CorruptFileError(
            f"{path} is no .npy or .npz file, or is damaged: there is no header{where} that NumPy understands"
        ) from error
    if any(type(extent) is not int or extent < 0 for extent in shape):
        raise CorruptFileError(f"{path} is damaged: its header{where} announces the shape {str(shape)[:60]}")
    return shape, fortran_order, dtype
