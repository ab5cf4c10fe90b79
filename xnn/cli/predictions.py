"""What `xnn predict` prints for each sample: a class or numbers, and probabilities; as lines, CSV or JSON."""

from __future__ import annotations

import csv
import io
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from xnn.errors import DiskError, OptionError
from xnn.files import printable, to_json
from xnn.layers import Sequential
from xnn.layers.probabilities import class_probabilities

__all__ = ["Form", "Lines", "probabilities"]

#: Characters of what is printed that are kept in memory; more are kept in a temporary file.
_KEPT = 2**20
#: Characters that are printed at a time. Of a longer text a pipe whose reader ends may take only the beginning.
_PRINTED = 2**12
_DIGITS = 6  # of probabilities


@dataclass(frozen=True)
class Form:
    """The form in which predictions are printed. Raises OptionError for options that exclude one another.

    proba: the probabilities of all classes. top: of this many, the most likely first. csv, json: the form.
    """

    proba: bool = False
    top: int | None = None
    csv: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        if self.proba and self.top:
            raise OptionError("--proba and --top both print probabilities: omit one of them")
        if self.csv and self.json:
            raise OptionError("--csv and --json are two forms of the same: omit one of them")

    @property
    def shares(self) -> bool:
        """Whether probabilities are printed."""
        return self.proba or self.top is not None

    def refuse_regression(self, model: str) -> None:
        """Raise OptionError if probabilities are to be printed; for models that predict numbers."""
        if self.shares:
            raise OptionError(f"--proba and --top are for classes, and {model} predicts numbers: omit them")


def probabilities(model: str, net: Sequential, outputs: np.ndarray, loss: str) -> np.ndarray:
    """The probabilities of the classes. model: the file, for messages. Raises OptionError if there are none."""
    if loss == "hinge":
        raise OptionError(
            f"{model} was trained with the hinge loss, whose outputs are no probabilities: omit --proba and --top, "
            "--output writes the outputs"
        )
    found = class_probabilities(net.last_op, outputs)
    if found is None:
        raise OptionError(
            f"{model} ends in a Sigmoid for each of {outputs.shape[1]} classes, which are no probabilities of one "
            "class: omit --proba and --top, --output writes the outputs"
        )
    return found


