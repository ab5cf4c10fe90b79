"""xnn verify: a fault of one ulp is found where it is, in records and in live sides."""

from __future__ import annotations

import os

import numpy as np
import pytest
from command_line import run
from planted import ELEMENT
from recorded_runs import RUN, SIDE, faulty, record, refused

from xnn.backends.threads import blas_libraries
from xnn.data import Batches, load
from xnn.runs.digests import read_record
from xnn.runs.replay import LiveSide

REPLAY = LiveSide.module
STEP = 7  # of the planted faults: the second of epoch 2


# Planted faults, by records.


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


def test_a_fault_after_the_last_compared_step_is_not_seen(folder, clean):
    """All steps before the fault agree."""
    path = faulty(folder, f"weight 3.weight {STEP}")
    assert run("verify", clean, path, "--steps", STEP - 1).exit_code == 0
    assert run("verify", clean, path, "--steps", STEP).exit_code == 1


def test_a_fault_in_the_data(folder, clean):
    refused(run("verify", clean, faulty(folder, "pixel 17 0")), 4, "training data differ")


def first_step_with(folder, row):
    """The number, from 1, of the first step with this row in its batch."""
    x, y, *_ = load(folder / "digits.npz")
    return next(n for n, rows in enumerate(Batches((x, y), 50).numbers(0), 1) if row in rows)


@pytest.mark.parametrize("row", [17, 100, 239])
def test_a_fault_in_the_data_after_their_digest(folder, clean, row):
    """The loss of the step with the row in its batch differs."""
    step = first_step_with(folder, row)
    result = run("verify", clean, faulty(folder, f"hidden {row} 0"))
    assert result.exit_code == 1
    assert f"step {step} (epoch 1, batch {step}): the loss differs first, " in result.stdout
    assert " ulp" in result.stdout


# Live sides.


@pytest.fixture
def planted(monkeypatch):
    """planted(fault) plants the fault in the side with 2 threads."""

    def choose(fault):
        monkeypatch.setenv("PLANT", fault)
        module = property(lambda side: "planted" if "threads=2" in side.name else REPLAY)
        monkeypatch.setattr(LiveSide, "module", module)

    return choose


def live(folder, *args):
    return run("verify", *args, "--dataset", folder / "digits.npz")


def test_two_live_sides_and_a_record_agree(folder, clean):
    """In exact numerics, one thread and two give the same bits, which are those of the record."""
    result = live(folder, SIDE, "kernels=ops,threads=2", *RUN, "--steps", 23)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "23 steps, loss, 4 gradients, 4 weights each: all bits agree"
    assert "A  kernels=ops,threads=1: numpy" in result.stdout
    assert "B  kernels=ops,threads=2: numpy" in result.stdout
    result = live(folder, clean, SIDE)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("10 steps, ")


@pytest.mark.sampled(8)
@pytest.mark.parametrize("what", ["weight", "gradient"])
def test_a_fault_in_a_live_side(folder, planted, what):
    """The element is named, with the distance of one ulp and both values."""
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


@pytest.mark.slow
def test_a_live_side_against_a_record_of_another_run(folder, clean, planted):
    """A record has losses, but no tensors to compute a distance from."""
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


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("sides", "options", "code", "message"),
    [
        ((SIDE, "nosuch.jsonl"), (), 4, "neither a file nor settings"),
        ((SIDE, "device=1"), (), 2, "cupy:1 is the second GPU"),
        ((SIDE, "backend=gpu"), (), 2, "array-api-strict, or cupy:1 for the second GPU"),
        ((SIDE, "backnd=numpy"), (), 2, "backend=NAME, threads=N, kernels=NAME, blas=CORE or workers=mpi"),
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
        (("CLEAN", SIDE), ("--batch-size", 20), 2, "--batch-size is set by the record"),
        (("CLEAN", "CLEAN"), ("--numerics", "exact"), 2, "--numerics is set by the record"),
        (("CLEAN", SIDE), ("--dataset", "synthetic"), 4, "training data differ"),
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


def test_blas_chooses_the_kernels_of_openblas(folder):
    """The side's line names the kernels that OpenBLAS took, and a message names a setting that it did not follow."""
    if {b["internal_api"] for b in blas_libraries()} != {"openblas"} or os.uname().machine != "x86_64":
        pytest.skip("NumPy's BLAS is not OpenBLAS on x86-64")
    result = live(folder, f"{SIDE},blas=Prescott", f"{SIDE},blas=Nonsense", *RUN, "--steps", 2)
    assert result.exit_code == 0, result.output
    a, b = (line for line in result.stdout.splitlines() if line[:3] in ("A  ", "B  "))
    assert a.split("openblas ")[1] != b.split("openblas ")[1]  # another core, so it was told
    assert "Nonsense: OpenBLAS took kernels that it calls" in result.stderr


# Options of training.


@pytest.mark.slow
def test_a_record_of_a_schedule_is_verified_without_the_run(folder):
    """The record has the length of the schedule, which --epochs decided. Comparing fewer steps does not change it."""
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
    refused(run("verify", path, SIDE, "--schedule", "step"), 2, "--schedule is set by the record")


@pytest.mark.slow
def test_two_live_sides_with_a_schedule(folder):
    """The schedule is as long as the comparison."""
    words = (SIDE, "kernels=ops,threads=2", *RUN, "--schedule", "onecycle", "--average", 0.9)
    result = live(folder, *words, "--steps", 6)
    assert result.exit_code == 0, result.output
    assert "schedule onecycle:steps=6" in result.stdout
    result = live(folder, SIDE, SIDE, *RUN, "--warmup", 6, "--steps", 6)
    refused(result, 2, "shorter than the run of 6 steps")


def test_a_default_that_is_given_changes_no_record(folder, clean):
    """An option with its default value leaves the record as it was before the option existed."""
    words = ("--loss", "cross-entropy", "--schedule", "constant", "--momentum", 0, "--weight-decay", 0)
    assert record(folder, "said.jsonl", *words).read_bytes() == clean.read_bytes()
