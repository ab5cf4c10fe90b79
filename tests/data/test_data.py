"""Data sets by name, synthetic digits, and batches that hold every row once."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from idx_files import GOOD, files_in, idx

from xnn.backends import Purpose, Stream
from xnn.data import Batches, Dataset, dataset_names, load, on_disk, synthetic_digits
from xnn.data.splits import split_rows
from xnn.errors import CorruptFileError, DataNotFoundError, OptionError, ShapeError

# ---------------------------------------------------------------- data sets


def rows_of(*arrays):
    """Rows as sorted tuples: equal if and only if the same rows are there, in any order."""
    return sorted(tuple(np.ravel(row).tolist()) for row in itertools.chain(*arrays))


def test_load_csv_regression(tmp_path):
    x = np.arange(90.0).reshape(30, 3)
    y = x[:, 0] / 7
    path = tmp_path / "t.csv"
    np.savetxt(path, np.column_stack([x, y]), delimiter=",", header="a,b,c,target", comments="", fmt="%.17g")
    data = load(path)
    assert (data.name, data.task, data.classes, data.scale) == ("t.csv", "regression", 1, None)
    assert [len(a) for a in data] == [24, 24, 3, 3, 3, 3]
    assert data.y_train.shape == (24, 1)
    assert rows_of(data.x_train, data.x_val, data.x_test) == rows_of(x)
    for features, targets in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        np.testing.assert_array_equal(targets[:, 0], features[:, 0] / 7)  # a row keeps its target
    again = load(str(path))  # a string is a path too, and the split is always the same
    for a, b in zip(data, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_load_csv_classification(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("".join(f"{i},{i % 3}\n" for i in range(30)))
    data = load(path)
    assert (data.task, data.classes) == ("classification", 3)
    assert data.y_train.dtype == np.int64
    np.testing.assert_array_equal(data.x_train[:, 0] % 3, data.y_train)


@pytest.mark.parametrize("text", ["1\n2\n3\n", "1,0\n2,1\n"], ids=["one column", "two rows"])
def test_load_csv_too_small(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(CorruptFileError, match=r"t\.csv"):
        load(path)


def test_load_npz_layouts(tmp_path):
    path = tmp_path / "t.npz"
    x = np.arange(20 * 6, dtype=np.uint8).reshape(20, 2, 3)
    y = np.arange(20) % 2
    np.savez(path, x=x, y=y[:, None])  # a column of labels is as good as a row
    data = load(path)
    assert (data.task, data.scale, data.x_train.dtype) == ("classification", 1 / 255, np.uint8)
    assert [a.shape for a in data] == [(16, 6), (16,), (2, 6), (2,), (2, 6), (2,)]

    np.savez(path, x_train=x, y_train=y, x_test=x[:5], y_test=y[:5])
    data = load(path)
    assert [len(a) for a in data] == [18, 18, 2, 2, 5, 5]
    np.testing.assert_array_equal(data.x_test, x[:5].reshape(5, 6))
    assert rows_of(data.x_train, data.x_val) == rows_of(x)

    parts = {"x_train": x / 2, "x_val": x[:3] / 2, "x_test": x[:5] / 2}
    np.savez(path, **parts, y_train=y / 4, y_val=y[:3] / 4, y_test=y[:5] / 4)
    data = load(path)
    assert (data.task, data.scale) == ("regression", None)
    assert [a.shape for a in data] == [(20, 6), (20, 1), (3, 6), (3, 1), (5, 6), (5, 1)]
    np.testing.assert_array_equal(data.y_val[:, 0], y[:3] / 4)

    np.savez(path, x=x / 2, y=np.column_stack([y / 4, y, y]))
    assert load(path).classes == 3  # targets of three columns: three outputs


X, Y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2


@pytest.mark.parametrize(
    "arrays",
    [
        {"a": X},
        {"x": X},
        {"x_train": X, "y_train": Y},
        {"x": X, "y": Y[:-1]},
        {"x": X[:2], "y": Y[:2]},
        {"x": X, "y": np.array([["cat", "dog"]] * 20)},
        {"x": X.astype(str), "y": Y},
        {"x": X * 1j, "y": Y},
        {"x": np.float64(1.0), "y": Y},
        {"x": X, "y": np.int64(1)},
        {"x_train": X, "y_train": Y[:-1], "x_test": X, "y_test": Y},
        {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y[:-1]},
        {"x_train": X, "y_train": Y, "x_test": X[:, :1], "y_test": Y},
        {"x_train": X, "y_train": Y, "x_test": X.astype(str), "y_test": Y},
        {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 0.5},
        {"x_train": X, "y_train": Y / 4, "x_test": X, "y_test": np.array(["cat", "dog"] * 10)},
        {"x": np.where(X == 5, np.nan, X), "y": Y},
    ],
    ids=[
        "other names", "no y", "no test set", "lengths", "two rows", "two columns of text", "text", "complex",
        "x a number", "y a number", "train lengths", "test lengths", "test width", "text in the test set",
        "half labels in the test set", "text targets in the test set", "NaN",
    ],
)  # fmt: skip
def test_load_npz_refuses(tmp_path, arrays):
    """The error comes when the file is loaded, not after an hour of training."""
    path = tmp_path / "t.npz"
    np.savez(path, **arrays)
    with pytest.raises(CorruptFileError) as caught:
        load(path)
    assert "t.npz" in str(caught.value)


@pytest.mark.parametrize("name", ["nosuch", "mnist.gz", "", "MNIST", "data.parquet"])
def test_load_unknown_name(cache, name):
    with pytest.raises(OptionError) as caught:
        load(name)
    assert all(known in str(caught.value) for known in dataset_names())


def test_load_boston_without_its_file(cache):
    with pytest.raises(DataNotFoundError, match=r"boston_housing\.csv.*XNN_DATA_HOME"):
        load("boston")
    assert "boston" not in on_disk()


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


def test_no_name_and_no_network_is_synthetic(cache, monkeypatch):
    monkeypatch.setattr("xnn.data.datasets._MNIST_MIRRORS", (f"http://127.0.0.1:{closed_port()}/",))
    monkeypatch.setattr("xnn.data.datasets._SYNTHETIC", (60, 20, 20))
    data = load()
    assert data.name == "synthetic"
    assert "synthetic" in data.note
    assert "\n" not in data.note
    assert [len(a) for a in data] == [60, 60, 20, 20, 20, 20]
    assert load("synthetic").note == ""
    with pytest.raises(DataNotFoundError, match="XNN_DATA_HOME"):
        load("mnist")
    assert files_in(cache) == []


@pytest.mark.parametrize("name", ["mnist", None])
def test_damaged_mnist_is_an_error_even_without_a_name(cache, name):
    """A corrupt file is never quietly replaced by another data set."""
    (cache / "mnist").mkdir(parents=True)
    (cache / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(GOOD))
    with pytest.raises(CorruptFileError, match="train-images"):
        load(name)


def write_images(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    x, y = np.zeros((count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(x))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(y))


def test_load_fashion_mnist_from_disk(cache):
    write_images(cache / "fashion-mnist", 20)
    data = load("fashion-mnist")
    assert (data.name, data.x_test.shape, data.scale) == ("fashion-mnist", (20, 784), 1 / 255)
    assert {"fashion-mnist", "synthetic"} == set(on_disk())
    (cache / "fashion-mnist" / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(19, np.uint8)))
    with pytest.raises(CorruptFileError, match="fashion-mnist"):
        load("fashion-mnist")
    (cache / "fashion-mnist" / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(20, 10, np.uint8)))
    with pytest.raises(CorruptFileError, match="fashion-mnist"):
        load("fashion-mnist")


def test_mnist_files_are_not_fashion_mnist(cache, tmp_path, monkeypatch):
    """Both sets have the same file names: MNIST's in the home itself must not be taken for Fashion-MNIST's."""
    monkeypatch.setattr("xnn.data.datasets._FASHION_MIRRORS", (f"http://127.0.0.1:{closed_port()}/",))
    for name in ("home", "mnist"):
        write_images(tmp_path / name, 20)
        with pytest.raises(DataNotFoundError):
            load("fashion-mnist", tmp_path / name)
        assert "fashion-mnist" not in on_disk(tmp_path / name)


@pytest.mark.data
def test_load_mnist():
    data = load("mnist")
    assert [a.shape[0] for a in data] == [50_000, 50_000, 10_000, 10_000, 10_000, 10_000]
    assert data.x_train.shape[1:] == (784,)
    assert (data.x_train.dtype, data.y_train.dtype) == (np.uint8, np.int64)
    assert data.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert (data.name, data.task, data.classes, data.scale) == ("mnist", "classification", 10, 1 / 255)
    assert load().name == "mnist"


@pytest.mark.data
def test_load_boston():
    data = load("boston")
    assert [a.shape for a in data] == [(406, 13), (406, 1), (50, 13), (50, 1), (50, 13), (50, 1)]
    assert (data.task, data.classes) == ("regression", 1)
    targets = np.concatenate([data.y_train, data.y_val, data.y_test])
    assert targets.mean() == pytest.approx(22.5328, abs=1e-4)  # medv's published mean
    assert {"mnist", "boston", "synthetic"} <= set(on_disk())


def test_load_digits():
    sklearn = pytest.importorskip("sklearn.datasets")
    data = load("digits")
    x, y = sklearn.load_digits(return_X_y=True)
    assert (data.name, data.classes, data.scale, data.x_train.dtype) == ("digits", 10, 1 / 16, np.uint8)
    everything = [np.column_stack([data.x_train, data.y_train])]
    everything += [np.column_stack(p) for p in ((data.x_val, data.y_val), (data.x_test, data.y_test))]
    assert rows_of(*everything) == rows_of(np.column_stack([x, y]).astype(int))


def test_rescaling(tmp_path, monkeypatch):
    table = np.column_stack([np.arange(50.0) * 3 + 100, np.full(50, 7.0), np.arange(50.0) / 9])
    np.savetxt(tmp_path / "t.csv", table, delimiter=",")
    data = load(tmp_path / "t.csv")
    scale, offset = data.rescaling()
    z = data.x_train * scale + offset
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(z.std(axis=0), [1, 0], atol=1e-9)  # a constant column has no spread
    monkeypatch.setattr("xnn.data.datasets._SYNTHETIC", (8, 1, 1))
    assert load("synthetic").rescaling() == (1 / 255, 0.0)  # pixels have a fixed scale


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.001, 123456.789, -0.7, 1e30])
@pytest.mark.parametrize("rows", [10, 100])
def test_a_column_that_float32_cannot_tell_from_constant_is_not_scaled(tmp_path, value, rows):
    """The mean of equal numbers may be rounded: then std is not 0, and 1 / std was 3.6e16."""
    wiggle = np.where(np.arange(rows) % 2, 1.0, 1.0 + 1e-9)
    seen = np.where(np.arange(rows) % 2, 1.0, 1.0 + 1e-4)
    columns = np.full(rows, value), value * wiggle, value * seen, np.arange(rows) / 7
    np.savetxt(tmp_path / "t.csv", np.column_stack(columns), delimiter=",", fmt="%.17g")
    data = load(tmp_path / "t.csv")
    scale, offset = data.rescaling()
    assert scale[:2].tolist() == [1.0, 1.0]
    z = data.x_train * scale + offset
    np.testing.assert_allclose(z[:, :2], 0.0, atol=1e-8 * abs(value))
    np.testing.assert_allclose(z[:, 2].std(), 1.0, rtol=1e-6)


def test_a_test_row_does_not_move_the_standardization(tmp_path):
    """The scaling is computed from the training part only."""
    table = np.column_stack([np.arange(50.0), np.arange(50.0) ** 2, np.arange(50.0) / 9])

    def scaling(changed):
        np.savetxt(tmp_path / "t.csv", changed, delimiter=",", fmt="%.17g")
        return load(tmp_path / "t.csv")

    data = scaling(table)
    before = data.rescaling()
    for part, moves in ((data.x_test, False), (data.x_val, False), (data.x_train, True)):
        changed = table.copy()
        changed[int(part[0, 0]), 1] = 1e9
        after = scaling(changed).rescaling()
        assert np.array_equal(before, after) is not moves


@pytest.mark.parametrize("name", [3, b"mnist", ["mnist"], True])
def test_a_name_that_is_none(name):
    with pytest.raises(OptionError, match=r"there is no data set .*; choose mnist"):
        load(name)


# ---------------------------------------------------------------- splits and classes


def test_a_split_without_classes_is_as_it_always_was():
    order = Stream(0, Purpose.SPLIT).permutation(57)
    train, validation, test = split_rows("t", 57, (0.8, 0.1, 0.1))
    assert (test.tolist(), validation.tolist()) == (order[:5].tolist(), order[5:10].tolist())
    assert train.tolist() == order[10:].tolist()


@given(
    st.lists(st.integers(0, 5), min_size=3, max_size=200),
    st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.3, 0.2), (0.34, 0.33, 0.33), (0.98, 0.01, 0.01)]),
    st.integers(0, 3),
)
def test_a_stratified_split(labels, split, seed):
    labels = np.asarray(labels)
    parts = split_rows("t", len(labels), split, seed, labels)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))  # every row once
    plain = split_rows("t", len(labels), split, seed)
    assert [len(part) for part in parts] == [len(part) for part in plain]
    counts = np.bincount(labels)
    tested, held = (np.bincount(labels[part], minlength=len(counts)) for part in (parts[2], parts[1]))
    rest = counts - tested
    for given_, of, whole in ((tested, counts, len(labels)), (held, rest, len(labels) - len(parts[2]))):
        share = of * given_.sum() / whole
        # Where a class keeps its last row, another class gives one more.
        assert np.all(np.abs(given_ - share) < (1.0 if counts[counts > 0].min() >= 10 else 2.0))
    trained = np.bincount(labels[parts[0]], minlength=len(counts))
    assert np.all(trained[counts >= 3] > 0)


def test_a_split_is_a_function_of_its_seed():
    labels = np.arange(40) % 4
    one, again, other = (split_rows("t", 40, (0.5, 0.25, 0.25), seed, labels) for seed in (0, 0, 1))
    assert [a.tolist() for a in one] == [a.tolist() for a in again] != [a.tolist() for a in other]
    assert one[2].tolist() == [12, 37, 27, 21, 34, 10, 35, 33, 4, 32]  # on every machine


@pytest.mark.parametrize("split", [(0.01, 0.01, 0.98), (0.01, 0.98, 0.01)])
def test_nothing_left_to_train_on(split):
    with pytest.raises(CorruptFileError, match="too few"):
        split_rows("t", 4, split)


def write_classes(path, counts, stratify=None, **options):
    rows = [f"{number},{name}" for name, count in counts.items() for number in range(count)]
    path.write_text("\n".join(["a,kind", *rows]) + "\n")
    return load(path, stratify=stratify, **options)


def test_classes_keep_their_shares(tmp_path):
    data = write_classes(tmp_path / "t.csv", {"common": 90, "rare": 10})
    assert {part: counts.tolist() for part, counts in data.class_counts.items()} == {
        "training": [72, 8],
        "validation": [9, 1],
        "test": [9, 1],
    }
    seeds = [write_classes(tmp_path / "t.csv", {"common": 90, "rare": 10}, False, seed=n) for n in range(5)]
    assert len({tuple(data.class_counts["test"].tolist()) for data in seeds}) > 1


def test_the_report_of_classes(tmp_path):
    data = write_classes(tmp_path / "t.csv", {"common": 90, "rare": 10})
    assert data.imbalance == 9.0
    assert data.report().splitlines()[:5] == [
        "t.csv: classification, 1 features",
        "         training  validation  test",
        "samples        80          10    10",
        "common         72           9     9",
        "rare            8           1     1",
    ]
    assert data.report().endswith(data.advice)
    assert "9.0 : 1 (common: 72 training samples, rare: 8): class weights (--class-weight" in data.advice
    balanced = write_classes(tmp_path / "t.csv", {"a": 30, "b": 12})
    assert (balanced.advice, round(balanced.imbalance, 1)) == ("", 2.4)
    few = write_classes(tmp_path / "t.csv", {"a": 20, "b": 20, "c": 1})
    assert "no validation sample of class c; no test sample of class c" in few.advice
    assert "20.0 : 1" not in few.advice
    assert few.class_counts["training"][2] == 1  # its only row is for training


def test_the_report_of_a_regression(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,price\n" + "".join(f"{n},{n / 4}\n" for n in range(20)))
    data = load(path)
    assert (data.class_counts, data.imbalance, data.advice) == ({}, 1.0, "")
    lines = data.report().splitlines()
    assert lines[0] == "t.csv: regression, 1 features"
    assert lines[3].split()[0] == "price"
    assert f"{data.y_train.min():.6g} .. {data.y_train.max():.6g}" in lines[3]


# ---------------------------------------------------------------- synthetic digits


@pytest.mark.parametrize(
    ("seed", "digest"),
    [
        (0, "3406b0a68e375e4642bde569261d50d6af22dd2805ceb5cd17cc2f3ae8a091ce"),
        (5, "c96bc2d23c6e12f97ebc4742abc7622c17bfa5a1c14911dfad28b59abb2c8b6a"),
    ],
)
def test_synthetic_bytes_are_pinned(seed, digest):
    """The bytes are the same on every machine, so that results named "synthetic" can be compared."""
    x, y = synthetic_digits(100, seed)
    assert hashlib.sha256(x.tobytes() + y.astype("<i8").tobytes()).hexdigest() == digest


@pytest.mark.parametrize("count", [0, 1, 3, 257])
def test_synthetic_any_count(count):
    x, y = synthetic_digits(count)
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((count, 784), np.uint8, (count,), np.int64)
    assert all(0 <= label <= 9 for label in y)


@pytest.mark.parametrize("count", [-1, 1.5, True, "10"])
def test_synthetic_refuses(count):
    with pytest.raises(OptionError, match="count"):
        synthetic_digits(count)


def test_synthetic_is_learnable_and_not_trivial():
    x, y = synthetic_digits(3000)
    assert np.bincount(y, minlength=10).min() > 200
    assert len(np.unique(x, axis=0)) == 3000  # no two alike
    train, test = x[:2000].astype(float), x[2000:].astype(float)
    means = np.stack([train[y[:2000] == digit].mean(axis=0) for digit in range(10)])
    guess = np.argmin(((test[:, None] - means) ** 2).sum(axis=2), axis=1)
    assert 0.6 < np.mean(guess == y[2000:]) < 0.99


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("rows", "size"), [(10, 3), (10, 5), (10, 10), (10, 99), (1, 1), (0, 4)])
def test_batches_hold_every_row_once(rows, size, shuffle):
    x, y = np.arange(rows * 2, dtype=np.uint8).reshape(rows, 2), np.arange(rows)
    batches = Batches((x, y), size, shuffle, seed=1)
    got = list(batches.epoch(0))
    assert len(got) == len(batches) == -(-rows // size)
    assert [len(xb) for xb, _ in got] == [size] * (rows // size) + [rows % size] * (rows % size > 0)
    assert all(xb.dtype == np.uint8 for xb, _ in got)
    seen = np.concatenate([yb for _, yb in got]) if got else np.array([], int)
    assert sorted(seen.tolist()) == list(range(rows))
    for xb, yb in got:
        np.testing.assert_array_equal(xb, x[yb])
    if not shuffle:
        assert seen.tolist() == list(range(rows))


def test_batches_order_depends_on_seed_and_epoch_alone():
    x = np.zeros((50, 1))

    def order(size, seed, epoch):
        return np.concatenate(list(Batches((x,), size, seed=seed).numbers(epoch))).tolist()

    assert order(7, 0, 3) == order(50, 0, 3)
    orders = [order(7, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(o) for o in orders}) == 6
    assert list(range(50)) not in orders
    batches = Batches((x,), 7, seed=0)
    list(batches.epoch(0))  # drawing an epoch does not change the next one
    assert batches.order(3).tolist() == order(7, 0, 3)


def test_batches_are_copies():
    x = np.arange(6.0)
    for shuffle in (True, False):
        (first,) = next(Batches((x,), 6, shuffle).epoch(0))
        first += 1
    np.testing.assert_array_equal(x, np.arange(6.0))


def test_batches_gather_on_the_device(lib):
    """No host array reaches the device (array-api-strict would raise), and uint8 stays uint8."""
    x, y = np.arange(44, dtype=np.uint8).reshape(11, 4), np.arange(11)
    device = lib.to_device(x), lib.to_device(y)
    batches = Batches(device, 4, seed=2)
    for rows, (xb, yb) in zip(batches.numbers(1), batches.epoch(1), strict=True):
        assert type(xb) is type(device[0])
        assert xb.device == device[0].device
        assert xb.dtype == device[0].dtype
        np.testing.assert_array_equal(lib.to_host(xb), x[rows])
        np.testing.assert_array_equal(lib.to_host(yb), y[rows])


def test_batches_of_host_and_device_arrays(lib):
    """A batch is on the host or the device as its array is."""
    x, y = np.arange(5.0), lib.to_device(np.arange(5))
    xb, yb = next(Batches((x, y), 3).epoch(0))
    assert isinstance(xb, np.ndarray)
    np.testing.assert_array_equal(xb, lib.to_host(yb))


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "32", None])
def test_batches_refuse_sizes(size):
    with pytest.raises(OptionError, match="batch_size"):
        Batches((np.zeros(3),), size)


def test_batches_refuse_lengths():
    with pytest.raises(ShapeError, match="3 and 4"):
        Batches((np.zeros(3), np.zeros((4, 2))))


@pytest.mark.parametrize("seed", [-1, 1.5, 2**64])
def test_batches_refuse_seeds(seed):
    with pytest.raises(OptionError, match="seed"):
        Batches((np.zeros(3),), 2, seed=seed).order(0)


# ---------------------------------------------------------------- which data set nobody named


def test_part_of_mnist_is_no_reason_for_synthetic_digits(cache, tmp_path, monkeypatch):
    """One file of four is there: the user means MNIST, and is told which is missing."""
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").write_bytes(b"\x00\x00\x08\x01" + bytes(4))
    monkeypatch.setattr("xnn.data.datasets._MNIST_MIRRORS", ("http://127.0.0.1:9/",))
    with pytest.raises(DataNotFoundError, match="train-images"):
        load(None, tmp_path)


# ---------------------------------------------------------------- what is printed


def test_reprs_are_one_line(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.zeros((20, 2, 3), np.uint8), y=np.arange(20) / 7)
    assert repr(load(tmp_path / "t.npz")) == (
        "<Dataset t.npz: 16 training + 2 validation + 2 test samples, (2, 3) uint8, 1 target>"
    )
    assert repr(load("synthetic")).endswith("samples, (784,) uint8, 10 classes>")
    assert repr(Batches((np.zeros((1000, 50)), np.zeros(1000)))) == (
        "Batches(1000 rows, batch_size=32, shuffle=True, seed=0)"
    )


def _dataset(**changed):
    x, y = np.ones((3, 2)), np.array([0, 1, 1])
    parts = {f"{letter}_{name}": a for name in ("train", "val", "test") for letter, a in (("x", x), ("y", y))}
    return Dataset("mine", **{**parts, **changed})


@pytest.mark.parametrize(
    "changed",
    [
        {"task": "clustering"},
        {"x_train": [[1.0, 2.0]] * 3},
        {"y_val": None},
        {"x_val": np.ones((3, 5))},
        {"x_test": np.ones(3)},
        {"y_train": np.array([0, 1])},
        {"y_train": np.array([0.0, 1.0, 1.0])},
        {"y_test": np.array([0, -1, 1])},
        {"y_train": np.array([[0], [1], [1]])},
        {"y_train": np.array(["a", "b", "b"])},
        {"task": "regression"},
        {"x_train": np.full((3, 2), "1")},
    ],
)
def test_a_data_set_of_ones_own_is_checked(changed):
    assert _dataset().classes == 2
    with pytest.raises((OptionError, ShapeError)):
        _dataset(**changed)
