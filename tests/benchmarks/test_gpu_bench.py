"""What `xnn bench` says of a GPU: on the emulated one, or on a real one, and by invented entries."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from click.testing import CliRunner
from test_bench import REFERENCE, TASK, entry, invented, judged

from xnn.backends import available_backends, cupy_backend, get_backend
from xnn.benchmarks import report, suite
from xnn.benchmarks.contestants import Task, make
from xnn.benchmarks.gpu import chunks, parity, persistent
from xnn.benchmarks.gpu_peers import GPU_PEERS
from xnn.benchmarks.peers import PEERS
from xnn.benchmarks.products import DeviceGemm, Gemm
from xnn.cli import bench, main

_REASON = available_backends()["cupy"]
needs_cupy = pytest.mark.skipif(bool(_REASON), reason=_REASON or "CuPy runs")


@needs_cupy
def test_the_products_alone_on_cupy_are_those_of_a_step():
    """The products of one step, as NumPy computes them; epochs of other lengths run the same ones."""
    here, there = (make(name, TASK, 1) for name in ("gemm", "gemm-cupy"))
    assert isinstance(here, Gemm)
    assert isinstance(there, DeviceGemm)
    lib = get_backend("cupy")
    for number in (1, 3):
        for out in (*there.out, *there.dw):
            out.fill(0)
        assert len(there.epoch(np.arange(32 * number))) == number
        a, da, w = ([lib.to_host(x) for x in arrays] for arrays in (there.a, there.da, there.w))
        for got, want in (
            (there.out[2], a[1] @ w[1]),
            (there.dw[1], a[1].T @ da[2]),
            (there.out[1], da[2] @ w[1].T),  # comes last, over the output of the first layer
            (there.dw[0], a[0].T @ da[1]),
        ):
            np.testing.assert_allclose(lib.to_host(got), want, rtol=1e-4, atol=1e-4)
    assert sorted(there.graphs) == [1, 3]
    assert len(there.products) == 2 + 2 + 1, "forward, gradients of the weights, gradient of the hidden layer"


@needs_cupy
def test_what_a_contestant_on_cupy_tells():
    """One small task on both backends: the plan, the device's memory, the first step, and the same exact bits."""
    task = Task((784, 12, 10), 16, 256)
    entries = suite.run_task(["gemm-cupy", "xnn-numpy", "xnn-cupy"], task, 1, 1)
    assert all(e["valid"] for e in entries), [e["reason"] for e in entries]
    gemm, cpu, gpu = entries
    assert gpu["plan"]["kernels"] == "cuda"
    assert 0 < gpu["plan"]["calls_per_step"] <= 15
    assert cpu["plan"]["backend"] == "numpy"
    assert 2 * 784 * 256 // 2 < gpu["peak_bytes"] != gpu["host_peak_bytes"]
    assert cpu["peak_bytes"] == cpu["host_peak_bytes"]
    assert min(e["first_step_seconds"] for e in entries) > 0
    text = report.table(entries, "title")
    assert f"xnn-cupy runs at {gemm['median'] / gpu['median']:.0%} of the card's own rate" in text
    assert "kernels cuda" in text
    exact = suite.exact_digests(["numpy", "cupy"], task, 1)
    assert [e["valid"] for e in exact] == [True, True], exact
    assert "all bits agree" in report.exact_lines(exact)


def test_a_backend_without_exact_digests_is_named():
    (gone,) = suite.exact_digests(["nothing"], TASK, 1)
    assert not gone["valid"]
    assert "xnn-nothing:exact: no digest: no contestant is called" in report.exact_lines([gone])


