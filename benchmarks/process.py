"""A contestant's process and the line to it: a JSON object a line, answered by one.

Two frameworks in one process would share threads and caches, and two BLAS libraries slow each other down. The
process waits without working in between.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from xnn.backends.plan import THREAD_VARIABLES
from xnn.errors import XnnError

__all__ = ["Process", "serve"]

# OpenBLAS's threads spin on for 0.11 s after a product (measured), and would take a core from whoever is next.
_SETTLE = 0.15


class Process:
    """`python -m module` with a limit of threads in its environment. `error`: why it takes no further part."""

    def __init__(
        self, name: str, module: str, threads: int, environment: dict[str, str] | None = None
    ) -> None:
        self.name, self.error = name, ""
        limits = dict.fromkeys((*THREAD_VARIABLES, "NPROC"), str(threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **limits, **(environment or {})},
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        """A command's answer; nothing after an error, which is remembered. Waits until other processes are quiet."""
        if self.error:
            return {}
        time.sleep(_SETTLE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        answer = json.loads(line) if line else {"error": f"the process of {self.name} ended unexpectedly"}
        self.error = answer.get("error", "")
        return {} if self.error else answer

    def close(self) -> None:
        """End the process, and the lines to it."""
        try:
            self._process.communicate(timeout=10)
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.wait()


def serve(make: Callable[..., Any]) -> None:
    """The other end: make(**first line) is a contestant, whose methods answer the rest, until input ends.

    A command names a method by `do`; what else it holds are arguments.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a framework prints is not an answer
    contestant: Any = None
    answer: dict[str, Any] = {}
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if contestant is None:
                contestant, answer = make(**command), {"ready": True}
            else:
                answer = getattr(contestant, command.pop("do"))(**command)
        except Exception as error:  # whatever a framework raises is the reason why there is no figure
            known = isinstance(error, XnnError)
            answer = {"error": str(error) if known else f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
