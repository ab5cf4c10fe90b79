"""Runs a command as one of the processes that a launcher of MPI (mpirun, mpiexec, srun) has started.

`xnn train` then trains together with the others. `xnn predict` and `xnn check` share their work, `xnn verify`
compares runs that all train, and `xnn info` tells about the processes. Any other command runs on rank 0 alone. Rank 0
prints and writes, the others are silent, and all return one exit code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from xnn.backends.ranks.group import use_ranks
from xnn.backends.ranks.launch import launched
from xnn.backends.ranks.mpi import MPIRanks, world
from xnn.cli.exit_codes import exit_code
from xnn.errors import DivergenceError, RankError, XnnError
from xnn.files import notice

__all__ = ["Failures", "as_one_of_many"]

_TOGETHER = ("train", "predict", "check", "verify", "info")
#: Errors that all ranks raise, if one does.
_COMMON = (DivergenceError, RankError)


class Failures:
    """The errors of a command, in words: printed at once, or kept to be told to other processes.

    kept: whether they are kept. lines: those that were. certain: whether all other processes fail as well.
    """

    def __init__(self, kept: bool = False) -> None:
        self.kept, self.lines, self.certain = kept, list[str](), False

    def add(self, line: str, error: BaseException | None = None) -> None:
        """Tell one more line. error: what it is about."""
        self.certain = self.certain or isinstance(error, _COMMON)
        if self.kept:
            self.lines.append(line)
        else:
            notice(f"xnn: {line}")


def as_one_of_many(arguments: Sequence[str], run: Callable[[Failures], int]) -> int:
    """Run a command alone, or together with other processes if a launcher has started several; its exit code.

    arguments: those of the command line. run: runs the command, tells its failures, and returns its exit code.
    """
    launch, command = launched(), next((a for a in arguments if not a.startswith("-")), "")
    if launch is None:
        return run(Failures())
    if command not in _TOGETHER:
        return run(Failures()) if launch.rank == 0 else 0
    if _workers(arguments) == "none":
        return run(Failures())
    try:
        ranks = world()
    except XnnError as error:
        if launch.rank == 0:
            notice(f"xnn: {error}")
        return exit_code(error)
    return _together(ranks, run)


def _workers(arguments: Sequence[str]) -> str:
    """The value of --workers, before the command line is read."""
    for place, argument in enumerate(arguments):
        if argument == "--workers":
            return "".join(arguments[place + 1 : place + 2])
        if argument.startswith("--workers="):
            return argument.partition("=")[2]
    return "auto"


def _together(ranks: MPIRanks, run: Callable[[Failures], int]) -> int:
    failures = Failures(kept=True)
    if ranks.rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    with use_ranks(ranks):
        code = run(failures)
    said = "\n".join(failures.lines)
    ends = ranks.meet_at_the_end(code, said, waits=not said or failures.certain)
    if ends is None:
        ranks.end(code, said.replace("\n", "; "))
        return code
    if ranks.rank == 0:
        for line in dict.fromkeys(text for _, text in ends if text):
            alone = [number for number, (_, text) in enumerate(ends) if text == line]
            named = "" if len(alone) == len(ends) else f"rank {alone[0]} of {ranks.size}: "
            for part in line.split("\n"):
                notice(f"xnn: {named}{part}")
    codes = [number for number, _ in ends if number]
    # The rank to which a signal such as SIGTERM came has its code. The others ended as by Ctrl-C, which has 130.
    return next((number for number in codes if number != 130), next(iter(codes), 0))
