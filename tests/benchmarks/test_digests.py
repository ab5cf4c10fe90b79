"""The digest matrix: its engines, workers, small networks, table and result."""

from __future__ import annotations

import json
import sys
import threading

import numpy as np
import pytest

import xnn
from xnn import initializers, layers, losses, metrics, ops, optimizers, schedules
from xnn.backends import numerics, registry
from xnn.backends.exact import namespace
from xnn.backends.exact import ops as roles
from xnn.backends.numpy_backend import NumpyBackend
from xnn.benchmarks import digests
from xnn.benchmarks.exactness import engines, networks
from xnn.benchmarks.exactness.digest_run import Meeting, Member, Server, train_digits, train_small
from xnn.benchmarks.exactness.networks import SMALL
from xnn.data import synthetic_digits
from xnn.errors import BackendUnavailableError, OptionError
from xnn.layers.activations import elementwise

RNG = np.random.default_rng(6)
HOSTILE = {"shuffled": engines.Shuffled, "outer": engines.Outer, "int64": engines.Int64}
IMAGES, LABELS = synthetic_digits(160)
MARKS = (2, 5)
#: The small networks with the most reductions over the batch.
WITH_BATCH_SUMS = ("huber, nadam", "divergence of words, rmsprop", "softmax of images, averaged sgd")


@pytest.fixture
def registered(monkeypatch):
    """Restores, after the test, what `engines.install` changes."""
    for name in ("_REGISTRY", "_NAME_OF_MODULE", "_instances", "_owners"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


@pytest.fixture(scope="module")
def small():
    """The digests of the small networks, computed by the ops on NumPy."""
    return train_small("exact")


@pytest.fixture(scope="module")
def digits():
    return train_digits(IMAGES, LABELS, MARKS, "exact")["marks"]


# Engines.


@pytest.mark.parametrize("name", HOSTILE)
def test_an_engine_multiplies_and_sums(name):
    xp = HOSTILE[name]().xp
    a, b = RNG.integers(-9, 9, (5, 70)).astype(float), RNG.integers(-9, 9, (70, 4)).astype(float)
    np.testing.assert_array_equal(xp.matmul(a, b), a @ b)
    np.testing.assert_array_equal(xp.matmul(a[0], b), a[0] @ b)
    np.testing.assert_array_equal(xp.matmul(a, b[:, 0]), a @ b[:, 0])
    assert xp.matmul(a[0], b[:, 0]) == a[0] @ b[:, 0]
    np.testing.assert_array_equal(xp.matmul(np.stack([a, a]), b), np.stack([a @ b, a @ b]))
    assert xp.matmul(a[:0], b).shape == (0, 4)
    assert xp.matmul(np.float32(a), np.float32(b)).dtype == np.float32
    x = RNG.integers(-9, 9, (3, 4, 5)).astype(float)
    for axis in (None, 0, 2, -1, (0, 2)):
        for keepdims in (False, True):
            expected = np.sum(x, axis=axis, keepdims=keepdims)
            np.testing.assert_array_equal(xp.sum(x, axis=axis, keepdims=keepdims), expected)
    assert xp.sum(x[:0], axis=0).shape == (4, 5)
    assert xp.sum(x > 0, dtype=np.int64) == np.sum(x > 0)
    with pytest.raises(ValueError, match="matmul"):
        xp.matmul(a, a)


@pytest.mark.parametrize("name", ["shuffled", "outer"])
def test_an_engine_rounds_in_other_ways(name):
    xp = HOSTILE[name]().xp
    a, b = RNG.normal(size=(8, 300)), RNG.normal(size=(300, 8))
    assert (xp.matmul(a, b) != a @ b).any()
    np.testing.assert_allclose(xp.matmul(a, b), a @ b, rtol=1e-10, atol=1e-10)
    assert (xp.sum(a, axis=1) != np.sum(a, axis=1)).any()


def test_a_random_order_is_a_new_one_each_time():
    xp = engines.Shuffled().xp
    a, b = RNG.normal(size=(8, 300)), RNG.normal(size=(300, 8))
    assert len({xp.matmul(a, b).tobytes() for _ in range(5)}) > 1


def test_integers_refuse_what_could_be_rounded():
    xp = engines.Int64().xp
    with pytest.raises(AssertionError, match="limit"):
        xp.matmul(RNG.normal(size=(2, 30)), RNG.normal(size=(30, 2)))
    full = np.full((1, 4), 2.0**51)
    np.testing.assert_array_equal(xp.sum(full - 1.0, axis=1), [2.0**53 - 4.0])
    with pytest.raises(AssertionError, match="sum of integers"):
        xp.sum(full + 1.0, axis=1)
    with pytest.raises(AssertionError, match="not sliced"):
        xp.sum(np.array([1.0, 2.0**-80]), axis=0)
    assert np.isnan(xp.matmul(np.array([[np.inf, 1.0]]), np.ones((2, 1)))).all()
    assert np.isnan(xp.sum(np.array([np.nan, 1.0])))


def test_an_engine_takes_numpys_place(registered):
    engine = engines.install("shuffled")
    assert registry.backend_of(np.ones(1)) is engine is registry.current_backend()
    assert engine.kernels("numpy").name == "ops"
    assert "x" in engines.ran(engine)
    assert engines.install("array-api-strict").name == "array-api-strict"
    with pytest.raises(OptionError, match=r"choose numpy, .*torch"):
        engines.install("nonsense")


def test_torch_says_how_to_be_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendUnavailableError, match="pip install torch"):
        engines.install("torch")


