"""What `xnn train` prints at its end: the results in a few lines, and the files that it wrote."""

from __future__ import annotations

from typing import Any

from xnn.backends.kernels.cuda import persistent_rule
from xnn.cli.surroundings import say
from xnn.history import History
from xnn.runs.digests import Recorder

__all__ = ["print_files", "print_summary"]


def print_summary(
    result: dict[str, Any],
    history: History,
    save: str | None,
    tested: dict[str, float],
    checkpoint: str | None = None,
) -> None:
    """Print the results of a training in a few lines. save: the file of the model.

    checkpoint: the folder of checkpoints. Both are None if there is none.
    """
    if history.interrupted:
        say(
            f"interrupted after {history.steps:,} steps, {len(history.epochs)} whole epochs; "
            + (f"{save} holds the model as it is" if save else "the model is not saved (--save FILE saves)")
            + (f"; --checkpoint {checkpoint} --resume goes on" if checkpoint else "")
        )
    for entry in history.lowered:
        rate = f"{entry['learning_rate']:g}, halved"
        say(f"from step {entry['step']:,} on the learning rate is {rate}: {entry['because']}")
    kept = result["kept_epoch"]
    if history.stopped:
        say(f"stopped: {history.stopped}")
    if kept < len(history.epochs):
        say(f"the model is as it was after epoch {kept}, the best of {len(history.epochs)}")
    if "average" in result["run"]:
        say(
            "tested and saved: the moving average of the weights; the numbers of each epoch are those of the weights"
        )
    entry = history.epochs[kept - 1] if kept else {}
    shown = {f"validation {k[4:]}": v for k, v in entry.items() if k.startswith("val_")}
    shown |= {f"test {k}": v for k, v in tested.items()}
    say(
        f"{result['dataset']} ({result['task']}) on {result['backend']}: "
        + ", ".join(f"{k} {v:.4f}" for k, v in shown.items())
    )
    say(
        f"{result['ms_per_step']:.3f} ms/step, {result['samples_per_second']:,.0f} samples/s, "
        f"{result['peak_rss_mb']:.0f} MB"
        + (f", {result['peak_device_mb']:.0f} MB of the GPU's" if "peak_device_mb" in result else "")
    )
    if note := persistent_rule.said_of(history.plan):
        say(note)
    digits = None if result["numerics"] == "exact" else 16
    say(
        f"{result['numerics']} numerics; SHA-256 of the weights {result['weights_sha256'][:digits]}, of the losses "
        f"{result['losses_sha256'][:digits]}: the same run gives the same digests"
    )


def print_files(result: dict[str, Any], written: dict[str, str], recorder: Recorder | None) -> None:
    """Print which files a training wrote."""
    if "save" in written:
        say(f"model: {written['save']}")
    if "plot" in written:
        say(f"learning curves: {written['plot']}")
    if "report" in written:
        say(f"report: {written['report']}")
    if "record" in written and recorder:
        fast = (
            "; in fast numerics it verifies only under the same plan" if result["numerics"] == "fast" else ""
        )
        say(f"record of {recorder.steps:,} steps: {written['record']}{fast}")
