"""Progress of a training: a bar on a terminal, curves in a notebook, lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xnn.callbacks.callback import Callback
from xnn.callbacks.notebook import NotebookDisplay, in_notebook
from xnn.files import StandardError
from xnn.history import Bar, History, PrintedLines, epoch_line
from xnn.options import check_flag

__all__ = ["EpochLines", "ProgressBar", "progress_of"]


class ProgressBar(Callback):
    """Shows the progress of a training: epoch, loss, metrics, samples a second and the time left.

    In a notebook it is a line that changes and the learning curves, which grow. On a terminal it is a bar on
    standard error. Elsewhere, as in pipes and logs, it is a line on standard error after each epoch. `fit` adds one
    unless it is called with progress=False.

        >>> from xnn import callbacks
        >>> callbacks.ProgressBar()
        ProgressBar()
    """

    #: It changes nothing in the training: a checkpoint needs nothing of it.
    bystander = first_rank_only = True

    def __init__(self) -> None:
        self._shown: PrintedLines | None = None

    def on_fit_start(self, history: History, epochs: int, steps_per_epoch: int) -> None:
        self._epochs, self._steps = epochs, steps_per_epoch
        if in_notebook():
            self._shown = NotebookDisplay(history, epochs, steps_per_epoch)
        else:
            self._shown = Bar(epochs * steps_per_epoch) if StandardError().isatty() else PrintedLines()

    def on_check(self, history: History, epoch: int, step: int, loss: float, metrics: dict[str, Any]) -> None:
        if self._shown is not None:
            done = len(history.epochs)
            self._shown.update(
                f"{done + 1}/{self._epochs}",
                done * self._steps + step,
                {"loss": loss, **metrics},
                f"{history.samples_per_second:,.0f} samples/s",
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

    `fit` then shows no progress besides, unless it is called with progress=True.
    If standard output is closed or the disk is full, the lines end and training goes on.

        >>> from xnn import callbacks
        >>> callbacks.EpochLines()
        EpochLines()
    """

    bystander = first_rank_only = True

    def __init__(self) -> None:
        self.silent = StandardError().isatty()

    def on_epoch_end(self, history: History, entry: dict[str, Any]) -> None:
        if not self.silent:
            try:
                print(epoch_line(entry), flush=True)
            except (OSError, ValueError):  # ValueError: standard output was closed
                self.silent = True


def progress_of(callbacks: Sequence[Callback], wanted: bool | None) -> list[Callback]:
    """The callback that shows the progress of a training, in a list; the list is empty if none should.

    callbacks: those of the trainer. wanted: True or False; None: unless one of the callbacks shows progress already.

    Raises OptionError for anything else.
    """
    if wanted is None:
        shown = (
            isinstance(c, ProgressBar) or (isinstance(c, EpochLines) and not c.silent) for c in callbacks
        )
        wanted = not any(shown)
    return [ProgressBar()] if check_flag("progress", wanted) else []
