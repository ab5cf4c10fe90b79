"""xnn train --record and Recorder: what a record holds, and which files are refused."""

from __future__ import annotations

import hashlib
import json
import signal
import struct

import numpy as np
import pytest
from click.testing import CliRunner
from command_line import run
from recorded_runs import OPS, RUN, SIDE, record, refused

from xnn import losses, optimizers
from xnn.backends.threads import limit_threads
from xnn.callbacks import Callback
from xnn.cli import main
from xnn.data import Batches, load, synthetic_digits
from xnn.errors import CorruptFileError, DataNotFoundError, OptionError
from xnn.runs.digests import Recorder, read_record
from xnn.runs.mlp import mlp
from xnn.training import Trainer
from xnn.training.steps import Stepper

# Recorder, and the hook on_step.


class EachStep(Callback):
    """Keeps each step's loss, weights and gradients."""

    needs_gradients = True

    def __init__(self, model):
        self.model, self.seen = model, []

    def on_step(self, history, epoch, step, loss):
        parameters = self.model.parameters()
        arrays = [[a.copy() for a in (p.value, p.grad)] for p in parameters]
        self.seen.append((epoch, step, loss, arrays))


@pytest.mark.parametrize("kernels", ["ops", "numpy", "auto"])
def test_on_step_sees_each_step(kernels):
    """Losses are those of the history, and each update follows from its gradient, across checks and epochs."""
    x, y = synthetic_digits(230)
    model = mlp(784, (8,), 10, rescale=(1 / 255, 0.0))
    before = [p.value.copy() for p in model.parameters()]
    watch = EachStep(model)
    loss = losses.SoftmaxCrossEntropy()
    trainer = Trainer(model, loss, optimizers.SGD(0.25), callbacks=[watch], kernels=kernels)
    history = trainer.fit((x, y), epochs=5, batch_size=9, progress=False)
    assert len(watch.seen) == history.steps == 5 * 26 > 100
    assert [(epoch, step) for epoch, step, *_ in watch.seen] == [
        (e, s + 1) for e in range(5) for s in range(26)
    ]
    numbers = np.array([loss for _, _, loss, _ in watch.seen], "<f8")
    assert hashlib.sha256(numbers.tobytes()).hexdigest() == history.losses_sha256
    for _, _, _, arrays in watch.seen:
        for position, (after, gradient) in enumerate(arrays):
            np.testing.assert_allclose(after, before[position] - 0.25 * gradient, rtol=1e-5, atol=1e-7)
            before[position] = after
    for p, (last, _) in zip(model.parameters(), watch.seen[-1][3], strict=True):
        np.testing.assert_array_equal(p.value, last)


def test_without_on_step_no_loss_is_fetched(monkeypatch):
    taken, take = [], Stepper.take
    monkeypatch.setattr(Stepper, "take", lambda self: taken.append(take(self)) or taken[-1])
    model = mlp(784, (8,), 10, rescale=(1 / 255, 0.0))
    trainer = Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), callbacks=[Callback()])
    assert trainer.fit(synthetic_digits(60), batch_size=20, progress=False).steps == 3
    assert [len(losses) for losses, *_ in taken] == [3]


def test_the_hook_runs_on_every_backend(lib):
    model = mlp(784, (8,), 10, rescale=(1 / 255, 0.0))
    recorder = Recorder(model)
    trainer = Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.Adam(), callbacks=[recorder])
    trainer.fit(synthetic_digits(60), batch_size=25, progress=False)
    assert len(recorder.record.steps) == 3
    assert {len(s.weights) for s in recorder.record.steps} == {4 * 16}
    assert len({s.weights[:16] for s in recorder.record.steps}) == 3


# Records.


