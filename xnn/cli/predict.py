"""`xnn predict`: the predictions of a saved model, one line for each sample."""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from typing import IO, Any

import click
import numpy as np

from xnn.backends import backend as use_backend
from xnn.backends import numerics as use_numerics
from xnn.backends.ranks.group import current_ranks
from xnn.cli.model_notes import Notes, read_notes
from xnn.cli.options import (
    FILE,
    FOLDER,
    backend_option,
    chosen_backend,
    device_option,
    numerics_option,
    workers_option,
)
from xnn.cli.outputs import check_apart
from xnn.cli.pictures import PREPARATIONS, is_images, read_images
from xnn.cli.predictions import Form, Lines, probabilities
from xnn.cli.samples import BATCH, Samples, read_samples
from xnn.data.targets import Label, label_numbers, one_hot_classes
from xnn.errors import CorruptFileError, OptionError
from xnn.files import check_writable, notice, written_by_parts
from xnn.layers import Dense, Sequential
from xnn.layers.sequential import classes_of, known_shape
from xnn.layers.sequential import load as load_model
from xnn.training.predicting import check_same_model, predicted

__all__ = ["command", "predict_command"]


# Not a docstring: `python -OO` removes those.
_HELP = """\
Print a trained model's prediction for each sample.

MODEL is a file that `xnn train --save` wrote. DATA is a .npy, .npz (x, and y if known), .csv or idx file, the name
of a data set, whose test set is taken, a PNG or JPEG image, or a folder of images (docs/images.md).

A classifier prints labels, a regression prints numbers. If the data hold the true labels, the accuracy goes to
standard error. The model runs in the numerics in which it was trained, unless --numerics or XNN_NUMERICS says
otherwise.

\b
xnn predict digits.safetensors mnist
xnn predict digits.safetensors images.npy --output logits.npy
xnn predict digits.safetensors photo.jpg --show --top 3
xnn predict digits.safetensors scans/ --csv --proba
"""


@click.command("predict", help=_HELP)
@click.argument("model", type=FILE)
@click.argument("data", type=FILE)
@click.option("--data-home", type=FOLDER, metavar="DIR", help="The folder of a named data set's files.")
@backend_option
@device_option
@numerics_option
@workers_option
@click.option(
    "--header/--no-header",
    default=None,
    help="Whether the first line of a table holds names. Default: it does if it has the names that the model was "
    "trained on; if not, as for xnn train.",
)
@click.option("--output", type=FILE, metavar="FILE", help="Also write the model's outputs to a .npy file.")
@click.option(
    "--prepare",
    type=click.Choice(PREPARATIONS),
    default="auto",
    show_default=True,
    help="How images become samples. mnist: a photo of a digit becomes an image as MNIST's; resize: to the size of "
    "the model's images; none: they have it. auto: mnist for models of MNIST or of synthetic digits, else resize.",
)
@click.option("--show", is_flag=True, help="Draw on standard error each image as the network sees it.")
@click.option("--proba", is_flag=True, help="Also print the probabilities of all classes.")
@click.option(
    "--top",
    type=click.IntRange(1),
    metavar="K",
    help="Also print the K most likely classes with their probabilities.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print a table with a header.")
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
    prepare: str = "auto",
    show: bool = False,
    proba: bool = False,
    top: int | None = None,
    as_csv: bool = False,
) -> None:
    """Predict, print the predictions, and write the outputs if asked."""
    form = Form(proba, top, as_csv, as_json)
    if output:
        check_writable(output, (".npy",))
        check_apart({"--output": output}, {"MODEL": model, "DATA": data})
    net, ranks = load_model(model), current_ranks()
    notes = read_notes(model)
    check_same_model(ranks, net)
    width, shares = notes.features or _width(net), 1 if ranks is None else ranks.size
    is_first = ranks is None or not ranks.rank  # it prints and writes
    if is_images(data):
        if header is not None:
            raise OptionError(f"--header and --no-header are for .csv files, and {data} is none: omit them")
        parts = read_images(model, data, prepare, notes, width, show and is_first)
    elif show or prepare != "auto":
        raise OptionError(f"--show and --prepare are for images, and {data} is none: omit them")
    else:
        parts = read_samples(data, data_home, header, notes, width, shares)
    if not is_first:
        for samples in parts:
            predicted(ranks, net, samples.x, BATCH, known_model=True)
        return
    with Lines(form) as lines:
        with written_by_parts(output, (".npy",)) if output else nullcontext() as file:
            score, said = _predict(model, net, notes, parts, lines, None if file is None else _Rows(file))
            accuracy = score.accuracy()
        empty = () if lines.count else (f"{data} holds no samples, so there is nothing to predict",)
        for note in (*said, *empty):
            notice(f"xnn: {note}")
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # `xnn predict ... >&-`
        try:
            lines.show(accuracy)
            if accuracy is not None and not as_json:
                notice(f"accuracy {accuracy:.4f} over {lines.count} samples")
            sys.stdout.flush()
        except BrokenPipeError:  # `xnn predict ... | head` has read enough
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())  # Python flushes once more at its end
            sys.exit(128 + 13)  # what a shell reports of a program that SIGPIPE ended


