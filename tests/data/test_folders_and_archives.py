"""Large archives and folders of shards, read where they are needed: the results of arrays in memory."""

import json

import numpy as np
import pytest

import xnn
from xnn import data
from xnn.backends.row_sources import RowSource, is_mapped, reads_rows, row_blocks
from xnn.data import arrays, idx, shards, splits
from xnn.data.splits import random_order, take_out
from xnn.data.targets import distinct
from xnn.errors import CorruptFileError, DataNotFoundError, DTypeError, OptionError, ShapeError

ROWS, FEATURES = 240, 6
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((ROWS, FEATURES)) * [1, 10, 100, 0.1, 1, 0] + 3
Y = RANDOM.integers(0, 3, ROWS)
WHOLE = {"x": X, "y": Y}
SPLIT = {"x_train": X[:150], "y_train": Y[:150], "x_test": X[150:], "y_test": Y[150:]}


@pytest.fixture
def large(monkeypatch):
    """Every file is large, and blocks are small."""
    monkeypatch.setattr(shards, "LARGE", 1)
    monkeypatch.setattr(splits, "_BLOCK", 50)
    monkeypatch.setattr(splits, "_MANY", 10)
    monkeypatch.setattr(xnn.backends.row_sources, "_BLOCK", 100)


def one_archive(path, content):
    np.savez(path / "all.npz", **content)
    return path / "all.npz"


def archives(path, content):
    for shard in range(12):  # 10 and 11 come after 2
        parts = {name: np.array_split(array, 12)[shard] for name, array in content.items()}
        np.savez(path / f"part-{shard}.npz", **parts)
    return path


def single_files(path, content):
    for name, array in content.items():
        np.save(path / f"{name}.npy", array)
    return path


def shards_of_files(path, content):
    for name, array in content.items():
        for shard, part in enumerate(np.array_split(array, 3)):
            np.save(path / f"{name}-{shard:04}.npy", part)
    return path


def equal(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(np.asarray(one), other)
        assert one.dtype == other.dtype
    for attribute in ("task", "scale", "labels", "sample_shape", "advice", "note", "classes"):
        assert getattr(found, attribute) == getattr(wanted, attribute)
    layers = found.scaling_layer(), wanted.scaling_layer()
    assert layers[0].config() == layers[1].config()
    for dtype in ("float32", "float64"):
        found.check_range(dtype)


WAYS = [one_archive, archives, single_files, shards_of_files]
CONTENTS = {
    "x, y": WHOLE,
    "split": SPLIT,
    "regression": {"x": X, "y": X[:, :2] * 1.5},
    "pixels": {"x": (X * 2).astype(np.uint8).reshape(ROWS, 3, 2), "y": Y},
    "names": {"x": X.astype(np.float32), "y": np.array(["a", "bc", "d"])[Y]},
    "one-hot": {"x": X, "y": np.eye(3)[Y]},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_large_data_are_those_of_arrays_in_memory(tmp_path, monkeypatch, way, content):
    np.savez(tmp_path / "memory.npz", **content)
    wanted = data.load(tmp_path / "memory.npz")
    (tmp_path / "large").mkdir()
    path = way(tmp_path / "large", content)
    equal(data.load(path), wanted)
    monkeypatch.setattr(shards, "LARGE", 1)
    monkeypatch.setattr(splits, "_BLOCK", 50)
    monkeypatch.setattr(splits, "_MANY", 10)
    monkeypatch.setattr(xnn.backends.row_sources, "_BLOCK", 100)
    found = data.load(path)
    assert reads_rows(found.x_train)
    assert reads_rows(found.x_test)
    equal(found, wanted)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("way", [archives, one_archive])
def test_xnn_train_has_the_same_results(tmp_path, capsys, monkeypatch, way):
    from xnn.cli.train import command

    (tmp_path / "folder").mkdir()
    path, found = way(tmp_path / "folder", WHOLE), []
    for limit in (2**30, 1):
        monkeypatch.setattr(shards, "LARGE", limit)
        options = [
            "--epochs",
            "2",
            "--hidden",
            "8",
            "--json",
            "--record",
            str(tmp_path / f"run{limit}.jsonl"),
        ]
        with pytest.raises(SystemExit) as ended:
            command.main(["--dataset", str(path), *options])
        assert ended.value.code == 0
        result = json.loads(capsys.readouterr().out)
        record = (tmp_path / f"run{limit}.jsonl").read_text(encoding="utf-8")
        found.append(
            ({k: result[k] for k in ("weights_sha256", "losses_sha256", "history", "test_loss")}, record)
        )
    assert found[0] == found[1]


# Faults.


def test_shards_that_would_pair_wrong_rows_are_refused(tmp_path):
    for name, cut in (("x", 100), ("y", 101)):
        np.save(tmp_path / f"{name}-0.npy", WHOLE[name][:cut])
        np.save(tmp_path / f"{name}-1.npy", WHOLE[name][cut:])
    with pytest.raises(CorruptFileError, match=r"shard 0, counted from 0, has x \[100, 6\] and y \[101\]"):
        data.load(tmp_path)


def test_shards_of_other_numbers_are_not_paired(tmp_path):
    for name, numbers in (("x", (0, 1, 3)), ("y", (0, 2, 3))):
        for number, part in zip(numbers, np.array_split(WHOLE[name], 3), strict=True):
            np.save(tmp_path / f"{name}-{number}.npy", part)
    with pytest.raises(CorruptFileError, match=r"of x is x-1\.npy, and of y it is y-2\.npy"):
        data.load(tmp_path)
    (tmp_path / "x-1.npy").rename(tmp_path / "x-0002.npy")
    equal(data.load(tmp_path), data.load(one_archive(tmp_path.parent, WHOLE)))


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (X[:5, :4], "part 1 holds float64"),
        (X[:5].astype("f4"), "part 1 holds float32"),
        (np.float64(3), "single"),
    ],
)
def test_shards_that_do_not_fit_together_are_refused(tmp_path, second, said):
    np.save(tmp_path / "x-0.npy", X)
    np.save(tmp_path / "x-1.npy", second)
    with pytest.raises(CorruptFileError, match=said):
        data.open_arrays(tmp_path)


