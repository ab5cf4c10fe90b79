"""Options that several commands share: those that determine a run, and those that say how it is executed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import click

from xnn.backends import get_backend
from xnn.data.images import LONGEST
from xnn.errors import OptionError
from xnn.runs.names import ACTIVATIONS, LOSSES, OPTIMIZERS

__all__ = [
    "FILE",
    "FOLDER",
    "backend_option",
    "check_device",
    "chosen_backend",
    "device_option",
    "given_options",
    "numerics_option",
    "run_options",
    "widths",
    "with_table",
    "workers_option",
]


class _Name(click.ParamType):  # type: ignore[type-arg]
    """A file's or folder's name. An empty one, such as that of an unset variable of the shell, is refused."""

    name = "text"

    def __init__(self, folder: bool) -> None:
        self.folder = folder

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        value = os.fspath(value)
        if not value.strip():
            omit = "" if isinstance(param, click.Argument) else ", or omit the option"
            self.fail(f"the name is empty: give one{omit}", param, ctx)
        if self.folder and not os.path.isdir(os.path.expanduser(value)):
            self.fail(
                f"there is no such folder as {value!r}: name another one, or omit the option", param, ctx
            )
        return value


FILE, FOLDER = _Name(folder=False), _Name(folder=True)

_MOST = 2**31 - 1  # the largest width or batch size: no memory holds more


def widths(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Read a list of positive integers: "100,200" becomes (100, 200), and an empty text ()."""
    try:
        numbers = tuple(int(part) for part in value.split(",")) if value.strip() else ()
    except ValueError:
        numbers = (0,)
    if not all(1 <= number <= _MOST for number in numbers):
        raise click.BadParameter(f"{value!r} is not a list of positive integers such as 100,200")
    return numbers


