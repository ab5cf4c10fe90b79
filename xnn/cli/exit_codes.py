"""The exit codes of all commands: what kind of failure ended one, for scripts and batch systems."""

from __future__ import annotations

import errno

from xnn.errors import (
    BackendUnavailableError,
    DataError,
    DiskError,
    DivergenceError,
    DTypeError,
    LabelError,
    OptionError,
    ShapeError,
    UnknownBackendError,
)

__all__ = ["EXIT_CODES", "exit_code"]

#: The exit codes of failures with their errors. The first row that has the error counts.
_CODES: tuple[tuple[int, tuple[type[BaseException], ...]], ...] = (
    (6, (MemoryError,)),
    (5, (DiskError,)),
    (3, (DivergenceError,)),
    (2, (OptionError, UnknownBackendError)),
    (4, (DataError, LabelError, ShapeError, DTypeError)),
)
#: What the system says of a disk that takes no more.
_DISK = {getattr(errno, name, 0) for name in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG")} - {0}

EXIT_CODES = """\b
Exit codes: 0 success; 1 another failure, such as a backend or package that is
missing, or a difference that verify or check found; 2 a wrong option or
environment variable, a mistake in the file of --model, or a place that cannot
be written, found before the work began; 3 training diverged: a number became
NaN or infinite; 4 data or another file that is missing, damaged or does not
fit; 5 a disk that is full or read-only, or fails while it is written; 6 not
enough memory; 129 ended by SIGHUP, 130 by Ctrl-C, 143 by SIGTERM, after a
report; 141 the reader of the output has ended."""


def exit_code(error: BaseException) -> int:
    """The exit code of a command that an error ended."""
    cause = error.__cause__
    if any(isinstance(one, OSError) and one.errno in _DISK for one in (error, cause)):
        return 5
    if any(isinstance(one, OSError) and one.errno == errno.ENOMEM for one in (error, cause)):
        return 6
    if isinstance(cause, MemoryError) and not isinstance(error, BackendUnavailableError):
        return 6
    return next((code for code, kinds in _CODES if isinstance(error, kinds)), 1)
