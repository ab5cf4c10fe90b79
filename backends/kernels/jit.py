"""Numba's compiler with xnn's settings: no fast-math, machine code cached on disk, damaged cache files replaced."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

from xnn.files import notice

__all__ = ["jit", "load"]

# Numba's own error model would test for division by zero, and so keep loops from using SIMD instructions.
_OPTIONS = {"error_model": "numpy", "nogil": True}
_cached: list[Any] = []  # the functions whose machine code is cached


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


def _add_stamp(compiled: Any) -> None:
    """Let cached machine code be compiled again when a file of this folder has changed.

    Numba looks at the file of the function only, and a loop contains functions of other files.
    """
    index = compiled._cache._cache_file
    index._source_stamp = index._source_stamp, _stamp()


@cache
def _stamp() -> tuple[tuple[float, int], ...]:
    """When each Python file of this folder was changed, and how many bytes it has."""
    found = (os.stat(path) for path in sorted(Path(__file__).parent.glob("*.py")))
    return tuple((about.st_mtime, about.st_size) for about in found)


def load(call: Callable[[], Any], compiled: Any) -> None:
    """Run `call`, so that its compiled functions are loaded; if that fails, delete their cache files and try again.

    If the cache cannot be written, as on a full disk, the functions are compiled without it.

    compiled: one of the functions. All of them are in one file, and Numba names the cache files after it.
    """
    try:
        call()
    except Exception:
        if not compiled.stats.cache_path:
            raise
        name = Path(compiled.py_func.__code__.co_filename).stem
        for file in Path(compiled.stats.cache_path).glob(f"{name}.*.nb[ic]"):
            file.unlink(missing_ok=True)
        try:
            call()
        except OSError:  # the disk is full, or the folder is gone: machine code can be compiled, and not kept
            for function in _cached:
                function._cache.disable()
            call()
