"""on_nan="lower-lr": a training that diverges goes on from its last checkpoint with half the learning rate."""

import importlib.util
import json
import random
import shutil
import signal

import numpy as np
import pytest
from campaign import Forker, outcome
from command_line import one_json
from command_line import run as xnn_run

import xnn
from xnn import callbacks, data, layers, losses, optimizers, schedules
from xnn.errors import DivergenceError, OptionError
from xnn.layers.files import weights_sha256

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 3)).astype(np.float32)
Y = X @ np.array([[1.0], [-2.0], [0.5]], np.float32)


class KilledError(Exception):
    """Ends a fit as a killed process does: nothing is written after it."""


class Poison(callbacks.Callback):
    """Makes a weight NaN after a step while the rate's factor is above 0.3, and ends the run after another step."""

    def __init__(self, optimizer=None, at=20, killed=None):
        self._optimizer, self._at, self._killed = optimizer, at, killed
        self._steps = 0

    def on_step(self, history, epoch, step, loss):
        self._steps = history.steps
        if self._steps == self._killed and self._optimizer.rate_factor < 0.3:
            raise KilledError
        if self._steps == self._at and self._optimizer.rate_factor > 0.3:
            self.model[0].weight.value = self.model[0].weight.value * np.float32(np.nan)

    def state(self):
        return None


class Slow(optimizers.Optimizer):
    """An optimizer with a step of its own."""

    def __init__(self, learning_rate):
        super().__init__(learning_rate)
        self.seen = []

    def step(self, parameters, gradients=None):
        self.seen.append(self.rate)
        for p in parameters:
            p.value = p.value - np.float32(self.rate) * p.grad
        self.steps += 1


OPTIMIZERS = {
    "sgd": lambda: optimizers.SGD(0.05, momentum=0.9),
    "schedule": lambda: optimizers.SGD(schedules.OneCycle(0.1, steps=30)),
    "adam": lambda: optimizers.Adam(0.02, average=0.9, clip_norm=1.0),
    "nadam": lambda: optimizers.Nadam(0.02),
    "adamw": lambda: optimizers.AdamW(schedules.Warmup(schedules.Cosine(0.02, steps=30), 9)),
    "rmsprop": lambda: optimizers.RMSProp(0.01),
    "adagrad": lambda: optimizers.AdaGrad(0.05),
    "lion": lambda: optimizers.Lion(0.003),
    "a step of its own": lambda: Slow(0.05),
}


def build(folder, name, at=20, killed=None, every="7steps"):
    optimizer = OPTIMIZERS[name]()
    model = xnn.Sequential(
        layers.Dense(3, 8),
        layers.BatchNorm(8),
        layers.Tanh(),
        layers.Dropout(0.2),
        layers.Dense(8, 1),
        seed=0,
    )
    watchers = [
        callbacks.EarlyStopping("loss", patience=50),
        callbacks.Checkpoint(folder, every=every, keep=99, on_nan="lower-lr"),
        Poison(optimizer, at, killed),
    ]
    return xnn.Trainer(model, losses.MSE(), optimizer, callbacks=watchers)


