"""A process that has imported xnn and runs `xnn train` in forks of itself, since importing takes longer than a run.

It reads a JSON list of arguments a line, and prints a line with the fork's process id when it begins and one with its
exit code when it has ended: below 0 the signal that killed it. The fork's output is in out.txt and complaints.txt. An
argument memory=N before the others limits the fork's memory (RLIMIT_AS) to N MiB more than it has.
"""

import contextlib
import json
import os
import resource
import signal
import sys

import numpy as np

import xnn.cli.train
from xnn.backends import get_backend
from xnn.cli import main

__all__ = ["serve"]

#: What forks have imported: a signal in the middle of an import can be lost.
PREPARED = xnn.cli.train, get_backend("numpy").kernels("auto")
with contextlib.suppress(ImportError):  # only L-BFGS needs it
    import scipy.optimize  # noqa: F401
np.ones((99, 99)) @ np.ones((99, 99))  # OpenBLAS ends a process in which its first product finds no memory


def limit_memory(more: int) -> None:
    """Limit the memory of this process to so many MiB more than it has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        there = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (there + (more << 20),) * 2)


def serve() -> None:
    """Answer until input ends."""
    for line in sys.stdin:
        folder, *arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            for number, name in ((1, "out.txt"), (2, "complaints.txt")):
                os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            code = 1
            if arguments[0].startswith("memory="):
                limit_memory(int(arguments.pop(0).removeprefix("memory=")))
            try:
                main(arguments, prog_name="xnn")
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0
            finally:
                sys.stdout.flush()
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
