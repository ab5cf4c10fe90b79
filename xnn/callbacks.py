"""What watches a training run: the progress bar, the JSON-lines log, or a class of your own."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from xnn.errors import DataError
from xnn.files import check_writable, to_json

if TYPE_CHECKING:
    from xnn.history import History

__all__ = ["Callback", "EpochLines", "JsonLines", "ProgressBar"]


class Callback:
    """Hooks that fit calls; each does nothing until it is overridden.

    `needs_gradients`: whether a hook reads parameters' gradients, which plain SGD is otherwise spared from keeping.
    """

    needs_gradients = False

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        """Before the first step; history.plan says how the run is executed."""

    def on_step(self, history: History, epoch: int, step: int, loss: float) -> None:
        """After every step: `step` of this epoch, and its own loss; parameters and gradients are those it left.

        What overrides it makes training wait for the device at every step; where nothing does, it costs nothing.
        `history` counts the step at the next check, which may still find that it diverged.
        """

    def on_check(self, history: History, epoch: int, step: int, loss: float, metrics: dict[str, Any]) -> None:
        """Every so many steps and at each epoch's end: `step` of this epoch, means so far in it."""

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        """After an epoch and its validation; `entry` is what history.epochs got."""

    def on_fit_end(self, history: History) -> None:
        """After the last step, also when Ctrl-C or an error ended the run."""


class ProgressBar(Callback):
    """Epoch, loss, metrics, samples/s and time left, on standard error; silent where that is no terminal."""

    def __init__(self) -> None:
        self._progress: Any = None

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        """Draw the bar."""
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._epochs, self._steps = epochs, steps_per_epoch
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._progress.start()
        self._done = 0
        self._task = self._progress.add_task("starting", total=epochs * steps_per_epoch, numbers="")

    def on_check(self, history: History, epoch: int, step: int, loss: float, metrics: dict[str, Any]) -> None:
        """Move the bar."""
        if self._progress is None:
            return
        self._progress.update(
            self._task,
            completed=self._done * self._steps + step,
            description=f"epoch {self._done + 1}/{self._epochs}",
            numbers=f"{_numbers({'loss': loss, **metrics})}  {history.samples_per_second:,.0f} samples/s",
        )

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        """A line an epoch above the bar."""
        if self._progress is None:
            return
        self._done += 1
        self._progress.console.print(_line(entry), highlight=False)

    def on_fit_end(self, history: History) -> None:
        """Leave the terminal as it was."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class EpochLines(Callback):
    """A line an epoch on standard output where the progress bar is silent: in a pipe, a file, a CI log.

    A reader that goes away, or a full disk, ends the lines and not the training.
    """

    def __init__(self) -> None:
        self._silent = sys.stderr.isatty()

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        """Print the line."""
        if not self._silent:
            try:
                print(_line(entry), flush=True)
            except OSError:
                self._silent = True


def _line(entry: dict[str, Any]) -> str:
    return f"epoch {entry['epoch']}  {_numbers(entry)}"


def _numbers(entry: dict[str, Any]) -> str:
    """What is one; a matrix, or a number for each class, has no place in a line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in entry.items() if isinstance(value, float))


class JsonLines(Callback):
    """One JSON object a line: first the plan, then each epoch as it ends, then the end.

    Raises OptionError if the file cannot be written at the start. If it cannot later (a full disk), it
    says so once and training goes on: the weights matter more than their log.
    """

    def __init__(self, path: str | os.PathLike[str], about: dict[str, Any] | None = None) -> None:
        self.path = check_writable(path, replaced=False)
        self.about = about or {}
        self._broken = False
        self._start = time.perf_counter()

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        """Begin the file."""
        try:
            self.path.write_text("", encoding="utf-8")
        except OSError as error:
            raise DataError(f"cannot write the log {self.path}: {error.strerror or error}") from error
        self._write({"event": "start", **self.about, "epochs": epochs, "plan": history.plan})

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        """Add the epoch."""
        self._write({"event": "epoch", **entry, "samples_per_second": history.samples_per_second})

    def on_fit_end(self, history: History) -> None:
        """Add the end."""
        end = {"event": "end", "steps": history.steps, "interrupted": history.interrupted}
        self._write({**end, "error": history.error} if history.error else end)

    def _write(self, entry: dict[str, Any]) -> None:
        if self._broken:
            return
        entry["seconds"] = round(time.perf_counter() - self._start, 3)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(to_json(entry) + "\n")
        except OSError as error:
            self._broken = True
            print(f"xnn: the log {self.path} ends here ({error.strerror}); training goes on", file=sys.stderr)
