"""Data that a generator or another iterable gives batch by batch."""

import threading
import tracemalloc

import numpy as np
import pytest

import xnn
from xnn import data, layers, losses, optimizers
from xnn.data import Batches, reader
from xnn.data.stream import opened
from xnn.errors import DataError, DivergenceError, DTypeError, LabelError, OptionError, ShapeError

ROWS, FEATURES, CLASSES = 203, 4, 3
X = np.random.default_rng(0).standard_normal((ROWS, FEATURES)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, CLASSES, ROWS)
W = np.linspace(0.1, 1.0, ROWS)


def batches(*arrays, size=17):
    return [tuple(array[start : start + size] for array in arrays) for start in range(0, ROWS, size)]


def generator(*arrays, size=17, epochs=9):
    for _ in range(epochs):
        yield from batches(*arrays, size=size)


class Iterates:
    def __init__(self, *arrays):
        self.arrays = arrays

    def __iter__(self):
        return iter(batches(*self.arrays))


SOURCES = {
    "list": lambda *a: batches(*a),
    "iterable": lambda *a: Iterates(*a),
    "function": lambda *a: lambda epoch: generator(*a, epochs=1),
    "generator": lambda *a: generator(*a),
    "batches of another size": lambda *a: generator(*a, size=150),
    "batches over the end of an epoch": lambda *a: (
        tuple(p[n % ROWS : n % ROWS + 1] for p in a) for n in range(9999)
    ),
}


def trainer_of(kernels="auto", numerics=None, rate=0.1):
    model = xnn.Sequential(
        layers.Dense(FEATURES, 8), layers.Dropout(0.2), layers.ReLU(), layers.Dense(8, CLASSES), seed=1
    )
    return xnn.Trainer(
        model,
        losses.SoftmaxCrossEntropy(),
        optimizers.SGD(rate, momentum=0.9),
        kernels=kernels,
        numerics=numerics,
    )


def state(trainer, history):
    return history.losses_sha256, history.epochs, [p.value.tobytes() for p in trainer.model.parameters()]


def trained(given, epochs=2, shuffle=True, batch_size=8, **options):
    trainer = trainer_of(**options)
    history = trainer.fit(
        given, epochs=epochs, batch_size=batch_size, seed=5, shuffle=shuffle, progress=False
    )
    assert not [thread for thread in threading.enumerate() if thread.name == "xnn reader"]
    return state(trainer, history)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("options", [{}, {"numerics": "exact"}, {"kernels": "ops"}, {"batch_size": 203}])
def test_a_window_of_all_samples_has_the_bits_of_arrays(source, options):
    given = data.Stream(source(X.astype("f8"), Y.astype("u1")), samples=ROWS)
    assert trained(given, **options) == trained((X, Y), **options)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("size", [1, 2**9, 2**22])
def test_windows_are_shuffled_in_themselves(monkeypatch, source, size):
    monkeypatch.setattr(reader, "_BYTES", size)
    given = data.Stream(source(X, Y), samples=ROWS, window=50)
    rows = Batches(opened(given, lambda *arrays: arrays), 8, seed=5)
    order = [rows.order(epoch) for epoch in range(2)]
    for start in range(0, ROWS, 50):
        assert sorted(order[0][start : start + 50]) == list(range(start, min(start + 50, ROWS)))
    assert not np.array_equal(order[0], order[1])
    assert not np.array_equal(order[0][:50], order[0][50:100] - 50)
    given = data.Stream(source(X, Y), samples=ROWS, window=50)
    trainer = trainer_of()
    found = [trainer.fit(given, batch_size=8, seed=5, progress=False) for _ in range(2)]  # goes on
    other, wanted = trainer_of(), []
    for epoch in range(2):
        wanted.append(
            other.fit((X[order[epoch]], Y[order[epoch]]), batch_size=8, seed=5, shuffle=False, progress=False)
        )
    assert state(trainer, found[1]) == state(other, wanted[1])
    assert found[0].losses_sha256 == wanted[0].losses_sha256


def test_without_shuffling_and_with_sample_weights():
    wanted = trainer_of()
    history = wanted.fit((X, Y), sample_weight=W, shuffle=False, epochs=2, progress=False)
    trainer = trainer_of()
    stream = data.Stream(batches(X, Y, W), window=40)
    found = trainer.fit(stream, shuffle=False, epochs=2, progress=False)
    assert state(trainer, found) == state(wanted, history)
    with pytest.raises(OptionError, match="omit sample_weight"):
        trainer.fit(stream, sample_weight=W, progress=False)


@pytest.mark.parametrize("weights", [np.arange(ROWS) >= 100, np.arange(ROWS) < 90, np.arange(ROWS) == 202])
def test_windows_whose_weights_are_all_0(weights):
    """They count for nothing, as batches of arrays do; the check is one of the whole epoch."""
    found = []
    for given, options in (
        ((X, Y), {"sample_weight": weights}),
        (data.Stream(batches(X, Y, weights), window=40), {}),
    ):
        trainer = trainer_of()
        history = trainer.fit(given, shuffle=False, batch_size=8, epochs=2, progress=False, **options)
        found.append((state(trainer, history), trainer.evaluate(given, batch_size=8, **options)))
    assert found[0] == found[1]
    assert np.isfinite(found[0][1]["loss"])


