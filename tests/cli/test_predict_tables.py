"""`xnn predict` of tables: a line for each row, or an error before the first line."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from command_line import command, one_json, refused, run

import xnn
from xnn.data import load

ROWS = np.random.default_rng(0).normal(size=(60, 2)).tolist()


def trained(tmp_path, text, *options):
    """The file of a model that was trained on a table of this text."""
    table, model = tmp_path / "trained.csv", tmp_path / "m.safetensors"
    table.write_text(text)
    result = run(
        "train", "--dataset", table, "--epochs", 2, "--hidden", 4, "--save", model, "--quiet", *options
    )
    assert result.exit_code == 0, result.output
    return model


def rows_of(label, header):
    return header + "\n" + "".join(f"{a},{b},{label(a)}\n" for a, b in ROWS)


def test_a_header_of_numbers_is_not_predicted(tmp_path):
    model = trained(tmp_path, rows_of(lambda a: int(a > 0), "0,1,target"))
    table = tmp_path / "p.csv"
    table.write_text("0,1\n" + "".join(f"{a},{b}\n" for a, b in ROWS[:5]))
    result = run("predict", model, table)
    assert len(result.stdout.splitlines()) == 5
    assert result.stderr == "xnn: took line 1 as a header: 0, 1\n"
    table.write_text("".join(f"{a},{b}\n" for a, b in ROWS[:5]))
    assert len(run("predict", model, table).stdout.splitlines()) == 5
    table.write_text("0,1\n" * 3)
    assert len(run("predict", model, table, "--no-header").stdout.splitlines()) == 3
    assert len(run("predict", model, table).stdout.splitlines()) == 2


def test_two_columns_of_one_name_are_refused(tmp_path):
    model = trained(tmp_path, rows_of(lambda a: "np"[int(a > 0)], "a,b,kind"))
    table = tmp_path / "p.csv"
    table.write_text("a,b,a\n" + "".join(f"{a},{b},{-a}\n" for a, b in ROWS[:5]))
    refused(run("predict", model, table), 4, "has 2 columns 'a', and the model was trained on one")


@pytest.mark.parametrize("last", ["x,1", "1", "1,2,3,4", "NA,1", '1,"2', "inf,0", "9007199254740993,1"])
def test_a_row_that_cannot_be_read_is_an_error_before_the_first_line(tmp_path, last):
    model = trained(tmp_path, rows_of(lambda a: "np"[int(a > 0)], "a,b,kind"))
    table = tmp_path / "p.csv"
    table.write_text("a,b\n1,2\n3,4\n" + last)
    refused(run("predict", model, table), 4, "p.csv, line 4")


@pytest.mark.parametrize("text", ["a,b\n", "a,b,kind\n", "a,b\n\n\n"])
@pytest.mark.parametrize("label", ["np", (0.5, 1.5)], ids=["classes", "numbers"])
def test_a_table_without_rows(tmp_path, text, label):
    model = trained(
        tmp_path,
        rows_of(lambda a: label[int(a > 0)], "a,b,kind"),
        *(() if label == "np" else ("--task", "regression")),
    )
    table = tmp_path / "p.csv"
    table.write_text(text)
    result = run("predict", model, table)
    said = f"xnn: {table} holds no samples, so there is nothing to predict\n"
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", said)
    assert one_json(run("predict", model, table, "--json")) == {"predictions": [], "accuracy": None}


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["n", "", "p"], "xnn: no accuracy: 1 of 3 rows have no target, the first in line 3\n"),
        (["", "NA", "?"], ""),
        (
            ["n", "other", "p"],
            "xnn: no accuracy: 1 of 3 samples are of a class that the model does not know (other)\n",
        ),
    ],
)
def test_rows_without_a_target_are_predicted(tmp_path, targets, said):
    model = trained(tmp_path, rows_of(lambda a: "np"[int(a > 0)], "a,b,kind"))
    table = tmp_path / "p.csv"
    table.write_text("a,b,kind\n" + "".join(f"1,2,{target}\n" for target in targets))
    result = run("predict", model, table)
    assert (result.exit_code, len(result.stdout.splitlines()), result.stderr) == (0, 3, said)


def test_classes_that_are_text_and_look_like_numbers(tmp_path):
    """The truth is compared as text, although all of these fields are numbers."""
    model = trained(tmp_path, rows_of(lambda a: "007" if a > 0 else "7", "a,b,code"))
    assert xnn.load(model).layers
    table = tmp_path / "p.csv"
    table.write_text(rows_of(lambda a: "007", "a,b,code"))
    result = run("predict", model, table)
    assert set(result.stdout.split()) <= {"007", "7"}
    share = np.mean([line == "007" for line in result.stdout.split()])
    assert result.stderr == f"accuracy {share:.4f} over 60 samples\n"


@pytest.mark.parametrize("options", [(), ("--class-weight", "balanced"), ("--numerics", "exact")])
@pytest.mark.parametrize("label", ["cat", "0", "7", "0.5"])
def test_one_class(tmp_path, label, options):
    model = trained(tmp_path, rows_of(lambda a: label, "a,b,kind"), "--task", "classification", *options)
    result = run("predict", model, tmp_path / "trained.csv")
    assert result.stdout.splitlines() == [label] * 60
    assert result.stderr == "accuracy 1.0000 over 60 samples\n"


@pytest.mark.parametrize(
    ("label", "printed"),
    [
        ("p\nq", r"p\nq"),
        ("r\x1b[31m", r"r\x1b[31m"),
        ("a\r", "a"),
        ("t\tt", r"t\tt"),
        ("é \u2028", "é"),
        ("x\u2028y", r"x\u2028y"),
    ],
)
def test_labels_are_printed_in_one_line(tmp_path, label, printed):
    model = trained(tmp_path, rows_of(lambda a: f'"{label}"' if a > 0 else "z", "a,b,kind"))
    result = run("predict", model, tmp_path / "trained.csv")
    assert result.stdout.count("\n") == 60
    assert "\x1b" not in result.stdout
    assert set(result.stdout.split("\n")) <= {printed, "z", ""}


def test_a_reader_that_has_enough(tmp_path):
    """As other programs whose output goes to head: no traceback, and the exit code of SIGPIPE."""
    model = trained(tmp_path, rows_of(lambda a: "np"[int(a > 0)], "a,b,kind"))
    table = tmp_path / "p.csv"
    table.write_text("a,b\n" + "1,2\n" * 100_000)
    words = [sys.executable, "-m", "xnn", "predict", str(model), str(table)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() in ("n\n", "p\n")
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 141)


def test_a_closed_output(tmp_path):
    model = trained(tmp_path, rows_of(lambda a: "np"[int(a > 0)], "a,b,kind"))
    script = f'exec "{sys.executable}" -m xnn predict "{model}" "{tmp_path / "trained.csv"}" >&-'
    result = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stderr) == (1, "xnn: cannot write the output: Bad file descriptor\n")


def test_header_is_for_tables(model):
    refused(run("predict", model, "synthetic", "--header"), 2, "--header and --no-header are for .csv files")


def test_the_scripts_of_the_issue_reach_one_accuracy(tmp_path):
    """Timestamps, numbers far from 0 and tiny ones are learned as well as plain ones."""
    z = np.random.default_rng(0).normal(size=400).tolist()
    kinds = {
        "plain": lambda v: v,
        "stamp": lambda v: 1.7e9 + 60 * v,
        "big": lambda v: 1e8 + v,
        "tiny": lambda v: v * 1e-40,
    }
    found = {}
    for name, of in kinds.items():
        table = tmp_path / f"{name}.csv"
        table.write_text("v,kind\n" + "".join(f"{of(v)!r},{'hi' if v > 0 else 'lo'}\n" for v in z))
        save = tmp_path / "m.safetensors"
        report = one_json(
            run("train", "--dataset", table, "--epochs", 10, "--hidden", 8, "--save", save, "--json")
        )
        printed = run("predict", save, table).stdout.split()
        data = load(table)
        classes = xnn.load(save).predict_classes(data.x_test)
        assert np.mean(classes == data.y_test) == report["test_accuracy"]
        found[name] = printed, report["test_accuracy"]
    assert all(result == found["plain"] for result in found.values())
    assert found["plain"][1] > 0.9


def test_a_process_of_its_own_prints_the_same(tmp_path):
    model = trained(tmp_path, rows_of(lambda a: "np"[int(a > 0)], "a,b,kind"))
    result = command("predict", model, tmp_path / "trained.csv")
    assert (result.returncode, result.stdout) == (0, run("predict", model, tmp_path / "trained.csv").stdout)


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("model"), rows_of(lambda a: int(a > 0), "a,b,y"))


@pytest.mark.parametrize(
    ("y", "known"),
    [("1", True), ("01", True), ("1.0", True), ("9" * 25, False), ("0" * 90 + "1", True),
     ("\u0661", False), ("\u00b2", False), ("-1", False), ("1e0", True), ("x", False)],
)  # fmt: skip
def test_targets_are_classes_that_are_known_or_not(of_classes, tmp_path, y, known):
    table = tmp_path / "p.csv"
    table.write_text(f"a,b,y\n1,2,{y}\n3,4,0\n", encoding="utf-8")
    result = run("predict", of_classes, table)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 2
    assert ("no accuracy: " in result.stderr) is not known
    assert "accuracy" in result.stderr


def test_an_infinite_target(of_classes, tmp_path):
    table = tmp_path / "p.csv"
    table.write_text(f"a,b,y\n1,2,{'1' * 900}\n")
    refused(run("predict", of_classes, table), 4, "p.csv, line 2, field 3 ('y'): the value is infinite")
