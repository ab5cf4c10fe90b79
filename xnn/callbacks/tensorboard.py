"""TensorBoard: the numbers of each epoch as event files, which TensorBoard draws as curves.

The records are written by `tensorboard.summary.writer.record_writer`, the part of the package tensorboard that
writes. It needs neither TensorFlow nor a thread, so that a full disk is seen where it happens.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Callable, Iterable
from numbers import Real
from typing import IO, Any

from xnn.callbacks.callback import Callback
from xnn.errors import DiskError, MissingExtraError, OptionError
from xnn.files import as_path, check_folder, lock_file, notice
from xnn.history import History
from xnn.optimizers import Optimizer
from xnn.options import shown

__all__ = ["TensorBoard"]

#: TensorBoard reads the files whose names contain "tfevents", in the order of their names.
_BEGINS, _ENDS = "events.out.tfevents.", ".xnn"


class TensorBoard(Callback):
    """Writes the numbers of each epoch into a folder, for TensorBoard: `tensorboard --logdir FOLDER` draws them.

    folder: is made when training starts, if it is missing. It is for one run at a time. TensorBoard shows each folder
        inside its --logdir as a run: "logs/first", "logs/second".
    optimizer: its learning rate at the end of each epoch is written too, as "learning_rate". Default None: it is not.

    The names are those of `history.epochs`, such as "loss" and "val_accuracy", and the step is the number of the
    epoch. Event files hold float32. Matrices, and lists of a number for each class, are left out.

    The event files of an older run in the folder are replaced when training starts. A training that is resumed from a
    checkpoint, or goes back to one, writes its epochs before the checkpoint again, so that none is there twice.

    Raises MissingExtraError without the package tensorboard; OptionError for a folder that cannot be written, or that
    has event files of another program or of a run that has not ended. If writing fails later, as on a full disk, a
    message on standard error says so once and training goes on.

        >>> from xnn import callbacks, errors, optimizers
        >>> optimizer = optimizers.Adam(0.01)
        >>> try:
        ...     watchers = [callbacks.TensorBoard("logs/first", optimizer)]
        ... except errors.MissingExtraError:
        ...     watchers = []

    Source: the format of event files, https://github.com/tensorflow/tensorboard.
    """

    first_rank_only = True
    optimizer: Optimizer | None = None

    def __init__(self, folder: str | os.PathLike[str], optimizer: Optimizer | None = None) -> None:
        if not (optimizer is None or isinstance(optimizer, Optimizer)):
            raise OptionError(f"TensorBoard takes an optimizer or None, got {shown(optimizer)}")
        _proto("event")
        self.folder, self.optimizer = as_path(folder), optimizer
        check_folder(self.folder, "event files")
        self._check_others()
        self._epochs: list[dict[str, Any]] = []  # what the file holds
        self._file: IO[bytes] | None = None
        self._resumes = False

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        self._resumes = history.resumed  # then `restore` begins the file
        if not self._resumes:
            self._begin()

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        numbers = {
            name: float(value)
            for name, value in entry.items()
            if name != "epoch" and not isinstance(value, bool) and isinstance(value, Real)
        }
        if self.optimizer is not None:
            numbers["learning_rate"] = self.optimizer.rate
        before = [epoch for epoch in self._epochs if epoch["step"] < entry["epoch"]]
        anew = len(before) < len(self._epochs)  # another trainer's, which begins with the first epoch
        self._epochs = [*before, {"step": entry["epoch"], "wall_time": time.time(), "numbers": numbers}]
        if self._file is not None:
            self._or_say(self._write_anew if anew else lambda: self._write(self._epochs[-1:]))

    def on_fit_end(self, history: History) -> None:
        self._close()
        self._resumes = False

    def state(self) -> list[dict[str, Any]]:
        """The epochs so far, so that a resumed training has none twice."""
        return self._epochs

    def restore(self, state: list[dict[str, Any]]) -> None:
        self._epochs = list(state)
        if self._resumes:
            self._begin()
            self._resumes = False
        elif self._file is not None:  # a training that diverged went back to a checkpoint
            self._or_say(self._write_anew)

    def _begin(self) -> None:
        """Begin a new event file, with the epochs so far, in the place of the older ones."""
        check_folder(self.folder, "event files")
        self.folder = self.folder.absolute()  # the same one after os.chdir
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_anew()
        except BlockingIOError:
            raise OptionError(
                f"cannot write event files into {self.folder}: another run is writing there; choose another folder"
            ) from None
        except OSError as error:
            raise DiskError(
                f"cannot write event files into {self.folder}: {error.strerror or error}"
            ) from error

    def _or_say(self, write: Callable[[], None]) -> None:
        """Write, or say that it failed, and write nothing more."""
        try:
            write()
        except OSError as error:
            notice(f"xnn: the curves in {self.folder} end here ({error.strerror or error}); training goes on")
            self._close()

    def _write_anew(self) -> None:
        """Write a new event file, then empty the older ones. Raises BlockingIOError if another run has one open."""
        self._close()
        path = self.folder / f"{_BEGINS}{time.time_ns()}{_ENDS}"
        try:
            self._file = open(path, "xb")  # noqa: SIM115 - `on_fit_end` closes it
            lock_file(self._file)
            self._check_others()
            older = [other for other in self.folder.glob(f"{_BEGINS}*{_ENDS}") if other != path]
            for other in older:
                with open(other, "ab") as file:
                    lock_file(file)
            version, start = {"file_version": "brain.Event:2"}, _proto("event").SessionLog.START
            # A TensorBoard that shows the folder already then drops what it has read from the older files.
            session = {"step": 0, "session_log": {"status": start}}
            self._record([{"wall_time": time.time(), **event} for event in (version, session)])
            self._write(self._epochs)
        except BaseException:
            self._close()
            path.unlink(missing_ok=True)
            raise
        for other in older:
            with contextlib.suppress(OSError):
                if other.stat().st_size:  # a TensorBoard that is reading it would stay at a file that is gone
                    os.truncate(other, 0)
                else:
                    other.unlink()

    def _check_others(self) -> None:
        """Raise OptionError if the folder has event files of another program: curves of two runs would be one."""
        for path in self.folder.glob("*tfevents*"):
            if not (path.name.startswith(_BEGINS) and path.name.endswith(_ENDS)):
                raise OptionError(
                    f"{self.folder} has event files of another program, such as {path.name}: choose another folder"
                )

    def _write(self, epochs: Iterable[dict[str, Any]]) -> None:
        self._record(
            {
                "step": epoch["step"],
                "wall_time": epoch["wall_time"],
                "summary": {
                    "value": [
                        {"tag": tag, "simple_value": number} for tag, number in epoch["numbers"].items()
                    ]
                },
            }
            for epoch in epochs
        )

    def _record(self, events: Iterable[dict[str, Any]]) -> None:
        """Write events, each given as the fields of an Event."""
        writer = importlib.import_module("tensorboard.summary.writer.record_writer").RecordWriter(self._file)
        for event in events:
            writer.write(_proto("event").Event(**event).SerializeToString())
        writer.flush()

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a record that could not be written is tried again
                self._file.close()
            self._file = None


def _proto(name: str) -> Any:
    """A module of tensorboard's messages. Raises MissingExtraError if the package is not installed."""
    try:
        return importlib.import_module(f"tensorboard.compat.proto.{name}_pb2")
    except ImportError as error:
        raise MissingExtraError(
            'TensorBoard needs the package tensorboard: pip install ".[tensorboard]"'
        ) from error
