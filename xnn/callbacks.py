"""Callbacks: objects that watch a training run, such as a progress bar, a log, or early stopping."""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import time
from collections.abc import Callable
from difflib import get_close_matches
from inspect import getattr_static
from numbers import Real
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows has no locks of this kind
    fcntl = None  # type: ignore[assignment]

from xnn.backends import backend_of
from xnn.errors import DataError, OptionError
from xnn.files import StandardError, check_writable, notice, to_json
from xnn.graph.habits import Habitual, hint_for
from xnn.history import Bar, History, LiveLine, PrintedLines, epoch_line, numbers_line
from xnn.layers import Sequential
from xnn.options import (
    argument_names,
    attributes_of,
    check_count,
    check_real,
    explained_class,
    is_one_of,
    shown,
    takes,
    written,
)

__all__ = ["Callback", "EarlyStopping", "EpochLines", "JsonLines", "ProgressBar", "call_back"]


class Callback(Habitual):
    """Methods that `Trainer.fit` calls while it trains. Derive a class from it and override some of them.

    model: the model in training; `fit` sets it before on_fit_start.
    needs_gradients: whether a method reads the gradients of parameters. Default False: plain SGD then does not keep
        them, which is faster.

    To end the run after the current epoch, set `history.stopped` to the reason, a string.

        >>> import numpy as np
        >>> from xnn import Sequential, Trainer, callbacks, layers, losses, optimizers
        >>> class Patience(callbacks.Callback):
        ...     def on_epoch_end(self, history, entry):
        ...         if entry["loss"] < 0.01:
        ...             history.stopped = "the loss is small enough"
        >>> x = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(64, 1)
        >>> model = Sequential(layers.Dense(1, 1), seed=0)
        >>> trainer = Trainer(model, losses.MSE(), optimizers.SGD(0.2), callbacks=[Patience()])
        >>> history = trainer.fit((x, 2.0 * x), epochs=100, progress=False)
        >>> history.stopped, len(history.epochs) < 100
        ('the loss is small enough', True)
    """

    _habits = "callback"
    model: Sequential
    needs_gradients = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _check_hooks(cls)
        if "__init__" in vars(cls) and cls.__module__ == __name__:
            explained_class(cls)

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        """Called before the first step; history.plan says how the run is executed."""

    def on_step(self, history: History, epoch: int, step: int, loss: float) -> None:
        """Called after every training step, with its loss; parameters and gradients are those after the step.

        epoch: the number of epochs that are finished, 0 in the first one.
        step: the step in this epoch, counted from 1.
        Overriding it makes training wait for the device, and look for NaN and infinity, at every step. What it
        assigns, and what it writes to arrays, counts from the next step.
        """

    def on_check(self, history: History, epoch: int, step: int, loss: float, metrics: dict[str, Any]) -> None:
        """Called every 100 steps and at the end of each epoch, after a check that all numbers are finite.

        epoch, step: as in on_step. loss, metrics: means over this epoch so far.
        """

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        """Called after an epoch and its validation; `entry` is the last of history.epochs, and may be added to."""

    def on_fit_end(self, history: History) -> None:
        """Called after the last step, also when Ctrl-C or an error ended the run."""

    def __repr__(self) -> str:
        return written(self, attributes_of(self))


#: The hooks, with the arguments that fit gives them.
_HOOKS = {name: argument_names(hook) for name, hook in vars(Callback).items() if name.startswith("on_")}


def _check_hooks(kind: type[Callback]) -> None:
    """Raise OptionError for a hook that fit would not call, or that takes other arguments than fit gives it."""
    for name in dir(kind):
        method = getattr(kind, name)
        if not name.startswith("on_") or not callable(method):
            continue
        bound = [] if isinstance(getattr_static(kind, name), (staticmethod, classmethod)) else [None]
        if name not in _HOOKS:
            near = [f"xnn calls {hook}" for hook in get_close_matches(name, _HOOKS, 1, 0.8)]
            if instead := hint_for("callback", name) or "".join(near):
                raise OptionError(f"{kind.__name__}.{name} would never be called: {instead}")
        elif not takes(method, *bound, *_HOOKS[name]):
            raise OptionError(
                f"{kind.__name__}.{name} must take the arguments that fit gives it: write def {name}(self, "
                f"{', '.join(_HOOKS[name])})"
            )


