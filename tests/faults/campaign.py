"""Kills real `xnn train` processes at random moments, resumes them, and compares the end with a run never killed.

    python tests/faults/campaign.py [KILLS [MUTANTS]]

kills 100 processes of ten configurations, makes 1,000 mutated checkpoints, and prints what came of them in numbers.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from xnn.callbacks import checkpoints_in
from xnn.layers.safetensors_file import check_signature

__all__ = ["CONFIGURATIONS", "SIGNALS", "Forker", "command", "outcome", "run"]

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
        own = ("seconds", "samples_per_second", "command", "source", "files")  # of the clock and the folder
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        found["log"] = [{key: value for key, value in entry.items() if key not in own} for entry in lines]
    if record.exists():
        found["record"] = record.read_bytes()
    return found


SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)


# The campaign.

_FAULTY = str(Path(__file__).with_name("faulty_disk.py"))
#: How a process is killed, and how often of a hundred times.
_WAYS = {
    "SIGKILL": 25,
    "SIGTERM": 20,
    "SIGKILL during slow writes": 20,
    "SIGTERM during slow writes": 10,
    "SIGKILL while writes fail": 10,
    "SIGKILL on a full disk": 15,
}


def killed(line, way, chance, folder, seconds):
    """Run a command and kill it in this way. Returns its exit code and complaints.

    seconds: how long its training takes. One of five is killed earlier, while it is imported or loads the data.
    """
    if "writes" in way:
        line = [line[0], _FAULTY, "slow" if "slow" in way else "failing", str(chance.random()), *line[3:]]
    process, filler = _started(line), folder / "checkpoints" / "filler"
    if chance.random() < 0.2:
        time.sleep(2.0 * chance.random())
    else:
        _wait_for_the_fit(process)
    if "full" in way:
        time.sleep(seconds * chance.random() / 2)
        with contextlib.suppress(OSError), open(filler, "wb", 0) as file:
            while True:
                file.write(bytes(4096))
    time.sleep(seconds * chance.random() * (3 if "slow" in way else 1))
    process.send_signal(signal.SIGTERM if "TERM" in way else signal.SIGKILL)
    _, complaints = process.communicate(timeout=120)
    filler.unlink(missing_ok=True)
    return process.returncode, complaints


def _wait_for_the_fit(process):
    """Wait until a process has opened the lock of its checkpoints, or has ended."""
    files = Path(f"/proc/{process.pid}/fd")
    while process.poll() is None:
        with contextlib.suppress(OSError):
            if any(os.readlink(file).endswith("/checkpoints/lock") for file in files.iterdir()):
                return
        time.sleep(0.005)


def one_configuration(name, kills, place, small):
    """Kill runs of a configuration so many times, each run until it ends. Returns counts of what came of them."""
    chance, whole = random.Random(name), place / "whole"
    whole.mkdir(parents=True)
    result, found = run(command(name, whole, checkpoints=False)), Counter()
    wanted, seconds = outcome(result, whole), 0.1 + result["steps"] * result["ms_per_step"] / 1000
    came = runs = 0
    ways = {way: share for way, share in _WAYS.items() if small or "full" not in way}
    while came < kills:
        runs += 1
        broken = place / f"broken{runs}"
        (broken / "checkpoints").mkdir(parents=True)
        if small:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=8m", "none", broken / "checkpoints"], check=True
            )
        line, ended = command(name, broken), False
        while came < kills and not ended:
            (way,) = chance.choices([*ways], [*ways.values()])
            code, complaints = killed(line, way, chance, broken, seconds)
            number = signal.SIGTERM if "TERM" in way else signal.SIGKILL
            # CPython ends by SIGINT if the signal came while an import executed a string of code.
            assert code in (0, -number, 128 + number, -signal.SIGINT), (name, way, code, complaints)
            assert "damaged" not in complaints
            for path in checkpoints_in(broken / "checkpoints"):
                assert check_signature(path)
                found["files whole"] += 1
            ended = code == 0
            if not ended:
                came += 1
                found[way] += 1
        same = outcome(run(line), broken) == wanted
        found["identical" if same else "DIFFERENT"] += 1
        if small:
            subprocess.run(["umount", broken / "checkpoints"], check=True)
    return found


def in_a_namespace():
    """Go on in a mount namespace of its own, where file systems may be mounted. Returns whether that is so."""
    if os.environ.get("XNN_CAMPAIGN") == "in a namespace":
        return True
    words = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    with tempfile.TemporaryDirectory() as folder:
        mount = [*words, "mount", "-t", "tmpfs", "none", folder]
        if not shutil.which("unshare") or subprocess.run(mount, check=False).returncode:
            return False
    environment = {**os.environ, "XNN_CAMPAIGN": "in a namespace"}
    os.execvpe("unshare", [*words, sys.executable, *sys.argv], environment)


def main(kills=100, number=1000):
    """Run the campaign and print it in numbers. Raises AssertionError if a run is another one."""
    small, found, began = in_a_namespace(), Counter(), time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ThreadPoolExecutor(2) as threads:
        each = [kills // len(CONFIGURATIONS) + (n < kills % len(CONFIGURATIONS)) for n in range(10)]
        places = [Path(folder, str(n)) for n in range(10)]
        for counts in threads.map(one_configuration, CONFIGURATIONS, each, places, [small] * 10):
            found += counts
    told = ", ".join(f"{found[way]} {way}" for way in _WAYS)
    runs = found["identical"] + found["DIFFERENT"]
    print(
        f"{kills} kills in {len(CONFIGURATIONS)} configurations: {told}; {runs} runs, of which {found['identical']} "
        f"ended with the digests of a run that was never killed; {found['files whole']:,} checkpoints after kills, "
        f"all whole; {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    if not small:
        print("no file system could be mounted here, so that no disk was full")
    subprocess.run([sys.executable, str(Path(__file__).with_name("mutants.py")), str(number)], check=True)
    assert not found["DIFFERENT"]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
