"""What a training run did: numbers of each epoch, a digest of all losses, the learning curve; and its progress."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import IO, Any, Never, cast

import numpy as np

from xnn.errors import OptionError
from xnn.files import StandardError, check_matplotlib, notice, save_figure
from xnn.graph.habits import Habitual
from xnn.layers.resumable_sha256 import ResumableSHA256
from xnn.options import explained_call, shown

__all__ = ["Bar", "History", "PrintedLines", "epoch_line", "numbers_line"]


@dataclass(repr=False)
class History(Habitual):
    """What one call of `Trainer.fit` did; `fit` returns it.

    epochs: a dict for each finished epoch: "epoch" (counted from 1), "loss", the metrics, and with validation data
        "val_loss" and so on. Means over the epoch's samples.
    steps, samples: how many training steps were taken, and over how many samples.
    seconds: the time they took; validation is not counted.
    interrupted: whether Ctrl-C ended the run.
    stopped: the reason why a callback ended it, "" if none did.
    error: the exception that ended it, "" if none did.
    lowered: a dict for each time that the learning rate was halved after a divergence
        (`callbacks.Checkpoint(on_nan="lower-lr")`): the "step" from which it went on, "rate_factor" and
        "learning_rate" from there on, and "because", the fault.
    plan: how the run was executed: backend, kernels, dtype, threads and so on.
    first_step_seconds: the time until the first step was done, with compiling; on a GPU up to 100 steps, which are
        handed over at once. For LBFGS it is the time of making the program alone.
    resumed: whether the fit went on from a checkpoint. All numbers are then those of the whole run.

    `history["val_loss"]` is the list of one number of all epochs. Copies and pickles of a history have all its
    numbers, but take no further steps.

        >>> import numpy as np
        >>> from xnn import Sequential, Trainer, layers, losses, optimizers
        >>> x = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(64, 1)
        >>> trainer = Trainer(Sequential(layers.Dense(1, 1)), losses.MSE(), optimizers.SGD(0.1))
        >>> history = trainer.fit((x, 2.0 * x), epochs=30, progress=False)
        >>> len(history.epochs), history.steps, history.samples
        (30, 60, 1920)
        >>> history["loss"][-1] < history["loss"][0]
        True
    """

    _habits = "history"
    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    stopped: str = ""
    error: str = ""
    plan: dict[str, Any] = field(default_factory=dict)
    first_step_seconds: float = 0.0
    resumed: bool = False
    lowered: list[dict[str, Any]] = field(default_factory=list)
    _digest: Any = field(default_factory=ResumableSHA256, repr=False)

    def __getitem__(self, name: str) -> list[Any]:
        """One number of every epoch: history["val_loss"]. Raises KeyError if the epochs have none of this name."""
        if not isinstance(name, str):
            raise OptionError(
                f"a history has no position {shown(name)}: history.epochs has a dict for each epoch, and "
                'history["loss"] is the list of one number of all epochs'
            )
        if self.epochs and name not in self.epochs[0]:
            raise KeyError(f"{name}: the history has {', '.join(self.epochs[0])}")
        return [entry[name] for entry in self.epochs]

    def __contains__(self, name: object) -> bool:
        """Whether the epochs have a number of this name."""
        return bool(self.epochs) and name in self.epochs[0]

    def __iter__(self) -> Never:
        raise OptionError(
            'a history is not a list: history.epochs has a dict for each epoch, and history["loss"] is the list of '
            "one number of all epochs"
        )

    def add(self, losses: np.ndarray, samples: int, seconds: float) -> None:
        """Count training steps.

        losses: the loss of each step, on the host.
        samples: how many samples they trained on, together.
        seconds: the time they took, together.
        """
        if isinstance(self._digest, str):
            raise OptionError(
                "this history is a copy or was unpickled, and takes no further steps: fit returns a new one"
            )
        self._digest.update(np.asarray(losses, dtype="<f8").tobytes())
        self.steps += len(losses)
        self.samples += samples
        self.seconds += seconds

    @property
    def losses_sha256(self) -> str:
        """The SHA-256 of the losses of all steps so far, as little-endian float64, in order."""
        return self._digest if isinstance(self._digest, str) else str(self._digest.hexdigest())

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles keep. The state of hashlib's digest cannot be kept, so its result so far is."""
        return {**self.__dict__, "_digest": self.losses_sha256}

    def state(self) -> dict[str, Any]:
        """The numbers of a fit that goes on, for a checkpoint."""
        kept = ("epochs", "steps", "samples", "seconds", "stopped", "first_step_seconds", "lowered")
        return {**{name: getattr(self, name) for name in kept}, "digest": self._digest.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take in the numbers of a checkpoint."""
        digest = ResumableSHA256.from_state(state.pop("digest"))
        kinds = {"epochs": list, "steps": int, "samples": int, "stopped": str, "lowered": list}
        kinds |= dict.fromkeys(("seconds", "first_step_seconds"), float)
        wrong = [name for name, kind in kinds.items() if type(state[name]) is not kind]
        if (
            wrong
            or state.keys() != kinds.keys()
            or not all(type(entry) is dict for entry in (*state["epochs"], *state["lowered"]))
        ):
            raise ValueError(f"the history has {', '.join(wrong) or 'epochs'} of another kind")
        vars(self).update(state, _digest=digest, resumed=True)

    @property
    def ms_per_step(self) -> float:
        """Milliseconds a training step."""
        return 1000.0 * self.seconds / self.steps if self.steps else 0.0

    @property
    def samples_per_second(self) -> float:
        """Training samples a second."""
        return self.samples / self.seconds if self.seconds else 0.0

    def __repr__(self) -> str:
        many = f"{len(self.epochs)} epoch{'' if len(self.epochs) == 1 else 's'}"
        lines = [f"<History: {many}, {self.steps:,} steps, {self.samples:,} samples, {self.seconds:.2f} s"]
        if self.epochs:
            lines.append(epoch_line(self.epochs[-1]))
        ends = ("interrupted", self.interrupted), ("stopped", self.stopped), ("error", self.error)
        lines += [how if why is True else f"{how}: {why[:200]}" for how, why in ends if why]
        return "\n ".join(lines) + ">"

    @explained_call()
    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the learning curves: a panel for the loss and each metric, of training and validation.

        path: the file to write, PNG or SVG by its ending. Default None: no file is written, and the matplotlib
            Figure is returned, which Jupyter shows.

        Raises OptionError if the file cannot be written, MissingExtraError without matplotlib.
        """
        check_matplotlib()
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
        if path is None:
            return figure
        save_figure(figure, path)
        return None


def epoch_line(entry: dict[str, Any]) -> str:
    """An entry of History.epochs in one line: epoch 3  loss 0.1234  accuracy 0.9700."""
    return f"epoch {entry.get('epoch', '')}  {numbers_line(entry)}"


def numbers_line(entry: dict[str, Any]) -> str:
    """The single numbers of an epoch in one line. Matrices, and lists of a number for each class, are left out."""
    return "  ".join(f"{name} {value:.4f}" for name, value in entry.items() if isinstance(value, float))


class PrintedLines:
    """Progress in a file, a pipe or a CI log: a line on standard error after each epoch."""

    def update(self, epoch: str, steps: int, numbers: dict[str, Any], speed: str) -> None:
        """Show how far training is.

        epoch: such as "3/10". steps: how many are done in all. numbers: of the epoch so far. speed: as text.
        """

    def print(self, line: str) -> None:
        """Print a line about an epoch."""
        notice(line)

    def stop(self) -> None:
        """Called when training ends."""


class Bar(PrintedLines):
    """Shows progress on a terminal: a bar that moves, and above it a line for each epoch that is done."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=Console(file=cast(IO[str], StandardError())),
        )
        self._progress.start()
        self._task = self._progress.add_task("starting", total=steps, numbers="")

    def update(self, epoch: str, steps: int, numbers: dict[str, Any], speed: str) -> None:
        shown = f"{numbers_line(numbers)}  {speed}"
        self._progress.update(self._task, completed=steps, description=f"epoch {epoch}", numbers=shown)

    def print(self, line: str) -> None:
        self._progress.console.print(line, highlight=False)

    def stop(self) -> None:
        self._progress.stop()
