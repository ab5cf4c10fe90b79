"""JsonLines: a log of a training run, one JSON object a line."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import IO, Any

from xnn.callbacks.callback import Callback
from xnn.errors import DiskError, OptionError
from xnn.files import check_writable, lock_file, notice, to_json
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
            self._file = _opened_log(self.path, history.resumed)
        except BlockingIOError:
            raise OptionError(
                f"cannot write the log {self.path}: another run is writing it; choose another name"
            ) from None
        except OSError as error:
            raise DiskError(f"cannot write the log {self.path}: {error.strerror or error}") from error
        self._begins = {"event": "start", **(self.about or {}), "epochs": epochs, "plan": history.plan}
        if not history.resumed:  # else `restore` finds out where the log goes on
            self._write(self._begins)

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        self._write({"event": "epoch", **entry, "samples_per_second": history.samples_per_second})

    def on_lower_rate(self, history: History, entry: dict[str, Any]) -> None:
        self._write({"event": "lower-lr", **entry})

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

    def state(self) -> dict[str, Any]:
        """How long the log is and how it ends, so that a resumed training has no line twice."""
        size = self.path.stat().st_size if self._file is not None and self.path.is_file() else -1
        return {
            "bytes": size,
            "end": _end_of(self.path, size),
            "seconds": time.perf_counter() - self._start,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._start = time.perf_counter() - float(state["seconds"])
        size = int(state["bytes"])
        if self._file is None or not self.path.is_file():
            return
        if 0 <= size <= self.path.stat().st_size and _end_of(self.path, size) == state["end"]:
            self._file.truncate(size)
        else:
            notice(f"xnn: the log {self.path} is not the one of the checkpoint, and begins anew")
            self._file.truncate(0)
        if not self.path.stat().st_size:
            self._write(self._begins)

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a line that could not be written is tried again
                self._file.close()
            self._file = None


_LOG_BEGINS = '{"event": "start"'
_END = 200  # bytes: a line's seconds are among them, which no two runs have alike


def _end_of(path: Path, size: int) -> bytes:
    """The last bytes of the first `size` ones of a file."""
    if size <= 0:
        return b""
    with open(path, "rb") as file:
        file.seek(max(0, size - _END))
        return file.read(min(size, _END))


def _opened_log(path: Path, goes_on: bool) -> IO[str]:
    """Open a log, and empty it unless it goes on. Raises BlockingIOError if another run has it open."""
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed when the training ends
    try:
        if path.is_file():  # and not a pipe or device
            lock_file(file)
            if not goes_on:
                file.truncate(0)
    except BaseException:
        file.close()
        raise
    return file
