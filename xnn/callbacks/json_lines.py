"""JsonLines: a log of a training run, one JSON object a line."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows has no locks of this kind
    fcntl = None  # type: ignore[assignment]

from xnn.callbacks.callback import Callback
from xnn.errors import DataError, OptionError
from xnn.files import check_writable, notice, to_json
from xnn.history import History

__all__ = ["JsonLines"]


class JsonLines(Callback):
    """Writes a log of the run, one JSON object a line: the plan, then each epoch as it ends, then the end.

    path: the file; an older log is replaced when training starts. Any other file is refused, and so is a log that
        another run is writing (where the system has flock).
    about: more items for the first line. Default: none.

    Raises OptionError if the file cannot be written. If writing fails later, as on a full disk, a message on standard
    error says so once and training goes on.

        >>> from xnn import callbacks
        >>> callbacks.JsonLines("run.jsonl")
        JsonLines('run.jsonl')
    """

    def __init__(self, path: str | os.PathLike[str], about: dict[str, Any] | None = None) -> None:
        self.path = check_writable(path, replaced=False, begins=_LOG_BEGINS)
        self.about = about
        self._file: IO[str] | None = None
        self._start = time.perf_counter()

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        check_writable(self.path, replaced=False, begins=_LOG_BEGINS)  # it may have changed since __init__
        try:
            self._file = _opened_log(self.path)
        except BlockingIOError:
            raise OptionError(
                f"cannot write the log {self.path}: another run is writing it; choose another name"
            ) from None
        except OSError as error:
            raise DataError(f"cannot write the log {self.path}: {error.strerror or error}") from error
        self._write({"event": "start", **(self.about or {}), "epochs": epochs, "plan": history.plan})

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        self._write({"event": "epoch", **entry, "samples_per_second": history.samples_per_second})

    def on_fit_end(self, history: History) -> None:
        end = {"event": "end", "steps": history.steps, "interrupted": history.interrupted}
        reasons = {"stopped": history.stopped, "error": history.error}
        self._write(end | {key: reason for key, reason in reasons.items() if reason})
        self._close()

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is None:
            return
        entry["seconds"] = round(time.perf_counter() - self._start, 3)
        try:
            self._file.write(to_json(entry) + "\n")
            self._file.flush()
        except OSError as error:
            notice(f"xnn: the log {self.path} ends here ({error.strerror}); training goes on")
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a line that could not be written is tried again
                self._file.close()
            self._file = None


_LOG_BEGINS = '{"event": "start"'


def _opened_log(path: Path) -> IO[str]:
    """Open a log and empty it. Raises BlockingIOError if another run has it open."""
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed when the training ends
    try:
        if path.is_file():  # and not a pipe or device
            _lock(file)
            file.truncate(0)
    except BaseException:
        file.close()
        raise
    return file


def _lock(file: IO[str]) -> None:
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # this file system has no locks
            return
