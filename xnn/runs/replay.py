"""Compares two runs step by step and finds the first bit in which they differ, for `xnn verify`.

Each side of the comparison is a record, or a live run that trains in a process of its own and waits after each step.
A live run needs its own process because BLAS reads its environment variables once, when it is loaded.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from xnn import errors
from xnn.backends import backend_names
from xnn.errors import DataError, DataNotFoundError, OptionError, UnknownBackendError, XnnError
from xnn.layers import Layer
from xnn.runs.digests import Digests, Record, TensorKind
from xnn.runs.layer_plans import arguments_of
from xnn.runs.names import KERNELS, MOST_THREADS, thread_count
from xnn.runs.process import Process

__all__ = [
    "NO_DISTANCE",
    "Difference",
    "DigestSide",
    "LiveSide",
    "RecordSide",
    "Side",
    "as_text",
    "compare",
    "distance",
    "lock_step",
    "parse_settings",
]

#: The distance from a number to NaN, as `distance` gives it.
NO_DISTANCE = np.iinfo(np.uint64).max

_SETTINGS = (
    "backend=NAME, threads=N, kernels=NAME, blas=CORE or workers=mpi, separated by commas; cupy:1 is the second "
    "GPU"
)


# The two sides.


class Side(Protocol):
    """One side of a comparison.

    name: what the user wrote: a file or settings.
    record: what is run, its tensors, and the digests before the first step.
    note: a message for the user; "" if there is none.
    """

    name: str
    record: Record
    note: str

    def begin(self) -> None:
        """Prepare everything up to the first step, and fill in `record`."""

    def step(self) -> Digests:
        """The digests of the next step."""

    def tensor(self, kind: TensorKind, name: str) -> np.ndarray | None:
        """A parameter's weight or gradient after the last step; None if only its digest is known."""

    def close(self) -> None:
        """Release what the side uses."""


class DigestSide:
    """A side whose run is over, and of which only digests are known: its record holds those of all steps."""

    def __init__(self, name: str, record: Record) -> None:
        self.name, self.record, self.note, self._done = name, record, "", 0

    def step(self) -> Digests:
        self._done += 1
        return self.record.steps[self._done - 1]

    def tensor(self, kind: TensorKind, name: str) -> np.ndarray | None:
        return None

    def close(self) -> None: ...


class RecordSide(DigestSide):
    """A recorded run as one side of a comparison."""

    def begin(self) -> None: ...


class LiveSide:
    """A live run as one side of a comparison. It trains in a process of its own, one step at each request.

    settings: how it is executed, such as "backend=cupy" or "threads=1,kernels=ops".
    task: what is run: the first command that xnn.runs.replay_process gets, without these settings.
    """

    module = "xnn.runs.replay_process"

    def __init__(self, settings: str, task: dict[str, Any]) -> None:
        self.name, chosen = settings, parse_settings(settings)
        self._core = chosen.pop("blas", None)
        threads = int(chosen["threads"]) if "threads" in chosen else None
        self._task = {**task, **chosen, "threads": threads}
        variables = {"OPENBLAS_CORETYPE": self._core} if self._core else {}
        self._process = Process(self.name, self.module, threads, variables)
        self._process.settle = 0.0  # nothing is timed here
        self.record = Record({}, {}, Digests("", "", ""), [])
        self.note = ""

    def begin(self) -> None:
        """Load the data, build the model, and stop before the first step. Raises the error that prevents this."""
        answer = self._ask(**self._task)
        self.note = answer["note"]
        self.record = Record(answer["about"], answer["tensors"], Digests(*answer["initial"]), [])
        blas = self.record.about["plan"]["blas"]
        if self._core and "openblas" not in blas:
            raise OptionError(
                f"{self.name}: blas= is for OpenBLAS, and products are computed by "
                f"{blas or 'a BLAS that is unknown here'}: omit it"
            )
        if self._core and self._core.lower() not in blas.lower().split():
            # OpenBLAS has several names for one set of kernels, and takes its usual ones for a name it does not know.
            self.note = f"{self.name}: OpenBLAS took kernels that it calls {blas.split()[-1]}"

    def step(self) -> Digests:
        return Digests(*self._ask(do="step")["step"])

    def tensor(self, kind: TensorKind, name: str) -> np.ndarray | None:
        answer = self._ask(do="tensor", kind=kind, name=name)
        array = np.frombuffer(base64.b64decode(answer["bytes"]), answer["dtype"])
        return array.reshape(answer["shape"])

    def _ask(self, **command: Any) -> dict[str, Any]:
        answer = self._process.ask(**command)
        if self._process.error:
            hint = "; can this CPU run these kernels?" if self._core else ""
            raise XnnError(self._process.error + hint)
        if "refused" in answer:
            raise getattr(errors, answer["kind"], XnnError)(f"{self.name}: {answer['refused']}")
        return answer

    def close(self) -> None:
        self._process.close()


