"""What surrounds a command: the three standard streams, and the signals that end it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from xnn.files import StandardError, notice, printable

__all__ = ["forget_output", "forget_what_is_lost", "progress", "say", "surroundings"]

# The signals that ask a process to end: `kill`, a batch system at its time limit, a terminal that is closed.
_ENDING = ("SIGTERM", "SIGHUP")
#: Launchers of MPI send a signal to a process and to its group. Within so many seconds it counts once.
_TWICE = 0.5


@contextlib.contextmanager
def surroundings() -> Iterator[list[int]]:
    """Open the standard streams that are closed, and let SIGTERM and SIGHUP do what Ctrl-C does.

    So a training that is asked to end saves its model, temporary files are removed, and other processes are closed.
    Yields the list of the signals that came.
    """
    _open_streams()
    came: list[int] = []
    last = -_TWICE

    def as_ctrl_c(number: int, frame: Any) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before < _TWICE:
            return
        came.append(number)
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # Ctrl-C is ignored, as in a shell's background job
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for name in _ENDING:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
                handlers[number] = signal.signal(number, as_ctrl_c)
    try:
        yield came
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _open_streams() -> None:
    """Give closed standard streams a file, and let standard output print any text.

    Otherwise the next file that is opened would take the number of the closed stream, and a message of a C library
    would be written into it. Writing to a closed standard output fails, as it does for other programs; a closed
    standard error loses its messages.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)  # type: ignore[misc]
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace")
    if hasattr(sys.stdout, "reconfigure"):  # a label may have characters that the terminal's encoding has not
        sys.stdout.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Print a line on standard output. Control characters, which a file's name or a label may have, are escaped."""
    click.echo(printable(line))


def progress(everywhere: bool = True) -> Callable[[str], None]:
    """A function that shows a line of progress on standard error: on a terminal in place of the one before.

    everywhere: whether lines are shown where there is no terminal, too; default True.
    """
    stderr = StandardError()

    def replace(line: str) -> None:
        stderr.write(f"\r\x1b[K{line}")
        stderr.flush()

    def add(line: str) -> None:
        if line and everywhere:
            notice(f"  {line}")

    return replace if stderr.isatty() else add


def forget_output() -> None:
    """Discard the text that could not be written to standard output, so that Python does not try again at its end."""
    _forget(sys.stdout, sys.__stdout__)


def forget_what_is_lost() -> None:
    """Discard what the standard streams cannot take. Python would try again at its end, and end with the code 120."""
    for stream, own in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            _forget(stream, own)


def _forget(stream: Any, own: Any) -> None:
    """Discard a stream's text. own: the stream of the process, since others are not ours."""
    if stream is own and stream is not None:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            stream.flush()
