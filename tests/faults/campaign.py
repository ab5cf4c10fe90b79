"""Kills real `xnn train` processes at random moments, resumes them, and compares the end with a run never killed."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

__all__ = ["CONFIGURATIONS", "SIGNALS", "Forker", "command", "killed", "outcome", "run"]

_BASE = "--dataset {folder}/images.npz --json --quiet --threads 1 --seed 3"

#: Options of `xnn train` by a name; {folder} is the folder of the run.
CONFIGURATIONS = {
    "sgd": "--epochs 6 --every 7steps",
    "schedule, clipped": "--epochs 6 --schedule cosine --warmup 20 --momentum 0.9 --clip-norm 1 --every 30steps",
    "adam, averages": "--epochs 6 --optimizer adam --average 0.99 --every 1epoch",
    "dropout, patience": "--epochs 12 --dropout 0.3 --patience 2 --optimizer adam --every 1s",
    "augmented, weighted": "--epochs 4 --augment 0.5 --class-weight balanced --label-smoothing 0.1 --every 11steps",
    "exact": "--epochs 3 --numerics exact --optimizer nadam --every 13steps",
    "logged, recorded": "--epochs 4 --log {folder}/run.jsonl --record {folder}/record.jsonl --every 9steps",
    "lbfgs": "--epochs 25 --optimizer lbfgs --hidden 20 --every 1epoch",
    "ops": "--epochs 2 --kernels ops --optimizer rmsprop --every 17steps",
    "normalized": "--epochs 5 --model {folder}/network.toml --optimizer lion --every 1epoch",
}

_NETWORK = """
[[layers]]
type = "Dense"
outputs = 30
[[layers]]
type = "BatchNorm"
[[layers]]
type = "ReLU"
[[layers]]
type = "Dropout"
rate = 0.2
[[layers]]
type = "Dense"
outputs = "classes"
"""


def command(name: str, folder: Path, checkpoints: bool = True) -> list[str]:
    """The command line of a configuration. The same one begins and goes on."""
    (folder / "network.toml").write_text(_NETWORK)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 1500)
    images = (rng.integers(0, 90, (1500, 12, 12)) + 30 * labels[:, None, None]).astype(np.uint8)
    np.savez(folder / "images.npz", x=images, y=labels)
    options = f"{_BASE} {CONFIGURATIONS[name]}".format(folder=folder).split()
    if checkpoints:
        options += ["--checkpoint", str(folder / "checkpoints"), "--resume", "--keep", "2"]
    else:
        del options[options.index("--every") :]
    return [sys.executable, "-m", "xnn", "train", *options]


def _started(line: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )


def run(line: list[str]) -> dict[str, object]:
    """Run a command to its end. Returns what it printed."""
    process = _started(line)
    out, complaints = process.communicate(timeout=120)
    assert process.returncode == 0, complaints
    return {**json.loads(out), "complaints": complaints}


def killed(line: list[str], chance: random.Random, number: int, after: float) -> tuple[int, str]:
    """Run a command and send it a signal after about this many seconds. Returns its exit code and complaints."""
    process = _started(line)
    time.sleep(after * chance.random())
    process.send_signal(number)
    _, complaints = process.communicate(timeout=120)
    return process.returncode, complaints


class Forker:
    """Runs commands in forks of one process that has imported everything (`forker.py`)."""

    def __init__(self) -> None:
        line = [sys.executable, str(Path(__file__).with_name("forker.py"))]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _begin(self, line: list[str], folder: Path) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(folder), *line[3:]]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def run(self, line: list[str], folder: Path) -> dict[str, object]:
        """Run a command to its end. Returns what it printed."""
        self._begin(line, folder)
        code, complaints = self._answer(), (folder / "complaints.txt").read_text()
        assert code == 0, complaints
        return {**json.loads((folder / "out.txt").read_text()), "complaints": complaints}

    def ended(self, line: list[str], folder: Path, memory: int) -> tuple[int, str]:
        """Run a command with so many MiB of memory. Returns its exit code and complaints."""
        self._begin([*line[:3], f"memory={memory}", *line[3:]], folder)
        return self._answer(), (folder / "complaints.txt").read_text()

    def killed(self, line: list[str], folder: Path, number: int, after: float) -> tuple[int, str]:
        """Run a command and send it a signal after some seconds. Returns its exit code and complaints."""
        pid = self._begin(line, folder)
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return self._answer(), (folder / "complaints.txt").read_text()

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)


def outcome(result: dict[str, object], folder: Path) -> dict[str, object]:
    """What must be the same: digests, numbers of the epochs, the test, the log and the record."""
    kept = (
        "weights_sha256",
        "losses_sha256",
        "history",
        "test_loss",
        "test_accuracy",
        "steps",
        "kept_epoch",
        "stopped",
    )
    found = {name: result[name] for name in kept}
    log, record = folder / "run.jsonl", folder / "record.jsonl"
    if log.exists():
        clock = ("seconds", "samples_per_second")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        found["log"] = [{key: value for key, value in entry.items() if key not in clock} for entry in lines]
    if record.exists():
        found["record"] = record.read_bytes()
    return found


SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
