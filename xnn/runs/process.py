"""A contestant's process and the line to it: a JSON object a line, answered by one.

Two frameworks in one process would share threads and caches, and two BLAS libraries slow each other down. The
process waits without working in between.
"""

from __future__ import annotations

import json
import os
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

# OpenBLAS's threads spin on for 0.11 s after a product (measured), and would take a core from whoever is next.
_SETTLE = 0.15
_PATIENCE = 900.0  # seconds for one answer: the slowest compiler and the largest network need less
_LIMITS = (
    "NPROC",
    "VECLIB_MAXIMUM_THREADS",
    *(name for names in THREAD_VARIABLES.values() for name in names),
)


class Process:
    """A module's main in a process of its own, with a limit of threads in its environment, if one is given.

    `error`: why it takes no further part. `settle`: how long to wait for other processes' threads before it is asked.
    """

    settle = _SETTLE

    def __init__(
        self, name: str, module: str, threads: int | None, environment: dict[str, str] | None = None
    ) -> None:
        self.name, self.error = name, ""
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        limits = {} if threads is None else dict.fromkeys(_LIMITS, str(threads))
        # This process's path, and not the folder it happens to run in, says which xnn and which peers are meant.
        program = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env={**os.environ, **limits, **(environment or {})},
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        """A command's answer; nothing after an error, which is remembered. Waits until other processes are quiet."""
        if self.error:
            return {}
        time.sleep(self.settle)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        alarm = threading.Timer(_PATIENCE, self._process.kill)
        alarm.daemon = True  # Ctrl-C between its start and what follows must not wait for it
        alarm.start()
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):  # no line, or half of one
            answer = {"error": self._how_it_ended()}
        except BaseException:  # Ctrl-C: what it is in the middle of is of no use any more
            self._process.kill()
            raise
        finally:
            alarm.cancel()
        self.error = answer.get("error", "")
        return {} if self.error else answer

    def _how_it_ended(self) -> str:
        self._stop(1.0)
        self._complaints.seek(0)
        last = (self._complaints.read().strip().splitlines() or ["without a word"])[-1]
        return f"the process of {self.name} ended unexpectedly, exit code {self._process.returncode}: {last}"

    def _stop(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End the process, and the lines to it."""
        for line in (self._process.stdin, self._process.stdout):
            if line is not None:
                try:
                    line.close()
                except OSError:  # what was still to be written has no reader any more
                    continue
        self._stop(10.0)
        self._complaints.close()


class Line:
    """The other end: the commands that come in, until input ends, and the answer to each."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what a framework prints is not an answer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(json.loads, sys.stdin)

    def answer(self, answer: dict[str, Any]) -> None:
        """The answer to the last command."""
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def serve(make: Callable[..., Any]) -> None:
    """Answer a line: make(**first line) is a contestant, whose methods answer the rest, until input ends.

    A command names a method by `do`; what else it holds are arguments.
    """
    line = Line()
    contestant: Any = None
    answer: dict[str, Any] = {}
    for command in line:
        try:
            if contestant is None:
                contestant, answer = make(**command), {"ready": True}
            else:
                answer = getattr(contestant, command.pop("do"))(**command)
        except Exception as error:  # whatever a framework raises is the reason why there is no figure
            known = isinstance(error, XnnError)
            answer = {"error": str(error) if known else f"{type(error).__name__}: {error}"}
        line.answer(answer)
