"""What a report knows of a run: numbers of its epochs, model, checkpoints, samples, and words about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xnn.layers import Rescale, Sequential
from xnn.losses import Loss

__all__ = ["Examples", "Run", "Snapshot", "rounded"]


@dataclass(frozen=True)
class Snapshot:
    """The weights of a run at one step.

    step, epoch: how many were done; -1 if unknown.
    name: where it comes from, such as the file's name.
    load: returns the arrays by the names of the model's parameters and buffers, on the host.
    rate: the learning rate, if the step is the last one of its epoch; None if unknown.
    """

    step: int
    epoch: int
    name: str
    load: Callable[[], Mapping[str, np.ndarray]]
    rate: float | None = None


@dataclass(frozen=True)
class Examples:
    """Samples on which a model is judged.

    x: samples (n, ...), on the host. y: their targets, labels (n,) or numbers (n, columns).
    name: of the data, in words. image: height and width of a sample that is an image, else None.
    columns: the names of the features; empty if they have none.
    """

    x: np.ndarray
    y: np.ndarray
    name: str
    image: tuple[int, int] | None = None
    columns: tuple[str, ...] = ()


@dataclass
class Run:
    """A run, as far as it is known.

    name: shown in the report.
    epochs: the numbers of each epoch, as `History.epochs` holds them.
    model: with the weights that the run ended with; None if unknown. trained: whether its weights are those.
    loss: for gradients; None if unknown. targets: makes labels into what the loss takes.
    snapshots: the weights at some steps, in order.
    examples: samples on which the model is judged; None if there are none.
    task: "classification" or "regression". labels: the names of class 0, 1, ...; empty if they have none.
    scaling: the layer that standardizes the targets of `examples` into those that the model learned; None if it
        learned them as they are.
    facts: groups of (what, how much) about the run, by the group's title. command: the command that repeats the run.
    missing: why something cannot be shown, and how to get it, by the name of the part: curves, layers, snapshots,
        classes, command.
    notes: other sentences that the reader should see.
    """

    name: str
    epochs: list[dict[str, Any]] = field(default_factory=list)
    model: Sequential | None = None
    trained: bool = True
    loss: Loss | None = None
    targets: Callable[[np.ndarray], np.ndarray] = lambda y: y
    snapshots: list[Snapshot] = field(default_factory=list)
    examples: Examples | None = None
    task: str = "classification"
    labels: tuple[Any, ...] = ()
    scaling: Rescale | None = None
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    command: str = ""
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def rounded(value: float, digits: int = 4) -> float | None:
    """A number with few digits, to be written in few characters. NaN and infinities become None.

    >>> rounded(0.123456), rounded(float("nan"))
    (0.1235, None)
    """
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None
