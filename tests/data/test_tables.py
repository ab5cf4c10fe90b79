"""CSV, .npz and .npy files: numbers, and one clear error for anything else."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from xnn.data import load
from xnn.data.arrays import read_array, read_npz
from xnn.data.loading import samples_from_csv
from xnn.data.tables import read_csv
from xnn.data.targets import label_numbers, usual_task
from xnn.errors import CorruptFileError, DataNotFoundError, OptionError, ShapeError

# ---------------------------------------------------------------- tables

TABLE = [[1.0, 2.5, -3.0], [4.0, 5.0, 6e-3]]


@pytest.mark.parametrize(
    "text",
    [
        "a,b,c\n1,2.5,-3\n4,5,6e-3\n",
        "1,2.5,-3\n4,5,6e-3\n",
        '"a","b, or c","c"\n"1",2.5,"-3"\n4,"5",6e-3\n',
        "\ufeffa,b,c\n1,2.5,-3\n4,5,6e-3\n",
        "\ufeff1,2.5,-3\n4,5,6e-3\n",
        "a,b,c\r\n1, 2.5 ,-3\r\n\r\n4,5,6e-3",
    ],
    ids=["header", "no header", "quoted", "BOM", "BOM, no header", "CRLF, blanks"],
)
def test_csv(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    got = read_csv(path).x
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, TABLE)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a,b\n",
        b"a,b\n1,2\n3,x\n",
        b"a,b\n1,2\n3,\n",
        b"1,2\n3,4,5\n",
        b"a,b,c\n1,2\n",
        b"a,b\n1,nan\n",
        b"a,b\n1,-inf\n",
        b"a,b\n\xff\xfe,2\n",
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        b'a,b\n"' + b"1" * 200_000 + b'",2\n',
    ],
    ids=[
        "empty", "only a header", "text", "missing", "ragged", "ragged header", "nan", "inf", "not UTF-8",
        "binary", "endless field",
    ],
)  # fmt: skip
def test_csv_refuses(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError) as caught:
        read_csv(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["a,b\n1,2\n3,x\n", "1,2\n3,4\n5,x\n", "a,b\n\n1,x\n", "1,2\n3,4\n5\n", "a,b\n1,2\n3,\n"],
    ids=["header", "no header", "blank line", "ragged", "missing"],
)
def test_csv_error_names_the_line(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(CorruptFileError, match="line 3"):
        read_csv(path)


def test_missing_tables(tmp_path):
    for read, name in ((read_csv, "t.csv"), (read_npz, "t.npz"), (read_array, "t.npy")):
        with pytest.raises(DataNotFoundError, match=name):
            read(tmp_path / name)
    for name in ("t.csv", "t.npz"):
        with pytest.raises(DataNotFoundError, match=name):
            load(tmp_path / name)


class Explosive:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return open, (self.trace, "w")


def test_pickles_are_refused_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    array = np.array([Explosive(trace), None], dtype=object)
    np.savez(tmp_path / "t.npz", x=array, y=np.zeros(2))
    np.save(tmp_path / "t.npy", array)
    with pytest.raises(CorruptFileError, match=r"t\.npz"):
        load(tmp_path / "t.npz")
    with pytest.raises(CorruptFileError, match=r"t\.npy"):
        read_array(tmp_path / "t.npy")
    assert not trace.exists()


def npz_bytes(tmp_path, compressed):
    (np.savez_compressed if compressed else np.savez)(tmp_path / "whole.npz", x=np.arange(2000.0))
    return (tmp_path / "whole.npz").read_bytes()


def npy_that_announces(extent):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({extent},), }}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(16)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "npy", "bits", "deflated bits"])
def test_npz_damaged(tmp_path, damage):
    content = bytearray(npz_bytes(tmp_path, damage == "deflated bits"))
    if damage == "npy":  # a file that NumPy reads, but not as an archive
        np.save(tmp_path / "a.npy", np.arange(3.0))
        content = (tmp_path / "a.npy").read_bytes()
    elif "bits" in damage:
        content[300:400] = b"\xff" * 100
    else:
        content = {"truncated": content[:-30], "text": b"x,y\n1,2\n", "empty": b""}[damage]
    path = tmp_path / "t.npz"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"t\.npz"):
        read_npz(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"x,y\n", b"\x93NUMPY\x01\x00", npy_that_announces(100), npy_that_announces(10**15)],
    ids=["empty", "text", "truncated header", "truncated", "announces 8 PB"],
)
def test_npy_damaged(tmp_path, content):
    path = tmp_path / "t.npy"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"t\.npy"):
        read_array(path)


def test_npy_that_is_an_archive(tmp_path):
    """np.load opens it as .npz whatever its name, and returns no array."""
    path = tmp_path / "t.npy"
    path.write_bytes(npz_bytes(tmp_path, False))
    with pytest.raises(CorruptFileError, match=r"t\.npy"):
        read_array(path)


# ---------------------------------------------------------------- targets: classes or numbers


@pytest.mark.parametrize(
    ("y", "task"),
    [
        ([0, 1, 2, 1], "classification"),
        ([0.0, 1.0], "classification"),
        ([1, 2, 3, 3], "classification"),
        ([0, 2], "classification"),
        ([-1, 1, 1], "classification"),
        (["b", "a"], "classification"),
        ([3, 4, 5], "regression"),
        ([0, 1, 3], "regression"),
        ([-1, 0, 1], "regression"),
        ([0.0, 0.5], "regression"),
        ([], "regression"),
        ([[0], [1]], "regression"),
        ([0.0, np.nan], "regression"),
    ],
)
def test_usual_task(y, task):
    assert usual_task(np.array(y)) == task


@pytest.mark.parametrize(
    ("fields", "labels", "numbers"),
    [
        (["versicolor", "setosa", "virginica"] * 10, ("setosa", "versicolor", "virginica"), [1, 0, 2]),
        (["2", "1", "1"] * 10, (1, 2), [1, 0, 0]),
        (["10", "9", "9.5"] * 10, (9, 9.5, 10), [2, 0, 1]),  # by size, not by characters
        (["1a", "10", "9"] * 10, ("10", "1a", "9"), [1, 0, 2]),  # one text makes text of all
        (["1", "0", "2"] * 10, (), [1, 0, 2]),
    ],
)
def test_classes_are_numbered_in_sorted_order(tmp_path, fields, labels, numbers):
    path = tmp_path / "t.csv"
    path.write_text("".join(f"{n},{field}\n" for n, field in enumerate(fields)))
    data = load(path, task="classification")
    assert (data.task, data.labels, data.classes) == ("classification", labels, len(set(fields)))
    for x, y in ((data.x_train, data.y_train), (data.x_val, data.y_val), (data.x_test, data.y_test)):
        assert y.dtype == np.int64
        assert [numbers[int(n) % 3] for n in x[:, 0]] == y.tolist()
    if labels:
        y = np.asarray(fields[:3]) if isinstance(labels[0], str) else np.asarray(fields[:3], float)
        assert label_numbers(y, labels).tolist() == numbers
        assert label_numbers(np.array(["nothing"]), labels).tolist() == [-1]


def test_a_task_that_was_asked_for(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("".join(f"{n},{n % 3}\n" for n in range(30)))
    data = load(path, task="regression")
    assert (data.task, data.y_train.shape, data.note) == ("regression", (24, 1), "")
    path.write_text("".join(f"{n},{3 + n % 3}\n" for n in range(30)))
    assert "task='classification'" in load(path).note
    data = load(path, task="classification")
    assert (data.labels, data.note) == ((3, 4, 5), "")
    path.write_text("".join(f"{n},{n / 7}\n" for n in range(1002)))
    with pytest.raises(OptionError, match="1002 different values"):
        load(path, task="classification")
    path.write_text("".join(f"{n},{'ab'[n % 2]}\n" for n in range(30)))
    with pytest.raises(OptionError, match="text"):
        load(path, task="regression")


# ---------------------------------------------------------------- which columns

NAMED = "id,kind,size\n" + "".join(f"{n},{'xyz'[n % 3]},{n / 2}\n" for n in range(20))


@pytest.mark.parametrize("target", ["kind", 1, -2, "1", "-2", ["kind"], np.int64(1)])
def test_the_target_by_name_or_number(tmp_path, target):
    path = tmp_path / "t.csv"
    path.write_text(NAMED)
    data = load(path, target=target)
    assert (data.columns.names, data.columns.features, data.columns.targets) == (
        ("id", "kind", "size"),
        (0, 2),
        (1,),
    )
    np.testing.assert_array_equal(data.x_train[:, 0] % 3, data.y_train)
    np.testing.assert_array_equal(data.x_train[:, 0] / 2, data.x_train[:, 1])


def test_several_targets(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,c\n" + "".join(f"{n},{2 * n},{3 * n}\n" for n in range(20)))
    data = load(path, target=("c", "a"))
    assert (data.task, data.classes, data.x_train.shape) == ("regression", 2, (16, 1))
    np.testing.assert_array_equal(data.y_test, data.x_test * [1.5, 0.5])  # in the order that was asked for
    with pytest.raises(OptionError, match="one target"):
        load(path, target=("c", "a"), task="classification")
    path.write_text(NAMED)
    with pytest.raises(CorruptFileError, match=r"line 2, field 2 \('kind'\): 'x' is not a number"):
        load(path, target=("kind", "size"))


@pytest.mark.parametrize(
    "target", ["nothing", 3, -4, True, 1.5, "", "1.0", [], ["kind", 1], ["id", "kind", "size"], b"kind"]
)
def test_targets_that_are_none(tmp_path, target):
    path = tmp_path / "t.csv"
    path.write_text(NAMED)
    with pytest.raises(OptionError, match=r"t\.csv"):
        load(path, target=target)


def test_two_columns_of_one_name(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,a\n" + "1,2,3\n4,5,0.6\n" * 5)
    with pytest.raises(OptionError, match="2 columns have this name"):
        load(path, target="a")
    assert load(path, target=0).columns.features == (1, 2)


def test_a_header_that_was_asked_for(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("2019,2020,2021\n" + "1,2,3.5\n4,5,6.5\n" * 5)
    assert sum(len(y) for y in (load(path).y_train, load(path).y_val, load(path).y_test)) == 11
    data = load(path, header=True, target="2019")
    assert data.columns.targets == (0,)
    assert sum(len(y) for y in (data.y_train, data.y_val, data.y_test)) == 10
    path.write_text("a,b\n" + "1,2\n" * 5)
    with pytest.raises(CorruptFileError, match="line 1, field 1: 'a' is not a number"):
        load(path, header=False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,red,0", r"line 4, field 2 \('b'\): 'red' is not a number.*columns of 0 and 1"),
        ("1,,0", r"line 4, field 2 \('b'\): the value is missing \(''\); fill it"),
        ("?,2,0", r"line 4, field 1 \('a'\): the value is missing"),
        ("1,NA,0", "line 4, field 2 .* missing"),
        ("1,2,", r"line 4, field 3 \('y'\): the value is missing"),
        ("1,2,nan", "line 4, field 3 .* missing"),
        ("1,NaN,0", "line 4, field 2 .* missing"),
        ("1,-inf,0", "line 4, field 2 .* infinite"),
        ("1,2,1e999", "line 4, field 3 .* infinite"),
        ("1,2,-nan", "line 4, field 3 .* missing"),
        ("1,-,0", r"line 4, field 2 \('b'\): '-' is not a number"),
        ("1,2024_01,0", r"line 4, field 2 \('b'\): '2024_01' is not a number"),  # float() takes it for 202401
    ],
)
def test_errors_name_line_and_column_and_what_to_do(tmp_path, row, message):
    path = tmp_path / "t.csv"
    path.write_text(f"a,b,y\n1,2,0\n1,2,1\n{row}\n")
    with pytest.raises(CorruptFileError, match=message):
        load(path)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_fields_with_something_else_between_them(tmp_path, mark):
    path = tmp_path / "t.csv"
    path.write_text(NAMED.replace(",", mark))
    with pytest.raises(CorruptFileError, match="with commas between the fields"):
        load(path)


def test_classes_called_plus_and_minus(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "1,+\n2,-\n" * 5)
    assert load(path).labels == ("+", "-")


@pytest.mark.parametrize(
    "options",
    [
        {"task": "clustering"},
        {"header": 1},
        {"stratify": "yes"},
        {"split": (0.8, 0.2)},
        {"split": (0.8, 0.2, 0.0)},
        {"split": (0.8, 0.2, 0.2)},
        {"split": (0.8, 0.3, -0.1)},
        {"split": "811"},
        {"split": 0.8},
        {"split": (float("nan"), 0.5, 0.5)},
        {"seed": -1},
        {"seed": 1.5},
    ],
    ids=str,
)
def test_options_that_are_none(tmp_path, options):
    path = tmp_path / "t.csv"
    path.write_text(NAMED)
    with pytest.raises(OptionError, match=next(iter(options))):
        load(path, target="kind", **options)


@pytest.mark.parametrize("option", [{"target": 0}, {"header": True}, {"task": "regression"}, {"seed": 1}])
def test_options_for_tables_alone(option):
    with pytest.raises(OptionError, match=f"{next(iter(option))} is no option for synthetic"):
        load("synthetic", **option)


def test_npz_with_names_of_classes(tmp_path):
    path = tmp_path / "t.npz"
    x, y = np.arange(60.0).reshape(30, 2), np.array(["cat", "ant", "bee"] * 10)
    np.savez(path, x=x, y=y[:, None])
    data = load(path, split=(0.5, 0.25, 0.25))
    assert (data.labels, data.task, data.columns) == (("ant", "bee", "cat"), "classification", None)
    assert [len(part) for part in data] == [16, 16, 7, 7, 7, 7]
    assert [("cat", "ant", "bee")[int(row) // 2 % 3] for row in data.x_train[:, 0]] == [
        data.labels[number] for number in data.y_train
    ]
    parts = {"x_train": x, "y_train": y, "x_test": x[:4]}
    np.savez(path, **parts, y_test=y[:4])
    assert load(path).y_test.tolist() == [2, 0, 1, 2]
    for wrong in (np.array(["cat", "dog", "ant", "bee"]), np.arange(4)):
        np.savez(path, **parts, y_test=wrong)
        with pytest.raises(CorruptFileError, match="classes ant, bee, cat"):
            load(path)
    for option in ({"target": 0}, {"header": False}):
        with pytest.raises(OptionError, match="its y"):
            load(path, **option)


def test_a_label_of_another_part_does_not_make_a_model_of_a_billion_outputs(tmp_path):
    path = tmp_path / "t.npz"
    parts = {
        "x_train": np.arange(60.0).reshape(30, 2),
        "y_train": np.arange(30) % 3,
        "x_test": np.ones((2, 2)),
    }
    np.savez(path, **parts, y_test=np.array([0, 4]))
    assert load(path).classes == 5
    np.savez(path, **parts, y_test=np.array([0, 10**9]))
    with pytest.raises(CorruptFileError, match=r"classes from 0 \(up to 999\)"):
        load(path)


# ---------------------------------------------------------------- tables of a model that is trained


def trained_on(tmp_path, text, **options):
    path = tmp_path / "trained.csv"
    path.write_text(text)
    return load(path, **options).columns


@pytest.mark.parametrize(
    ("text", "x", "y"),
    [
        ("id,kind,size\n1,x,5\n", [[1, 5]], ["x"]),
        ("size,kind,id\n5,x,1\n", [[1, 5]], ["x"]),
        ("note,size,id\nold,5,1\n", [[1, 5]], None),
        ("id,size\n1,5\n", [[1, 5]], None),
        ("1,x,5\n", [[1, 5]], ["x"]),
        ("1,5\n", [[1, 5]], None),
    ],
    ids=["the same", "another order", "another column", "no target", "no header", "neither"],
)
def test_samples_by_the_names_of_the_training_table(tmp_path, text, x, y):
    columns = trained_on(tmp_path, NAMED, target="kind")
    path = tmp_path / "t.csv"
    path.write_text(text)
    found, targets = samples_from_csv(path, columns, 2)
    assert found.tolist() == x
    assert (targets is None) if y is None else targets.tolist() == y


def test_samples_that_do_not_fit(tmp_path):
    columns = trained_on(tmp_path, NAMED, target="kind")
    path = tmp_path / "t.csv"
    path.write_text("id,kind\n1,x\n")
    with pytest.raises(CorruptFileError, match="no column 'size'"):
        samples_from_csv(path, columns, 2)
    path.write_text("1,2,3,4\n")
    with pytest.raises(ShapeError, match="has 4 columns; the model takes 2 features"):
        samples_from_csv(path, columns, 2)


# ---------------------------------------------------------------- what a spreadsheet writes


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            'a,b,y\n"1,5",2,0\n',
            {},
            r"line 2, field 1 \('a'\): '1,5' is not a number: numbers are written 1\.5",
        ),
        ("a,b,y\n1,5,2,0\n", {}, r"4 fields, and 3 were expected; a comma in a number\?"),
        (
            'a,b,y\n"1,2,0\n3,4,0\n',
            {},
            r"line 2: field 1 begins with a quotation mark that is not closed: close or remove it",
        ),
        ("a;b;y\n1,5;2;0\n", {}, r"one column; .* with commas between the fields, not ';'"),
        ("1,5;2,5;0\n", {}, r"'5;2' is not a number: .* fields have commas between them"),
        ("a,b,y\n1,2,0\n", {"header": False}, r"line 1, .*'a' is not a number; .* omit --no-header"),
        ("größe,y\n1,0\n".encode("latin-1"), {}, r"not a CSV file in UTF-8 \(byte 0xf6\): save it .* UTF-8"),
    ],
    ids=["quoted", "comma", "open quote", "semicolon", "both", "header", "latin-1"],
)
def test_spreadsheets(tmp_path, content, options, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CorruptFileError, match=message):
        load(path, **options)


def test_objects_are_refused_in_our_own_words(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.array([{}, 1], dtype=object), y=np.zeros(2))
    np.save(tmp_path / "t.npy", np.array([{}, 1], dtype=object))
    for name, reads in (("t.npz", read_npz), ("t.npy", read_array)):
        with pytest.raises(CorruptFileError, match=f"{name} holds Python objects") as caught:
            reads(tmp_path / name)
        assert "allow_pickle" not in str(caught.value)


@pytest.mark.parametrize(("value", "what"), [(1e40, "too large for float32"), (-1e300, "variance")])
@pytest.mark.parametrize("kind", ["csv", "npz", "target"])
def test_numbers_too_large_are_named_with_file_and_column(tmp_path, value, what, kind):
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[::4, 2] = value
    y = np.arange(40) % 2
    if kind == "csv":
        path = tmp_path / "t.csv"
        np.savetxt(path, np.column_stack([x, y]), delimiter=",", header="a,b,c,y", comments="")
        place = r"t\.csv: field 3 \('c'\) holds"
    elif kind == "npz":
        np.savez(path := tmp_path / "t.npz", x=x, y=y)
        place = r"t\.npz: feature 2, counted from 0, holds"
    else:
        np.savez(path := tmp_path / "t.npz", x=y[:, None] + 0.5, y=x)
        place, what = r"t\.npz: target 2, counted from 0, holds", "too large for float32"
    found = load(path)

    def prepare():
        found.rescaling()
        found.check_range("float32")

    with pytest.raises(CorruptFileError, match=rf"{place} {value:g}, .*{what}".replace("+", "[+]")):
        prepare()