class Lines:
    """What is printed for each sample, kept until all samples are predicted: after an error nothing is printed."""

    def __init__(self, form: Form) -> None:
        self.form, self.count = form, 0
        self.on_terminal = sys.stdout is not None and sys.stdout.isatty()
        self.file = self._temporary()
        #: For JSON, lists besides the predictions, each in a file: names, probabilities.
        self.more: dict[str, Any] = {}
        self.labels: list[Any] = []

    def _temporary(self) -> Any:
        return tempfile.SpooledTemporaryFile(_KEPT, "w+", encoding="utf-8", newline="\n")

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self.file, *self.more.values()):
            with suppress(OSError):  # what could not be written is tried again
                file.close()

    def add(
        self,
        printed: list[Any],
        names: Sequence[str] = (),
        shares: np.ndarray | None = None,
        labels: Sequence[Any] = (),
    ) -> None:
        """Add the predictions of the next samples.

        printed: a label for each, or a list of numbers. names: of their files, if they have some. shares: the
        probabilities, (n, classes). labels: the names of the classes; empty if they are 0, 1, ...
        """
        called = list(labels) if shares is None or labels else list(range(shares.shape[1]))
        rows: list[Any] = [None] * len(printed)
        if shares is not None and self.form.top is None:
            rows = [[round(share, _DIGITS) for share in row] for row in shares.tolist()]
        elif shares is not None:
            order = np.argsort(-shares, axis=1, kind="stable")[:, : self.form.top]
            rows = [
                [(called[n], round(float(row[n]), _DIGITS)) for n in best]
                for row, best in zip(shares, order.tolist(), strict=True)
            ]
        try:
            if self.form.json:
                self._add_json(printed, names, rows, called)
            else:
                write = self._csv if self.form.csv else self._text
                self.file.write(write(printed, names or [""] * len(printed), rows, called))
            for file in (self.file, *self.more.values()):
                file.flush()
        except OSError as error:
            raise DiskError(
                f"cannot keep the predictions in {tempfile.gettempdir()} until all are there: {error.strerror}; "
                "TMPDIR names another folder"
            ) from error
        self.count += len(printed)

    def _add_json(self, printed: list[Any], names: Sequence[str], rows: list[Any], called: list[Any]) -> None:
        lists: dict[str, list[Any]] = {"files": list(names)} if names else {}
        if self.form.proba:
            lists["probabilities"], self.labels = rows, called
        elif self.form.top is not None:
            lists["top"] = [[{"label": label, "probability": p} for label, p in row] for row in rows]
        for key in lists:
            self.more.setdefault(key, self._temporary())
        for file, values in ((self.file, printed), *((self.more[key], lists[key]) for key in lists)):
            file.write((", " if self.count and values else "") + to_json(values)[1:-1])

    def _text(self, printed: list[Any], names: Sequence[str], rows: list[Any], called: list[Any]) -> str:
        """One line for each sample: NAME: LABEL, and with probabilities NAME: LABEL 0.9, LABEL 0.1."""
        lines = []
        for label, name, row in zip(printed, names, rows, strict=True):
            if row is None:
                text = ",".join(map(str, label)) if isinstance(label, list) else str(label)
            else:
                pairs = row if self.form.top is not None else zip(called, row, strict=True)
                text = ", ".join(f"{which} {share:.4f}" for which, share in pairs)
                text = text if self.form.top is not None else f"{label} ({text})"
            lines.append(printable(f"{name}: {text}" if name else text) + "\n")
        return "".join(lines)

    def _csv(self, printed: list[Any], names: Sequence[str], rows: list[Any], called: list[Any]) -> str:
        """The lines of CSV for some samples, one for each; before the first line of all there is a header."""
        lines: list[str] = []
        files = [[name] if name else [] for name in names]
        for label, name, row in zip(printed, files, rows, strict=True):
            numbers = label if isinstance(label, list) else [label]
            cells: list[Any] = [*name, *numbers]
            if row is not None and self.form.top is not None:
                cells += [cell for pair in row for cell in pair]
            elif row is not None:
                cells += row
            if not self.count and not lines:
                heads = (
                    ["prediction"] if len(numbers) == 1 else [f"prediction_{n}" for n in range(len(numbers))]
                )
                if row is not None and self.form.top is not None:
                    heads += [
                        head for n in range(1, len(row) + 1) for head in (f"label_{n}", f"probability_{n}")
                    ]
                elif row is not None:
                    heads += [f"probability_{label}" for label in called]
                lines.append(self._line([*(["file"] if name else []), *heads]))
            lines.append(self._line(cells))
        return "".join(lines)

    def _line(self, cells: list[Any]) -> str:
        """A line of CSV. Texts are quoted where they hold commas, quotes or ends of lines, and else left as they are.

        On a terminal, to which control characters are commands, these are escaped. So are the bytes of file names
        that are no text in UTF-8.
        """
        texts = [str(cell) for cell in cells]
        if self.on_terminal:
            texts = [printable(text) for text in texts]
        line = io.StringIO(newline="")
        csv.writer(line).writerow([text.encode(errors="backslashreplace").decode() for text in texts])
        return line.getvalue().removesuffix("\r\n") + "\n"

    def show(self, accuracy: float | None) -> None:
        """Print the lines, or a JSON object."""
        if not self.form.json:
            self._print(self.file)
            return
        for number, (key, file) in enumerate({"predictions": self.file, **self.more}.items()):
            click.echo(f'{", " if number else "{"}"{key}": [', nl=False)
            self._print(file)
            click.echo("]", nl=False)
        named = f', "labels": {to_json(self.labels)}' if self.labels else ""
        click.echo(f'{named}, "accuracy": {to_json(accuracy)}}}')

    def _print(self, file: Any) -> None:
        file.seek(0)
        while text := file.read(_PRINTED):
            click.echo(text, nl=False, color=True)  # else it removes escape sequences from labels
