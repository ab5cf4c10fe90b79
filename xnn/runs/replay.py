"""The sides that `xnn verify` compares: a record, or a run in a process of its own that waits after each step.

A process for each, since BLAS looks at its variables once, when it is loaded.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from xnn.backends import backend as use
from xnn.backends import backend_names, get_backend, numerics
from xnn.data import load
from xnn.errors import OptionError, UnknownBackendError, XnnError
from xnn.history import History
from xnn.layers import Sequential
from xnn.runs.digests import Digests, Record, Recorder, little_endian
from xnn.runs.process import Line, Process
from xnn.runs.spec import Run
from xnn.training import Trainer

__all__ = ["Live", "Recorded", "main", "parse_settings"]

_KERNELS = ("auto", "ops", "numpy", "compiled")
_SETTINGS = "backend=NAME, threads=N, kernels=NAME or blas=CORE, with commas between them"


def parse_settings(text: str) -> dict[str, str]:
    """backend=cupy,threads=1 -> {"backend": "cupy", "threads": "1"}. Raises OptionError or UnknownBackendError."""
    settings: dict[str, str] = {}
    for part in text.split(","):
        key, sign, value = (word.strip() for word in part.partition("="))
        if not (sign and value):
            raise OptionError(f"{text!r} is neither a file nor settings of a run: {_SETTINGS}")
        if key not in ("backend", "threads", "kernels", "blas") or key in settings:
            problem = "stands there twice" if key in settings else "is not a setting"
            raise OptionError(f"{text!r}: {key} {problem}; give {_SETTINGS}")
        if key == "backend" and value not in backend_names():
            raise UnknownBackendError(f"{text!r}: choose one of {', '.join(backend_names())}")
        if key == "threads" and (not value.isdecimal() or int(value) < 1):
            raise OptionError(f"{text!r}: threads must be a positive integer")
        if key == "kernels" and value not in _KERNELS:
            raise OptionError(f"{text!r}: kernels must be one of {', '.join(_KERNELS)}")
        settings[key] = value
    return settings


class Recorded:
    """A record, read step by step. It has no tensors to show. note: what the user should see."""

    def __init__(self, name: str, record: Record) -> None:
        self.name, self.record, self.note, self._done = name, record, "", 0

    def begin(self) -> None:
        """Nothing needs to be started."""

    def step(self) -> Digests:
        """The next step's digests."""
        self._done += 1
        return self.record.steps[self._done - 1]

    def tensor(self, kind: str, name: str) -> np.ndarray | None:
        """None: there are digests alone."""
        return None

    def close(self) -> None:
        """Nothing is open."""


class Live:
    """A run with these settings, which goes on by a step when it is asked. `task`: what `main` is told of the run."""

    module = __name__

    def __init__(self, settings: str, task: dict[str, Any]) -> None:
        self.name, chosen = settings, parse_settings(settings)
        self._core = chosen.pop("blas", None)
        threads = int(chosen["threads"]) if "threads" in chosen else None
        self._task = {**task, **chosen, "threads": threads}
        variables = {"OPENBLAS_CORETYPE": self._core} if self._core else {}
        self._process = Process(self.name, self.module, threads, variables)
        self._process.settle = 0.0  # nothing is timed
        self.record = Record({}, {}, Digests("", "", ""), [])
        self.note = ""

    def begin(self) -> None:
        """Load the data, build the model, and come to before the first step. Raises what hinders it."""
        answer = self._ask(**self._task)
        self.note = answer["note"]
        self.record = Record(answer["about"], answer["tensors"], Digests(*answer["initial"]), [])
        blas = self.record.about["plan"]["blas"]
        if self._core and "openblas" not in blas:
            raise OptionError(
                f"{self.name}: blas= is for OpenBLAS, and NumPy's is {blas or 'one unknown here'}"
            )
        if self._core and self._core.lower() not in blas.lower().split():
            # It has several names for one set of kernels, and takes its usual ones for a name it does not know.
            self.note = f"{self.name}: the kernels that OpenBLAS took call themselves {blas.split()[-1]}"

    def step(self) -> Digests:
        """Take the next step; its digests."""
        return Digests(*self._ask(do="step")["step"])

    def tensor(self, kind: str, name: str) -> np.ndarray | None:
        """A weight or gradient after the last step."""
        answer = self._ask(do="tensor", kind=kind, name=name)
        array = np.frombuffer(base64.b64decode(answer["bytes"]), answer["dtype"])
        return array.reshape(answer["shape"])

    def _ask(self, **command: Any) -> dict[str, Any]:
        answer = self._process.ask(**command)
        if self._process.error:
            hint = "; can this CPU run these kernels?" if self._core else ""
            raise XnnError(self._process.error + hint)
        if "refused" in answer:
            raise (OptionError if answer["option"] else XnnError)(f"{self.name}: {answer['refused']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.close()


class _Waiting(Recorder):
    """Answers with each step's digests, and waits until it is asked for the next."""

    def __init__(
        self, model: Sequential, about: dict[str, Any], note: str, line: Line, commands: Iterator[Any]
    ) -> None:
        super().__init__(model, about)
        self._note, self._line, self._commands = note, line, commands

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        """Answer with what is run, and the first weights."""
        super().on_fit_start(history, epochs, steps_per_epoch)
        record = self.record
        start = {"about": record.about, "tensors": record.tensors, "initial": record.initial}
        self._line.answer({**start, "note": self._note})
        self._wait()

    def on_step(self, history: History, epoch: int, step: int, loss: float) -> None:
        """Answer with the step."""
        super().on_step(history, epoch, step, loss)
        self._line.answer({"step": self.record.steps.pop()})
        self._wait()

    def _wait(self) -> None:
        parameters = dict(self.model.named_state())
        for command in self._commands:
            if command["do"] == "step":
                return
            array = little_endian(self.tensor(command["kind"], parameters[command["name"]]))
            content = base64.b64encode(array.tobytes()).decode()
            self._line.answer({"dtype": array.dtype.str, "shape": array.shape, "bytes": content})
        sys.exit()  # nobody asks any more


def _serve(
    line: Line,
    commands: Iterator[Any],
    run: dict[str, Any],
    version: str,
    dataset: str | None,
    data_home: str | None,
    table: dict[str, Any],
    mode: str,
    steps: int,
    threads: int | None,
    backend: str | None = None,
    kernels: str = "auto",
) -> None:
    with numerics(mode), use(get_backend(backend).name):
        data = load(dataset, data_home, **table)
        chosen = Run.from_record(run, version).resolved(data, steps)
        model, loss, rule = chosen.build(data)
        waiting = _Waiting(model, {**chosen.about(data), "table": table}, data.note, line, commands)
        trainer = Trainer(model, loss, rule, callbacks=[waiting], threads=threads, kernels=kernels)
        samples = data.x_train, chosen.targets(data.y_train)
        epochs = steps if rule.minimizes else -(-steps // -(-len(data.x_train) // chosen.batch_size))
        history = trainer.fit(
            samples, epochs=epochs, batch_size=chosen.batch_size, seed=chosen.seed, progress=False
        )
        done = len(
            history.epochs
        )  # only a minimizer comes here, which may need fewer iterations than it is given
        raise OptionError(f"the run came to its end in step {done}: --steps {done} compares it")


def main() -> None:
    """The process of a side: its first command says what to run, the others let it go on."""
    line = Line()
    commands = iter(line)
    try:
        _serve(line, commands, **next(commands))
    except XnnError as error:
        line.answer({"refused": str(error), "option": isinstance(error, (OptionError, UnknownBackendError))})
