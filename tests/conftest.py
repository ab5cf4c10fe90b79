"""Fixtures of all tests. A test that takes `lib` runs once on each backend that works on this machine.

A test that takes `other` runs with each backend beside NumPy's. No test has a list of backends of its own.

Where CuPy is installed and there is no GPU, CuPy runs on an emulated one: tests/cuda_emulator.
"""

from __future__ import annotations

import gc
import http.server
import os
import signal
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator

if (
    "PYTEST_XDIST_WORKER_COUNT" in os.environ
):  # pytest -n: its processes share the cores, and BLAS reads this once
    _SHARE = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(_SHARE, 1)))

import hypothesis
import numpy as np
import pytest
from cuda_emulator.attach import attach_without_gpu, attached

from xnn.backends import Backend, available_backends, backend, get_backend, use_backend, use_numerics
from xnn.backends.threads import limit_threads, use_threads
from xnn.data import on_disk
from xnn.errors import XnnError

# What users do not have: a text that cannot be printed stays in a buffer, and modules are compiled once, not by each
# of the hundreds of processes that tests start.
for _name in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(_name, None)
sys.dont_write_bytecode = False
os.environ.setdefault("XNN_EMULATOR_DEVICES", "2")  # CuPy counts them when it is imported
_NOT_EMULATED = attach_without_gpu()
# No test of random examples fails because the machine is slow.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")
#: Each backend, and why its tests are skipped here; "" if they run.
_REASONS = available_backends()
if _REASONS["cupy"] and _NOT_EMULATED:
    _REASONS["cupy"] += f"; {_NOT_EMULATED}"


if _REASONS["cupy"]:
    collect_ignore_glob = ["*/test_cuda_*.py"]
#: On the emulated GPU a test runs the first of its variants, and about one in so many others; .ci/full runs all.
_ON_EMULATED_GPU = 4
#: Folders with files that take long.
_LONG = "tests", "kernels", "losses", "exact", "estimators", "faults", "examples", "workers", "cli", "runs"
_WORKING = [name for name, reason in _REASONS.items() if not reason]


@pytest.fixture(params=_WORKING)
def lib(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """A backend, which is the current one during the test."""
    with backend(request.param) as chosen:
        yield chosen


@pytest.fixture(params=[name for name in _WORKING if name != "numpy"])
def other(request: pytest.FixtureRequest) -> Backend:
    """A backend beside NumPy's, which stays the current one."""
    return get_backend(request.param)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, reason in _REASONS.items():
        if reason:
            terminalreporter.write_line(f"No test ran on the backend {name}: {reason}")


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Makes a folder for temporary files within pytest's own, also for the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        place = str(tmp_path_factory.mktemp("temporary"))
        patch.setattr(tempfile, "tempdir", place)
        for name in ("TMPDIR", "TEMP", "TMP"):  # TEMP and TMP on Windows
            patch.setitem(os.environ, name, place)
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_reach_children() -> Iterator[None]:
    """Catches the signals that pytest was started to ignore, as by `nohup`: its children would ignore them, too."""
    names = [name for name in ("SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    ignored = [n for n in (getattr(signal, name) for name in names) if signal.getsignal(n) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Limits BLAS to one thread: the last bits of a matrix product may depend on the number of threads."""
    with limit_threads(1):
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seeds NumPy's global generator: scikit-learn draws from it where random_state is None."""
    np.random.seed(0)  # noqa: NPY002


@pytest.fixture(autouse=True)
def _clean_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Removes XNN_BACKEND, XNN_NUMERICS and XNN_PERSISTENT from the environment, and undoes `use_...`."""
    for name in ("XNN_BACKEND", "XNN_NUMERICS", "XNN_PERSISTENT"):
        monkeypatch.delenv(name, raising=False)
    yield
    use_backend(None)
    use_numerics(None)
    use_threads(None)


def _runs_on_emulated_gpu(item: pytest.Item) -> bool:
    """Whether it is a variant for CuPy, or of a file for CuPy, and the GPU is the emulated one."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    chosen = [parameters.get("lib"), parameters.get("other")]
    return attached() and ("cupy" in chosen or item.path.name.startswith("test_cuda_"))


def pytest_configure(config: pytest.Config) -> None:
    """Leaves the order of files to the function below: pytest-xdist would begin with those of the most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take long first, so that no process of `pytest -n` has one when the others are done.

    Mark as slow what `sampled` leaves out, and skip tests marked `data` if MNIST or Boston is not on disk.

    Of a test marked sampled(n), the first variant and about one of n others stay; a checksum of the name decides. So
    it does for variants on the emulated GPU, which is slow.
    """
    items.sort(key=lambda item: item.path.parent.name not in _LONG)
    begun = set()
    for item in items:
        mark = item.get_closest_marker("sampled")
        on_gpu = _runs_on_emulated_gpu(item)
        each = (1 if mark is None else mark.args[0]) * (_ON_EMULATED_GPU if on_gpu else 1)
        kind = item.nodeid.partition("[")[0], on_gpu
        if kind in begun and zlib.crc32(item.name.encode()) % each:
            item.add_marker("slow")
        begun.add(kind)
    try:
        found = on_disk()
    except XnnError:
        found = {}
    if not {"mnist", "boston"} <= found.keys():
        skip = pytest.mark.skip(reason="MNIST or Boston files not found: set XNN_DATA_HOME")
        for item in items:
            if item.get_closest_marker("data"):  # item.keywords would match the folder tests/data too
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Leave the thousands of tests out of all later garbage collections, each of which would take a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty data cache for this test. XNN_DATA_HOME is unset, and no proxy is used for 127.0.0.1."""
    place = tmp_path / "cache"
    monkeypatch.delenv("XNN_DATA_HOME", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("xnn.data.sources.cache_home", lambda: place)
    return place


@pytest.fixture
def served():
    """A web server on 127.0.0.1: (files, paths that were requested, two mirror URLs).

    `files` maps a path to the bytes to send. For None the connection ends before the whole file is sent.
    """
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
