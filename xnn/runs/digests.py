"""Records of runs: digests of the loss, gradients and weights of every step.

A record is small enough to carry to another machine, and enough to compare every bit of two runs. It is a file of
JSON lines:

    {"format": "xnn record 1", "run": {"dataset": "mnist", ...}, "data_sha256": ..., "tensors": {"1.weight": "Dense"}}
    ["", "", "<16 hex digits for each weight>"]
    ["40186a3f", "<16 hex digits for each gradient>", "<16 hex digits for each weight>"]
    {"end": 1563, "sha256": ...}

Line 1 says what was run. Line 2 is the state before the first step, which has no loss and no gradients. Then comes a
line for each step: the loss itself, as the hexadecimal digits of its big-endian bytes, and of each gradient and
weight the first 8 bytes of the SHA-256 of its little-endian bytes. The last line has the number of steps and the
SHA-256 of all lines before it.

An epoch of MNIST with three Dense layers, 1,563 steps, takes 0.33 MB. Computing the digests of a step of the network
784-100-200-10 takes about a millisecond.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from xnn.backends.memory import check_memory
from xnn.backends.numerics import NUMERICS
from xnn.backends.row_sources import row_blocks
from xnn.callbacks import Callback
from xnn.errors import CorruptFileError, OptionError
from xnn.files import as_path, reading, to_json, write_atomically
from xnn.history import History
from xnn.layers import Container, Layer, Parameter, Sequential
from xnn.options import shown
from xnn.runs.record_file import RECORD_BEGINS, RecordFile, last_line

__all__ = [
    "RECORD_BEGINS",
    "Digests",
    "Record",
    "Recorder",
    "TensorKind",
    "data_sha256",
    "little_endian",
    "read_record",
]

_FORMAT = "xnn record 1"
_PLANNED = ("blas", "backend", "library", "device", "kernels")  # what `xnn verify` prints of a plan
_WIDTH = 16  # hexadecimal digits of a tensor's digest

#: What is recorded of a parameter.
TensorKind: TypeAlias = Literal["weight", "gradient"]


class Digests(NamedTuple):
    """The digests of one step.

    loss: the bytes of the loss in hexadecimal, big-endian.
    gradients, weights: 16 hexadecimal digits for each parameter, one after the other.
    """

    loss: str
    gradients: str
    weights: str


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(little_endian(array).tobytes()).hexdigest()[:_WIDTH]


def little_endian(array: np.ndarray) -> np.ndarray:
    """The array with contiguous little-endian elements: the same bytes on every machine."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def data_sha256(*arrays: np.ndarray) -> str:
    """The SHA-256 of the arrays' dtypes, shapes and little-endian bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.newbyteorder('<').str}{array.shape}".encode())
        for _, block in row_blocks(array):
            digest.update(little_endian(block).tobytes())
    return digest.hexdigest()


@dataclass
class Record:
    """The digests of a run.

    about: what was run: the first line of the file, without its format and tensors.
    tensors: the name of each parameter, and the type of its layer.
    initial: the digests before the first step.
    steps: the digests after each step.
    """

    about: dict[str, Any]
    tensors: dict[str, str]
    initial: Digests
    steps: list[Digests]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all. Raises OptionError or DiskError if it cannot be written."""
        content = "".join(to_json(line) + "\n" for line in (self.header, self.initial, *self.steps))
        end = last_line(len(self.steps), hashlib.sha256(content.encode()).hexdigest())
        write_atomically(path, f"{content}{end}\n".encode(), begins=RECORD_BEGINS)

    @property
    def header(self) -> dict[str, Any]:
        """The first line of the file."""
        return {"format": _FORMAT, **self.about, "tensors": self.tensors}

    def __repr__(self) -> str:
        return f"Record({len(self.steps):,} steps of {len(self.tensors)} tensors)"


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read a record from a file.

    Raises DataNotFoundError if the file cannot be read, and CorruptFileError if it is not a record, damaged, or cut
    short.
    """
    path = as_path(path)
    with reading(path, "the record"):
        check_memory(str(path), path.stat().st_size, "compare it on a larger machine")
        content = path.read_bytes()
    *lines, last = content.splitlines(keepends=True) or [b""]
    header = _read_header(lines[0] if lines else last, path)
    if not _checksum_fits(lines, last):
        raise CorruptFileError(f"{path} is damaged or cut short: fetch it again, or record the run again")
    tensors = header.pop("tensors")
    initial, *steps = _read_steps(lines[1:], len(tensors), path)
    return Record(header, tensors, initial, steps)


def _read_header(line: bytes, path: Path) -> dict[str, Any]:
    """The first line without its format. Keys that are needed later must be there, or the file is not a record."""
    try:
        header: dict[str, Any] = json.loads(line)
        kind = header.pop("format")
        plan, tensors, steps = header["plan"], header["tensors"], header["steps_per_epoch"]
        fits = plan["numerics"] in NUMERICS and all(isinstance(plan[name], str) for name in _PLANNED)
        fits &= plan["threads"] is None or type(plan["threads"]) is int
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not a record; `xnn train --record {path}` writes one") from error
    if kind != _FORMAT:
        raise CorruptFileError(f"{path} is a record in the format {shown(kind)}; this xnn reads {_FORMAT!r}")
    fits &= isinstance(tensors, dict) and all(isinstance(layer, str) for layer in tensors.values())
    fits &= type(steps) is int and steps > 0
    fits &= all(isinstance(header.get(name, {}), dict) for name in ("run", "table"))
    fits &= all(isinstance(header.get(name, ""), str) for name in ("xnn", "data_sha256"))
    fits &= isinstance(header.get("run", {}).get("dataset", ""), str) if fits else False
    if not fits:
        raise CorruptFileError(f"{path} has a first line that no recorder wrote: record the run again")
    return header


def _checksum_fits(lines: list[bytes], last: bytes) -> bool:
    try:
        end = json.loads(last)
        digest = hashlib.sha256(b"".join(lines)).hexdigest()
        return bool(end["end"] == len(lines) - 2 and end["sha256"] == digest)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _read_steps(lines: list[bytes], tensors: int, path: Path) -> list[Digests]:
    """The digests on all lines but the first and the last. A line without digests would agree with anything."""
    malformed = CorruptFileError(
        f"{path} holds a line that no recorder wrote: fetch it again, or record the run again"
    )
    try:
        rows = [Digests(*json.loads(line)) for line in lines]
    except (ValueError, TypeError, RecursionError):
        raise malformed from None
    if not rows:
        raise malformed
    for number, row in enumerate(rows):
        width = _WIDTH * tensors
        loss, gradients = ("[0-9a-f]{8}|[0-9a-f]{16}", width) if number else ("", 0)
        patterns = loss, rf"[0-9a-f]{{{gradients}}}", rf"[0-9a-f]{{{width}}}"
        for pattern, text in zip(patterns, row, strict=True):
            if not (isinstance(text, str) and re.fullmatch(pattern, text)):
                raise malformed
    return rows


class Recorder(Callback):
    """A callback that takes the digests of every step of a fit.

    model: the Sequential that is trained.
    about: JSON values to keep in the first line of the file; default None.
    path: the file to which each step is written when it was taken, so that long runs need no memory. Default None:
        the digests are kept in `record`, and `record.save(path)` writes them.

    `xnn verify` compares two records. It can also run a training again beside its record, if `xnn train --record`
    made it; a record made in Python does not say what to run. If Ctrl-C or an error ends the training, the steps
    before it are recorded. `steps` is how many were.

    Raises OptionError if `model` is not a Sequential, and if the file cannot be written.

    >>> import xnn
    >>> from xnn import layers, losses, optimizers
    >>> model = xnn.Sequential(layers.Rescale(1 / 255), layers.Dense(784, 10))
    >>> recorder = Recorder(model)
    >>> trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), callbacks=[recorder])
    >>> history = trainer.fit(xnn.data.synthetic_digits(96), batch_size=32, progress=False)
    >>> recorder.record
    Record(3 steps of 2 tensors)
    """

    first_rank_only = True
    needs_gradients = True

    def __init__(
        self,
        model: Sequential,
        about: dict[str, Any] | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(model, Sequential):
            raise OptionError(
                f"Recorder needs the model that is trained, a Sequential, got {shown(model)}: the file's name is "
                "for recorder.record.save"
            )
        self.model = model
        tensors = {name: type(_layer(model, name)).__name__ for name, _ in model.named_state()}
        self.record = Record(dict(about or {}), tensors, Digests("", "", ""), [])
        self.file = None if path is None else RecordFile(path)

    @property
    def steps(self) -> int:
        """How many steps are recorded."""
        return len(self.record.steps) if self.file is None else self.file.steps

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        self.record.about.update(plan=history.plan, steps_per_epoch=steps_per_epoch)
        self.record.initial = Digests("", "", self._digests("weight"))
        self.record.steps.clear()
        if self.file is not None:
            self.file.begin(self.record.header, self.record.initial, history.resumed)

    def disk_use(self, epochs: int, steps_per_epoch: int) -> dict[Path, int]:
        row = Digests("0" * 16, self.record.initial.weights, self.record.initial.weights)
        return {} if self.file is None else {self.file.path: len(to_json(row)) * epochs * steps_per_epoch}

    def on_step(self, history: History, epoch: int, step: int, loss: float) -> None:
        digits = np.asarray(loss, dtype=np.dtype(self.model.dtype).newbyteorder(">")).tobytes().hex()
        row = Digests(digits, self._digests("gradient"), self._digests("weight"))
        (self.record.steps.append if self.file is None else self.file.add)(row)

    def on_fit_end(self, history: History) -> None:
        """Remove the steps that the trainer undid when it found that the run had diverged."""
        if self.file is None:
            del self.record.steps[history.steps :]
        else:
            self.file.end(history.steps)

    def state(self) -> dict[str, Any]:
        """The record so far, all digits in one array of bytes; or how long its file is."""
        if self.file is not None:
            return self.file.state()
        record = self.record
        digits = bytes.fromhex("".join(map("".join, record.steps)))
        widths = [len(text) for text in (record.steps[0] if record.steps else record.initial)]
        return {"initial": record.initial.weights, "widths": widths, "steps": np.frombuffer(digits, np.uint8)}

    def restore(self, state: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.restore(state)
            return
        self.record.initial = Digests("", "", str(state["initial"]))
        loss, gradients, weights = map(int, state["widths"])
        width, digits = loss + gradients + weights, state["steps"].tobytes().hex()
        rows = [digits[start : start + width] for start in range(0, len(digits), width)] if width else []
        cut = loss, loss + gradients
        self.record.steps[:] = [Digests(row[: cut[0]], row[cut[0] : cut[1]], row[cut[1] :]) for row in rows]

    def _digests(self, kind: TensorKind) -> str:
        return "".join(_digest(self.tensor(kind, p)) for _, p in self.model.named_state())

    def tensor(self, kind: TensorKind, parameter: Parameter) -> np.ndarray:
        """A parameter's weight or gradient on the host. The gradient of a frozen parameter is an empty array."""
        array = parameter.value if kind == "weight" else None if parameter.frozen else parameter.grad
        return np.empty(0, parameter.dtype) if array is None else self.model.backend.to_host(array)


def _layer(model: Layer, name: str) -> Layer:
    """The layer of a parameter: `2.0.weight` belongs to the first layer inside the third."""
    for position in name.split("."):
        if isinstance(model, Container) and position.isdecimal():
            model = model.layers[int(position)]
    return model
