"""Downloads: limits of time and size, what is left when a process is told to end, and what went wrong."""

from __future__ import annotations

import errno
import http.server
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from idx_files import GOOD, files_in

from xnn.data import downloads, read_idx
from xnn.data.sources import fetch
from xnn.errors import DataNotFoundError


@pytest.fixture
def dripping():
    """A server that never comes to an end: (its address, how each answer goes on, a list of paths asked for)."""
    release, asked = threading.Event(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            if "endless" not in self.path:
                self.send_header("Content-Length", str(2**33 if "huge" in self.path else 10_000))
            self.end_headers()
            try:
                while not release.wait(0.05 if "drip" in self.path else 0.0):
                    self.wfile.write(b"x" * (1 if "drip" in self.path else 2**16))
                    self.wfile.flush()
            except OSError:
                return

        def log_message(self, *args):
            pass

    before = threading.enumerate()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", release, asked
    release.set()
    server.shutdown()
    thread.join()
    server.server_close()
    for other in threading.enumerate():  # downloads that nobody waits for
        if other.daemon and other not in before:
            other.join(2.0)


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("limit", "value", "path", "said"),
    [
        ("_WINDOW", 0.3, "drip/", "bytes in 0.3 s"),
        ("LONGEST", 0.3, "drip/", "not complete after 0.3 s"),
        ("LARGEST", 2**20, "endless/", "larger than 1,048,576 bytes"),
        ("LARGEST", 2**32, "huge/", "larger than 4,294,967,296 bytes"),
    ],
)
def test_a_download_without_end_is_given_up(cache, dripping, served, monkeypatch, limit, value, path, said):
    """The next mirror is asked, and this one not again."""
    address, _, asked = dripping
    files, _, mirrors = served
    monkeypatch.setattr(downloads, limit, value)
    files["/b/x"] = GOOD
    before = time.monotonic()
    assert fetch("set", "x", (address + path, mirrors[1]), read_idx).read_bytes() == GOOD
    assert time.monotonic() - before < 60
    assert files_in(cache) == ["x"]
    with pytest.raises(DataNotFoundError, match=said):
        fetch("other", "x", (address + path,), read_idx)
    assert asked == [f"/{path}x"] * 2
    assert files_in(cache) == ["x"]
    assert sorted(p.name for p in cache.rglob("*")) == ["other", "set", "x"]


FETCH = """
import sys, pathlib
from xnn.data import read_idx, sources
sources.cache_home = lambda: pathlib.Path(sys.argv[1])
try:
    sources.fetch("set", "x", (sys.argv[2],), read_idx)
finally:
    print("unwound", flush=True)
"""


@pytest.mark.sampled(8)
@pytest.mark.skipif(os.name == "nt", reason="no signals of this kind there")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_process_that_is_told_to_end_leaves_no_part(tmp_path, dripping, name):
    address, _, asked = dripping
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", FETCH, cache, address + "drip/"]
    # In a folder of its own: with -c, Python looks for modules in the current one first.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        for _ in range(600):
            if asked and any(path.is_file() for path in cache.rglob("*")):
                break
            time.sleep(0.05)
        assert any(path.is_file() for path in cache.rglob("*")), "no download began"
        process.send_signal(getattr(signal, name))
        out, _ = process.communicate(timeout=60)
    assert [path.name for path in cache.rglob("*")] == ["set"]
    if name == "SIGINT":
        assert out == b"unwound\n"
    else:
        assert process.returncode == -getattr(signal, name)


def test_handlers_of_the_program_stay(cache, served):
    files, _, mirrors = served
    files["/a/x"] = GOOD
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("mine"))
    try:
        with downloads.unwound_by_signals():
            os.kill(os.getpid(), signal.SIGTERM)
        fetch("set", "x", mirrors, read_idx)
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["mine"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_thread_downloads_too(cache, served):
    """Only the main thread may set handlers of signals."""
    files, _, mirrors = served
    files["/a/x"] = GOOD
    found = []
    thread = threading.Thread(target=lambda: found.append(fetch("set", "x", mirrors, read_idx)))
    thread.start()
    thread.join()
    assert found[0].read_bytes() == GOOD


@pytest.mark.parametrize("function", ["os.replace", "pathlib.Path.mkdir", "tempfile.TemporaryDirectory"])
def test_a_full_disk_is_not_blamed_on_the_mirrors(cache, served, monkeypatch, function):
    files, _, mirrors = served
    files["/a/x"] = files["/b/x"] = GOOD

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(function, full)
    with pytest.raises(DataNotFoundError, match=r"cannot write x into .*set: No space left on device"):
        fetch("set", "x", mirrors, read_idx)
