"""XNN_PERSISTENT=1: `xnn train` and `xnn info --probe` say whether one kernel runs the steps, and why not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import one_json, run

from xnn.backends import available_backends

CUPY = pytest.param(
    "cupy", marks=pytest.mark.skipif(bool(available_backends()["cupy"]), reason="cupy does not run here")
)
RUNS = {
    "small": (),
    "a large batch": ("--batch-size", "150"),
    "exact": ("--numerics", "exact"),
    "ops": ("--kernels", "ops"),
}


@pytest.fixture
def small(tmp_path):
    """What a quick run on 200 samples of 20 features is given."""
    rng = np.random.default_rng(0)
    path = tmp_path / "small.npz"
    np.savez(path, x=rng.integers(0, 255, (200, 20), dtype=np.uint8), y=rng.integers(0, 3, 200))
    return "--dataset", path, "--hidden", "4", "--epochs", "1"


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("backend", ["numpy", CUPY])
def test_train_says_what_the_plan_says(small, monkeypatch, backend, name):
    words = "train", *small, *RUNS[name], "--backend", backend
    assert "XNN_PERSISTENT" not in run(*words).stdout
    monkeypatch.setenv("XNN_PERSISTENT", "1")
    plan = one_json(run(*words, "--json"))["plan"]
    (line,) = (line for line in run(*words).stdout.splitlines() if line.startswith("XNN_PERSISTENT=1"))
    assert ("had no effect" in line) is not plan.get("persistent", False)
    assert plan.get("persistent_because", "it is for the kernels cuda on a GPU") in line


@pytest.mark.parametrize("backend", [CUPY])
@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("switch", ["0", "1"])
def test_info_says_whether_it_is_on(monkeypatch, backend, numerics, switch):
    for variable, value in (("BACKEND", backend), ("NUMERICS", numerics), ("PERSISTENT", switch)):
        monkeypatch.setenv(f"XNN_{variable}", value)
    plan = json.loads(run("info", "--probe", "--json").stdout)["plan"]
    assert (
        plan["persistent"] is (switch == "1" and numerics == "fast")
        or "compute capability" in (plan["persistent_because"])
    )
    assert plan["persistent_because"]
