"""Downloads a file within limits of time and size, and leaves nothing behind when it is ended."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, cast

from xnn.files import StandardError

__all__ = ["LARGEST", "LONGEST", "download", "unwound_by_signals"]

LONGEST = 600.0  # seconds for one file
LARGEST = 2**28  # bytes of one file: ten times the largest of the data sets
_WINDOW = 20.0  # seconds in which a download must get a little further
_LEAST = 20_000  # bytes: at a kilobyte a second a person gives up


def download(url: str, path: Path, timeout: float) -> None:
    """Download a file, in at most 10 minutes, of at most 256 MiB, and at 1 kB a second or more.

    url: where it is.
    path: where to put it. Its folder must exist; the file is complete or not there.
    timeout: seconds to connect, and to wait for more bytes.

    Raises TimeoutError beyond the limits of time, OSError with errno.EFBIG beyond that of size, other OSErrors for
    what the network or the disk refuses.
    """
    watch = _Watch()
    failures: list[BaseException] = []

    def run() -> None:
        import pooch

        pooch.get_logger().setLevel("ERROR")
        downloader = pooch.HTTPDownloader(timeout=timeout, progressbar=watch)
        try:
            pooch.retrieve(url, known_hash=None, path=path.parent, fname=path.name, downloader=downloader)
        except Exception as error:
            failures.append(error)

    # A thread of its own: a server that sends a byte now and then keeps a socket busy, and the limit must hold
    # nevertheless. It is a daemon, so that the program can end while the thread waits for its last byte.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        watch.wait_for(thread)
    finally:
        watch.ended = True  # the thread ends with its next bytes
        watch.close()
    if failures:
        raise failures.pop()  # not kept here: it would keep the socket open


class _Watch:
    """Counts the bytes of a download, with the methods that pooch calls: update, reset, close.

    On a terminal it shows a progress bar on standard error.
    """

    def __init__(self) -> None:
        self.total = self.received = 0
        self.ended = False
        self._bar = _Bar() if StandardError().isatty() else None

    def wait_for(self, thread: threading.Thread) -> None:
        """Wait until a thread has ended. Raises TimeoutError if it exceeds the limits of time."""
        start = time.monotonic()
        while True:
            before = self.received
            thread.join(min(_WINDOW, max(0.0, start + LONGEST - time.monotonic())))
            if not thread.is_alive():
                return
            if time.monotonic() - start >= LONGEST:
                raise TimeoutError(f"not complete after {LONGEST:g} s")
            if self.received - before < _LEAST:
                raise TimeoutError(f"{self.received - before} bytes in {_WINDOW:g} s")

    def update(self, count: int) -> None:
        """Count bytes. Raises OSError if there are too many, or if nobody waits for them any more."""
        self.received += count
        if self.ended or max(self.received, self.total) > LARGEST:
            raise OSError(errno.EFBIG, f"larger than {LARGEST:,} bytes")
        if self._bar is not None:
            self._bar.update(self.total, count)

    def reset(self) -> None:
        """Count from 0. pooch calls this when the file is complete, and then fills the bar by `update`."""
        self.received = 0
        if self._bar is not None:
            self._bar.reset()

    def close(self) -> None:
        """Remove the bar. pooch calls this after a success only."""
        if self._bar is not None:
            self._bar.close()


class _Bar:
    """A progress bar on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

        columns = BarColumn(), DownloadColumn(), TransferSpeedColumn()
        console = Console(file=cast(IO[str], StandardError()))
        self._progress = Progress(*columns, console=console, transient=True, redirect_stdout=False)
        self._task = self._progress.add_task("", total=None)

    def update(self, total: int, count: int) -> None:
        self._progress.start()
        self._progress.update(self._task, total=total, advance=count)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.stop()


@contextmanager
def unwound_by_signals() -> Iterator[None]:
    """A `with` block in which TERM and HUP end the process as Ctrl-C does: what `finally` and `with` clean up is.

    Elsewhere they end the process at once. Handlers that the program has set stay in force.
    """
    before: dict[int, Any] = {}
    ended: list[int] = []

    def unwind(number: int, frame: FrameType | None) -> None:
        ended.append(number)
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, unwind)
    try:
        yield
    except SystemExit:
        if not ended:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if ended:
        os.kill(os.getpid(), ended[0])
