"""Ranks whose arrays lie on a device: the messages go by way of the host. In exact numerics backends may be mixed."""

import numpy as np
import pytest
from trainings import digits, mlp, on_each, outcome, steps_and_messages

import xnn
from xnn import layers, losses, optimizers
from xnn.backends import backend
from xnn.backends.ranks.threads import in_threads
from xnn.errors import RankError


def everything(name, **options):
    """A training with dropout, batch normalization, clipping and averages; the last batch is smaller than 3 ranks."""
    data = digits(66)
    with backend(name):
        between = (
            layers.Dense(20, 8, bias=False), layers.BatchNorm(8), layers.Dropout(0.3), layers.LayerNorm(8),
            layers.ReLU(),
        )  # fmt: skip
        optimizer = optimizers.AdamW(0.02, weight_decay={"weight": 0.01}, clip_norm=0.5, average=0.9)
        trainer = mlp(*between, optimizer=optimizer, metrics=["accuracy", "f1"], **options)
        history = trainer.fit(data, validation=data, epochs=2, batch_size=32, progress=False)
        return outcome(trainer, history, data) | {"shared": trainer.predict(data[0], 25).tobytes()}


@pytest.mark.parametrize("kernels", ["auto", "ops"])
def test_exact_numerics_give_the_bits_of_one_process(other, kernels):
    alone = everything("numpy", numerics="exact")
    assert on_each(3, lambda: everything(other.address, numerics="exact", kernels=kernels)) == alone


def test_backends_are_mixed_in_exact_numerics(other):
    alone = everything("numpy", numerics="exact")
    names = other.address, "numpy", other.address
    together = in_threads(3, lambda ranks: everything(names[ranks.rank], numerics="exact"))
    assert together == [alone] * 3


def test_fast_numerics_are_close_to_one_process(other):
    alone = everything(other.address)
    found = on_each(2, lambda: everything(other.address))
    assert found["epochs"][0]["loss"] == pytest.approx(alone["epochs"][0]["loss"], rel=1e-4)
    assert found["tested"]["loss"] == pytest.approx(alone["tested"]["loss"], rel=1e-3)


def test_fast_numerics_refuse_to_mix_backends(other):
    names = "numpy", other.address
    said = "rank 1 of 2 .* has another backend .only exact numerics mix them. than rank 0"
    with pytest.raises(RankError, match=said):
        in_threads(2, lambda ranks: everything(names[ranks.rank]))
    x, _ = digits()

    def predict(ranks):
        with backend(names[ranks.rank]):
            return mlp().predict(x)

    with pytest.raises(RankError, match=said):
        in_threads(2, predict)


def test_a_step_sends_one_message(other):
    def make():
        with backend(other.address):
            return mlp(optimizer=optimizers.Adam(0.01), metrics=[])

    steps, messages = steps_and_messages(make, 2, digits(), batch_size=32)
    assert messages["sum"] == steps
    assert messages["maximum"] == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_metrics_that_need_all_rows_and_weights_of_samples(other, dtype):
    x, y = digits()
    data = (x / 255).astype(dtype), (y[:, None] - np.array([0.0, 1.5])).astype(dtype)

    def train():
        with backend(other.address):
            model = xnn.Sequential(layers.Dense(20, 2, dtype=dtype), seed=1)
            trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.01), metrics=["mae", "mse", "r2"])
            weights = np.linspace(0.5, 2.0, len(x)).astype(dtype)
            history = trainer.fit(data, epochs=2, batch_size=50, sample_weight=weights, progress=False)
            return history.epochs

    for one, alone in zip(on_each(3, train), train(), strict=True):
        assert one == pytest.approx(alone, rel=1e-4)
