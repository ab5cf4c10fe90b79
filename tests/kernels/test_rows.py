"""Tables of rows that threads share: what is cut, who runs it, and that neither changes a bit."""

import gc
import itertools
import weakref

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers
from xnn.layers.files import weights_sha256

pytest.importorskip("numba")
from xnn.backends.kernels import compiled_loops, rows
from xnn.backends.kernels.jit import Loop
from xnn.backends.kernels.row_runner import BEFORE, FIRST, LAST, run
from xnn.backends.kernels.rows import Row, Stretch, grain_of
from xnn.backends.kernels.workers import share

LOOP = Loop(compiled_loops.activate, np.dtype("float32"))
OPTIMIZERS = {
    "sgd": lambda: optimizers.SGD(0.05),
    "momentum, clipped": lambda: optimizers.SGD(0.05, momentum=0.9, clip_value=0.5),
    "adamw": lambda: optimizers.AdamW(0.01),
    "rmsprop": lambda: optimizers.RMSProp(0.01, centered=True, momentum=0.5),
}


def model(dtype):
    """Every kind of loop that is cut; the widths are no multiples of anything."""
    a, b, c, d, e = (
        layers.Dense(*widths, dtype=dtype)
        for widths in ((784, 301), (301, 203), (203, 99), (99, 77), (77, 10))
    )
    return xnn.Sequential(
        layers.Rescale(1 / 255, dtype=dtype), a, layers.BatchNorm(301, dtype=dtype), layers.GELU(),
        layers.Dropout(0.3), b, layers.LayerNorm(203, dtype=dtype), layers.SiLU(),
        c, layers.ReLU(), d, layers.Tanh(), e, seed=1,
    )  # fmt: skip


def fit(optimizer="sgd", dtype="float32", batch=97):
    x, y = xnn.data.synthetic_digits(5 * batch + 11)
    made = model(dtype)
    trainer = xnn.Trainer(made, losses.SoftmaxCrossEntropy(), OPTIMIZERS[optimizer](), kernels="compiled")
    history = trainer.fit((x, y), epochs=2, batch_size=batch, seed=3, progress=False)
    return weights_sha256(made), history["loss"], made


@pytest.fixture
def threads(monkeypatch):
    """Set the number of threads of a team, more than there are cores too."""
    return lambda count: monkeypatch.setattr(rows, "own_threads", lambda: count)


@pytest.mark.parametrize("last", [0, 1, 15, 16, 17, 100, 512])
@pytest.mark.parametrize("grain", [0, 1, 8, 16, 600])
def test_parts_of_a_range_are_all_of_it(last, grain):
    for count in (1, 2, 3, 7, 64):
        parts = Row(LOOP, (), last, grain).cut(count)
        assert [begin for begin, _ in parts] == [0, *(end for _, end in parts[:-1])]
        assert parts[-1][1] == last
        assert len(parts) <= (count if grain else 1)
        assert all(begin % grain == 0 and end > begin for begin, end in parts if grain and last)
        sizes = [end - begin for begin, end in parts[:-1]]
        assert max(sizes, default=0) - min(sizes, default=0) <= max(grain, 1)


def test_little_work_is_not_cut(monkeypatch):
    assert len(Row(LOOP, (), 4095, grain_of(1)).cut(8)) == 1
    assert len(Row(LOOP, (), 16 * 4096, grain_of(1)).cut(8)) == 8
    for rows_, parts in ((1, 1), (128, 8)):
        out = rows.Writer("float32")
        out.gemm(np.ones((rows_, 784), "f4"), np.ones((784, 512), "f4"), np.empty((rows_, 512), "f4"))
        assert len(out.made.rows[0].cut(8)) == parts
        monkeypatch.setattr(rows, "own_threads", lambda: 8)
        assert Stretch([out.made], is_shared=True).threads == parts


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_who_runs_the_rows_changes_no_bit(optimizer, dtype, threads, monkeypatch):
    """A table that is cut for three threads, run by one in order, and by three."""
    threads(3)
    together = fit(optimizer, dtype)
    monkeypatch.setattr(rows, "share", lambda work, parts, count: work())
    assert fit(optimizer, dtype)[:2] == together[:2]


def test_the_number_of_threads_changes_bits_of_products_alone(threads, monkeypatch):
    monkeypatch.setattr(Row, "cut", lambda row, count, cut=Row.cut: cut(row, 1 if row.is_product else count))
    found = set()
    for count in (1, 2, 3, 50):
        threads(count)
        found.add(fit()[0])
    assert len(found) == 1


def test_threads_give_the_numbers_of_one(threads):
    threads(1)
    alone = fit()
    threads(2)
    np.testing.assert_allclose(fit()[1], alone[1], rtol=1e-5)