def test_an_epoch_whose_weights_are_all_0_is_refused():
    with pytest.raises(OptionError, match=r"Stream\(list.*every sample_weight is 0"):
        trainer_of().fit(data.Stream(batches(X, Y, 0 * W), window=40), progress=False)
    with pytest.raises(OptionError, match="every sample_weight is 0"):
        trainer_of().evaluate(data.Stream(batches(X, Y, W * 1e-300), window=40))


def test_validation_and_evaluation():
    found = []
    for given in ((X, Y), data.Stream(batches(X, Y), window=64)):
        trainer = trainer_of()
        history = trainer.fit((X, Y), validation=given, epochs=2, progress=False)
        found.append((history.epochs, trainer.evaluate(given, batch_size=50)))
    assert found[0] == found[1]


STREAM = data.Stream(batches(X, Y), window=64)
SHARDS = data.Shards([X[:100], X[100:]])


@pytest.mark.parametrize(
    "take",
    [
        lambda trainer: trainer.model.predict(STREAM),
        lambda trainer: trainer.model.predict_classes(STREAM),
        lambda trainer: trainer.fit((STREAM, Y), progress=False),
        lambda trainer: trainer.evaluate((X, STREAM)),
        lambda trainer: data.standardize(STREAM),
        lambda trainer: data.Shards([STREAM]),
        lambda trainer: np.asarray(STREAM),
    ],
)
def test_what_takes_no_stream_says_what_does(take):
    with pytest.raises(
        DataError, match=r"Stream\(list.* is no array: fit, evaluate and validation= take a stream"
    ):
        take(trainer_of())


def test_what_takes_shards_and_what_needs_an_array():
    trainer = trainer_of()
    assert trainer.model.predict(SHARDS).tobytes() == trainer.model.predict(X).tobytes()
    assert np.array_equal(trainer.model.predict_classes(SHARDS), trainer.model.predict_classes(X))
    for take in (trainer.model, trainer.model[0], trainer.model.forward, xnn.ops.relu):
        with pytest.raises(
            DTypeError, match=r"got Shards in place .*predict\(x\) takes it, and numpy.asarray"
        ):
            take(SHARDS)
    assert trainer.model(np.asarray(SHARDS)).shape == (ROWS, CLASSES)


def test_validation_data_that_can_be_read_once_are_refused_before_training():
    trainer = trainer_of()
    with pytest.raises(OptionError, match="can be read once: give it a function or an iterable"):
        trainer.fit((X, Y), validation=data.Stream(generator(X, Y), samples=ROWS), progress=False)
    assert trainer.step == 0
    wanted = trainer.evaluate((X, Y))
    assert trainer.evaluate(data.Stream(generator(X, Y), samples=ROWS)) == wanted


@pytest.mark.parametrize("size", [7, 40, 150])
@pytest.mark.parametrize("window", [20, 40, 203])
def test_a_source_may_use_its_arrays_again(size, window):
    """As one that reads a file into the same array: each batch is copied before the next one is asked for."""

    def again(epoch):
        x, y = np.empty((size, FEATURES), np.float32), np.empty(size, np.int64)
        for one, other in batches(X, Y, size=size):
            x[: len(one)], y[: len(one)] = one, other
            yield x[: len(one)], y[: len(one)]
            x[:], y[:] = np.nan, -1

    found = [
        trained(data.Stream(source, samples=ROWS, window=window), epochs=2)
        for source in (again, lambda epoch: batches(X, Y))
    ]
    assert found[0] == found[1]


def test_a_training_that_goes_on_reads_and_leaves_out_what_was_trained_on():
    wanted = trained(data.Stream(generator(X, Y), samples=ROWS, window=50), epochs=3)
    trainer = trainer_of()
    trainer.fit(
        data.Stream(generator(X, Y), samples=ROWS, window=50), epochs=2, batch_size=8, seed=5, progress=False
    )
    history = trainer.fit(
        data.Stream(generator(X, Y), samples=ROWS, window=50), batch_size=8, seed=5, progress=False
    )
    assert wanted[1][-1] == history.epochs[0]
    assert wanted[2] == state(trainer, history)[2]


def test_each_epoch_may_have_data_of_its_own():
    seen = []

    def source(epoch):
        seen.append(epoch)
        return batches(X + np.float32(epoch), Y)

    trained(data.Stream(source, samples=ROWS, window=50), epochs=3)
    assert seen == [0, 0, 1, 2]  # once to try it out


# Faults, all in the training thread.


def failing():
    yield from batches(X, Y)[:5]
    raise ValueError("line 12 is damaged")


def changed(array, row, value):
    array = array.copy()
    array[row] = value
    return array


