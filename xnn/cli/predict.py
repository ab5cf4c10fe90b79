"""`xnn predict`: the predictions of a saved model, one line for each sample."""

from __future__ import annotations

import errno
import io
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from xnn.backends import backend as use_backend
from xnn.backends import numerics as use_numerics
from xnn.cli.model_notes import Notes, read_notes
from xnn.cli.options import FILE, FOLDER, backend_option, chosen_backend, device_option, numerics_option
from xnn.cli.outputs import check_apart
from xnn.data import dataset_names, load, open_arrays, read_idx
from xnn.data.arrays import LARGE, read_array
from xnn.data.loading import table_for_model
from xnn.data.tables import samples_and_targets
from xnn.data.targets import label_numbers, one_hot_classes
from xnn.errors import CorruptFileError, DataNotFoundError, OptionError, ShapeError
from xnn.files import check_writable, notice, printable, reading, to_json, write_atomically
from xnn.layers import Dense, Sequential
from xnn.layers.sequential import classes_of
from xnn.layers.sequential import load as load_model

__all__ = ["command", "predict_command"]


# Not a docstring: `python -OO` removes those.
_HELP = """\
Print a trained model's prediction for each sample.

MODEL is a file that `xnn train --save` wrote. DATA is a .npy, .npz (x, and y if known), .csv or idx file, or the
name of a data set, whose test set is taken.

A classifier prints labels, a regression prints numbers. If the data hold the true labels, the accuracy goes to
standard error. The model runs in the numerics in which it was trained, unless --numerics or XNN_NUMERICS says
otherwise.

\b
xnn predict digits.safetensors mnist
xnn predict digits.safetensors images.npy --output logits.npy
"""


