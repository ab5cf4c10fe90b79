"""The bytes of a model file: tensors, a description of the model, and a digest that covers every byte.

It is a .safetensors file. Its metadata has three entries:

    xnn             JSON: the file's format, the layers, the seed, the numerics, notes, the names of frozen parameters
    weights_sha256  the SHA-256 of the tensors' bytes, in the order of the parameters
    file_sha256     the SHA-256 of the whole file, computed with 64 zeros in the place of these 64 digits

Files of version 0.1 have no file_sha256. Their tensors are checked by weights_sha256, their description by nothing.
`signed_bytes` and `read_signed` write and read any tensors and texts in this way; checkpoints use them too.

Source: the safetensors format, https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xnn.backends.memory import check_memory
from xnn.backends.numerics import NUMERICS
from xnn.errors import CorruptFileError, OptionError
from xnn.files import as_path, reading

__all__ = [
    "CHECKPOINT",
    "FORMAT",
    "SavedModel",
    "read_file",
    "read_signed",
    "signed_bytes",
    "storable",
    "tensors_sha256",
    "to_bytes",
]

FORMAT = 2
#: The entry of the metadata that only checkpoints have.
CHECKPOINT = "xnn_checkpoint"
_FORMAT_OF_0_1 = 1
_CODES = {
    "float32": "F32", "float64": "F64", "float16": "F16", "bool": "BOOL",
    "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
}  # fmt: skip
_UNSIGNED = "0" * 64
_LONGEST_HEAD = 100_000_000  # bytes that the format allows for the names, shapes and metadata of a file
# Inside the JSON text of another entry the quotes have backslashes, so only the entry itself matches.
_SIGNATURE = re.compile(rb'(?<="file_sha256":")[0-9a-f]{64}(?=")')


@dataclass(frozen=True)
class SavedModel:
    """The content of a model file, as `read_file` returns it.

    path: the file.
    tensors: the arrays by name.
    header: the description of the model.
    weights_sha256: the digest of the tensors that the file gives.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    header: dict[str, Any]
    weights_sha256: str


def tensors_sha256(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 over the raw little-endian bytes of arrays, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(_little_endian(array))
    return digest.hexdigest()


def _little_endian(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def to_bytes(arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> bytes:
    """The file's bytes, the same for the same model.

    arrays: float32 and float64 arrays by name, in the order of the parameters.
    header: the description of the model, JSON values.

    Raises OptionError for a value that JSON does not have.
    """
    try:
        text = json.dumps(header)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"the notes of a model file must be JSON values: {error}") from None
    return signed_bytes(arrays, {"xnn": text, "weights_sha256": tensors_sha256(arrays.values())})


def storable(dtype: np.dtype[Any]) -> bool:
    """Whether a file can hold arrays of this dtype."""
    return dtype.name in _CODES


def signed_bytes(arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> bytes:
    """The bytes of a .safetensors file with a digest that covers every byte.

    arrays: by name, of dtypes that are `storable`. texts: the entries of its metadata.
    """
    table: dict[str, Any] = {"__metadata__": {**texts, "file_sha256": _UNSIGNED}}
    place, bodies = 0, []
    # The widest come first, so that each tensor begins at a multiple of its width.
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        bodies.append(_little_endian(array))
        offsets = [place, place := place + len(bodies[-1])]
        table[name] = {
            "dtype": _CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    parts = [len(head).to_bytes(8, "little"), head, *bodies]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    parts[1] = _SIGNATURE.sub(digest.hexdigest().encode(), head)
    return b"".join(parts)


def read_file(path: str | os.PathLike[str]) -> SavedModel:
    """What a model file holds, after its digest was checked.

    Raises DataNotFoundError for a file that cannot be read, CorruptFileError for one that is damaged or has no model,
    and OptionError for one that is larger than the memory that is free.
    """
    path, about, tensors, signed = read_signed(path)
    try:
        header = json.loads(about.get("xnn", ""))
    except (ValueError, RecursionError) as error:
        instead = (
            "it is a checkpoint, which Trainer.resume reads (xnn train --resume --save FILE makes a model file)"
            if CHECKPOINT in about
            else "only files that xnn saved can be loaded"
        )
        raise CorruptFileError(f"{path} does not describe an xnn model: {instead}") from error
    _check_header(path, header, signed)
    return SavedModel(path, tensors, header, about.get("weights_sha256", ""))


def read_signed(path: str | os.PathLike[str]) -> tuple[Path, dict[str, str], dict[str, np.ndarray], bool]:
    """The path of a .safetensors file, its metadata, its tensors, and whether a digest covers every byte.

    Raises as `read_file` does, also where the digest is wrong.
    """
    from safetensors import SafetensorError, safe_open

    path = as_path(path)
    with reading(path):
        if not path.is_file():
            raise FileNotFoundError
        check_memory(str(path), path.stat().st_size, "load it on a larger machine")
        signed = check_signature(path)
        try:
            with safe_open(path, framework="numpy") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError, KeyError, TypeError, MemoryError) as error:
            raise CorruptFileError(
                f"{path} is not a readable .safetensors file ({str(error)[:200]}): fetch it again, or train again"
            ) from error
    return path, about, tensors, signed


def check_signature(path: Path) -> bool:
    """Whether the file has a digest of all its bytes. Raises CorruptFileError if it is wrong."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if length > min(size, _LONGEST_HEAD):
            return False
        head = file.read(length)
        found = _SIGNATURE.findall(head)
        if len(found) != 1:
            return False
        digest = hashlib.sha256(start + _SIGNATURE.sub(_UNSIGNED.encode(), head))
        while chunk := file.read(2**20):
            digest.update(chunk)
    if digest.hexdigest().encode() != found[0]:
        raise CorruptFileError(
            f"{path} does not match the digest that was saved in it, so the file is damaged: fetch it again, or "
            "train again"
        )
    return True


def _check_header(path: Path, header: Any, signed: bool) -> None:
    """Raise CorruptFileError for a description that xnn did not write."""
    known = header.get("format") if isinstance(header, dict) else None
    if known not in (FORMAT, _FORMAT_OF_0_1) or isinstance(known, bool):
        raise CorruptFileError(f"{path} has a format that this version of xnn does not know: update xnn")
    if known == FORMAT and not signed:
        raise CorruptFileError(
            f"{path} has no digest of the whole file, so it is damaged: fetch it again, or train again"
        )
    frozen = header.get("frozen", [])
    wrong = [
        key
        for key, right in (
            ("numerics", header.get("numerics") in (None, *NUMERICS)),
            ("notes", isinstance(header.get("notes"), dict)),
            ("frozen", isinstance(frozen, list) and all(isinstance(name, str) for name in frozen)),
            ("unknown", isinstance(header.get("unknown", ""), str)),
            ("layers", isinstance(header.get("layers"), list) or header.get("unknown")),
        )
        if not right
    ]
    if wrong:
        raise CorruptFileError(
            f"{path} does not describe a model that can be built: {wrong[0]} is "
            f"{repr(header.get(wrong[0], 'missing'))[:60]}"
        )
