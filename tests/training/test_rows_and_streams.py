"""Everything that a fit does with arrays, it does with shards and streams, to the bit."""

import numpy as np
import pytest

import xnn
from xnn import callbacks, data, layers, losses, optimizers
from xnn.errors import ShapeError

ROWS, CLASSES = 303, 3
X = np.random.default_rng(0).standard_normal((ROWS, 5)).astype(np.float32)
Y = np.arange(ROWS) % CLASSES
W = np.random.default_rng(1).random(ROWS) * (np.arange(ROWS) % 7 > 0)


def shards(*arrays):
    return tuple(data.Shards([array[:100], array[100:]]) for array in arrays)


def stream(*arrays, window=ROWS):
    parts = [tuple(array[start : start + 17] for array in arrays) for start in range(0, ROWS, 17)]
    return data.Stream(parts, window=window)


def trained(given, validation=None, norm=False, optimizer=None, loss=None, watchers=(), **options):
    model = xnn.Sequential(
        layers.Dense(5, 8),
        *([layers.BatchNorm(8)] if norm else []),
        layers.Tanh(),
        layers.Dense(8, CLASSES),
        seed=1,
    )
    built = {name: options.pop(name) for name in ("metrics", "threads", "numerics") if name in options}
    trainer = xnn.Trainer(
        model,
        loss or losses.SoftmaxCrossEntropy(),
        optimizer or optimizers.SGD(0.1, momentum=0.9),
        callbacks=[watcher() for watcher in watchers],
        **built,
    )
    options = {"epochs": 3, "batch_size": 20, "seed": 3, "progress": False} | options
    history = trainer.fit(given, validation=validation, **options)
    entries = [
        {name: np.asarray(value).tolist() for name, value in entry.items()} for entry in history.epochs
    ]
    state = [array.value.tobytes() for array in (*model.parameters(), *model.buffers())]
    return history.losses_sha256, entries, state


CASES = {
    "batch normalization": {"norm": True},
    "a last batch of one row": {"norm": True, "batch_size": 151},
    "all samples in a step": {"batch_size": 999},
    "threads by measuring": {"threads": "auto", "numerics": "exact"},
    "LBFGS": {"optimizer": optimizers.LBFGS},
    "class weights": {"loss": lambda: losses.SoftmaxCrossEntropy(class_weight=[1.0, 2.0, 3.0])},
    "metrics": {"metrics": ["accuracy", "f1"], "validates": True},
    "early stopping": {
        "watchers": [lambda: callbacks.EarlyStopping("val_loss", patience=1)],
        "validates": True,
    },
    "sample weights": {"weights": True, "validates": True},
    "sample and class weights": {
        "weights": True,
        "loss": lambda: losses.SoftmaxCrossEntropy(class_weight=[1.0, 2.0, 3.0]),
    },
}


@pytest.mark.parametrize("source", [shards, stream])
@pytest.mark.parametrize("case", CASES)
def test_a_fit_on_rows_is_that_on_arrays(case, source):
    if case == "LBFGS":
        pytest.importorskip("scipy")
    options = {**CASES[case]}
    weights, validates = options.pop("weights", False), options.pop("validates", False)
    found = []
    for make in (lambda *arrays: arrays, source):
        given, more = make(X, Y), {**options}
        if weights and source is stream and make is stream:
            given = stream(X, Y, W)
        elif weights:
            more["sample_weight"] = make(W)[0]
        if validates:
            more["validation"] = (X, Y, W) if make is not stream else stream(X, Y, W, window=50)
        for name in ("optimizer", "loss"):
            if name in more:
                more[name] = more[name]()
        try:
            found.append(trained(given, **more))
        except ShapeError as error:
            found.append(str(error))
    assert found[0] == found[1]
    assert isinstance(found[0], str) is (case == "a last batch of one row")


def test_without_shuffling_an_optimizer_over_all_the_data_reads_small_windows():
    pytest.importorskip("scipy")
    one, other = ({"optimizer": optimizers.LBFGS()} for _ in range(2))
    assert trained((X, Y), **one) == trained(stream(X, Y, window=50), **other)
