"""Data larger than half of the GPU's free memory: they are streamed, with the bits of data that lie on the GPU.

On a GPU, or on the emulated one. The counts of copies and the orders of streams need the emulated one.
"""

import gc
import inspect
import textwrap
import tracemalloc

import numpy as np
import pytest
from test_cuda_programs import (
    BATCH,
    CLASSES,
    FEATURES,
    OPTIMIZERS,
    ROWS,
    X,
    Y,
    bits,
    check_same,
    network,
    pytestmark,
    recorder,
    stepper_of,
    train,
)

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends import cupy_backend, get_backend, row_sources
from xnn.backends.kernels.cuda import data_set
from xnn.callbacks import Callback
from xnn.errors import DivergenceError

__all__ = ["pytestmark"]

FREE = 8000
WEIGHTS = np.linspace(0.1, 2.0, ROWS).astype(np.float32)


@pytest.fixture
def small(monkeypatch):
    """A GPU on which it seems that 8000 bytes are free: X and Y, of 7000, take more than half."""
    monkeypatch.setattr(cupy_backend.CupyBackend, "free_memory", lambda self: FREE)
    monkeypatch.setattr(data_set, "_EIGHTH", 1)


def streamed(trainer):
    return trainer.history.plan.get("data") == "streamed from the host"


def both(monkeypatch, *args, **options):
    """The results of `train` with data on the GPU and with streamed data."""
    found = []
    for free in (10**9, FREE):
        with monkeypatch.context() as patch:
            patch.setattr(cupy_backend.CupyBackend, "free_memory", lambda self, free=free: free)
            patch.setattr(data_set, "_EIGHTH", 1)
            found.append(train("cupy", *args, **{"epochs": 2} | options))
    assert [streamed(trainer) for trainer, *_ in found] == [False, True]
    return found


def images(*between):
    return xnn.Sequential(
        layers.Rescale(1 / 255), layers.Reshape((1, 4, 5)), *between, layers.Conv2D(1, 3, 3, padding=1),
        layers.BatchNorm(3), layers.ReLU(), layers.Flatten(), layers.Dense(60, CLASSES), seed=1,
    )  # fmt: skip


MODELS = {
    "dense": network,
    "dropout": lambda: network(layers.Dropout(0.3)),
    "augmentation": lambda: images(layers.RandomAffine(1.0, 10.0, 0.1), layers.ElasticDeformation(2.0, 1.0)),
    "user's op": lambda: network(layers.Lambda(lambda x: ops.exp(-x * x))),
}


@pytest.mark.parametrize(
    ("name", "steps"),
    [(name, steps) for name in MODELS for steps in (1, 3, 20) if name == "dense" or steps == 3],
)
def test_streamed_data_have_the_bits_of_resident_data(monkeypatch, name, steps):
    """In chunks of any length, captured or step by step, and for the last, shorter batch."""
    monkeypatch.setattr(data_set, "_STEPS", steps)
    here, there = both(monkeypatch, MODELS[name], OPTIMIZERS["everything"])
    assert bits(here) == bits(there)
    assert here[0].history.epochs == there[0].history.epochs