def test_torch_is_a_backend(registered, small):
    pytest.importorskip("torch")
    lib = engines.install("torch")
    lib.probe()
    x = lib.to_device(RNG.normal(size=(3, 4)))
    assert registry.backend_of(x) is lib
    assert lib.to_host(lib.bits(x, "int64")).tobytes() == lib.to_host(x).tobytes()
    np.testing.assert_array_equal(lib.to_host(49.0 / x), 49.0 / lib.to_host(x))
    np.testing.assert_array_equal(lib.to_host(lib.xp.sqrt(x * x)), np.sqrt(lib.to_host(x) ** 2))
    assert train_small("exact") == small


@pytest.mark.parametrize(("machine", "system"), [("aarch64", "Linux"), ("AMD64", "Windows")])
def test_flushing_is_refused_where_nobody_knows_how(monkeypatch, machine, system):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("platform.system", lambda: system)
    with pytest.raises(BackendUnavailableError, match="Linux on x86-64"):
        engines.Flushed()


def test_a_thread_that_flushes(monkeypatch):
    """The setting belongs to the thread and ends with it."""
    assert not engines.flushes()
    found = []

    def work():
        try:
            engines.Flushed()
            found.append(engines.flushes())
        except BackendUnavailableError as error:
            found.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True] or found[0].startswith("flushed: ")
    assert not engines.flushes()
    monkeypatch.setattr(engines, "flush_subnormals", lambda: None)
    with pytest.raises(BackendUnavailableError, match="although flush-to-zero"):
        engines.Flushed()


# Workers.


def test_a_meeting_reduces_in_any_order():
    meeting = Meeting(NumpyBackend(), 5, seed=1)
    found = [None] * 5

    def work(worker):
        member = Member(meeting, worker)
        found[worker] = (
            member.count(worker),
            member.maximum(np.array([worker, -worker])).tolist(),
            member.total(np.array([1.0, worker])).tolist(),
        )

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(10, [4, 0], [5.0, 10.0])] * 5
    meeting = Meeting(NumpyBackend(), 2, seed=0)
    meeting.brought = [("total", np.ones(2)), ("total", np.ones(3))]
    with pytest.raises(AssertionError, match="do not reduce the same"):
        meeting._reduce()


@pytest.mark.sampled(8)
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 3, 12])
def test_workers_compute_what_one_computes(workers, small, digits):
    """Of 12 workers one has no sample of the last batch, which has 11."""
    names = WITH_BATCH_SUMS if workers > 3 else tuple(SMALL)
    found = train_small("exact", names, workers=workers, seed=workers)
    assert found == {name: small[name] for name in names}
    marks = MARKS[: 1 if workers > 3 else 2]
    found = train_digits(IMAGES, LABELS, marks, "exact", workers=workers, seed=workers)["marks"]
    assert found == {str(mark): digits[str(mark)] for mark in marks}


