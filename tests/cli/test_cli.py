"""The command line: what it prints, the files it writes, its exit codes, and that nothing shows a traceback."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from command_line import run

import xnn
from xnn import losses, ops, optimizers
from xnn.backends import backend_names, get_backend
from xnn.backends.threads import limit_threads
from xnn.data import Batches, load, synthetic_digits
from xnn.layers import files
from xnn.ops.cases import CASES
from xnn.runs.mlp import mlp

KEYS = {
    "dataset", "backend", "numerics", "plan", "seed", "epochs", "history", "test_accuracy", "ms_per_step",
    "samples_per_second", "peak_rss_mb", "weights_sha256", "losses_sha256",
}  # fmt: skip
without_cupy = pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")


def command(*args, **options):
    """The command in a process of its own."""
    words = [sys.executable, "-m", "xnn", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, **options)


def one_json(result):
    """The one line on standard output, as strict JSON: no NaN, nothing beside it."""
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A small data set of bytes: 300 synthetic digits in an .npz file."""
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    x, y = synthetic_digits(300, seed=1)
    np.savez(path, x=x, y=y)
    return path


@pytest.fixture(autouse=True)
def _few_synthetic_digits(monkeypatch):
    monkeypatch.setattr("xnn.data.datasets._SYNTHETIC", (600, 100, 100))


TRAIN = ("--hidden", "16", "--epochs", 2, "--batch-size", 50)


@pytest.fixture(scope="module")
def model(digits, tmp_path_factory):
    """A trained classifier's file."""
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    assert run("train", "--dataset", digits, *TRAIN, "--save", path, "--quiet").exit_code == 0
    return path


# ---------------------------------------------------------------- train


def test_train_json():
    result = run("train", "--dataset", "synthetic", *TRAIN, "--json")
    report = one_json(result)
    assert report.keys() >= KEYS
    assert (report["dataset"], report["backend"], report["numerics"]) == ("synthetic", "numpy", "fast")
    assert (report["seed"], report["epochs"], report["interrupted"]) == (0, 2, False)
    assert (report["plan"]["batch_size"], report["plan"]["dtype"]) == (50, "float32")
    assert len(report["history"]) == 2
    for entry in report["history"]:
        assert entry.keys() == {"loss", "accuracy", "val_loss", "val_accuracy"}
    first, last = report["history"]
    assert last["loss"] < first["loss"]
    assert 0.3 < report["test_accuracy"] <= 1.0  # far above chance
    assert min(report[k] for k in ("ms_per_step", "samples_per_second", "peak_rss_mb")) > 0
    assert all(len(report[k]) == 64 for k in ("weights_sha256", "losses_sha256"))
    assert result.stderr == ""


def test_train_prints_a_summary(digits, tmp_path):
    result = run("train", "--dataset", digits, *TRAIN)
    assert result.exit_code == 0
    assert "digits.npz (classification) on numpy" in result.stdout
    assert "test accuracy" in result.stdout
    assert run("train", "--dataset", digits, *TRAIN, "--quiet").output == ""


def test_the_same_run_gives_the_same_digests(digits):
    """In this process, and in another one with another hash seed."""
    args = ("train", "--dataset", digits, *TRAIN, "--dropout", 0.2, "--json")

    def digests(report):
        return report["weights_sha256"], report["losses_sha256"]

    first = digests(one_json(run(*args)))
    assert digests(one_json(run(*args))) == first
    other_process = command(*args, env={**os.environ, "PYTHONHASHSEED": "123"})
    assert digests(json.loads(other_process.stdout)) == first
    other_seed = digests(one_json(run(*args, "--seed", 1)))
    assert other_seed[0] != first[0]
    assert other_seed[1] != first[1]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_digests_recomputed_by_a_loop_of_our_own(digits, dropout):
    """The steps as section 3 of the design has them, without Trainer or History."""
    options = ("--dropout", dropout, "--seed", 3, "--kernels", "ops", "--threads", 1, "--json")
    report = one_json(run("train", "--dataset", digits, *TRAIN, *options))
    x, y, x_val, y_val, x_test, y_test = load(digits)
    net = mlp(784, (16,), 10, dropout=dropout, rescale=(1 / 255, 0.0), seed=3)
    loss, rule = losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1)
    seen, step = [], 0
    with limit_threads(1):
        for epoch in range(2):
            for xb, yb in Batches((x, y), 50, seed=3).epoch(epoch):
                net.set_stream(3, step)
                seen.append(float(loss.forward(net.forward(xb, training=True), yb)))
                net.backward(loss.backward())
                rule.step(net.parameters())
                step += 1
    assert report["steps"] == step
    assert report["losses_sha256"] == hashlib.sha256(np.array(seen, "<f8").tobytes()).hexdigest()
    raw = b"".join(p.value.astype("<f4").tobytes() for p in net.parameters())
    assert report["weights_sha256"] == hashlib.sha256(raw).hexdigest()
    for number, part, labels in (("val_loss", x_val, y_val), ("test_loss", x_test, y_test)):
        measured = report[number] if number in report else report["history"][-1][number]
        assert measured == pytest.approx(float(loss.forward(net.forward(part), labels)), rel=1e-5)
    assert report["test_accuracy"] == np.mean(net.predict_classes(x_test) == y_test)


