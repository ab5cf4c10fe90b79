"""Batches that a thread reads ahead of the steps: the same bits, errors in the training thread, no thread left."""

import signal
import threading
import time

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers
from xnn.backends.row_sources import Converted
from xnn.callbacks import Callback
from xnn.data import Batches, Stream, ahead, orders, reader
from xnn.data.ahead import read_ahead
from xnn.data.reader import Reader
from xnn.data.stream import opened
from xnn.errors import DivergenceError

ROWS, FEATURES, CLASSES = 203, 4, 3
X = np.random.default_rng(0).standard_normal((ROWS, FEATURES)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, CLASSES, ROWS)


def of_files(array, at_read=lambda rows: None):
    """The array as one that is read by its rows. at_read: called with the rows at each read."""

    def convert(rows):
        at_read(rows)
        return rows + 0

    return Converted(array, convert)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "xnn reader"]


def trainer_of(rate=0.1, dropout=0.0, callbacks=(), optimizer=None, **options):
    model = xnn.Sequential(
        layers.Dense(FEATURES, 8), layers.Dropout(dropout), layers.ReLU(), layers.Dense(8, CLASSES), seed=1
    )
    how = optimizer or optimizers.SGD(rate, momentum=0.9)
    return xnn.Trainer(model, losses.SoftmaxCrossEntropy(), how, callbacks=callbacks, **options)


def trained(x, y, batch_size=8, shuffle=True, epochs=2, **options):
    trainer = trainer_of(**options)
    history = trainer.fit((x, y), epochs=epochs, batch_size=batch_size, shuffle=shuffle, progress=False)
    assert not threads()
    return history.losses_sha256, [p.value.tobytes() for p in trainer.model.parameters()]


@pytest.fixture(params=[1, 2**9, 2**22])
def together(request, monkeypatch):
    """One batch, some, or all batches of an epoch are read together."""
    monkeypatch.setattr(reader, "_BYTES", request.param)


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("options", [
    {}, {"shuffle": False}, {"batch_size": 203}, {"batch_size": 300}, {"batch_size": 1, "epochs": 1},
    {"dropout": 0.3}, {"kernels": "ops"}, {"kernels": "numpy"}, {"numerics": "exact"},
    {"threads": "auto", "numerics": "exact"},
    {"callbacks": [Callback()]},
])  # fmt: skip
def test_the_bits_are_those_of_arrays_in_memory(options):
    assert trained(of_files(X), Y, **options) == trained(X, Y, **options)


def test_an_optimizer_over_all_the_data():
    pytest.importorskip("scipy")
    found = [trained(x, Y, epochs=3, optimizer=optimizers.LBFGS()) for x in (X, of_files(X))]
    assert found[0] == found[1]


class OnStep(Callback):
    """Looks at each step, and changes the rate in the middle."""

    def on_step(self, history, epoch, batch, loss):
        self.trainer.optimizer.learning_rate = 0.1 / (1 + batch)


@pytest.mark.usefixtures("together")
def test_callbacks_that_see_each_step():
    found = []
    for x in (X, of_files(X)):
        watcher = OnStep()
        watcher.trainer = trainer_of(callbacks=[watcher])
        history = watcher.trainer.fit((x, Y), epochs=2, batch_size=8, progress=False)
        found.append((history.losses_sha256, [p.value.tobytes() for p in watcher.trainer.model.parameters()]))
    assert found[0] == found[1]


@pytest.mark.usefixtures("together")
def test_a_divergence_is_named_as_of_arrays_in_memory():
    said = []
    for x in (X * 1e18, of_files(X * 1e18)):
        with pytest.raises(DivergenceError) as caught, pytest.warns(xnn.errors.ScaleWarning):
            trainer_of(rate=1e5).fit((x, Y), epochs=2, progress=False)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert not threads()


@pytest.mark.usefixtures("together")
def test_an_error_of_the_reader_ends_the_fit():
    reads = []

    def fail(rows):
        reads.append(rows)
        if threading.current_thread().name == "xnn reader" and len(reads) > 3:
            raise OSError("the disk is gone")

    trainer = trainer_of()
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.fit((of_files(X, fail), Y), epochs=9, batch_size=8, progress=False)
    assert not threads()
    assert "the disk is gone" in trainer.history.error


