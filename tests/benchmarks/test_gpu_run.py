"""benchmarks/gpu.sh: its parts, their limits, the summary, and a dry run where CuPy works."""

import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from xnn.backends import available_backends
from xnn.benchmarks import suite
from xnn.benchmarks.gpu import run as runner
from xnn.benchmarks.gpu.run import GROUPS, Part, run
from xnn.benchmarks.gpu.summary import TARGETS, collect, summary
from xnn.cli import bench, main

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
PARTS = [part for group in GROUPS for part in group]
PYTHON = (sys.executable, "-c")

needs_bash = pytest.mark.skipif(
    shutil.which("bash") is None or not SCRIPT.exists(), reason="there is no bash, or no checkout"
)


# The parts.


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_each_part_is_a_command_that_there_is(part):
    """Its module can be imported, and its options are those of the command, in a dry run too."""
    for words in (part.command, part.short or ()):
        if words[:2] != (sys.executable, "-m"):
            assert not words or words[0] == "compute-sanitizer"
            continue
        module, *rest = words[2:]
        importlib.import_module(module)
        if module == "xnn":
            name, *options = rest
            main.get_command(None, name).make_context(name, list(options))
        if rest[:1] == ["bench"]:
            given = dict(itertools.pairwise(rest))
            bench._read_peers(given.get("--peers", ""))
            assert given.get("--preset", "targets") in {"targets", *suite.NETWORKS}


def test_the_names_of_parts_differ_and_timed_parts_run_alone():
    assert len({part.name for part in PARTS}) == len(PARTS)
    for group in GROUPS:
        timed = [
            part.name for part in group if "bench" in part.command or part.name in ("chunks", "persistent")
        ]
        assert not timed or len(group) == 1


def test_parts_that_fail_hang_or_are_missing_do_not_stop_the_others(tmp_path):
    child = "subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    hangs = f"import subprocess, sys; print('begun', flush=True); {child}"
    groups = (
        (
            Part("fails", 30, (*PYTHON, "import sys; print('a word'); sys.exit(3)")),
            Part("hangs", 1.0, (*PYTHON, hangs)),
            Part("absent", 30, ("no-such-program",)),
        ),
        (Part("writes", 30, (*PYTHON, "import sys; open(sys.argv[1], 'w').write('{\"a\": 1}')", "JSON")),),
        (Part("told", 30, (*PYTHON, "import os; print(os.environ['WORD'])"), None, {"WORD": "heard"}),),
        (Part("short", 30, (*PYTHON, "print('long')"), (*PYTHON, "print('short')")),),
        (Part("left", 30, (*PYTHON, ""), ()),),
    )  # fmt: skip
    found = {about["name"]: about for about in run(groups, tmp_path, 60.0, short=True)}
    assert list(found) == ["fails", "hangs", "absent", "writes", "told", "short", "left"]
    assert (found["fails"]["exit"], found["fails"]["late"]) == (3, False)
    assert found["hangs"]["late"]
    assert found["hangs"]["seconds"] < 30
    assert found["absent"]["left_out"] == "no-such-program is not installed"
    assert found["left"]["left_out"] == "not in a dry run"
    results = collect(list(found.values()), tmp_path)
    assert results["results"] == {"writes": {"a": 1}}
    assert {part["name"]: part["last"] for part in results["parts"] if part["last"]} == {
        "fails": "a word", "hangs": "begun", "told": "heard", "short": "short",
    }  # fmt: skip
    (late,) = run((groups[0][:1],), tmp_path, 1.0, short=False)
    assert late["left_out"] == "the time was over"


# The summary.


def entry(name, us, reason="", **more):
    return {"contestant": name, "median": us, "valid": not reason, "reason": reason, "plan": {}, **more}


