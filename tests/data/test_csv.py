"""CSV files: each doubtful field, row and header is read right, or refused with its line and field."""

from __future__ import annotations

import csv
import random
import re

import numpy as np
import pytest

from xnn.data import load
from xnn.data.loading import samples_from_csv, tables_for_model
from xnn.data.tables import Columns, read_csv
from xnn.errors import CorruptFileError, OptionError, XnnError

ROWS = [f"{i % 7},{i % 5},{'xy'[i % 2]}" for i in range(60)]


def written(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def whole(data):
    return sum(map(len, (data.y_train, data.y_val, data.y_test)))


# ---------------------------------------------------------------- rows and quotation marks


def test_a_quotation_mark_that_is_not_closed_loses_no_row(tmp_path):
    rows = ROWS.copy()
    rows[30] = rows[30].replace(",x", ',"x')
    path = written(tmp_path, "a,b,kind\n" + "\n".join(rows) + "\n")
    with pytest.raises(
        CorruptFileError, match="line 32: field 3 begins with a quotation mark that is not closed"
    ):
        load(path)
    rows[40] += '"'  # closed ten rows below
    path = written(tmp_path, "a,b,kind\n" + "\n".join(rows) + "\n")
    with pytest.raises(
        CorruptFileError, match="line 32: field 3 begins with a quotation mark and holds whole rows"
    ):
        load(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('1,2,"x"y', "line 3: field 3 has text behind its closing quotation mark, 'y'"),
        ('1,2,"x" y', "line 3: field 3 has text behind"),
        ('1,2,x"', "line 3: field 3 has a quotation mark inside it, 'x\"'"),
        ('1,2,5" disk', "line 3: field 3 has a quotation mark inside it"),
        ('1,2,"x', "line 3: field 3 begins with a quotation mark that is not closed"),
        ('1,2,"x""', "line 3: field 3 begins with a quotation mark that is not closed"),
        ('"1,2,x', "line 3: field 1 begins with a quotation mark that is not closed"),
        ("1,2,x\0", "line 3: holds a byte 0"),
        ("1,2", "line 3: 2 fields, and 3 were expected"),
        ("1,2,x,", "line 3: 4 fields, and 3 were expected"),
        ("# 1,2", "line 3: 2 fields, and 3 were expected; lines of comments are not skipped"),
        ("   ,2,x", r"line 3, field 1 \('a'\): the value is missing"),
        ("1,2," + "x" * 140_000, "line 3: field 3 has 140,000 characters"),
        ('1,2,"' + "x" * 140_000 + '"', "line 3: field 3 has 140,000 characters"),
        ("1,2," + "x" * 1001, r"line 3, field 3 \('kind'\): a name of a class has up to 1000 characters"),
    ],
    ids=range(15),
)
def test_rows_that_are_refused(tmp_path, row, message):
    path = written(tmp_path, f"a,b,kind\n1,2,y\n{row}\n1,2,z\n")
    with pytest.raises(CorruptFileError, match=rf"t\.csv, {message}"):
        load(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_those_of_the_file_also_after_fields_of_several_lines(tmp_path, end):
    rows = ["a,kind", '1,"p', 'q"', "", '2,"r', "", 's"', "3,x", "oops,y"]
    path = written(tmp_path, end.join(rows) + end)
    with pytest.raises(CorruptFileError, match=r"line 9, field 1 \('a'\): 'oops' is not a number"):
        load(path)
    table = read_csv(written(tmp_path, end.join(rows[:-1])), lambda names, width: ((0,), (1,)))
    assert (list(table.lines), table.fields[0]) == ([2, 5, 8], ["p\nq", "r\n\ns", "x"])
    path = written(tmp_path, end.join(['"a"', '"1', '"', "2", 'x"']))
    with pytest.raises(CorruptFileError, match="line 5: field 1 has a quotation mark inside"):
        read_csv(path)


def test_spaces_before_and_behind_quotation_marks(tmp_path):
    text = '"a", "kind"\n' + "".join(
        f'{i % 7}, "{"xy"[i % 2]}" \n' if i % 3 else f'{i % 7},"{"xy"[i % 2]}"\n' for i in range(60)
    )
    data = load(written(tmp_path, text))
    assert (data.labels, data.columns.names) == (("x", "y"), ("a", "kind"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3,é\n".encode("latin-1"), r"line 3: this is not a CSV file in UTF-8 \(byte 0xe9\)"),
        ("a,b\n1,2\n".encode("utf-16"), r"line 1: .* not a CSV file in UTF-8 \(byte 0xf[ef] \(UTF-16\)\)"),
        ("a,b\n1,2\n".encode("utf-16-le"), "line 1: holds a byte 0"),
        (b"# made by hand\na,b\n1,2\n", "one column.*lines of comments are not skipped"),
    ],
    ids=["Latin-1", "UTF-16 with a mark", "UTF-16", "comment"],
)
def test_other_encodings_and_comments(tmp_path, content, message):
    with pytest.raises(CorruptFileError, match=message):
        load(written(tmp_path, content))


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("xnn.data.csv_rows._LONGEST_LINE", 1000)
    with pytest.raises(CorruptFileError, match="line 2: has no end"):
        read_csv(written(tmp_path, "a,b\n" + "1," * 2000))


def oracle(text):
    """The rows as Python's csv module reads them."""
    rows = [
        [field.strip() for field in row]
        for row in csv.reader(text.splitlines(True), strict=True, skipinitialspace=True)
    ]
    return [row for row in rows if row and row != [""]]


def test_random_tables_are_read_as_by_the_csv_module(tmp_path):
    rng, read, refused = random.Random(0), 0, 0
    fields = ["1", "-2.5", "1e3", "x", "NA", "", "a,b", 'p"q', "007", " 4 ", "\n", "é"]
    for _ in range(600):
        text = ""
        for _ in range(rng.randint(1, 5)):
            row = [rng.choice(fields) for _ in range(3)]
            quote = [any(c in field for c in ',"\n') or rng.random() < 0.2 for field in row]
            row = [
                f'"{f.replace(chr(34), 2 * chr(34))}"' if q else f for f, q in zip(row, quote, strict=True)
            ]
            text += ",".join(row) + rng.choice(["\n", "\r\n"])
        if rng.random() < 0.3:
            place = rng.randrange(len(text))
            text = text[:place] + rng.choice('",x \n') + text[place + 1 :]
        path = written(tmp_path, text)
        try:
            table = read_csv(path, lambda names, width: ((), range(width)), header=False, training=False)
        except CorruptFileError:
            refused += 1
            continue
        expected = [[field.replace("\r\n", "\n") for field in row] for row in oracle(text)]
        assert [list(row) for row in zip(*table.fields, strict=True)] == expected, repr(text)
        read += 1
    assert read > 300
    assert refused > 50


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_random_tables_are_read_as_by_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    rng = random.Random(1)
    numbers = ["1", "-2.5", "1e3", ".5", "7.", "+3", "1E-300", "1e300", "0", " 4 ", "00.25", "x", "1_0"]
    read = 0
    for _ in range(200):
        rows = [[rng.choice(numbers[: rng.choice([11, 11, 11, 13])]) for _ in range(3)] for _ in range(4)]
        path = written(tmp_path, "".join(",".join(row) + "\n" for row in [["a", "b", "y"], *rows]))
        try:
            table = read_csv(path)
        except XnnError:
            continue
        np.testing.assert_array_equal(table.x, pandas.read_csv(path, float_precision="round_trip").to_numpy())
        read += 1
    assert read > 50


# ---------------------------------------------------------------- fields


@pytest.mark.parametrize(
    "field",
    ["1_000", "0x1F", "1,5", "1 000", "12%", "$5", "2024-01-31", "١", "−5", "x", "1d5", "1e", "--1", "1.2.3"],
)  # fmt: skip
def test_features_that_are_no_numbers(tmp_path, field):
    path = written(tmp_path, f'a,b,y\n1,2,0\n3,"{field}",1\n')
    with pytest.raises(CorruptFileError, match=r"line 3, field 2 \('b'\): .* is not a number") as caught:
        load(path)
    assert repr(field) in str(caught.value)


@pytest.mark.parametrize("field", ["inf", "-Infinity", "1e999"])
@pytest.mark.parametrize("column", ["b", "y"])
def test_infinity(tmp_path, field, column):
    row = f"1,{field},0.5" if column == "b" else f"1,2,{field}"
    path = written(tmp_path, f"a,b,y\n1,2,1.5\n{row}\n")
    with pytest.raises(CorruptFileError, match=rf"line 3, field \d \('{column}'\): the value is infinite"):
        load(path)


@pytest.mark.parametrize("field", ["", "NA", "n/a", "#N/A", "<NA>", "nan", "-NaN", "NULL", "?"])
def test_missing_values_and_classes_of_that_name(tmp_path, field):
    path = written(tmp_path, "a,b,y\n1,2,x\n1,2,z\n3,4," + field + "\n")
    with pytest.raises(CorruptFileError, match=r"line 4, field 3 \('y'\): the value is missing"):
        load(path)
    path = written(tmp_path, "a,y\n" + f'1,"{field}"\n2,x\n' * 30)
    if field:
        data = load(path)
        assert data.labels == tuple(sorted([field, "x"]))
        assert f'took "{field}" among the targets as a class' in data.note
    else:
        with pytest.raises(CorruptFileError, match="missing"):
            load(path)
    path = written(tmp_path, f'a,y\n"{field}",x\n')
    with pytest.raises(CorruptFileError, match=r"line 2, field 1 \('a'\): the value is missing"):
        load(path)


def test_integers_beyond_2_to_53(tmp_path):
    def rows(target, feature="1"):
        return written(tmp_path, "a,id\n" + "".join(f"{feature},{target(i)}\n" for i in range(60)))

    data = load(rows(lambda i: 2**53 + i % 3))
    assert data.labels == ("9007199254740992", "9007199254740993", "9007199254740994")
    assert "holds 9007199254740993, which as a number would lose digits" in data.note
    with pytest.raises(
        CorruptFileError, match=r"line 3, field 2 \('id'\): 9007199254740993 is an integer beyond"
    ):
        load(rows(lambda i: 2**53 + i % 3), task="regression")
    with pytest.raises(
        CorruptFileError, match=r"line 2, field 1 \('a'\): 9007199254740993 is an integer beyond"
    ):
        load(rows(lambda i: i % 2, 2**53 + 1))
    assert load(rows(lambda i: i % 2, 2**60)).x_train[0, 0] == 2.0**60  # held exactly
    assert (
        load(rows(lambda i: i % 2, "9007199254740993.0")).x_train[0, 0] == 2.0**53
    )  # written as a measurement


def test_codes_with_leading_zeros_are_names(tmp_path):
    path = written(tmp_path, "a,zip\n" + "1,007\n2,7\n3,010\n" * 20)
    data = load(path)
    assert (data.labels, data.classes) == (("007", "010", "7"), 3)
    assert "field 2 ('zip'), holds 007, which as a number would lose digits" in data.note
    assert load(path, task="regression").y_train.max() == 10.0
    assert load(written(tmp_path, "a,y\n" + "1,0.5\n2,-0.25\n3,0\n" * 20)).task == "regression"


@pytest.mark.parametrize("field", ["12.5x", "1,234", "12%", "2024-01-31", "l2", "\u22125"])
def test_a_damaged_number_makes_no_classes_of_a_regression(tmp_path, field):
    path = written(tmp_path, "a,y\n" + "".join(f"{i},{i / 7}\n" for i in range(50)) + f'3,"{field}"\n')
    with pytest.raises(CorruptFileError, match=r"line 52, field 2 \('y'\): the target .* is not a number"):
        load(path)
    assert load(path, task="classification").classes == 51


@pytest.mark.parametrize("form", ["{}%", "${}", "2024-01-{}", "0x{}", '"1,{}"', "{} 000"])
def test_targets_written_like_numbers_are_no_classes(tmp_path, form):
    path = written(tmp_path, "a,y\n" + "".join(f"{i},{form.format(i + 100)}\n" for i in range(50)))
    with pytest.raises(CorruptFileError, match=r"line 2, field 2 \('y'\): the target .* is not a number"):
        load(path)
    few = written(tmp_path, "a,y\n" + "".join(f"{i},{form.format(i % 3 + 100)}\n" for i in range(50)))
    assert load(few).classes == 3


def test_a_few_numbers_with_text_among_them_are_classes_and_said(tmp_path):
    path = written(tmp_path, "a,y\n" + "1,1\n2,2\n3,other\n" * 20)
    data = load(path)
    assert data.labels == ("1", "2", "other")
    assert (
        "field 2 ('y'), mixes numbers with text ('other' in line 4): its values are names of classes"
        in data.note
    )
    assert load(path, task="classification").note == ""


def test_semicolons_with_decimal_commas_and_no_header(tmp_path):
    with pytest.raises(CorruptFileError, match=r"line 1, field 2: '5;x' is a single field: .* not ';'"):
        load(written(tmp_path, "1,5;x\n2,5;y\n" * 10))


def test_commas_at_the_end_of_each_line(tmp_path):
    with pytest.raises(
        CorruptFileError, match=r"line 2, field 3 \(''\): .*; or is there a comma at the end of each line"
    ):
        load(written(tmp_path, "a,b,\n" + "1,2,\n" * 20))


# ---------------------------------------------------------------- headers

FRACTIONS, WHOLE = "0.5,1.5,3\n1.5,2.5,4\n", "5,6,1\n2,7,0\n"
NAMES, WHOLE_NAMES = "5.1,3.5,setosa\n4.9,3.0,virginica\n5.0,3.1,setosa\n", "5,3,a\n4,3,b\n4,2,a\n"


@pytest.mark.parametrize(
    ("first", "rows", "header", "said"),
    [
        ("a,b,c", NAMES, True, ""),
        (",b,c", FRACTIONS, True, ""),
        ("0,1,target", FRACTIONS, True, "took line 1 as a header: 0, 1, target"),
        ("0,1,target", WHOLE, True, "took line 1 as a header"),
        ("0,1,species", NAMES, True, "took line 1 as a header"),
        ("0,1,species", WHOLE_NAMES, True, "took line 1 as a header"),
        ("0,1,2", FRACTIONS, True, "took line 1 as a header: 0, 1, 2"),
        (",0,target", FRACTIONS, True, "took line 1 as a header: '', 0, target"),
        ("2019,2020,price", FRACTIONS, True, "took line 1 as a header"),
        ("id,2019,price", FRACTIONS, True, "took line 1 as a header"),
        ("0,1,2", WHOLE, False, r"took line 1 \(0, 1, 2\) as data, not as names"),
        ("2019,2020,2021", FRACTIONS, False, "took line 1 .* as data"),
        ("5,3,a", WHOLE_NAMES, False, ""),
        ("0,1,a", WHOLE_NAMES, False, ""),
        ("5,3,rare", WHOLE_NAMES, False, ""),
        ("5.2,3.3,rare", NAMES, False, ""),
        ("7,3,2", WHOLE, False, ""),
    ],
)
def test_a_first_line_with_numbers(tmp_path, first, rows, header, said):
    path = written(tmp_path, f"{first}\n{rows}")
    table = read_csv(path, lambda names, width: ((0, 1), (2,)))
    assert (table.columns.names == tuple(first.split(","))) is header
    assert len(table.x) == rows.count("\n") + (not header)
    (note,) = table.notes or ("",)
    assert re.match(said, note)
    assert bool(note) is bool(said)
    table = read_csv(path, lambda names, width: ((0, 1), (2,)), header=True)
    assert (len(table.x), table.notes) == (rows.count("\n"), ())  # what was asked for need not be said


@pytest.mark.parametrize(
    ("first", "rows", "error", "message"),
    [
        ("5.1,x?,setosa", NAMES, CorruptFileError, "line 1, field 2: 'x[?]' is not a number"),
        ("5.1,?,setosa", NAMES, CorruptFileError, "line 1, field 2: the value is missing"),
        ("5,NA,1", WHOLE, CorruptFileError, "line 1, field 2: the value is missing"),
        ("x?,y?,setosa", NAMES, OptionError, "line 1 .* may be a header or a row: 'setosa' comes again"),
        ("x?,3,4", WHOLE, OptionError, r"line 1 \(x\?, 3, 4\) may be a header or a damaged row"),
        ("2019,2022,price", FRACTIONS, OptionError, "line 1 .* may be a header or a damaged row"),
    ],
)
def test_a_damaged_first_row_is_no_header(tmp_path, first, rows, error, message):
    path = written(tmp_path, f"{first}\n{rows}")
    with pytest.raises(error, match=message):
        read_csv(path, lambda names, width: ((0, 1), (2,)))


def test_the_name_of_the_target_makes_a_header(tmp_path):
    path = written(tmp_path, "2019,7,y\n" + "1,2,3\n4,5,7\n" * 10)
    assert load(path, target="y").columns.names == ("2019", "7", "y")


def test_columns_without_a_name_and_with_the_same_name_are_said(tmp_path):
    rows = "".join(f"{i},{i * i % 7},{'xy'[i % 2]}\n" for i in range(20))
    note = load(written(tmp_path, ",b,kind\n" + rows)).note
    assert note.startswith("column 1 has no name and counts the rows, as an index does")
    assert load(written(tmp_path, "a,b,kind\n" + rows)).note == ""
    assert load(written(tmp_path, "b,,kind\n" + rows)).note == ""
    assert "columns 1, 2 have one name, 'a'" in load(written(tmp_path, "a,a,kind\n" + rows)).note


# ---------------------------------------------------------------- tables for a trained model

COLUMNS = Columns(("a", "b", "kind"), (0, 1), (2,))
NUMBERED = Columns(("0", "1", "target"), (0, 1), (2,))


@pytest.mark.parametrize(
    ("columns", "text", "x"),
    [
        (NUMBERED, "0,1\n5,6\n7,8\n", [[5, 6], [7, 8]]),
        (NUMBERED, "1,0\n5,6\n7,8\n", [[6, 5], [8, 7]]),
        (NUMBERED, "target,1,0\n,6,5\n", [[5, 6]]),
        (NUMBERED, "0,1\n", []),
        (NUMBERED, "5,6\n7,8\n", [[5, 6], [7, 8]]),
        (COLUMNS, "a,b\n", []),
        (COLUMNS, "b,a,b2\n1,2,3\n", [[2, 1]]),
        (Columns(("a", "b", "kind"), (0, 1), (2,), header=True), "5,6\n7,8\n", [[5, 6], [7, 8]]),
        (Columns(("a", "a", "kind"), (0, 1), (2,)), "a,a\n5,6\n", [[5, 6]]),
        (Columns((), (0, 1), (2,)), "5,6\n7,8\n", [[5, 6], [7, 8]]),
    ],
)
def test_the_names_of_the_training_table_make_the_header(tmp_path, columns, text, x):
    assert samples_from_csv(written(tmp_path, text), columns, 2)[0].tolist() == x


@pytest.mark.parametrize(
    ("columns", "text", "message"),
    [
        (COLUMNS, "a,b,a\n1,2,3\n", "has 2 columns 'a', and the model was trained on one"),
        (COLUMNS, "a,b,kind,kind\n1,2,x,y\n", "has 2 columns 'kind'"),
        (COLUMNS, "a,c\n1,2\n", "has no column 'b'"),
        (Columns(("a", "a", "kind"), (0, 1), (2,)), "b,a\n1,2\n", "give the same in the same order"),
        (COLUMNS, "a,b\n1,2\n3,x\n", r"line 3, field 2 \('b'\): 'x' is not a number"),
    ],
)
def test_tables_that_do_not_fit_a_model(tmp_path, columns, text, message):
    with pytest.raises(CorruptFileError, match=message):
        samples_from_csv(written(tmp_path, text), columns, 2)


def test_rows_without_a_target_are_predicted(tmp_path):
    (table,) = tables_for_model(written(tmp_path, "a,b,kind\n1,2,x\n3,4,\n5,6,NA\n"), COLUMNS, 2)
    assert (table.x.tolist(), table.unlabelled) == ([[1, 2], [3, 4], [5, 6]], (3, 4))


def test_the_cases_of_the_issue(tmp_path):
    """A header of numbers, 60 rows below it, and no class called target."""
    rng = np.random.default_rng(0)
    rows = "".join(f"{a},{b},{int(a > 0)}\n" for a, b in rng.normal(size=(60, 2)).tolist())
    data = load(written(tmp_path, "0,1,target\n" + rows))
    assert (whole(data), data.labels, data.classes) == (60, (), 2)


# ---------------------------------------------------------------- very long numbers

LONG = ("1" * 5000, "9" * 400, "9" * 30, "0" * 6000 + "9007199254740993", "-" + "9" * 30, "0" * 6000 + "1")


@pytest.mark.parametrize("number", LONG)
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("task", [None, "classification", "regression"])
def test_long_numbers_anywhere_are_read_or_refused(tmp_path, number, place, first, task):
    rows = [[str(i), str(i / 4), str(i % 3)] for i in range(30)]
    rows[0 if first else 10][place] = number
    path = written(tmp_path, "\n".join(map(",".join, rows)))
    try:
        data = load(path, task=task)
    except XnnError:
        return
    assert whole(data) == 30  # a row of numbers is no header
    if place < 2:
        x = np.concatenate([data.x_train, data.x_val, data.x_test])
        assert np.sort(x[:, place])[-1 if float(number) > 29 else 0] == float(number) or float(number) == 1
    list(tables_for_model(path, None, 2))
