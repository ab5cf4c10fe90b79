"""Compiles loops by several processes at once: in one process Numba compiles one function at a time.

Each process takes the next function that nobody has taken, a loop or what runs loops, and leaves its machine code in
Numba's cache, where the others find it. A process that fails leaves more to the others.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np

from xnn.backends.kernels.jit import Loop, telling
from xnn.backends.threads import own_threads

__all__ = ["Start", "compile_loops", "help_to_compile", "start_helper"]

_PROCESSES = 4  #: at most: the longest loop takes a quarter of the time of all
_FEW = 4  #: loops that are compiled in less time than another process needs to begin
_PATIENCE = 60.0  #: seconds for processes that help, once this one finds nothing to do


class Start(NamedTuple):
    """What runs loops of a dtype: `function` lets Numba compile it. It is called with the number 1 of the dtype."""

    function: Callable[[Any], None]
    dtype: np.dtype

    def compiled(self) -> None:
        self.function(self.dtype.type(1))


_Work = Loop | Start


def compile_loops(loops: Iterable[Loop], starts: Iterable[Start] = ()) -> None:
    """Compile what is not in Numba's cache, by as many processes as xnn may use threads.

    Whatever goes wrong here, `Loop.compiled` compiles what is still missing. starts: what runs the loops. It is
    compiled, or loaded, before them if more than a few loops are missing. Default: nothing.
    """
    waiting = [loop for loop in dict.fromkeys(loops) if loop.waits_for_compiler]
    if len(waiting) <= _FEW:
        return
    waiting.sort(key=lambda loop: len(loop.function.__code__.co_code), reverse=True)
    work: list[_Work] = [*dict.fromkeys(starts), *waiting]
    with suppress(OSError), tempfile.TemporaryDirectory(prefix="xnn-", ignore_cleanup_errors=True) as taken:
        helpers = list[subprocess.Popen[bytes]]()
        try:
            for _ in range(min(own_threads(), _PROCESSES) - 1 if _is_python() else 0):
                helpers.append(start_helper(taken, work))
            with telling(lambda: f"{_compiled_in(taken)} of {len(work)}"):
                with _no_search_for_garbage():
                    _compile_next(taken, work)
                end = time.monotonic() + _PATIENCE
                for helper in helpers:
                    with suppress(subprocess.TimeoutExpired):
                        helper.wait(max(0.0, end - time.monotonic()))
        finally:  # those that are still at work after Ctrl-C
            for helper in helpers:
                helper.kill()
            for helper in helpers:
                helper.wait()


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """Numba makes so many objects that Python's search for garbage takes a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _is_python() -> bool:
    """Whether sys.executable is Python. An application that contains Python would start itself a second time."""
    name = Path(sys.executable or "").name.lower()
    return re.fullmatch(r"(python|pypy)w?[0-9.]*t?([.]exe)?", name) is not None and not hasattr(sys, "frozen")


def start_helper(taken: str, work: Sequence[_Work]) -> subprocess.Popen[bytes]:
    """Start a process that compiles loops that no process has taken; `taken` is the folder that says which.

    It gets this process's sys.path, so that it imports the same xnn, and its options and folder for the cache.
    """
    names = [(type(w).__name__, w.function.__module__, w.function.__qualname__, w.dtype.name) for w in work]
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import help_to_compile; help_to_compile()"
    )
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    folder = numba.config.CACHE_DIR
    return subprocess.Popen(
        [sys.executable, *options, "-c", program, taken, json.dumps(names)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "NUMBA_CACHE_DIR": folder} if folder else None,
    )


def help_to_compile() -> None:
    """What the process of `start_helper` does. Its arguments are the folder, and the names of the loops."""
    taken, names = sys.argv[1:]
    kinds: dict[str, type[_Work]] = {"Loop": Loop, "Start": Start}
    work = [kinds[kind](_named(m, name), np.dtype(dtype)) for kind, m, name, dtype in json.loads(names)]
    with _no_search_for_garbage():
        _compile_next(taken, work)


def _named(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _compile_next(taken: str, work: Sequence[_Work]) -> None:
    """Compile what no process has taken. One takes a piece of work by making a file with its number in a folder.

    The file is empty until the piece is compiled.
    """
    started_by = os.getppid()
    for number, piece in enumerate(work):
        if os.getppid() != started_by:
            return  # nobody waits for this process any more
        file = Path(taken) / str(number)
        try:
            os.close(os.open(file, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        piece.compiled()
        file.write_text("1")


def _compiled_in(taken: str) -> int:
    """How many pieces of work are compiled."""
    return sum(file.stat().st_size for file in Path(taken).iterdir())
