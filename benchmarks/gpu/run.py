"""Runs all checks and measurements of a machine with a GPU, within a time limit: what `benchmarks/gpu.sh` calls.

    python -m xnn.benchmarks.gpu.run OUT

Leaves three files in the folder OUT: summary.txt, results.json and logs.txt. The parts stand in the order of their
worth. Each is a process with a time limit of its own, and one that fails does not stop the others. Parts that time
nothing run side by side.

XNN_GPU_SECONDS: the limit of all parts together; default: 505.
XNN_GPU_SHORT=1: a dry run with small sizes, as on an emulated GPU. What takes long is left out.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xnn.benchmarks.gpu.summary import collect, summary
from xnn.files import notice, to_json, write_atomically

__all__ = ["GROUPS", "Part", "main", "run"]

_SECONDS, _LEAST = 505.0, 5.0  # for all parts; a part does not start with less time
_PAUSE = 0.05  # between two looks at the parts that run
_LOG = 20_000  # the most characters of a part's output that are kept
_PYTHON = (sys.executable, "-m")


@dataclass(frozen=True)
class Part:
    """One part: a command with a time limit.

    name: in the summary. seconds: the limit. command: its words; "JSON" stands for the path of a file for results.
    short: the words in a dry run; None: the same. An empty tuple leaves the part out there.
    environment: further variables.
    """

    name: str
    seconds: float
    command: tuple[str, ...]
    short: tuple[str, ...] | None = None
    environment: dict[str, str] = field(default_factory=dict)


def _xnn(*words: str) -> tuple[str, ...]:
    return (*_PYTHON, "xnn", *words)


def _bench(*words: str) -> tuple[str, ...]:
    return _xnn("bench", "--json", "JSON", *words)


def _own(module: str, *words: str) -> tuple[str, ...]:
    return (*_PYTHON, f"xnn.benchmarks.gpu.{module}", "--json", "JSON", *words)


_PEERS = "torch-gpu,torch-gpu-graph,jax-gpu,jax-gpu-scan"
_SMALL = ("--backend", "cupy", "--batch-sizes", "512", "--repeat", "1")
_VERIFY = ("verify", "backend=numpy", "backend=cupy", "--dataset", "synthetic")
_EXACT, _PERSISTENT = {"XNN_NUMERICS": "exact"}, {"XNN_PERSISTENT": "1"}
_SIDE_BY_SIDE = ("-n", "4") if find_spec("xdist") else ()
_TESTS = (*_PYTHON, "pytest", "-q", "-p", "no:cacheprovider", *_SIDE_BY_SIDE, "-k", "cupy")
_SANITIZER = ("compute-sanitizer", "--error-exitcode", "9", "--tool")
_FEW_STEPS = (*_PYTHON, "xnn.benchmarks.gpu.parity", "--steps", "4", "--without-pool")

#: Parts that run side by side, and after them the next ones. Parts that measure times run alone.
GROUPS: tuple[tuple[Part, ...], ...] = (
    (
        Part("info", 40, _xnn("info", "--probe")),
        Part("failures", 60, _own("failures")),
        Part("check", 75, _xnn("check", "--backend", "cupy")),
        Part("check-exact", 90, _xnn("check", "--backend", "cupy"), (), _EXACT),
        Part("parity", 90, _own("parity", "--steps", "1000"), _own("parity", "--steps", "20")),
        Part("parity-persistent", 90, _own("parity", "--steps", "1000"), (), _PERSISTENT),
    ),
    (Part("chunks", 45, _own("chunks"), _own("chunks", "--rows", "128", "--repeat", "1", "--chunks", "1,2")),),
    (
        Part(
            "persistent",
            45,
            _own("persistent"),
            _own("persistent", "--rows", "64", "--repeat", "1", "--batches", "32"),
        ),
    ),
    (Part("small", 120, _bench("--batch-sizes", "32", "--repeat", "5", "--peers", _PEERS), _bench(*_SMALL)),),
    (
        Part(
            "ciresan",
            60,
            _bench(
                *("--preset", "ciresan", "--batch-sizes", "1024", "--repeat", "3", "--backend", "cupy"),
                *("--peers", "torch-gpu,torch-gpu-graph,jax-gpu-scan"),
            ),
            (),
        ),
    ),
    (Part("large-batch", 25, _bench("--batch-sizes", "4096", "--repeat", "5", "--backend", "cupy"), ()),),
    (
        Part(
            "compiled-peer",
            75,
            _bench(
                *("--batch-sizes", "32", "--repeat", "5", "--backend", "cupy"),
                *("--peers", "torch-gpu-compile"),
            ),
            (),
        ),
    ),
    (Part("accuracy", 40, _xnn("bench", "--json", "JSON", "--to-accuracy", "0.98"), ()),),
    (
        Part(
            "targets",
            110,
            _bench(
                *("--preset", "targets", "--repeat", "3", "--backend", "cupy"),
                *("--peers", "torch-gpu-graph,jax-gpu-scan"),
            ),
            (),
        ),
    ),
    (
        Part(
            "exact",
            60,
            _bench(*("--batch-sizes", "32", "--repeat", "3", "--backend", "cupy"), *("--numerics", "both")),
            (),
        ),
    ),
    (
        Part(
            "exact-ciresan",
            45,
            _bench(
                *("--preset", "ciresan", "--batch-sizes", "1024", "--repeat", "2", "--backend", "cupy"),
                *("--numerics", "both"),
            ),
            (),
        ),
    ),
    (
        Part(
            "verify",
            60,
            _xnn(*_VERIFY, "--steps", "60"),
            _xnn(*_VERIFY, "--steps", "2", "--hidden", "8"),
        ),
        Part(
            "digests",
            90,
            (*_PYTHON, "xnn.benchmarks.digests", "--quick", "--only", "cupy", "--json", "JSON"),
            (),
        ),
        Part("tests", 300, (*_TESTS, "tests"), (*_TESTS, "tests/backends/test_random.py")),
        Part("memcheck", 90, (*_SANITIZER, "memcheck", *_FEW_STEPS)),
        Part("racecheck", 90, (*_SANITIZER, "racecheck", *_FEW_STEPS)),
        Part("memcheck-persistent", 90, (*_SANITIZER, "memcheck", *_FEW_STEPS), None, _PERSISTENT),
    ),
)  # fmt: skip


class _Running:
    """A part that runs: its process, its time limit, and the files that it writes."""

    def __init__(self, part: Part, words: Sequence[str], seconds: float, folder: Path) -> None:
        self.part, self.json = part, folder / f"{part.name}.json"
        self.begun, self.seconds = time.monotonic(), seconds
        self.log = folder / f"{part.name}.txt"
        self.missing = ""
        self.process: subprocess.Popen[bytes] | None = None
        command = [str(self.json) if word == "JSON" else word for word in words]
        with self.log.open("wb") as log:
            try:
                self.process = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                    env={**os.environ, **part.environment}, start_new_session=True,
                )  # fmt: skip
            except FileNotFoundError:
                self.missing = f"{command[0]} is not installed"

    def result(self) -> dict[str, Any] | None:
        """What became of the part, which is ended at its limit; None while it runs."""
        about = {"name": self.part.name, "limit": round(self.seconds), "left_out": self.missing}
        if self.process is None:
            return about
        spent = time.monotonic() - self.begun
        late = self.process.poll() is None
        if late and spent < self.seconds:
            return None
        self.end()
        return about | {"exit": self.process.returncode, "late": late, "seconds": round(spent, 1)}

    def end(self) -> None:
        """End the part with all processes that it started: first politely, so that it writes what it has."""
        if self.process is None:
            return
        for way in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, way)
                self.process.wait(3.0)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        self.process.wait()


def run(groups: Sequence[Sequence[Part]], folder: Path, seconds: float, short: bool) -> list[dict[str, Any]]:
    """Run all parts, group by group. Returns for each what became of it; logs and results are in the folder.

    folder: for a file NAME.txt and perhaps NAME.json of each part. seconds: the limit of all together. short: whether
    this is a dry run.
    """
    begun, found = time.monotonic(), dict[str, dict[str, Any]]()
    for group in groups:
        running = []
        for part in group:
            words = part.command if not short or part.short is None else part.short
            left = seconds - (time.monotonic() - begun)
            if not words or left < _LEAST:
                why = "the time was over" if words else "not in a dry run"
                found[part.name] = {"name": part.name, "left_out": why}
                continue
            running.append(_Running(part, words, min(part.seconds, left), folder))
        try:
            while running:
                time.sleep(_PAUSE)
                for one in [*running]:
                    if about := one.result():
                        found[one.part.name] = about
                        running.remove(one)
                        notice(f"{one.part.name}: {about['left_out'] or about['exit']}")
        finally:
            for one in running:  # Ctrl-C
                one.end()
    return [found[part.name] for group in groups for part in group]


def _scrub(text: str, out: Path) -> str:
    """Text without the paths and the name of this machine."""
    hidden = {
        str(out.resolve()): "OUT", os.getcwd(): ".", sys.prefix: "PYTHON", sys.base_prefix: "PYTHON",
        tempfile.gettempdir(): "TMP", os.path.expanduser("~"): "~",
    }  # fmt: skip
    for name in ("XNN_DATA_HOME", "WHEELS", "CUPY_CACHE_DIR"):
        hidden[os.environ.get(name, "")] = name
    for what in sorted(hidden, key=len, reverse=True):
        if len(what) > 2:
            text = text.replace(what, hidden[what])
    host = platform.node()
    return re.sub(rf"\b{re.escape(host)}\b", "HOST", text) if len(host) > 3 else text


def main(arguments: Sequence[str]) -> int:
    """Run everything and write the files. Returns 0; the summary says what failed."""
    if len(arguments) != 1:
        notice("usage: python -m xnn.benchmarks.gpu.run OUT")
        return 2
    out, short = Path(arguments[0]), os.environ.get("XNN_GPU_SHORT") == "1"
    out.mkdir(parents=True, exist_ok=True)
    seconds = float(os.environ.get("XNN_GPU_SECONDS", _SECONDS))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ.setdefault("CUPY_CACHE_DIR", str(folder / "cupy"))
        parts = run(GROUPS, folder, seconds, short)
        results = collect(parts, folder)
        logs = []
        for part in parts:
            log = folder / f"{part['name']}.txt"
            if log.exists():
                text = log.read_text(encoding="utf-8", errors="replace")
                text = text if len(text) <= _LOG else f"{text[: _LOG // 2]}\n[...]\n{text[-_LOG // 2 :]}"
                logs.append(f"== {part['name']}\n{text}")
    results["short"] = short
    for name, content in (
        ("results.json", to_json(results)),
        ("logs.txt", "\n".join(logs)),
        ("summary.txt", summary(results)),
    ):
        write_atomically(str(out / name), _scrub(content, out).encode())
    print(_scrub(summary(results), out))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