def test_train_options_reach_the_model(digits, tmp_path):
    path = tmp_path / "m.safetensors"
    args = (
        "--hidden",
        "8, 4",
        "--activation",
        "tanh",
        "--dropout",
        0.25,
        "--optimizer",
        "adam",
        "--lr",
        0.01,
    )
    report = one_json(
        run("train", "--dataset", digits, *args, "--epochs", 1, "--threads", 1, "--json", "--save", path)
    )
    assert [layer["type"] for layer in files.metadata(path)["layers"]] == [
        "Rescale", "Dense", "Tanh", "Dropout", "Dense", "Tanh", "Dropout", "Dense",
    ]  # fmt: skip
    assert [p.shape for p in xnn.load(path).parameters()] == [(784, 8), (8,), (8, 4), (4,), (4, 10), (10,)]
    assert report["plan"]["threads"] == 1
    assert files.weights_sha256(xnn.load(path)) == report["weights_sha256"]


def test_train_without_hidden_layers(digits, tmp_path):
    path = tmp_path / "m.safetensors"
    assert run("train", "--dataset", digits, "--hidden", "", "--epochs", 1, "--save", path).exit_code == 0
    assert [p.shape for p in xnn.load(path).parameters()] == [(784, 10), (10,)]


def test_train_log_and_plot(digits, tmp_path):
    pytest.importorskip("matplotlib")
    log, plot = tmp_path / "log.jsonl", tmp_path / "c.svg"
    report = one_json(run("train", "--dataset", digits, *TRAIN, "--json", "--log", log, "--plot", plot))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "epoch", "epoch", "end"]
    assert (lines[0]["dataset"], lines[0]["seed"], lines[0]["plan"]) == ("digits.npz", 0, report["plan"])
    assert [line["val_loss"] for line in lines[1:3]] == [entry["val_loss"] for entry in report["history"]]
    assert "<svg" in plot.read_text()


def test_patience(digits, tmp_path):
    """The model that is saved, evaluated and shown is the best epoch's; and so is that of a run of so many epochs."""
    path, log = tmp_path / "m.safetensors", tmp_path / "log.jsonl"
    args = ("train", "--dataset", digits, "--hidden", "16", "--lr", 1.0, "--seed", 2)
    words = (*args, "--epochs", 99, "--patience", 2, "--save", path, "--log", log)
    report = one_json(run(*words, "--json"))
    best, validation = report["kept_epoch"], [entry["val_loss"] for entry in report["history"]]
    assert validation[best - 1] == min(validation)
    assert report["epochs"] == best + 2 < 99
    assert f"epoch {best}'s" in report["stopped"]
    assert json.loads(log.read_text().splitlines()[-1])["stopped"] == report["stopped"]
    assert files.metadata(path)["notes"]["epochs"] == best
    shorter = one_json(run(*args, "--epochs", best, "--json"))
    for key in ("weights_sha256", "test_loss"):
        assert report[key] == shorter[key]
    assert (shorter["kept_epoch"], shorter["stopped"]) == (best, "")
    assert files.weights_sha256(xnn.load(path)) == report["weights_sha256"]
    lines = run(*words).stdout.splitlines()
    assert f"stopped: {report['stopped']}" in lines
    assert f"the model is as it was after epoch {best}, the best of {best + 2}" in lines
    assert any(f"validation loss {min(validation):.4f}" in line for line in lines)


