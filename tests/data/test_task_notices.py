"""What a user is told of how a table was taken: its task, its units, its columns."""

from __future__ import annotations

import re

import numpy as np
import pytest
from command_line import run

from xnn import data
from xnn.data.loading import tables_for_model
from xnn.data.tables import Columns
from xnn.data.targets import as_targets
from xnn.errors import CorruptFileError, DTypeError


def table(tmp_path, targets, name="t.csv"):
    """A table of a feature that is no whole number, and these targets."""
    path = tmp_path / name
    path.write_text("a,y\n" + "".join(f"{row / 7 + 0.1},{target}\n" for row, target in enumerate(targets)))
    return path


@pytest.mark.parametrize(
    ("targets", "task", "said"),
    [
        (range(1, 201), "regression", "with hardly one twice: .*--task classification"),
        (range(10), "regression", "with hardly one twice"),
        ([row % 190 for row in range(200)], "regression", "with hardly one twice"),
        ([row % 100 + 1 for row in range(200)], "classification", "1 .. 100: taken as 100 classes;.* .--task reg"),
        ([row % 5 for row in range(50)], "classification", "0 .. 4: taken as 5 classes;.* .--task regression"),
        ([row % 5 * 10 for row in range(50)], "regression", "not all of 0 .. k - 1 or 1 .. k"),
        ([row % 2 for row in range(50)], "classification", "$"),
        ([row / 4 for row in range(50)], "regression", "$"),
        (["a", "b", "c"] * 10, "classification", "$"),
    ],
)  # fmt: skip
def test_the_task_of_a_table_is_said_once(tmp_path, targets, task, said):
    path = table(tmp_path, targets)
    found = data.load(path)
    assert found.task == task
    assert re.match(".*" + said if said != "$" else "$", found.note)
    assert len(found.note.splitlines()) < 2
    numbers = not isinstance(next(iter(targets)), str)
    for asked in ("classification", *["regression"] * numbers):
        given = data.load(path, task=asked)
        assert (given.task, given.note) == (asked, "")


def test_integers_of_an_archive_are_classes_without_a_word():
    """An array of integers says more than the text of a table."""
    assert as_targets("x", np.arange(10).repeat(3)).note == ""
    assert "taken as 26 classes" in as_targets("x", np.arange(26).repeat(3)).note


UNITS = ["${}", "{}%", "{}k", "{} EUR", "EUR {}", "{}kg", "{} people", "1.{}M", "\u20ac{}", "2024-01-{}"]


@pytest.mark.parametrize("form", UNITS)
def test_numbers_with_a_unit_are_damaged_or_classes_alike(tmp_path, form):
    """A few become classes, with a word. If hardly one comes twice, or there are many, that is an error."""
    few = data.load(table(tmp_path, [form.format(row % 3 + 10) for row in range(30)]))
    assert (few.task, few.classes) == ("classification", 3)
    assert f"is text such as {form.format(10)!r}: taken as 3 classes; for a regression write" in few.note
    for rows, different in ((15, 15), (60, 30)):
        many = table(tmp_path, [form.format(row % different + 10) for row in range(rows)])
        with pytest.raises(CorruptFileError, match=r"not a number, .* without a unit; task='classification'"):
            data.load(many)
        assert data.load(many, task="classification").classes == different
        with pytest.raises(CorruptFileError, match=r"1234\.5, without a unit$"):
            data.load(many, task="regression")


@pytest.mark.parametrize("form", ["{}D", "{}wd", "A{}", "{}-door", "v{}", "{}th"])
def test_names_with_a_number_are_classes(tmp_path, form):
    found = data.load(table(tmp_path, [form.format(row % 3 + 1) for row in range(30)]))
    assert (found.classes, found.note) == (3, "")


@pytest.mark.parametrize(
    ("field", "advice"),
    [
        ("2024-01-31", "a date or time as a number, such as the days or seconds"),
        ("31.1.2024", "a date or time as a number"),
        ("2024-01-31T12:30:00", "a date or time as a number"),
        ("$12", "write numbers as 1234.5, without a unit"),
        ("12 km", "write numbers as 1234.5, without a unit"),
        ("red", "write categories as columns of 0 and 1"),
    ],
)
def test_a_feature_that_is_no_number(tmp_path, field, advice):
    path = tmp_path / "t.csv"
    path.write_text("d,y\n" + f"{field},0.5\n{field},1.5\n" * 5)
    with pytest.raises(CorruptFileError, match=advice):
        data.load(path)


