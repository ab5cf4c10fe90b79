"""JsonLines: a log of a training run, one JSON object a line."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from xnn.callbacks.callback import Callback
from xnn.callbacks.line_file import LineFile
from xnn.errors import OptionError
from xnn.files import notice, to_json
from xnn.history import History
from xnn.optimizers import Optimizer
from xnn.options import shown

__all__ = ["JsonLines"]


class JsonLines(Callback):
    """Writes a log of the run, one JSON object a line: the plan, then each epoch as it ends, then the end.

    path: the file; an older log is replaced when training starts. Any other file is refused, and so is a log that
        another run is writing (where the system has flock).
    about: more items for the first line. Default: none.
    optimizer: its learning rate at the end of each epoch is written too, as "learning_rate". Default None: it is not.

    Raises OptionError if the file cannot be written. If writing fails later, as on a full disk, a message on standard
    error says so once and training goes on.

        >>> from xnn import callbacks
        >>> callbacks.JsonLines("run.jsonl")
        JsonLines('run.jsonl')
    """

    first_rank_only = True
    optimizer: Optimizer | None = None

    def __init__(
        self,
        path: str | os.PathLike[str],
        about: dict[str, Any] | None = None,
        optimizer: Optimizer | None = None,
    ) -> None:
        if not (optimizer is None or isinstance(optimizer, Optimizer)):
            raise OptionError(f"JsonLines takes an optimizer or None, got {shown(optimizer)}")
        self._lines = LineFile(path, "log", '{"event": "start"')
        self.path, self.about, self.optimizer = self._lines.path, about, optimizer
        self._start = time.perf_counter()

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        self._lines.open(history.resumed)
        self._begins = {"event": "start", **(self.about or {}), "epochs": epochs, "plan": history.plan}
        if not history.resumed:  # else `restore` finds out where the log goes on
            self._write(self._begins)

    def disk_use(self, epochs: int, steps_per_epoch: int) -> dict[Path, int]:
        return {self.path: len(to_json(self._begins)) + 400 * epochs}  # a usual line has up to 400 bytes

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        rate = {} if self.optimizer is None else {"learning_rate": float(self.optimizer.rate)}
        more = {**rate, "samples_per_second": history.samples_per_second}
        self._write({"event": "epoch", **entry, **more})

    def on_lower_rate(self, history: History, entry: dict[str, Any]) -> None:
        self._write({"event": "lower-lr", **entry})

    def on_fit_end(self, history: History) -> None:
        end = {"event": "end", "steps": history.steps, "interrupted": history.interrupted}
        end["losses_sha256"] = history.losses_sha256
        reasons = {"stopped": history.stopped, "error": history.error}
        self._write(end | {key: reason for key, reason in reasons.items() if reason})
        self._lines.close()

    def _write(self, entry: dict[str, Any]) -> None:
        entry["seconds"] = round(time.perf_counter() - self._start, 3)
        self._lines.write(to_json(entry))

    def state(self) -> dict[str, Any]:
        """How long the log is and how it ends, so that a resumed training has no line twice."""
        return {**self._lines.mark(), "seconds": time.perf_counter() - self._start}

    def restore(self, state: dict[str, Any]) -> None:
        self._start = time.perf_counter() - float(state["seconds"])
        if not self._lines.is_there:  # no fit goes on, or the log is a pipe
            return
        if not self._lines.go_back(state):
            notice(f"xnn: the log {self.path} is not the one of the checkpoint, and begins anew")
            self._lines.cut(0)
        if not self._lines.size:
            self._write(self._begins)
