"""`xnn train`: what it prints, the files that it writes, and that its digests are those of a loop of our own."""

from __future__ import annotations

import hashlib
import json
import os
import socket

import numpy as np
import pytest
from command_line import command, one_json, refused, run

import xnn
from xnn import losses, optimizers
from xnn.backends.threads import limit_threads
from xnn.data import Batches, load
from xnn.layers import files
from xnn.runs.mlp import mlp

KEYS = {
    "dataset", "backend", "numerics", "plan", "seed", "epochs", "history", "test_accuracy", "ms_per_step",
    "samples_per_second", "first_step_seconds", "peak_rss_mb", "weights_sha256", "losses_sha256",
}  # fmt: skip

TRAIN = ("--hidden", "16", "--epochs", 2, "--batch-size", 50)


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
    assert (
        min(report[k] for k in ("ms_per_step", "samples_per_second", "peak_rss_mb", "first_step_seconds")) > 0
    )
    assert all(len(report[k]) == 64 for k in ("weights_sha256", "losses_sha256"))
    assert result.stderr == ""


def test_train_prints_a_summary(digits, tmp_path):
    result = run("train", "--dataset", digits, *TRAIN)
    assert result.exit_code == 0
    assert "digits.npz (classification) on numpy" in result.stdout
    assert "test accuracy" in result.stdout
    assert run("train", "--dataset", digits, *TRAIN, "--quiet").output == ""


def test_the_same_run_gives_the_same_digests(digits):
    """The digests are the same in this process and in one with another hash seed."""
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
    """A training loop in this test, without Trainer and History, gives the same digests."""
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
    """The model of the best epoch is saved and evaluated. A run of only that many epochs gives the same model."""
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
    """The model of the best epoch is saved, and the message says so."""
    path = tmp_path / "m.safetensors"
    right = optimizers.SGD.advance

    def explode(self, steps):
        if self.steps == 30:
            self.learning_rate = 1e30
        return right(self, steps)

    monkeypatch.setattr(optimizers.SGD, "advance", explode)
    words = ("train", "--dataset", digits, "--hidden", "16", "--epochs", 9, "--patience", 5, "--save", path)
    result = run(*words, "--quiet")
    assert result.exit_code == 3
    best = files.metadata(path)["notes"]["epochs"]
    assert f"holds the model as it was after epoch {best}, the best" in result.stderr
    assert all(np.isfinite(p.value).all() for p in xnn.load(path).parameters())


def test_regression(tmp_path):
    """A layer that is saved with the model standardizes features of very different size."""
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
    told = "xnn: no header: columns taken as size, wave, same\n"
    assert (result.exit_code, result.stderr) == (0, told)
    np.testing.assert_allclose([float(line) for line in result.stdout.split()], y[:5], atol=1.5)
    assert one_json(run("predict", saved, table, "--json"))["accuracy"] is None


def test_a_table_of_named_classes(tmp_path):
    """Columns are found by their names in training and prediction, and predictions are printed as labels."""
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
    refused(run("predict", saved, path), 4, "no column 'width'")
    result = run("verify", tmp_path / "r.jsonl", "threads=1", "--dataset", table, "--steps", 3)
    assert (result.exit_code, result.stdout.splitlines()[-1][:7]) == (0, "3 steps")
    refused(
        run("verify", tmp_path / "r.jsonl", "threads=1", "--target", "width"),
        2,
        "--target is set by the record",
    )


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--target", "nothing"), 2, "'nothing'"),
        (("--target", "a", "--target", "b", "--task", "classification"), 2, "one target"),
        (("--no-header",), 4, "line 1, field 1"),
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
    """Synthetic digits are used, one line says so, and the report names them."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    monkeypatch.delenv("XNN_DATA_HOME", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("xnn.data.sources.cache_home", lambda: tmp_path / "cache")
    monkeypatch.setattr("xnn.data.datasets._MNIST_MIRRORS", (f"http://127.0.0.1:{port}/",))
    result = run("train", *TRAIN, "--json")
    assert one_json(result)["dataset"] == "synthetic"
    (told,) = (
        line for line in result.stderr.splitlines() if line.startswith("xnn: ") and "synthetic" in line
    )
    assert "To get MNIST, run this again with a network, or put train-images-idx3-ubyte.gz, " in told
    assert str(tmp_path / "cache" / "mnist") in told
    named = run("train", "--dataset", "mnist", *TRAIN, "--json")
    assert (named.exit_code, named.stdout) == (4, "")
    assert "XNN_DATA_HOME" in named.stderr


def test_train_on_another_backend(digits, other):
    """The command works with arrays that cannot be mixed with NumPy's, and its result is close to NumPy's."""
    args = ("train", "--dataset", digits, *TRAIN, "--dropout", 0.2, "--json")
    here, there = one_json(run(*args)), one_json(run(*args, "--backend", other.name))
    assert there["backend"] == there["plan"]["backend"] == other.address
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
