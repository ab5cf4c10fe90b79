"""What a run did, step by step, in digests: small enough to carry to another machine, enough to compare every bit.

A record is a file of JSON lines: what was run, then a line a step, then the end and the digest of all before it.

    {"format": "xnn record 1", "run": {"dataset": "mnist", ...}, "data_sha256": ..., "tensors": {"1.weight": "Dense"}}
    ["40186a3f", "<16 hex digits for each gradient>", "<16 for each weight>"]
    {"end": 1563, "sha256": ...}

A step's loss is there itself, as the hexadecimal digits of its big-endian bytes, so that a distance can be told; of
each tensor there are the first 8 bytes of the SHA-256 of its raw little-endian bytes. Line 2 is of before the first
step: no loss, no gradients. An epoch of MNIST, 1,563 steps with three Dense layers, is 0.33 MB; the digests of a
step of 784-100-200-10 take about a millisecond.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xnn.callbacks import Callback
from xnn.errors import CorruptFileError, DataNotFoundError, OptionError
from xnn.files import to_json, write_atomically
from xnn.history import History
from xnn.layers import Container, Layer, Parameter, Sequential

__all__ = ["Digests", "Record", "Recorder", "data_sha256", "little_endian", "read_record"]

_FORMAT = "xnn record 1"
_WIDTH = 16  # hexadecimal digits of a tensor's digest


class Digests(NamedTuple):
    """One step's: the loss's bytes in hexadecimal, and a digest for each gradient and each weight, side by side."""

    loss: str
    gradients: str
    weights: str


def _digest(array: Any) -> str:
    return hashlib.sha256(little_endian(array).tobytes()).hexdigest()[:_WIDTH]


def little_endian(array: np.ndarray) -> np.ndarray:
    """The array as files and digests have it."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def data_sha256(*arrays: np.ndarray) -> str:
    """SHA-256 over the arrays' dtypes, shapes and raw little-endian bytes."""
    digest = hashlib.sha256()
    for array in map(little_endian, arrays):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@dataclass
class Record:
    """A run's digests. about: what was run; tensors: parameter -> type of its layer; initial, then `steps`."""

    about: dict[str, Any]
    tensors: dict[str, str]
    initial: Digests
    steps: list[Digests]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all. Raises OptionError or DataError."""
        lines = [{"format": _FORMAT, **self.about, "tensors": self.tensors}, self.initial, *self.steps]
        content = "".join(to_json(line) + "\n" for line in lines)
        end = {"end": len(self.steps), "sha256": hashlib.sha256(content.encode()).hexdigest()}
        write_atomically(path, (content + to_json(end) + "\n").encode())


def read_record(path: str | os.PathLike[str]) -> Record:
    """A saved record. Raises DataNotFoundError, or CorruptFileError for one that is damaged or cut short."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataNotFoundError(f"cannot read the record {path}: {error.strerror or error}") from error
    try:
        *lines, last = content.splitlines(keepends=True)
        header = json.loads(lines[0] if lines else last)
        kind = header.pop("format")
        plan, _ = header["plan"], (header["tensors"], header["steps_per_epoch"])
        _ = plan["numerics"], plan["blas"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path} is not a record; `xnn train --record {path}` writes one") from error
    if kind != _FORMAT:
        raise CorruptFileError(f"{path} is a record of another kind ({kind}); this xnn reads {_FORMAT}")
    try:
        end = json.loads(last)
        sound = end["end"] == len(lines) - 2 and end["sha256"] == hashlib.sha256(b"".join(lines)).hexdigest()
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise CorruptFileError(f"{path} is damaged or cut short: fetch it again, or record the run again")
    tensors = header.pop("tensors")
    try:
        initial, *steps = (Digests(*json.loads(line)) for line in lines[1:])
    except (ValueError, TypeError):
        raise _malformed(path) from None
    width = _WIDTH * len(tensors)
    for number, row in enumerate((initial, *steps)):
        wanted = rf"[0-9a-f]{{{width if number else 0}}}", rf"[0-9a-f]{{{width}}}"
        shapes = zip(("[0-9a-f]{8}|[0-9a-f]{16}" if number else "", *wanted), row, strict=True)
        if not all(isinstance(text, str) and re.fullmatch(pattern, text) for pattern, text in shapes):
            raise _malformed(path)
    return Record(header, tensors, initial, steps)


def _malformed(path: Path) -> CorruptFileError:
    return CorruptFileError(
        f"{path} holds a line that no recorder wrote: fetch it again, or record the run again"
    )


class Recorder(Callback):
    """Takes the digests of a fit's every step.

        recorder = Recorder(model)
        Trainer(model, loss, optimizer, callbacks=[recorder]).fit(data, ...)
        recorder.record.save("run.jsonl")

    A run that Ctrl-C or an error ends is recorded as far as it came. about: JSON values to keep in the file. `xnn
    verify` compares two such records; it can run again only those of `xnn train --record`, which name the run.
    Raises OptionError for what is no Sequential.
    """

    needs_gradients = True

    def __init__(self, model: Sequential, about: dict[str, Any] | None = None) -> None:
        if not isinstance(model, Sequential):
            raise OptionError(
                f"Recorder needs the model that is trained, a Sequential, got {repr(model)[:60]}: the file's name is "
                "for recorder.record.save"
            )
        self.model = model
        tensors = {name: type(_layer(model, name)).__name__ for name, _ in model.named_state()}
        self.record = Record(dict(about or {}), tensors, Digests("", "", ""), [])

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        """Begin anew: the plan, and the weights before the first step."""
        self.record.about.update(plan=history.plan, steps_per_epoch=steps_per_epoch)
        self.record.initial = Digests("", "", self._joined("weight"))
        self.record.steps.clear()

    def on_step(self, history: History, epoch: int, step: int, loss: float) -> None:
        """Add the step."""
        digits = np.asarray(loss, dtype=np.dtype(self.model.dtype).newbyteorder(">")).tobytes().hex()
        self.record.steps.append(Digests(digits, self._joined("gradient"), self._joined("weight")))

    def on_fit_end(self, history: History) -> None:
        """Forget the steps that were taken back since the run diverged."""
        del self.record.steps[history.steps :]

    def _joined(self, kind: str) -> str:
        return "".join(_digest(self.tensor(kind, p)) for _, p in self.model.named_state())

    def tensor(self, kind: str, parameter: Parameter) -> np.ndarray:
        """A parameter's value ("weight") or gradient, on the host; a frozen one has a gradient without elements."""
        array = parameter.value if kind == "weight" else None if parameter.frozen else parameter.grad
        return np.empty(0, parameter.dtype) if array is None else self.model.backend.to_host(array)


def _layer(model: Layer, name: str) -> Layer:
    """The layer that a parameter's name leads to: `2.0.weight` is of the first layer of the third."""
    for position in name.split("."):
        if isinstance(model, Container) and position.isdecimal():
            model = model.layers[int(position)]
    return model
