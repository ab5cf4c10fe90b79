"""`xnn train` of files that are read by their rows: its memory does not grow with their features."""

import tracemalloc

import numpy as np
import pytest
from command_line import run

from xnn.backends import row_sources
from xnn.data import arrays, idx, loading, orders, reader, shards, splits, targets

BYTES = 256  # of a sample


def folder(path, x, y):
    path.mkdir()
    np.save(path / "x.npy", x)
    np.save(path / "y.npy", y)


def parts(path, x, y):
    path.mkdir()
    for part, rows in (("train", slice(0, None, 2)), ("val", slice(1, None, 4)), ("test", slice(3, None, 4))):
        np.save(path / f"x_{part}.npy", x[rows])
        np.save(path / f"y_{part}.npy", y[rows])


def classes(x):
    return (x[:, 0] > x[:, 0].mean()).astype(np.int64)


KINDS = {
    "folder": (
        folder,
        classes,
        "float32",
        ("--checkpoint", "run", "--patience", "2", "--class-weight", "balanced"),
    ),
    "archive": (lambda path, x, y: np.savez(f"{path}.npz", x=x, y=y), classes, "float32", ()),
    "parts": (parts, classes, "float32", ()),
    "scaled targets": (folder, lambda x: x[:, 0] * 1000.0, "float32", ("--scale-target",)),
    "augmented images": (folder, classes, "uint8", ("--augment",)),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_grows_with_the_targets_alone(tmp_path, monkeypatch, kind):
    write, targets_of, dtype, options = KINDS[kind]
    monkeypatch.chdir(tmp_path)
    for module in (arrays, shards, loading, idx):
        monkeypatch.setattr(module, "LARGE", 1)
    for module, name, number in (
        (row_sources, "_BLOCK", 2**14),
        (reader, "_BYTES", 2**14),
        (arrays, "_CHUNK", 2**14),
        (orders, "_MOST", 2**12),
        (orders, "_WORDS", 2**12),
        (splits, "_MANY", 2**12),
        (splits, "_BLOCK", 2**12),
        (targets, "_TOGETHER", 2**12),
    ):
        monkeypatch.setattr(module, name, number)
    found = []
    for rows in (500, 3_000, 15_000):
        x = np.random.default_rng(0).integers(0, 200, (rows, BYTES // np.dtype(dtype).itemsize)).astype(dtype)
        path = tmp_path / f"data-{rows}"
        write(path, x, targets_of(x))
        path = path if path.exists() else f"{path}.npz"
        del x
        tracemalloc.start()
        words = [
            "--epochs",
            1,
            "--batch-size",
            1000,
            "--hidden",
            4,
            "--quiet",
            "--kernels",
            "numpy",
            *options,
        ]
        result = run("train", "--dataset", path, *words)
        found.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert result.exit_code == 0, result.output
        for file in tmp_path.glob("run/*"):
            file.unlink()
    a_row = (found[2] - found[1]) / 12_000
    assert a_row < BYTES / 2, found  # of targets, and of the numbers of the rows
