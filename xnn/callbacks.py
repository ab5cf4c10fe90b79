"""What watches a training run: the progress bar, the JSON-lines log, early stopping, or a class of your own."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from numbers import Real
from typing import TYPE_CHECKING, Any

from xnn.backends import backend_of
from xnn.errors import DataError, OptionError
from xnn.files import check_writable, to_json
from xnn.options import check_count, check_real

if TYPE_CHECKING:
    from xnn.history import History
    from xnn.layers import Sequential

__all__ = ["Callback", "EarlyStopping", "EpochLines", "JsonLines", "ProgressBar"]


class Callback:
    """Hooks that fit calls; each does nothing until it is overridden.

    `model`: the model in training; fit says which before on_fit_start.
    `needs_gradients`: whether a hook reads parameters' gradients, which plain SGD is otherwise spared from keeping.
    To end the fit, a hook sets `history.stopped` to the reason: the epoch in hand is the last.
    """

    model: Sequential
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
        """After an epoch and its validation; `entry` is what history.epochs got, and may be given more numbers."""

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
        reasons = {"stopped": history.stopped, "error": history.error}
        self._write(end | {key: reason for key, reason in reasons.items() if reason})

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


#: In which direction what ends so improves; topK is here "top".
_DIRECTIONS = {
    **dict.fromkeys(("loss", "error", "mae", "mse", "rmse"), "min"),
    **dict.fromkeys(("accuracy", "top", "precision", "recall", "f1", "r2"), "max"),
}


class EarlyStopping(Callback):
    """Ends the fit after `patience` epochs in a row in which `monitor` did not improve on its best.

        stopper = EarlyStopping(patience=5)
        Trainer(model, loss, optimizer, callbacks=[stopper]).fit(data, validation=held_out, epochs=1000)
        stopper.best_epoch, stopper.best      # also when the epochs ran out

    monitor: a number of history.epochs, such as val_loss, loss or val_accuracy. mode: "min" or "max", the direction
    in which it improves; "auto" knows losses, errors, and xnn's metrics by their names. min_delta: an improvement is
    larger than this.
    restore_best: at the fit's end, whatever ended it, the model gets the best epoch's weights again (the optimizer's
    state stays the last one's). NaN is no improvement, and `history.stopped` tells of it. Each fit begins anew.
    Raises OptionError for options outside these, and at the first epoch's end if it has no such number.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best: bool = True,
    ) -> None:
        if not isinstance(monitor, str):
            raise OptionError(f"monitor must be a name such as 'val_loss', got {repr(monitor)[:60]}")
        if mode == "auto":
            mode = _DIRECTIONS.get(re.sub("top[0-9]+", "top", monitor.rpartition("_")[2]), "")
            if not mode:
                raise OptionError(
                    f"whether {monitor} should fall or rise is not known: give mode='min' or mode='max'"
                )
        if mode not in ("min", "max"):
            raise OptionError(f"mode must be 'auto', 'min' or 'max', got {repr(mode)[:60]}")
        self.monitor, self.mode, self.restore_best = monitor, mode, restore_best
        self.patience = check_count("patience", patience)
        self.min_delta = check_real("min_delta", min_delta, 0.0)
        self.best, self.best_epoch = math.nan, 0

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        """Forget an earlier fit."""
        #: The best value, and the number of its epoch, 0 before there is one.
        self.best, self.best_epoch = math.nan, 0
        self._waited, self._last = 0, math.nan
        self._kept: dict[str, Any] = {}

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        """Keep the weights of the best epoch, or count one without improvement."""
        value = entry.get(self.monitor)
        if isinstance(value, bool) or not isinstance(value, Real):
            there = [name for name, number in entry.items() if isinstance(number, Real) and name != "epoch"]
            hint = "; val_ numbers need fit(validation=...)" if self.monitor.startswith("val_") else ""
            raise OptionError(
                f"EarlyStopping should watch {self.monitor}, and an epoch has {', '.join(there)}"
                f"{f', and {value!r} under that name' if self.monitor in entry else ''}: "
                f"give one of them as monitor{hint}"
            )
        self._last = float(value)
        gain = self._last - self.best if self.mode == "max" else self.best - self._last
        if gain > self.min_delta or (not self.best_epoch and not math.isnan(self._last)):
            self.best, self.best_epoch, self._waited = self._last, entry["epoch"], 0
            if self.restore_best:
                self._kept = {
                    name: backend_of(p.value).xp.asarray(p.value, copy=True)  # a step may write in its place
                    for name, p in self.model.named_state()
                }
            return
        self._waited += 1
        if self._waited >= self.patience:
            history.stopped = self._reason()

    def _reason(self) -> str:
        many = f"{self._waited} epoch{'' if self._waited == 1 else 's'}"
        now = " and is NaN" if math.isnan(self._last) else ""
        if not self.best_epoch:
            return f"{self.monitor} was NaN in all of {many}: no epoch was the best"
        return f"{self.monitor} has not improved on epoch {self.best_epoch}'s {self.best:.6g} in {many}{now}"

    def on_fit_end(self, history: History) -> None:
        """Put the best weights back."""
        parameters = dict(self.model.named_state())
        for name, array in self._kept.items():
            parameters[name].value = array
        self._kept = {}
