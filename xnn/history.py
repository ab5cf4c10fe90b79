"""What a training run did: numbers per epoch, digests, and the learning curve."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xnn.errors import MissingExtraError
from xnn.files import check_writable, write_atomically

__all__ = ["History", "check_plot", "save_figure"]


@dataclass
class History:
    """The record of one fit.

    epochs: one entry an epoch, with loss, the metrics, val_loss, ... (means over the samples seen).
    steps, samples, seconds: done in training, validation not counted. interrupted: whether Ctrl-C ended it.
    stopped: why a callback ended it, or ""; error: the error that did, or "".
    losses_sha256: over every step's loss as little-endian float64, in order.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    stopped: str = ""
    error: str = ""
    plan: dict[str, Any] = field(default_factory=dict)
    _digest: Any = field(default_factory=hashlib.sha256, repr=False)

    def __getitem__(self, name: str) -> list[Any]:
        """One column: history["val_loss"]. Raises KeyError for a name the epochs do not have."""
        if self.epochs and name not in self.epochs[0]:
            raise KeyError(f"{name}: the history has {', '.join(self.epochs[0])}")
        return [entry[name] for entry in self.epochs]

    def add(self, losses: np.ndarray, samples: int, seconds: float) -> None:
        """Count steps: their losses on the host, their samples together, the time they took."""
        self._digest.update(np.asarray(losses, dtype="<f8").tobytes())
        self.steps += len(losses)
        self.samples += samples
        self.seconds += seconds

    @property
    def losses_sha256(self) -> str:
        """The digest so far."""
        return str(self._digest.hexdigest())

    @property
    def ms_per_step(self) -> float:
        """Milliseconds a training step."""
        return 1000.0 * self.seconds / self.steps if self.steps else 0.0

    @property
    def samples_per_second(self) -> float:
        """Training samples a second."""
        return self.samples / self.seconds if self.seconds else 0.0

    def plot(self, path: str | os.PathLike[str]) -> None:
        """The learning curves as a PNG or SVG file. Raises MissingExtraError without matplotlib."""
        check_plot(path)
        from matplotlib.figure import Figure

        curves = [
            n for n in (self.epochs[0] if self.epochs else ()) if not n.startswith("val_") and n != "epoch"
        ]
        names = [n for n in curves if all(isinstance(v, float) for v in self[n])] or ["loss"]
        figure = Figure(figsize=(5.0 * len(names), 3.8), layout="constrained")
        for position, name in enumerate(names):
            axes = figure.add_subplot(1, len(names), position + 1)
            for column, label in ((name, "training"), (f"val_{name}", "validation")):
                points = [(e["epoch"], e[column]) for e in self.epochs if column in e]
                if points:
                    axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
            axes.set_xlabel("epoch")
            axes.set_ylabel(name)
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
        save_figure(figure, path)


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """A matplotlib figure to a PNG or SVG file, which is there whole or not at all."""
    import io

    content = io.BytesIO()
    figure.savefig(content, format=os.fspath(path).rsplit(".", 1)[-1].lower(), dpi=130)
    write_atomically(path, content.getvalue())


def check_plot(path: str | os.PathLike[str]) -> None:
    """Raise now what plot would raise later: OptionError for the path, MissingExtraError for matplotlib."""
    check_writable(path, (".png", ".svg"))
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError('plots need matplotlib: pip install ".[plot]"') from error
