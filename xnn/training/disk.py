"""Compares what a training will write with the room on its disks, before the first step."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xnn.callbacks import EarlyStopping
from xnn.errors import DiskError
from xnn.files import as_path, notice
from xnn.layers import Parameter

__all__ = ["checkpoint_size", "compare_room", "say_if_short"]

_TEXT = 20_000  # bytes by which the texts of a checkpoint, such as its history, may grow


def say_if_short(fit: Any, epochs: int, text: str, tensors: Mapping[str, Any]) -> None:
    """Say in a line if checkpoints, the log and the record of a fit will need more room than there is.

    text, tensors: what a checkpoint would hold now. Raises DiskError if not even one checkpoint has room.
    """
    size = checkpoint_size(fit, epochs, text, tensors) if fit.checkpoints else 0
    needs: dict[Path, int] = {}
    for watcher in fit.watchers:
        needs |= {as_path(p): n for p, n in watcher.disk_use(epochs, fit.steps_per_epoch).items()}
    advice = "make room, or choose other places"
    for checkpoint in fit.checkpoints:
        place = _place(checkpoint.folder)
        if size > (free := shutil.disk_usage(place).free):
            raise DiskError(
                f"cannot write checkpoints into {checkpoint.folder}: one has about {_shown(size)}, and "
                f"{_shown(free)} are free there; make room, or choose another folder"
            )
        many = checkpoint.keep + 2  # the best one, and one that is being written
        needs[checkpoint.folder] = many * size
        if checkpoint.keep > 1:
            advice = (
                f"make room, choose other places, or keep fewer than {checkpoint.keep} checkpoints (--keep)"
            )
    compare_room(needs, advice)


def checkpoint_size(fit: Any, epochs: int, text: str, tensors: Mapping[str, Any]) -> int:
    """About how many bytes a checkpoint will have once all that comes with the first steps is there."""
    trainer, optimizer = fit.trainer, fit.trainer.optimizer
    weights: dict[Parameter, int] = {p: p.nbytes for p in trainer.model.parameters()}
    # L-BFGS keeps the gradients of about one evaluation in each iteration, in float64.
    arrays = 2 * (epochs + 2) if optimizer.minimizes else optimizer.arrays
    coming = sum(
        size * (arrays + (optimizer.average is not None))
        for p, size in weights.items()
        if not p.frozen and p not in optimizer.state
    )
    for watcher in fit.watchers:
        if isinstance(watcher, EarlyStopping) and watcher.restore_best and not watcher.best_epoch:
            coming += sum(weights.values())
    return len(text) + _TEXT + coming + sum(map(_bytes_of, tensors.values()))


def _bytes_of(array: Any) -> int:
    """The bytes of an array's elements, on whatever device they are."""
    kind = str(array.dtype).rpartition(".")[2]  # array-api-strict has dtypes of its own
    return math.prod(map(int, array.shape)) * int(np.dtype(kind).itemsize)


def compare_room(needs: Mapping[Path, int], advice: str) -> None:
    """Print a line for each disk that has less room than files will need. Files that are there already count.

    needs: the bytes that each file, or all files in a folder, will have. Pipes and devices are passed over. advice:
        what to do.
    """
    disks: dict[int, list[Path]] = {}
    for path in needs:
        if path.is_file() or path.is_dir() or not path.exists():
            disks.setdefault(os.stat(_place(path)).st_dev, []).append(path)
    for paths in disks.values():
        free = shutil.disk_usage(_place(paths[0])).free
        missing = {path: needs[path] - _size_of(path) for path in paths}
        if sum(missing.values()) > free:
            files = ", ".join(f"{_shown(needs[path])} of {path}" for path in paths)
            notice(
                f"xnn: the disk will be full before the training ends: {_shown(free)} are free, and "
                f"{_shown(sum(missing.values()))} are needed for {files}; {advice}"
            )


def _place(path: Path) -> Path:
    """A path, or the nearest folder above it that is there."""
    path = path.absolute()
    return path if path.exists() else _place(path.parent)


def _size_of(path: Path) -> int:
    """The bytes of a file, or of the checkpoints in a folder, which give way to new ones."""
    files: Iterable[Path] = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _shown(size: int) -> str:
    """
    >>> _shown(0), _shown(1_250_000), _shown(3_200_000_000)
    ('0 kB', '1.2 MB', '3.2 GB')
    """
    for unit, least in (("GB", 1e9), ("MB", 1e6)):
        if size >= least:
            return f"{size / least:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"
