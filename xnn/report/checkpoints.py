"""Snapshots of weights in the files of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xnn.callbacks import checkpoints_in
from xnn.errors import CorruptFileError, DataNotFoundError
from xnn.report.run import Snapshot
from xnn.training.resuming import Checkpoint, read

__all__ = ["read_folder", "snapshot_of", "weights_in"]

_MODEL = "model."


def weights_in(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """The arrays of the model in a checkpoint, by the names that they have in the model."""
    return {
        name.removeprefix(_MODEL): array
        for name, array in checkpoint.tensors.items()
        if name.startswith(_MODEL)
    }


def read_folder(folder: Path) -> tuple[Checkpoint | None, list[Snapshot], list[str]]:
    """The newest checkpoint of a folder, the snapshots of all, in order, and a note for each that is damaged.

    The best one is left out where another is of the same step. Raises DataError for a folder that cannot be read.
    """
    newest: Checkpoint | None = None
    found: dict[int, Snapshot] = {}
    notes = []
    for path in checkpoints_in(folder):
        try:
            checkpoint = read(path)
            step, epoch = int(checkpoint.about["step"]), int(checkpoint.about["epoch"])
        except (CorruptFileError, DataNotFoundError, KeyError, TypeError, ValueError) as error:
            notes.append(f"A checkpoint is left out: {error}")
            continue
        if newest is None or step > int(newest.about["step"]):
            newest = checkpoint
        name = "the best epoch" if path.name.startswith("best") else ""
        found.setdefault(step, Snapshot(step, epoch, name, partial(_load, path), _rate(checkpoint.about)))
    return newest, [found[step] for step in sorted(found)], notes


def snapshot_of(checkpoint: Checkpoint) -> Snapshot:
    """The weights of one checkpoint. Raises CorruptFileError for a description without step and epoch."""
    step, epoch = (checkpoint.about.get(name) for name in ("step", "epoch"))
    if type(step) is not int or type(epoch) is not int:
        raise CorruptFileError(f"{checkpoint.path} does not say its step: use an older checkpoint")
    rate = _rate(checkpoint.about)
    return Snapshot(step, epoch, checkpoint.path.name, lambda: weights_in(checkpoint), rate)


def _rate(about: Mapping[str, Any]) -> float | None:
    """The learning rate at the end of an epoch; None inside an epoch, and where the checkpoint does not say it.

    Of a schedule it is what the optimizer asked for last.
    """
    try:
        optimizer, fit = about["state"]["optimizer"], about["fit"]
        chosen = optimizer["_learning_rate"]
        last = chosen if isinstance(chosen, (int, float)) else optimizer["_rate"]
        rate = float(last * optimizer["rate_factor"])
        return rate if fit is not None and not fit["batch"] and last >= 0 else None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _load(path: Path) -> Mapping[str, np.ndarray]:
    return weights_in(read(path))