def test_patience_and_divergence(digits, tmp_path, monkeypatch):
    """What is saved is the best epoch's model, and the message says that."""
    path = tmp_path / "m.safetensors"
    right = optimizers.SGD.advance

    def explode(self, steps):
        if self.steps == 30:
            self.learning_rate = 1e30
        return right(self, steps)

    monkeypatch.setattr(optimizers.SGD, "advance", explode)
    words = ("train", "--dataset", digits, "--hidden", "16", "--epochs", 9, "--patience", 5, "--save", path)
    result = run(*words, "--quiet")
    assert result.exit_code == 1
    best = files.metadata(path)["notes"]["epochs"]
    assert f"holds the model as it was after epoch {best}, the best" in result.stderr
    assert all(np.isfinite(p.value).all() for p in xnn.load(path).parameters())


def test_regression(tmp_path):
    """Features of very different size: standardized by a layer that is saved with the model."""
    table, path, saved = tmp_path / "t.csv", tmp_path / "p.csv", tmp_path / "m.safetensors"
    x = np.stack([np.linspace(1000, 1100, 200), np.sin(np.arange(200.0)), np.full(200, 5.0)], axis=1)
    y = 3 * x[:, 1] + (x[:, 0] - 1050) / 25
    np.savetxt(table, np.column_stack([x, y]), delimiter=",", header="size,wave,same,target", comments="")
    args = ("--hidden", "16", "--epochs", 60, "--lr", 0.05, "--save", saved)
    report = one_json(run("train", "--dataset", table, *args, "--json"))
    assert report["test_accuracy"] is None
    assert report["history"][0]["accuracy"] is None
    assert report["test_loss"] < 0.05 * np.var(y)
    np.savetxt(path, x[:5], delimiter=",")
    result = run("predict", saved, path)
    assert (result.exit_code, result.stderr) == (0, "")
    np.testing.assert_allclose([float(line) for line in result.stdout.split()], y[:5], atol=1.5)
    assert one_json(run("predict", saved, table, "--json"))["accuracy"] is None


