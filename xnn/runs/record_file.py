"""RecordFile: a record that is written line by line while the training runs, and is not kept in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from xnn.callbacks.line_file import LineFile
from xnn.errors import DataError, DiskError, OptionError
from xnn.files import check_writable, notice, to_json, write_atomically

__all__ = ["RECORD_BEGINS", "RecordFile", "last_line"]

#: How the file of a record begins, in every format.
RECORD_BEGINS = '{"format": "xnn record'


def last_line(steps: int, sha256: str) -> str:
    """The last line of a record: how many steps it has, and the SHA-256 of all lines before."""
    return to_json({"end": steps, "sha256": sha256})


class RecordFile:
    """The file of a record, which gets a line after each step. The lines of all steps have the same width.

    path: the file; an older record is replaced when the training starts.

    A process that is killed leaves all lines but the last one, which has the digest of the others. The training that
    goes on from a checkpoint removes the lines after it, and continues. If lines cannot be written, as on a full
    disk, the training goes on, the record ends with the last step that was written, and `failure` is the error to
    raise when the training has ended.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        check_writable(path, begins=RECORD_BEGINS)  # it is read again, which pipes and devices are not
        self._lines = LineFile(path, "record", RECORD_BEGINS)
        self.path = self._lines.path
        #: How many steps the file has.
        self.steps = 0
        self.failure: DataError | None = None
        #: Bytes: of the lines before the first step, 0 while they are not known, and of a step.
        self._start = self._width = 0

    def begin(self, header: Any, initial: Any, goes_on: bool) -> None:
        """Open the file, and write the lines before the first step unless the record goes on."""
        self._lines.open(goes_on)
        self.steps, self._start, self.failure = 0, 0, None
        if not goes_on:
            self._lines.write(to_json(header))
            self._lines.write(to_json(initial))
            self._start = self._lines.size

    def add(self, row: Any) -> None:
        """Add the line of a step."""
        before = self._lines.size
        self._lines.write(to_json(row))
        if self._lines.is_open:
            self.steps, self._width = self.steps + 1, self._lines.size - before

    def end(self, steps: int) -> None:
        """Write the last line, after this many steps; those that came later were undone."""
        lines = self._lines
        if lines.fault:
            self.failure = DiskError(
                f"the record {self.path} has {self.steps:,} of {steps:,} steps ({lines.fault}): make room, or choose "
                "another place, and record the run again"
            )
        if self._start and (self.failure is None or self.steps):  # else it stays as it was found
            self.steps = min(self.steps, steps)
            lines.cut(self._start + self.steps * self._width)
            digest = hashlib.sha256()
            for block in lines.blocks():
                digest.update(block)
            lines.write(last_line(self.steps, digest.hexdigest()), last=True)
            if lines.fault and self.failure is None:
                self.failure = DiskError(
                    f"the record {self.path} lacks its last line ({lines.fault}): make room, and record the run again"
                )
            if not lines.is_there:  # it was removed, perhaps with its folder
                try:
                    write_atomically(self.path, b"".join(lines.blocks()), begins=RECORD_BEGINS)
                except (OptionError, DiskError) as error:
                    self.failure = DiskError(str(error))
        lines.close()

    def state(self) -> dict[str, Any]:
        """How long the record is, for a checkpoint."""
        known = {"steps": self.steps, "start": self._start, "width": self._width, "fault": self._lines.fault}
        return {**known, **self._lines.mark(flush=True)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after the lines that the record had at the checkpoint, if it is that record."""
        steps, start, width = (int(state[name]) for name in ("steps", "start", "width"))
        if self._lines.go_back(state):
            self.steps, self._start, self._width = steps, start, width
        else:
            self.failure = DataError(
                f"the record {self.path} is not the one of the checkpoint, and was left as it is: put that record "
                "there and resume again, or record another run"
            )
            notice(f"xnn: {self.failure}; training goes on without a record")
            self._lines.close()