def call_back(method: Callable[..., Any], *arguments: Any) -> None:
    """Call a method of a callback. Raises OptionError if it returns something, which would be lost."""
    returned = method(*arguments)
    if returned is not None:
        raise OptionError(
            f"{getattr(method, '__qualname__', method)} returned {shown(returned)}, and methods of callbacks "
            "return nothing: to end the training, set history.stopped to the reason, a string"
        )


class ProgressBar(Callback):
    """Progress on standard error: epoch, loss, metrics, samples a second and the time left.

    On a terminal it is a bar, and in Jupyter a line that changes. Elsewhere it is a line after each epoch. `fit` adds
    one unless it is called with progress=False.

        >>> from xnn import callbacks
        >>> callbacks.ProgressBar()
        ProgressBar()
    """

    def __init__(self) -> None:
        self._shown: PrintedLines | None = None

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        self._epochs, self._steps, self._done = epochs, steps_per_epoch, 0
        if StandardError().isatty():
            self._shown = Bar(epochs * steps_per_epoch)
        else:  # Jupyter's standard error is an object of ipykernel
            jupyter = type(sys.stderr).__module__.partition(".")[0] == "ipykernel"
            self._shown = LiveLine() if jupyter else PrintedLines()

    def on_check(self, history: History, epoch: int, step: int, loss: float, metrics: dict[str, Any]) -> None:
        if self._shown is not None:
            numbers = numbers_line({"loss": loss, **metrics})
            self._shown.update(
                f"{self._done + 1}/{self._epochs}",
                self._done * self._steps + step,
                f"{numbers}  {history.samples_per_second:,.0f} samples/s",
            )

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        self._done += 1
        if self._shown is not None:
            self._shown.print(epoch_line(entry))

    def on_fit_end(self, history: History) -> None:
        if self._shown is not None:
            self._shown.stop()
            self._shown = None


class EpochLines(Callback):
    """Prints a line on standard output after each epoch, unless standard error is a terminal.

    Call `fit` with progress=False then, or the lines stand on standard error as well.
    If standard output is closed or the disk is full, the lines end and training goes on.

        >>> from xnn import callbacks
        >>> callbacks.EpochLines()
        EpochLines()
    """

    def __init__(self) -> None:
        self._silent = StandardError().isatty()

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        if not self._silent:
            try:
                print(epoch_line(entry), flush=True)
            except (OSError, ValueError):  # ValueError: standard output was closed
                self._silent = True


class JsonLines(Callback):
    """Writes a log of the run, one JSON object a line: the plan, then each epoch as it ends, then the end.

    path: the file; an older log is replaced when training starts. Any other file is refused, and so is a log that
        another run is writing (where the system has flock).
    about: more items for the first line. Default: none.

    Raises OptionError if the file cannot be written. If writing fails later, as on a full disk, a message on standard
    error says so once and training goes on.

        >>> from xnn import callbacks
        >>> callbacks.JsonLines("run.jsonl")
        JsonLines('run.jsonl')
    """

    def __init__(self, path: str | os.PathLike[str], about: dict[str, Any] | None = None) -> None:
        self.path = check_writable(path, replaced=False, begins=_LOG_BEGINS)
        self.about = about
        self._file: IO[str] | None = None
        self._start = time.perf_counter()

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        check_writable(self.path, replaced=False, begins=_LOG_BEGINS)  # it may have changed since __init__
        try:
            self._file = _opened_log(self.path)
        except BlockingIOError:
            raise OptionError(
                f"cannot write the log {self.path}: another run is writing it; choose another name"
            ) from None
        except OSError as error:
            raise DataError(f"cannot write the log {self.path}: {error.strerror or error}") from error
        self._write({"event": "start", **(self.about or {}), "epochs": epochs, "plan": history.plan})

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        self._write({"event": "epoch", **entry, "samples_per_second": history.samples_per_second})

    def on_fit_end(self, history: History) -> None:
        end = {"event": "end", "steps": history.steps, "interrupted": history.interrupted}
        reasons = {"stopped": history.stopped, "error": history.error}
        self._write(end | {key: reason for key, reason in reasons.items() if reason})
        self._close()

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is None:
            return
        entry["seconds"] = round(time.perf_counter() - self._start, 3)
        try:
            self._file.write(to_json(entry) + "\n")
            self._file.flush()
        except OSError as error:
            notice(f"xnn: the log {self.path} ends here ({error.strerror}); training goes on")
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a line that could not be written is tried again
                self._file.close()
            self._file = None


