"""Random CSV tables: what both xnn and pandas accept must be equal."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import pytest

from xnn import data
from xnn.errors import XnnError

NUMBERS = (
    "0", "-0", "1", "-2.5", "1e5", "1E-3", ".5", "5.", "+7", "0.1", "1e308", "1e-310", "123456789012345678",
    "1.7976e308", "0.30000000000000004", "2.2250738585072014e-308", "007", "1e22", "9007199254740993", "4.35", "1e23",
    "8.5e-7",
)  # fmt: skip
#: Fields that are no numbers, or that readers disagree on.
ODD = (
    "",
    " ",
    "NA",
    "nan",
    "NULL",
    "?",
    "x",
    "1_000",
    "0x1F",
    "1,5",
    "inf",
    "-Infinity",
    "1e400",
    "1 2",
    "١",
    "1e",
    "--1",
)
NAMES = (
    "a",
    "b",
    "width",
    "height",
    "x1",
    "x 2",
    "größe",
    "a,b",
    'the "best"',
    "1",
    "2.5",
    "kind",
    " c",
    "A",
)
CLASSES = ("yes", "no", "maybe", "01", "1", "Ja, sehr", 'so "what"', "naïve", "a  b", "NA", "None", "true")


@dataclass
class Table:
    """A table as text, and how it must be read. header: whether its first line holds names."""

    text: bytes
    header: bool


def field(rng, text, target=False):
    """A field as a file may hold it: quoted where it must be and sometimes where it need not."""
    if any(sign in text for sign in ',"\r\n') or rng.random() < 0.1:
        return '"' + text.replace('"', '""') + '"'
    return text if target or rng.random() < 0.95 else text + " "


def number(rng):
    if rng.random() < 0.5:
        return str(rng.choice(NUMBERS))
    return repr(float(rng.normal() * 10.0 ** int(rng.integers(-5, 9))))


def table(rng):
    """A table whose first column is the number of the row, with a target in its last column."""
    rows, width, header = int(rng.integers(5, 25)), int(rng.integers(1, 5)), bool(rng.integers(2))
    names = [str(rng.choice(NAMES)) for _ in range(width + 1)]
    kind = int(rng.integers(3))
    classes = [str(name) for name in rng.choice(CLASSES, int(rng.integers(2, 4)), replace=False)]
    lines = []
    for row in range(rows):
        values = [number(rng) for _ in range(width)]
        goal = str(rng.choice(classes)) if kind == 0 else number(rng) if kind == 1 else str(row % 3)
        if rng.random() < 0.01:
            values[int(rng.integers(width))] = str(rng.choice(ODD))
        lines.append(
            ",".join([str(row), *(field(rng, value) for value in values), field(rng, goal, target=True)])
        )
        if rng.random() < 0.01:
            lines.append("")
        if rng.random() < 0.003:
            lines[-1] += ","
    if header:
        lines.insert(0, ",".join(field(rng, name, target=True) for name in ("row", *names)))
    if rng.random() < 0.02:  # a quotation mark that opens or closes nothing
        place = int(rng.integers(len(lines)))
        lines[place] = lines[place].replace(",", ',"' if rng.random() < 0.5 else '",', 1)
    text = str(rng.choice(["\n", "\n", "\r\n"])).join(lines) + ("\n" if rng.random() < 0.8 else "")
    mark = b"\xef\xbb\xbf" if rng.random() < 0.1 else b""
    return Table(mark + text.encode(), header)


def by_xnn(path, header, task=None):
    """The rows by their number: features, and targets as numbers or names."""
    found = data.load(path, header=header, task=task, split=(0.34, 0.33, 0.33), stratify=False)
    x = np.concatenate([found.x_train, found.x_val, found.x_test])
    y = np.concatenate([found.y_train, found.y_val, found.y_test])
    if found.labels:
        y = np.asarray([str(found.labels[number]) for number in y.ravel()])
    names = found.columns.names if found.columns is not None else ()
    order = np.argsort(x[:, 0], kind="stable")
    return x[order], y.reshape(len(y))[order], names


def by_pandas(pandas, text, header, odd):
    """The same by pandas. odd: what it takes as missing."""
    frame = pandas.read_csv(
        io.BytesIO(text),
        header=0 if header else None,
        keep_default_na=False,
        na_values=odd,
        encoding="utf-8-sig",
    )
    x = frame.iloc[:, :-1].apply(pandas.to_numeric).to_numpy(np.float64)
    goal = pandas.read_csv(
        io.BytesIO(text), header=0 if header else None, dtype=str, keep_default_na=False, encoding="utf-8-sig"
    ).iloc[:, -1]
    return x, goal.str.strip().to_numpy(), [str(name) for name in frame.columns]


@pytest.mark.fuzz(150)
def test_a_table_is_what_pandas_reads(rng, tmp_path_factory):
    pandas = pytest.importorskip("pandas")
    drawn = table(rng)
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(drawn.text)
    try:
        x, y, names = by_xnn(path, drawn.header)
    except XnnError:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected, goal, columns = by_pandas(
                pandas, drawn.text, drawn.header, ["NA", "nan", "NULL", "?", ""]
            )
    except (ValueError, TypeError, pandas.errors.ParserError, pandas.errors.ParserWarning):
        return
    assert x.shape == expected.shape, drawn.text
    assert np.array_equal(x, expected), drawn.text
    if drawn.header:
        assert [name.strip() for name in columns][: len(names)] == without_numbers(names), drawn.text
    same = [same_target(one, other) for one, other in zip(y.tolist(), goal.tolist(), strict=True)]
    assert all(same), drawn.text


def without_numbers(names):
    """The names as pandas gives them: a second `a` is called `a.1`."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        found.append(f"{name}.{seen[name]}" if name in seen else name)
        seen[name] = seen.get(name, 0) + 1
    return found


def same_target(ours, text):
    """Whether a target is that of the text: a name, or the number that it writes."""
    if isinstance(ours, str) and ours == text:
        return True
    try:
        return float(ours) == float(text)
    except ValueError:
        return False


@pytest.mark.fuzz(100)
def test_what_pandas_writes_is_read(rng, tmp_path_factory):
    """A frame of numbers and a target goes into a file and comes back with the same bits."""
    pandas = pytest.importorskip("pandas")
    rows, width = int(rng.integers(4, 30)), int(rng.integers(1, 5))
    x = rng.normal(size=(rows, width)) * 10.0 ** rng.integers(-12, 12, width)
    columns = {f"{name}": x[:, place] for place, name in enumerate("abcd"[:width])}
    classes = [
        str(name) for name in rng.choice(["yes", "no, never", 'a "b"', "c d", "naïve"], 3, replace=False)
    ]
    goal = rng.choice(classes, rows) if rng.random() < 0.5 else rng.normal(size=rows)
    frame = pandas.DataFrame({"row": np.arange(rows), **columns, "goal": goal})
    path = tmp_path_factory.getbasetemp() / "written.csv"
    quoting = int(rng.integers(0, 3))  # where needed, everywhere, all texts
    header = bool(rng.integers(2))
    ending = str(rng.choice(["\n", "\r\n"]))
    frame.to_csv(path, index=False, quoting=quoting, header=header, lineterminator=ending)
    found, y, names = by_xnn(path, header)
    assert np.array_equal(found[:, 1:], x)
    assert y.tolist() == goal.tolist()
    assert list(names) == ([*frame.columns] if header else [])
