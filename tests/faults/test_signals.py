"""Signals to `xnn train --checkpoint`: the step in hand is finished, a checkpoint written; exit codes say which."""

import signal
import subprocess
import time

import pytest
from campaign import command, outcome, run

pytest.importorskip("fcntl")


def started(name, folder, *more):
    return subprocess.Popen(
        [*command(name, folder), "--every", "9999h", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition, process):
    """Wait until something has come about, at most half a minute."""
    for _ in range(3000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it did not come about")


def checkpoints(folder):
    return sorted((folder / "checkpoints").glob("step-*.safetensors"))


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_training_with_a_checkpoint_and_its_exit_code(number, code, tmp_path):
    name = "logged, recorded"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    process = started(name, broken)
    log = broken / "run.jsonl"
    wait_until(lambda: log.exists() and '"epoch": 1' in log.read_text(), process)
    process.send_signal(signal.SIGUSR1)  # a checkpoint, and it goes on
    wait_until(lambda: checkpoints(broken), process)
    first = checkpoints(broken)
    process.send_signal(number)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == code, complaints
    assert checkpoints(broken)[-1] >= first[-1]
    wanted = outcome(run(command(name, whole, checkpoints=False)), whole)
    found = run([*command(name, broken)])
    assert "resumed from" in found["complaints"]
    assert outcome(found, broken) == wanted
