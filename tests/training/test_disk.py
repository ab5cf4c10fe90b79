"""The room on the disk is compared before the first step with what checkpoints, the log and the record will need."""

import os
import shutil
from collections import namedtuple

import numpy as np
import pytest

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.errors import DiskError
from xnn.runs.digests import Recorder
from xnn.training import disk

X = np.linspace(-1, 1, 120, dtype=np.float32).reshape(40, 3)
Y = X[:, :1] * X[:, 1:2]
Usage = namedtuple("Usage", "total used free")

OPTIMIZERS = {
    "SGD": lambda: optimizers.SGD(1e-5),
    "momentum": lambda: optimizers.SGD(1e-5, momentum=0.9),
    "Adam": lambda: optimizers.Adam(0.01),
    "averages": lambda: optimizers.Adam(0.01, average=0.9),
    "LBFGS": lambda: optimizers.LBFGS(),
}


def trainer_of(*watchers, optimizer="Adam", width=3000):
    model = xnn.Sequential(
        layers.Dense(3, width), layers.BatchNorm(width), layers.ReLU(), layers.Dense(width, 1), seed=0
    )
    return xnn.Trainer(model, losses.MSE(), OPTIMIZERS[optimizer](), callbacks=watchers)


def fit(trainer, epochs=4):
    return trainer.fit((X, Y), epochs=epochs, batch_size=16, progress=False)


@pytest.fixture
def free(monkeypatch):
    """Sets the bytes that every disk has free."""

    def to(size):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**50, 2**50 - size, size))

    return to


@pytest.mark.parametrize("patience", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_size_of_a_checkpoint_is_known_before_the_first_step(optimizer, patience, tmp_path, monkeypatch):
    if optimizer == "LBFGS":
        pytest.importorskip("scipy")
    sizes, own = [], disk.checkpoint_size

    def size(*arguments):
        sizes.append(own(*arguments))
        return sizes[-1]

    monkeypatch.setattr(disk, "checkpoint_size", size)
    watchers = [callbacks.EarlyStopping("loss", patience=9)] if patience else []
    fit(trainer_of(callbacks.Checkpoint(tmp_path), *watchers, optimizer=optimizer))
    written = callbacks.checkpoints_in(tmp_path)[0].stat().st_size
    least = 0.5 if optimizer == "LBFGS" else 0.8  # it may need more evaluations than iterations
    assert least * written < sizes[0] < 1.3 * written + 20_000


def test_nothing_is_said_where_there_is_room(tmp_path, capsys):
    fit(trainer_of(callbacks.Checkpoint(tmp_path / "run"), callbacks.JsonLines(tmp_path / "log")))
    assert capsys.readouterr().err == ""


def test_pipes_and_devices_need_no_room(free, capsys):
    free(0)
    fit(trainer_of(callbacks.JsonLines(os.devnull)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("resumed", [False, True])
def test_what_is_needed_and_free_is_said_in_a_line(resumed, free, tmp_path, capsys):
    """Files that are there already count when a run goes on."""
    folder = tmp_path / "run"
    fit(trainer_of(callbacks.Checkpoint(folder, keep=4)), epochs=4)
    size = callbacks.checkpoints_in(folder)[0].stat().st_size
    if not resumed:
        shutil.rmtree(folder)
    free(3 * size)
    trainer = trainer_of(callbacks.Checkpoint(folder, keep=4))
    trainer.resume(folder)
    fit(trainer, epochs=5)
    said = capsys.readouterr().err
    if resumed:
        assert said == ""
        return
    assert said.count("\n") == 1
    assert f"{disk._shown(3 * size)} are free" in said
    assert f"of {folder}; make room, choose other places, or keep fewer than 4 checkpoints" in said


def test_all_files_on_one_disk_are_added_up(free, tmp_path, capsys):
    model = trainer_of().model
    names = {name: tmp_path / name for name in ("run", "log", "record")}

    def watchers():
        return (
            callbacks.Checkpoint(names["run"], keep=1),
            callbacks.JsonLines(names["log"]),
            Recorder(model, path=names["record"]),
        )

    free(10_000)
    with pytest.raises(
        DiskError, match=r"one has about \d+ kB, and 10 kB are free there; make room, or choose"
    ):
        xnn.Trainer(model, losses.MSE(), optimizers.Adam(), callbacks=watchers()).fit((X, Y), progress=False)
    assert callbacks.checkpoints_in(names["run"]) == []
    free(300_000)
    xnn.Trainer(model, losses.MSE(), optimizers.SGD(1e-5), callbacks=watchers()).fit(
        (X, Y), epochs=20, batch_size=8, progress=False
    )
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(str(name) in said for name in names.values())
    written = names["record"].stat().st_size
    assert f"{written // 1000} kB of {names['record']}" in said