def test_a_table_of_named_classes(tmp_path):
    """Trained by the column's name; predicted by name, with and without the target, and the labels are printed."""
    table, path, saved = tmp_path / "t.csv", tmp_path / "p.csv", tmp_path / "m.safetensors"
    kinds = ["setosa" if n % 5 else "virginica" for n in range(200)]
    rows = [f"{kind},{(kind == 'setosa') * 2 + n % 7 / 7},{n % 3}" for n, kind in enumerate(kinds)]
    table.write_text("\n".join(["kind,width,height", *rows]) + "\n")
    args = ("--dataset", table, "--target", "kind", "--hidden", "8", "--epochs", 20)
    result = run("train", *args, "--save", saved, "--json", "--record", tmp_path / "r.jsonl")
    assert one_json(result)["test_accuracy"] == 1.0
    told = [line for line in result.stderr.splitlines() if line.startswith("xnn: ")]
    assert len(told) == 1
    assert "4.0 : 1 (setosa: 128 training samples, virginica: 32)" in told[0]
    result = run("predict", saved, table)
    assert (result.stdout.split(), result.stderr) == (kinds, "accuracy 1.0000 over 200 samples\n")
    assert one_json(run("predict", saved, table, "--json")) == {"predictions": kinds, "accuracy": 1.0}
    path.write_text("height,width\n0,0.5\n1,2.5\n")
    result = run("predict", saved, path)
    assert (result.stdout, result.stderr) == ("virginica\nsetosa\n", "")
    path.write_text("height\n0\n")
    refused(run("predict", saved, path), 1, "no column 'width'")
    result = run("verify", tmp_path / "r.jsonl", "threads=1", "--dataset", table, "--steps", 3)
    assert (result.exit_code, result.stdout.splitlines()[-1][:7]) == (0, "3 steps")
    refused(
        run("verify", tmp_path / "r.jsonl", "threads=1", "--target", "width"),
        2,
        "--target is what the record",
    )


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--target", "nothing"), 2, "'nothing'"),
        (("--target", "a", "--target", "b", "--task", "classification"), 2, "one target"),
        (("--no-header",), 1, "line 1, field 1"),
        (("--task", "clustering"), 2, "clustering"),
    ],
)
def test_train_refuses_tables(tmp_path, options, code, message):
    (tmp_path / "t.csv").write_text("a,b,c\n" + "1,2.5,3.5\n4,5.5,6.5\n" * 5)
    result = run("train", "--dataset", tmp_path / "t.csv", *TRAIN, *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


def test_several_targets_of_a_table(tmp_path):
    table, saved = tmp_path / "t.csv", tmp_path / "m.safetensors"
    table.write_text("".join(f"{n / 50},{n / 25},{n % 7}\n" for n in range(100)))
    args = ("--target", "0", "--target", "-2", "--no-header", "--hidden", "8", "--epochs", 2)
    assert (
        one_json(run("train", "--dataset", table, *args, "--save", saved, "--json"))["task"] == "regression"
    )
    lines = run("predict", saved, table).stdout.splitlines()
    assert (len(lines), lines[0].count(",")) == (100, 1)


def test_no_dataset_and_no_network(tmp_path, monkeypatch):
    """Synthetic digits, one line that says so, and the report is labelled with what was used."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    monkeypatch.delenv("XNN_DATA_HOME", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("xnn.data.sources.cache_home", lambda: tmp_path / "cache")
    monkeypatch.setattr("xnn.data.datasets._MNIST_MIRRORS", (f"http://127.0.0.1:{port}/",))
    result = run("train", *TRAIN, "--json")
    assert one_json(result)["dataset"] == "synthetic"
    assert sum(line.startswith("xnn: ") and "synthetic" in line for line in result.stderr.splitlines()) == 1
    named = run("train", "--dataset", "mnist", *TRAIN, "--json")
    assert (named.exit_code, named.stdout) == (1, "")
    assert "XNN_DATA_HOME" in named.stderr


def test_train_on_array_api_strict(digits):
    """The whole command with arrays that refuse to meet a host array; close to NumPy's run."""
    pytest.importorskip("array_api_strict")
    args = ("train", "--dataset", digits, *TRAIN, "--dropout", 0.2, "--json")
    here, there = one_json(run(*args)), one_json(run(*args, "--backend", "array-api-strict"))
    assert there["backend"] == there["plan"]["backend"] == "array-api-strict"
    assert there["test_loss"] == pytest.approx(here["test_loss"], rel=1e-4)


@pytest.mark.data
def test_train_mnist():
    report = one_json(run("train", "--hidden", "32", "--epochs", 1, "--batch-size", 100, "--json"))
    assert report["dataset"] == "mnist"
    assert (report["steps"], report["plan"]["batch_size"]) == (500, 100)
    assert report["test_accuracy"] > 0.85


@pytest.mark.data
def test_train_boston():
    report = one_json(
        run("train", "--dataset", "boston", "--hidden", "32", "--epochs", 30, "--lr", 0.01, "--json")
    )
    assert report["test_loss"] < 40  # medv's variance is 84


# ---------------------------------------------------------------- predict


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


@pytest.mark.parametrize("form", FORMS)
def test_predict_forms(model, tmp_path, form):
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


def test_predict_on_another_backend(model, tmp_path):
    pytest.importorskip("array_api_strict")
    np.save(tmp_path / "t.npy", synthetic_digits(40, seed=9)[0])
    args = ("predict", model, tmp_path / "t.npy")
    assert run(*args, "--backend", "array-api-strict").stdout == run(*args).stdout != ""


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        ("nothing.npy", 1, "nothing.npy"),
        ("narrow.npy", 1, "784"),
        ("flat.npy", 1, "shape"),
        ("object.npy", 1, "object.npy"),
        ("text.npz", 1, "text.npz"),
        ("other.npz", 2, "a, b"),
        ("lengths.npz", 1, "39"),
        ("names.npz", 1, "number"),
        ("text.csv", 1, "text.csv"),
        ("text", 1, "idx"),
        ("model.safetensors", 1, "idx"),
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
        (("nosuch.safetensors", "synthetic"), 1, "nosuch"),
        ((__file__, "synthetic"), 1, "safetensors"),
        (("MODEL", "synthetic", "--output", "o.csv"), 2, "npy"),
        (("MODEL", "synthetic", "--output", "no/o.npy"), 2, "no folder"),
        (("MODEL", "synthetic", "--backend", "nosuch"), 2, "nosuch"),
        (("MODEL", "mnist", "--data-home", "nowhere"), 2, "nowhere"),
    ],
)
def test_predict_refuses_options(model, args, code, message):
    refused(run("predict", *(model if a == "MODEL" else a for a in args)), code, message)


