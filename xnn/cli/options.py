"""What determines a run, as the command line spells it: the options that train and verify have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from xnn.errors import OptionError

__all__ = ["LOSS_NAMES", "OPTIMIZER_NAMES", "given_options", "run_options", "widths", "with_table"]

# The keys of OPTIMIZERS and LOSSES in xnn.runs.spec, which help does not wait for.
OPTIMIZER_NAMES = ("sgd", "adam", "adamw", "nadam", "rmsprop", "adagrad", "adadelta", "lion", "lbfgs")
LOSS_NAMES = ("cross-entropy", "bce", "focal", "hinge", "mse", "l1", "huber")

_DATASET = """mnist, fashion-mnist, digits, boston, synthetic, or a .npz or .csv file. Default: mnist, and
synthetic if that can be had neither from disk nor from the network."""


def widths(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """100,200 -> (100, 200); an empty text is no hidden layer."""
    try:
        numbers = tuple(int(part) for part in value.split(",")) if value.strip() else ()
    except ValueError:
        numbers = (0,)
    if any(number < 1 for number in numbers):
        raise click.BadParameter(f"{value!r} is not a list of positive integers such as 100,200")
    return numbers


_RUN_OPTIONS = (
    click.option("--dataset", metavar="NAME", help=_DATASET),
    click.option(
        "--model",
        metavar="FILE",
        help="The network as a .toml file of layers, in place of --hidden, --activation and --dropout.",
    ),
    click.option(
        "--data-home",
        metavar="DIR",
        help="Where data files are; default: XNN_DATA_HOME, then the user's cache.",
    ),
    click.option(
        "--target",
        multiple=True,
        metavar="NAME",
        help="A table's target: a column's name, or its number from 0; default: the last. Several times for a "
        "regression on several.",
    ),
    click.option(
        "--header/--no-header",
        default=None,
        help="Whether a table's first line holds names; default: if nothing in it is a number.",
    ),
    click.option(
        "--task",
        type=click.Choice(["classification", "regression"]),
        help="What a table's target is; default: a look at it decides.",
    ),
    click.option(
        "--hidden",
        default="100,200",
        show_default=True,
        callback=widths,
        metavar="N,N,...",
        help="Hidden widths.",
    ),
    click.option(
        "--activation",
        type=click.Choice(
            ["relu", "leaky-relu", "elu", "selu", "gelu", "silu", "softplus", "sigmoid", "tanh"]
        ),
        default="relu",
        show_default=True,
    ),
    click.option(
        "--dropout", type=float, default=0.0, show_default=True, help="Rate after each hidden layer."
    ),
    click.option(
        "--augment",
        type=float,
        is_flag=False,
        flag_value=0.5,
        default=0.0,
        metavar="[STRENGTH]",
        help="Bend, turn, scale and shift each image at random, anew each time; 1 is a lot, --augment alone 0.5.",
    ),
    click.option(
        "--loss",
        type=click.Choice(LOSS_NAMES),
        help="Default: cross-entropy for classes, mse for a regression; bce, focal and hinge are for two classes.",
    ),
    click.option(
        "--label-smoothing",
        type=float,
        default=0.0,
        metavar="X",
        help="How much of a label is spread over all classes, in the cross-entropy.",
    ),
    click.option(
        "--class-weight",
        type=click.Choice(["balanced"]),
        help="Each class counts alike in the cross-entropy, however few its training samples.",
    ),
    click.option("--optimizer", type=click.Choice(OPTIMIZER_NAMES), default="sgd", show_default=True),
    click.option(
        "--lr",
        type=float,
        metavar="X",
        help="Learning rate, a schedule's first or highest; default: 0.1 for sgd (0.01 for a regression), else the "
        "usual one of the optimizer.",
    ),
    click.option(
        "--schedule",
        metavar="NAME[:ARGUMENTS]",
        help="How the rate changes over the run: constant (default), step, exponential, polynomial, cosine, "
        "restarts, onecycle; as in step:every=1000,factor=0.5.",
    ),
    click.option(
        "--warmup", type=click.IntRange(1), metavar="STEPS", help="Steps in which the rate rises from 0."
    ),
    click.option(
        "--momentum", type=float, default=0.0, show_default=True, metavar="X", help="Of sgd and rmsprop."
    ),
    click.option(
        "--weight-decay",
        type=float,
        metavar="X",
        help="Of all parameters; default: 0, adamw 0.01, lion 0.001.",
    ),
    click.option(
        "--clip-norm", type=float, metavar="X", help="All gradients together are at most this long."
    ),
    click.option(
        "--average",
        type=float,
        metavar="DECAY",
        help="Test and save the weights' moving average, such as 0.999, in place of the last ones.",
    ),
    click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**64 - 1),
        default=0,
        show_default=True,
        help="Weights, shuffles, masks.",
    ),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What determines a run, beside where and how it is executed."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command


def given_options(context: click.Context) -> set[str]:
    """The options that stand on the command line. Raises OptionError for a network that is told twice."""
    source = click.core.ParameterSource.COMMANDLINE
    given = {name for name in context.params if context.get_parameter_source(name) is source}
    for name in sorted(given & {"hidden", "activation", "dropout"}):
        if "model" in given:
            raise OptionError(f"--{name} and --model both say what the network is: leave one of them away")
    return given


def with_table(options: dict[str, Any]) -> dict[str, Any]:
    """The options with those of `xnn.data.load` in a dictionary of their own, `table`, as far as they were given."""
    table = {name: options.pop(name) for name in ("target", "header", "task")}
    return {**options, "table": {name: value for name, value in table.items() if value not in (None, ())}}
