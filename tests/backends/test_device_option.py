"""Commands on the second of two GPUs, and records of runs there that are replayed elsewhere."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from command_line import one_json, run
from test_two_devices import SMALL, command, pytestmark, two

import xnn
from xnn.backends import get_backend
from xnn.cli import check

__all__ = ["pytestmark", "two"]

SECOND = {
    "--device": (("--backend", "cupy", "--device", "1"), {}),
    "--backend": (("--backend", "cupy:1"), {}),
    "XNN_DEVICE": (("--backend", "cupy"), {"XNN_DEVICE": "1"}),
    "both": (("--device", "1"), {"XNN_BACKEND": "cupy"}),
}
FAST = "--dataset", "synthetic", "--hidden", "4", "--batch-size", "512", "--numerics", "fast"


@pytest.mark.parametrize("way", SECOND)
def test_train_and_predict_on_the_second_device(way, monkeypatch, tmp_path):
    """The weights lie there, the record says so, and the predictions are the CPU's."""
    arguments, variables = SECOND[way]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before, made = os.environ.get("XNN_DEVICE"), []
    evaluate = xnn.Trainer.evaluate
    monkeypatch.setattr(
        xnn.Trainer,
        "evaluate",
        lambda trainer, *given: made.append(trainer.model) or evaluate(trainer, *given),
    )
    model, record = str(tmp_path / "m.safetensors"), tmp_path / "run.jsonl"
    report = one_json(run(*SMALL, *arguments, "--save", model, "--record", record))
    assert report["backend"] == report["plan"]["backend"] == "cupy:1"
    assert {p.value.device.id for p in made[0].parameters()} == {1}
    assert json.loads(record.read_text().splitlines()[0])["plan"]["backend"] == "cupy:1"
    np.save(tmp_path / "x.npy", (np.arange(5 * 784) % 251).astype(np.uint8).reshape(5, 784))
    found = []
    for number, chosen in enumerate((arguments, ("--backend", "numpy"))):
        output = tmp_path / f"{number}.npy"
        assert run("predict", model, str(tmp_path / "x.npy"), *chosen, "--output", output).exit_code == 0
        found.append(np.load(output))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert os.environ.get("XNN_DEVICE") == before


def test_the_first_device_has_a_number_in_records_too():
    """So that it does not become the second one where XNN_DEVICE=1 is set."""
    assert one_json(run(*SMALL, "--backend", "cupy"))["plan"]["backend"] == get_backend("cupy:0").address


@pytest.mark.parametrize(
    "names", [("--backend", "cupy", "--device", "1"), ("--backend", "cupy:1"), ("--backend", "cupy:0")]
)
def test_check_counts_the_results_of_the_device(names, monkeypatch):
    monkeypatch.setattr(check, "CASES", check.CASES[:2])
    result = run("check", *names)
    label = "cupy" if "cupy:0" in names else "cupy:1"
    assert f"\n{label}: 7 passed, 0 failed\n" in f"\n{result.stdout}"


def test_verify_compares_two_devices(tmp_path):
    """And a record of the second with a machine of one: there number 1 is one clear error, and cupy is its GPU."""
    record = str(tmp_path / "run.jsonl")
    done = command("train", *FAST, "--epochs", "1", "--record", record, "--backend", "cupy:1", "--quiet")
    assert done.returncode == 0, done.stderr
    both = command("verify", "backend=cupy:0", "backend=cupy:1", *FAST, "--steps", "2")
    assert both.returncode == 0, both.stderr
    assert "all bits agree" in both.stdout
    assert "cupy:0 (" in both.stdout
    assert "cupy:1 (" in both.stdout
    alone = {"XNN_EMULATOR_DEVICES": "1"}
    there = command("verify", record, "backend=cupy", "--steps", "2", **alone)
    assert there.returncode == 0, there.stderr
    assert "recorded by xnn" in there.stdout
    missing = command("verify", record, "backend=cupy:1", "--steps", "2", **alone)
    assert (missing.returncode, missing.stdout) == (1, "")
    (line,) = missing.stderr.splitlines()
    assert line.startswith("xnn: backend=cupy:1: cupy: there is no GPU 1: there is one GPU, number 0")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("predict", "m.safetensors", "x.npy", "--backend", "cupy", "--device", "2"),
            "there is no GPU 2: there are 2",
        ),
        (("predict", "m.safetensors", "x.npy", "--device", "1"), "the backend is numpy: add --backend cupy"),
        (("verify", "backend=cupy:x", "backend=numpy"), "'cupy:x' is not a backend"),
        (("verify", "backend=cupy:2", "backend=numpy", *FAST), "there is no GPU 2: there are 2"),
        (("verify", "backend=numpy:1", "backend=numpy", *FAST), "'numpy:1' is not a backend"),
        (("bench", "--backend", "cupy:1"), "--device chooses the GPU"),
    ],
)
def test_a_wrong_device_is_one_line(arguments, text):
    done = command(*arguments)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("xnn: ")]) == 1