# ---------------------------------------------------------------- info


def test_info():
    result = run("info")
    assert result.exit_code == 0
    for text in (xnn.__version__, np.__version__, sys.executable, *backend_names(), "drawn by xnn"):
        assert text in result.stdout


def test_info_json(monkeypatch, tmp_path):
    monkeypatch.setenv("XNN_DATA_HOME", str(tmp_path))
    facts = json.loads(run("info", "--json").stdout)
    assert facts["xnn"] == xnn.__version__
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["backends"].keys() == set(backend_names())
    assert facts["plan"]["backend"] == "numpy"
    assert facts["plan"]["kernels"] == get_backend("numpy").kernels().name  # what fit would use
    assert facts["plan"]["fused"]
    assert facts["environment"]["XNN_DATA_HOME"] == str(tmp_path)
    assert "synthetic" in facts["data"]


def test_info_probe():
    pytest.importorskip("array_api_strict")
    facts = json.loads(run("info", "--probe", "--json").stdout)
    assert facts["backends"]["numpy"].startswith("works")
    assert facts["backends"]["array-api-strict"].startswith("works")
    if importlib.util.find_spec("cupy") is None:
        assert "pip install" in facts["backends"]["cupy"]
    assert facts["numerics"]["in force"] == "fast"
    assert facts["numerics"]["exact"].startswith("works")


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("XNN_BACKEND", "nosuch", "plan"),
        ("XNN_NUMERICS", "half", "plan"),
        ("XNN_DATA_HOME", "nowhere", "data"),
    ],
)
@pytest.mark.parametrize("probe", [(), ("--probe",)])
def test_info_says_what_is_wrong(monkeypatch, variable, value, key, probe):
    """It is what a bug report starts with, so a wrong variable is shown, and the rest with it; the exit code is 2."""
    monkeypatch.setenv(variable, value)
    result = run("info", "--json", *probe)
    assert result.exit_code == 2
    facts = json.loads(result.stdout)
    assert value in str(facts[key])
    assert variable in str(facts[key])
    assert result.stderr.startswith(f"xnn: {variable}")


@pytest.mark.parametrize(
    "args", [("check",), ("bench",), ("bench", "--to-accuracy", "0.9"), ("predict", "m", "x")]
)
def test_a_wrong_backend_variable_is_no_commands_to_pass_over(monkeypatch, args):
    monkeypatch.setenv("XNN_BACKEND", "nosuch")
    refused(run(*args), 2, "XNN_BACKEND='nosuch'")


# ---------------------------------------------------------------- check


def test_check_is_green():
    pytest.importorskip("array_api_strict")
    result = run("check", "--backend", "numpy", "--backend", "array-api-strict")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["numpy", "array-api-strict"]
    for line, least in zip(lines, (2 * len(CASES), 3 * len(CASES) + 1), strict=True):
        passed, failed = (int(word) for word in line.split() if word.isdigit())
        assert passed >= least
        assert failed == 0


def test_check_verbose_lists_every_op():
    out = run("check", "--backend", "numpy", "--verbose").stdout
    for case in CASES:
        assert f"ok   numpy: gradient of {case.name}:" in out


def test_check_makes_a_table_of_every_ops_gradient_error(monkeypatch):
    pytest.importorskip("array_api_strict")
    monkeypatch.setattr(type(ops.exp), "backward", lambda self, xp, grad, y: (1.5 * grad * y,))
    monkeypatch.setattr(type(ops.log), "forward", lambda self, xp, x: 1 / 0)
    result = run("check", "--table", "--backend", "numpy", "--backend", "array-api-strict")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    head = next(n for n, line in enumerate(lines) if line.startswith("gradient error of"))
    assert lines[head].split()[-2:] == ["numpy", "array-api-strict"]
    rows = {line[: -2 - 7 - 16].strip(): line.split()[-2:] for line in lines[head + 1 : -2]}
    assert rows.keys() == {case.name for case in CASES if case.op is not ops.log}
    wrong = {name for name, cells in rows.items() if max(map(float, cells)) > 1e-6}
    assert wrong == {case.name for case in CASES if case.op is ops.exp}


