"""Numba's compiler with xnn's settings: no fast-math, machine code cached on disk, damaged cache files replaced."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import from_dtype, types
from numba.core.ccallback import CFunc
from numba.extending import register_jitable

from xnn.backends import random
from xnn.files import StandardError, notice
from xnn.ops import activations, normalization, special, sums

__all__ = ["Loop", "inner", "jit", "load", "telling"]

# Numba's own error model would test for division by zero, and so keep loops from using SIMD instructions.
_OPTIONS = {"error_model": "numpy", "nogil": True}
_cached: list[Any] = []  # the functions whose machine code is cached
_addresses: dict[Loop, int] = {}  # of the machine code that this process has
_LONG = 1.0  # seconds of compiling that are not worth a word
_OFTEN = 0.2  # seconds from a line of progress to the next
_told = threading.Lock()  # held once a line was printed
_CONSTANTS = activations, normalization, random, special, sums  # modules whose constants loops contain


def jit(function: Any) -> Any:
    """Compile a function at its first call. No operations are reordered or fused; x / 0 is infinity.

    The machine code is cached on disk. Without a folder that can be written and is safe, each process compiles again.
    """
    try:
        compiled = numba.njit(cache=True, **_OPTIONS)(function)
        _add_stamp(compiled)
    except (
        RuntimeError,
        OSError,
        AttributeError,
    ):  # no folder can be written to, or Numba's cache has changed
        return numba.njit(**_OPTIONS)(function)
    if not _is_safe(compiled.stats.cache_path, os.stat(function.__code__.co_filename).st_uid):
        return numba.njit(**_OPTIONS)(function)
    _cached.append(compiled)
    return compiled


def inner(function: Any) -> Any:
    """Make a function a part of the compiled functions that call it.

    It gets neither an entry for Python nor a cache file of its own: making these would take as long as all else.
    Called from Python it is run by Python, unless it works on addresses.
    """
    return register_jitable(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)


@cache
def _is_safe(folder: str, author: int) -> bool:
    """Whether only the user, root and the author of the source file can write a cache folder. If not, say so once.

    The files are pickles: loading one runs what is written in it.
    """
    fault = (
        _fault(folder, author) if hasattr(os, "getuid") else ""
    )  # Windows keeps the folders of users apart
    if fault:
        notice(
            f"xnn: Numba's cache {folder} {fault}, and loading it could run foreign code. Machine code is compiled "
            "without a cache: set NUMBA_CACHE_DIR to a folder of your own"
        )
    return not fault


def _fault(folder: str, author: int) -> str:
    files = (entry.path for entry in os.scandir(folder) if entry.name.endswith((".nbi", ".nbc")))
    for path in (folder, *files):
        try:
            about = os.stat(path)
        except FileNotFoundError:  # another process has replaced this file
            continue
        if about.st_uid not in (os.getuid(), author, 0):
            return "belongs to another user" if path == folder else "has files of another user"
        if about.st_mode & stat.S_IWOTH:
            return "can be written by every user"
    return ""


class Loop(NamedTuple):
    """A loop for one dtype. `image_loops.py` says what a loop is.

    Only loops whose address is asked for are compiled, each with a cache file of its own.
    """

    function: Any
    dtype: np.dtype

    def compiled(self) -> int:
        """Return the address of its machine code, which is loaded, or compiled."""
        if self not in _addresses:
            compiled, beside = _code_of(self)
            load(compiled.compile, beside)
            _addresses[self] = int(compiled.address or 0)
        return _addresses[self]

    @property
    def waits_for_compiler(self) -> bool:
        """Whether its machine code is to be compiled, and can be kept for other processes."""
        if self in _addresses:
            return False
        compiled, beside = _code_of(self)
        if beside.stats.cache_path is None or not compiled._cache._enabled:
            return False
        try:
            key = compiled._cache._index_key(compiled._sig, compiled._targetdescr.target_context.codegen())
            return key not in compiled._cache._cache_file._load_index()
        except Exception:  # a damaged file, or a Numba with another cache: see `load`
            return False


@cache
def _code_of(loop: Loop) -> tuple[Any, Any]:
    """What compiles a loop, and the function as `jit` makes it, which is never compiled: it says whether and where
    machine code may be kept.
    """
    given = *[types.int64] * 6, from_dtype(loop.dtype)
    compiled = CFunc(loop.function, (given, types.void), {}, {"error_model": "numpy"})
    beside = jit(loop.function)
    if beside.stats.cache_path is not None:
        compiled.enable_caching()
        _add_stamp(compiled)
        _cached.append(compiled)
    return compiled, beside


def _add_stamp(compiled: Any) -> None:
    """Let cached machine code be compiled again when a file of this folder has changed.

    Numba looks at the file of the function only, and a loop contains functions of other files. Each signature of the
    function gets a file of a name of its own. Numba would number them, and two processes that save at once may choose
    one number: the code for float64 would then be that for float32.
    """
    index = compiled._cache._cache_file
    index._source_stamp = index._source_stamp, _stamp()
    pattern, save = index._data_name_pattern, index.save

    def save_by_signature(key: Any, data: Any) -> None:
        name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        index._data_name_pattern = pattern.replace("{number", name + ".{number")
        save(key, data)

    index.save = save_by_signature


@cache
def _stamp() -> tuple[tuple[float, int], ...]:
    """The time of the last change and the size in bytes of each Python file that machine code depends on.

    They are the files of this folder, and those whose constants loops contain.
    """
    files = [*sorted(Path(__file__).parent.glob("*.py")), *(Path(str(file.__file__)) for file in _CONSTANTS)]
    return tuple((about.st_mtime, about.st_size) for about in map(os.stat, files))


def load(call: Callable[[], Any], compiled: Any) -> None:
    """Run `call`, so that its compiled functions are loaded; if that fails, delete their cache files and try again.

    If the cache cannot be written, as on a full disk, the functions are compiled without it. `telling` says that
    kernels are compiled.

    compiled: one of the functions. All of them are in files of one folder, and Numba names the cache files after
    these.
    """
    with telling():
        _load(call, compiled)


@contextmanager
def telling(progress: Callable[[], str] | None = None) -> Iterator[None]:
    """On a terminal say that kernels are compiled, if it takes longer than a second.

    Of the ranks of a command only the first has a terminal.

    progress: returns how much is done, such as "12 of 31". It is shown until the block ends. Default: nothing is.
    """
    over, stream = threading.Event(), StandardError()
    if not stream.isatty():
        yield
        return
    if hasattr(stream, "rich_proxied_file"):  # rich shows a bar, and takes whole lines only
        progress = None
    watch = threading.Thread(target=_tell_of_compiling, args=(stream, progress, over), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _tell_of_compiling(
    stream: StandardError, progress: Callable[[], str] | None, over: threading.Event
) -> None:
    """Print a line, once a process, and below it the progress, until `over` is set."""
    if over.wait(_LONG):
        return
    if _told.acquire(blocking=False):
        notice("xnn: kernels are compiled for this processor; Numba keeps them for the next run")
    line = ""
    while progress is not None and not over.wait(_OFTEN):
        line = f"xnn: compiling kernels: {progress()}"
        stream.write(f"\r{line}")
        stream.flush()
    stream.write(f"\r{' ' * len(line)}\r" if line else "")
    stream.flush()


def _load(call: Callable[[], Any], compiled: Any) -> None:
    try:
        call()
    except Exception:
        if not compiled.stats.cache_path:
            raise
        for source in Path(compiled.py_func.__code__.co_filename).parent.glob("*.py"):
            for file in Path(compiled.stats.cache_path).glob(f"{source.stem}.*.nb[ic]"):
                with suppress(OSError):  # on Windows, of a file that another process reads
                    file.unlink(missing_ok=True)
        try:
            call()
        except OSError:  # the disk is full, or the folder is gone: machine code can be compiled, and not kept
            for function in _cached:
                function._cache.disable()
            call()
