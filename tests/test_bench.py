"""`xnn bench`: the gates, the table, and one small run of the command."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from xnn.benchmarks import suite
from xnn.benchmarks.contestants import Task, make, network_flops
from xnn.benchmarks.peers import PEERS
from xnn.cli import main
from xnn.errors import MissingExtraError, OptionError

TASK = Task((784, 16, 10), 32, 512)


def test_flops_of_a_step():
    """Three products a layer, less the data's gradient, two operations a multiplication and addition."""
    assert network_flops((4, 3, 2), 5) == 2 * 5 * (2 * 12 + 3 * 6)


@pytest.mark.parametrize("name", ["xnn-ops", "xnn-numpy", "xnn-fast", "numpy", "torch", "sklearn"])
def test_contestants_compute_the_same_run(name):
    """Two epochs from the same weights in the same order, against the definition in float64."""
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
    assert set(PEERS) >= {"torch", "jax", "jax-scan", "sklearn", "gemm"}


def entry(name, losses, last, times=(100.0, 110.0, 120.0)):
    more = {"build_seconds": 0.1, "first_epoch_seconds": 0.2, "peak_bytes": 2**20, "reason": ""}
    return {"contestant": name, "us_per_step": list(times), "losses": losses, "last_loss": last, **more}


def test_no_figure_without_learning_or_agreement():
    reference = [2.3, 2.0, 1.5, 1.0]
    entries = [
        entry("gemm", [0.0] * 4, 0.0),
        entry("xnn-numpy", reference, 0.5),
        entry("xnn-fast", [2.3, 2.0, 1.5, 1.0001], 0.5),
        entry("torch", [2.3, 2.0, 1.5, 1.1], 0.5),
        entry("jax", reference, 1.9),
    ]
    suite._judge(entries, [None] * 5, 10**6)
    assert [e["valid"] for e in entries] == [True, True, True, False, False]
    assert "differ by 1.0e-01 from xnn-numpy's" in entries[3]["reason"]
    assert "did not go down" in entries[4]["reason"]
    assert entries[1]["median"] == 110.0
    assert entries[1]["gflops"] == pytest.approx(10**6 / 110.0 / 1e3)
    text = suite.table(entries, "a title")
    assert "no figure: its losses differ" in text
    assert "1.00" in text


def test_a_contestant_that_breaks_leaves_the_others_their_figures():
    (gone,) = suite.run_task(["nobody"], TASK, 1, repeat=1)
    assert not gone["valid"]
    assert "no contestant is called 'nobody'" in gone["reason"]


def test_the_command(tmp_path):
    """One network, one batch size, one turn: a table, and the same in JSON."""
    path = tmp_path / "bench.json"
    result = CliRunner().invoke(
        main,
        [
            "bench",
            "--backend",
            "numpy",
            "--batch-sizes",
            "512",
            "--repeat",
            "1",
            "--threads",
            "1",
            "--json",
            path,
        ],
    )
    assert result.exit_code == 0, result.output
    assert "784-100-200-10, batch 512, 1 threads" in result.output
    written = json.loads(path.read_text())
    (only,) = written["results"]
    assert {e["contestant"] for e in only["entries"]} >= {"gemm", "xnn-numpy"}
    assert all(e["valid"] for e in only["entries"]), result.output
    assert written["environment"]["packages"]["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "huge"], "choose article"),
        (["--peers", "keras"], "choose torch"),
        (["--backend", "jax"], "numpy and cupy"),
        (["--batch-sizes", "x"], "positive integers"),
    ],
)
def test_wrong_options(options, message):
    result = CliRunner().invoke(main, ["bench", *options])
    assert result.exit_code in (1, 2)
    assert message in result.output