def test_in_fast_numerics_they_do_not():
    """In fast numerics the digests depend on the number of workers, also of averaged weights and buffers."""
    for name in ("mse, adam", "softmax of images, averaged sgd"):
        found = [train_small("fast", [name], workers=workers)[name][0] for workers in (0, 2, 3)]
        assert len(set(found)) == 3


def test_workers_whose_sums_have_no_order(registered, small):
    """In fast numerics each worker's sums differ, so its gradient norm and its weights do. That is allowed."""
    name = "divergence of words, rmsprop"  # it clips by norm
    engines.install("shuffled")
    assert train_small("exact", [name], workers=2)[name] == small[name]
    assert train_small("fast", [name], workers=2)[name] != train_small("fast", [name], workers=2)[name]


def test_workers_that_keep_their_exponents_to_themselves_are_seen(monkeypatch, digits):
    """Workers that do not share their exponents cut to other scales, and the digests differ."""
    monkeypatch.setattr(Member, "maximum", lambda self, x: x)
    found = train_digits(IMAGES, LABELS, MARKS, "exact", workers=3)["marks"]
    assert found["5"][0] != digits["5"][0]


def test_a_worker_that_fails_stops_all(monkeypatch):
    def failing(self, rows):
        if self.worker == 1:
            raise OverflowError("too many rows")
        return self.meeting.meet(self.worker, "count", rows)

    monkeypatch.setattr(Member, "count", failing)
    with pytest.raises(OverflowError, match="too many rows"):
        train_small("exact", ["mse, adam"], workers=3)


# What the small networks are made of.


def reached(names):
    """All objects of xnn's classes in these networks, with their losses, optimizers and metrics."""
    found, queue = {}, [(*SMALL[name].build(), SMALL[name].metrics) for name in names]
    for x in queue:  # the loop appends to it
        if isinstance(x, (tuple, list)):
            queue += x
        elif type(x).__module__.startswith("xnn.") and id(x) not in found:
            found[id(x)] = x
            queue += vars(x).values()
    return list(found.values())


#: Public classes that no network needs to contain.
NO_PART = {"Initializer", "LossOverBatches", "State", "Totals", "LBFGS"}


def missing(names):
    """The public classes of which these networks contain no object."""
    objects = reached(names)
    return {
        name
        for module in (layers, losses, optimizers, initializers, schedules, metrics)
        for name in module.__all__
        if isinstance(getattr(module, name), type)
        and name not in NO_PART
        and getattr(module, name) is not losses.Lambda  # its mean is that of one worker's share
        and not any(isinstance(x, getattr(module, name)) for x in objects)
    }


def test_the_small_networks_have_every_class():
    assert missing(SMALL) == set(), "add these classes to a network of benchmarks/exactness/networks.py"
    others = [name for name in SMALL if name != "divergence of words, rmsprop"]
    assert missing(others) == {
        "Add",
        "Embedding",
        "Identity",
        "KLDivergence",
        "LogSoftmax",
        "RMSProp",
        "Step",
    }


def test_the_small_networks_run_every_op(monkeypatch):
    ran = set()

    def watch(cls, name):
        inner = cls.forward

        def forward(self, *arguments, **options):
            ran.add(name)
            return inner(self, *arguments, **options)

        monkeypatch.setattr(cls, "forward", forward)

    every = {name for name in ops.__all__ if isinstance(getattr(ops, name), ops.Op)}
    for name in every:
        watch(type(getattr(ops, name)), name)
    train_small("fast")
    # column_mse is used by MiniFlow's MSE node only; a penalty is no sum over the batch, which workers share.
    assert every - ran == {"column_mse", "l2_penalty"}, (
        "use these ops in a network of benchmarks/exactness/networks.py"
    )


def test_newer_activations_have_a_network_of_their_own(monkeypatch):
    """As benchmarks/exactness/networks.py makes one as soon as there are any: here for all but ReLU."""
    monkeypatch.setattr(networks, "_ABOVE", {"relu"})
    model, _, _ = networks._newer()
    found = {type(layer) for layer in model} - {layers.Rescale, layers.Dense}
    assert found == set(elementwise().values()) - {layers.ReLU}
    above = {type(layer) for name in SMALL for layer in SMALL[name].build()[0].all_layers()}
    assert {elementwise()[name] for name in ("relu", "leaky_relu", "silu", "tanh")} <= above


