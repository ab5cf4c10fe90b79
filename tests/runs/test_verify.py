"""xnn train --record and xnn verify: what a record holds, and that a fault of one ulp is found where it is."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct

import numpy as np
import pytest
from click.testing import CliRunner
from command_line import run
from planted import ELEMENT, plant

from xnn import losses, optimizers
from xnn.backends.threads import blas_libraries, limit_threads
from xnn.callbacks import Callback
from xnn.cli import main
from xnn.data import Batches, load, synthetic_digits
from xnn.errors import CorruptFileError, DataNotFoundError, OptionError
from xnn.runs.digests import Digests, Recorder, read_record
from xnn.runs.mlp import mlp
from xnn.runs.replay import LiveSide, compare, distance
from xnn.training import Trainer
from xnn.training.steps import Stepper

RUN = ("--hidden", "16", "--batch-size", 50)  # 240 rows: four steps of 50 and one of 40 an epoch
OPS = ("--kernels", "ops", "--threads", 1)
SIDE = "kernels=ops,threads=1"
REPLAY = LiveSide.module
STEP = 7  # of the planted faults: the second of epoch 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where digits.npz is: 300 synthetic digits, of which 240 are for training."""
    path = tmp_path_factory.mktemp("verify")
    x, y = synthetic_digits(300, seed=1)
    np.savez(path / "digits.npz", x=x, y=y)
    return path


def record(folder, name, *options, numerics="exact", code=0):
    """The file of a run of two epochs."""
    path = folder / name
    words = ("--dataset", folder / "digits.npz", *RUN, *OPS, "--epochs", 2, "--numerics", numerics, "--json")
    result = run("train", *words, "--record", path, *options)
    assert result.exit_code == code, result.output
    return path


@pytest.fixture(scope="module")
def clean(folder):
    """The record of a run without fault, in exact numerics."""
    return record(folder, "clean.jsonl")


def faulty(folder, fault, **options):
    """The record of the same run with a fault planted in it."""
    with pytest.MonkeyPatch.context() as patch:
        plant(fault, patch.setattr)
        return record(folder, f"{fault.replace(' ', '-')}.jsonl", **options)


def refused(result, code, *messages):
    assert result.exit_code == code, result.output
    assert "all bits agree" not in result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith(("xnn: ", "Error: "))
    assert all(message in line for message in messages), line


# ---------------------------------------------------------------- the hook


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
def test_every_step_is_seen_as_it_is(kernels):
    """Through checks and epochs: the losses are the history's; each update is the one of its gradient."""
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


def test_nobody_pays_for_the_hook_who_does_not_use_it(monkeypatch):
    monkeypatch.setattr(Stepper, "last_loss", lambda self: pytest.fail("nobody asked"))
    model = mlp(784, (8,), 10, rescale=(1 / 255, 0.0))
    trainer = Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), callbacks=[Callback()])
    assert trainer.fit(synthetic_digits(60), batch_size=20, progress=False).steps == 3


def test_the_hook_runs_on_every_backend(lib):
    model = mlp(784, (8,), 10, rescale=(1 / 255, 0.0))
    recorder = Recorder(model)
    trainer = Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.Adam(), callbacks=[recorder])
    trainer.fit(synthetic_digits(60), batch_size=25, progress=False)
    assert len(recorder.record.steps) == 3
    assert {len(s.weights) for s in recorder.record.steps} == {4 * 16}
    assert len({s.weights[:16] for s in recorder.record.steps}) == 3


# ---------------------------------------------------------------- records


def test_a_record_recomputed_by_a_loop_of_our_own(folder):
    """Every digest of it, from the steps as the design has them."""
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
        if len(self.record.steps) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Recorder, "on_step", interrupted)
    path = record(folder, "interrupted.jsonl", code=130)
    whole = read_record(clean)
    assert read_record(path).steps == whole.steps[:3]
    monkeypatch.undo()
    result = run("verify", clean, path)
    assert (result.exit_code, "\n3 steps, " in result.stdout) == (0, True)