def test_a_record_recomputed_by_a_loop_of_our_own(folder):
    """A training loop in this test gives the same digests."""
    path = record(folder, "fast.jsonl", "--dropout", 0.25, numerics="fast")
    header, initial, *steps, end = [json.loads(line) for line in path.read_text().splitlines()]
    x, y, *_ = load(folder / "digits.npz")
    net = mlp(784, (16,), 10, dropout=0.25, rescale=(1 / 255, 0.0))
    loss, rule = losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1)

    def digests(arrays):
        return "".join(hashlib.sha256(a.astype("<f4").tobytes()).hexdigest()[:16] for a in arrays)

    assert initial == ["", "", digests(p.value for p in net.parameters())]
    with limit_threads(1):
        for epoch in range(2):
            for xb, yb in Batches((x, y), 50).epoch(epoch):
                number = rule.steps
                net.set_stream(0, number)
                value = float(loss.forward(net.forward(xb, training=True), yb))
                net.backward(loss.backward())
                rule.step(net.parameters())
                kept = [(p.grad, p.value) for p in net.parameters()]
                mine = [
                    struct.pack(">f", value).hex(),
                    digests(g for g, _ in kept),
                    digests(w for _, w in kept),
                ]
                assert steps[number] == mine
    assert len(steps) == end["end"] == header["steps_per_epoch"] * 2 == 10
    run = {"hidden": [16], "activation": "relu", "optimizer": "sgd", "lr": 0.1, "batch_size": 50, "seed": 0}
    assert header["run"] == {"dataset": "digits.npz", **run, "dropout": 0.25}
    data = b"|u1(240, 784)" + x.tobytes() + b"<i8(240,)" + y.astype("<i8").tobytes()
    assert header["data_sha256"] == hashlib.sha256(data).hexdigest()
    assert list(header["tensors"].items()) == [
        (name, "Dense") for name in ("1.weight", "1.bias", "4.weight", "4.bias")
    ]
    assert header["plan"]["numerics"] == "fast"
    assert header["plan"]["kernels"] == "ops"
    # a step: the loss, two digests of 16 digits a tensor, and what JSON puts around them
    assert len(path.read_bytes()) < 2000 + 10 * (8 + 2 * 16 * 4 + 14)


def test_recording_changes_no_bit_of_an_exact_run(folder, clean):
    words = ("--dataset", folder / "digits.npz", *RUN, *OPS, "--epochs", 2, "--json")
    keys = ("weights_sha256", "losses_sha256")
    plain = json.loads(run("train", *words, "--numerics", "exact").stdout)
    recorded = json.loads(
        run("train", *words, "--numerics", "exact", "--record", folder / "again.jsonl").stdout
    )
    assert [plain[key] for key in keys] == [recorded[key] for key in keys]
    assert (folder / "again.jsonl").read_bytes() == clean.read_bytes()


def test_ctrl_c_keeps_what_was_recorded(folder, clean, monkeypatch):
    on_step = Recorder.on_step

    def interrupted(self, *arguments):
        on_step(self, *arguments)
        if self.steps == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Recorder, "on_step", interrupted)
    path = record(folder, "interrupted.jsonl", code=130)
    whole = read_record(clean)
    assert read_record(path).steps == whole.steps[:3]
    monkeypatch.undo()
    result = run("verify", clean, path)
    assert (result.exit_code, "\n3 steps, " in result.stdout) == (0, True)


def test_divergence_keeps_the_steps_before_it(folder):
    path = record(folder, "diverged.jsonl", "--lr", "1e30", numerics="fast", code=3)
    assert 0 < len(read_record(path).steps) < 10


@pytest.mark.parametrize("place", ["no/run.jsonl", "."])
def test_a_file_that_cannot_be_written_is_refused_before_training(folder, place):
    refused(run("train", "--dataset", "nosuch", "--record", folder / place), 2, "cannot write")


