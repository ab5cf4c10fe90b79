"""The process in which `xnn verify` trains a live run. It waits after each step for the next command."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterator
from typing import Any

from xnn.backends import backend as use
from xnn.backends import get_backend, numerics
from xnn.data import load
from xnn.errors import OptionError, XnnError
from xnn.history import History
from xnn.layers import Sequential
from xnn.runs.digests import Recorder, little_endian
from xnn.runs.process import Line
from xnn.runs.spec import RunSpec
from xnn.training import Trainer

__all__ = ["main", "train_live"]


def main() -> None:
    """Train the run that the first command describes, one step for each further command.

    An error that xnn raises is the answer; any other ends the process.
    """
    line = Line()
    commands = iter(line)
    try:
        _serve(line, commands, **next(commands))
    except XnnError as error:
        line.answer({"refused": str(error), "kind": type(error).__name__})


def _serve(line: Line, commands: Iterator[Any], **command: Any) -> None:
    def waiting(model: Sequential, about: dict[str, Any], note: str) -> Recorder:
        return _WaitingRecorder(model, about, note, line, commands)

    done = train_live(waiting, **command)
    # Only a minimizer comes here: it may converge in fewer iterations than it was given.
    raise OptionError(f"the run came to its end in step {done}: --steps {done} compares all of it")


def train_live(
    recorder: Callable[[Sequential, dict[str, Any], str], Recorder],
    run: dict[str, Any],
    version: str,
    dataset: str | None,
    data_home: str | None,
    table: dict[str, Any],
    mode: str,
    steps: int,
    resolved: bool,
    threads: int | None,
    backend: str | None = None,
    kernels: str = "auto",
    workers: str | None = None,
) -> int:
    """Train a live run for at least so many steps, unless its recorder ends it, and return how many epochs it did.

    recorder: makes the recorder from the model, what was run, and a note on the data. run, version: as a record has
    them. mode: the numerics. resolved: whether the run's options are those of a record, with nothing left open.
    threads, kernels, workers: as for Trainer. The others are options of `xnn verify`.
    """
    with numerics(mode), use(get_backend(backend).address):
        spec = RunSpec.from_json(run, version)
        data = spec.with_targets(load(dataset, data_home, **table))
        if not resolved:  # a recorded run is, and may be longer than these steps
            spec = spec.resolved(data, steps)
        model, loss, optimizer = spec.build(data)
        watcher = recorder(model, {**spec.record_header(data), "table": table}, data.note)
        how: dict[str, Any] = {"threads": threads, "kernels": kernels, "workers": workers}
        trainer = Trainer(model, loss, optimizer, callbacks=[watcher], **how)
        samples = data.x_train, spec.targets(data.y_train)
        # An epoch of a minimizer is one iteration, and counts as one step.
        epochs = steps if optimizer.minimizes else -(-steps // spec.steps_per_epoch(data))
        history = trainer.fit(
            samples, epochs=epochs, batch_size=spec.batch_size, seed=spec.seed, progress=False
        )
        return len(history.epochs)


class _WaitingRecorder(Recorder):
    """A recorder that answers with the digests of each step, and waits until the next step is asked for."""

    def __init__(
        self, model: Sequential, about: dict[str, Any], note: str, line: Line, commands: Iterator[Any]
    ) -> None:
        super().__init__(model, about)
        self._note, self._line, self._commands = note, line, commands

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        super().on_fit_start(history, epochs, steps_per_epoch)
        record = self.record
        start = {"about": record.about, "tensors": record.tensors, "initial": record.initial}
        self._line.answer({**start, "note": self._note})
        self._wait()

    def on_step(self, history: History, epoch: int, step: int, loss: float) -> None:
        super().on_step(history, epoch, step, loss)
        self._line.answer({"step": self.record.steps.pop()})
        self._wait()

    def _wait(self) -> None:
        """Answer requests for tensors until the next step is asked for. Ends the process if no commands are left."""
        parameters = dict(self.model.named_state())
        for command in self._commands:
            if command["do"] == "step":
                return
            array = little_endian(self.tensor(command["kind"], parameters[command["name"]]))
            content = base64.b64encode(array.tobytes()).decode()
            self._line.answer({"dtype": array.dtype.str, "shape": array.shape, "bytes": content})
        sys.exit()
