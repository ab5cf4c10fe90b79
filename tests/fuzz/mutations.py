"""Mutations of files: of their bytes, of JSON values, and of the headers of npy, npz, idx and safetensors files."""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import zipfile
from typing import Any

import numpy as np

__all__ = [
    "bytes_of",
    "csv_of",
    "idx_gz_of",
    "idx_of",
    "npy_of",
    "npz_of",
    "record_of",
    "safetensors_of",
    "toml_of",
]

#: Texts that break careless readers: numbers at the edge, brackets, quotes, control characters.
WORDS = (
    b"", b"0", b"-1", b"1", b"2", b"255", b"1e400", b"-1e400", b"nan", b"inf", b"1e-400", b"9" * 25, b"9" * 5000,
    b"1_0", b"0x10", b"1.5", b"true", b"null", b"None", b'"', b"'", b'""', b'"a"', b"[]", b"{}", b"[", b"{", b"]" * 3,
    b"[" * 3000, b'{"a":' * 3000, b"\x00", b"\r", b"\n", b"\r\n", b",", b";", b"\t", b" ", b"\xff\xfe",
    b"\xef\xbb\xbf", b"\xc3\xa9", b"\xe2\x80\xa8", b"a.b", b"__class__", b"../x", b"%s%n", b"x" * 10_000,
)  # fmt: skip

#: Values in place of those of a JSON header.
VALUES = (
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 2**70, -(2**70), 0.5, -0.5, 1e308, float("inf"), float("nan"),
    "", "a", "x" * 300, "\x1b[31m", "\ud800", "Dense", "float64", "exact", [], [1], [1, 2], [[1]], [None], ["a"],
    [-1, 2], [2**40, 2**40], {}, {"a": 1}, {"type": "Dense"}, {"type": "ReLU"},
)  # fmt: skip