def _predict(
    model: str, net: Sequential, notes: Notes, parts: Iterable[Samples], lines: Lines, rows: _Rows | None
) -> tuple[_Score, tuple[str, ...]]:
    """Predict part by part. Returns the score, and what the user should be told of the data.

    lines: what is printed is added to it. rows: the outputs are added to it. model: the file, for messages.
    """
    score, said = _Score(notes.labels), tuple[str, ...]()
    for samples in parts:
        outputs, before = predicted(current_ranks(), net, samples.x, BATCH, known_model=True), lines.count
        said = samples.notes
        if rows is not None:
            rows.add(outputs)
        if notes.task != "classification" or outputs.ndim != 2:
            lines.form.refuse_regression(model)
            lines.add(outputs.tolist(), samples.names)
            continue
        _check_labels(model, notes, outputs.shape[1])
        classes = classes_of(outputs, net.threshold, before)
        only = (notes.classes or len(notes.labels)) == 1  # the outputs say nothing
        if only:
            classes = np.zeros_like(classes)
        score.add(classes, samples.y, outputs.shape[1])
        named = [notes.labels[n] for n in classes.tolist()] if notes.labels else classes.tolist()
        shares = None
        if lines.form.shares:
            shares = np.ones((len(outputs), 1)) if only else probabilities(model, net, outputs, notes.loss)
        lines.add(named, samples.names, shares, notes.labels)
    if rows is not None:
        rows.end()
    return score, said


def _check_labels(model: str, notes: Notes, outputs: int) -> None:
    """Raise CorruptFileError if a model has other outputs than its notes name classes."""
    named = len(notes.labels)
    # One output tells two classes apart. A table of one class is trained with two outputs.
    only = notes.classes == named == 1 and outputs == 2
    if named and not only and named not in {outputs, 2 if outputs == 1 else 0}:
        raise CorruptFileError(
            f"{model}: its notes name {named} classes, and the model has {outputs} outputs: train again"
        )


class _Rows:
    """Writes an array into an .npy file, some rows at a time, with the bytes that numpy.save would write."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.count = file, 0
        self.like: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        if self.like is None:
            self.like = rows[:0]
            self._header()
        self.file.write(rows.tobytes())
        self.count += len(rows)

    def end(self) -> None:
        """Write the header again, with the number of rows. NumPy leaves room in it for any number."""
        self.file.seek(0)
        self._header()

    def _header(self) -> None:
        assert self.like is not None
        about = np.lib.format.header_data_from_array_1_0(self.like)
        np.lib.format.write_array_header_1_0(
            self.file, {**about, "shape": (self.count, *self.like.shape[1:])}
        )


class _Score:
    """Counts right predictions. labels: the names of the classes."""

    def __init__(self, labels: tuple[Label, ...]) -> None:
        self.labels, self.samples, self.right, self.unknown = labels, 0, 0, 0
        self.known = True  # whether the data hold the class of each sample
        self.few: dict[Any, None] = {}  # some of the classes that the model does not know

    def add(self, classes: np.ndarray, y: np.ndarray | None, outputs: int) -> None:
        """Compare predicted classes with the targets of the data. outputs: how many the model has."""
        self.samples += len(classes)
        if y is not None and y.ndim == 2 and self.labels in ((), tuple(range(len(self.labels)))):
            y = one_hot_classes(y)
        if y is None or y.ndim != 1:
            self.known = False
            return
        unknown = _unknown_classes(y, self.labels, outputs)
        if unknown.any():
            self.unknown += int(unknown.sum())
            self.few = dict.fromkeys(list(self.few | dict.fromkeys(y[unknown].tolist()))[:6])
        else:
            self.right += int(np.count_nonzero(classes == label_numbers(y, self.labels)))

    def accuracy(self) -> float | None:
        """The share of right predictions. None, with a message, if the model does not know some of the classes."""
        if not self.known or not self.samples:
            return None
        if not self.unknown:
            return self.right / self.samples
        few = [str(name) for name in self.few]
        named = ", ".join(few[:5]) + (", ..." if len(few) > 5 else "")
        notice(
            f"xnn: no accuracy: {self.unknown} of {self.samples} samples are of a class that the model does not "
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
    """The number of features that the first layers take; 0 if they do not say it. Notes may be missing."""
    if (shape := known_shape(net)) is not None:
        return math.prod(shape)
    return next((layer.inputs for layer in net.layers if isinstance(layer, Dense)), 0)
