"""The numbers of all epochs, by name."""

from __future__ import annotations

from numbers import Real
from typing import Any

from xnn.report.run import Run, rounded

__all__ = ["curves_of"]

_MOST = 600  # points of a curve
_NOT_DRAWN = {"epoch", "seconds"}


def curves_of(run: Run) -> dict[str, Any] | str:
    """The epochs and the single numbers of each, or why there are none.

    {"epoch": [1, 2, ...], "series": {"loss": [...], ...}, "thinned": whether only some epochs are there}. Where a
    number is missing, or is NaN or infinite, there is None.
    """
    if not run.epochs:
        return run.missing.get("curves", "No epoch was finished.")
    every = -(-len(run.epochs) // _MOST)
    epochs = run.epochs[::every]
    if epochs[-1] is not run.epochs[-1]:
        epochs = [*epochs, run.epochs[-1]]
    names = dict.fromkeys(name for entry in epochs for name, value in entry.items() if _is_single(value))
    series = {
        name: [rounded(entry[name], 6) if _is_single(entry.get(name)) else None for entry in epochs]
        for name in names
        if name not in _NOT_DRAWN
    }
    numbers = [int(entry.get("epoch", place)) for place, entry in enumerate(epochs, 1)]
    return {"epoch": numbers, "series": series, "thinned": every > 1}


def _is_single(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
