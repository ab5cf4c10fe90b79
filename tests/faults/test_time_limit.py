"""A time limit ends a training in good time, and a chain of such jobs ends with the bits of one run."""

import json

import numpy as np
import pytest
from campaign import Forker, command, outcome
from command_line import one_json
from command_line import run as xnn_run

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.callbacks.durations import seconds_of
from xnn.errors import OptionError

X = np.linspace(-1.0, 1.0, 90, dtype=np.float32).reshape(-1, 1)
Y = np.sin(3.0 * X)


class Clock:
    """A clock that goes on by a second whenever it is asked."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1.0
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("xnn.callbacks.time_limit.time", clock)
    return clock


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30), ("10min", 600), ("10m", 600), ("2h", 7200), ("3h50m", 13800), ("3h50min", 13800),
        ("1d 12h", 129600), ("1h30s", 3630), (" 5 min ", 300), ("0s", None), ("", None), ("10", None),
        ("50m3h", None), ("1h1h", None), ("-1s", None), ("1.5h", None), ("1epoch", None), (30, None),
    ],
)  # fmt: skip
def test_durations_have_one_form(text, seconds, tmp_path):
    """The time limit and the times of checkpoints are read by the same code."""
    assert seconds_of(text) == seconds
    if seconds is None:
        with pytest.raises(OptionError, match="3h50m"):
            callbacks.TimeLimit(text)
        if text != "1epoch":
            with pytest.raises(OptionError, match="10min"):
                callbacks.Checkpoint(tmp_path, every=text)
    else:
        callbacks.TimeLimit(text)
        callbacks.Checkpoint(tmp_path, every=text)


def job(folder, limit, optimizer=optimizers.Adam, epochs=4):
    watchers = [callbacks.TimeLimit(limit)] if limit else []
    extra = [] if optimizer is optimizers.LBFGS else [layers.Dropout(0.2)]
    model = xnn.Sequential(layers.Dense(1, 8), layers.Tanh(), *extra, layers.Dense(8, 1), seed=0)
    if folder is not None:
        watchers.append(callbacks.Checkpoint(folder))
    # Compiled kernels take many steps of so small a network between two looks at the clock.
    trainer = xnn.Trainer(model, losses.MSE(), optimizer(), callbacks=watchers, kernels="numpy")
    if folder is not None:
        trainer.resume(folder)
    history = trainer.fit((X, Y), validation=(X, Y), epochs=epochs, batch_size=16, progress=False)
    return trainer, history, xnn.layers.files.weights_sha256(model)


@pytest.mark.parametrize(("optimizer", "limit"), [(optimizers.Adam, "14s"), (optimizers.LBFGS, "3s")])
def test_a_chain_of_limited_jobs_is_one_run(clock, tmp_path, optimizer, limit):
    if optimizer is optimizers.LBFGS:
        pytest.importorskip("scipy")
    _, whole, digest = job(None, None, optimizer)
    ends = []
    for _ in range(12):
        trainer, history, found = job(tmp_path, limit, optimizer)
        ends.append(trainer.step)
        assert not history.interrupted
        if not history.stopped:
            break
        assert history.stopped == f"the time limit of {limit}"
        assert trainer.step < whole.steps
    assert len(ends) > 1
    assert ends == sorted(set(ends))
    if optimizer is optimizers.Adam:
        assert any(step % 6 for step in ends)  # in the middle of an epoch
    assert (found, history.losses_sha256, history.steps) == (digest, whole.losses_sha256, whole.steps)
    assert history.epochs == whole.epochs


def test_what_the_end_needs_is_left(clock):
    """5 % of the limit, at most a minute, and twice the longest pause and the longest writing."""
    for limit, writing, pause, last in (
        ("100s", 0.0, 1.0, 100 - 5 - 2),
        ("100s", 3.0, 1.0, 100 - 5 - 2 - 6),
        ("100s", 0.0, 7.0, 100 - 5 - 14),
        ("10h", 0.0, 100.0, 36000 - 60 - 200),
    ):
        limited = callbacks.TimeLimit(limit)
        began = clock.now
        limited.on_fit_start(None, 1, 1)
        clock.now += 30.0  # compiling, before the second look
        assert not limited.is_over(writing)
        while not limited.is_over(writing):
            clock.now += pause - 1.0
        assert last <= clock.now - began < last + pause


@pytest.mark.slow
def test_the_command_says_so_and_goes_on(clock, tmp_path):
    folder, whole = tmp_path / "broken", tmp_path / "whole"
    folder.mkdir()
    whole.mkdir()
    name = "dropout, patience"
    line = [*command(name, folder)[3:], "--every", "1epoch", "--save", str(folder / "model.safetensors")]
    line += ["--log", str(folder / "run.jsonl"), "--kernels", "numpy"]
    log = ["--log", str(whole / "run.jsonl"), "--kernels", "numpy"]
    wanted = xnn_run(*command(name, whole, checkpoints=False)[3:], *log)
    stopped = 0
    for _ in range(20):
        result = xnn_run(*line, "--time-limit", "5min")
        assert result.exit_code == 0, result.stderr
        assert xnn.load(folder / "model.safetensors")
        if "stopped by --time-limit" not in result.stderr:
            break
        stopped += 1
        assert one_json(result)["stopped"] == "the time limit of 5min"
        assert f"--checkpoint {folder / 'checkpoints'} --resume goes on" in result.stderr
        log = [json.loads(text) for text in (folder / "run.jsonl").read_text().splitlines()]
        assert log[-1]["stopped"] == "the time limit of 5min"
    assert stopped
    assert outcome(one_json(result), folder) == outcome(one_json(wanted), whole)
    result = xnn_run(*command(name, whole)[3:], "--time-limit", "1s")
    assert (result.exit_code, "allow more time" in result.stderr) == (2, True)
    assert xnn_run("train", "--time-limit", "soon").exit_code == 2


@pytest.mark.slow
def test_a_real_process_ends_by_its_limit(tmp_path):
    pytest.importorskip("fcntl")
    forker = Forker()
    try:
        line = [*command("sgd", tmp_path), "--epochs", "1000000", "--time-limit", "2s"]
        first, second = forker.run(line, tmp_path), forker.run(line, tmp_path)
    finally:
        forker.close()
    assert first["stopped"] == second["stopped"] == "the time limit of 2s"
    assert 0 < first["steps"] < second["steps"]
    assert "stopped by --time-limit 2s after step" in second["complaints"]