@pytest.mark.parametrize("row", [[], "x", 3, ["", "", ""], ["3f80", "a" * 4, "b" * 4], None])
def test_rows_that_no_recorder_wrote(clean, tmp_path, row):
    """A line without digests is refused although the checksum fits: it would agree with anything."""
    header, initial, first, *rest = clean.read_bytes().splitlines(keepends=True)
    good = json.loads(first)
    changed = [good[0], good[1][:20], good[2]] if row is None else row
    lines = [header, initial, json.dumps(changed).encode() + b"\n", *rest[:-1]]
    end = {"end": len(lines) - 2, "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(lines) + json.dumps(end).encode() + b"\n")
    with pytest.raises(CorruptFileError, match="no recorder wrote"):
        read_record(path)


@pytest.mark.slow
def test_two_sides_that_are_executed_alike(folder):
    """OpenBLAS takes its usual kernels for an unknown name: both sides are executed alike, and a message says so."""
    result = run("verify", "threads=1", "threads=1", "--dataset", folder / "digits.npz", *RUN, "--steps", 2)
    assert result.exit_code == 0
    assert "both sides were executed in the same way" in result.stderr


def test_predict_follows_the_file(folder, tmp_path, monkeypatch):
    """A model trained in exact numerics predicts in them, unless an option or a variable chooses others."""
    saved = tmp_path / "m.safetensors"
    words = ("--dataset", folder / "digits.npz", *RUN, "--epochs", 1, "--numerics", "exact", "--save", saved)
    assert run("train", *words).exit_code == 0
    found = {}
    for name, options, variable in (
        ("file", (), ""), ("exact", ("--numerics", "exact"), ""), ("fast", ("--numerics", "fast"), ""),
        ("environment", (), "fast"),
    ):  # fmt: skip
        monkeypatch.setenv("XNN_NUMERICS", variable)
        output = tmp_path / f"{name}.npy"
        result = run("predict", saved, folder / "digits.npz", "--output", output, *options)
        assert result.exit_code == 0, result.output
        found[name] = np.load(output).tobytes()
    assert found["file"] == found["exact"] != found["fast"] == found["environment"]


def test_damaged_records(clean, tmp_path):
    content, path = clean.read_bytes(), tmp_path / "r.jsonl"
    lines = content.splitlines(keepends=True)
    swapped = [*lines[:3], lines[4], lines[3], *lines[5:]]
    for damaged in (
        b"".join(lines[:-3]),
        content[:-9],
        b"".join(swapped),
        content.replace(b"0.1,", b"0.2,", 1),
        lines[0],
    ):
        assert damaged != content
        path.write_bytes(damaged)
        with pytest.raises(CorruptFileError, match="damaged or cut short"):
            read_record(path)
        refused(run("verify", path, SIDE), 4, "r.jsonl", "cut short")
    for other in (b"", b"hello\n", b"[1, 2]\n", b'{"a": 1}\n', b"\xff\xfe", b"\n\n\n"):
        path.write_bytes(other)
        with pytest.raises(CorruptFileError, match="not a record"):
            read_record(path)
    path.write_bytes(content.replace(b"record 1", b"record 2"))
    with pytest.raises(CorruptFileError, match="xnn record 2"):
        read_record(path)
    with pytest.raises(DataNotFoundError, match="nosuch"):
        read_record(tmp_path / "nosuch.jsonl")


def test_the_numerics_options(folder, tmp_path, monkeypatch):
    """The option comes before the variable. Exact numerics print whole digests."""
    model = tmp_path / "m.safetensors"
    words = ("train", "--dataset", folder / "digits.npz", *RUN, *OPS, "--epochs", 1)
    report = json.loads(run(*words, "--json", "--numerics", "exact", "--save", model).stdout)
    line = (
        f"exact numerics; SHA-256 of the weights {report['weights_sha256']}, of the losses "
        f"{report['losses_sha256']}: the same run gives the same digests"
    )
    assert run(*words, "--numerics", "exact").stdout.splitlines()[-1] == line
    monkeypatch.setenv("XNN_NUMERICS", "exact")
    assert run(*words).stdout.splitlines()[-1] == line
    assert "exact:" not in run(*words, "--numerics", "fast").stdout
    for command in (words, ("predict", model, folder / "digits.npz"), ("verify", SIDE, SIDE)):
        refused(run(*command, "--numerics", "half"), 2, "half", "exact")
    monkeypatch.delenv("XNN_NUMERICS")
    outputs = {}
    for name in ("fast", "exact"):
        path = tmp_path / f"{name}.npy"
        run("predict", model, folder / "digits.npz", "--numerics", name, "--output", path)
        outputs[name] = np.load(path)
    monkeypatch.setenv("XNN_NUMERICS", "exact")
    run("predict", model, folder / "digits.npz", "--output", tmp_path / "variable.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "variable.npy"), outputs["exact"])
    assert (outputs["exact"] != outputs["fast"]).any()
    np.testing.assert_allclose(outputs["exact"], outputs["fast"], atol=1e-5)


def test_a_record_made_in_python_can_be_compared_only_with_another_record(tmp_path):
    x, y = synthetic_digits(40, seed=1)
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for path in paths:
        model = mlp(784, (4,), 10, seed=0)
        recorder = Recorder(model)
        trainer = Trainer(
            model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), callbacks=[recorder], numerics="exact"
        )
        trainer.fit((x, y), progress=False)
        recorder.record.save(path)
    same = CliRunner().invoke(main, ["verify", *map(str, paths)])
    assert same.exit_code == 0, same.output
    assert "all bits agree" in same.output
    refused = CliRunner().invoke(main, ["verify", str(paths[0]), "threads=1"])
    assert refused.exit_code == 2
    assert "compare it with another record" in refused.stderr
    with pytest.raises(OptionError, match=r"a Sequential, got 'run\.jsonl'.*record\.save"):
        Recorder("run.jsonl")


def signed(header, lines):
    """A record with another first line, and the checksum that belongs to it."""
    lines = [json.dumps(header).encode() + b"\n", *lines[1:-1]]
    end = {"end": len(lines) - 2, "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}
    return b"".join(lines) + json.dumps(end).encode() + b"\n"


@pytest.mark.parametrize(
    ("key", "values"),
    [
        (("tensors",), (None, 3, "x", [], ["1.weight"], {"1.weight": 3})),
        (("steps_per_epoch",), (None, 0, -1, True, 0.5, "3", [])),
        (("plan",), (None, 3, [], {})),
        (("plan", "numerics"), (None, 3, "half", [])),
        (("plan", "threads"), ("1", 0.5, [], {})),
        *((("plan", name), (None, 3, [])) for name in ("blas", "backend", "library", "device", "kernels")),
        (("run",), (None, 3, "x", [])),
        (("run", "dataset"), (None, 3, [])),
        (("table",), (None, 3, [])),
        (("data_sha256",), (None, 3, [])),
        (("xnn",), (None, 3, [])),
    ],
    ids=str,
)
def test_a_first_line_of_other_types_is_refused(clean, tmp_path, key, values):
    """Although the checksum fits."""
    path, lines = tmp_path / "r.jsonl", clean.read_bytes().splitlines(keepends=True)
    for value in values:
        header = json.loads(lines[0])
        place = header
        for part in key[:-1]:
            place = place[part]
        place[key[-1]] = value
        path.write_bytes(signed(header, lines))
        with pytest.raises(CorruptFileError, match=r"r\.jsonl"):
            read_record(path)
    path.write_bytes(signed(json.loads(lines[0]), lines))
    read_record(path)


@pytest.mark.parametrize("place", [0, 1, 2, -1])
@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b'"\xff"', b"\0"])
def test_lines_that_no_parser_likes(clean, tmp_path, place, text):
    path, lines = tmp_path / "r.jsonl", clean.read_bytes().splitlines(keepends=True)
    lines[place] = text + b"\n"
    if place >= 0:
        end = {"end": len(lines) - 3, "sha256": hashlib.sha256(b"".join(lines[:-1])).hexdigest()}
        lines[-1] = json.dumps(end).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(CorruptFileError, match=r"r\.jsonl"):
        read_record(path)
