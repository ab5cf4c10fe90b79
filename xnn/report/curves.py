"""The numbers of all epochs, by name."""

from __future__ import annotations

import copy
from numbers import Real
from typing import Any

from xnn.optimizers import Optimizer
from xnn.report.run import Run, rounded

__all__ = ["add_rates", "curves_of"]

_MOST = 600  # points of a curve
_NOT_DRAWN = {"epoch", "seconds"}


def curves_of(run: Run) -> dict[str, Any] | str:
    """The epochs and the single numbers of each, or why there are none.

    {"epoch": [1, 2, ...], "series": {"loss": [...], ...}, "thinned": whether only some epochs are there}. Where a
    number is missing, or is NaN or infinite, there is None.
    """
    if not run.epochs:
        return run.missing.get("curves", "No epoch was finished.")
    known = _with_rates(run)
    every = -(-len(known) // _MOST)
    epochs = known[::every]
    if epochs[-1] is not known[-1]:
        epochs = [*epochs, known[-1]]
    names = dict.fromkeys(name for entry in epochs for name, value in entry.items() if _is_single(value))
    series = {
        name: [rounded(entry[name], 6) if _is_single(entry.get(name)) else None for entry in epochs]
        for name in names
        if name not in _NOT_DRAWN
    }
    numbers = [int(entry.get("epoch", place)) for place, entry in enumerate(epochs, 1)]
    return {"epoch": numbers, "series": series, "thinned": every > 1}


def add_rates(run: Run, optimizer: Optimizer, steps: int) -> None:
    """Add the learning rate at the end of each epoch, as a log has it: a schedule gives it for any step.

    optimizer: with the schedule of the whole run. steps: of an epoch.

    Rates that were lowered on the way (--on-nan lower-lr) are not known: those in checkpoints are shown alone.
    """
    if optimizer.rate_factor != 1.0 or optimizer.minimizes:
        return
    asked = copy.copy(optimizer)
    for place, entry in enumerate(run.epochs):
        asked.steps = entry["epoch"] * steps
        run.epochs[place] = {**entry, "learning_rate": asked.rate}


def _with_rates(run: Run) -> list[dict[str, Any]]:
    """The numbers of each epoch, with the learning rates that the checkpoints hold if no epoch has one."""
    rates = {snapshot.epoch: snapshot.rate for snapshot in run.snapshots if snapshot.rate is not None}
    if not rates or any("learning_rate" in entry for entry in run.epochs):
        return run.epochs
    return [
        {**entry, "learning_rate": rates[epoch]} if (epoch := entry.get("epoch")) in rates else entry
        for entry in run.epochs
    ]


def _is_single(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
