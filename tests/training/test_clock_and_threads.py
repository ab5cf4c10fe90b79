"""What a fit computes depends neither on the clock nor on fits in other threads."""

import threading
import time

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers
from xnn.callbacks import Callback, ProgressBar
from xnn.layers.files import weights_sha256
from xnn.training import fit as fitting

R = np.random.default_rng(0)
X = R.normal(size=(640, 12)).astype(np.float32)
Y = R.integers(0, 4, size=640)


@pytest.fixture(params=["ops", "numpy", "compiled"])
def kernels(request):
    if request.param == "compiled":
        pytest.importorskip("numba")
    return request.param


class Clock:
    """A clock by which each look at it takes some seconds."""

    def __init__(self, seconds):
        self.now, self.seconds = 0.0, seconds

    def perf_counter(self):
        self.now += self.seconds
        return self.now


class Halves(Callback):
    """Changes what training does at each check; notes what it was told."""

    def __init__(self):
        self.told = []

    def on_check(self, history, epoch, step, loss, metrics):
        self.told.append((epoch, step, loss, metrics["accuracy"], history.steps, history.losses_sha256))
        self.trainer.optimizer.learning_rate *= 0.9


@pytest.mark.sampled(2)
@pytest.mark.parametrize("watched", [False, True])
def test_no_number_depends_on_the_clock(kernels, monkeypatch, watched):
    """Callbacks that change something, and a function that reads what a schedule has written."""
    found = []
    for seconds in (0.0, 0.2, 30.0):
        read = [1.0]

        def schedule(step, read=read):
            read[0] = 1.0 + step // 50
            return 0.05

        def scaled(x, read=read):
            return x * read[0]

        monkeypatch.setattr(fitting, "time", Clock(seconds))
        model = xnn.Sequential(
            layers.Dense(12, 8),
            layers.Lambda(scaled),
            layers.ReLU(),
            layers.Dropout(0.2),
            layers.Dense(8, 4),
            seed=1,
        )
        rule = optimizers.SGD(0.05) if watched else optimizers.Adam(schedule)
        watch = Halves()
        t = watch.trainer = xnn.Trainer(
            model,
            losses.SoftmaxCrossEntropy(),
            rule,
            callbacks=[watch] if watched else [],
            kernels=kernels,
            threads=1,
        )
        history = t.fit((X, Y), epochs=2, batch_size=4, progress=False)
        found.append((weights_sha256(model), history.losses_sha256, history.epochs, watch.told))
    assert found[0] == found[1] == found[2]
    assert len(found[0][3]) == (4 if watched else 0)


def test_the_clock_shows_numbers(monkeypatch):
    shown = []

    class Shows(ProgressBar):
        def on_check(self, history, epoch, step, loss, metrics):
            shown.append(step)

    monkeypatch.setattr(fitting, "time", Clock(0.2))
    model = xnn.Sequential(layers.Dense(12, 4), seed=1)
    t = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), [], [Shows()], kernels="numpy")
    t.fit((X, Y), batch_size=8, progress=False)
    assert len(shown) > 10
    assert shown[-1] == 80


def test_a_divergence_is_found_by_the_clock_and_named_alike(kernels, monkeypatch):
    found = []
    for seconds in (0.0, 30.0):
        monkeypatch.setattr(fitting, "time", Clock(seconds))
        x = X.copy()
        x[300] = 1e30
        t = xnn.Trainer(
            xnn.Sequential(layers.Dense(12, 4), seed=1),
            losses.MSE(),
            optimizers.Adam(0.01),
            kernels=kernels,
            threads=1,
        )
        with np.errstate(all="ignore"), pytest.raises(xnn.errors.DivergenceError) as raised:
            t.fit((x, X[:, :4]), batch_size=8, progress=False)
        found.append((str(raised.value), weights_sha256(t.model), t.history.losses_sha256, t.step))
    assert found[0] == found[1]


def network(kind):
    if kind == "dense":
        return xnn.Sequential(
            layers.Dense(12, 96), layers.ReLU(), layers.Dense(96, 64), layers.Dense(64, 4), seed=1
        )
    inner = layers.Conv2D(1, 6, 3), layers.BatchNorm(6), layers.ReLU(), layers.Flatten(), layers.Dropout(0.3)
    return xnn.Sequential(layers.Reshape((1, 4, 3)), *inner, layers.Dense(12, 4), seed=1)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("threads", [1, 2])
def test_fits_in_several_threads_give_the_bits_of_fits_alone(kernels, threads, numerics):
    """Products of BLAS among them, at the same time; and assignments to other models' layers."""

    def run(kind, wait):
        wait()
        t = xnn.Trainer(
            network(kind),
            losses.SoftmaxCrossEntropy(),
            optimizers.Adam(0.01),
            kernels=kernels,
            threads=threads,
            numerics=numerics,
        )
        history = t.fit((X, Y), epochs=4 if numerics == "fast" else 1, batch_size=64, progress=False)
        return history.losses_sha256, weights_sha256(t.model)

    kinds = ["dense", "dense", "picture", "dense"]
    alone = {kind: run(kind, lambda: None) for kind in set(kinds)}
    barrier, found, ended = threading.Barrier(len(kinds) + 1), {}, threading.Event()

    def work(number):
        found[number] = run(kinds[number], barrier.wait)

    def disturb():
        dropout = layers.Dropout(0.1)
        barrier.wait()
        while not ended.is_set():
            dropout.rate = 0.2
            time.sleep(0.0005)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(len(kinds))]
    other = threading.Thread(target=disturb)
    for thread in (*workers, other):
        thread.start()
    for thread in workers:
        thread.join()
    ended.set()
    other.join()
    assert found == {number: alone[kind] for number, kind in enumerate(kinds)}


def test_products_of_two_threads():
    """The products of fits alone: matrices of several sizes, compared bit for bit with those of one thread."""
    pairs = [
        (R.normal(size=(m, 70)).astype("f4"), R.normal(size=(70, m + 3)).astype("f4"))
        for m in range(1, 200, 9)
    ]
    right = [(a @ b).tobytes() for a, b in pairs]
    wrong = []

    def multiply():
        for _ in range(5):
            wrong.extend(n for n, (a, b) in enumerate(pairs) if (a @ b).tobytes() != right[n])

    threads = [threading.Thread(target=multiply) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
