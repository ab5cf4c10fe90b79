"""Files: everything in an idx file is checked, and the cache holds checked files only."""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
import stat
import struct
import threading
import tracemalloc

import numpy as np
import pytest
from idx_files import CODES, GOOD, PIXELS, files_in, idx

from xnn.data import load, on_disk, read_idx
from xnn.data.sources import data_homes, fetch, find, reachable
from xnn.errors import CorruptFileError, DataNotFoundError, OptionError
from xnn.files import write_atomically

# ---------------------------------------------------------------- idx


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
    """data_home, XNN_DATA_HOME, the cache; a home may be the folder of the data set itself; names in order."""
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
    (cache / "a").write_text("")  # in no folder of the name of the data set
    assert find("set", ("a.gz", "a"), named) is None


def test_find_passes_over_folders(cache, tmp_path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    assert find("set", ("a",), tmp_path) is None


def test_fetch_from_the_first_mirror(cache, served):
    files, asked, mirrors = served
    files["/a/x"] = files["/b/x"] = GOOD
    path = fetch("set", "x", mirrors, read_idx)
    assert path == cache / "set" / "x"
    assert path.read_bytes() == GOOD
    assert files_in(cache) == ["x"]
    assert asked == ["/a/x"]


def test_fetch_shows_a_bar_on_a_terminal(cache, served, monkeypatch, capsys):
    files, _, mirrors = served
    files["/a/x"] = GOOD
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fetch("set", "x", mirrors, read_idx)
    assert files_in(cache) == ["x"]
    assert f"fetching: {mirrors[0]}x" in capsys.readouterr().err
    files["/a/x"] = files["/b/x"] = None  # broken off half way: the terminal must be as it was
    with pytest.raises(DataNotFoundError):
        fetch("other", "x", mirrors, read_idx)
    print("to standard output")
    shown = capsys.readouterr()
    assert shown.out == "to standard output\n"
    assert shown.err.count("\x1b[?25l") == shown.err.count("\x1b[?25h")


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


def test_reachable(served, monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", dict)
    assert not reachable(("http://127.0.0.1:9/",))
    assert not reachable(())
    assert reachable(("http://127.0.0.1:9/", served[2][0]))
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"no": "localhost"})
    assert not reachable(("http://127.0.0.1:9/",))
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://127.0.0.1:9"})
    assert reachable(("http://127.0.0.1:9/",))  # only the download can tell


def test_a_name_server_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("xnn.data.sources._TIMEOUT", 0.1)
    release = threading.Event()

    def hang(*arguments, **options):
        release.wait(30)
        raise OSError

    monkeypatch.setattr("xnn.data.sources.socket.create_connection", hang)
    assert not reachable(("http://one/", "http://two/"))
    release.set()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes by name here")
def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    """A device or a pipe would be replaced by a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/null"):
        with pytest.raises(OptionError, match="not a regular file"):
            write_atomically(path, b"x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    write_atomically(link, b"x")
    assert link.is_symlink()
    assert (tmp_path / "real").read_bytes() == b"x"
