"""Data: nothing in a file is believed, a cache only holds checked files, batches hold every row once."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import itertools
import os
import socket
import struct
import threading
import tracemalloc

import numpy as np
import pytest

from xnn.data import Batches, dataset_names, load, on_disk, read_idx, synthetic_digits
from xnn.data.sources import data_homes, fetch, find
from xnn.data.tables import is_classification, read_array, read_csv, read_npz
from xnn.errors import CorruptFileError, DataNotFoundError, OptionError, ShapeError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the test's own, no XNN_DATA_HOME, and no proxy between us and 127.0.0.1."""
    place = tmp_path / "cache"
    monkeypatch.delenv("XNN_DATA_HOME", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("xnn.data.sources.cache_home", lambda: place)
    return place


def files_in(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


# ---------------------------------------------------------------- idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array, code=None):
    """The idx bytes of an array, written here from the format's description."""
    kind = array.dtype.str[1:]
    head = bytes([0, 0, code or CODES[kind], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
GOOD = idx(PIXELS)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_idx_round_trip(tmp_path, kind, pack):
    array = np.array([[1, -2, 3], [0, 100, -7]]).astype(kind)
    path = tmp_path / "f"  # no suffix: the content decides whether it is gzip
    path.write_bytes(pack(idx(array)))
    got = read_idx(path)
    assert got.dtype == array.dtype
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("shape", [(0,), (0, 28, 28), (1,)])
def test_idx_small(tmp_path, shape):
    path = tmp_path / "f"
    path.write_bytes(idx(np.zeros(shape, np.uint8)))
    assert read_idx(path).shape == shape


def test_idx_checks_that_pass(tmp_path):
    path = tmp_path / "f.gz"
    path.write_bytes(gzip.compress(GOOD))
    got = read_idx(path, hashlib.sha256(GOOD).hexdigest(), (None, 3, 4), "u1")
    np.testing.assert_array_equal(got, PIXELS)


def damaged_middle():
    content = bytearray(gzip.compress(os.urandom(4000)))
    content[2000:2010] = b"\xff" * 10
    return bytes(content)


BAD = {
    "empty": (b"", {}),
    "short magic": (GOOD[:3], {}),
    "wrong magic": (b"\x01" + GOOD[1:], {}),
    "unknown type": (GOOD[:2] + b"\x0a" + GOOD[3:], {}),
    "no axes": (b"\0\0\x08\0", {}),
    "html": (b"<html>404</html>", {}),
    "truncated header": (GOOD[:9], {}),
    "no body": (GOOD[:16], {}),
    "truncated body": (GOOD[:-1], {}),
    "too long": (GOOD + b"x", {}),
    "wrong type": (GOOD, {"dtype": "i1"}),
    "wrong axes": (GOOD, {"shape": (2, 12)}),
    "wrong shape": (GOOD, {"shape": (None, 3, 5)}),
    "wrong checksum": (GOOD, {"sha256": "0" * 64}),
    "gzip, truncated": (gzip.compress(GOOD)[:-9], {}),
    "gzip, damaged": (damaged_middle(), {}),
    "gzip, wrong CRC": (gzip.compress(GOOD)[:-8] + b"\0" * 8, {}),
    "gzip, only its magic": (b"\x1f\x8b", {}),
    "gzip of something else": (gzip.compress(b"hello, world"), {}),
    "gzip, too long": (gzip.compress(GOOD + b"x"), {}),
    "gzip, garbage after it": (gzip.compress(GOOD) + b"garbage", {}),
    "announces 16 EiB": (b"\0\0\x08\x02" + b"\xff" * 8 + b"abc", {}),
    "announces 3 GiB": (b"\0\0\x08\x01" + struct.pack(">I", 3 * 2**30) + b"abc", {}),
    "announces 1 GiB": (b"\0\0\x08\x01" + struct.pack(">I", 2**30) + b"abc", {}),
}


@pytest.mark.parametrize("name", BAD)
def test_idx_refuses(tmp_path, name):
    content, options = BAD[name]
    path = tmp_path / "images-idx"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError) as caught:
        read_idx(path, **options)
    assert str(path) in str(caught.value)


def test_idx_missing_or_a_folder(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(CorruptFileError) as caught:
            read_idx(path)
        assert str(path) in str(caught.value)


def test_idx_bomb_is_not_unpacked(tmp_path):
    """64 MiB of zeros behind a header that announces ten bytes: a few more than ten are decompressed."""
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 10) + bytes(2**26), 1))
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFileError, match="longer"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- sources


def test_data_home_that_is_not_there(cache, tmp_path, monkeypatch):
    with pytest.raises(OptionError, match="data_home"):
        load("mnist", tmp_path / "nowhere")
    monkeypatch.setenv("XNN_DATA_HOME", str(tmp_path / "nowhere"))
    for name in ("mnist", "boston", None):  # without a name too: a typing error is not "no network"
        with pytest.raises(OptionError, match=r"XNN_DATA_HOME.*nowhere"):
            load(name)


def test_find_order(cache, tmp_path, monkeypatch):
    """data_home before XNN_DATA_HOME before the cache; a home may be the set's folder itself; names in order."""
    named, home = tmp_path / "named" / "set", tmp_path / "home" / "set"
    monkeypatch.setenv("XNN_DATA_HOME", str(home))
    places = [named / "set", named, home / "set", home, cache / "set"]
    wanted = [place / name for place in places for name in ("a.gz", "a")]
    for path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert data_homes(named) == [named, home, cache]
    while wanted:
        found = find("set", ("a.gz", "a"), named)
        assert found == wanted.pop(0)
        found.unlink()
    (cache / "a").write_text("")  # in no folder that says what it is
    assert find("set", ("a.gz", "a"), named) is None


def test_find_passes_over_folders(cache, tmp_path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    assert find("set", ("a",), tmp_path) is None


@pytest.fixture
def served():
    """A web server on 127.0.0.1: path -> bytes; None breaks off half way; and the paths asked for."""
    files, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path not in files:
                self.send_error(404)
                return
            content = files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(1000 if content is None else len(content)))
            self.end_headers()
            self.wfile.write(b"half" if content is None else content)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield files, asked, tuple(f"http://127.0.0.1:{server.server_port}/{mirror}/" for mirror in "ab")
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetch_from_the_first_mirror(cache, served):
    files, asked, mirrors = served
    files["/a/x"] = files["/b/x"] = GOOD
    path = fetch("set", "x", mirrors, read_idx)
    assert path == cache / "set" / "x"
    assert path.read_bytes() == GOOD
    assert files_in(cache) == ["x"]
    assert asked == ["/a/x"]


@pytest.mark.parametrize("first", ["missing", "corrupt", "broken off"])
def test_fetch_goes_on_to_the_next_mirror(cache, served, first):
    files, asked, mirrors = served
    files.update({"missing": {}, "corrupt": {"/a/x": GOOD[:-1]}, "broken off": {"/a/x": None}}[first])
    files["/b/x"] = GOOD
    assert fetch("set", "x", mirrors, read_idx).read_bytes() == GOOD
    assert files_in(cache) == ["x"]
    assert asked == ["/a/x", "/b/x"]


def test_fetch_looks_at_the_md5(cache, served):
    files, _, mirrors = served
    files["/a/x"], files["/b/x"] = idx(PIXELS + 1), GOOD  # both are good idx files
    assert fetch("set", "x", mirrors, read_idx, hashlib.md5(GOOD).hexdigest()).read_bytes() == GOOD
    with pytest.raises(DataNotFoundError, match="checksum"):
        fetch("other", "x", mirrors, read_idx, "0" * 32)
    assert files_in(cache) == ["x"]


@pytest.mark.parametrize("content", [b"", GOOD[:-1], b"<html>login</html>", None])
def test_failed_fetch_leaves_the_cache_empty(cache, served, content):
    files, asked, mirrors = served
    files["/a/x"] = content
    with pytest.raises(DataNotFoundError) as caught:
        fetch("set", "x", mirrors, read_idx)
    message = str(caught.value)
    assert "x" in message
    assert mirrors[1] in message  # the second mirror's answer too
    assert "XNN_DATA_HOME" in message
    assert {"/a/x", "/b/x"} == set(asked)
    assert files_in(cache) == []


def test_fetch_does_not_hang_on_a_silent_mirror(cache, served, monkeypatch):
    files, _, mirrors = served
    files["/b/x"] = GOOD
    monkeypatch.setattr("xnn.data.sources._TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, never answers
        here = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert fetch("set", "x", (here, mirrors[1]), read_idx).read_bytes() == GOOD


def test_fetch_into_a_cache_that_cannot_be_made(cache, served):
    files, _, mirrors = served
    files["/a/x"] = GOOD
    cache.write_text("a file stands where the cache should be")
    with pytest.raises(DataNotFoundError):
        fetch("set", "x", mirrors, read_idx)


def test_load_fetches_what_is_missing(cache, served, monkeypatch):
    """The four published names are asked for, checked against the table and reused from the cache."""
    files, asked, mirrors = served
    x, y = np.zeros((12, 28, 28), np.uint8), np.arange(12, dtype=np.uint8) % 10
    parts = {"train-images-idx3-ubyte": x, "train-labels-idx1-ubyte": y}
    parts |= {"t10k-images-idx3-ubyte": x[:5], "t10k-labels-idx1-ubyte": y[:5]}
    table = {}
    for name, part in parts.items():
        files[f"/b/{name}.gz"] = gzip.compress(idx(part))
        table[name] = ((None,) * part.ndim, hashlib.sha256(idx(part)).hexdigest())
    monkeypatch.setattr("xnn.data.datasets._MNIST", table)
    monkeypatch.setattr("xnn.data.datasets._MNIST_MIRRORS", mirrors)
    got = load()
    assert (got.name, got.note) == ("mnist", "")
    assert got.x_test.shape == (5, 784)
    assert len(got.x_train) + len(got.x_val) == 12
    count = len(asked)
    load("mnist")
    assert len(asked) == count
    assert on_disk()["mnist"] == str(cache / "mnist")


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


# ---------------------------------------------------------------- data sets


def rows_of(*arrays):
    """Rows as sorted tuples: equal if and only if the same rows are there, in any order."""
    return sorted(tuple(np.ravel(row).tolist()) for row in itertools.chain(*arrays))


def test_load_csv_regression(tmp_path):
    x = np.arange(90.0).reshape(30, 3)
    y = x[:, 0] / 7
    path = tmp_path / "t.csv"
    np.savetxt(path, np.column_stack([x, y]), delimiter=",", header="a,b,c,target", comments="", fmt="%.17g")
    data = load(path)
    assert (data.name, data.task, data.classes, data.scale) == ("t.csv", "regression", 1, None)
    assert [len(a) for a in data] == [24, 24, 3, 3, 3, 3]
    assert data.y_train.shape == (24, 1)
    assert rows_of(data.x_train, data.x_val, data.x_test) == rows_of(x)
    for features, targets in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        np.testing.assert_array_equal(targets[:, 0], features[:, 0] / 7)  # a row keeps its target
    again = load(str(path))  # a text is a path too, and the split is always the same
    for a, b in zip(data, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_load_csv_classification(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("".join(f"{i},{i % 3}\n" for i in range(30)))
    data = load(path)
    assert (data.task, data.classes) == ("classification", 3)
    assert data.y_train.dtype == np.int64
    np.testing.assert_array_equal(data.x_train[:, 0] % 3, data.y_train)


@pytest.mark.parametrize("text", ["1\n2\n3\n", "1,0\n2,1\n"], ids=["one column", "two rows"])
def test_load_csv_too_small(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(CorruptFileError, match=r"t\.csv"):
        load(path)


def test_load_npz_layouts(tmp_path):
    path = tmp_path / "t.npz"
    x = np.arange(20 * 6, dtype=np.uint8).reshape(20, 2, 3)
    y = np.arange(20) % 2
    np.savez(path, x=x, y=y[:, None])  # a column of labels is as good as a row
    data = load(path)
    assert (data.task, data.scale, data.x_train.dtype) == ("classification", 1 / 255, np.uint8)
    assert [a.shape for a in data] == [(16, 6), (16,), (2, 6), (2,), (2, 6), (2,)]

    np.savez(path, x_train=x, y_train=y, x_test=x[:5], y_test=y[:5])
    data = load(path)
    assert [len(a) for a in data] == [18, 18, 2, 2, 5, 5]
    np.testing.assert_array_equal(data.x_test, x[:5].reshape(5, 6))
    assert rows_of(data.x_train, data.x_val) == rows_of(x)

    parts = {"x_train": x / 2, "x_val": x[:3] / 2, "x_test": x[:5] / 2}
    np.savez(path, **parts, y_train=y / 4, y_val=y[:3] / 4, y_test=y[:5] / 4)
    data = load(path)
    assert (data.task, data.scale) == ("regression", None)
    assert [a.shape for a in data] == [(20, 6), (20, 1), (3, 6), (3, 1), (5, 6), (5, 1)]
    np.testing.assert_array_equal(data.y_val[:, 0], y[:3] / 4)

    np.savez(path, x=x / 2, y=np.column_stack([y / 4, y, y]))
    assert load(path).classes == 3  # targets of three columns: three outputs


X, Y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2


@pytest.mark.parametrize(
    "arrays",
    [
        {"a": X},
        {"x": X},
        {"x_train": X, "y_train": Y},
        {"x": X, "y": Y[:-1]},
        {"x": X[:2], "y": Y[:2]},
        {"x": X, "y": np.array(["cat", "dog"] * 10)},
        {"x": X.astype(str), "y": Y},
        {"x": X * 1j, "y": Y},
        {"x": np.float64(1.0), "y": Y},
        {"x": X, "y": np.int64(1)},
        {"x_train": X, "y_train": Y[:-1], "x_test": X, "y_test": Y},
        {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y[:-1]},
        {"x_train": X, "y_train": Y, "x_test": X[:, :1], "y_test": Y},
        {"x_train": X, "y_train": Y, "x_test": X.astype(str), "y_test": Y},
        {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 0.5},
        {"x_train": X, "y_train": Y / 4, "x_test": X, "y_test": np.array(["cat", "dog"] * 10)},
        {"x": np.where(X == 5, np.nan, X), "y": Y},
    ],
    ids=[
        "other names", "no y", "no test set", "lengths", "two rows", "text labels", "text", "complex",
        "x a number", "y a number", "train lengths", "test lengths", "test width", "text in the test set",
        "half labels in the test set", "text targets in the test set", "NaN",
    ],
)  # fmt: skip
def test_load_npz_refuses(tmp_path, arrays):
    """When it is loaded, not after an hour of training."""
    path = tmp_path / "t.npz"
    np.savez(path, **arrays)
    with pytest.raises(CorruptFileError) as caught:
        load(path)
    assert "t.npz" in str(caught.value)


@pytest.mark.parametrize("name", ["nosuch", "mnist.gz", "", "MNIST", "data.parquet"])
def test_load_unknown_name(cache, name):
    with pytest.raises(OptionError) as caught:
        load(name)
    assert all(known in str(caught.value) for known in dataset_names())


def test_load_boston_without_its_file(cache):
    with pytest.raises(DataNotFoundError, match=r"boston_housing\.csv.*XNN_DATA_HOME"):
        load("boston")
    assert "boston" not in on_disk()


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


def test_no_name_and_no_network_is_synthetic(cache, monkeypatch):
    monkeypatch.setattr("xnn.data.datasets._MNIST_MIRRORS", (f"http://127.0.0.1:{closed_port()}/",))
    monkeypatch.setattr("xnn.data.datasets._SYNTHETIC", (60, 20, 20))
    data = load()
    assert data.name == "synthetic"
    assert "synthetic" in data.note
    assert "\n" not in data.note
    assert [len(a) for a in data] == [60, 60, 20, 20, 20, 20]
    assert load("synthetic").note == ""
    with pytest.raises(DataNotFoundError, match="XNN_DATA_HOME"):
        load("mnist")
    assert files_in(cache) == []


@pytest.mark.parametrize("name", ["mnist", None])
def test_damaged_mnist_is_an_error_even_without_a_name(cache, name):
    """A corrupt file is never quietly replaced by another data set."""
    (cache / "mnist").mkdir(parents=True)
    (cache / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(GOOD))
    with pytest.raises(CorruptFileError, match="train-images"):
        load(name)


def write_images(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    x, y = np.zeros((count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(x))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(y))


def test_load_fashion_mnist_from_disk(cache):
    write_images(cache / "fashion-mnist", 20)
    data = load("fashion-mnist")
    assert (data.name, data.x_test.shape, data.scale) == ("fashion-mnist", (20, 784), 1 / 255)
    assert {"fashion-mnist", "synthetic"} == set(on_disk())
    (cache / "fashion-mnist" / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(19, np.uint8)))
    with pytest.raises(CorruptFileError, match="fashion-mnist"):
        load("fashion-mnist")
    (cache / "fashion-mnist" / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(20, 10, np.uint8)))
    with pytest.raises(CorruptFileError, match="fashion-mnist"):
        load("fashion-mnist")


def test_mnist_files_are_not_fashion_mnist(cache, tmp_path, monkeypatch):
    """Both sets have the same file names: digits lying in the home itself must not pass for clothes."""
    monkeypatch.setattr("xnn.data.datasets._FASHION_MIRRORS", (f"http://127.0.0.1:{closed_port()}/",))
    for name in ("home", "mnist"):
        write_images(tmp_path / name, 20)
        with pytest.raises(DataNotFoundError):
            load("fashion-mnist", tmp_path / name)
        assert "fashion-mnist" not in on_disk(tmp_path / name)


@pytest.mark.data
def test_load_mnist():
    data = load("mnist")
    assert [a.shape[0] for a in data] == [50_000, 50_000, 10_000, 10_000, 10_000, 10_000]
    assert data.x_train.shape[1:] == (784,)
    assert (data.x_train.dtype, data.y_train.dtype) == (np.uint8, np.int64)
    assert data.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert (data.name, data.task, data.classes, data.scale) == ("mnist", "classification", 10, 1 / 255)
    assert load().name == "mnist"


@pytest.mark.data
def test_load_boston():
    data = load("boston")
    assert [a.shape for a in data] == [(406, 13), (406, 1), (50, 13), (50, 1), (50, 13), (50, 1)]
    assert (data.task, data.classes) == ("regression", 1)
    targets = np.concatenate([data.y_train, data.y_val, data.y_test])
    assert targets.mean() == pytest.approx(22.5328, abs=1e-4)  # medv's published mean
    assert {"mnist", "boston", "synthetic"} <= set(on_disk())


def test_load_digits():
    sklearn = pytest.importorskip("sklearn.datasets")
    data = load("digits")
    x, y = sklearn.load_digits(return_X_y=True)
    assert (data.name, data.classes, data.scale, data.x_train.dtype) == ("digits", 10, 1 / 16, np.uint8)
    everything = [np.column_stack([data.x_train, data.y_train])]
    everything += [np.column_stack(p) for p in ((data.x_val, data.y_val), (data.x_test, data.y_test))]
    assert rows_of(*everything) == rows_of(np.column_stack([x, y]).astype(int))


def test_rescaling(tmp_path, monkeypatch):
    table = np.column_stack([np.arange(50.0) * 3 + 100, np.full(50, 7.0), np.arange(50.0) / 9])
    np.savetxt(tmp_path / "t.csv", table, delimiter=",")
    data = load(tmp_path / "t.csv")
    scale, offset = data.rescaling()
    z = data.x_train * scale + offset
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(z.std(axis=0), [1, 0], atol=1e-9)  # a constant column has no spread
    monkeypatch.setattr("xnn.data.datasets._SYNTHETIC", (8, 1, 1))
    assert load("synthetic").rescaling() == (1 / 255, 0.0)  # bytes have a scale of their own


# ---------------------------------------------------------------- synthetic digits


@pytest.mark.parametrize(
    ("seed", "digest"),
    [
        (0, "3406b0a68e375e4642bde569261d50d6af22dd2805ceb5cd17cc2f3ae8a091ce"),
        (5, "c96bc2d23c6e12f97ebc4742abc7622c17bfa5a1c14911dfad28b59abb2c8b6a"),
    ],
)
def test_synthetic_bytes_are_pinned(seed, digest):
    """On every machine and NumPy: results named "synthetic" stay comparable."""
    x, y = synthetic_digits(100, seed)
    assert hashlib.sha256(x.tobytes() + y.astype("<i8").tobytes()).hexdigest() == digest


@pytest.mark.parametrize("count", [0, 1, 3, 257])
def test_synthetic_any_count(count):
    x, y = synthetic_digits(count)
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((count, 784), np.uint8, (count,), np.int64)
    assert all(0 <= label <= 9 for label in y)


@pytest.mark.parametrize("count", [-1, 1.5, True, "10"])
def test_synthetic_refuses(count):
    with pytest.raises(OptionError, match="count"):
        synthetic_digits(count)


def test_synthetic_is_learnable_and_not_trivial():
    x, y = synthetic_digits(3000)
    assert np.bincount(y, minlength=10).min() > 200
    assert len(np.unique(x, axis=0)) == 3000  # no two alike
    train, test = x[:2000].astype(float), x[2000:].astype(float)
    means = np.stack([train[y[:2000] == digit].mean(axis=0) for digit in range(10)])
    guess = np.argmin(((test[:, None] - means) ** 2).sum(axis=2), axis=1)
    assert 0.6 < np.mean(guess == y[2000:]) < 0.99


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("rows", "size"), [(10, 3), (10, 5), (10, 10), (10, 99), (1, 1), (0, 4)])
def test_batches_hold_every_row_once(rows, size, shuffle):
    x, y = np.arange(rows * 2, dtype=np.uint8).reshape(rows, 2), np.arange(rows)
    batches = Batches((x, y), size, shuffle, seed=1)
    got = list(batches.epoch(0))
    assert len(got) == len(batches) == -(-rows // size)
    assert [len(xb) for xb, _ in got] == [size] * (rows // size) + [rows % size] * (rows % size > 0)
    assert all(xb.dtype == np.uint8 for xb, _ in got)
    seen = np.concatenate([yb for _, yb in got]) if got else np.array([], int)
    assert sorted(seen.tolist()) == list(range(rows))
    for xb, yb in got:
        np.testing.assert_array_equal(xb, x[yb])
    if not shuffle:
        assert seen.tolist() == list(range(rows))


def test_batches_order_depends_on_seed_and_epoch_alone():
    x = np.zeros((50, 1))

    def order(size, seed, epoch):
        return np.concatenate(list(Batches((x,), size, seed=seed).numbers(epoch))).tolist()

    assert order(7, 0, 3) == order(50, 0, 3)
    orders = [order(7, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(o) for o in orders}) == 6
    assert list(range(50)) not in orders
    batches = Batches((x,), 7, seed=0)
    list(batches.epoch(0))  # drawing an epoch changes nothing that another would see
    assert batches.order(3).tolist() == order(7, 0, 3)


def test_batches_are_copies():
    x = np.arange(6.0)
    for shuffle in (True, False):
        (first,) = next(Batches((x,), 6, shuffle).epoch(0))
        first += 1
    np.testing.assert_array_equal(x, np.arange(6.0))


def test_batches_gather_on_the_device(lib):
    """array-api-strict's pretend device raises for a hidden host array; uint8 stays uint8 there too."""
    x, y = np.arange(44, dtype=np.uint8).reshape(11, 4), np.arange(11)
    device = lib.to_device(x), lib.to_device(y)
    batches = Batches(device, 4, seed=2)
    for rows, (xb, yb) in zip(batches.numbers(1), batches.epoch(1), strict=True):
        assert type(xb) is type(device[0])
        assert xb.device == device[0].device
        assert xb.dtype == device[0].dtype
        np.testing.assert_array_equal(lib.to_host(xb), x[rows])
        np.testing.assert_array_equal(lib.to_host(yb), y[rows])


def test_batches_of_host_and_device_arrays(lib):
    """Each is gathered where it lives."""
    x, y = np.arange(5.0), lib.to_device(np.arange(5))
    xb, yb = next(Batches((x, y), 3).epoch(0))
    assert isinstance(xb, np.ndarray)
    np.testing.assert_array_equal(xb, lib.to_host(yb))


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "32", None])
def test_batches_refuse_sizes(size):
    with pytest.raises(OptionError, match="batch_size"):
        Batches((np.zeros(3),), size)


def test_batches_refuse_lengths():
    with pytest.raises(ShapeError, match="3 and 4"):
        Batches((np.zeros(3), np.zeros((4, 2))))


@pytest.mark.parametrize("seed", [-1, 1.5, 2**64])
def test_batches_refuse_seeds(seed):
    with pytest.raises(OptionError, match="seed"):
        Batches((np.zeros(3),), 2, seed=seed).order(0)
