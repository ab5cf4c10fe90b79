"""Arrays that are read from files by their rows: the bits of the same arrays in memory, and little memory."""

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers
from xnn.backends import Purpose, Stream, row_sources
from xnn.backends.row_sources import Joined, Selected, is_mapped
from xnn.data import Batches, orders, reader
from xnn.errors import DTypeError, LabelError, ShapeError

ROWS, FEATURES, CLASSES = 300, 5, 3


def arrays(dtype="float32"):
    x = (np.random.default_rng(0).standard_normal((ROWS, FEATURES)) * 3).astype(dtype)
    return x, np.random.default_rng(1).integers(0, CLASSES, ROWS)


def mapped(folder, array, name="x"):
    np.save(folder / f"{name}.npy", array)
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def joined(folder, array, name="x"):
    parts = [
        mapped(folder, part, f"{name}{place}") for place, part in enumerate(np.split(array, [7, 7, 130]))
    ]
    return Joined(parts)


def selected(folder, array, name="x"):
    rows = np.random.default_rng(5).permutation(len(array))
    backwards = np.empty_like(rows)
    backwards[rows] = np.arange(len(rows))
    return Selected(mapped(folder, array[rows], name), backwards)


SOURCES = [mapped, joined, selected]


def trained(x, y, numerics="fast", epochs=2, layer=None, loss=None, **options):
    first = [layer] if layer else []
    model = xnn.Sequential(*first, layers.Dense(FEATURES, 8), layers.ReLU(), layers.Dense(8, CLASSES), seed=1)
    trainer = xnn.Trainer(
        model, loss or losses.SoftmaxCrossEntropy(), optimizers.Adam(0.01), numerics=numerics
    )
    history = trainer.fit((x, y), validation=(x, y), epochs=epochs, seed=4, progress=False, **options)
    outputs = model.predict(x).tobytes()
    return history.losses_sha256, history.epochs, trainer.evaluate((x, y)), outputs


@pytest.mark.sampled(4)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ">f4", "uint8", "int64"])
@pytest.mark.filterwarnings("ignore::xnn.errors.ScaleWarning")
def test_the_bits_are_those_of_arrays_in_memory(tmp_path, source, numerics, dtype):
    x, y = arrays(dtype)
    given = source(tmp_path, x), source(tmp_path, y.astype(np.uint8), "y")
    assert trained(*given, numerics) == trained(x, y, numerics)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_a_first_layer_that_scales_gets_the_numbers_as_they_are(tmp_path, dtype):
    x, y = arrays(dtype)

    def layer():
        shift = np.linspace(1.0, 2.0, FEATURES)
        return (
            layers.Rescale(1 / 255)
            if dtype == "uint8"
            else layers.Rescale(np.full(FEATURES, 0.3), shift=shift)
        )

    given = joined(tmp_path, x), mapped(tmp_path, y, "y")
    assert trained(*given, layer=layer()) == trained(x, y, layer=layer())


def test_sample_weights_and_targets_of_a_regression(tmp_path):
    x, y = arrays()
    y = np.stack([y * 0.1, y * 0.2, -y * 0.3], axis=1)
    weights = np.linspace(0.1, 1.0, ROWS)
    given = [mapped(tmp_path, array, name) for name, array in (("x", x), ("y", y), ("w", weights))]
    options = {"loss": losses.MSE(), "sample_weight": weights}
    assert trained(*given[:2], **options | {"sample_weight": given[2]}) == trained(x, y, **options)


# Checks find the same faults, wherever they are.


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (lambda x, y: x.__setitem__((250, 2), np.nan), DTypeError, "sample 250 holds NaN"),
        (lambda x, y: x.__setitem__((199, 0), 1e300), DTypeError, "sample 199 holds a number too large"),
        (lambda x, y: y.__setitem__(280, 3), LabelError, "rows 250 to 299: labels run from 0 to 3"),
    ],
)
def test_checks_go_through_all_rows(tmp_path, monkeypatch, source, fault, kind, said):
    monkeypatch.setattr(row_sources, "_BLOCK", 50)
    x, y = arrays("float64")
    fault(x, y)
    with pytest.raises(kind, match=said):
        trained(source(tmp_path, x), source(tmp_path, y, "y"))


def test_a_sample_too_large_for_the_model_is_named_by_predict(tmp_path):
    x, _ = arrays("float64")
    x[250, 1] = 1e300
    model = xnn.Sequential(layers.Dense(FEATURES, 1), seed=0)
    with pytest.raises(DTypeError, match=r"a sample holds 1e\+300"):
        model.predict(joined(tmp_path, x))


