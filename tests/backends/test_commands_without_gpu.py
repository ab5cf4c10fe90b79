"""Every command says in one line why cupy does not run, whatever the reason, and never shows a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import refused, run
from test_cupy_failures import FAILURES, _fresh

from xnn.backends import use_backend
from xnn.benchmarks import digests
from xnn.errors import BackendUnavailableError

__all__ = ["_fresh"]

ROOT = Path(__file__).parents[2]
SYNTHETIC = "--dataset", "synthetic"
COMMANDS = {
    "train": ("train", *SYNTHETIC, "--epochs", "1"),
    "predict": ("predict", "model.safetensors", "x.npy"),
    "check": ("check", "--backend", "cupy"),
    "bench": ("bench", "--backend", "cupy"),
    "check all": ("check",),
    "bench all": ("bench",),
    "bench to an accuracy": ("bench", "--to-accuracy", "0.9"),
    "verify two records": ("verify", "run.jsonl", "run.jsonl"),
}


def said_by(failure: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    FAILURES[failure][0](monkeypatch, folder)
    with pytest.raises(BackendUnavailableError) as caught:
        use_backend("cupy")
    return str(caught.value)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record run.jsonl."""
    folder = tmp_path_factory.mktemp("recorded")
    done = run(
        "train",
        *SYNTHETIC,
        "--epochs",
        "1",
        "--batch-size",
        "2000",
        "--quiet",
        "--record",
        folder / "run.jsonl",
    )
    assert done.exit_code == 0, done.output
    return folder


@pytest.mark.sampled(6)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("failure", FAILURES)
def test_a_command_says_why_in_one_line(failure, command, monkeypatch, tmp_path, recorded):
    message = said_by(failure, monkeypatch, tmp_path)
    monkeypatch.setenv("XNN_BACKEND", "cupy")
    monkeypatch.chdir(recorded)
    refused(run(*COMMANDS[command]), 1, message)


@pytest.mark.parametrize("failure", FAILURES)
def test_the_digest_matrix_says_why_in_one_line(failure, monkeypatch, tmp_path, capsys):
    message = said_by(failure, monkeypatch, tmp_path)
    monkeypatch.setenv("XNN_BACKEND", "cupy")
    assert digests.main(["--quick"]) == 1
    assert capsys.readouterr() == ("", f"{message}\n")


@pytest.mark.parametrize("failure", FAILURES)
def test_info_says_why_beside_everything_else(failure, monkeypatch, tmp_path):
    message = said_by(failure, monkeypatch, tmp_path)
    monkeypatch.setenv("XNN_BACKEND", "cupy")
    for arguments in (("info",), ("info", "--probe")):
        result = run(*arguments)
        told = next(line.strip() for line in result.stdout.splitlines() if line.startswith("  cupy: "))
        reason = "" if told.startswith("cupy: installed") else told
        assert (result.exit_code, result.stderr) == ((1, f"xnn: {reason}\n") if reason else (0, ""))
        assert result.stdout.count("\ngpus: cupy: ") + result.stdout.count("\n  cupy:0: ") == 1
        assert "\n  in force: fast\n" in result.stdout
    assert f"\n  {message}\n" in result.stdout  # which begins with the backend's name
    assert "cupy: cupy:" not in result.stdout.replace("gpus: cupy: ", "")
    about_gpus = f"\ngpus: {message}\n" in result.stdout
    assert result.stdout.count(message) == 1 + about_gpus  # numerics and plan do not repeat it


#: What a package `cupy` of this code makes of every command in a process of its own.
WRITTEN = {
    "missing": ("raise ModuleNotFoundError('no cupy', name='cupy')", "CuPy is not installed"),
    "broken": ("raise ImportError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13"),
    "two wheels": (
        "import warnings; warnings.warn('multiple CuPy packages are installed')",
        "several CuPy packages",
    ),
}


def process(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    site = os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-B", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": site, "XNN_BACKEND": "cupy"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.sampled(8)
@pytest.mark.parametrize("case", WRITTEN)
def test_a_process_says_why_in_one_line(case, tmp_path):
    """Also one that `xnn verify` starts. Importing xnn alone needs no backend."""
    code, text = WRITTEN[case]
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").write_text(code)
    imported = process("-c", "import xnn; print(xnn.__version__)", folder=tmp_path)
    assert (imported.returncode, imported.stderr) == (0, "")
    settings = "backend=cupy", "backend=numpy"
    verified = process("-m", "xnn", "verify", *settings, *SYNTHETIC, "--steps", "1", folder=tmp_path)
    assert verified.returncode == 1
    assert verified.stdout == ""
    (line,) = verified.stderr.splitlines()
    assert line.startswith("xnn: backend=cupy: cupy: ")
    assert text in line
