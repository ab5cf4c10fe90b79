"""Everything that the page of a report shows, as JSON values."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from xnn import __version__
from xnn.report.classes import classes_of_run
from xnn.report.curves import curves_of
from xnn.report.layers import layers_of
from xnn.report.run import Run
from xnn.report.snapshots import snapshots_of

__all__ = ["gather"]


def gather(runs: Sequence[Run], budget: int) -> dict[str, Any]:
    """What the page shows of some runs. A part that cannot be shown is a sentence that says why.

    budget: about how many bytes pictures and examples may have, of all runs together.
    """
    each = budget // max(1, len(runs))
    return {
        "made": {
            "xnn": __version__,
            "Python": platform.python_version(),
            "NumPy": np.__version__,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "runs": [_of_run(run, each) for run in runs],
    }


def _of_run(run: Run, budget: int) -> dict[str, Any]:
    return {
        "name": run.name,
        "notes": run.notes,
        "curves": curves_of(run),
        "layers": layers_of(run),
        "snapshots": snapshots_of(run, budget // 2),
        "classes": classes_of_run(run, budget // 2),
        "facts": {
            group: {key: _text(value) for key, value in rows.items()} for group, rows in run.facts.items()
        },
        "command": run.command,
        "no_command": run.missing.get("command", "The command is not known."),
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    )