def test_the_small_networks_learn():
    """Every weight changes and the losses go down, so each layer affects the digests."""
    for name, network in SMALL.items():
        model, loss, optimizer = network.build()
        x, y, *weights = network.data()
        before = [p.value.copy() for p in model.parameters()]
        trainer = xnn.Trainer(model, loss, optimizer, network.metrics, kernels="ops")
        history = trainer.fit((x, y), epochs=3, sample_weight=weights[0] if weights else None, progress=False)
        assert history.epochs[2]["loss"] < history.epochs[0]["loss"], name
        changed = [(p.value != value).any() for p, value in zip(model.parameters(), before, strict=True)]
        assert all(changed), name


# Digests.


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_other_sums_give_the_same_digests(name, registered, small, digits):
    fast = train_small("fast")
    engines.install(name)
    assert train_small("exact") == small
    assert train_digits(IMAGES, LABELS, MARKS, "exact")["marks"] == digits
    other = train_small("fast")
    same = [network for network in SMALL if other[network] == fast[network]]
    assert not same


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kernels", ["numpy", "compiled"])
def test_kernels_give_the_same_digests(kernels, small, digits):
    assert train_small("exact", kernels=kernels) == small
    assert train_digits(IMAGES, LABELS, MARKS, "exact", kernels=kernels)["marks"] == digits


@pytest.mark.parametrize(
    ("where", "name", "what"), [(namespace, "sum_bits", "a sum"), (roles, "budget", "a product")]
)
def test_integers_see_slices_of_too_many_bits(registered, monkeypatch, where, name, what):
    """Digests would not show it: rounding a float64 sum hardly ever changes a float32 result."""
    engine = engines.install("int64")
    assert engine.exact  # runs the self-check before the change
    fewer = getattr(where, name)
    monkeypatch.setattr(where, name, lambda terms: fewer(terms) + 8)
    with pytest.raises(AssertionError, match=f"{what} of integers can reach"):
        train_digits(IMAGES, LABELS, MARKS, "exact")


def test_a_mark_that_would_take_too_long_is_left_out():
    assert list(train_digits(IMAGES, LABELS, (1, 2, 5), "exact", patience=0.0)["marks"]) == ["1"]
    assert list(train_digits(IMAGES, LABELS, (1, 2, 5), "exact")["marks"]) == ["1", "2", "5"]


@pytest.mark.slow
def test_a_row_s_process(tmp_path, registered, small):
    data = str(tmp_path / "data.npz")
    np.savez(data, x=IMAGES, y=LABELS)
    server = Server(data, "outer", "ops", 0, 0)
    assert server.about()["absent"] == ""
    assert set(server.run("exact", [2], 1.0)) == {"marks", "ms", "small"}
    with numerics("exact"):
        assert server.run("fast", [2], 1.0)["small"] != small  # the argument counts, not the context


# The table.


def entry(name, exact="e", fast="f", marks=(5, 20), **other):
    def result(digest):
        return {
            "marks": {str(m): [f"{digest}w{m}", f"{digest}l{m}"] for m in marks},
            "small": {"net": [digest, digest, digest]},
            "ms": 1.0,
        }

    plain = {"row": name, "ran": "openblas Zen x1", "absent": "", "error": ""}
    return {**plain, "exact": result(exact), "fast": result(fast), **other}


def test_the_verdict():
    first = entry("one")
    lines, well = digests.verdict([first, entry("two", fast="g"), entry("gone", absent="not installed")])
    assert well
    assert lines == [
        "exact: the same bits in 2 rows, with 1 kinds of kernels and threads",
        "fast: 2 different results in 2 rows",
    ]
    lines, well = digests.verdict([first, entry("two")])
    assert not well
    assert "mean nothing" in lines[-1]
    lines, well = digests.verdict([first, entry("two", exact="d", fast="g", marks=(5,))])
    assert not well
    assert lines[0] == "two differs from one: weights after 5 steps"
    lines, well = digests.verdict([first, entry("two", fast="g"), entry("three", error="it broke")])
    assert not well
    assert lines[0] == "three failed: it broke"
    assert not digests.verdict([first, entry("gone", absent="not installed")])[1]