def measured(**changed):
    """Results of a card on which every target is met; `changed` replaces the results of parts."""
    plan = {"backend": "cupy:0", "device": "NVIDIA H200", "cuda": "13.0"}
    peers = [
        entry(name, 60.0)
        for name in ("torch-gpu", "torch-gpu-graph", "torch-gpu-compile", "jax-gpu", "jax-gpu-scan")
    ]
    small = [entry("xnn-cupy", 28.04, plan=plan), *peers]

    def bench_of(network, batch, *entries):
        return {"results": [{"network": network, "batch": batch, "entries": list(entries)}]}

    exact = entry("xnn-cupy", 100.0), entry("xnn-cupy:exact", 250.0)
    results = {
        "small": bench_of("article", 32, *small),
        "compiled-peer": bench_of("article", 32, entry("xnn-cupy", 30.0), entry("torch-gpu-compile", 60.0)),
        "large-batch": bench_of("article", 4096, entry("xnn-cupy", 1000.0)),
        "ciresan": bench_of("ciresan", 1024, entry("gemm-cupy", 90.0), entry("xnn-cupy", 100.0)),
        "persistent": {"races": [raced()]},
        "exact": bench_of("article", 32, *exact),
        "exact-ciresan": bench_of("ciresan", 1024, *exact),
        "accuracy": {"results": [
            {"contestant": "xnn", "recipe": "a", "reached": True, "median_seconds": 0.1, "reason": ""},
            {"contestant": "xnn-cupy", "recipe": "a", "reached": True, "median_seconds": 0.25, "reason": ""},
            {"contestant": "xnn-cupy", "recipe": "b", "reached": False, "reason": ""},
        ]},
    }  # fmt: skip
    return results | changed


def raced(**changed):
    """A race of the persistent kernel that it has won."""
    race = {"optimizer": "SGD", "batch": 32, "plan": {"persistent": True, "persistent_because": "16 blocks"}}
    return race | {"graph_us": 30.0, "persistent_us": 12.0, "same": True} | changed


@pytest.mark.parametrize(
    ("race", "expected"),
    [
        (
            raced(persistent_us=14.0, graph_us=13.0),
            "14.0 us a step, the graph's time / its own 0.93: NOT MET",
        ),
        (raced(persistent_us=16.0), "16.0 us a step, the graph's time / its own 1.88: NOT MET"),
        (raced(same=False), "not measured: its losses differ from those of the graph"),
        (
            {
                "optimizer": "SGD",
                "batch": 32,
                "plan": {"persistent": False, "persistent_because": "no cluster"},
            },
            "not measured: no cluster",
        ),
        (raced(optimizer="Adam"), "not measured: persistent ended with exit code 0:"),
    ],
)
def test_the_persistent_kernel_must_be_ahead_of_the_graph(tmp_path, race, expected):
    found, _ = summarized(tmp_path, measured(persistent={"races": [race]}))
    assert next(text for name, text in found.items() if "persistent" in name) == expected


def summarized(tmp_path, results, parts=()):
    for name, content in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    names = {*results, *(part["name"] for part in parts)} - {part["name"] for part in parts}
    about = [
        {"name": name, "left_out": "", "late": False, "exit": 0, "seconds": 1.0} for name in sorted(names)
    ]
    text = summary(collect([*about, *parts], tmp_path))
    assert len(text.splitlines()) <= 60, "one page"
    lines = text.splitlines()
    return {name: lines[lines.index(f"  {name}") + 1].strip() for name in TARGETS}, text


def test_a_summary_where_all_is_measured(tmp_path):
    found, text = summarized(tmp_path, measured())
    assert list(found.values()) == [
        "28.0 us a step: met",
        "12.0 us a step, the graph's time / its own 2.50: met",
        "their time / xnn's: torch-gpu 2.14, torch-gpu-graph 2.14, torch-gpu-compile 2.00, jax-gpu 2.14, "
        "jax-gpu-scan 2.14: met",
        "4.10 M samples/s: met",
        "0.25 s by a: met",
        "90% of the rate of its products alone: met",
        "2.50 x fast: met",
        "2.50 x fast: met",
    ]
    assert "device: NVIDIA H200; CUDA 13.0" in text