def test_the_next_rows_are_read_while_a_step_is_computed(monkeypatch):
    monkeypatch.setattr(reader, "_BYTES", 1)
    readers, seen = set(), threading.Event()

    def note(rows):
        readers.add(threading.current_thread().name)
        if len(rows) == 8:
            seen.set()

    class Waits(Callback):
        """In each step, waits until another batch is read: that would never come if this thread had to read it."""

        def on_step(self, history, epoch, batch, loss):
            if batch < 20:
                assert seen.wait(10)
                seen.clear()

    trained(of_files(X, note), Y, callbacks=[Waits()], epochs=1)
    assert "xnn reader" in readers


def test_ctrl_c_ends_the_fit_after_a_step():
    class Press(Callback):
        def on_step(self, history, epoch, batch, loss):
            if batch == 5:
                signal.raise_signal(signal.SIGINT)

    history = trainer_of(callbacks=[Press()]).fit((of_files(X), Y), epochs=3, batch_size=8, progress=False)
    assert (history.interrupted, history.steps) == (True, 5)
    assert not threads()


def test_a_second_ctrl_c_ends_a_fit_that_waits_for_its_data():
    def hang(rows):
        if threading.current_thread().name == "xnn reader":
            for _ in range(2):
                time.sleep(0.05)
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.3)

    with pytest.raises(KeyboardInterrupt):
        trainer_of().fit((of_files(X, hang), Y), epochs=3, batch_size=8, progress=False)
    assert not threads()


def test_an_evaluation_reads_ahead_and_ends_its_thread():
    names = set()
    given = of_files(X, lambda rows: names.add(threading.current_thread().name))
    trainer = trainer_of()
    assert trainer.evaluate((given, Y), batch_size=50) == trainer.evaluate((X, Y), batch_size=50)
    assert "xnn reader" in names
    assert not threads()


def test_rows_of_no_coming_batch_are_read_at_once():
    read = Reader(Batches((of_files(X), Y), 8))
    for rows in (np.arange(5), np.array([200, 3, 3])):
        places = read.places(rows)
        assert np.array_equal(read.buffers[0][places], X[rows])
        assert np.array_equal(read.buffers[1][places], Y[rows])


def test_read_ahead_stops_when_it_is_closed():
    made = []

    def numbers():
        try:
            for number in range(100):
                made.append(number)
                yield number
        finally:
            made.append("closed")

    given = read_ahead(numbers())
    assert [next(given), next(given)] == [0, 1]
    given.close()
    assert not threads()
    assert made[-1] == "closed"
    assert made[:-1] in ([0, 1], [0, 1, 2])


def test_a_read_that_does_not_return_is_told_of(monkeypatch, capsys):
    monkeypatch.setattr(ahead, "_PATIENCE", 0.01)
    asked, answered = threading.Event(), threading.Event()

    def numbers():
        yield 0
        asked.set()
        answered.wait(60)

    given = read_ahead(numbers())
    assert next(given) == 0
    assert asked.wait(60)
    given.close()
    (thread,) = threads()
    assert "a read of data has not returned for 0.01 s: its thread is left" in capsys.readouterr().err
    answered.set()
    thread.join(60)
    assert not threads()


@pytest.mark.parametrize("done", [0, 1, 7, 25, 26])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_that_are_done_are_left_out_and_not_read(monkeypatch, done, shuffle):
    monkeypatch.setattr(reader, "_BYTES", 1)
    monkeypatch.setattr(orders, "_MOST", 64)
    monkeypatch.setattr(orders, "_WORDS", 32)
    read = []
    batches = Batches((of_files(X, read.append), Y), 8, shuffle, seed=5)
    wanted = [*batches.numbers(1)][done:]
    read.clear()
    found = [*Reader(batches).numbers(1, done)]
    assert [rows.tolist() for rows in found] == [rows.tolist() for rows in wanted]
    assert sum(map(len, read)) == sum(map(len, wanted))


@pytest.mark.parametrize("done", [0, 3, 20, 25])
def test_of_a_stream_no_more_windows_are_kept_when_batches_are_left_out(done):
    parts = [(X[start : start + 40], Y[start : start + 40]) for start in range(0, ROWS, 40)]
    batches = Batches(opened(Stream(parts, window=20), lambda *arrays: arrays), 8, seed=5)
    wanted = [*batches.numbers(0)][done:]
    for rows, expected in zip(Reader(batches).numbers(0, done), wanted, strict=True):
        assert np.array_equal(rows, expected)
        assert np.array_equal(batches.gather(rows)[0], X[rows])
        assert len(batches._windows._held) <= 3
    batches.close()
