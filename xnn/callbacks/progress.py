"""Progress of a training: a bar on standard error, or lines on standard output."""

from __future__ import annotations

import sys
from typing import Any

from xnn.callbacks.callback import Callback
from xnn.files import StandardError
from xnn.history import Bar, History, LiveLine, PrintedLines, epoch_line, numbers_line

__all__ = ["EpochLines", "ProgressBar"]


class ProgressBar(Callback):
    """Progress on standard error: epoch, loss, metrics, samples a second and the time left.

    On a terminal it is a bar, and in Jupyter a line that changes. Elsewhere it is a line after each epoch. `fit` adds
    one unless it is called with progress=False.

        >>> from xnn import callbacks
        >>> callbacks.ProgressBar()
        ProgressBar()
    """

    #: It changes nothing in the training: a checkpoint needs nothing of it.
    bystander = True

    def __init__(self) -> None:
        self._shown: PrintedLines | None = None

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        self._epochs, self._steps = epochs, steps_per_epoch
        if StandardError().isatty():
            self._shown = Bar(epochs * steps_per_epoch)
        else:  # Jupyter's standard error is an object of ipykernel
            jupyter = type(sys.stderr).__module__.partition(".")[0] == "ipykernel"
            self._shown = LiveLine() if jupyter else PrintedLines()

    def on_check(self, history: History, epoch: int, step: int, loss: float, metrics: dict[str, Any]) -> None:
        if self._shown is not None:
            numbers, done = numbers_line({"loss": loss, **metrics}), len(history.epochs)
            self._shown.update(
                f"{done + 1}/{self._epochs}",
                done * self._steps + step,
                f"{numbers}  {history.samples_per_second:,.0f} samples/s",
            )

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
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

    bystander = True

    def __init__(self) -> None:
        self._silent = StandardError().isatty()

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        if not self._silent:
            try:
                print(epoch_line(entry), flush=True)
            except (OSError, ValueError):  # ValueError: standard output was closed
                self._silent = True
