"""Finds files of data sets in a folder, XNN_DATA_HOME or the user's cache, and downloads them."""

from __future__ import annotations

import hashlib
import os
import queue
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast
from urllib.parse import urlsplit

from xnn.errors import CorruptFileError, DataNotFoundError, OptionError
from xnn.files import StandardError, notice

__all__ = ["cache_home", "data_homes", "fetch", "find", "reachable"]

_TIMEOUT = 4.0  # seconds to connect, and to wait for more bytes
_ROUNDS = 2


def cache_home() -> Path:
    """The folder for xnn in the user's cache, such as ~/.cache/xnn."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("xnn", appauthor=False))


def data_homes(data_home: str | os.PathLike[str] | None = None) -> list[Path]:
    """The folders to look in: data_home, XNN_DATA_HOME and the cache. Raises OptionError if one named is missing."""
    homes = []
    for name, value in (("data_home", data_home), ("XNN_DATA_HOME", os.environ.get("XNN_DATA_HOME"))):
        if value:
            home = Path(value).expanduser()
            if not home.is_dir():
                raise OptionError(f"{name}={value}: there is no such folder; name another one or none")
            homes.append(home)
    return [*homes, cache_home()]


def find(folder: str, names: tuple[str, ...], data_home: str | os.PathLike[str] | None = None) -> Path | None:
    """The path of a file of a data set, None if it is in none of the folders.

    folder: the name of the data set's folder inside a data home; a data home may also be this folder itself.
    names: the names that the file may have, the best first.
    data_home: the folder to look in first; see data_homes.
    """
    for home in data_homes(data_home):
        for place in (home / folder, home) if home.name == folder else (home / folder,):
            for name in names:
                if (place / name).is_file():
                    return place / name
    return None


def fetch(
    folder: str, name: str, mirrors: tuple[str, ...], check: Callable[[Path], object], md5: str | None = None
) -> Path:
    """Download a file into the cache, and return its path there.

    folder, name: where it is put in the cache.
    mirrors: addresses to which the name is appended; they are tried in order, twice.
    check: check(path) raises CorruptFileError for a wrong file, which is then deleted.
    md5: the checksum that the file must have. Default: any.

    The cache never holds a file that is incomplete or was not checked.
    Raises DataNotFoundError with the answers of all mirrors.
    """
    import pooch

    target = cache_home() / folder / name
    answers = []
    for attempt in range(_ROUNDS):
        for mirror in mirrors:
            bar = _Bar() if StandardError().isatty() else None
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                    downloader = pooch.HTTPDownloader(timeout=_TIMEOUT, progressbar=bar or False)
                    pooch.get_logger().setLevel("ERROR")
                    notice(f"{'trying again' if attempt else 'fetching'}: {mirror}{name}")
                    got = Path(
                        pooch.retrieve(
                            mirror + name, known_hash=None, path=scratch, fname=name, downloader=downloader
                        )
                    )
                    if md5 is not None and hashlib.md5(got.read_bytes()).hexdigest() != md5:
                        raise CorruptFileError(f"{mirror}{name}: another checksum than the published file")
                    check(got)
                    os.replace(got, target)
                return target
            except CorruptFileError as error:
                answers.append(str(error))
            except OSError as error:  # what requests raises; also a full disk and a read-only cache
                answers.append(f"{mirror}: {type(error).__name__}")
            finally:
                if bar is not None:  # pooch closes it after a success only
                    bar.close()
    raise DataNotFoundError(
        f"cannot fetch {name} ({'; '.join(dict.fromkeys(answers))}): without a network, put the file in a folder "
        f"{folder}/ and set XNN_DATA_HOME to the folder above it"
    )


class _Bar:
    """A progress bar on standard error with the methods that pooch calls: update, reset, close."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

        columns = BarColumn(), DownloadColumn(), TransferSpeedColumn()
        self._progress = Progress(
            *columns,
            console=Console(file=cast(IO[str], StandardError())),
            transient=True,
            redirect_stdout=False,
        )
        self._task = self._progress.add_task("", total=None)
        self.total = 0

    def update(self, count: int) -> None:
        """Advance the bar by this many bytes."""
        self._progress.start()
        self._progress.update(self._task, total=self.total, advance=count)

    def reset(self) -> None:
        """Set the bar back to 0. pooch calls this when the file is complete, and then fills the bar by `update`."""
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.stop()


def reachable(mirrors: tuple[str, ...]) -> bool:
    """Whether one of the mirrors accepts a connection within a few seconds.

    Behind a proxy the answer is always yes: only a download could tell.
    """
    from urllib.request import getproxies

    if {"http", "https", "all"} & getproxies().keys():
        return True
    answers: queue.Queue[bool] = queue.Queue()

    def knock(mirror: str) -> None:
        parts = urlsplit(mirror)
        try:
            socket.create_connection((parts.hostname, parts.port or 443), timeout=_TIMEOUT).close()
            answers.put(True)
        except OSError:
            answers.put(False)

    for mirror in mirrors:  # daemons, so that a look-up that hangs does not keep the program alive
        threading.Thread(target=knock, args=(mirror,), daemon=True).start()
    deadline = time.monotonic() + _TIMEOUT
    for _ in mirrors:
        try:
            if answers.get(timeout=max(0.0, deadline - time.monotonic())):
                return True
        except queue.Empty:
            return False
    return False
