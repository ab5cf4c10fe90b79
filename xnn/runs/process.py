"""Runs a module in a process of its own, which answers commands, one JSON object a line.

Two frameworks in one process would share threads and caches, and two BLAS libraries slow each other down. Between
commands the process only waits.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from xnn.backends.threads import THREAD_VARIABLES
from xnn.errors import XnnError

__all__ = ["Line", "Process", "serve"]

# OpenBLAS's threads spin for 0.11 s after a product (measured). They would take a core from the process asked next.
_SETTLE = 0.15
_GRACE = 3.0  # seconds that a command may still take when there is nobody left to answer to
_PATIENCE = 900.0  # seconds to wait for one answer: the slowest compiler and the largest network need less
_LIMITS = (
    "NPROC",
    "VECLIB_MAXIMUM_THREADS",
    *(name for names in THREAD_VARIABLES.values() for name in names),
)


class Process:
    """A process that runs the function `main` of a module and answers commands.

    name: for messages.
    module: the module's full name.
    threads: the limit of threads that its environment sets; None sets no limit.
    environment: further variables; default None.

    `error` says why the process ended; it is "" while the process works.
    `settle` is the time in seconds to wait before each command, until the threads of other processes are quiet.
    """

    settle = _SETTLE

    def __init__(
        self, name: str, module: str, threads: int | None, environment: dict[str, str] | None = None
    ) -> None:
        self.name, self.error = name, ""
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        limits = {} if threads is None else dict.fromkeys(_LIMITS, str(threads))
        # The path of this process says which xnn and which peers are meant, whatever the working folder is.
        program = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main()"
        isolated = ["-I"] if sys.flags.isolated else []
        self._process = subprocess.Popen(
            [sys.executable, *isolated, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env={**os.environ, **limits, **(environment or {})},
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer, which is empty if the process failed. `error` then says why."""
        if self.error:
            return {}
        time.sleep(self.settle)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        alarm = threading.Timer(_PATIENCE, self._process.kill)
        alarm.daemon = True  # so that Ctrl-C before the `try` does not wait for the timer
        alarm.start()
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):  # no line, or half of one
            answer = {"error": self._how_it_ended()}
        except BaseException:  # Ctrl-C: its answer is not needed any more
            self._process.kill()
            raise
        finally:
            alarm.cancel()
        self.error = answer.get("error", "")
        return {} if self.error else answer

    def _how_it_ended(self) -> str:
        self._stop(1.0)
        self._complaints.seek(0)
        last = (self._complaints.read().strip().splitlines() or ["without a message"])[-1]
        return f"the process of {self.name} ended unexpectedly, exit code {self._process.returncode}: {last}"

    def _stop(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End the process and close the pipes to it."""
        for line in (self._process.stdin, self._process.stdout):
            if line is not None:
                try:
                    line.close()
                except OSError:  # the process has ended, and a command was still to be written
                    continue
        self._stop(10.0)
        self._complaints.close()


class Line:
    """The process's end of the pipes. Iterate over the commands until input ends, and `answer` each one.

    Input ends when the other process closes the pipe or dies, however it dies. A command that is still at work then
    has nobody to answer to, and the process ends after a few seconds.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a framework prints goes to standard error
        self._commands: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        """Queue each line of standard input; at its end, wait and end the process."""
        rest = b""
        while got := os.read(0, 1 << 16):  # not sys.stdin: its lock would be held when the interpreter ends
            *lines, rest = (rest + got).split(b"\n")
            for line in lines:
                self._commands.put(line)
        self._commands.put(None)
        time.sleep(_GRACE)
        os._exit(1)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (line := self._commands.get()) is not None:
            yield json.loads(line)

    def answer(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def serve(make: Callable[..., Any]) -> None:
    """Answer commands by calling methods of an object, until input ends.

    make: called with the first command as keyword arguments; returns the object. Each further command names a method
    by `do`; its other entries are the method's arguments, and the method's result is the answer.

    An exception of any kind is answered as an error.
    """
    line = Line()
    served: Any = None
    answer: dict[str, Any] = {}
    for command in line:
        try:
            if served is None:
                served, answer = make(**command), {"ready": True}
            else:
                answer = getattr(served, command.pop("do"))(**command)
        except Exception as error:  # any error of a framework is the reason why there is no figure
            known = isinstance(error, XnnError)
            answer = {"error": str(error) if known else f"{type(error).__name__}: {error}"}
        line.answer(answer)