def _image_size(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    sides = value.lower().split("x")
    if len(sides) != 2 or not all(
        side.isdecimal() and len(side) < 6 and 0 < int(side) <= LONGEST for side in sides
    ):
        raise click.BadParameter(
            f"{value!r} is not height x width in pixels, each of 1 to {LONGEST}, such as 64x48"
        )
    return tuple(map(int, sides))


backend_option = click.option(
    "--backend",
    metavar="NAME",
    help="numpy, cupy, or cupy:1 for the second GPU. Default: XNN_BACKEND, else numpy.",
)


workers_option = click.option(
    "--workers",
    type=click.Choice(("none", "auto")),
    default="auto",
    show_default=True,
    expose_value=False,  # `together.py` reads it
    help="auto: share the work with the other processes that mpirun, mpiexec or srun has started (extra mpi); none: "
    "each does all of it.",
)


def _set_device(ctx: click.Context, parameter: click.Parameter, value: int | None) -> None:
    """Set XNN_DEVICE for this command and the processes that it starts."""
    if value is None:
        return
    before = os.environ.get("XNN_DEVICE")
    os.environ["XNN_DEVICE"] = str(value)
    ctx.meta["number of the device"] = value

    def restore() -> None:
        if before is None:
            os.environ.pop("XNN_DEVICE", None)
        else:
            os.environ["XNN_DEVICE"] = before

    ctx.call_on_close(restore)


device_option = click.option(
    "--device",
    type=click.IntRange(0),
    callback=_set_device,
    expose_value=False,
    metavar="N",
    help="The number of the GPU, from 0, for the backend cupy. Default: XNN_DEVICE, else 0; with mpiexec each "
    "process has its own.",
)


def chosen_backend(name: str | None) -> str:
    """The address, such as numpy or cupy:1, of the backend that --backend and --device choose.

    Raises OptionError if --device is given and the backend has no numbered devices, or names another one.
    """
    check_device([name])
    return get_backend(name).address


def check_device(names: Sequence[str | None]) -> None:
    """Raise OptionError if --device is given and none of these backends is a GPU of this number.

    names: of backends; None stands for the current one.
    """
    device = click.get_current_context().meta.get("number of the device")
    if device is None:
        return
    addresses = [get_backend(name).address for name in names]
    if f"cupy:{device}" not in addresses:
        raise OptionError(
            f"--device {device} is the number of a GPU, and the backend is {' and '.join(addresses)}: add "
            "--backend cupy, or omit --device"
        )


numerics_option = click.option(
    "--numerics",
    metavar="NAME",
    help="fast, or exact: the same bits on every machine. Default: XNN_NUMERICS, else fast.",
)

_RUN_OPTIONS = (
    click.option(
        "--dataset",
        type=FILE,
        metavar="NAME",
        help="mnist, fashion-mnist, digits, boston, synthetic, a .npz or .csv file, or a folder of PNG and JPEG "
        "images with a folder for each class. Default: mnist; synthetic if mnist is neither on disk nor on "
        "the network.",
    ),
    click.option(
        "--model",
        type=FILE,
        metavar="FILE",
        help="A .toml file of layers; replaces --hidden, --activation and --dropout.",
    ),
    click.option(
        "--data-home",
        type=FOLDER,
        metavar="DIR",
        help="The folder of the data files. Default: XNN_DATA_HOME, else the user's cache.",
    ),
    click.option(
        "--target",
        multiple=True,
        metavar="NAME",
        help="The target column of a table: its name, or its number from 0. Default: the last column. Give it "
        "several times for a regression with several targets.",
    ),
    click.option(
        "--header/--no-header",
        default=None,
        help="Whether the first line of a table holds names. Default: it does if none of its fields is a number, or "
        "if they count up as 0, 1, target; a message then says so.",
    ),
    click.option(
        "--task",
        type=click.Choice(["classification", "regression"]),
        help="What to predict from a table: classes or numbers. Default: chosen by the target's values.",
    ),
    click.option(
        "--image-size",
        callback=_image_size,
        metavar="HxW",
        help="Height and width to which the images of a folder are resized, such as 64x48. Default: their own, if "
        "they have one and it is at most 128; otherwise 64x64.",
    ),
    click.option(
        "--scale-target",
        is_flag=True,
        help="Train a regression on targets with mean 0 and deviation 1; the saved model predicts in their units.",
    ),
    click.option(
        "--hidden",
        default="100,200",
        show_default=True,
        callback=widths,
        metavar="N,N,...",
        help="Widths of the hidden layers.",
    ),
    click.option(
        "--activation",
        type=click.Choice(list(ACTIVATIONS)),
        default="relu",
        show_default=True,
        help="The activation after each hidden layer.",
    ),
    click.option(
        "--dropout",
        type=float,
        default=0.0,
        show_default=True,
        metavar="RATE",
        help="Dropout rate after each hidden layer.",
    ),
    click.option(
        "--augment",
        type=float,
        is_flag=False,
        flag_value=0.5,
        default=0.0,
        metavar="[STRENGTH]",
        help="Bend, turn, scale and shift each image at random in every epoch. 1 is strong; --augment alone is 0.5.",
    ),
    click.option(
        "--loss",
        type=click.Choice(list(LOSSES)),
        help="bce, focal and hinge are for two classes. Default: cross-entropy for classes, mse for a regression.",
    ),
    click.option(
        "--label-smoothing",
        type=float,
        default=0.0,
        metavar="X",
        help="The share of each label that the cross-entropy spreads over all classes. Default: 0.",
    ),
    click.option(
        "--class-weight",
        type=click.Choice(["balanced"]),
        help="Weigh classes so that all count alike in the cross-entropy, however few samples they have.",
    ),
    click.option(
        "--optimizer",
        type=click.Choice(list(OPTIMIZERS)),
        default="sgd",
        show_default=True,
        help="How weights are updated; lbfgs needs SciPy and uses all data at once.",
    ),
    click.option(
        "--lr",
        type=float,
        metavar="X",
        help="Learning rate; with a schedule, its first or highest one. Default: 0.1 for sgd (0.01 for a "
        "regression), else the optimizer's own.",
    ),
    click.option(
        "--schedule",
        metavar="NAME[:ARGUMENTS]",
        help="How the learning rate changes: constant (default), step, exponential, polynomial, cosine, restarts or "
        "onecycle, with arguments as in step:every=1000,factor=0.5.",
    ),
    click.option(
        "--warmup",
        type=click.IntRange(1),
        metavar="STEPS",
        help="Steps in which the learning rate rises from 0.",
    ),
    click.option(
        "--momentum",
        type=float,
        default=0.0,
        show_default=True,
        metavar="X",
        help="Momentum of sgd or rmsprop.",
    ),
    click.option(
        "--weight-decay",
        type=float,
        metavar="X",
        help="Weight decay of all parameters. Default: 0; 0.01 for adamw, 0.001 for lion.",
    ),
    click.option(
        "--clip-norm", type=float, metavar="X", help="Largest norm of all gradients taken together."
    ),
    click.option(
        "--average",
        type=float,
        metavar="DECAY",
        help="Test and save a moving average of the weights, with a decay such as 0.999, not the last weights.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(1),
        default=32,
        show_default=True,
        metavar="N",
        help="Samples per step.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**64 - 1),
        default=0,
        show_default=True,
        metavar="N",
        help="Seed of initial weights, shuffles and dropout masks.",
    ),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that determine a run, which train and verify share."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command


def given_options(context: click.Context) -> set[str]:
    """The names of the options that the user gave on the command line; those with a default value are left out.

    Raises OptionError if two of them describe the network.
    """
    source = click.core.ParameterSource.COMMANDLINE
    given = {name for name in context.params if context.get_parameter_source(name) is source}
    for name in sorted(given & {"hidden", "activation", "dropout"}):
        if "model" in given:
            raise OptionError(f"--{name} and --model both describe the network: omit one of them")
    return given


def with_table(options: dict[str, Any]) -> dict[str, Any]:
    """Move the options for reading a table into a dictionary `table`, which `xnn.data.load` takes.

    Options that were not given are left out of that dictionary.
    """
    table = {name: options.pop(name) for name in ("target", "header", "task", "image_size")}
    return {**options, "table": {name: value for name, value in table.items() if value not in (None, ())}}