DATA = {
    "weights": {"sample_weight": WEIGHTS},
    "targets": {"data": (X, X[:, :CLASSES] / np.float32(255)), "loss": losses.MSE()},
    "not shuffled": {"shuffle": False},
    "one batch": {"batch_size": ROWS},
    "batches of one": {"batch_size": 1, "epochs": 1},
    "columns of a larger array": {"data": (np.repeat(X, 2, axis=1)[:, ::2], Y)},
    "in Fortran's order": {"data": (np.asfortranarray(X), np.repeat(Y, 2)[::2])},
    "one array twice": {
        "data": (X / np.float32(255),) * 2,
        "loss": losses.MSE(),
        "make": lambda: xnn.Sequential(layers.Dense(FEATURES, FEATURES), seed=2),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_data_of_any_kind(monkeypatch, name):
    here, there = both(monkeypatch, **DATA[name])
    assert bits(here) == bits(there)


@pytest.mark.parametrize("moved", ["samples", "targets"])
def test_arrays_of_host_and_gpu_together(monkeypatch, moved):
    """Those on the GPU stay there, and the others are streamed."""
    monkeypatch.setattr(cupy_backend.CupyBackend, "free_memory", lambda self: 1000)
    put = get_backend("cupy").to_device
    found = train("cupy", data=(put(X), Y) if moved == "samples" else (X, put(Y)))
    assert streamed(found[0])
    check_same(found, train("numpy"))


def test_a_second_gpu(small):
    if get_backend("cupy").cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU")
    one, two = (train(name, epochs=2) for name in ("cupy", "cupy:1"))
    assert streamed(one[0])
    assert streamed(two[0])
    assert bits(one) == bits(two)


def test_callbacks_that_see_each_step_or_write_to_the_data(monkeypatch):
    """What a callback writes to the data at the end of an epoch counts from the next one."""

    class EachStep(Callback):
        def on_step(self, history, epoch, step, loss):
            pass

    here, there = both(monkeypatch, callbacks=[EachStep])
    assert bits(here) == bits(there)
    results = []
    for free in (10**9, FREE):
        x = X.copy()

        class Inverts(Callback):
            def on_epoch_end(self, history, results, x=x):
                x[:] = 255 - x

        with monkeypatch.context() as patch:
            patch.setattr(cupy_backend.CupyBackend, "free_memory", lambda self, free=free: free)
            results.append(bits(train("cupy", data=(x, Y), callbacks=[Inverts], epochs=2)))
    assert results[0] == results[1] != bits(here)


def test_a_divergence_is_named_as_with_resident_data(monkeypatch):
    messages = []
    for free in (10**9, FREE):
        monkeypatch.setattr(cupy_backend.CupyBackend, "free_memory", lambda self, free=free: free)

        def schedule(number):
            return 1e30 if number == 40 else 0.1

        with pytest.raises(DivergenceError) as raised:
            train("cupy", optimizer=lambda s=schedule: optimizers.SGD(s))
        messages.append((str(raised.value), raised.value.history.steps))
    assert messages[0] == messages[1]


def test_lbfgs_takes_streamed_data(monkeypatch):
    pytest.importorskip("scipy")
    here, there = both(monkeypatch, optimizer=lambda: optimizers.LBFGS(weight_decay=0.01), epochs=3)
    assert bits(here)[1:] == bits(there)[1:]


ONE, TWO = np.zeros((10, 100), np.uint8), np.zeros(10)  # 1000 and 80 bytes


@pytest.mark.parametrize(
    ("arrays", "free", "streams"),
    [
        ((ONE, TWO), 2160, False),
        ((ONE, TWO), 2159, True),
        ((ONE,), 2159, False),
        ((ONE, ONE), 2000, False),  # one array counts once
        ((ONE, TWO, TWO + 1), 2160, True),
        ((ONE, TWO), 0, True),
        ((ONE, TWO), None, False),  # no limit is known
    ],
)
def test_the_rule(arrays, free, streams):
    """All arrays together may take half of what is free, and the first question decides."""
    answers = iter([free])
    data = data_set.DataSet(arrays, 5, 100, lambda: next(answers))
    assert [data.streams(array) for array in arrays] == [streams] * len(arrays)
    assert not data.streams(np.zeros(3))
    assert bool(data.reason) == streams
    assert (data.streamed is not None) == streams
    assert data.steps == 100 or streams


@pytest.mark.parametrize(
    ("size", "free", "steps"),
    [
        (1, 6, 1),
        (100, 2**17, 20),
        (2**18, 2**30, 16),
        (2**18, 2**26, 4),
        (2**25, 2**30, 1),
        (2**27, 2**20, 1),
    ],
)
def test_how_many_steps_rows_are_copied_together(size, free, steps):
    """At most 20, and about 32 MiB or an eighth of what is free; at least those of one step."""
    array = np.broadcast_to(np.zeros(1, np.uint8), (2**30 // size, size))
    data = data_set.DataSet([array], 8, 100, lambda: free)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_set, "Streamed", lambda rows: rows)
        assert data.streams(array)
    assert data.steps == steps
    assert data.streamed == 8 * steps


def test_the_memory_that_a_pool_may_take_counts(monkeypatch):
    """CUPY_GPU_MEMORY_LIMIT is the pool's limit. The pool is new: what other tests left would take room in it."""
    module = get_backend("cupy").cupy
    pool, before = module.cuda.MemoryPool(), module.cuda.get_allocator()
    monkeypatch.setattr(module, "get_default_memory_pool", lambda: pool)
    data = np.repeat(X, 400, axis=1), Y  # 2 MB
    found = []

    def model():
        return xnn.Sequential(layers.Rescale(1 / 255), layers.Dense(FEATURES * 400, CLASSES), seed=1)

    module.cuda.set_allocator(pool.malloc)
    try:
        train("cupy", epochs=1)
        for limited in (False, True):
            gc.collect()
            get_backend("cupy").free_memory()  # empties the pool
            pool.set_limit(size=pool.total_bytes() + 3 * 2**20 if limited else 0)
            found.append(train("cupy", model, data=data, epochs=1))
    finally:
        module.cuda.set_allocator(before)
    assert [streamed(trainer) for trainer, *_ in found] == [False, True]
    assert bits(found[0]) == bits(found[1])


def test_training_evaluation_and_prediction_on_data_larger_than_the_memory():
    """They never put more than some batches on the GPU."""
    recorder()
    from cuda_emulator import attach

    def model():
        return xnn.Sequential(layers.Rescale(1 / 255), layers.Dense(20_000, CLASSES), seed=1)

    data = np.resize(X, (400, 20_000)), np.resize(Y, 400)  # 8 MB
    options = {"make": model, "data": data, "epochs": 1, "optimizer": lambda: optimizers.SGD(1e-5)}
    train("cupy", **options)  # what is made once, such as cuBLAS's workspace
    here, results = train("numpy", **options), []
    with attach.free_memory(6 * 2**20):
        there = train("cupy", **options)
        assert streamed(there[0])
        for trainer in (here[0], there[0]):
            results.append(
                (trainer.evaluate(data, batch_size=BATCH), trainer.model.predict(data[0], batch_size=BATCH))
            )
    check_same(there, here)
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-3)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["pixels", "numbers", "numbers as targets, too"])
def test_a_file_that_is_mapped_is_never_read_into_memory_whole(monkeypatch, small, tmp_path, kind):
    """With an order of rows of its own in each epoch."""
    monkeypatch.setattr(row_sources, "_BLOCK", 2**17)
    shape, path = (1000 if "targets" in kind else 4000, 2000), tmp_path / "x.npy"
    x = np.resize(X, shape)
    np.save(path, x if kind == "pixels" else x / np.float32(255))
    size, y = x.nbytes * (1 if kind == "pixels" else 4), np.resize(Y, len(x))
    del x
    first = [layers.Rescale(1 / 255)] if kind == "pixels" else []
    last = [layers.Dense(CLASSES, 2000)] if "targets" in kind else []
    loss = losses.MSE() if last else losses.SoftmaxCrossEntropy()
    with xnn.backends.backend("cupy"):
        model = xnn.Sequential(*first, layers.Dense(2000, CLASSES), *last, seed=1)
        trainer = xnn.Trainer(model, loss, optimizers.SGD(0.01))
        tracemalloc.start()
        try:
            mapped = np.load(path, mmap_mode="r")
            y = mapped if last else y
            trainer.fit((mapped, y), epochs=1, batch_size=100, progress=False)
            trainer.evaluate((mapped, y), batch_size=100)
            if not last:  # outputs would be as large as the data
                model.predict(mapped, batch_size=100)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert streamed(trainer)
    assert size >= 2 * 4e6 > 2 * peak, f"{peak:,} bytes"


def test_it_is_said_once_and_stands_in_the_plan(small, capsys):
    """`xnn train --json` prints the plan."""
    trainer = train("cupy", epochs=2)[0]
    assert trainer.history.plan["data"] == "streamed from the host"
    said = capsys.readouterr().err
    assert said.count("streamed from the host") == 1
    assert "take more than half of the memory that is free on the GPU (0.0 MiB)" in said


def test_copies_of_a_chunk(small):
    """For the rows of some steps: one copy of the numbers, one of each array and one graph, without a wait."""
    recorded = recorder()
    with get_backend("cupy").stream():
        trainer = train("cupy", epochs=1)[0]
        stepper = stepper_of(trainer)
        stepper.refresh()
        chunk = [np.arange(n, n + BATCH) for n in range(40)]
        stepper.steps(chunk, 0)
        with recorded() as lines:
            stepper.steps(chunk, 40)
        stepper.take()
    kinds = [line.split()[0] for line in lines]
    assert kinds == 2 * ["COPY", "COPY", "COPY", "GRAPH"], lines
    assert all("H2D pinned" in line for line in lines if line.startswith("COPY"))
    assert {int(line.split()[-1]) for line in lines[:2]} == {20 * BATCH * FEATURES, 20 * BATCH * 8}


FAULTS = {
    "copies wait for the steps that read": "self.copying.wait_event(half.read)",
    "those steps are marked": "other.read.record(stream)",
    "steps wait for their copy": "stream.wait_event(half.copied)",
    "the host waits for the copy from where it writes": "half.copied.synchronize()",
}


@pytest.fixture(params=["oldest first", "newest first"])
def late(request):
    """Streams of the emulated GPU that run their work as late as a GPU may: the steps, or the copies, run first."""
    recorder()
    from cuda_emulator import attach

    return lambda: attach.late(request.param)


def test_a_fit_has_its_bits_in_every_order_of_streams(monkeypatch, late):
    """With streamed data and with data on the GPU."""

    def model():
        return network(layers.Dropout(0.3))

    right = bits(train("cupy", model, epochs=2))
    monkeypatch.setattr(data_set, "_STEPS", 3)
    with late():
        assert [bits(found) for found in both(monkeypatch, model)] == [right, right]


def rows_that_were_read():
    """Whether the rows that a stream reads of ten parts are those that were sent, in each order of streams."""
    from cuda_emulator import attach

    cupy, answers = get_backend("cupy").cupy, []
    for order in attach.LATE:
        with attach.late(order), cupy.cuda.Stream(non_blocking=True) as stream:
            streamed, parts = data_set.Streamed(8), [np.arange(n, n + 6) * 7 % ROWS for n in range(10)]
            places, found = [streamed.there(X), streamed.there(Y)], []
            for rows in parts:
                first = streamed.send(rows, stream)
                found.append([there[first : first + 6].copy() for there in places])
            same = [
                np.array_equal(array.get(), source[rows])
                for rows, arrays in zip(parts, found, strict=True)
                for source, array in zip((X, Y), arrays, strict=True)
            ]
            answers.append(all(same))
    return answers


def test_a_missing_wait_is_found(monkeypatch):
    """Each line of `Streamed.send` that keeps an order: without it, one of the two orders reads other rows."""
    recorder()
    assert rows_that_were_read() == [True, True]
    source = textwrap.dedent(inspect.getsource(data_set.Streamed.send))
    for fault, line in FAULTS.items():
        assert source.count(line) == 1
        scope = vars(data_set).copy()
        exec(source.replace(line, "pass"), scope)
        monkeypatch.setattr(data_set.Streamed, "send", scope["send"])
        assert rows_that_were_read() != [True, True], fault


def test_rows_are_copied_while_the_steps_before_run(small):
    """The copies for the second 20 steps can be done before the first 20 steps have begun."""
    recorder()
    from cuda_emulator.attach import late

    trainer = train("cupy", epochs=1)[0]
    with get_backend("cupy").stream():
        stepper = stepper_of(trainer)
        stepper.refresh()
        chunk = [np.arange(n, n + BATCH) for n in range(40)]
        stepper.steps(chunk, 0)
        stepper.take()
        feed = stepper.feed
        with late("newest first"):
            stepper.steps(chunk, 40)
            feed.data.streamed.copying.synchronize()
            assert not feed.stream.done
            stepper.take()
            assert feed.stream.done