def trained(trainer, progress=False, epochs=5):
    history = trainer.fit((X, Y), validation=(X, Y), epochs=epochs, batch_size=16, seed=3, progress=progress)
    return (
        weights_sha256(trainer.model),
        history.losses_sha256,
        history.epochs,
        history.lowered,
        history.steps,
    )


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("schedule", "adam", "a step of its own")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in OPTIMIZERS
    ],
)
def test_it_goes_on_as_by_hand(name, tmp_path, capsys):
    """As a new program does that resumes from that checkpoint and assigns the factor; and when it was killed."""
    found = trained(build(tmp_path / "run", name), progress=True)
    (first, second) = found[3]
    assert [first["step"], second["step"]] == [14, 7]
    assert [first["rate_factor"], second["rate_factor"]] == [0.5, 0.25]
    assert found[4] == 30
    told = capsys.readouterr().err
    for place in ("step-000000014", "step-000000007"):  # the later one was too late
        assert told.count(f"going on from {place}.safetensors with half the learning rate") == 1
    assert "epoch 5 " in told

    by_hand = build(tmp_path / "by hand", name)
    by_hand.resume(tmp_path / "run" / "step-000000007.safetensors")
    by_hand.optimizer.rate_factor = 0.25
    rate = by_hand.optimizer.rate
    assert rate == second["learning_rate"] == OPTIMIZERS[name]().__class__.rate.fget(by_hand.optimizer)
    assert trained(by_hand)[:3] == found[:3]

    for killed in (12, 26):  # before the next checkpoint, and after it
        folder = tmp_path / f"killed {killed}"
        with pytest.raises(KilledError):
            trained(build(folder, name, killed=killed))
        again = build(folder, name)
        again.resume(folder)
        assert again.optimizer.rate_factor == (1.0 if killed == 12 else 0.25)
        assert trained(again) == found


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("kernels", "numerics"), [("ops", "fast"), ("numpy", "fast"), ("compiled", "fast"), ("numpy", "exact")]
)
def test_a_rate_that_is_too_high_is_halved_until_it_is_not(tmp_path, kernels, numerics):
    """By a real divergence, from the middle of an epoch; with all kernels."""
    if kernels == "compiled":
        pytest.importorskip("numba")

    def run(folder, rate_factor=1.0, on_nan="lower-lr"):
        model = xnn.Sequential(layers.Dense(3, 1), seed=0)
        saver = callbacks.Checkpoint(folder, every="4steps", keep=99, on_nan=on_nan)
        optimizer = optimizers.SGD(3.0)
        optimizer.rate_factor = rate_factor
        trainer = xnn.Trainer(
            model, losses.MSE(), optimizer, callbacks=[saver], kernels=kernels, numerics=numerics
        )
        return trainer.fit((X, Y), epochs=60, batch_size=32, progress=False)

    history = run(tmp_path / "lowered")
    assert [entry["learning_rate"] for entry in history.lowered] == [1.5, 0.75]
    assert all("step" in entry["because"] for entry in history.lowered)
    assert history["loss"][-1] < 1e-3
    with pytest.raises(DivergenceError) as stopped:
        run(tmp_path / "stopped", on_nan="stop")
    (note,) = stopped.value.__notes__
    last = max((tmp_path / "stopped").glob("step-*"))
    assert note == f"{last} is the last checkpoint before that"


def test_the_best_epoch_is_one_of_the_training(tmp_path):
    """And none of those that were given up, however good it was."""

    class Lucky(callbacks.Callback):
        bystander = True

        def on_epoch_end(self, history, entry):
            if entry["epoch"] == 3 and trainer.optimizer.rate_factor == 1.0:
                entry["val_loss"] = 0.0

    trainer = build(tmp_path, "adam", every="1epoch")
    trainer.callbacks = [*trainer.callbacks, Lucky()]
    epochs = trained(trainer)[2]
    assert [entry["step"] for entry in trainer.history.lowered] == [18, 12]
    assert (tmp_path / "best.safetensors.old").exists()
    best = min(entry["val_loss"] for entry in epochs)
    again = build(tmp_path, "adam", every="1epoch")
    again.resume(tmp_path / "best.safetensors")
    assert epochs[again.epoch - 1]["val_loss"] == best


def test_after_three_times_it_ends(tmp_path):
    folder, model = tmp_path / "run", xnn.Sequential(layers.Dense(3, 1), seed=0)
    saver = callbacks.Checkpoint(folder, on_nan="lower-lr")
    log = callbacks.JsonLines(tmp_path / "run.jsonl")
    trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(1e30), callbacks=[saver, log])
    with pytest.raises(DivergenceError, match=r"smaller learning_rate than 1\.25e") as ended:
        trainer.fit((X, Y), epochs=2, progress=False)
    assert ended.value.__notes__[-1] == "the learning rate was halved before: 3 of at most 3 times"
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "lower-lr", "lower-lr", "lower-lr", "end"]
    assert [line["rate_factor"] for line in lines[1:4]] == [0.5, 0.25, 0.125]
    assert len(trainer.history.lowered) == 3
    assert trainer.resume(folder).name == "step-000000000.safetensors"


