"""Where files come from: a folder you name, XNN_DATA_HOME, the user's cache, the network."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from xnn.errors import CorruptFileError, DataError, DataNotFoundError, OptionError

__all__ = ["cache_home", "data_homes", "fetch", "find"]

_TIMEOUT = 4.0  # seconds to connect, and between bytes: no network is an answer, not a hang
_ROUNDS = 2


def cache_home() -> Path:
    """The user's cache folder for xnn, such as ~/.cache/xnn."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("xnn", appauthor=False))


def data_homes(data_home: str | os.PathLike[str] | None = None) -> list[Path]:
    """The folders to look in, in order. Raises OptionError if one that was named is not there."""
    homes = []
    for name, value in (("data_home", data_home), ("XNN_DATA_HOME", os.environ.get("XNN_DATA_HOME"))):
        if value:
            home = Path(value).expanduser()
            if not home.is_dir():
                raise OptionError(f"{name}={value}: there is no such folder; name one or leave it unset")
            homes.append(home)
    return [*homes, cache_home()]


def find(folder: str, names: tuple[str, ...], data_home: str | os.PathLike[str] | None = None) -> Path | None:
    """The first of these files in `folder` of any data home, or in a home that is that folder itself."""
    for home in data_homes(data_home):
        for place in (home / folder, home) if home.name == folder else (home / folder,):
            for name in names:
                if (place / name).is_file():
                    return place / name
    return None


def fetch(
    folder: str, name: str, mirrors: tuple[str, ...], check: Callable[[Path], object], md5: str | None = None
) -> Path:
    """Download a file into the cache, from the first mirror that has the right one.

    A file that `check` or the MD5 refuses is thrown away and the next mirror tried; the cache only ever
    holds whole, checked files. Raises DataNotFoundError with every mirror's answer.
    """
    import pooch

    target = cache_home() / folder / name
    answers = []
    for _ in range(_ROUNDS):
        for mirror in mirrors:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                    downloader = pooch.HTTPDownloader(timeout=_TIMEOUT)
                    pooch.get_logger().setLevel("ERROR")
                    print(f"fetching {mirror}{name}", file=sys.stderr)
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
            except (
                OSError
            ) as error:  # requests' errors are OSErrors; so are a full disk and a read-only cache
                if isinstance(error, DataError):
                    raise
                answers.append(f"{mirror}: {type(error).__name__}")
    raise DataNotFoundError(
        f"cannot fetch {name} ({'; '.join(dict.fromkeys(answers))}); with no network, put the file in "
        f"a folder {folder}/ and point XNN_DATA_HOME at the folder above it"
    )