def parse_settings(text: str) -> dict[str, str]:
    """Read how a live run is executed, from a text of settings.

    Raises OptionError or UnknownBackendError for a text that is not such settings, DataNotFoundError for what looks
    like the name of a file.

    >>> parse_settings("backend=cupy,threads=1")
    {'backend': 'cupy', 'threads': '1'}
    """
    settings: dict[str, str] = {}
    for part in text.split(","):
        key, sign, value = (word.strip() for word in part.partition("="))
        if not (sign and value):
            is_file = "=" not in text and os.path.splitext(text)[1]
            raise (DataNotFoundError if is_file else OptionError)(
                f"{text!r} is neither a file nor settings of a run: give {_SETTINGS}"
            )
        if key not in ("backend", "threads", "kernels", "blas", "workers") or key in settings:
            problem = "is given twice" if key in settings else "is not a setting"
            raise OptionError(f"{text!r}: {key} {problem}: give {_SETTINGS}")
        if key == "backend" and value.partition(":")[0] not in backend_names():
            raise UnknownBackendError(
                f"{text!r}: there is no backend {value!r}: choose {', '.join(backend_names())}, or cupy:1 for the "
                "second GPU"
            )
        if key == "threads" and thread_count(value) is None:
            raise OptionError(f"{text!r}: threads must be a positive integer up to {MOST_THREADS}")
        if key == "kernels" and value not in KERNELS:
            raise OptionError(f"{text!r}: kernels must be one of {', '.join(KERNELS)}")
        if key == "workers" and value != "mpi":
            raise OptionError(f"{text!r}: workers must be mpi: all processes that a launcher has started")
        settings[key] = value
    if "workers" in settings and "blas" in settings:
        raise OptionError(f"{text!r}: BLAS has its kernels already: set OPENBLAS_CORETYPE for all processes")
    return settings


# The comparison.


@dataclass(frozen=True)
class Difference:
    """The first place where two runs differ.

    step: the step, from 1; 0 is the state before the first step.
    kind: "loss", "gradient" or "weight".
    name: the parameter's name; "" for the loss.
    others: kind and name of everything else that differs after that step.
    a, b: the losses of the two sides, as `Digests` has them.
    """

    step: int
    kind: str
    name: str
    others: tuple[tuple[str, str], ...]
    a: str = ""
    b: str = ""


def compare(step: int, a: Digests, b: Digests, names: list[str]) -> Difference | None:
    """The first difference between two steps; None if they agree.

    Differences are ordered as the step is computed: the loss, the gradients from the last layer to the first, the
    weights. So the first one shows where the fault arose, and the others may follow from it.
    """
    found = [("loss", "")] if a.loss != b.loss else []
    kinds = (("gradient", a.gradients, b.gradients, -1), ("weight", a.weights, b.weights, 1))
    for kind, one, other, direction in kinds:
        width = len(one) // max(1, len(names))
        pieces = [(n, slice(i * width, (i + 1) * width)) for i, n in enumerate(names)]
        found += [(kind, name) for name, piece in pieces[::direction] if one[piece] != other[piece]]
    if not found:
        return None
    return Difference(step, *found[0], tuple(found[1:]), a.loss, b.loss)


