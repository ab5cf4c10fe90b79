"""Shows a training in a notebook: a line that changes, and below it the learning curves, which grow."""

from __future__ import annotations

import math
import sys
import time
from html import escape
from typing import Any

from xnn.callbacks.curves import curves
from xnn.history import History, PrintedLines, epoch_line, numbers_line

__all__ = ["NotebookDisplay", "in_notebook"]

_PAUSE = 0.2  # seconds between two pictures, at least


def in_notebook() -> bool:
    """Whether this program runs in the kernel of a notebook: Jupyter's, VS Code's, Colab's or JupyterLite's.

    IPython is asked if it is imported, and is never imported for that: a kernel has done so before any cell runs.
    IPython in a terminal has no kernel, and is a terminal like others.
    """
    ask = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return getattr(ask() if callable(ask) else None, "kernel", None) is not None


class NotebookDisplay(PrintedLines):
    """One output of a notebook's cell, which is replaced as the training goes on.

    It is HTML with an SVG picture; where only text can be shown, as in Jupyter's console, it is the line alone.

    history: that of the training.
    epochs: how many it has.
    steps: how many steps an epoch has.
    """

    def __init__(self, history: History, epochs: int, steps: int) -> None:
        self._history, self._steps, self._all = history, steps, epochs * steps
        self._done, self._before = 0, len(history.epochs) * steps  # a resumed training begins later
        self._handle: Any = None
        self._began, self._shown = time.monotonic(), -math.inf

    def update(self, epoch: str, steps: int, numbers: dict[str, Any], speed: str) -> None:
        line = f"epoch {epoch}  {numbers_line(numbers)}  {speed}{self._left(steps)}"
        self._done = steps
        self._show(line, {**numbers, "epoch": steps / self._steps})

    def print(self, line: str) -> None:
        self._show(line)

    def stop(self) -> None:
        epochs, why = self._history.epochs, self._history.stopped
        ends = why or ("interrupted" if self._history.interrupted else "")
        line = epoch_line(epochs[-1]) if epochs else "no epoch was finished"
        self._show(f"{line}  ({ends})" if ends else line, last=True)

    def _left(self, steps: int) -> str:
        """The time left as text, "" if the steps so far say nothing about it."""
        done = steps - self._before
        if done <= 0:
            return ""
        minutes, seconds = divmod(round((time.monotonic() - self._began) / done * (self._all - steps)), 60)
        return f"  {minutes}:{seconds:02} left"

    def _show(self, line: str, begun: dict[str, Any] | None = None, last: bool = False) -> None:
        """Replace the output, unless that was done a moment ago. It cannot end the training.

        begun: the numbers of the epoch that is not over. last: whether it is the last time, which is never left out.
        """
        now = time.monotonic()
        if now - self._shown < _PAUSE and not last:
            return
        self._shown = now
        bar = "" if last else f'<progress value="{self._done}" max="{self._all}"></progress> '
        picture = curves(self._history.epochs, begun)
        text = f'<div style="font-family:monospace;white-space:pre-wrap">{bar}{escape(line)}</div>'
        bundle = {"text/plain": line, "text/html": f"<div>{text}{picture}</div>"}
        try:
            if self._handle is None:
                from IPython.display import display

                self._handle = display(bundle, raw=True, display_id=True)
            else:
                self._handle.update(bundle, raw=True)
        except (
            Exception
        ):  # the notebook is gone: the training goes on, and the next picture is an output of its own
            self._handle = None
