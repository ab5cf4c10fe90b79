"""Finds files of data sets in a folder, XNN_DATA_HOME or the user's cache, and fetches them from mirrors."""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from xnn.data.downloads import download, unwound_by_signals
from xnn.errors import CorruptFileError, DataNotFoundError, OptionError
from xnn.files import as_path, notice, reading

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
            try:
                home = as_path(
                    os.path.expanduser(value)
                )  # Path.expanduser raises for a user that is not there
                there = home.is_dir()
            except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
                raise OptionError(f"{name}={value}: {getattr(error, 'strerror', None) or error}") from error
            if not there:
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
                with reading(place / name):
                    there = (place / name).is_file()
                if there:
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

    The cache never holds a file that is incomplete or was not checked, also when the process is ended by Ctrl-C, TERM
    or HUP. `download` has the limits of time and size.
    Raises DataNotFoundError with the answers of all mirrors, or if the cache cannot be written.
    """
    target = cache_home() / folder / name
    if not target.is_absolute():  # "~" could not be expanded
        raise DataNotFoundError(
            f"cannot fetch {name}: this user has no home folder to keep it in; set HOME or XDG_CACHE_HOME"
        )
    answers: dict[str, str] = {}
    slow: set[str] = set()  # mirrors that are not asked again
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(_ROUNDS):
            for mirror in mirrors:
                if mirror in slow:
                    continue
                notice(f"{'trying again' if attempt else 'fetching'}: {mirror}{name}")
                scratch = tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True)
                with unwound_by_signals(), scratch as place:
                    got = Path(place, name)
                    answer = _attempt(mirror + name, got, check, md5)
                    if not answer:
                        os.replace(got, target)
                        return target
                answers[answer] = ""
                if "too slow" in answer:
                    slow.add(mirror)
    except OSError as error:
        raise DataNotFoundError(
            f"cannot write {name} into {target.parent}: {error.strerror or error}; XDG_CACHE_HOME names another "
            f"place for the cache, and XNN_DATA_HOME a folder above {folder}/ that has the file"
        ) from error
    raise DataNotFoundError(
        f"cannot fetch {name} ({'; '.join(answers)}): without a network, put the file in a folder "
        f"{folder}/ and set XNN_DATA_HOME to the folder above it"
    )


def _attempt(url: str, path: Path, check: Callable[[Path], object], md5: str | None) -> str:
    """Download and check a file; "" if it is right, else what was wrong. Raises OSError if the disk refuses it."""
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    try:
        download(url, path, _TIMEOUT)
        if md5 is not None and hashlib.md5(path.read_bytes()).hexdigest() != md5:
            return f"{url}: another checksum than the published file"
        check(path)
    except CorruptFileError as error:
        return str(error)
    except (RequestException, HTTPError) as error:
        return f"{url}: {type(error).__name__}"
    except OSError as error:
        if not isinstance(error, TimeoutError) and error.errno != errno.EFBIG:
            raise
        return f"{url}: too slow or too large ({error.strerror or error})"
    except ValueError as error:  # pooch's, for an address that is none
        return f"{url}: {error}"
    return ""


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
