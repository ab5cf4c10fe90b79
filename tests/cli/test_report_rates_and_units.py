"""`xnn report` of checkpoints alone: the learning rate of every epoch, and targets in the units of the data."""

import json
import re

import numpy as np
import pytest
from command_line import run

import xnn

STEPS = 5  # of an epoch: 160 of 200 samples, 32 a batch


def table(path, rows, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)) * [1, 10, 100] + [0, 5, 1000 * seed]
    y = 5000 + 300 * x[:, 0] + 20 * x[:, 1]
    lines = [",".join(f"{number:.6g}" for number in (*row, target)) for row, target in zip(x, y, strict=True)]
    path.write_text("\n".join(["one,two,three,price", *lines]))
    return path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "own.csv", 200, 1)
    return tmp_path


def runs_in(path):
    text = path.read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)["runs"]


def train(*words):
    result = run("train", "--dataset", "own.csv", "--hidden", 4, "--quiet", *map(str, words))
    assert result.exit_code == 0, result.output


def report(folder, *words):
    result = run("report", *words, "-o", "out.html")
    assert result.exit_code == 0, result.output
    return runs_in(folder / "out.html")[0]


@pytest.mark.parametrize("keep", [1, 9])
def test_a_folder_of_checkpoints_has_the_rates_that_a_log_has(here, keep):
    more = ("--checkpoint", "ck", "--keep", keep, "--log", "run.jsonl", "--report", "train.html")
    train("--epochs", 4, "--schedule", f"step:every={2 * STEPS}", "--warmup", 2, "--scale-target", *more)
    at_end = runs_in(here / "train.html")[0]["curves"]
    logged = report(here, "run.jsonl")["curves"]["series"]["learning_rate"]
    (here / "run.jsonl").unlink()
    from_folder = report(here, "ck")["curves"]
    assert len(set(logged)) > 1
    assert from_folder["series"]["learning_rate"] == logged
    assert from_folder == at_end


def test_rates_that_were_lowered_are_those_of_the_checkpoints(here):
    from xnn import callbacks, layers, losses, optimizers
    from xnn.report import Run, gather
    from xnn.report.checkpoints import read_folder

    optimizer = optimizers.SGD(0.5)

    class Lower(callbacks.Callback):
        bystander = True

        def on_epoch_end(self, history, entry):
            if entry["epoch"] == 2:
                optimizer.rate_factor = 0.5

    model = xnn.Sequential(layers.Dense(2, 1), seed=0)
    watchers = [Lower(), callbacks.Checkpoint("python", keep=1)]
    trainer = xnn.Trainer(model, losses.MSE(), optimizer, callbacks=watchers)
    history = trainer.fit((np.ones((4, 2)), np.ones((4, 1))), epochs=4, progress=False)
    _, snapshots, _ = read_folder(here / "python")
    (shown,) = gather([Run("a", list(history.epochs), snapshots=snapshots)], 0)["runs"]
    kept = {snapshot.epoch for snapshot in snapshots}
    assert 4 in kept
    assert len(kept) < 4
    rates = [(0.5 if epoch == 1 else 0.25) if epoch in kept else None for epoch in (1, 2, 3, 4)]
    assert shown["curves"]["series"]["learning_rate"] == rates
    assert "learning_rate" not in history.epochs[-1]


def test_errors_of_scaled_targets_are_in_the_units_of_the_data(here):
    how = ("--epochs", 9, "--optimizer", "adam", "--scale-target", "--save", "net.safetensors")
    train(*how, "--checkpoint", "ck", "--report", "train.html")
    table(here / "other.csv", 100, 2)
    model = xnn.load("net.safetensors")
    for words in ((), ("--data", "other.csv")):
        data = xnn.data.load(words[-1] if words else "own.csv")
        errors = model.predict(data.x_test) - data.y_test
        found = [report(here, name, *words) for name in ("ck", "net.safetensors")]
        for one in (found[0], found[1], *([] if words else runs_in(here / "train.html"))):
            assert one["classes"]["scores"]["RMSE"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-4)
            assert one["classes"]["points"][0][0] == pytest.approx(data.y_test[0, 0], rel=1e-3)
        assert found[0]["classes"]["wrong"][0]["true"] == found[1]["classes"]["wrong"][0]["true"]
        assert "--scale-target" in found[0]["notes"][0]
        assert found[0]["snapshots"]["steps"][0]["gradients"]
    (here / "own.csv").unlink()
    assert "own data say how its targets were scaled" in report(here, "ck", "--data", "other.csv")["classes"]