@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        (failing, DataError, "failed after 85 samples: ValueError: line 12 is damaged"),
        (lambda: batches(X, Y)[:3], DataError, "ended after 51 samples"),
        (
            lambda: [*batches(X, Y)[:3], (X[:9, :3], Y[:9])] * 9,
            ShapeError,
            r"gave float32\[9, 3\] and int64\[9\] after",
        ),
        (lambda: [*batches(X, Y)[:3], (X[:9], Y[:8])] * 9, ShapeError, "as many samples as targets"),
        (lambda: [*batches(X, Y)[:3], X] * 9, OptionError, r"must give batches \(x, y\)"),
        (lambda: [*batches(X, Y)[:3], None] * 9, OptionError, r"must give batches \(x, y\).*None"),
        (
            lambda: batches(changed(X, 190, np.nan), Y),
            DTypeError,
            "samples 160 to 199 of Stream.*sample 30 holds NaN",
        ),
        (lambda: batches(X, changed(Y, 190, 7)), LabelError, "samples 160 to 199 .*labels run from 0 to 7"),
    ],
)
def test_a_fault_of_the_source_ends_the_fit(source, kind, said):
    with pytest.raises(kind, match=said):
        trained(data.Stream(lambda epoch: source(), samples=ROWS, window=40))
    assert not [thread for thread in threading.enumerate() if thread.name == "xnn reader"]


def test_a_generator_that_has_one_epoch_is_told_from_one_that_is_too_short():
    stream = data.Stream(generator(X, Y, epochs=1), samples=ROWS, window=40)
    with pytest.raises(
        DataError, match=r"ended after 0 samples of a later epoch: an iterator goes on .* give a function"
    ):
        trained(stream)
    with pytest.raises(DataError, match=r"ended after 203 samples: give the samples of an epoch as samples="):
        trained(data.Stream(generator(X, Y, epochs=1), samples=ROWS + 1, window=40))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: data.Stream(3), "source must be an iterable"),
        (lambda: data.Stream(X), "source must be an iterable"),
        (lambda: data.Stream(generator(X, Y)), "samples, the number"),
        (lambda: data.Stream(lambda epoch: [], window=5), "samples, the number"),
        (lambda: data.Stream(batches(X, Y), window=0), "window"),
        (lambda: trained(data.Stream(batches(X, Y), window=7)), "a batch of 8 is larger than the window"),
    ],
)
def test_wrong_options(make, said):
    with pytest.raises(OptionError, match=said):
        make()


@pytest.mark.parametrize("window", [10, 20])
@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.full((10, 1), 300), np.ones(10, np.uint8)),
        (np.ones((10, 2), np.uint8), np.ones(10, np.uint8)),
        (np.ones((10, 1), np.uint8), np.ones(10)),
    ],
)
def test_a_later_batch_of_another_dtype_or_shape_ends_the_fit(x, y, window):
    """Rows of all windows come into one array: 300 must not become 44 in one of uint8."""
    given = [(np.arange(10, dtype=np.uint8)[:, None], np.zeros(10, np.uint8)), (x, y)]
    model = xnn.Sequential(layers.Embedding(400, 4), layers.Flatten(), layers.Dense(4, 2), seed=0)
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
    with pytest.raises(ShapeError, match=r"gave .* after uint8\[10, 1\] and uint8\[10\]"):
        trainer.fit(data.Stream(given, window=window), batch_size=5, progress=False)


def test_a_generator_is_not_read_twice():
    given = data.Stream(generator(X, Y), samples=ROWS, window=50)
    trained(given)
    with pytest.raises(DataError, match="can be read once, and 456 samples of it were read"):
        trained(given)


def test_samples_that_are_left_out_are_told_of(capsys):
    trained(data.Stream(batches(X, Y), samples=200), epochs=3)
    assert capsys.readouterr().err.count("has more samples than 200") == 1


@pytest.mark.parametrize("once", [False, True])
def test_a_divergence_is_named(once):
    source = generator(X * 1e18, Y) if once else batches(X * 1e18, Y)
    said = []
    for given in (data.Stream(source, samples=ROWS, window=ROWS), (X * 1e18, Y)):
        with pytest.raises(DivergenceError) as caught, pytest.warns(xnn.errors.ScaleWarning):
            trained(given, rate=1e5)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_divergence_in_a_stream_that_cannot_be_read_again_is_told_of():
    given = data.Stream(generator(np.concatenate([X[:190], X[190:] * 1e38]), Y), samples=ROWS, window=8)
    with pytest.raises(DivergenceError, match=r"in steps 1 to 26 \(epoch 1\)\. window 0 of Stream"):
        trained(given, rate=1e2)


@pytest.mark.slow
def test_the_memory_does_not_grow_with_the_samples(monkeypatch):
    monkeypatch.setattr(reader, "_BYTES", 2**14)

    def peak(samples):
        def source(epoch):
            for _ in range(0, samples, 100):
                yield np.zeros((100, 50), np.float32), np.zeros(100, np.uint8)

        model = xnn.Sequential(layers.Dense(50, CLASSES), seed=1)
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
        tracemalloc.start()
        trainer.fit(data.Stream(source, samples, window=500), batch_size=100, progress=False)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1000)
    assert peak(100_000) < peak(20_000) + 2**18  # and the samples have 4 and 20 MB
