"""`xnn predict`: every form of data, labels, accuracy, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from command_line import one_json, refused, run

import xnn
from xnn import layers
from xnn.data import idx, load, shards, synthetic_digits
from xnn.layers import files


def save_csv(path, x, y):
    np.savetxt(path, np.column_stack([x, y]), delimiter=",", fmt="%d")


def save_idx(path, x, y):
    head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (len(x), 28, 28))
    path.write_bytes(head + x.tobytes())


FORMS = {
    "t.npy": (lambda path, x, y: np.save(path, x), False),
    "t.npz": (lambda path, x, y: np.savez(path, x=x, y=y), True),
    "x only.npz": (lambda path, x, y: np.savez(path, x=x), False),
    "test set.npz": (lambda path, x, y: np.savez(path, x_train=x[:0], x_test=x, y_test=y), True),
    "images.npz": (lambda path, x, y: np.savez(path, x=x.reshape(-1, 28, 28), y=y[:, None]), True),
    "t.csv": (save_csv, True),
    "t10k-images-idx3-ubyte": (save_idx, False),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_predict_forms(model, tmp_path, monkeypatch, form, large):
    if large:  # as files of 1 GiB are, which are mapped
        for module in (shards, idx):
            monkeypatch.setattr(module, "LARGE", 1)
    write, known = FORMS[form]
    x, y = synthetic_digits(40, seed=9)
    write(tmp_path / form, x, y)
    expected = xnn.load(model).predict_classes(x)
    result = run("predict", model, tmp_path / form)
    assert result.exit_code == 0, result.output
    assert [int(line) for line in result.stdout.split()] == expected.tolist()
    accuracy = np.mean(expected == y)
    assert result.stderr == (f"accuracy {accuracy:.4f} over 40 samples\n" if known else "")
    report = one_json(run("predict", model, tmp_path / form, "--json"))
    assert report == {"predictions": expected.tolist(), "accuracy": accuracy if known else None}


def test_predict_dataset_and_output(model, tmp_path):
    output = tmp_path / "logits.npy"
    report = one_json(run("predict", model, "synthetic", "--json", "--output", output))
    x, y = list(load("synthetic"))[-2:]
    np.testing.assert_array_equal(np.load(output), xnn.load(model).predict(x))
    assert report["predictions"] == np.load(output).argmax(axis=1).tolist()
    assert report["accuracy"] == np.mean(np.array(report["predictions"]) == y)


def test_predict_on_another_backend(model, tmp_path, other):
    np.save(tmp_path / "t.npy", synthetic_digits(40, seed=9)[0])
    args = ("predict", model, tmp_path / "t.npy")
    assert run(*args, "--backend", other.name).stdout == run(*args).stdout != ""


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        ("nothing.npy", 4, "nothing.npy"),
        ("narrow.npy", 4, "784"),
        ("flat.npy", 4, "shape"),
        ("object.npy", 4, "object.npy"),
        ("text.npz", 4, "text.npz"),
        ("other.npz", 2, "a, b"),
        ("lengths.npz", 4, "39"),
        ("names.npz", 4, "number"),
        ("text.csv", 4, "text.csv"),
        ("text", 4, "idx"),
        ("model.safetensors", 4, "idx"),
    ],
)
def test_predict_refuses(model, tmp_path, monkeypatch, data, code, message):
    monkeypatch.chdir(tmp_path)
    x, y = synthetic_digits(40)
    np.save("narrow.npy", x[:, :-1])
    np.save("flat.npy", x[0])
    np.save("object.npy", np.array([None]))
    np.savez("other.npz", a=x, b=y)
    np.savez("lengths.npz", x=x, y=y[:-1])
    np.savez("names.npz", x=x.astype(str))
    for name in ("text.npz", "text.csv", "text"):
        (tmp_path / name).write_text("hello\nworld\n")
    (tmp_path / "model.safetensors").write_bytes(model.read_bytes())
    refused(run("predict", model, data), code, message)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("nosuch.safetensors", "synthetic"), 4, "nosuch"),
        ((__file__, "synthetic"), 4, "safetensors"),
        (("MODEL", "synthetic", "--output", "o.csv"), 2, "npy"),
        (("MODEL", "synthetic", "--output", "no/o.npy"), 2, "no folder"),
        (("MODEL", "synthetic", "--backend", "nosuch"), 2, "nosuch"),
        (("MODEL", "mnist", "--data-home", "nowhere"), 2, "nowhere"),
    ],
)
def test_predict_refuses_options(model, args, code, message):
    refused(run("predict", *(model if a == "MODEL" else a for a in args)), code, message)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("form", ["e.npy", "e.npz", "images.npy"])
def test_predict_of_no_samples_prints_no_lines(tmp_path, form, task):
    model, data = tmp_path / "m.safetensors", tmp_path / form
    notes = {"labels": [], "columns": None, "features": 4, "task": task}
    files.save(xnn.Sequential(layers.Dense(4, 2)), model, notes)
    if form == "e.npz":
        np.savez(data, x=np.zeros((0, 4)), y=np.zeros(0))
    else:
        np.save(data, np.zeros((0, 2, 2) if form == "images.npy" else (0, 4)))
    result = run("predict", model, data, "--output", tmp_path / "o.npy")
    said = f"xnn: {data} holds no samples, so there is nothing to predict\n"
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", said)
    assert np.load(tmp_path / "o.npy").shape == (0, 2)
    assert one_json(run("predict", model, data, "--json")) == {"predictions": [], "accuracy": None}


COLUMNS = {"names": ["a", "b", "c", "y"], "features": [0, 1, 2], "targets": [3], "header": None}


@pytest.mark.parametrize(
    "notes",
    [
        {"labels": 3},
        {"labels": "ab"},
        {"labels": [["a"], ["b"]]},
        {"labels": [None, "b"]},
        {"labels": [True, False]},
        {"labels": {"a": 0, "b": 1}},
        {"labels": ["a", "b", "c"]},
        {"labels": ["a"]},
        {"features": "3"},
        {"features": -3},
        {"features": 3.0},
        {"features": True},
        {"task": "other"},
        {"task": ["classification"]},
        {"task": None},
        {"columns": 3},
        {"columns": [0, 1]},
        {"columns": {}},
        {"columns": COLUMNS | {"names": 3}},
        {"columns": COLUMNS | {"names": [1, 2, 3, 4]}},
        {"columns": COLUMNS | {"features": [0, 1, 9]}},
        {"columns": COLUMNS | {"features": [0, 1, -1]}},
        {"columns": COLUMNS | {"targets": ["y"]}},
        {"columns": COLUMNS | {"header": "yes"}},
    ],
    ids=str,
)
def test_notes_of_other_types_are_refused(tmp_path, notes):
    model, data = tmp_path / "m.safetensors", tmp_path / "x.csv"
    data.write_text("1,2,3\n4,5,6\n")
    right = {"labels": ["no", "yes"], "columns": None, "features": 3, "task": "classification"}
    files.save(xnn.Sequential(layers.Dense(3, 2)), model, right | notes)
    refused(run("predict", model, data), 4, "m.safetensors: its notes")


@pytest.mark.parametrize("labels", [[0, 1], [1.5, 2], ["no", "yes"], ["no", 2]])
def test_labels_of_every_type_are_printed(tmp_path, labels):
    model, data = tmp_path / "m.safetensors", tmp_path / "x.npy"
    net = xnn.Sequential(layers.Dense(2, 2))
    net.layers[0].weight.value = [[1, 0], [0, 1]]
    notes = {
        "labels": labels,
        "columns": COLUMNS | {"features": [0, 1]},
        "features": 2,
        "task": "classification",
    }
    files.save(net, model, notes)
    np.save(data, np.eye(2))
    assert run("predict", model, data).stdout.split() == list(map(str, labels))


def test_accuracy_of_one_hot_labels(model, tmp_path):
    x, y = synthetic_digits(40, seed=9)
    np.savez(tmp_path / "plain.npz", x=x, y=y)
    np.savez(tmp_path / "hot.npz", x=x, y=np.eye(10)[y])
    assert (
        run("predict", model, tmp_path / "hot.npz").stderr
        == run("predict", model, tmp_path / "plain.npz").stderr
    )