def test_a_contestant_is_compared_with_others_on_its_device():
    gpu = {"plan": {"device": "a card", "kernels": "cuda", "calls_per_step": 13, "steps_at_once": 100}}
    entries = judged(
        entry("gemm", [0.0] * 4, 0.0, (50.0,)),
        entry("xnn-fast", REFERENCE, 0.5, (60.0,)),
        entry("gemm-cupy", [0.0] * 4, 0.0, (8.0,)),
        entry("xnn-cupy", REFERENCE, 0.5, (10.0,)) | {"weight_difference": 0.0} | gpu,
        entry("xnn-cupy:exact", REFERENCE, 0.5, (25.0,)),
        entry("torch", REFERENCE, 0.5, (120.0,)),
        entry("torch-gpu-graph", REFERENCE, 0.5, (20.0,)),
    )
    text = report.table(entries, "a title")
    lines = {line.split()[0]: line.split() for line in text.splitlines()[2:9]}
    assert lines["xnn-cupy"][7:9] == ["1.25", "80%"]
    assert lines["xnn-cupy:exact"][7:9] == ["3.12", "32%"]
    assert lines["torch-gpu-graph"][7:9] == ["2.50", "40%"]
    assert lines["xnn-fast"][7:9] == ["1.20", "83%"]
    assert "xnn-fast / best other library (torch): 0.50" in text
    assert "xnn-cupy / best other library (torch-gpu-graph): 0.50" in text
    assert "xnn-cupy runs at 80% of the card's own rate for its products" in text
    assert "xnn-cupy: a card, kernels cuda, 13 calls a step, 100 steps at once" in text
    assert "xnn-cupy:exact / xnn-cupy: 2.50" in text
    assert "emulated" not in text


def compile_for(seconds, compiles=True):
    """Watch a block of so many seconds, which is in CuPy's compiler or not."""
    code = compile("def run(sleep, seconds): sleep(seconds)", f"/x/{cupy_backend._COMPILER}", "exec")
    names = {}
    exec(code, names)
    run = names["run"] if compiles else lambda sleep, seconds: sleep(seconds)
    done = threading.Event()
    watch = threading.Thread(target=cupy_backend._tell_of_compiling, args=(threading.get_ident(), done))
    watch.start()
    run(time.sleep, seconds)
    done.set()
    watch.join()


@pytest.fixture
def soon(monkeypatch):
    """A line of compiling comes soon, and was not shown yet."""
    monkeypatch.setattr(cupy_backend, "_LONG", 0.05)
    monkeypatch.setattr(cupy_backend, "_told", threading.Event())


@pytest.mark.parametrize(("seconds", "compiles"), [(0.3, True), (0.0, True), (0.3, False)])
def test_compiling_that_takes_long_is_said(soon, capsys, seconds, compiles):
    """The line comes while the thread is in CuPy's compiler, and only if that lasts."""
    compile_for(seconds, compiles)
    assert ("kernels are compiled for this GPU" in capsys.readouterr().err) == bool(seconds and compiles)


@pytest.mark.parametrize(
    ("variable", "kept"), [("", "CuPy keeps them"), ("0", "CuPy keeps them"), ("1", "only this run")]
)
def test_compiling_is_said_once(soon, monkeypatch, capsys, variable, kept):
    """With what becomes of the kernels."""
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", variable)
    for _ in range(2):
        compile_for(0.2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"xnn: kernels are compiled for this GPU; {kept}")


@needs_cupy
@pytest.mark.parametrize(
    "part",
    [chunks, parity, pytest.param(persistent, marks=pytest.mark.slow)],
    ids=lambda part: part.__name__.rpartition(".")[2],
)
def test_parts_of_the_measurements_run_on_cupy(part, capsys):
    """Each compares losses of two ways to run the same steps, and returns 0 if they agree."""
    sizes = {
        chunks: ["--rows", "320", "--repeat", "1", "--chunks", "1,8"],
        parity: ["--steps", "20"],
        persistent: ["--rows", "320", "--repeat", "1", "--batches", "32"],
    }
    assert part.main(sizes[part]) == 0, capsys.readouterr().out


@needs_cupy
def test_training_says_what_it_took_of_the_device(tmp_path):
    """A run of the command in a process of its own, whose memory is no other test's."""
    attached = ["-m", "cuda_emulator"] if "cuda_emulator.attach" in sys.modules else []
    words = ["-m", "xnn", "train", "--backend", "cupy", "--dataset", "synthetic", "--hidden", "8"]
    more = ["--epochs", "1", "--batch-size", "500", "--json"]
    done = subprocess.run(
        [sys.executable, *attached, *words, *more], capture_output=True, text=True, check=True
    )
    assert '"peak_device_mb": ' in done.stdout
    assert '"first_step_seconds": ' in done.stdout


