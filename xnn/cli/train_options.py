"""The options of `xnn train` beside those that determine a run: how it is executed, its files, its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from xnn.cli.options import FILE, backend_option, device_option, numerics_option
from xnn.runs.names import KERNELS, MOST_THREADS, thread_count

__all__ = ["train_options"]


def _threads(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "auto":
        return value
    number = thread_count(value)
    if number is None:
        raise click.BadParameter(f"{value!r} is neither a positive integer up to {MOST_THREADS} nor auto")
    return number


_HOW_IT_RUNS = (
    click.option(
        "--epochs",
        type=click.IntRange(1),
        default=3,
        show_default=True,
        metavar="N",
        help="How many times to go through the training data.",
    ),
    click.option(
        "--patience",
        type=click.IntRange(1),
        metavar="N",
        help="Stop after N epochs without a lower validation loss, and keep the weights of the best epoch.",
    ),
    backend_option,
    device_option,
    numerics_option,
    click.option(
        "--threads",
        callback=_threads,
        metavar="N|auto",
        help="Threads of a matrix product (BLAS); auto measures which number is fastest. Default: OMP_NUM_THREADS, "
        "else by the network's size (see xnn info).",
    ),
    click.option(
        "--kernels",
        type=click.Choice(KERNELS),
        default="auto",
        show_default=True,
        help="The code that runs a step: plain ops, or faster kernels for them; compiled needs the extra fast.",
    ),
    click.option(
        "--workers",
        type=click.Choice(("none", "auto", "mpi")),
        default="auto",
        show_default=True,
        help="Train together with the other processes that mpirun, mpiexec or srun has started (extra mpi). auto: if "
        "there are any; none: each by itself.",
    ),
)

_FILES = (
    click.option(
        "--save", type=FILE, metavar="FILE", help="Save the model as FILE, a name that ends in .safetensors."
    ),
    click.option(
        "--plot", type=FILE, metavar="FILE", help="Draw the learning curves into a .png or .svg file."
    ),
    click.option(
        "--report",
        type=FILE,
        metavar="FILE",
        help="Write a report as one .html file: curves, weights, mistakes on the test set, plan.",
    ),
    click.option(
        "--log", type=FILE, metavar="FILE", help="Write one JSON object per epoch; an older log is replaced."
    ),
    click.option(
        "--tensorboard",
        type=FILE,
        metavar="DIR",
        help="Write the numbers of each epoch into DIR, for TensorBoard.",
    ),
    click.option(
        "--gradient-norm",
        is_flag=True,
        help="Add the norm of the gradients of each epoch's last step to the log, the curves and the report.",
    ),
    click.option("--record", type=FILE, metavar="FILE", help="Write digests of every step, for xnn verify."),
)

# For a training that nobody watches: it is killed, runs out of time, or ends with NaN.
_UNWATCHED = (
    click.option(
        "--checkpoint",
        type=FILE,
        metavar="DIR",
        help="Write checkpoints into the folder DIR, from which --resume goes on after a crash.",
    ),
    click.option(
        "--every",
        default="1epoch",
        show_default=True,
        metavar="N",
        help="How often: a number of epochs or steps, such as 500steps, or a time such as 10min or 3h50m.",
    ),
    click.option(
        "--keep",
        type=click.IntRange(1),
        default=3,
        show_default=True,
        metavar="N",
        help="How many are kept, and the best.",
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Go on from the newest checkpoint in DIR; begin afresh if there is none.",
    ),
    click.option(
        "--allow-different-plan",
        is_flag=True,
        help="Resume also where fast numerics would give other bits, as with other threads.",
    ),
    click.option(
        "--on-nan",
        type=click.Choice(["stop", "lower-lr"]),
        default="stop",
        show_default=True,
        help="What to do when a number becomes NaN: stop, or go back to the last checkpoint and on with half the "
        "learning rate, at most three times.",
    ),
    click.option(
        "--time-limit",
        metavar="TIME",
        help="End so early that the last checkpoint, test and --save are done within this time from the start of the "
        "command, such as 3h50m; the exit code is 0.",
    ),
)

_PRINTED = (
    click.option("--json", "as_json", is_flag=True, help="Print nothing but the result, as one JSON object."),
    click.option("--quiet", is_flag=True, help="Print neither progress nor summary."),
)


def train_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that only `xnn train` has."""
    for option in reversed((*_HOW_IT_RUNS, *_FILES, *_UNWATCHED, *_PRINTED)):
        command = option(command)
    return command
