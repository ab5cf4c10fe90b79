"""`xnn bench`: which times count, the tables and comparisons, and small runs of the command and the studies."""

import json
import os
import re
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from click.testing import CliRunner

from xnn.backends import available_backends
from xnn.benchmarks import report, suite, sweep
from xnn.benchmarks.contestants import Task, make, network_flops
from xnn.benchmarks.gpu_peers import GPU_PEERS, TorchGpuGraph
from xnn.benchmarks.peers import PEERS
from xnn.benchmarks.studies import by_hand, scaling, step_profile
from xnn.cli import main
from xnn.errors import MissingExtraError, OptionError
from xnn.runs.process import Process

TASK = Task((784, 16, 10), 32, 512)


def test_flops_of_a_step():
    """Three products for each layer but the first, which needs no input gradient; a multiply-add counts as two."""
    assert network_flops((4, 3, 2), 5) == 2 * 5 * (2 * 12 + 3 * 6)


@pytest.mark.parametrize(
    "name",
    [
        *("xnn-ops", "xnn-numpy", "xnn-fast", "numpy", "torch", "sklearn", "jax", "jax-scan"),
        *(pytest.param(n, marks=pytest.mark.slow if "compile" in n else ()) for n in GPU_PEERS),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_contestants_compute_the_same_run(name, monkeypatch):
    """Two epochs of each contestant agree with a loop in float64 that starts from the same weights.

    The peers on a GPU run on the CPU here, and their graphs step by step.
    """
    if name in GPU_PEERS:
        monkeypatch.setattr(GPU_PEERS[name], "place", "cpu")
    monkeypatch.setattr(
        TorchGpuGraph, "_captured", lambda self, count: lambda: [self.step() for _ in range(count)]
    )
    try:
        contestant = make(name, TASK, 1)
    except MissingExtraError as error:
        pytest.skip(str(error))
    w, b = ([a.astype(float) for a in arrays] for arrays in TASK.weights())
    x, y = TASK.data()
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(512)
        expected = []
        for rows in order.reshape(-1, 32):
            a = x[rows] / 255
            h = np.maximum(a @ w[0] + b[0], 0)
            z = h @ w[1] + b[1]
            p = np.exp(z - z.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            expected.append(-np.log(p[np.arange(32), y[rows]]).mean())
            p[np.arange(32), y[rows]] -= 1
            g = p / 32
            back = (g @ w[1].T) * (h > 0)
            w[1] -= 0.1 * h.T @ g
            b[1] -= 0.1 * g.sum(axis=0)
            w[0] -= 0.1 * a.T @ back
            b[0] -= 0.1 * back.sum(axis=0)
        found = contestant.epoch(order)
        if name == "sklearn":
            expected = [np.mean(expected)] * len(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    for got, want in zip(contestant.parameters(), [w[0], b[0], w[1], b[1]], strict=True):
        assert np.max(np.abs(got - want)) <= 1e-4 * np.max(np.abs(want))


def test_names_nobody_has_and_packages_that_are_missing(monkeypatch):
    with pytest.raises(OptionError, match="torch-compile"):
        make("torhc", TASK, 1)
    monkeypatch.setitem(sys.modules, "thinc", None)
    monkeypatch.setitem(sys.modules, "thinc.api", None)
    with pytest.raises(MissingExtraError, match="pip install thinc"):
        make("thinc", TASK, 1)
    assert set(PEERS) >= {"torch", "jax", "jax-scan", "sklearn"}


def entry(name, losses, last, times=(100.0, 110.0, 120.0)):
    more = {"first_step_seconds": 0.2, "peak_bytes": 2**20, "reason": ""}
    return {"contestant": name, "us_per_step": list(times), "losses": losses, "last_loss": last, **more}


def judged(*entries):
    suite._judge(list(entries), [None] * len(entries), TASK)
    return list(entries)


REFERENCE = [2.3, 2.0, 1.5, 1.0]


def test_no_figure_without_learning_or_agreement():
    entries = judged(
        entry("gemm", [0.0] * 4, 0.0),
        entry("xnn-numpy", REFERENCE, 0.5),
        entry("xnn-fast", [2.3, 2.0, 1.5, 1.0001], 0.5),
        entry("torch", [2.3, 2.0, 1.5, 1.1], 0.5),
        entry("jax", REFERENCE, 1.9),
    )
    assert [e["valid"] for e in entries] == [True, True, True, False, False]
    assert "differ by 1.0e-01 from xnn-numpy's" in entries[3]["reason"]
    assert "did not go down" in entries[4]["reason"]
    assert entries[1]["median"] == 110.0
    assert entries[1]["quartiles"] == [105.0, 115.0]
    assert entries[1]["samples_per_second"] == pytest.approx(32 / 110e-6)
    assert entries[1]["gflops"] == pytest.approx(network_flops(TASK.widths, 32) / 110.0 / 1e3)
    text = report.table(entries, "a title")
    assert "no figure: its losses differ" in text
    assert "1.00      100%" in text
    assert "best other library" not in text  # neither of the two is valid


def test_exact_runs_are_compared_by_their_bits():
    """The table shows the cost of exact numerics and the digests, and whether all digests agree."""

    def exact(name, weights, times=(300.0,)):
        return entry(name, REFERENCE, 0.5, times) | {
            "weights_sha256": weights * 64,
            "losses_sha256": "c" * 64,
        }

    plain = entry("xnn-numpy", REFERENCE, 0.5, (100.0,))
    same = judged(plain, exact("xnn-numpy:exact", "a"), exact("xnn-fast:exact", "a"))
    text = report.table(same, "a title")
    assert "xnn-numpy:exact / xnn-numpy: 3.00" in text
    assert f"xnn-fast:exact: weights {'a' * 16}, losses {'c' * 16}" in text
    assert "all bits agree" in text
    assert report.bits_agree(same)
    other = judged(plain, exact("xnn-numpy:exact", "a"), exact("xnn-fast:exact", "b"))
    assert "THEIR BITS DIFFER" in report.table(other, "a title")
    assert not report.bits_agree(other)


@pytest.mark.slow
def test_exact_contestants_have_one_digest():
    """A real run of both tables of kernels in both numerics."""
    names = [n for n in suite.own_contestants(["numpy"], "both") if not n.startswith("gemm")]
    assert names[:2] == ["xnn-numpy", "xnn-numpy:exact"]
    entries = suite.run_task(names, Task((784, 12, 10), 16, 256), 1, 1)
    assert all(e["valid"] for e in entries), [e["reason"] for e in entries]
    assert ["weights_sha256" in e for e in entries] == [name.endswith(":exact") for name in names]
    assert report.bits_agree(entries)
    assert len({e["losses_sha256"] for e in entries if "losses_sha256" in e}) == 1


def test_bench_fails_where_exact_bits_differ(monkeypatch, capsys):
    def run(contestants, task, threads, repeat=9, say=None, numerics="fast"):
        found = judged(*(entry(name, REFERENCE, 0.5) for name in contestants))
        for n, e in enumerate(found):
            e |= {"weights_sha256": str(n) * 64, "losses_sha256": "c" * 64}
        return found

    monkeypatch.setattr(suite, "run_task", run)
    result = CliRunner().invoke(
        main, ["bench", "--numerics", "both", "--backend", "numpy", "--batch-sizes", "32"]
    )
    assert result.exit_code == 1
    assert "exact runs differ in their bits" in result.stderr


def test_bench_says_what_it_times_where_a_backend_is_chosen(monkeypatch):
    monkeypatch.setattr(suite, "run_task", invented(lambda name, task: 1.0))
    monkeypatch.setenv("XNN_BACKEND", "numpy")
    told = CliRunner().invoke(main, ["bench", "--batch-sizes", "32"])
    assert "XNN_BACKEND=numpy has no effect on xnn bench, which times numpy" in told.stderr
    asked = CliRunner().invoke(main, ["bench", "--batch-sizes", "32", "--backend", "numpy"])
    assert "XNN_BACKEND" not in asked.stderr


def test_ratios_between_contestants():
    entries = judged(
        entry("gemm", [0.0] * 4, 0.0, (50.0,)),
        entry("xnn-numpy", REFERENCE, 0.5, (80.0,)),
        entry("xnn-fast", REFERENCE, 0.5, (60.0,)),
        entry("torch", REFERENCE, 0.5, (120.0,)),
        entry("jax", REFERENCE, 0.5, (75.0,)),
        entry("xnn-cupy", [2.3, 2.0, 1.5, 1.0001], 0.5, (20.0, 30.0, 40.0)) | {"weight_difference": 2e-6},
    )
    text = report.table(entries, "a title")
    assert "xnn-fast / best other library (jax): 0.80" in text
    assert "xnn-cupy is 2.00 times as fast as xnn-fast" in text
    assert "its losses differ by 1e-04, its weights by 2e-06" in text
    assert text.count("unstable") == 1


@pytest.mark.parametrize(
    ("median", "said"), [(24.4, True), (49.0, True), (49.9, False), (50.0, False), (80.0, False)]
)
def test_a_step_faster_than_its_products_is_remarked(median, said):
    """The limit was disturbed then: a step has those products and more."""
    entries = judged(entry("gemm", [0.0] * 4, 0.0, (50.0,)), entry("xnn-numpy", REFERENCE, 0.5, (median,)))
    (line,) = (line for line in report.table(entries, "a title").splitlines() if "xnn-numpy" in line)
    assert ("faster than its products alone" in line) is said


def test_headings_of_the_table_stand_apart():
    """Two spaces at least are between two headings, and each number ends where its heading does."""
    entries = judged(entry("gemm", [0.0] * 4, 0.0, (50.0,)), entry("xnn-numpy", REFERENCE, 0.5, (80.0,)))
    _, heads, _, row = report.table(entries, "a title").splitlines()[:4]
    assert re.split(" {2,}", heads.strip()) == [
        "us/step", "quartiles", "samples/s", "GFLOP/s", "x GEMM", "of limit", "peak MB", "first s", "losses differ",
    ]  # fmt: skip
    for head in ("us/step", "quartiles", "samples/s", "GFLOP/s", "x GEMM", "of limit", "peak MB", "first s"):
        end = heads.index(head) + len(head)
        assert row[end - 1] != " "
        assert row[end : end + 1] == " "


def written(**medians):
    """What `xnn bench --json` writes, with these median times and quartiles 4 % apart."""
    entries = [
        {"contestant": name.replace("_", "-"), "valid": True, "median": float(us), "spread": 0.04}
        for name, us in medians.items()
    ]
    conditions = {"threads": 2, "dataset": "mnist", "numerics": "fast"}
    return {**conditions, "results": [{"network": "article", "batch": 32, "entries": entries}]}


def test_what_counts_as_slower():
    """Times are divided by those of the products alone if both files have them. 5 % and all noise are allowed."""
    old = written(gemm=100, xnn_fast=120, xnn_cupy=10)
    for new, slower in (
        (written(gemm=100, xnn_fast=140), 0),
        (written(gemm=100, xnn_fast=150), 1),
        (written(gemm=200, xnn_fast=280), 0),
        (written(gemm=200, xnn_fast=300), 1),
        (written(xnn_fast=130), 0),
        (written(xnn_fast=140), 1),
        (written(gemm=500, xnn_cupy=10.5), 0),
        (written(gemm=500, xnn_cupy=12), 1),
        (written(gemm=100, xnn_fast=60), 0),
    ):
        lines, found = report.compare(old, new)
        assert found == slower, lines
    assert "0.50 x the time before, relative to the products alone, faster" in lines[0]
    with pytest.raises(OptionError, match="nothing to compare"):
        report.compare(old, written(gemm=100, xnn_numpy=100))
    with pytest.raises(OptionError, match="threads was 2, and is 4 now"):
        report.check_comparable(old, {**old, "threads": 4})


@pytest.mark.parametrize(
    "content", ["", "{}", '{"results": [{"entries": [{"valid": true, "contestant": "gemm"}]}]}', "[1]", "{"]
)
def test_files_that_cannot_be_compared(tmp_path, content):
    (tmp_path / "old.json").write_text(content)
    for path, message in (("old.json", "not a file of xnn bench --json"), ("none.json", "No such file")):
        result = CliRunner().invoke(main, ["bench", "--compare", str(tmp_path / path)])
        assert result.exit_code == 2
        assert message in result.output


def test_a_contestant_that_breaks_leaves_the_others_their_figures():
    (gone,) = suite.run_task(["nobody"], TASK, 1, repeat=1)
    assert not gone["valid"]
    assert "no contestant is called 'nobody'" in gone["reason"]


@pytest.mark.slow
def test_a_number_of_threads_of_its_own():
    cores = os.cpu_count() or 1
    found = suite.run_task(["xnn-numpy@1", f"xnn-numpy@{cores}"], TASK, 7, repeat=1)
    assert [(e["reason"], e["threads"]) for e in found] == [("", 1), ("", cores)]


def test_a_process_that_dies_or_never_answers(monkeypatch):
    """The error names the exit code and the last line of output. A process without an answer is killed."""
    dead = Process("gone", "xnn.benchmarks.nothing", 1)
    assert dead.ask(do="run") == {}
    assert "process of gone ended unexpectedly, exit code 1: ModuleNotFoundError" in dead.error
    assert dead.ask(do="run") == {}
    dead.close()
    monkeypatch.setattr("xnn.runs.process._PATIENCE", 0.5)
    asleep = Process("asleep", "time import sleep; sleep(60); from time", 1)
    assert asleep.ask(do="run") == {}
    assert "asleep ended unexpectedly, exit code -9" in asleep.error
    asleep.close()


@pytest.mark.slow
def test_the_command(tmp_path):
    """One network, one batch size and one turn: a table, a JSON file, a plot, and a comparison with that file."""
    path, plot = tmp_path / "bench.json", tmp_path / "bench.svg"
    arguments = ["bench", "--backend", "numpy", "--batch-sizes", "512", "--repeat", "1", "--threads", "1"]
    more = ["--plot", plot] if find_spec("matplotlib") else []
    result = CliRunner().invoke(main, [*arguments, "--json", path, *more])
    assert result.exit_code == 0, result.output
    assert "784-100-200-10, batch 512, 1 threads" in result.stdout
    first, *lines = result.stderr.splitlines()
    assert re.fullmatch(
        "xnn: this takes about [0-9]0 seconds: contestants [23], turns of each 1, pairs .* 1", first
    )
    assert {"  gemm starts", "  xnn-numpy starts", "  turn 1 of 1"} <= set(lines)
    written = json.loads(path.read_text())
    (only,) = written["results"]
    assert {e["contestant"] for e in only["entries"]} >= {"gemm", "xnn-numpy"}
    assert all(e["valid"] for e in only["entries"]), result.output
    assert len(only["entries"][1]["losses"]) == 17  # of the first step and of an epoch of 8192 rows
    assert written["environment"]["packages"]["numpy"] == np.__version__
    if more:
        assert "first losses" in plot.read_text()
    for entry in only["entries"][1:]:
        entry["median"] /= 1e3
    path.write_text(json.dumps(written))
    result = CliRunner().invoke(main, [*arguments, "--compare", path])
    assert result.exit_code == 1, result.output
    assert "article, batch 512, xnn-numpy" in result.output
    assert "slower" in result.output


@pytest.mark.parametrize(
    "words", [("--preset", "targets"), ("--sweep",), ("--batch-sizes", "32,64", "--peers", "numpy")]
)
def test_how_long_it_will_take_is_said_first(monkeypatch, words):
    """More contestants, turns, networks and batch sizes take longer."""
    monkeypatch.setattr(suite, "run_task", lambda *args, **options: pytest.fail("timed before it was said"))
    monkeypatch.setattr("xnn.cli.bench._Timing._presets", lambda self: [])
    monkeypatch.setattr("xnn.cli.bench._Timing._sweep", lambda self: [])
    result = CliRunner().invoke(main, ["bench", "--backend", "numpy", *words])
    pairs = {"--preset": 5, "--sweep": 12, "--batch-sizes": 2}[words[0]]
    assert f"turns of each 9, pairs of network and batch size {pairs}" in result.stderr
    assert ("longer with libraries that compile" in result.stderr) == ("--peers" in words)
    seconds = [
        suite.expected_seconds(*given)
        for given in ((2, TASK, 9), (4, TASK, 9), (4, TASK, 18), (4, Task((784, 5000, 10), 512, 8192), 18))
    ]
    assert seconds == sorted(seconds)
    assert len(set(seconds)) == 4


def invented(times):
    """A run_task that measures nothing: each contestant takes times(name, task) microseconds."""

    def run(contestants, task, threads, repeat=9, say=None, numerics="fast"):
        return judged(*(entry(name, REFERENCE, 0.5, (times(name, task),)) for name in contestants))

    return run


def test_sweep_says_where_a_gpu_pays(monkeypatch):
    monkeypatch.setattr(
        sweep, "run_task", invented(lambda name, task: 500.0 if "cupy" in name else float(task.batch))
    )

    def swept(contestants, batches):
        return list(sweep.sweep(contestants, "synthetic", 1, 1, "fast", batches, (64,)))

    text = sweep.text(swept(["gemm", "xnn-numpy", "xnn-cupy"], (128, 512, 2048)))
    assert "Width 64: the GPU is faster at batch 512, 2048." in text
    assert "batch 128    batch 512   batch 2048" in text
    few = sweep.text(swept(["gemm", "xnn-numpy"], (128,)))
    assert "Only one backend ran" in few
    slow = sweep.text(swept(["xnn-numpy", "xnn-cupy"], (32,)))
    assert "is not faster" in slow


def test_scaling_tables(monkeypatch, capsys):
    """The exponent in the table is that of the invented costs."""
    monkeypatch.setattr(scaling, "run_task", invented(lambda name, task: float(task.batch)))
    assert scaling.main(["batch", "samples", "memory"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("(^1.00)" in line for line in lines) == 6 + 3
    assert sum("(^0.00)" in line for line in lines) == 2
    monkeypatch.setattr(
        scaling, "run_task", invented(lambda name, task: 100.0 if name.endswith("@1") else 50.0)
    )
    monkeypatch.setattr(scaling, "_threads", lambda: 2)
    assert scaling.main(["threads", "width", "depth"]) == 0
    assert capsys.readouterr().out.count("gain 2.00") == 10 * len(scaling._own())
    assert scaling.main(["depht"]) == 2
    assert "choose among samples" in capsys.readouterr().err


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
def test_profile_of_a_step(kernels, monkeypatch, capsys):
    """Every call of the program has a line, and each dense call the time of its products."""
    if kernels == "compiled":
        pytest.importorskip("numba")
    monkeypatch.setattr(step_profile, "_STEPS", 3)
    assert step_profile.main([kernels, "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"{kernels} kernels, batch 16, 1 threads: us, and of its products at least"
    assert sum("dense" in line and len(line[:20].split()) == 2 for line in lines) == 6
    assert [line.split("  ")[-1] for line in lines[-2:]] == [
        "the whole step",
        "the sum of all lines but the last",
    ]


def test_profile_of_a_network_of_images(monkeypatch, capsys):
    """Each convolution has the time that its products take at least."""
    monkeypatch.setattr(step_profile, "_STEPS_OF_IMAGES", 1)
    assert step_profile.main(["numpy", "4", "1", "lenet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("conv2d" in line and len(line[:20].split()) == 2 for line in lines) == 4
    assert step_profile.main(["numpy", "4", "1", "alexnet"]) == 2
    assert "choose lenet" in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_by_hand_in_two_checkouts(capsys, tmp_path):
    """A checkout beside itself has the same losses."""
    assert by_hand.main(["--against", str(by_hand._ROOT), "--turns", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(by_hand.CASES)
    assert all(line.endswith("same bits") for line in lines[2:])
    with pytest.raises(SystemExit):
        by_hand.main(["--against", str(tmp_path)])
    assert "give the root of a checkout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        (["--preset", "huge"], "choose article", 2),
        (["--peers", "keras"], "choose torch", 2),
        (["--backend", "jax"], "runs on numpy and cupy", 2),
        (["--batch-sizes", "x"], "positive integers", 2),
        (["--numerics", "half"], "choose fast", 2),
        (["--threads", "0"], "--threads", 2),
        (
            ["--to-accuracy", "0.98", "--backend", "cupy", "--sweep"],
            "cannot be combined with --to-accuracy",
            2,
        ),
        (["--sweep", "--preset", "large"], "--preset cannot be combined with --sweep", 2),
        (
            ["--preset", "targets", "--batch-sizes", "32"],
            "--batch-sizes cannot be combined with --preset targets",
            2,
        ),
        (["--peers", "gemm"], "there is no peer 'gemm'", 2),
        (["--json", "no/such/folder/f.json"], "no/such/folder", 2),
    ],
)
def test_wrong_options(options, message, code):
    result = CliRunner().invoke(main, ["bench", *options])
    assert result.exit_code == code, result.output
    assert message in result.output


def test_a_backend_that_was_asked_for_and_cannot_run():
    if not (reason := available_backends()["cupy"]):
        pytest.skip("there is a GPU")
    result = CliRunner().invoke(main, ["bench", "--backend", "cupy"])
    assert result.exit_code == 1
    assert reason in result.output


def test_escapes_in_messages_and_older_files_reach_no_terminal(monkeypatch, tmp_path):
    def failed(contestants, *args, **options):
        return judged(*(entry(name, REFERENCE, 0.5) | {"reason": "no\x1b[31m\x07"} for name in contestants))

    monkeypatch.setattr(suite, "run_task", failed)
    result = CliRunner().invoke(main, ["bench", "--backend", "numpy", "--batch-sizes", "32"])
    assert "no figure: no\\x1b[31m\\x07" in result.stdout
    assert "\x1b" not in result.output