@pytest.mark.parametrize(("bits", "code"), [("aa", 0), ("ab", 1)])
def test_bench_of_both_backends_compares_their_exact_bits(monkeypatch, bits, code):
    def digests(backends, task, threads, say=None):
        about = {"valid": True, "reason": "", "losses_sha256": "c" * 64}
        pairs = zip(backends, bits, strict=True)
        return [
            {"contestant": f"xnn-{name}:exact", "weights_sha256": bit * 64} | about for name, bit in pairs
        ]

    measured = invented(lambda name, task: 1.0)

    def run_task(*given, **options):
        return [found | {"weight_difference": 0.0} for found in measured(*given, **options)]

    monkeypatch.setattr(suite, "run_task", run_task)
    monkeypatch.setattr(suite, "exact_digests", digests)
    monkeypatch.setattr("xnn.cli.bench.available_backends", lambda: dict.fromkeys(("numpy", "cupy"), ""))
    result = CliRunner().invoke(main, ["bench", "--batch-sizes", "32"])
    assert result.exit_code == code, result.output
    assert ("all bits agree" if code == 0 else "THEIR BITS DIFFER") in result.stdout
    assert f"xnn-cupy:exact: weights {bits[1] * 16}" in result.stdout


@pytest.mark.parametrize(
    ("backends", "title"),
    [(("cupy",), "batch 32, on the GPU, "), (("numpy",), "3 threads, "), (("numpy", "cupy"), "3 threads, ")],
)
def test_the_title_names_threads_where_the_cpu_is_timed(monkeypatch, backends, title):
    measured = invented(lambda name, task: 1.0)

    def run_task(*given, **options):
        return [found | {"weight_difference": 0.0} for found in measured(*given, **options)]

    monkeypatch.setattr(suite, "run_task", run_task)
    monkeypatch.setattr(suite, "exact_digests", lambda *given: [])
    monkeypatch.setattr("xnn.cli.bench.available_backends", lambda: dict.fromkeys(("numpy", "cupy"), ""))
    monkeypatch.setattr(bench, "check_device", lambda running: None)
    chosen = [word for name in backends for word in ("--backend", name)]
    result = CliRunner().invoke(main, ["bench", "--batch-sizes", "32", "--threads", "3", *chosen])
    assert result.exit_code == 0, result.output
    assert title in result.stdout
    assert ("threads" in result.stdout.partition("batch 32")[2]) == ("numpy" in backends)


@pytest.mark.parametrize(
    ("asked", "backends", "found"),
    [
        ("torch", ["numpy"], ["torch"]),
        ("torch,jax", ["cupy"], [*GPU_PEERS]),
        ("jax,sklearn", ["numpy", "cupy"], ["jax", "jax-gpu", "jax-gpu-scan", "sklearn"]),
        ("torch-gpu", ["numpy"], ["torch-gpu"]),
        ("torch,torch-gpu", ["cupy"], ["torch-gpu", "torch-gpu-graph", "torch-gpu-compile"]),
        ("all", ["numpy"], [*PEERS]),
        ("all", ["cupy"], [*GPU_PEERS]),
        ("all", ["numpy", "cupy"], [*PEERS, *GPU_PEERS]),
    ],
)
def test_which_peers_are_timed(asked, backends, found):
    assert bench._others(asked.split(","), backends) == found


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    "name", ["torch-gpu", "torch-gpu-graph", "torch-gpu-compile", "jax-gpu", "jax-gpu-scan"]
)
def test_a_library_that_sees_no_gpu_says_so(name):
    """In a process of its own, as the bench runs it; or that it is not installed."""
    (entry,) = suite.run_task([name], Task((784, 4, 10), 16, 64), 1, 1)
    if entry["valid"]:
        pytest.skip("there is a GPU")
    assert "sees no GPU" in entry["reason"] or "is not installed" in entry["reason"]
    assert f"no figure: {entry['reason']}" in report.table([entry], "title")
