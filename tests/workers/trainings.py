"""Small trainings for the tests of ranks, and what is compared of them."""

from __future__ import annotations

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers
from xnn.backends.ranks.threads import in_threads
from xnn.benchmarks.exactness.networks import SMALL
from xnn.layers.files import weights_sha256

BATCH = 32
#: The networks of the digest matrix, each with its number; .ci/full takes them all.
NUMBERED = [
    pytest.param(place, name, id=name, marks=[pytest.mark.slow] * (place not in (3, 5, 11)))
    for place, name in enumerate(SMALL)
]


def outcome(trainer, history, data):
    """Everything that a training gives: digests, history, evaluation and predictions."""
    model = trainer.model
    with xnn.numerics(trainer.numerics):
        predicted = np.asarray(model.predict(data[0])).tobytes()
    return {
        "weights": weights_sha256(model),
        "losses": history.losses_sha256,
        "epochs": history.epochs,
        "steps": history.steps,
        "samples": history.samples,
        "buffers": [model.backend.to_host(b.value).tobytes() for b in model.buffers()],
        "averages": [model.backend.to_host(a).tobytes() for a in trainer.optimizer.averages.values()],
        "tested": trainer.evaluate(data[:2]),
        "predicted": predicted,
    }


def small(name, mode, epochs=1, batch_size=BATCH):
    """Train one of the networks of the digest matrix; the trainer and what it gave."""
    network = SMALL[name]
    model, loss, optimizer = network.build()
    data = network.data()
    trainer = xnn.Trainer(model, loss, optimizer, network.metrics, numerics=mode)
    weights = data[2] if len(data) > 2 else None
    history = trainer.fit(
        data[:2],
        validation=data,
        epochs=epochs,
        batch_size=batch_size,
        sample_weight=weights,
        seed=5,
        progress=False,
    )
    return trainer, outcome(trainer, history, data)


def digits(n=160):
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (n, 20), dtype=np.uint8), rng.integers(0, 4, n)


def mlp(*between, optimizer=None, seed=1, **options):
    """A Trainer of a small network on bytes. between: layers before the last one."""
    parts = between or (layers.Dense(20, 12), layers.ReLU(), layers.Dense(12, 8), layers.ReLU())
    model = xnn.Sequential(layers.Rescale(1 / 255), *parts, layers.Dense(8, 4), seed=seed)
    return xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizer or optimizers.SGD(0.1), **options)


def on_each(size, work):
    """What `work` gives on each rank; checks that all but the ranks' own numbers are the same."""
    found = in_threads(size, lambda ranks: work())
    assert all(repr(one) == repr(found[0]) for one in found)
    return found[0]


def steps_and_messages(make, size, data, **options):
    """How many messages each step of a fit sends, without those before and after an epoch."""

    def work(ranks):
        counts = []
        for epochs in (1, 2):
            before = ranks.messages.copy()
            history = make().fit(data, epochs=epochs, progress=False, shuffle=False, **options)
            counts.append((history.steps, ranks.messages - before))
        (few, short), (many, long) = counts
        return many - few, long - short

    found = in_threads(size, work)
    assert all(one == found[0] for one in found)
    return found[0]