def test_what_cannot_go_back_is_refused_before_the_first_step(tmp_path):
    def fit(optimizer, given):
        model = xnn.Sequential(layers.Dense(3, 1), seed=0)
        saver = callbacks.Checkpoint(tmp_path, on_nan="lower-lr")
        xnn.Trainer(model, losses.MSE(), optimizer, callbacks=[saver]).fit(
            given, batch_size=16, progress=False
        )

    with pytest.raises(OptionError, match="on_nan must be 'stop' or 'lower-lr', got 'halve'"):
        callbacks.Checkpoint(tmp_path, on_nan="halve")
    once = data.Stream(iter([(X, Y)]), samples=90)
    with pytest.raises(OptionError, match="this Stream can be read once"):
        fit(optimizers.SGD(0.1), once)
    pytest.importorskip("scipy")
    with pytest.raises(OptionError, match="LBFGS has none"):
        fit(optimizers.LBFGS(), (X, Y))


@pytest.fixture
def table(tmp_path):
    np.savez(tmp_path / "table.npz", x=X, y=Y[:, 0])
    return tmp_path / "table.npz"


LINE = "--lr 3 --epochs 20 --batch-size 16 --json --quiet --threads 1"


def lowered(folder, table):
    """The command line, whose run diverges some times."""
    folder.mkdir(exist_ok=True)
    words = ["train", "--dataset", str(table), *LINE.split(), "--checkpoint", str(folder / "checkpoints")]
    return [
        *words,
        "--hidden",
        "",
        "--resume",
        "--every",
        "9steps",
        "--on-nan",
        "lower-lr",
        "--log",
        str(folder / "run.jsonl"),
    ]


def test_the_command(tmp_path, table):
    result = xnn_run(*lowered(tmp_path / "run", table))
    report = one_json(result)
    assert 0 < len(report["lowered"]) <= 3
    assert result.stderr.count("with half the learning rate") == len(report["lowered"])
    log = [json.loads(line) for line in (tmp_path / "run" / "run.jsonl").read_text().splitlines()]
    assert [line["rate_factor"] for line in log if line["event"] == "lower-lr"] == [
        entry["rate_factor"] for entry in report["lowered"]
    ]
    words = lowered(tmp_path / "shown", table)
    del words[words.index("--json") : words.index("--quiet") + 1]
    assert "on the learning rate is 1.5, halved: step " in xnn_run(*words).stdout
    shutil.rmtree(tmp_path / "run")
    refused = {
        ("--on-nan", "lower-lr"): "need --checkpoint DIR",
        ("--on-nan", "lower-lr", "--checkpoint", "c", "--record", "r.jsonl"): "--record says what",
    }
    if importlib.util.find_spec("scipy"):
        refused["--on-nan", "lower-lr", "--checkpoint", "c", "--optimizer", "lbfgs"] = "LBFGS has none"
    for words, message in refused.items():
        words = [str(tmp_path / word) if word in ("c", "r.jsonl") else word for word in words]
        result = xnn_run("train", "--dataset", table, *words)
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


@pytest.mark.slow
def test_a_process_that_is_killed_and_resumed_is_the_run(tmp_path, table):
    pytest.importorskip("fcntl")
    forker, whole, broken, chance = Forker(), tmp_path / "whole", tmp_path / "broken", random.Random(1)
    python = ["python", "-m", "xnn"]
    try:
        wanted = outcome(forker.run([*python, *lowered(whole, table)], whole), whole)
        line = [*python, *lowered(broken, table)]
        for _ in range(3):
            code, complaints = forker.killed(line, broken, signal.SIGKILL, after=0.05 + 0.1 * chance.random())
            assert code in (0, -signal.SIGKILL), complaints
        assert outcome(forker.run(line, broken), broken) == wanted
    finally:
        forker.close()