def test_a_column_that_is_constant_in_the_training_samples_only(tmp_path):
    def advice(x, train):
        x, y = np.array(x, np.float64), np.zeros((len(x), 1)) + 1.0
        rest = len(x) - 1
        parts = x[:train], y[:train], x[train:rest], y[train:rest], x[rest:], y[rest:]
        return data.Dataset("t", *parts, task="regression").advice

    named = "which a model learns nothing from: feature 0, counted from 0"
    assert advice([[1, 2], [1, 3], [1, 4], [1, 5]], 2) == f"constant column, {named}"
    assert (
        advice([[1, 2], [1, 3], [1, 4], [2, 5]], 2) == f"constant column in the 2 training samples, {named}"
    )
    assert "constant" not in advice([[1, 2], [2, 3], [3, 4]], 1)
    assert "there is one training sample" in advice([[1, 2], [2, 3], [3, 4]], 1)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_integers_that_float64_merges_are_refused(dtype):
    large = (2**53 + np.arange(100)).astype(dtype)
    with pytest.raises(DTypeError, match="hold the integer 9007199254741091, and float64 has all"):
        data.standardize(large)
    with pytest.raises(DTypeError, match="t: the targets hold the integer"):
        as_targets("t", large, "regression")
    kept = data.standardize((2**53 - np.arange(100)).astype(dtype), dtype="float64")
    assert len(np.unique(kept((2**53 - np.arange(100)).astype(dtype)))) == 100


NAMED = Columns(("area", "rooms", "price", "year"), (0, 1, 3), (2,))
PLAIN = Columns((), (0, 1, 3), (2,))


@pytest.mark.parametrize(
    ("trained", "rows", "note"),
    [
        (NAMED, "1,2,3\n", "no header: columns taken as area, rooms, year"),
        (NAMED, "1,2,3,4\n", "no header: columns taken as area, rooms, price, year"),
        (NAMED, "year,rooms,area\n1,2,3\n", ""),
        (PLAIN, "1,2,3\n", ""),
        (PLAIN, "year,rooms,area\n1,2,3\n", "columns taken by their places, as year, rooms, area"),
        (PLAIN, "a,b,t,c\n1,2,0,3\n", "columns taken by their places, as a, b, c"),
        (None, "1,2,3\n", ""),
    ],
)
def test_columns_that_were_taken_by_their_places_are_said(tmp_path, trained, rows, note):
    path = tmp_path / "p.csv"
    path.write_text(rows)
    (table,) = tables_for_model(path, trained, 3)
    assert len(table.notes) == bool(note)
    assert not note or table.notes[0].endswith(note)


def house(tmp_path, typical):
    """Features of a usual kind, one of them a year, and targets of this root mean square."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.uniform(40, 200, 320), rng.integers(1950, 2023, 320)])
    y = x @ [3.0, 1.0]
    columns = np.column_stack([x, y * (typical / np.sqrt(np.mean(y**2)))])
    path = tmp_path / "house.csv"
    np.savetxt(path, columns, delimiter=",", header="area,year,price", comments="")
    return path


def test_a_diverged_regression_says_to_scale_the_target_and_then_where_the_weights_went(tmp_path):
    model = tmp_path / "m.safetensors"
    words = ("--epochs", 3, "--quiet", "--save", model)
    result = run("train", "--dataset", house(tmp_path, 5e5), *words)
    advice, told, file = result.stderr.splitlines()
    assert "far from unit size (typically" in advice
    assert told.index("step") < told.index("--scale-target") < told.index("--lr") < told.index("look at")
    assert "largest number" not in told  # the year, which the model scales
    assert file == f"xnn: {model} holds the model as it was before that step"
    scaled = run("train", "--dataset", tmp_path / "house.csv", *words, "--scale-target")
    assert (scaled.exit_code, scaled.stderr) == (0, "")


@pytest.mark.parametrize(
    ("typical", "said"), [(0.005, True), (0.02, False), (14.0, False), (24.0, True), (90.0, True)]
)
def test_targets_far_from_unit_size(tmp_path, typical, said):
    assert ("--scale-target" in data.load(house(tmp_path, typical)).advice) is said


def test_a_training_that_diverges_by_its_rate_blames_no_target(tmp_path):
    path = house(tmp_path, 1.0)
    result = run("train", "--dataset", path, "--epochs", 3, "--lr", 50, "--quiet")
    assert result.exit_code == 3
    assert "smaller learning_rate than 50 (--lr)" in result.stderr
    assert "--scale-target" not in result.stderr
    assert "largest number" not in result.stderr
