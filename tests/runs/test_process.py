"""Processes that answer commands end with the process that started them, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from xnn.runs import process
from xnn.runs.process import Process

SLEEPER = """
import time
from xnn.runs.process import serve

class Sleeper:
    def sleep(self, seconds):
        time.sleep(seconds)
        return {"slept": seconds}

def main():
    serve(Sleeper)
"""


@pytest.fixture
def sleeper(tmp_path, monkeypatch):
    """The name of a module whose processes can sleep for some seconds."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    monkeypatch.syspath_prepend(tmp_path)
    return "sleeper"


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    if sys.platform == "linux":  # an orphan that ended, and that nobody has waited for, is a zombie
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    return True


def wait_for_its_end(pid):
    deadline = time.monotonic() + 60
    while is_there(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("module", ["sleeper", "xnn.runs.replay_process", "xnn.benchmarks.worker"])
def test_a_process_ends_with_its_parent(tmp_path, sleeper, module):
    """The sleeper is busy with a command for an hour; the processes of verify and bench wait for one."""
    begin = (
        "process.ask()\nsys.stdout.flush()\nprocess.ask(do='sleep', seconds=3600)"
        if module == sleeper
        else ""
    )
    program = (
        f"import sys, time; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from xnn.runs.process import Process\n"
        f"process = Process('it', {module!r}, 1)\n"
        f"print(process._process.pid, flush=True)\n{begin}\ntime.sleep(3600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        if begin:
            time.sleep(0.5)  # so that the command has begun; the test passes without it, too
        assert is_there(child)
        parent.send_signal(signal.SIGKILL)
    wait_for_its_end(child)


def test_a_process_that_is_closed_ends_at_once(sleeper):
    """It waits for a command then, and ends by itself, not by the signal that `close` sends after ten seconds."""
    worker = Process("it", sleeper, 1)
    worker.settle = 0.0
    assert worker.ask() == {"ready": True}
    assert worker.ask(do="sleep", seconds=0) == {"slept": 0}
    worker.close()
    assert worker._process.returncode == 0


def test_a_command_longer_than_a_pipe_takes_at_once(sleeper):
    worker = Process("it", sleeper, 1)
    worker.settle = 0.0
    worker.ask()
    worker.ask(do="sleep", seconds=0, nothing="é" * 300_000)
    assert "unexpected keyword argument 'nothing'" in worker.error
    worker.close()


def test_isolated_python_starts_isolated_processes(sleeper, monkeypatch):
    """`python -I` ignores PYTHON variables; so do the processes that it starts."""
    started = []
    monkeypatch.setattr(process.subprocess, "Popen", lambda words, **options: started.append(words))
    for isolated in (0, 1):
        monkeypatch.setattr(process.sys, "flags", type("Flags", (), {"isolated": isolated}))
        Process("it", sleeper, 1)._complaints.close()
    assert ["-I" in words for words in started] == [False, True]
