"""Array files, .npy, .npz and idx: right, or refused in a sentence, before memory is asked for."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from xnn.backends import memory
from xnn.data import load, read_idx
from xnn.data.arrays import read_array, read_npz
from xnn.errors import CorruptFileError, OptionError, XnnError


def npy(header, body=b""):
    """An .npy file with this header, of version 1.0."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def saved(array, **options):
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


def described(shape, descr="'<f8'", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


GOOD = [
    np.arange(12.0).reshape(3, 4),
    np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
    np.arange(6, dtype=">i4").reshape(1, 2, 3),
    np.array(["a", "bcd"]),
    np.zeros((0, 3)),
    np.array(1.5),
    np.array([True, False]),
    np.array([1 + 2j]),
]


@pytest.mark.parametrize("array", GOOD, ids=lambda array: f"{array.dtype.str}{array.shape}")
def test_what_numpy_saves_is_read(tmp_path, array):
    (tmp_path / "a.npy").write_bytes(saved(array))
    np.savez_compressed(tmp_path / "a.npz", x=array, y=array)
    for got in (read_array(tmp_path / "a.npy"), *read_npz(tmp_path / "a.npz").values()):
        np.testing.assert_array_equal(got, array)
        assert got.dtype == array.dtype.newbyteorder("=")
        assert got.dtype.isnative
        assert got.flags.writeable
        assert got.flags.f_contiguous == array.flags.f_contiguous


DAMAGED = {
    "header cut in a bracket": npy("{'descr':'<f8','fortran_order':False,'shape':(3,"),
    "shape of true": npy(described("(True, 3)"), bytes(24)),
    "shape of 1e20": npy(described("(" + "1" + "0" * 20 + ",)", "'|b1'")),
    "shape 0 x 1e20": npy(described("(0, " + "1" + "0" * 20 + ")", "'|b1'")),
    "shape of a float": npy(described("(1e20,)")),
    "shape below 0": npy(described("(-3, -1)"), bytes(24)),
    "shape of text": npy(described("('3',)"), bytes(24)),
    "shape is a number": npy(described("3"), bytes(24)),
    "70 axes": npy(described("(" + "1, " * 70 + ")"), bytes(8)),
    "5,000 digits": npy(described("(" + "9" * 5000 + ",)")),
    "brackets": npy("(" * 5000),
    "a call": npy(described("__import__('os').getcwd()")),
    "header of 60 kB": npy(described("(3,)") + " " * 60_000, bytes(24)),
    "no such dtype": npy(described("(3,)", "'<q9'"), bytes(24)),
    "dtype without a size": npy(described("(3,)", "'<U0'")),
    "dtype of 4 EB": npy(described("(0,)", f"'<U{2**60}'")),
    "records": saved(np.zeros(3, [("a", "f8"), ("b", "i4")])),
    "records of objects": saved(np.zeros(3, [("a", "O")]), allow_pickle=True),
    "objects": saved(np.array([{}, 1], dtype=object), allow_pickle=True),
    "version 3": b"\x93NUMPY\x03\x00" + saved(np.zeros(3))[8:],
    "version 9": b"\x93NUMPY\x09\x00" + saved(np.zeros(3))[8:],
    "shorter": saved(np.zeros(3))[:-1],
    "longer": saved(np.zeros(3)) + b"\0",
    "two arrays": saved(np.zeros(3)) * 2,
    "announces 8 PB": npy(described("(10**15,)".replace("10**15", str(10**15))), bytes(16)),
    "null bytes": npy(described("(3,)") + "\0" * 10, bytes(24)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_npy_is_refused(tmp_path, name):
    """Alone, and as the member of an archive."""
    (tmp_path / "a.npy").write_bytes(DAMAGED[name])
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", DAMAGED[name])
    for read, file in ((read_array, "a.npy"), (read_npz, "a.npz")):
        with pytest.raises(CorruptFileError, match=file):
            read(tmp_path / file)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x"], "'x', which is no .npy file"),
        (["x.npy", "readme.txt"], "'readme.txt'"),
        (["x.npy", "x.npy"], "'x.npy', twice"),
        (["x/"], "'x/'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_holds_arrays_only(tmp_path, names, message):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in names:
            archive.writestr(name, saved(np.zeros(3)))
    for read in (read_npz, load):
        with pytest.raises(CorruptFileError, match=message):
            read(tmp_path / "a.npz")


def with_declared_size(content, size):
    """A ZIP archive of one member whose directory and local header say another unpacked size."""
    content = bytearray(content)
    directory = content.rindex(b"PK\x01\x02")
    for place in (22, directory + 24):
        content[place : place + 4] = struct.pack("<I", size)
    return bytes(content)


def archive_of(content, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("x.npy", content)
    return file.getvalue()


BOMBS = {
    "says 4 GB, holds 1 kB": with_declared_size(archive_of(npy(described(f"({2**29 - 100},)"))), 2**32 - 100),
    "says 1 kB, holds 64 MB": with_declared_size(archive_of(npy(described("(100,)"), bytes(2**26))), 1000),
    "array shorter than its member": archive_of(npy(described("(100,)"), bytes(2**26))),
    "stored, 4 GB in 1 kB": with_declared_size(
        archive_of(npy(described(f"({2**29 - 100},)")), zipfile.ZIP_STORED), 2**32 - 100
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_no_memory(tmp_path, name):
    (tmp_path / "a.npz").write_bytes(BOMBS[name])
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFileError, match=r"a\.npz"):
            read_npz(tmp_path / "a.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_an_archive_of_more_than_the_free_memory_is_refused(tmp_path, monkeypatch):
    """A bomb that is what it says: 128 MB in 130 kB, on a machine with 100 MB."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        body = npy(described(f"({2**23},)"), bytes(2**26))
        archive.writestr("x.npy", body)
        archive.writestr("y.npy", body)
    monkeypatch.setattr(memory, "free_memory", lambda: 100 * 2**20)
    with pytest.raises(CorruptFileError, match=r"a\.npz is too large for memory, of which 0\.1 GiB are free"):
        read_npz(tmp_path / "a.npz")


def test_an_encrypted_archive_is_refused(tmp_path):
    content = bytearray(archive_of(saved(np.zeros(3))))
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CorruptFileError, match="encrypted"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["npy", "npz", "idx", "gz"])
def test_mutated_files_are_read_or_refused(tmp_path, kind):
    """Bytes changed, removed, put in: nothing but an array or a CorruptFileError comes out."""
    x = np.arange(24, dtype=np.uint8).reshape(2, 12)
    raw = b"\0\0\x08\x02" + struct.pack(">2I", *x.shape) + x.tobytes()
    good = {"npy": saved(x), "npz": archive_of(saved(x)), "idx": raw, "gz": gzip.compress(raw)}[kind]
    read = {"npy": read_array, "npz": read_npz}.get(kind, read_idx)
    random = np.random.default_rng(0)
    path, refused = tmp_path / f"a.{kind}", 0
    for _ in range(150):
        content, place = bytearray(good), int(random.integers(len(good)))
        change = random.integers(4)
        if change == 0:
            content[place] = random.integers(256)
        elif change == 1:
            content[place : place + 4] = b"\xff" * 4
        elif change == 2:
            del content[place : place + int(random.integers(1, 20))]
        else:
            content[place:place] = random.bytes(int(random.integers(1, 20)))
        path.write_bytes(content)
        try:
            read(path)
        except CorruptFileError as error:
            assert str(path) in str(error)  # noqa: PT017 - it may also be an array
            refused += 1
    assert refused > 75


# ---------------------------------------------------------------- idx


@pytest.mark.parametrize(
    "extents",
    [(0, 2**32 - 1, 2**32 - 1), (2**32 - 1, 0), (0,) * 7 + (2**32 - 1,), (1, 2**31, 1), (1000, 1000)],
    ids=str,
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_extents_of_an_idx_header_are_bounded(tmp_path, extents, pack):
    """By 2 GiB, also where another extent is 0; and by what the file can hold."""
    path = tmp_path / "z.idx"
    path.write_bytes(pack(bytes([0, 0, 8, len(extents)]) + struct.pack(f">{len(extents)}I", *extents)))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFileError, match=r"z\.idx"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_an_idx_file_of_more_than_the_free_memory_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "z.idx.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 2**26 + 1) + bytes(2**26 + 1), 1))
    monkeypatch.setattr(memory, "free_memory", lambda: 2**20)
    with pytest.raises(CorruptFileError, match="GiB are free"):
        read_idx(path)


# ---------------------------------------------------------------- memory


def test_small_arrays_are_not_looked_at(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 0)
    memory.check_memory("it", 2**26, "no")


def test_free_memory_is_a_number_of_bytes():
    assert 2**20 < memory.free_memory() <= 2**45


# ---------------------------------------------------------------- one-hot targets

CLASSES = np.arange(60) % 3
SAMPLES = np.random.default_rng(0).normal(size=(60, 4))


@pytest.mark.parametrize("dtype", [int, float, bool, np.uint8])
def test_one_hot_targets_of_an_archive_are_classes(tmp_path, dtype):
    """And the note says so."""
    np.savez(tmp_path / "hot.npz", x=SAMPLES, y=np.eye(3, dtype=dtype)[CLASSES])
    np.savez(tmp_path / "plain.npz", x=SAMPLES, y=CLASSES)
    hot, plain = load(tmp_path / "hot.npz"), load(tmp_path / "plain.npz")
    assert (hot.task, hot.classes, hot.labels) == ("classification", 3, ())
    assert "one-hot rows: taken as the classes 0 .. 2" in hot.note
    for one, other in zip(hot, plain, strict=True):
        np.testing.assert_array_equal(one, other)
    assert load(tmp_path / "hot.npz", task="regression").y_train.shape == (48, 3)
    assert load(tmp_path / "hot.npz", task="classification").classes == 3


def test_one_hot_targets_in_every_part_of_an_archive(tmp_path):
    hot = np.eye(4)[CLASSES]  # the last class has no sample
    np.savez(
        tmp_path / "a.npz", x_train=SAMPLES, y_train=hot, x_val=SAMPLES, y_val=hot, x_test=SAMPLES, y_test=hot
    )
    found = load(tmp_path / "a.npz")
    assert found.classes == 4
    for y in (found.y_train, found.y_val, found.y_test):
        np.testing.assert_array_equal(y, CLASSES)


@pytest.mark.parametrize(
    "y",
    [
        np.eye(3)[CLASSES] * 2,
        np.eye(3)[CLASSES] + 0.1,
        np.where(np.arange(60)[:, None] < 59, np.eye(3)[CLASSES], 0),
        np.where(np.arange(60)[:, None] < 59, np.eye(3)[CLASSES], [1, 1, 0]),
        np.where(np.arange(60)[:, None] < 59, np.eye(3)[CLASSES], [1, 1, -1]),
        1 - np.eye(3)[CLASSES],
    ],
    ids=["twos", "smoothed", "a row of zeros", "a row of two", "sum 1", "all but one"],
)
def test_other_targets_of_several_columns_are_a_regression(tmp_path, y):
    np.savez(tmp_path / "a.npz", x=SAMPLES, y=y)
    found = load(tmp_path / "a.npz")
    assert (found.task, found.note) == ("regression", "")
    assert sum(len(part) for part in (found.y_train, found.y_val, found.y_test)) == 60


@pytest.mark.parametrize(
    "target",
    ["9" * 5000, "-" + "9" * 5000, 10**5000, [10**5000], "9" * 10],
    ids=["text", "below 0", "integer", "list", "ten digits"],
)
def test_a_target_of_many_digits_is_refused(tmp_path, target):
    path = tmp_path / "t.csv"
    path.write_text("a,b,c\n" + "1,2,0\n2,3,1\n" * 9)
    with pytest.raises(OptionError, match="for the target"):
        load(path, target=target)


def archive(**changed):
    """The arrays of an archive that is split already, some of them changed, or left out if None."""
    x = np.arange(60.0).reshape(30, 2)
    arrays = {"x_train": x, "y_train": np.arange(30) % 2, "x_test": x[:6], "y_test": np.arange(6) % 2}
    arrays |= {"x_val": x[:4], "y_val": np.arange(4) % 2} | changed
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize(
    "changed",
    [
        {"y_val": None},
        {"x_val": None},
        {"y_test": None},
        {"x_train": None},
        {"x": np.ones((9, 2)), "y": np.arange(9) % 2},
        {"x": np.ones((9, 2))},
        {"x_train": None, "y_train": None, "x": np.ones((9, 2)), "y": np.arange(9) % 2},
    ],
)
def test_no_array_of_an_archive_is_passed_over(tmp_path, changed):
    np.savez(tmp_path / "t.npz", **archive(**changed))
    with pytest.raises(CorruptFileError, match=r"it must hold x and y, or x_train.*not some of both"):
        load(tmp_path / "t.npz")


@pytest.mark.parametrize("part", ["val", "test"])
def test_an_empty_part_is_refused_before_training(tmp_path, part):
    np.savez(tmp_path / "t.npz", **archive(**{f"x_{part}": np.ones((0, 2)), f"y_{part}": np.ones(0, int)}))
    with pytest.raises(CorruptFileError, match=f"no sample in x_{part}"):
        load(tmp_path / "t.npz")


def test_an_archive_may_hold_other_arrays(tmp_path):
    np.savez(tmp_path / "t.npz", **archive(), names=np.array(["a", "b"]))
    assert [len(y) for y in load(tmp_path / "t.npz")][1::2] == [30, 4, 6]


@pytest.mark.parametrize("number", [2**53 + 1, -(2**53) - 1, 2**62])
@pytest.mark.parametrize("part", ["train", "test"])
def test_targets_that_float64_cannot_hold_are_refused(tmp_path, number, part):
    arrays = archive(y_train=np.arange(30) * 2, y_test=np.arange(6), y_val=np.arange(4))
    arrays[f"y_{part}"][3] = number
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(XnnError, match=r"up to 2\^53 only"):
        load(tmp_path / "t.npz", task="regression")