@click.command("predict", help=_HELP)
@click.argument("model")
@click.argument("data")
@click.option("--data-home", type=FOLDER, metavar="DIR", help="The folder of a named data set's files.")
@backend_option
@device_option
@numerics_option
@click.option(
    "--header/--no-header",
    default=None,
    help="Whether the first line of a table holds names. Default: it does if it has the names that the model was "
    "trained on; if not, as for xnn train.",
)
@click.option("--output", type=FILE, metavar="FILE", help="Also write the model's outputs to a .npy file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: str, data: str, backend: str | None, numerics: str | None, **options: Any) -> None:
    """The command `xnn predict`; its help is _HELP."""
    with use_numerics(numerics), use_backend(chosen_backend(backend)):
        predict_command(model, data, **options)


def predict_command(
    model: str,
    data: str,
    data_home: str | None,
    output: str | None,
    as_json: bool,
    header: bool | None = None,
) -> None:
    """Predict, print the predictions, and write the outputs if asked."""
    if output:
        check_writable(output, (".npy",))
        check_apart({"--output": output}, {"MODEL": model, "DATA": data})
    net = load_model(model)
    notes = read_notes(model)
    labels = notes.labels
    samples = _read_samples(data, data_home, header, notes, notes.features or _width(net))
    outputs = net.predict(samples.x)
    accuracy, printed = None, outputs.tolist()
    if notes.task == "classification" and outputs.ndim == 2:
        classes = classes_of(outputs, net.threshold)
        # One output tells two classes apart. A table of one class is trained with two outputs.
        only = notes.classes == len(labels) == 1 and outputs.shape[1] == 2
        if labels and not only and len(labels) not in {outputs.shape[1], 2 if outputs.shape[1] == 1 else 0}:
            raise CorruptFileError(
                f"{model}: its notes name {len(labels)} classes, and the model has {outputs.shape[1]} outputs: train "
                "again"
            )
        if (notes.classes or len(labels)) == 1:  # the outputs say nothing
            classes = np.zeros_like(classes)
        y = samples.y
        if y is not None and y.ndim == 2 and labels in ((), tuple(range(len(labels)))):
            y = one_hot_classes(y)
        if y is not None and y.ndim == 1 and len(y):
            accuracy = _accuracy(classes, y, labels, outputs.shape[1])
        printed = [labels[number] for number in classes.tolist()] if labels else classes.tolist()
    if output:
        _save_array(output, outputs)
    empty = () if printed else (f"{data} holds no samples, so there is nothing to predict",)
    for note in (*samples.notes, *empty):
        notice(f"xnn: {note}")
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # `xnn predict ... >&-`
    try:
        _print(printed, accuracy, as_json)
        sys.stdout.flush()
    except BrokenPipeError:  # `xnn predict ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(128 + 13)  # what a shell reports of a program that SIGPIPE ended


def _print(printed: list[Any], accuracy: float | None, as_json: bool) -> None:
    """Print a line for each sample, or a JSON object."""
    if as_json:
        click.echo(to_json({"predictions": printed, "accuracy": accuracy}))
        return
    for row in printed:
        click.echo(",".join(map(str, row)) if isinstance(row, list) else printable(str(row)))
    if accuracy is not None:
        notice(f"accuracy {accuracy:.4f} over {len(printed)} samples")


def _save_array(path: str, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array)
    write_atomically(path, content.getvalue())


def _accuracy(classes: np.ndarray, y: np.ndarray, labels: tuple[Any, ...], outputs: int) -> float | None:
    """The share of right predictions. None, with a message, if the model does not know some of the classes in y."""
    unknown = _unknown_classes(y, labels, outputs)
    if not unknown.any():
        return float(np.mean(classes == label_numbers(y, labels)))
    few = list(dict.fromkeys(y[unknown].tolist()))
    named = ", ".join(map(str, few[:5])) + (", ..." if len(few) > 5 else "")
    notice(
        f"xnn: no accuracy: {int(unknown.sum())} of {len(y)} samples are of a class that the model does not "
        f"know ({named})"
    )
    return None


def _unknown_classes(y: np.ndarray, labels: tuple[Any, ...], outputs: int) -> np.ndarray:
    """A mask of the samples whose class the model cannot predict."""
    numbers = label_numbers(y, labels)
    if numbers.dtype.kind == "U":
        return np.ones(len(y), dtype=bool)
    return ~np.isin(numbers, np.arange(len(labels) or max(outputs, 2)))


def _width(net: Sequential) -> int:
    """The number of features that the first Dense layer takes; 0 if there is none. Older files do not say it."""
    return next((layer.inputs for layer in net.layers if isinstance(layer, Dense)), 0)


@dataclass(frozen=True)
class _Samples:
    """Samples (n, features), their targets if the data hold them, and what the user should be told."""

    x: np.ndarray
    y: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def _read_samples(
    data: str, data_home: str | None, header: bool | None, notes: Notes, width: int
) -> _Samples:
    """The samples that DATA names.

    header: whether the first line of a table holds names; None if that was not said.
    notes: those of the model's file: the columns of the table that it was trained on, the task and the classes.
    width: the number of features that the model takes; 0 if unknown.
    """
    path = Path(data)
    table = path.suffix.lower() == ".csv"
    if header is not None and not table:
        raise OptionError(f"--header and --no-header are for .csv files, and {data} is none: omit them")
    if data in dataset_names():
        named = load(data, data_home)
        return _Samples(named.x_test, named.y_test)
    with reading(path):
        there = path.is_file()
    if not there:
        raise DataNotFoundError(f"{data} is neither a file nor one of {', '.join(dataset_names())}")
    if table:
        return _from_table(path, header, notes, width)
    y: np.ndarray | None = None
    if path.suffix.lower() == ".npz":
        arrays = open_arrays(path)
        x_name = next((name for name in ("x", "x_test") if name in arrays), None)
        if x_name is None:
            raise OptionError(f"{data} holds {', '.join(arrays) or 'nothing'}; predict needs x (or x_test)")
        x, y = arrays[x_name], arrays.get(x_name.replace("x", "y"))
    elif path.suffix.lower() == ".npy":
        with reading(path):
            large = path.stat().st_size >= LARGE
        x = read_array(path, mapped=large)
    else:
        x = read_idx(path)
    if x.ndim < 2:
        raise ShapeError(f"{data} holds an array of shape {x.shape}; predict needs one row for each sample")
    if y is None:
        return _Samples(x.reshape(len(x), math.prod(x.shape[1:])))
    return _Samples(*samples_and_targets(data, x, y))


def _from_table(path: Path, header: bool | None, notes: Notes, width: int) -> _Samples:
    """The samples of a CSV file. Its targets are read if the model is a classifier, for the accuracy."""
    table = table_for_model(path, notes.columns, width, header)
    if not table.columns.targets or notes.task != "classification":
        return _Samples(table.x, None, table.notes)
    if table.unlabelled:
        empty = len(table.unlabelled) == len(table.x)  # a column to be filled, of which nothing need be said
        count = f"{len(table.unlabelled)} of {len(table.x)}"
        said = f"no accuracy: {count} rows have no target, the first in line {table.unlabelled[0]}"
        return _Samples(table.x, None, table.notes if empty else (*table.notes, said))
    names = any(isinstance(label, str) for label in notes.labels)
    return _Samples(table.x, table.targets("classification", text=names), table.notes)
