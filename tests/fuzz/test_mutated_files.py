"""Mutated files of every format: each is read, or refused with an XnnError, in little memory."""

from __future__ import annotations

import gzip
import signal
import tracemalloc
from contextlib import contextmanager, suppress

import mutations
import numpy as np
import pytest
from command_line import run
from idx_files import idx

import xnn
from xnn import data, layers, losses, optimizers
from xnn.errors import XnnError
from xnn.layers import files
from xnn.runs import architecture
from xnn.runs.digests import Recorder, read_record

#: Bytes that reading a file may take beside what it holds: each of the base files has less than 10,000.
MOST = 2**26

TOML = """
[[layers]]
type = "Rescale"
scale = 2.0
offset = 1.0
[[layers]]
type = "Reshape"
shape = [1, 2, 3]
[[layers]]
type = "Conv2D"
out_channels = 2
kernel_size = [2, 2]
padding = "same"
weight_init = {type = "He", distribution = "uniform"}
[[layers]]
type = "Sequential"
layers = [{type = "BatchNorm", momentum = 0.2}, {type = "Dropout", rate = 0.25}, {type = "SiLU"}]
[[layers]]
type = "Flatten"
[[layers]]
type = "Add"
layers = [{type = "Identity"}, {type = "Sequential", layers = [{type = "Dense", outputs = 12}]}]
[[layers]]
type = "Function"
op = "tanh"
[[layers]]
type = "Dense"
outputs = "classes"
"""


def network():
    """A model of six features and three classes, with layers of many kinds."""
    return xnn.Sequential(
        layers.Rescale(np.arange(1.0, 7.0), 0.5), layers.Dense(6, 8), layers.BatchNorm(8), layers.LeakyReLU(0.2),
        layers.Add(layers.Identity(), layers.Sequential(layers.Dense(8, 8), layers.Dropout(0.5))),
        layers.Reshape((2, 2, 2)), layers.Conv2D(2, 2, 2, padding="same"), layers.AvgPool2D(2),
        layers.Parallel(layers.Flatten(), layers.Sequential(layers.Flatten(), layers.LayerNorm(2)), axis=1),
        layers.Function(xnn.ops.softplus), layers.Dense(4, 3), seed=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a file of every format."""
    path = tmp_path_factory.mktemp("fuzz")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 6)), np.arange(12) % 3
    model = network()
    notes = {"labels": ["a", "b", "c"], "columns": None, "features": 6, "task": "classification"}
    files.save(model, path / "model.safetensors", notes)
    recorder = Recorder(network())
    rule = optimizers.SGD(0.01)
    xnn.Trainer(recorder.model, losses.SoftmaxCrossEntropy(), rule, callbacks=[recorder]).fit(
        (x, y), batch_size=4, progress=False
    )
    recorder.record.save(path / "record.jsonl")
    (path / "network.toml").write_text(TOML)
    np.save(path / "array.npy", rng.normal(size=(4, 6)))
    np.savez(path / "archive.npz", x=x, y=y)
    pixels = rng.integers(0, 255, (3, 2, 3), dtype=np.uint8)
    (path / "pixels.idx").write_bytes(idx(pixels))
    (path / "pixels.gz").write_bytes(gzip.compress(idx(pixels), mtime=0))
    rows = [
        ",".join(map(str, row)) + f",{'abc'[label]}"
        for row, label in zip(x.round(3).tolist(), y, strict=True)
    ]
    (path / "table.csv").write_text("\n".join(["a,b,c,d,e,f,kind", *rows]) + "\n")
    for name in ("model.safetensors", "array.npy", "pixels.idx"):  # what is imported takes memory, too
        run("predict", path / "model.safetensors", path / name)
    return path


@contextmanager
def bounded():
    """Fails if the block takes more than MOST bytes, or if it hangs."""

    def hangs(*_):
        raise AssertionError("it still reads the file after a minute")

    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, hangs)
        signal.alarm(60)
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)
    assert peak < MOST, f"{peak:,} bytes for a small file"


def load_model(path, folder):
    xnn.load(path).predict(np.ones((2, 6), "float32"))


def predict_with(path, folder):
    return ended(run("predict", path, folder / "table.csv"))


def predict_data(path, folder):
    return ended(run("predict", folder / "model.safetensors", path, "--json"))


def load_data(path, folder):
    data.load(path).rescaling()


def load_idx(path, folder):
    data.read_idx(path)


def read_network(path, folder):
    architecture.read(path).build((6,), 3).predict(np.ones((2, 6), "float32"))


def load_record(path, folder):
    read_record(path)


def verify_record(path, folder):
    return ended(run("verify", path, folder / "record.jsonl"))


def ended(result):
    """Check a command's exit code, and the line of an error; returns the code. It is 1, too, for runs that differ."""
    assert result.exit_code in (0, 1, 2, 4, 6), result.output
    if result.exit_code and not (result.exit_code == 1 and "differ" in result.stdout):
        assert result.stderr.splitlines()[-1].startswith(("xnn: ", "Error: ")), result.output
    return result.exit_code


FORMATS = {
    "model": ("model.safetensors", mutations.safetensors_of, load_model),
    "predict": ("model.safetensors", mutations.safetensors_of, predict_with),
    "record": ("record.jsonl", mutations.record_of, load_record),
    "verify": ("record.jsonl", mutations.record_of, verify_record),
    "toml": ("network.toml", mutations.toml_of, read_network),
    "npy": ("array.npy", mutations.npy_of, predict_data),
    "npz": ("archive.npz", mutations.npz_of, load_data),
    "predict-npz": ("archive.npz", mutations.npz_of, predict_data),
    "idx": ("pixels.idx", mutations.idx_of, load_idx),
    "idx.gz": ("pixels.gz", mutations.idx_gz_of, load_idx),
    "csv": ("table.csv", mutations.csv_of, load_data),
    "predict-csv": ("table.csv", mutations.csv_of, predict_data),
}


@pytest.mark.fuzz(6)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_mutated_file_is_read_or_refused(kind, rng, folder):
    name, mutate, load = FORMATS[kind]
    path = folder / f"mutated-{name}"
    path.write_bytes(mutate(rng, (folder / name).read_bytes()))
    with bounded(), suppress(XnnError):
        load(path, folder)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_file_that_is_mutated_is_read(kind, folder):
    name, _, load = FORMATS[kind]
    assert not load(folder / name, folder)
