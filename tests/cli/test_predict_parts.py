"""`xnn predict` of many samples: part by part, with the bits of all at once, in memory that does not grow."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from command_line import one_json, refused, run

import xnn
from xnn import layers
from xnn.backends import row_sources
from xnn.cli import predict, predictions, samples
from xnn.data import arrays
from xnn.layers import files

ROWS, FEATURES = 3000, 4
X = np.random.default_rng(0).standard_normal((ROWS, FEATURES))
COLUMNS = {"names": ["a", "b", "c", "d", "kind"], "features": [0, 1, 2, 3], "targets": [4], "header": None}


@pytest.fixture
def parts(monkeypatch):
    """Each batch of 1024 rows is a part, and what is printed goes through a file."""
    monkeypatch.setattr(samples, "_NUMBERS", 1)
    monkeypatch.setattr(predictions, "_KEPT", 100)
    monkeypatch.setattr(row_sources, "_BLOCK", 2**12)
    monkeypatch.setattr(arrays, "_CHUNK", 2**12)


def saved(folder, labels=("no", "yes"), task="classification", outputs=2):
    """The file of a model, and the model."""
    net = xnn.Sequential(
        layers.Dense(FEATURES, 16), layers.Tanh(), layers.Dense(16, 16), layers.Dense(16, outputs), seed=3
    )
    files.save(
        net,
        folder / "m.safetensors",
        {"labels": labels, "columns": COLUMNS, "features": FEATURES, "task": task},
    )
    return folder / "m.safetensors", net


def write_csv(path, x, y):
    rows = (",".join(map(repr, row)) + f",{target}\n" for row, target in zip(x.tolist(), y, strict=True))
    path.write_text("a,b,c,d,kind\n" + "".join(rows))


FORMS = {
    "x.csv": write_csv,
    "x.npy": lambda path, x, y: np.save(path, x),
    "x.npz": lambda path, x, y: np.savez(path, x=x, y=np.array(y)),
    "columns.npz": lambda path, x, y: np.savez(path, x=np.asfortranarray(x.reshape(-1, 2, 2)), y=np.array(y)),
}


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("rows", [1, 1024, 2048, ROWS])
@pytest.mark.parametrize("form", FORMS)
def test_the_bits_are_those_of_all_samples_at_once(tmp_path, form, rows):
    model, net = saved(tmp_path)
    expected = net.predict(X[:rows])
    names = [("no", "yes")[n] for n in expected.argmax(axis=1)]
    truth = [("no", "yes")[n % 2] for n in range(rows)]
    FORMS[form](tmp_path / form, X[:rows], truth)
    result = run("predict", model, tmp_path / form, "--output", tmp_path / "o.npy")
    assert result.stdout.splitlines() == names
    content = io.BytesIO()
    np.save(content, expected)
    assert (tmp_path / "o.npy").read_bytes() == content.getvalue()
    accuracy = None if form == "x.npy" else np.mean(np.array(names) == truth)
    assert result.stderr == ("" if accuracy is None else f"accuracy {accuracy:.4f} over {rows} samples\n")
    assert one_json(run("predict", model, tmp_path / form, "--json")) == {
        "predictions": names,
        "accuracy": accuracy,
    }


@pytest.mark.usefixtures("parts")
def test_numbers_of_a_regression_are_printed_part_by_part(tmp_path):
    model, net = saved(tmp_path, (), "regression", 3)
    np.save(tmp_path / "x.npy", X)
    expected = net.predict(X).tolist()
    lines = run("predict", model, tmp_path / "x.npy").stdout.splitlines()
    assert lines == [",".join(map(str, row)) for row in expected]
    assert one_json(run("predict", model, tmp_path / "x.npy", "--json"))["predictions"] == expected


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ({5: "", 2900: "?"}, "no accuracy: 2 of 3000 rows have no target, the first in line 7"),
        ({2900: ""}, "no accuracy: 1 of 3000 rows have no target, the first in line 2902"),
        (dict.fromkeys(range(ROWS), ""), ""),
        (
            {9: "a", 1500: "b", 2900: "a"},
            "no accuracy: 3 of 3000 samples are of a class that the model does not know (a, b)",
        ),
        ({2999: '"NA"'}, 'a class that the model does not know (NA)|took "NA" among the targets as a class'),
    ],
)
def test_what_is_said_of_the_targets_is_about_all_of_them(tmp_path, targets, said):
    model, _ = saved(tmp_path)
    write_csv(tmp_path / "x.csv", X, [targets.get(n, "no") for n in range(ROWS)])
    result = run("predict", model, tmp_path / "x.csv")
    assert len(result.stdout.splitlines()) == ROWS
    assert all(part in result.stderr for part in said.split("|"))
    assert result.stderr.count("\n") == (0 if not said else 1 + said.count("|"))


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("row", [0, 1500, 2999])
def test_an_error_in_any_part_comes_before_the_first_line_and_leaves_the_old_file(tmp_path, row):
    model, _ = saved(tmp_path)
    (tmp_path / "o.npy").write_bytes(b"old")
    write_csv(tmp_path / "x.csv", X, ["no"] * ROWS)
    lines = (tmp_path / "x.csv").read_text().splitlines()
    lines[row + 1] = "1,2,3,?,no"
    (tmp_path / "x.csv").write_text("\n".join(lines))
    refused(
        run("predict", model, tmp_path / "x.csv", "--output", tmp_path / "o.npy"),
        4,
        f"line {row + 2}, field 4 ('d')",
    )
    x = X.copy()
    x[row] = np.nan
    np.save(tmp_path / "x.npy", x)
    result = run("predict", model, tmp_path / "x.npy", "--output", tmp_path / "o.npy")
    refused(result, 4, f"the outputs for sample {row} are NaN")
    assert (tmp_path / "o.npy").read_bytes() == b"old"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".xnn")]


@pytest.mark.usefixtures("parts")
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
@pytest.mark.parametrize("rows", [3, ROWS])
def test_a_full_disk_for_what_is_printed_is_told_of(tmp_path, monkeypatch, rows):
    model, _ = saved(tmp_path)
    np.save(tmp_path / "x.npy", X[:rows])
    monkeypatch.setattr(predictions, "_KEPT", 1)

    def full(**options):
        return open("/dev/full", "w", encoding="utf-8")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    refused(run("predict", model, tmp_path / "x.npy"), 5, "TMPDIR names another folder")


def test_a_damaged_archive_is_refused(tmp_path):
    """Its arrays are mapped, and their checksums are compared all the same."""
    model, _ = saved(tmp_path)
    np.savez(tmp_path / "x.npz", x=X)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    refused(run("predict", model, tmp_path / "x.npz"), 4, "Bad CRC-32")


@pytest.mark.sampled(8)
@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("form", ["x.npy", "x.npz"])
def test_the_memory_for_arrays_does_not_grow_with_the_samples(tmp_path, form):
    model, _ = saved(tmp_path, (), "regression", 1)
    found = []
    for rows in (2_000, 10_000, 40_000):
        FORMS[form](tmp_path / form, np.zeros((rows, FEATURES)), [0] * rows)
        tracemalloc.start()
        predict.predict_command(str(model), str(tmp_path / form), None, str(tmp_path / "o.npy"), True)
        found.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    grown = found[2] - found[1]
    assert grown < 2**18  # and the samples have 0.3 and 1.3 MB


# VmHWM is the peak of this program alone; that of getrusage begins with the memory of the process that started it.
_CHILD = """
import json, re, sys
from pathlib import Path
from xnn.cli import predict, predictions, samples
samples._NUMBERS = predictions._KEPT = 1
found = []
for table in sys.argv[2:]:
    sys.stdout = open("/dev/null", "w")
    predict.predict_command(sys.argv[1], table, None, table + ".npy", False)
    found.append(1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]))
sys.__stdout__.write(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/self/status")
def test_the_memory_for_a_table_does_not_grow_with_its_rows(tmp_path):
    model, _ = saved(tmp_path)
    tables = []
    for rows in (2_000, 10_000, 60_000):
        tables.append(tmp_path / f"{rows}.csv")
        tables[-1].write_text("a,b,c,d,kind\n" + "0.25,1.5,-2.75,3,yes\n" * rows)
    words = [sys.executable, "-c", _CHILD, str(model), *map(str, tables)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found[2] < found[1] + 2 * 2**20  # all rows at once would take 15 MB more
