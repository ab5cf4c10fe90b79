"""The report of a run: one HTML file with curves, weights, mistakes, calibration, architecture and plan.

`Run` holds what is known of a run, `gather` computes what the page shows of it, and `write` makes the page. Reading
logs, checkpoints and models from files is `xnn.cli`'s. `plot_confusion`, `plot_weights` and `plot_samples` draw by
matplotlib.
"""

from xnn.report.gather import gather
from xnn.report.page import page_of, write
from xnn.report.plots import plot_confusion, plot_samples, plot_weights
from xnn.report.run import Examples, Run, Snapshot

__all__ = [
    "Examples",
    "Run",
    "Snapshot",
    "gather",
    "page_of",
    "plot_confusion",
    "plot_samples",
    "plot_weights",
    "write",
]