def test_rows_wait_for_all_rows_before_them(monkeypatch):
    """Each product turns the columns round, so that a part needs what all parts before it have made."""
    depth, count = 40, 4
    arrays = [np.zeros((64, 256), np.float32) for _ in range(depth + 1)]
    arrays[0][:] = np.arange(64 * 256).reshape(64, 256) % 1009
    turned, out = np.eye(256, dtype=np.float32)[::-1].copy(), rows.Writer("float32")
    for x, y in itertools.pairwise(arrays):
        out.gemm(x, turned, y)
    stretch = Stretch([out.made], is_shared=True)
    table = stretch.table(count)
    assert [*table[:8, BEFORE]] == [0] * 4 + [4] * 4
    assert [*table[1:4, FIRST]] == [*table[:3, LAST]]
    monkeypatch.setattr(rows, "own_threads", lambda: count)
    for _ in range(20):
        for y in arrays[1:]:
            y[:] = np.nan
        stretch()
        for number, y in enumerate(arrays):
            np.testing.assert_array_equal(y, arrays[0][:, ::-1] if number % 2 else arrays[0])


def test_a_thread_that_comes_late_finds_nothing_to_do(threads, monkeypatch):
    late = []

    def share_late(work, parts, count):
        assert work() == parts
        late.append(work)

    threads(2)
    monkeypatch.setattr(rows, "share", share_late)
    weights = fit()[2].layers[1].weight.array.copy()
    assert late
    assert [work() for work in late] == [0] * len(late)
    monkeypatch.setattr(rows, "share", share)
    np.testing.assert_array_equal(fit()[2].layers[1].weight.array, weights)


def test_several_steps_at_once_have_the_bits_of_single_ones(threads, monkeypatch):
    """The table of a team is everybody's: the rows of the data and the options of each step are a thread's own."""
    threads(2)
    once = fit(batch=16)
    monkeypatch.setattr("xnn.training.program.steps_at_once", lambda rows, parameters: 1)
    assert fit(batch=16)[:2] == once[:2]


def test_products_of_a_network_of_images_are_not_cut():
    """Its bits do not depend on the number of threads."""
    x, y, out = np.ones((128, 128), np.float32), np.ones((128, 128), np.float32), rows.Writer("float32")
    out.gemm(x, x.copy(), y)
    out.loop(compiled_loops.copy, y.size, x, y, grain=512)
    cut = {whole: Stretch([out.made], True, cuts_products=whole).rows for whole in (True, False)}
    assert [len(row.cut(2)) for row in cut[True]] == [2, 2]
    assert [len(row.cut(2)) for row in cut[False]] == [1, 2]


@pytest.mark.parametrize("rate", [None, 0.5])
@pytest.mark.parametrize(("m", "k", "n"), [(33, 200, 300), (300, 200, 33), (128, 128, 128)])
@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
def test_parts_of_a_product(m, k, n, transposed, rate):
    rng = np.random.default_rng(0)
    a = rng.integers(-4, 5, (k, m) if "a" in transposed else (m, k)).astype("f4")
    b = rng.integers(-4, 5, (n, k) if "b" in transposed else (k, n)).astype("f4")
    a, b = a.T if "a" in transposed else a, b.T if "b" in transposed else b
    c = rng.integers(-4, 5, (m, n)).astype("f4")
    expected = a @ b if rate is None else c - rate * (a @ b)
    out = rows.Writer("float32")
    out.gemm(a, b, c, None if rate is None else np.asarray([rate]))
    stretch = Stretch([out.made], is_shared=True)
    table = stretch.table(3)
    assert len(table) > 1
    run(table, np.empty((0, 3), np.int64), 1, np.float32(1))
    np.testing.assert_array_equal(c, expected)


def test_arrays_live_as_long_as_a_thread_may_be_at_work(monkeypatch):
    """Ctrl-C in a prediction frees its program, while a helper may still run a row."""
    works = []

    def interrupted(work, parts, count):
        works.append(work)
        raise KeyboardInterrupt

    monkeypatch.setattr(rows, "share", interrupted)
    monkeypatch.setattr(rows, "own_threads", lambda: 2)
    out, y = rows.Writer("float32"), np.empty((128, 512), np.float32)
    out.gemm(np.ones((128, 784), np.float32), np.ones((784, 512), np.float32), y)
    stretch, gone = Stretch([out.made], is_shared=True), weakref.ref(y)
    with pytest.raises(KeyboardInterrupt):
        stretch()
    del stretch, out, y
    gc.collect()
    assert works[0]() == 2
    assert (gone() == 784).all()