_LOG_BEGINS = '{"event": "start"'


def _opened_log(path: Path) -> IO[str]:
    """Open a log and empty it. Raises BlockingIOError if another run has it open."""
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed when the training ends
    try:
        if path.is_file():  # and not a pipe or device
            _lock(file)
            file.truncate(0)
    except BaseException:
        file.close()
        raise
    return file


def _lock(file: IO[str]) -> None:
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # this file system has no locks
            return


#: The direction in which a number improves, by the last word of its name; topK is "top" here.
_DIRECTIONS = {
    **dict.fromkeys(("loss", "error", "mae", "mse", "rmse"), "min"),
    **dict.fromkeys(("accuracy", "top", "precision", "recall", "f1", "r2"), "max"),
}


class EarlyStopping(Callback):
    """Ends training when a number of the epochs, such as the validation loss, has stopped improving.

    monitor: the name of a number in history.epochs, such as "val_loss", "loss" or "val_accuracy". Default "val_loss".
    patience: the run ends after this many epochs in a row without improvement. Default 5.
    min_delta: how much better than the best a value must be to be an improvement. Default 0.
    mode: "min" or "max", the direction in which `monitor` improves. Default "auto": by the name, which works for
        losses, errors and xnn's own metrics.
    restore_best: whether the model gets the weights of its best epoch back when training ends, however it ends. The
        optimizer's state stays the last one. Default True.

    After each epoch `best_epoch` is the number of the best epoch (0 before there is one) and `best` its value. NaN
    does not count as an improvement. Each fit starts without a best epoch.

    Raises OptionError for other options, and after the first epoch if it has no number of this name.

        >>> from xnn import callbacks
        >>> callbacks.EarlyStopping("val_accuracy", patience=3)
        EarlyStopping(monitor='val_accuracy', patience=3, mode='max')

    Source: Prechelt, "Early stopping - but when?", 1998.
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
            raise OptionError(f"monitor must be a name such as 'val_loss', got {shown(monitor)}")
        if isinstance(mode, str) and mode == "auto":
            mode = _DIRECTIONS.get(re.sub("top[0-9]+", "top", monitor.rpartition("_")[2]), "")
            if not mode:
                raise OptionError(
                    f"mode='auto' cannot tell how {monitor!r} improves: give mode='min' or mode='max'"
                )
        if not is_one_of(mode, ("min", "max")):
            raise OptionError(f"mode must be 'auto', 'min' or 'max', got {shown(mode)}")
        self.monitor, self.mode, self.restore_best = monitor, mode, restore_best
        self.patience = check_count("patience", patience)
        self.min_delta = check_real("min_delta", min_delta, 0.0)
        self.best, self.best_epoch = math.nan, 0

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        self.best, self.best_epoch = math.nan, 0
        self._waited, self._last = 0, math.nan
        self._kept: dict[str, Any] = {}

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        value = entry.get(self.monitor)
        if isinstance(value, bool) or not isinstance(value, Real):
            there = [name for name, number in entry.items() if isinstance(number, Real) and name != "epoch"]
            hint = "; val_ numbers need fit(validation=...)" if self.monitor.startswith("val_") else ""
            found = f"which is {value!r}" if self.monitor in entry else "which the epochs do not have"
            raise OptionError(
                f"EarlyStopping got monitor={self.monitor!r}, {found}: choose {', '.join(there)}{hint}"
            )
        self._last = float(value)
        gain = self._last - self.best if self.mode == "max" else self.best - self._last
        if gain > self.min_delta or (not self.best_epoch and not math.isnan(self._last)):
            self.best, self.best_epoch, self._waited = self._last, entry["epoch"], 0
            if self.restore_best:
                self._kept = {
                    name: backend_of(p.value).xp.asarray(p.value, copy=True)  # a step may change it in place
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
        parameters = dict(self.model.named_state())
        for name, array in self._kept.items():
            parameters[name].value = array
        self._kept = {}
