"""`xnn info`: what it shows, and what a wrong environment variable does."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
from command_line import refused, run

import xnn
from xnn.backends import backend_names, get_backend
from xnn.cli import info
from xnn.errors import BackendUnavailableError


def test_info():
    result = run("info")
    assert result.exit_code == 0
    for text in (xnn.__version__, np.__version__, sys.executable, *backend_names(), "drawn by xnn"):
        assert text in result.stdout


def test_info_json(monkeypatch, tmp_path):
    monkeypatch.setenv("XNN_DATA_HOME", str(tmp_path))
    facts = json.loads(run("info", "--json").stdout)
    assert facts["xnn"] == xnn.__version__
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["backends"].keys() == set(backend_names())
    assert facts["plan"]["backend"] == "numpy"
    assert facts["plan"]["kernels"] == get_backend("numpy").kernels().name  # what fit would use
    assert facts["plan"]["fused"]
    assert facts["environment"]["XNN_DATA_HOME"] == str(tmp_path)
    assert "synthetic" in facts["data"]
    if isinstance(facts["gpus"], str):  # why there is none
        assert facts["gpus"].startswith("cupy: ")
        assert "\n" not in facts["gpus"]
    else:
        assert [gpu["number"] for gpu in facts["gpus"] if gpu["used"]] == [0]


def test_info_probe():
    pytest.importorskip("array_api_strict")
    facts = json.loads(run("info", "--probe", "--json").stdout)
    assert facts["backends"]["numpy"].startswith("works")
    assert facts["backends"]["array-api-strict"].startswith("works")
    if importlib.util.find_spec("cupy") is None:
        assert "pip install" in facts["backends"]["cupy"]
    assert facts["numerics"]["in force"] == "fast"
    assert facts["numerics"]["exact"].startswith("works")


@pytest.mark.parametrize("name", ["cupy", "array-api-strict"])
def test_info_names_a_backend_that_does_not_run_once(monkeypatch, name):
    def missing(wanted):
        if wanted == name:
            raise BackendUnavailableError(f"{name}: not here")
        return get_backend("numpy")

    monkeypatch.setattr(info, "get_backend", missing)
    assert f"\n  {name}: not here\n" in run("info", "--probe").stdout


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("XNN_BACKEND", "nosuch", "plan"),
        ("XNN_NUMERICS", "half", "plan"),
        ("XNN_PERSISTENT", "yes", "plan"),
        ("XNN_DATA_HOME", "nowhere", "data"),
    ],
)
@pytest.mark.parametrize("probe", [(), ("--probe",)])
def test_info_says_what_is_wrong(monkeypatch, variable, value, key, probe):
    """A wrong variable is shown together with everything else, and the exit code is 2."""
    monkeypatch.setenv(variable, value)
    result = run("info", "--json", *probe)
    assert result.exit_code == 2
    facts = json.loads(result.stdout)
    assert value in str(facts[key])
    assert variable in str(facts[key])
    assert result.stderr.startswith(f"xnn: {variable}")


@pytest.mark.parametrize(
    "args", [("check",), ("bench",), ("bench", "--to-accuracy", "0.9"), ("predict", "m", "x")]
)
def test_every_command_refuses_a_wrong_backend_variable(monkeypatch, args):
    monkeypatch.setenv("XNN_BACKEND", "nosuch")
    refused(run(*args), 2, "XNN_BACKEND='nosuch'")