def test_a_difference_is_named():
    first, other = entry("one"), entry("two")
    assert digests.difference(other, first) == ""
    other["exact"]["marks"]["20"][1] = "another"
    assert digests.difference(other, first) == "losses after 20 steps"
    other = entry("two")
    other["exact"]["small"]["net"][1] = "another"
    assert digests.difference(other, first) == "predictions or metrics of the small network 'net'"


def test_the_table_shows_what_all_rows_reached():
    shown = digests.table(
        [
            entry("one", marks=(5, 20, 100)),
            entry("slow", exact="d", marks=(5, 20)),
            entry("gone", absent="no torch"),
            entry("bad", error="it broke"),
        ]
    ).splitlines()
    assert "exact, after 20 steps" in shown[0]
    assert "ew20" in shown[2]
    assert " 100 " in shown[2]
    assert " no " in shown[3]
    assert shown[4].split(None, 1)[1] == "not here: no torch"
    assert "failed, see below" in shown[5]
    assert digests.table([entry("gone", absent="no torch")]) == ""


def test_every_row_has_a_name_of_its_own():
    names = [row.name for row in digests.rows()]
    assert len(set(names)) == len(names)
    wanted = (
        "SkylakeX",
        "Haswell",
        "Zen",
        "Prescott",
        "Sandybridge",
        "torch",
        "32 workers",
        "subnormals flushed",
    )
    assert set(wanted) <= set(names)
    assert any("NPY_DISABLE_CPU_FEATURES" in row.environment for row in digests.rows()) or not digests._simd()


def test_rows_are_chosen_by_name():
    names = [row.name for row in digests._choose("worker, prescott", quick=True)]
    assert names == ["1 thread", "Prescott", "3 workers", "32 workers"]
    with pytest.raises(OptionError, match="no row is called 'nonsense'; choose among 1 thread; 2 threads"):
        digests._choose("nonsense", quick=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--steps", "0"], "--steps"), (["--only", "nonsense"], "nonsense"), (["--json", "a.txt"], "json")],
)
def test_wrong_options_are_refused(arguments, said, capsys):
    assert digests.main(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_small_matrix(tmp_path, capsys, small):
    """Processes of the first row, another kernel of BLAS, other sums, and PyTorch if it is installed.

    The other sums make fast results differ where OPENBLAS_CORETYPE is Prescott for all rows.
    """
    path = tmp_path / "digests.json"
    code = digests.main(["--only", "Prescott on 1,rank-1,torch with", "--steps", "5", "--json", str(path)])
    printed, said = capsys.readouterr()
    assert code == 0, printed
    assert said.splitlines()[:2] == ["  1 thread", "  Prescott on 1 thread"]
    written = json.loads(path.read_text())
    first, *others = written["rows"]
    assert first["row"] == "1 thread"
    assert [row["row"] for row in others] == [
        "Prescott on 1 thread",
        "sums by rank-1 updates",
        "torch with MKL compatible",
    ]
    assert "the same bits" in printed
    assert all(row["exact"]["small"] == small for row in written["rows"] if not row["absent"])


def test_a_processor_that_lacks_instructions_is_no_fault(tmp_path, monkeypatch):
    data = str(tmp_path / "data.npz")
    np.savez(data, x=IMAGES, y=LABELS)

    class Dying:
        error = ""

        def __init__(self, *arguments):
            pass

        def ask(self, do="", **command):
            if do == "run":
                self.error = f"the process of SkylakeX ended unexpectedly, {digests._ILLEGAL} without a word"
                return {}
            return {"ran": "openblas SkylakeX x2", "absent": ""}

        def close(self):
            pass

    monkeypatch.setattr(digests, "Process", Dying)
    row = digests.Row("SkylakeX", environment={"OPENBLAS_CORETYPE": "SkylakeX"})
    found = digests.run_row(row, data, [2])
    assert "lacks its instructions" in found["absent"]
    assert not found["error"]
    assert digests.run_row(digests.Row("1 thread"), data, [2])["error"]