def test_check_finds_a_broken_gradient(monkeypatch):
    right = type(ops.tanh).backward
    monkeypatch.setattr(
        type(ops.tanh), "backward", lambda self, xp, g, s: tuple(1.01 * d for d in right(self, xp, g, s))
    )
    result = run("check", "--backend", "numpy")
    assert result.exit_code == 1
    failures = [line for line in result.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failures) == 1
    assert "gradient of tanh" in failures[0]
    assert "1 failed" in result.stdout


def test_check_finds_backends_that_differ(monkeypatch):
    """The same formula but for array-api-strict: the gradient is consistent, the agreement is not."""
    pytest.importorskip("array_api_strict")
    right = type(ops.sigmoid).forward

    def forward(self, xp, x):
        y, saved = right(self, xp, x)
        return (y, saved) if xp is np else (y * 1.001, saved)

    monkeypatch.setattr(type(ops.sigmoid), "forward", forward)
    result = run("check", "--backend", "array-api-strict")
    assert result.exit_code == 1
    assert "FAIL array-api-strict: numpy agrees on sigmoid" in result.stdout


def test_check_goes_on_after_an_op_that_raises(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("out of order")

    monkeypatch.setattr(type(ops.exp), "forward", broken)
    result = run("check", "--backend", "numpy")
    assert result.exit_code == 1
    assert "gradient of exp" in result.stdout
    assert "out of order" in result.stdout
    assert "gradient of tanh" not in result.stdout


# ---------------------------------------------------------------- wrong options and other ends


def refused(result, code, message):
    """The exit code, nothing on standard output, and one line that says why (after click's usage)."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith(("Usage: ", "Try "))]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith(("xnn: ", "Error: "))
    assert message in lines[0], lines[0]


WRONG = [
    ("--backend nosuch", {}, "nosuch"),
    ("", {"XNN_BACKEND": "nosuch"}, "XNN_BACKEND"),
    ("", {"XNN_BACKEND": "NumPy"}, "NumPy"),
    ("", {"XNN_NUMERICS": "half"}, "XNN_NUMERICS"),
    ("--dataset mnist", {"XNN_DATA_HOME": "nowhere"}, "XNN_DATA_HOME"),
    ("--dataset mnist --data-home nowhere", {}, "nowhere"),
    ("--dataset nosuch", {}, "nosuch"),
    ("--hidden abc", {}, "abc"),
    ("--hidden 10,0", {}, "10,0"),
    ("--hidden 10,-5", {}, "10,-5"),
    ("--hidden 1.5", {}, "1.5"),
    ("--hidden ,", {}, "','"),
    ("--hidden 100,,200", {}, "100,,200"),
    ("--hidden 100,", {}, "100,"),
    ("--lr -1", {}, "-1"),
    ("--lr nan", {}, "nan"),
    ("--lr inf", {}, "inf"),
    ("--lr fast", {}, "fast"),
    ("--dropout 1.5", {}, "1.5"),
    ("--dropout 1", {}, "1"),
    ("--dropout -0.1", {}, "-0.1"),
    ("--dropout nan", {}, "nan"),
    ("--epochs 0", {}, "epochs"),
    ("--epochs many", {}, "epochs"),
    ("--patience 0", {}, "patience"),
    ("--patience 1.5", {}, "patience"),
    ("--batch-size 0", {}, "batch"),
    ("--seed -1", {}, "seed"),
    ("--seed 18446744073709551616", {}, "seed"),
    ("--threads 0", {}, "threads"),
    ("--optimizer muon", {}, "muon"),
    ("--activation mish", {}, "mish"),
    ("--nosuch", {}, "nosuch"),
    ("surplus", {}, "surplus"),
    ("--save no/m.safetensors", {}, "no folder"),
    ("--save m.pt", {}, "safetensors"),
    ("--plot c.gif", {}, "c.gif"),
    ("--plot no/c.png", {}, "no folder"),
    ("--log no/log.jsonl", {}, "no folder"),
]


@pytest.mark.parametrize(("args", "variables", "message"), WRONG, ids=[f"{a}{v or ''}" for a, v, _ in WRONG])
def test_wrong_options(digits, tmp_path, monkeypatch, args, variables, message):
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused(run("train", "--dataset", digits, *TRAIN, "--json", *args.split()), 2, message)
    assert list(tmp_path.iterdir()) == []


def test_wrong_option_in_a_real_process(digits):
    """As the shell sees it: the exit code and standard error, without a word of Python."""
    done = command("train", "--dataset", digits, env={**os.environ, "XNN_BACKEND": "nosuch"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert all(name in done.stderr for name in ("XNN_BACKEND", "nosuch", "numpy", "cupy"))


@pytest.mark.parametrize("value", ["", " numpy "])
def test_empty_variables_are_unset_ones(digits, monkeypatch, value):
    monkeypatch.setenv("XNN_BACKEND", value)
    monkeypatch.setenv("XNN_NUMERICS", "")
    assert one_json(run("train", "--dataset", digits, *TRAIN, "--json"))["backend"] == "numpy"


def test_option_before_variable(digits, monkeypatch):
    monkeypatch.setenv("XNN_BACKEND", "nosuch")
    report = one_json(run("train", "--dataset", digits, *TRAIN, "--json", "--backend", "numpy"))
    assert report["backend"] == "numpy"


@without_cupy
@pytest.mark.parametrize("how", ["option", "variable", "check"])
def test_cupy_where_it_is_missing(digits, monkeypatch, how):
    if how == "variable":
        monkeypatch.setenv("XNN_BACKEND", "cupy")
    args = ("check",) if how == "check" else ("train", "--dataset", digits, *TRAIN)
    result = run(*args, *(() if how == "variable" else ("--backend", "cupy")))
    refused(result, 1, "pip install")
    assert "ctk" in result.stderr


@pytest.mark.parametrize("content", [b"", b"1,2\n3,x\n", b"1,2,3\n4,5\n"])
def test_corrupt_data(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    refused(run("train", "--dataset", path, *TRAIN), 1, "t.csv")


def test_nan_in_the_data(tmp_path):
    path = tmp_path / "t.npz"
    x = np.arange(60.0).reshape(20, 3)
    x[7, 1] = np.nan
    np.savez(path, x=x, y=np.arange(20) % 2)
    refused(run("train", "--dataset", path, *TRAIN), 1, "NaN")


def test_divergence(digits, tmp_path):
    """In a process of its own, so that a warning of NumPy's on standard error would be seen."""
    path = tmp_path / "m.safetensors"
    done = command("train", "--dataset", digits, *TRAIN, "--lr", "1e30", "--json", "--save", path)
    assert (done.returncode, done.stdout) == (1, "")
    kept, why = done.stderr.splitlines()
    assert "as it was before that step" in kept
    assert "step " in why
    assert "layer " in why
    assert "learning_rate" in why
    assert all(np.isfinite(p.value).all() for p in xnn.load(path).parameters())
    assert "step " in files.metadata(path)["notes"]["error"]


def test_a_network_too_large_for_the_memory(digits, monkeypatch):
    """One line. The allocation is refused by hand: a machine may promise memory that it has not."""

    def refuse(*arguments):
        raise MemoryError("Unable to allocate 57.0 TiB")

    monkeypatch.setattr("xnn.initializers.Glorot.__call__", refuse)
    result = run("train", "--dataset", digits, *TRAIN)
    refused(result, 1, "57.0 TiB")
    assert "--hidden" in result.stderr


def test_plot_without_matplotlib(digits, tmp_path, monkeypatch):
    """Said before training, not after."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    log = tmp_path / "log.jsonl"
    result = run("train", "--dataset", digits, *TRAIN, "--plot", tmp_path / "c.png", "--log", log)
    refused(result, 1, "pip install")
    assert not log.exists()


def test_save_on_a_full_disk(digits, tmp_path, monkeypatch):
    """The numbers of the run are not lost with the file."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"before")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run("train", "--dataset", digits, *TRAIN, "--json", "--save", path)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["epochs"] == 2
    assert "No space left" in result.stderr
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m.safetensors", b"before")]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
@pytest.mark.parametrize("output", ["closed pipe", "full disk"])
def test_report_that_cannot_be_printed(digits, tmp_path, output):
    """`xnn train | head` and `xnn train > report.txt` on a full disk: the weights are not lost with it."""
    path = tmp_path / "m.safetensors"
    if output == "full disk":
        out = os.open("/dev/full", os.O_WRONLY)
    else:
        read, out = os.pipe()
        os.close(read)
    words = [sys.executable, "-m", "xnn", "train", "--dataset", digits, *map(str, TRAIN), "--save", path]
    done = subprocess.run(words, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(out)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert [p.shape for p in xnn.load(path).parameters()] == [(784, 16), (16,), (16, 10), (10,)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
@pytest.mark.parametrize("args", [("--help",), ("--version",), ("train", "--help")])
def test_help_on_a_full_disk(args):
    words = [sys.executable, "-m", "xnn", *args]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "xnn: cannot write the output: No space left on device\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("as_json", [True, False])
def test_ctrl_c(digits, tmp_path, as_json):
    """After the first epoch's line in the log: 130, a report, and a model that loads."""
    log, path = tmp_path / "log.jsonl", tmp_path / "m.safetensors"
    words = [sys.executable, "-m", "xnn", "train", "--dataset", digits, "--hidden", "16"]
    words += ["--epochs", "10000000", "--log", log, "--save", path, *(["--json"] if as_json else [])]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not (log.exists() and '"epoch"' in log.read_text()):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in out
    saved = files.weights_sha256(xnn.load(path))
    end = json.loads(log.read_text().splitlines()[-1])
    assert (end["event"], end["interrupted"]) == ("end", True)
    if as_json:
        report = json.loads(out)
        assert report["interrupted"] is True
        assert report["weights_sha256"] == saved
        assert report["steps"] == end["steps"] > 0
        assert len(report["history"]) == report["epochs"] > 0
    else:
        assert saved[:16] in out
        assert str(path) in out


def test_ctrl_c_before_training(digits, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("xnn.cli.train.load", interrupted)
    result = run("train", "--dataset", digits)
    assert (result.exit_code, result.stderr.strip()) == (130, "xnn: interrupted")


# ---------------------------------------------------------------- help


# What start-up does not need: modules of the libraries that only some run asks for.
LATER = {
    *("array_api_compat", "array_api_strict", "cupy", "llvmlite", "matplotlib", "numba", "platformdirs"),
    *("pooch", "requests", "rich", "safetensors", "scipy", "sklearn", "threadpoolctl", "torch"),
}  # fmt: skip


def loaded_by(program):
    """Names of the top-level modules in a process after its program, and the process; it may end by sys.exit."""
    program = f"import sys\ntry:\n    {program}\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name for name in done.stderr.split() if "." not in name}, done


def test_import_xnn_imports_nothing_heavy():
    """`import xnn` costs little more than `import numpy`; nor do its parts cost what one run may not need."""
    names, _ = loaded_by("import xnn")
    assert {"xnn", "numpy"} <= names
    assert not names & {*LATER, "click", "ssl"}
    names, _ = loaded_by("import xnn; [getattr(xnn, name) for name in xnn.__all__]")
    assert not names & {*LATER, "click", "ssl"}


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["predict", "-h"], ["--version"]])
def test_help_imports_nothing_heavy(args):
    """Help must come at once: whatever a command needs is imported when it runs."""
    names, done = loaded_by(f"from xnn.cli import main; main({args!r}, prog_name='xnn')")
    assert not names & {*LATER, "ssl"}
    assert "click" in names
    assert ("Usage: xnn" in done.stdout) == ("--version" not in args)


def test_help_explains_itself():
    text = run("--help").stdout
    assert all(name in text for name in ("train", "predict", "info", "check", "130"))
    assert xnn.__version__ in run("--version").stdout
    for name in ("train", "predict", "info", "check"):
        assert run(name, "--help").exit_code == 0
    options = (
        "hidden",
        "activation",
        "optimizer",
        "lr",
        "batch-size",
        "epochs",
        "seed",
        "dropout",
        "threads",
    )
    for option in (*options, "dataset", "backend", "save", "plot", "log", "json", "quiet"):
        assert f"--{option}" in run("train", "--help").stdout