def test_a_folder_without_arrays_is_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("no arrays")
    with pytest.raises(CorruptFileError, match=r"holds neither \.npy or \.npz files.* nor PNG or JPEG"):
        data.load(tmp_path)
    with pytest.raises(DataNotFoundError):
        data.open_arrays(tmp_path / "none.npz")


@pytest.mark.usefixtures("large")
def test_faults_in_large_files_are_named(tmp_path):
    wrong = X.copy()
    wrong[200, 2] = np.nan
    with pytest.raises(CorruptFileError, match="the features of sample 200 hold NaN"):
        data.load(shards_of_files(tmp_path, {"x": wrong, "y": Y}))
    path = tmp_path / "x-0001.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptFileError, match="announces float64"):
        data.load(tmp_path)


# Arrays and maps.


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f4", ">f8", "u1", "i8", "U3"])
def test_members_of_an_archive_are_mapped_where_they_lie(tmp_path, dtype, order):
    x = np.asarray(X.astype(dtype), order=order)
    np.savez(tmp_path / "a.npz", odd=np.zeros(3, "u1"), x=x, none=np.zeros((0, 2)), number=np.float32(2.5))
    found = data.open_arrays(tmp_path / "a.npz", mapped=True)
    assert is_mapped(found["x"])
    for name, wanted in (("x", x), ("odd", np.zeros(3, "u1")), ("none", np.zeros((0, 2))), ("number", 2.5)):
        assert np.array_equal(found[name], wanted)
        assert found[name].shape == np.shape(wanted)
    np.savez_compressed(tmp_path / "b.npz", x=x)
    packed = data.open_arrays(tmp_path / "b.npz", mapped=True)["x"]
    assert not is_mapped(packed)
    assert np.array_equal(packed, x)


@pytest.mark.parametrize("code", [0x08, 0x0D])
def test_a_large_idx_file_is_mapped(tmp_path, monkeypatch, code):
    kind = ">f4" if code == 0x0D else "u1"
    wanted = (X * 10).astype(kind)
    header = bytes([0, 0, code, 2, *ROWS.to_bytes(4, "big"), *FEATURES.to_bytes(4, "big")])
    (tmp_path / "x").write_bytes(header + wanted.tobytes())
    assert not is_mapped(data.read_idx(tmp_path / "x"))
    monkeypatch.setattr(idx, "LARGE", 1)
    found = data.read_idx(tmp_path / "x", shape=(None, FEATURES))
    assert is_mapped(found)
    assert np.array_equal(found, wanted)
    with pytest.raises(CorruptFileError, match="another checksum"):
        data.read_idx(tmp_path / "x", sha256="0" * 64)
    (tmp_path / "x").write_bytes(header + wanted.tobytes() + b"1")
    with pytest.raises(CorruptFileError, match="longer"):
        data.read_idx(tmp_path / "x")


def test_shards_of_paths_and_arrays(tmp_path):
    np.save(tmp_path / "x.npy", X)
    found = data.Shards([tmp_path / "x.npy", X[:3], data.Shards([X[3:5]])])
    assert np.array_equal(found, np.concatenate([X, X[:5]]))
    assert isinstance(found, RowSource)
    assert np.array_equal(
        np.concatenate([block for _, block in row_blocks(found)]), np.concatenate([X, X[:5]])
    )
    with pytest.raises(ShapeError):
        data.Shards([tmp_path / "x.npy", X[:, :2]])


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ("x.npy", OptionError, "list of arrays or paths"),
        (np.zeros((2, 3)), OptionError, "list of arrays or paths"),
        ([np.ma.array([1.0, 2.0], mask=[False, True])], DTypeError, "part 0 has 1 masked values"),
        ([X, 3.0], ShapeError, "part 1 is a single number"),
        ([np.float64(3)], ShapeError, "part 0 is a single number"),
        ([[[1, 2], [3]]], ShapeError, "part 0 has rows of different lengths"),
        ([None], DTypeError, "part 0 must be an array"),
    ],
)
def test_what_is_no_shard_is_refused(given, kind, said):
    with pytest.raises(kind, match=said):
        data.Shards(given)


def test_shards_of_both_byte_orders_are_joined(tmp_path):
    np.save(tmp_path / "x.npy", X.astype(">f8"))
    found = data.Shards([tmp_path / "x.npy", X])
    assert found.dtype == np.float64
    assert np.array_equal(found, np.concatenate([X, X]))


def test_blocks_change_no_split(monkeypatch):
    labels, wanted = RANDOM.integers(0, 5, 1000) ** 2, []
    for block, many in ((10**6, 10**6), (7, 1)):
        monkeypatch.setattr(splits, "_BLOCK", block)
        monkeypatch.setattr(splits, "_MANY", many)
        order = random_order(3, 1000)
        wanted.append([part.tolist() for part in (order, *take_out(order, 99, labels), *take_out(order, 5))])
    assert wanted[0] == wanted[1]


def test_distinct_targets_in_parts(monkeypatch):
    monkeypatch.setattr(xnn.data.targets, "_TOGETHER", 7)
    for y in (Y, X, np.array(["b", "a", "b"] * 9)):
        assert np.array_equal(distinct(y), np.unique(y))
    assert arrays.LARGE == 2**30
