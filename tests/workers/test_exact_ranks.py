"""In exact numerics any number of ranks gives the bits of one process: weights, losses, history, predictions."""

import pytest
from trainings import NUMBERED, digits, mlp, on_each, outcome, small, steps_and_messages

from xnn import callbacks, initializers, layers, ops, optimizers, schedules

SIZES = (2, 3, 7, 13)


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("place", "name"), NUMBERED)
def test_a_network_of_the_digest_matrix(place, name):
    alone = small(name, "exact")[1]
    assert on_each(SIZES[(place + place // 4) % 4], lambda: small(name, "exact")[1]) == alone


@pytest.mark.parametrize(
    ("kernels", "size"), [*(("auto", n) for n in SIZES), *(("numpy", n) for n in SIZES), ("ops", 2)]
)
def test_a_network_of_dense_layers_by_all_kernels(size, kernels):
    data = digits()

    def train():
        trainer = mlp(numerics="exact", kernels=kernels)
        history = trainer.fit(data, validation=data, epochs=2, batch_size=30, progress=False)
        return outcome(trainer, history, data)

    assert on_each(size, train) == train()


def test_what_trains_besides_the_weights():
    """Clipping, averages, schedules, dropout, batch norm, early stopping, and batches smaller than the ranks."""
    data = digits(100)  # the last batch has 4 rows, and there are 5 ranks
    other = data[0], (data[1] + 1) % 4  # which gets worse

    def train():
        between = (
            layers.Dense(20, 8), layers.BatchNorm(8), layers.Dropout(0.3), layers.LayerNorm(8), layers.ReLU(),
        )  # fmt: skip
        rate = schedules.Cosine(0.05, steps=30)
        optimizer = optimizers.AdamW(rate, weight_decay={"weight": 0.01}, clip_norm=0.5, average=0.9)
        stopper = callbacks.EarlyStopping(patience=2)
        trainer = mlp(*between, optimizer=optimizer, numerics="exact", callbacks=[stopper])
        history = trainer.fit(data, validation=other, epochs=9, batch_size=32, progress=False)
        return outcome(trainer, history, data), stopper.best_epoch, history.stopped

    alone = train()
    assert alone[2]  # it was stopped
    assert on_each(5, train) == alone


def test_parameters_that_compute_uses_by_itself():
    class Scaled(layers.Composite):
        def __init__(self):
            super().__init__()
            self.weight = layers.Parameter("weight", (8, 8), initializers.Glorot())
            self.scale = layers.Parameter("scale", (8,), initializers.Constant(0.5))

        def compute(self, x):
            return (x @ self.weight) * self.scale + self.scale

    data = digits()

    def train():
        trainer = mlp(
            layers.Dense(20, 8), layers.Tanh(), Scaled(), numerics="exact", metrics=["accuracy", "f1"]
        )
        return outcome(trainer, trainer.fit(data, epochs=2, progress=False), data)

    assert on_each(3, train) == train()


@pytest.mark.parametrize("kernels", ["auto", "numpy"])
def test_a_step_of_dense_layers_sends_two_messages(kernels):
    def make():
        return mlp(optimizer=optimizers.Adam(0.01), kernels=kernels, metrics=[], numerics="exact")

    steps, messages = steps_and_messages(make, 2, digits(), batch_size=32)
    assert (messages["maximum"], messages["sum"]) == (steps, steps)


def test_batch_normalization_sends_six_more():
    def make():
        return mlp(layers.Dense(20, 8), layers.BatchNorm(8), layers.ReLU(), metrics=[], numerics="exact")

    steps, messages = steps_and_messages(make, 3, digits(), batch_size=32)
    assert messages["maximum"] + messages["sum"] == 8 * steps


def test_a_layer_that_is_used_twice_is_computed_by_ops():
    """Its two gradients are added within the step, so that no kernel may leave them for later."""

    class Twice(layers.Composite):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(8, 8)

        def compute(self, x):
            return self.dense(ops.tanh(self.dense(x)))

    data = digits()

    def train():
        trainer = mlp(layers.Dense(20, 8), Twice(), numerics="exact")
        return outcome(trainer, trainer.fit(data, epochs=2, progress=False), data)

    assert on_each(3, train) == train()