def one_of(rng: np.random.Generator, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def bytes_of(rng: np.random.Generator, content: bytes) -> bytes:
    """The content with one to three changes of its bytes."""
    for _ in range(int(rng.integers(1, 4))):
        start, end = sorted(int(n) for n in rng.integers(0, len(content) + 1, 2))
        end = min(end, start + int(rng.integers(1, 40)))
        piece = content[start:end]
        match int(rng.integers(8)):
            case 0 if piece:  # one bit
                content = (
                    content[:start] + bytes([piece[0] ^ (1 << int(rng.integers(8)))]) + content[start + 1 :]
                )
            case 1:
                content = content[:start] + content[end:]
            case 2:
                content = content[:start]
            case 3:
                content = content[:end] + piece * int(rng.integers(1, 4)) + content[end:]
            case 4:
                content = content[:start] + rng.bytes(int(rng.integers(1, 9))) + content[start:]
            case 5:
                content = content[:start] + rng.bytes(len(piece)) + content[end:]
            case 6:
                content = content[:start] + one_of(rng, WORDS) + content[end:]
            case _:
                content = content[:start] + one_of(rng, WORDS) + content[start:]
    return content


def value_of(rng: np.random.Generator, value: Any) -> Any:
    """A JSON value with one change somewhere inside."""
    places: list[tuple[Any, Any]] = []

    def visit(inner: Any) -> None:
        for key in inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ():
            places.append((inner, key))
            visit(inner[key])

    value = json.loads(json.dumps(value))
    visit(value)
    if not places or rng.random() < 0.02:
        return one_of(rng, VALUES)
    holder, key = one_of(rng, places)
    match int(rng.integers(5)):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(key, holder[key])
        case 1:
            holder[one_of(rng, ("", "a", "layers", "type", "seed"))] = one_of(rng, VALUES)
        case 2 if isinstance(holder[key], str):
            holder[key] = bytes_of(rng, holder[key].encode()).decode(errors="replace")
        case 3:
            holder[key] = json.loads(json.dumps(one_of(rng, places)[0]))
        case _:
            holder[key] = one_of(rng, VALUES)
    return value


def safetensors_of(rng: np.random.Generator, content: bytes) -> bytes:
    """A model's file with another header, of the form of version 0.1, which has no digest of its header."""
    if rng.random() < 0.3:
        return bytes_of(rng, content)
    size = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    about = {key: header["__metadata__"][key] for key in ("xnn", "weights_sha256")}
    if rng.random() < 0.8:
        about["xnn"] = json.dumps(value_of(rng, json.loads(about["xnn"])))
        header["__metadata__"] = about
    else:
        header = value_of(rng, header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def record_of(rng: np.random.Generator, content: bytes) -> bytes:
    """A record with another line, or another value in its first line, and the checksum of what it then holds."""
    if rng.random() < 0.3:
        return bytes_of(rng, content)
    lines = content.splitlines(keepends=True)[:-1]
    number = int(rng.integers(len(lines))) if rng.random() < 0.5 else 0
    changed = value_of(rng, json.loads(lines[number]))
    lines[number] = json.dumps(changed).encode() + b"\n"
    end = {"end": len(lines) - 2, "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}
    return b"".join(lines) + json.dumps(end).encode() + b"\n"


def npy_of(rng: np.random.Generator, content: bytes) -> bytes:
    """An npy file with another header, whose length is right."""
    if rng.random() < 0.4:
        return bytes_of(rng, content)
    size = int.from_bytes(content[8:10], "little")
    header, body = content[10 : 10 + size], content[10 + size :]
    fields = {
        b"descr": (b"'<f8'", b"'>f4'", b"'|b1'", b"'|O'", b"'<U3'", b"'|S4'", b"'<c16'", b"'<M8[s]'", b"'<f2'", b"3",
                   b"[('a', '<f4')]", b"'|V8'", b"'<i8'", b"'|u1'", b"'nothing'", b"'<f80000000000'"),
        b"fortran_order": (b"True", b"False", b"0", b"None"),
        b"shape": (b"()", b"(0, 3)", b"(3,", b"(True, 3)", b"(1" + b"0" * 20 + b",)", b"(-1, 6)", b"(2, 3)", b"6",
                   b"(4294967296, 4294967296)", b"(1000000000,)", b"(0, 100000000000)", b"(1.5, 2)", b"[4, 3]",
                   b"'a'"),
    }  # fmt: skip
    held = {key.encode(): repr(value).encode() for key, value in ast.literal_eval(header.decode()).items()}
    for _ in range(int(rng.integers(1, 3))):
        name = one_of(rng, list(fields))
        held[name] = one_of(rng, fields[name])
    text = [b"'" + name + b"': " + value for name, value in held.items()]
    if rng.random() < 0.2:
        text.append(bytes_of(rng, one_of(rng, text)))
    header = b"{" + b", ".join(text) + b"}\n"
    return content[:8] + len(header).to_bytes(2, "little") + header + body


def npz_of(rng: np.random.Generator, content: bytes) -> bytes:
    """An npz archive with other members."""
    if rng.random() < 0.3:
        return bytes_of(rng, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = one_of(rng, list(members))
    match int(rng.integers(5)):
        case 0:
            del members[name]
        case 1:
            members[one_of(rng, ("x", "z.npy", "../x.npy", "x_train.npy", "y_val.npy", ".npy"))] = (
                members.pop(name)
            )
        case 2:
            array = one_of(rng, (
                np.zeros(0), np.zeros((0, 3)), np.array(3.0), np.full((4, 3), np.nan), np.array(["a", "b", "c", "d"]),
                np.zeros((4, 3), "c8"), np.zeros((4, 3), "M8[s]"), np.zeros((4, 2, 2, 2)), np.zeros((4, 3), "f2"),
                np.array([[1 << 63] * 3] * 4, "u8"), np.full((4, 3), -1), np.zeros((3, 3)), np.zeros((4, 1), "?"),
            ))  # fmt: skip
            stream = io.BytesIO()
            np.save(stream, array)
            members[name] = stream.getvalue()
        case _:
            members[name] = npy_of(rng, members[name])
    stream = io.BytesIO()
    kind = one_of(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for member, inside in members.items():
            archive.writestr(member, inside)
    return stream.getvalue() if rng.random() < 0.8 else bytes_of(rng, stream.getvalue())


def idx_of(rng: np.random.Generator, content: bytes) -> bytes:
    """An idx file with another type, number of axes or extent."""
    if rng.random() < 0.4:
        return bytes_of(rng, content)
    changed = bytearray(content)
    if rng.random() < 0.5:
        changed[int(rng.integers(2, 4))] = one_of(rng, (0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 200, 255))
    else:
        place = 4 + 4 * int(rng.integers(0, 3))
        extent = one_of(rng, (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**16, 5, 700_000_000))
        changed[place : place + 4] = int(extent).to_bytes(4, "big")
    return bytes(changed)


def idx_gz_of(rng: np.random.Generator, content: bytes) -> bytes:
    """The same, compressed; or a damaged compressed file; or one that holds a thousand times its size."""
    plain = gzip.decompress(content)
    if rng.random() < 0.1:
        return gzip.compress(plain + bytes(2**20))
    if rng.random() < 0.5:
        return bytes_of(rng, content)
    return gzip.compress(idx_of(rng, plain), mtime=0)


def csv_of(rng: np.random.Generator, content: bytes) -> bytes:
    """A table with another field, line or separator."""
    if rng.random() < 0.4:
        return bytes_of(rng, content)
    lines = content.split(b"\n")
    number = int(rng.integers(len(lines)))
    fields = lines[number].split(b",")
    match int(rng.integers(6)):
        case 0:
            fields[int(rng.integers(len(fields)))] = one_of(rng, WORDS)
        case 1:
            fields.append(one_of(rng, WORDS))
        case 2:
            fields.pop()
        case 3:
            fields = [b'"' + field + b'"' for field in fields]
        case 4:
            fields[int(rng.integers(len(fields)))] += one_of(
                rng, (b'"', b' "x"', b'""', b"\x00", b" ", b"\xff")
            )
        case _:
            return content.replace(b",", one_of(rng, (b";", b"\t", b"|", b", ", b" ,")))
    lines[number] = b",".join(fields)
    return one_of(rng, (b"\n", b"\n", b"\r\n", b"\r")).join(lines)


def toml_of(rng: np.random.Generator, content: bytes) -> bytes:
    """A network with another value, key or line. Numbers stay below 1,000 or are too large for any machine."""
    lines = content.decode().split("\n")
    number = int(rng.integers(len(lines)))
    key, sign, _ = lines[number].partition("=")
    match int(rng.integers(6)):
        case 0 | 1 if sign:
            values = ("0", "-1", "1", "2", "true", '"classes"', '"a"', "[]", "[1, 2]", "[[1]]", "{}", "1.5", "inf",
                      "nan", "99999999999999999999", "1e300", '{type = "He"}', '{type = "ReLU"}', "1979-05-27",
                      "''", "0x1F", "[" * 2000, '"Sequential"', '"Conv2D"', '"Embedding"', '"BatchNorm"', '"same"',
                      "2" * 5000)  # fmt: skip
            lines[number] = f"{key}= {one_of(rng, values)}"
        case 2:
            lines.insert(number, one_of(rng, lines))
        case 3:
            del lines[number]
        case 4:
            lines.insert(number, ".".join(["a"] * one_of(rng, (2, 50, 3000))) + " = 1")
        case _:
            keys = (
                "dtype",
                "seed",
                "layers",
                "axis",
                "rate",
                "inputs",
                "weight_init",
                "padding",
                "buffers",
                "shape",
            )
            lines.insert(number, f"{one_of(rng, keys)} = {one_of(rng, ('1', '-1', '[1]', '[]', 'true'))}")
    text = "\n".join(lines).encode()
    if rng.random() < 0.3:
        start = int(rng.integers(len(text)))
        text = text[:start] + one_of(rng, [word for word in WORDS if not word.isdigit()]) + text[start:]
    return text
