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
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 143 - 14), (signal.SIGINT, 130)]
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
    assert checkpoints(broken)[-1] > first[-1] or process.returncode == code
    wanted = outcome(run(command(name, whole, checkpoints=False)), whole)
    found = run([*command(name, broken)])
    assert "resumed from" in found["complaints"]
    assert outcome(found, broken) == wanted


def test_two_trainings_in_one_folder(tmp_path):
    process = started("sgd", tmp_path, "--epochs", "2000", "--quiet")
    try:
        wait_until(lambda: (tmp_path / "checkpoints" / "lock").exists(), process)
        other = subprocess.run(command("sgd", tmp_path), capture_output=True, text=True, timeout=60)
        assert other.returncode == 2
        assert "another training writes checkpoints into" in other.stderr
    finally:
        process.kill()
        process.communicate()
    run(command("sgd", tmp_path))  # the killed one has left no lock