def test_divergence_keeps_the_steps_before_it(folder):
    path = record(folder, "diverged.jsonl", "--lr", "1e30", numerics="fast", code=1)
    assert 0 < len(read_record(path).steps) < 10


@pytest.mark.parametrize("place", ["no/run.jsonl", "."])
def test_a_place_that_cannot_be_written_is_heard_of_first(folder, place):
    refused(run("train", "--dataset", "nosuch", "--record", folder / place), 2, "cannot write")


@pytest.mark.parametrize("row", [[], "x", 3, ["", "", ""], ["3f80", "a" * 4, "b" * 4], None])
def test_rows_that_no_recorder_wrote(clean, tmp_path, row):
    """A row under a checksum that fits, but with nothing in it to compare, is refused, not counted as agreeing."""
    header, initial, first, *rest = clean.read_bytes().splitlines(keepends=True)
    good = json.loads(first)
    changed = [good[0], good[1][:20], good[2]] if row is None else row
    lines = [header, initial, json.dumps(changed).encode() + b"\n", *rest[:-1]]
    end = {"end": len(lines) - 2, "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(lines) + json.dumps(end).encode() + b"\n")
    with pytest.raises(CorruptFileError, match="no recorder wrote"):
        read_record(path)


def test_a_name_that_blas_does_not_know_compares_nothing(folder):
    """OpenBLAS takes its usual kernels for a name it does not know: both sides are one engine, and that is said."""
    result = run("verify", "threads=1", "threads=1", "--dataset", folder / "digits.npz", *RUN, "--steps", 2)
    assert result.exit_code == 0
    assert "both sides were executed in the same way" in result.stderr


def test_predict_follows_the_file(folder, tmp_path, monkeypatch):
    """An exactly trained model predicts exactly, unless the user or the environment says otherwise."""
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
        refused(run("verify", path, SIDE), 1, "r.jsonl", "cut short")
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
    """Argument before variable; an exact run's digests whole, on a line of their own."""
    model = tmp_path / "m.safetensors"
    words = ("train", "--dataset", folder / "digits.npz", *RUN, *OPS, "--epochs", 1)
    report = json.loads(run(*words, "--json", "--numerics", "exact", "--save", model).stdout)
    line = f"exact: weights {report['weights_sha256']}, losses {report['losses_sha256']}"
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


# ---------------------------------------------------------------- planted faults, by records


def test_two_records_that_agree(clean):
    result = run("verify", clean, clean)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "10 steps, loss, 4 gradients, 4 weights each: all bits agree"
    assert "exact numerics: dataset digits.npz, hidden 16" in result.stdout
    assert run("verify", clean, clean, "--steps", 4).stdout.splitlines()[-1].startswith("4 steps, ")


@pytest.mark.parametrize(
    ("fault", "place"),
    [
        (
            f"weight 3.weight {STEP}",
            f"step {STEP} (epoch 2, batch 2): the weight of layer 3 Dense, 3.weight,",
        ),
        (
            f"weight 1.weight {STEP}",
            f"step {STEP} (epoch 2, batch 2): the weight of layer 1 Dense, 1.weight,",
        ),
        (
            f"gradient 1.weight {STEP}",
            f"step {STEP} (epoch 2, batch 2): the gradient of layer 1 Dense, 1.weight,",
        ),
        ("initial 1.weight 0", "before the first step: the weight of layer 1 Dense, 1.weight,"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_fault_of_one_ulp_is_found_where_it_is(folder, clean, fault, place, turned):
    pair = (clean, faulty(folder, fault))
    result = run("verify", *(pair[::-1] if turned else pair))
    assert result.exit_code == 1
    assert place in result.stdout
    assert "all bits agree" not in result.stdout
    assert "exact numerics must agree" in result.stdout


def test_a_fault_in_what_is_not_compared_yet_is_not_seen(folder, clean):
    """Up to the step before it all bits agree: nothing is reported too early."""
    path = faulty(folder, f"weight 3.weight {STEP}")
    assert run("verify", clean, path, "--steps", STEP - 1).exit_code == 0
    assert run("verify", clean, path, "--steps", STEP).exit_code == 1


def test_a_fault_in_the_data(folder, clean):
    refused(run("verify", clean, faulty(folder, "pixel 17 0")), 1, "training data differ")


def first_step_with(folder, row):
    """The step that has this row in its batch, from 1."""
    x, y, *_ = load(folder / "digits.npz")
    return next(n for n, rows in enumerate(Batches((x, y), 50).numbers(0), 1) if row in rows)


@pytest.mark.parametrize("row", [17, 100, 239])
def test_a_fault_in_the_data_after_their_digest(folder, clean, row):
    """Found by the loss of the step that has the row in its batch."""
    step = first_step_with(folder, row)
    result = run("verify", clean, faulty(folder, f"hidden {row} 0"))
    assert result.exit_code == 1
    assert f"step {step} (epoch 1, batch {step}): the loss differs first, " in result.stdout
    assert " ulp" in result.stdout


# ---------------------------------------------------------------- live sides


@pytest.fixture
def planted(monkeypatch):
    """planted(fault): the side that asks for 2 threads has it."""

    def choose(fault):
        monkeypatch.setenv("PLANT", fault)
        module = property(lambda side: "planted" if "threads=2" in side.name else REPLAY)
        monkeypatch.setattr(LiveSide, "module", module)

    return choose


def live(folder, *args):
    return run("verify", *args, "--dataset", folder / "digits.npz")


def test_two_live_sides_and_a_record_agree(folder, clean):
    """Ops on one thread and on two, in exact numerics; and the run that was recorded elsewhere."""
    result = live(folder, SIDE, "kernels=ops,threads=2", *RUN, "--steps", 23)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "23 steps, loss, 4 gradients, 4 weights each: all bits agree"
    assert "A  kernels=ops,threads=1: numpy" in result.stdout
    assert "B  kernels=ops,threads=2: numpy" in result.stdout
    result = live(folder, clean, SIDE)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("10 steps, ")


@pytest.mark.parametrize("what", ["weight", "gradient"])
def test_a_fault_in_a_live_side(folder, planted, what):
    """One element, one ulp, and its two values, which are neighbours."""
    planted(f"{what} 1.weight {STEP}")
    result = live(folder, SIDE, "kernels=ops,threads=2", *RUN, "--steps", 20)
    assert result.exit_code == 1
    where, how_much, others, verdict = result.stdout.splitlines()[-4:]
    assert where == f"step {STEP} (epoch 2, batch 2): the {what} of layer 1 Dense, 1.weight, differs first"
    found = f"  1 of 12,544 elements, first at [{', '.join(map(str, ELEMENT))}], by at most 1 ulp: "
    assert how_much.startswith(found)
    a, b = (np.float32(part.split()[0]) for part in how_much.removeprefix(found).split(" in A, "))
    assert np.nextafter(a, np.float32(np.inf)) == b
    expected = "  everything else up to this step agrees"
    assert others.startswith(expected)
    assert "loss" not in others
    assert verdict.startswith("exact numerics must agree")


def test_a_live_side_against_a_record_of_another_run(folder, clean, planted):
    """There are no tensors in a record; the loss it has."""
    planted("hidden 17 0")
    result = live(folder, clean, "kernels=ops,threads=2")
    assert result.exit_code == 1
    assert f"step {first_step_with(folder, 17)} " in result.stdout
    assert "the loss differs first, " in result.stdout
    planted(f"weight 3.weight {STEP}")
    result = live(folder, "kernels=ops,threads=2", clean)
    assert result.exit_code == 1
    assert f"step {STEP} (epoch 2, batch 2): the weight of layer 3 Dense, 3.weight, differs" in result.stdout
    assert "a record holds digests" in result.stdout


def test_fast_numerics_may_differ_and_says_so(folder):
    """Ops and kernels add in different orders."""
    result = live(folder, SIDE, "kernels=numpy,threads=1", *RUN, "--numerics", "fast")
    assert result.exit_code == 1
    assert "fast numerics give the same bits only if" in result.stdout
    assert "ulp" in result.stdout


def test_a_side_that_dies(folder, planted):
    planted("die - 3")
    result = live(folder, SIDE, "kernels=ops,threads=2", *RUN, "--steps", 20)
    refused(result, 1, "kernels=ops,threads=2", "exit code 7")


@pytest.mark.parametrize(
    ("sides", "options", "code", "message"),
    [
        ((SIDE, "nosuch.jsonl"), (), 2, "neither a file nor settings"),
        ((SIDE, "backnd=numpy"), (), 2, "backend=NAME, threads=N, kernels=NAME or blas=CORE"),
        ((SIDE, "backend=nosuch"), (), 2, "nosuch"),
        ((SIDE, "backend="), (), 2, "backend="),
        ((SIDE, ""), (), 2, "neither"),
        ((SIDE, "threads=0"), (), 2, "positive integer"),
        ((SIDE, "threads=auto"), (), 2, "positive integer"),
        ((SIDE, "kernels=fast"), (), 2, "auto, ops, numpy, compiled"),
        ((SIDE, "threads=1,threads=2"), (), 2, "twice"),
        ((SIDE, SIDE), ("--steps", 0), 2, "steps"),
        ((SIDE, SIDE), ("--dataset", "nosuch"), 2, "nosuch"),
        ((SIDE, SIDE), ("--lr", "nan", "--dataset", "synthetic"), 2, "nan"),
        (("CLEAN", SIDE), ("--batch-size", 20), 2, "--batch-size is what the record says"),
        (("CLEAN", "CLEAN"), ("--numerics", "exact"), 2, "--numerics is what the record says"),
        (("CLEAN", SIDE), ("--dataset", "synthetic"), 1, "training data differ"),
    ],
)
def test_verify_refuses(clean, monkeypatch, sides, options, code, message):
    monkeypatch.setattr("xnn.data.datasets._SYNTHETIC", (60, 20, 20))
    given = [clean if side == "CLEAN" else side for side in sides]
    refused(run("verify", *given, *options), code, message)


def test_two_different_runs_are_not_compared(folder, clean):
    other = record(folder, "seed.jsonl", "--seed", 1)
    refused(run("verify", clean, other), 2, "two different runs", "seed is 0 in", "1 in")
    wider = record(folder, "wider.jsonl", "--hidden", "16,4")
    refused(run("verify", clean, wider), 2, "hidden is 16 in", "16,4 in")
    fast = record(folder, "other.jsonl", numerics="fast")
    refused(run("verify", clean, fast), 2, "numerics is exact in")


def test_blas_is_told_which_kernels_to_take(folder):
    """In the side's environment; what it took is in the line of the side, and a name it did not take is told."""
    if {b["internal_api"] for b in blas_libraries()} != {"openblas"} or os.uname().machine != "x86_64":
        pytest.skip("NumPy's BLAS is not OpenBLAS on x86-64")
    result = live(folder, f"{SIDE},blas=Prescott", f"{SIDE},blas=Nonsense", *RUN, "--steps", 2)
    assert result.exit_code == 0, result.output
    a, b = (line for line in result.stdout.splitlines() if line[:3] in ("A  ", "B  "))
    assert a.split("openblas ")[1] != b.split("openblas ")[1]  # another core, so it was told
    assert "Nonsense: OpenBLAS took kernels that it calls" in result.stderr


# ---------------------------------------------------------------- options of training


def test_a_record_of_a_schedule_is_verified_without_the_run(folder):
    """It has the schedule's length, which --epochs decided; a shorter comparison does not shorten it."""
    words = ("--optimizer", "adamw", "--clip-norm", 0.5, "--augment", "--label-smoothing", 0.1, "--warmup", 3)
    path = record(folder, "options.jsonl", *words, "--schedule", "cosine")
    known = read_record(path).about["run"]
    assert (known["schedule"], known["warmup"], known["lr"]) == ("cosine:steps=7", 3, 0.001)
    result = live(folder, path, SIDE, "--steps", 4)
    assert result.exit_code == 0, result.output
    assert "schedule cosine:steps=7" in result.stdout
    result = live(folder, path, "kernels=numpy,threads=1")
    assert result.stdout.splitlines()[-1].startswith("10 steps, "), result.output
    other = record(folder, "constant.jsonl", *words)
    refused(run("verify", path, other), 2, "two different runs", "cosine:steps=7 in", "None in")
    refused(run("verify", path, SIDE, "--schedule", "step"), 2, "--schedule is what the record says")


def test_two_live_sides_with_a_schedule(folder):
    """It is as long as what is compared."""
    words = (SIDE, "kernels=ops,threads=2", *RUN, "--schedule", "onecycle", "--average", 0.9)
    result = live(folder, *words, "--steps", 6)
    assert result.exit_code == 0, result.output
    assert "schedule onecycle:steps=6" in result.stdout
    result = live(folder, SIDE, SIDE, *RUN, "--warmup", 6, "--steps", 6)
    refused(result, 2, "shorter than the run of 6 steps")


def test_what_goes_without_saying_is_in_no_record(folder, clean):
    """So that it is the record of an xnn that knew none of these options, and one of them given as it is anyway."""
    words = ("--loss", "cross-entropy", "--schedule", "constant", "--momentum", 0, "--weight-decay", 0)
    assert record(folder, "said.jsonl", *words).read_bytes() == clean.read_bytes()


# ---------------------------------------------------------------- order and ulps


@pytest.mark.parametrize(
    ("gradients", "weights", "loss", "first"),
    [
        ("abc", "xyz", "0", None),
        ("ABC", "XYZ", "1", ("loss", "")),
        ("ABC", "XYZ", "0", ("gradient", "2.w")),
        ("ABc", "Xyz", "0", ("gradient", "1.w")),
        ("Abc", "XYZ", "0", ("gradient", "0.w")),
        ("abc", "xYZ", "0", ("weight", "1.w")),
    ],
)
def test_the_first_in_order_of_computation(gradients, weights, loss, first):
    """Loss, gradients from the last layer back, weights; and how much more differs after that step."""
    one, other = Digests("0", "abc", "xyz"), Digests(loss, gradients, weights)
    found = compare(4, one, other, ["0.w", "1.w", "2.w"])
    if first is None:
        assert found is None
        return
    assert (found.step, found.kind, found.name) == (4, *first)
    changed = sum(a != b for column in zip(one, other, strict=True) for a, b in zip(*column, strict=True))
    assert len(found.others) == changed - 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distance(dtype):
    kind = np.dtype(dtype).type
    tiny, large, one = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max, kind(1)
    pairs = [
        (one, one, None),
        (one, np.nextafter(one, kind(2)), 1),
        (one, np.nextafter(one, kind(0)), 1),
        (kind(-1), np.nextafter(np.nextafter(kind(-1), kind(0)), kind(0)), 2),
        (tiny, -tiny, 2),
        (kind(0), kind(-0.0), 0),
        (one, kind(2), 2 ** np.finfo(dtype).nmant),
        (kind(3), kind(np.nan), np.iinfo(np.uint64).max),
        (large, kind(np.inf), 1),
        (large, -large, 2 * int(large.view(f"i{large.itemsize}"))),
    ]
    x, y = (np.array(column, dtype).reshape(2, 5) for column in list(zip(*pairs, strict=True))[:2])
    places, ulps = distance(x, y)
    assert places.tolist() == list(range(1, 10))
    assert ulps.tolist() == [u for *_, u in pairs[1:]]
    for one_way, other in ((x, y), (y, x)):
        assert distance(one_way, other)[1].tolist() == ulps.tolist()


def test_a_record_made_in_python_is_compared_with_another_alone(tmp_path):
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
