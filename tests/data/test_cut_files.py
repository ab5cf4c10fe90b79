"""A mapped file that another process cuts short is an error. The system would end the process that reads on (SIGBUS).

The files here are smaller than a page: without the check, zeros would be read.
"""

import mmap
import os

import numpy as np
import pytest

import xnn
from xnn import data, layers, losses, optimizers
from xnn.backends import row_sources
from xnn.backends.row_sources import Converted, Joined, Selected, check_file, row_blocks, row_range, take_rows
from xnn.data import Batches, reader
from xnn.errors import DataError

ROWS, FEATURES = 60, 4
X = np.random.default_rng(0).standard_normal((ROWS, FEATURES)).astype(np.float32)
Y = np.arange(ROWS) % 3
SAID = r"x\.npy was cut short while it was in use: it has 200 bytes and had 1,088 or more"

SOURCES = {
    "map": lambda x: x,
    "a view": lambda x: np.asarray(x)[3:],
    "joined": lambda x: Joined([X, x]),
    "selected": lambda x: Selected(x, np.arange(ROWS)[::-1]),
    "converted": lambda x: Converted(x, lambda rows: rows * 2),
    "all": lambda x: Converted(Selected(Joined([x, X]), np.arange(ROWS)), lambda rows: rows * 2),
}


@pytest.fixture
def x(tmp_path):
    np.save(tmp_path / "x.npy", X)
    return np.load(tmp_path / "x.npy", mmap_mode="r")


@pytest.fixture(params=SOURCES.values(), ids=SOURCES)
def source(request, x):
    return request.param(x)


def cut(x):
    os.truncate(x.filename, 200)


READS = {
    "rows": lambda source: take_rows(source, np.array([len(source) - 1, 3])),
    "range": lambda source: row_range(source, 0, len(source)),
    "blocks": lambda source: list(row_blocks(source)),
    "batches": lambda source: list(Batches((source,), 8).epoch(0)),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_reading_on_is_an_error(x, source, read):
    read(source)
    cut(x)
    with pytest.raises(DataError, match=SAID):
        read(source)


def trainer_of():
    model = xnn.Sequential(layers.Dense(FEATURES, 3), seed=1)
    return xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))


@pytest.mark.parametrize(
    "use",
    [
        lambda trainer, x: trainer.fit((x, Y), batch_size=8, epochs=9, progress=False),
        lambda trainer, x: trainer.fit((X, Y), validation=(x, Y), epochs=9, progress=False),
        lambda trainer, x: trainer.evaluate((x, Y), batch_size=8),
        lambda trainer, x: trainer.model.predict(x, batch_size=2),
        lambda trainer, x: data.standardize(x),
    ],
    ids=["fit", "validation", "evaluate", "predict", "standardize"],
)
def test_a_file_that_is_cut_while_it_is_used_ends_the_work(monkeypatch, x, use):
    monkeypatch.setattr(reader, "_BYTES", 1)
    monkeypatch.setattr(row_sources, "_BLOCK", 8 * FEATURES)
    reads = []

    def convert(rows):
        reads.append(rows)
        if len(reads) == 12:
            cut(x)
        return rows + 0

    with pytest.raises(DataError, match=SAID):
        use(trainer_of(), Converted(x, convert))


def test_files_that_grow_and_arrays_in_memory_pass(x, tmp_path):
    with open(x.filename, "ab") as file:
        file.write(b"more")
    without_file = np.frombuffer(mmap.mmap(-1, 4096), np.uint8)
    for array in (x, np.asarray(x)[5:], X, X[3:], np.frombuffer(b"1234", np.uint8), without_file):
        check_file(array)
    with open(tmp_path / "bytes", "wb") as file:
        file.write(bytes(9000))
    behind = np.memmap(tmp_path / "bytes", np.uint8, "r", offset=5000)  # maps from the page's beginning
    check_file(behind)
    os.truncate(tmp_path / "bytes", 8999)
    with pytest.raises(DataError, match="bytes was cut short"):
        check_file(behind[:3])
