"""CSV, .npz and .npy files: numbers, and one clear error for anything else."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from xnn.data import load
from xnn.data.tables import is_classification, read_array, read_csv, read_npz
from xnn.errors import CorruptFileError, DataNotFoundError

# ---------------------------------------------------------------- tables

TABLE = [[1.0, 2.5, -3.0], [4.0, 5.0, 6e-3]]


@pytest.mark.parametrize(
    "text",
    [
        "a,b,c\n1,2.5,-3\n4,5,6e-3\n",
        "1,2.5,-3\n4,5,6e-3\n",
        '"a","b, or c","c"\n"1",2.5,"-3"\n4,"5",6e-3\n',
        "\ufeffa,b,c\n1,2.5,-3\n4,5,6e-3\n",
        "\ufeff1,2.5,-3\n4,5,6e-3\n",
        "a,b,c\r\n1, 2.5 ,-3\r\n\r\n4,5,6e-3",
    ],
    ids=["header", "no header", "quoted", "BOM", "BOM, no header", "CRLF, blanks"],
)
def test_csv(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    got = read_csv(path)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, TABLE)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a,b\n",
        b"a,b\n1,2\n3,x\n",
        b"a,b\n1,2\n3,\n",
        b"1,2\n3,4,5\n",
        b"a,b,c\n1,2\n",
        b"a,b\n1,nan\n",
        b"a,b\n1,-inf\n",
        b"a,b\n\xff\xfe,2\n",
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        b'a,b\n"' + b"1" * 200_000 + b'",2\n',
    ],
    ids=[
        "empty", "only a header", "text", "missing", "ragged", "ragged header", "nan", "inf", "not UTF-8",
        "binary", "endless field",
    ],
)  # fmt: skip
def test_csv_refuses(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError) as caught:
        read_csv(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["a,b\n1,2\n3,x\n", "1,2\n3,4\n5,x\n", "a,b\n\n1,x\n", "1,2\n3,4\n5\n", "a,b\n1,2\n3,\n"],
    ids=["header", "no header", "blank line", "ragged", "missing"],
)
def test_csv_error_names_the_line(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(CorruptFileError, match="line 3"):
        read_csv(path)


def test_missing_tables(tmp_path):
    for read, name in ((read_csv, "t.csv"), (read_npz, "t.npz"), (read_array, "t.npy")):
        with pytest.raises(DataNotFoundError, match=name):
            read(tmp_path / name)
    for name in ("t.csv", "t.npz"):
        with pytest.raises(DataNotFoundError, match=name):
            load(tmp_path / name)


class Explosive:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return open, (self.trace, "w")


def test_pickles_are_refused_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    array = np.array([Explosive(trace), None], dtype=object)
    np.savez(tmp_path / "t.npz", x=array, y=np.zeros(2))
    np.save(tmp_path / "t.npy", array)
    with pytest.raises(CorruptFileError, match=r"t\.npz"):
        load(tmp_path / "t.npz")
    with pytest.raises(CorruptFileError, match=r"t\.npy"):
        read_array(tmp_path / "t.npy")
    assert not trace.exists()


def npz_bytes(tmp_path, compressed):
    (np.savez_compressed if compressed else np.savez)(tmp_path / "whole.npz", x=np.arange(2000.0))
    return (tmp_path / "whole.npz").read_bytes()


def npy_that_announces(extent):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({extent},), }}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(16)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "npy", "bits", "deflated bits"])
def test_npz_damaged(tmp_path, damage):
    content = bytearray(npz_bytes(tmp_path, damage == "deflated bits"))
    if damage == "npy":  # a file that NumPy reads, but not as an archive
        np.save(tmp_path / "a.npy", np.arange(3.0))
        content = (tmp_path / "a.npy").read_bytes()
    elif "bits" in damage:
        content[300:400] = b"\xff" * 100
    else:
        content = {"truncated": content[:-30], "text": b"x,y\n1,2\n", "empty": b""}[damage]
    path = tmp_path / "t.npz"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"t\.npz"):
        read_npz(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"x,y\n", b"\x93NUMPY\x01\x00", npy_that_announces(100), npy_that_announces(10**15)],
    ids=["empty", "text", "truncated header", "truncated", "announces 8 PB"],
)
def test_npy_damaged(tmp_path, content):
    path = tmp_path / "t.npy"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"t\.npy"):
        read_array(path)


def test_npy_that_is_an_archive(tmp_path):
    """np.load opens it as .npz whatever its name, and returns no array."""
    path = tmp_path / "t.npy"
    path.write_bytes(npz_bytes(tmp_path, False))
    with pytest.raises(CorruptFileError, match=r"t\.npy"):
        read_array(path)


@pytest.mark.parametrize(
    ("y", "labels"),
    [
        ([0, 1, 2, 1], True),
        ([0.0, 1.0], True),
        ([0, 2], False),
        ([1, 2], False),
        ([-1, 0, 1], False),
        ([0.0, 0.5, 1.0], False),
        ([], False),
        ([[0], [1]], False),
        ([0.0, np.nan], False),
    ],
)
def test_is_classification(y, labels):
    assert is_classification(np.array(y)) is labels