def lock_step(a: Side, b: Side, steps: int) -> Difference | None:
    """Take steps of both runs until they differ, at most `steps`; None if all agree.

    Raises OptionError if the sides are two different runs, and DataError if their data differ.
    """
    _check_same_run(a, b)
    names = list(a.record.tensors)
    difference, step = compare(0, a.record.initial, b.record.initial, names), 0
    while difference is None and step < steps:
        step += 1
        difference = compare(step, a.step(), b.step(), names)
    return difference


def _check_same_run(a: Side, b: Side) -> None:
    one, other = _what_was_run(a.record), _what_was_run(b.record)
    for key in one | other:
        if one.get(key) != other.get(key):
            texts = [as_text(run.get(key)) for run in (one, other)]
            if texts[0] == texts[1]:  # a number, and a text of its digits
                texts = [repr(run.get(key)) for run in (one, other)]
            what = f"{key} is {texts[0]} in {a.name}, {texts[1]} in {b.name}"
            raise OptionError(f"these are two different runs: {what}")
    digests = [side.record.about.get("data_sha256", "") for side in (a, b)]
    if digests[0] != digests[1]:
        found = (f"{d[:16] or 'unknown'} of {s.name}" for s, d in zip((a, b), digests, strict=True))
        raise DataError(
            f"the training data differ before the first step, SHA-256 {' and '.join(found)}: --dataset and "
            "--data-home say which data to use"
        )


def _what_was_run(record: Record) -> dict[str, Any]:
    """What must be equal in the two runs. The data set's name is left out: the same data may have another name."""
    run = {key: value for key, value in record.about.get("run", {}).items() if key != "dataset"}
    layers = [f"{name} of {kind}" for name, kind in record.tensors.items()]
    if "model" in run:
        run["model"] = _without_defaults(run["model"])
    return {**run, "numerics": record.about["plan"]["numerics"], "tensors": layers}


def _without_defaults(value: Any) -> Any:
    """The tables of layers without arguments that have their defaults: written out or not, the run is the same."""
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    known = arguments_of(Layer.own[kind]) if isinstance(kind, str) and kind in Layer.own else {}
    return {
        name: _without_defaults(item)
        for name, item in value.items()
        if name not in known or repr(item) != repr(known[name].default)
    }


def as_text(value: Any) -> str:
    """A JSON value as text for messages: lists with commas, tables of layers as calls of their constructors.

    >>> as_text([100, 200]), as_text({"type": "Dense", "outputs": 10})
    ('100,200', 'Dense(outputs=10)')
    """
    if isinstance(value, (list, tuple)):
        nested = (isinstance(item, (list, tuple)) for item in value)
        return ",".join(
            f"[{as_text(item)}]" if n else as_text(item) for item, n in zip(value, nested, strict=True)
        )
    if isinstance(value, dict):
        inside = (f"{key}={as_text(value[key])}" for key in sorted(value) if key != "type")
        return f"{value.get('type')}({', '.join(inside)})"
    return str(value)


def distance(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the bits of two float arrays differ, and how far the numbers are apart in ulps.

    x, y: arrays of one shape and dtype.

    The first result has positions in the flattened arrays. The second has the distance at each position: the number
    of floats between the two numbers, plus one. It is 0 for -0 and +0, and NO_DISTANCE if one number is NaN.

    >>> one = np.ones(3, np.float32)
    >>> distance(one, np.nextafter(one, np.float32(2)))[1].tolist()
    [1, 1, 1]
    """
    bits = [np.ascontiguousarray(v).reshape(-1).view(f"u{v.itemsize}") for v in (x, y)]
    places = np.flatnonzero(bits[0] != bits[1])
    sign = 1 << (8 * x.itemsize - 1)
    ordered = []
    for part in bits:
        magnitude = (part[places] & part.dtype.type(sign - 1)).astype(np.int64)
        ordered.append(np.where(part[places] >= part.dtype.type(sign), -magnitude, magnitude))
    one, other = np.maximum(*ordered), np.minimum(*ordered)
    ulps = one.astype(np.uint64) - other.astype(np.uint64)  # modulo 2^64, so that no difference overflows
    ulps[np.isnan(x.reshape(-1)[places]) | np.isnan(y.reshape(-1)[places])] = NO_DISTANCE
    return places, ulps