def test_rows_are_not_read_for_a_check_that_there_is_not():
    class Counts(row_sources.RowSource):
        read = 0

        def take(self, rows):
            self.read += len(rows)
            return np.zeros((len(rows), FEATURES), self.dtype)

    for first, rows in (
        (layers.Dense(FEATURES, FEATURES), 0),
        (layers.Embedding(3, 1), ROWS),
        (layers.Rescale(1 / 255), ROWS),
    ):
        given = Counts((ROWS, FEATURES), np.uint8)
        xnn.Sequential(first, seed=0).prepare(given)
        assert rows <= given.read < rows + 10


# What a RowSource gives.


@pytest.mark.parametrize("source", SOURCES)
def test_rows_are_read_as_of_an_array(tmp_path, source):
    x, _ = arrays()
    given = source(tmp_path, x)
    for key in (slice(3, 140), slice(None, None, 7), [1, 299, 6, 7, 7], -1, 12, np.arange(ROWS) % 5 == 0):
        assert np.array_equal(given[key], x[key]), key
    assert given[[]].shape == (0, FEATURES)
    assert np.array_equal(np.asarray(given), x)
    assert (given.shape, given.ndim, given.size, given.nbytes, len(given)) == (
        x.shape,
        2,
        x.size,
        x.nbytes,
        ROWS,
    )
    if not isinstance(given, np.ndarray):
        for key in ([300], -301, (0, 0), 1.5, [0.5], None, "a", [True, False], True, [[0, 1], [1, 0]]):
            with pytest.raises(IndexError):
                given[key]


def test_arrays_that_do_not_fit_are_not_joined():
    with pytest.raises(ShapeError, match=r"part 1 holds float64\[2, 3\]"):
        Joined([np.zeros((2, 3), np.float32), np.zeros((2, 3))])
    with pytest.raises(ShapeError, match="no arrays"):
        Joined([])


def test_maps_are_told_from_arrays(tmp_path):
    x, _ = arrays()
    given = mapped(tmp_path, x)
    assert is_mapped(given)
    assert is_mapped(np.asarray(given)[3:].reshape(-1, 1))
    assert not is_mapped(x)
    assert not is_mapped(np.array(given))
    assert not is_mapped(3.0)


# Memory.


@pytest.mark.parametrize("rows", [1, 8, 100, 1000, 4097])
def test_an_order_in_pieces_is_the_permutation(monkeypatch, rows):
    monkeypatch.setattr(orders, "_MOST", 64)
    monkeypatch.setattr(orders, "_WORDS", 100)
    stream = Stream(3, Purpose.SHUFFLE, 0, 2)
    pieces = list(orders.permutation_pieces(stream, rows))
    assert np.array_equal(np.concatenate(pieces), stream.permutation(rows))
    assert max(map(len, pieces)) < max(128, rows // 20)
    for shuffle in (False, True):
        batches = Batches((np.zeros(rows),), 7, shuffle, seed=3)
        found = list(batches.numbers(2))
        assert np.array_equal(np.concatenate(found), batches.order(2))
        assert len(found) == len(batches)
        assert {len(batch) for batch in found[:-1]} <= {7}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_memory_of_a_fit_does_not_grow_with_the_rows(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(row_sources, "_BLOCK", 2**14)
    monkeypatch.setattr(reader, "_BYTES", 2**14)
    monkeypatch.setattr(orders, "_MOST", 2**12)
    monkeypatch.setattr(orders, "_WORDS", 2**10)

    def peak(rows):
        x = np.lib.format.open_memmap(tmp_path / f"x{rows}", "w+", dtype, (rows, FEATURES))
        y = np.lib.format.open_memmap(tmp_path / f"y{rows}", "w+", np.uint8, (rows,))
        model = xnn.Sequential(layers.Dense(FEATURES, 8), layers.Dense(8, CLASSES), seed=1)
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
        tracemalloc.start()
        trainer.fit((x, y), validation=(x, y), batch_size=128, progress=False)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2**12)  # what is imported
    small, large = peak(2**14), peak(2**17)  # 128 and 1024 steps
    assert large < small + 2**18  # and the data have 2.6 or 5.2 MB


@pytest.mark.slow
def test_ten_million_rows_train_in_300_megabytes(tmp_path):
    """4 GB of samples, in a file without blocks on the disk."""
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (10_000_000, 100))
    np.lib.format.open_memmap(tmp_path / "y.npy", "w+", np.int64, (10_000_000,))
    command = [
        sys.executable,
        "-m",
        "xnn.benchmarks.studies.large_data",
        "--child",
        "mapped",
        tmp_path,
        "4096",
    ]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    assert 30 < json.loads(done.stdout)["anonymous_mb"] < 300