def test_targets_that_are_missed_or_not_measured_say_so(tmp_path):
    slow = [entry("xnn-cupy", 31.0), entry("torch-gpu", 30.0), entry("jax-gpu", 1.0, "jax sees no GPU")]
    changed = {"small": {"results": [{"network": "article", "batch": 32, "entries": slow}]}}
    results = {
        name: content
        for name, content in measured(**changed).items()
        if name in ("small", "exact", "large-batch")
    }
    results["large-batch"]["results"][0]["entries"][0] |= {
        "valid": False,
        "reason": "its loss did not go down",
    }
    parts = (
        {"name": "ciresan", "left_out": "the time was over"},
        {"name": "accuracy", "left_out": "", "late": False, "exit": 1, "seconds": 2.0},
        {"name": "exact-ciresan", "left_out": "", "late": True, "exit": -15, "seconds": 45.0},
    )
    (tmp_path / "accuracy.txt").write_text("xnn: mnist is not on disk\n\n")
    found, text = summarized(tmp_path, results, parts)
    assert list(found.values()) == [
        "31.0 us a step: NOT MET",
        "not measured: it did not run",
        "their time / xnn's: torch-gpu 0.97, torch-gpu-graph not measured (torch-gpu-graph did not run), "
        "torch-gpu-compile not measured (it did not run), jax-gpu not measured (jax-gpu: jax sees no "
        "GPU), jax-gpu-scan not measured (jax-gpu-scan did not run): NOT MET",
        "not measured: xnn-cupy: its loss did not go down",
        "not measured: accuracy ended with exit code 1: xnn: mnist is not on disk",
        "not measured: the time was over",
        "not measured: exact-ciresan was stopped after 45 s",
        "2.50 x fast: met",
    ]
    assert "late" in text


def test_an_emulated_gpu_measures_nothing(tmp_path):
    results = measured()
    results["small"]["results"][0]["entries"][0]["plan"]["device"] = "an emulated GPU (on the CPU)"
    found, _ = summarized(tmp_path, results)
    assert set(found.values()) == {"not measured: the GPU is an emulated one"}


def test_no_path_and_no_name_of_the_machine_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.node", lambda: "the-host")
    monkeypatch.setenv("WHEELS", "/some/wheels")
    text = f"{tmp_path}/a {os.getcwd()}/b {sys.prefix}/c the-host. other-the-hosts /some/wheels/d"
    assert runner._scrub(text, tmp_path) == "OUT/a ./b PYTHON/c HOST. other-the-hosts WHEELS/d"


# The script.


def script(out, **variables):
    return subprocess.run(
        ["bash", str(SCRIPT), str(out)], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )  # fmt: skip


@needs_bash
def test_the_script_is_well_formed():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


@needs_bash
def test_a_package_that_is_missing_is_named_and_taken_from_a_wheel(tmp_path):
    """Without site-packages nothing can be imported; a wheel that lies there is used."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    variables = {"PYTHON": str(bare), "WHEELS": str(tmp_path), "PYTHONPATH": ""}
    assert script(tmp_path / "out", **variables).returncode == 1
    assert "xnn cannot be imported: ModuleNotFoundError" in (tmp_path / "out" / "summary.txt").read_text()
    with zipfile.ZipFile(tmp_path / "numpy-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("numpy.py", "raise ImportError('from the wheel')")
    assert script(tmp_path / "out", **variables).returncode == 1
    assert "from the wheel" in (tmp_path / "out" / "summary.txt").read_text()


@needs_bash
@pytest.mark.slow
def test_a_dry_run_on_cupy(tmp_path):
    """On the emulated GPU, or on a real one: all parts of a dry run end well, and three small files are left."""
    if reason := available_backends()["cupy"]:
        pytest.skip(reason)
    code = f"import subprocess, sys; sys.exit(subprocess.call(['bash', {str(SCRIPT)!r}, sys.argv[1]]))"
    attached = ["-m", "cuda_emulator"] if "cuda_emulator.attach" in sys.modules else []
    done = subprocess.run(
        [sys.executable, *attached, "-c", code, str(tmp_path / "out")],
        env={**os.environ, "PYTHON": sys.executable, "XNN_GPU_SHORT": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert files.keys() == {"summary.txt", "results.json", "logs.txt"}
    parts = {part["name"]: part for part in json.loads(files["results.json"])["parts"]}
    ran = {name: part["exit"] for name, part in parts.items() if not part["left_out"]}
    assert ran.keys() >= {
        "info",
        "failures",
        "check",
        "parity",
        "chunks",
        "persistent",
        "small",
        "verify",
        "tests",
    }
    assert set(ran.values()) == {0}, files["logs.txt"]
    assert "xnn on a GPU, a dry run" in files["summary.txt"]
    for text in files.values():
        assert str(Path.home()) not in text
        assert os.getcwd() not in text
