"""What was changed between two calls of `predict` counts in the second one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from predicted_models import CATALOGUE, ROWS, TABLES, by, close, dense, write_into_weights

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.layers import prediction


@pytest.fixture(autouse=True)
def every_model_has_programs(monkeypatch):
    """Those of dense layers, too, which are as fast by ops."""
    monkeypatch.setattr(prediction, "_LIGHT", frozenset())


def assign_weights(model):
    model[0].weight.value = model[0].weight.value * 2.0


def assign_other_layout(model):
    model[0].weight.value = np.asfortranarray(model[0].weight.value * 2.0)


def write_into_another_layout(model):
    assign_other_layout(model)
    model.predict(ROWS[:3])
    write_into_weights(model)


def write_into_statistics(model):
    for buffer in model.buffers():
        buffer.value[...] += 0.5


def assign_statistics(model):
    model[1].running_mean.value = np.arange(9, dtype=np.float32)


def write_into_assigned_statistics(model):
    assign_statistics(model)
    model.predict(ROWS[:3])
    write_into_statistics(model)


def train(model):
    optimizer = optimizers.SGD(0.5)
    xnn.Trainer(model, losses.MSE(), optimizer).fit((ROWS[:64], ROWS[:64, :9]), epochs=2)


def train_by_hand(model):
    loss = losses.MSE()
    loss.forward(model.forward(ROWS, training=True), ROWS[:, :9])
    model.backward(loss.backward())
    optimizers.SGD(0.5).step(model.parameters())


def statistics_of_a_batch(model):
    model.forward(ROWS * 3.0, training=True)


def load_other_weights(model):
    other = copy.deepcopy(model)
    write_into_weights(other)
    for (_, mine), (_, theirs) in zip(model.named_state(), other.named_state(), strict=True):
        mine.value = np.array(theirs.value)


#: Made before the models are, so that nothing is assigned when they are put into one.
SPARE = layers.Tanh(), layers.Sigmoid(), layers.Dense(9, 9, seed=5)


def add_a_layer(model):
    model.layers.append(SPARE[0])


def replace_a_layer(model):
    model.layers[2] = SPARE[1]


def replace_an_inner_layer(model):
    model[3].layers[0] = SPARE[2]


def assign_layers(model):
    model.layers = [*model.layers, layers.Dense(9, 2)]


def assign_an_option(model):
    model[1].epsilon = 3.0


def replace_a_method(model):
    model[2].compute = lambda x, training: ops.tanh(x)


def replace_an_op(model):
    model[2].op = ops.tanh


CHANGES = (
    assign_weights, assign_other_layout, write_into_weights, write_into_another_layout, write_into_statistics,
    assign_statistics, write_into_assigned_statistics, train, train_by_hand, statistics_of_a_batch,
    load_other_weights, add_a_layer, replace_a_layer, replace_an_inner_layer, assign_layers, assign_an_option,
    replace_a_method, replace_an_op,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_between_two_calls_counts(change):
    model = dense(layers.BatchNorm(9), layers.ReLU(), xnn.Sequential(layers.Dense(9, 9), layers.Softplus()))
    before = [model.predict(ROWS[:count]) for count in (1, 40)]
    held = [(array.value, array.value.copy()) for _, array in model.named_state()]
    change(model)
    for old in before:
        new, x = model.predict(ROWS[: len(old)]), ROWS[: len(old)]
        close(new, by("ops", model, x))
        assert new.shape != old.shape or not np.allclose(new, old, rtol=1e-4)
    if change.__name__.startswith("assign"):  # the arrays from before are the user's
        assert all(np.array_equal(array, copied) for array, copied in held)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kernels", TABLES)
@pytest.mark.parametrize("name", [name for name in CATALOGUE if name not in ("nothing", "reshape alone")])
def test_numbers_written_into_an_array_count_in_every_layer(name, kernels):
    make, x = CATALOGUE[name]
    model = make()
    by(kernels, model, x[:5])
    for array in [array for _, array in model.named_state()]:
        array.value[...] = array.value * np.float32(1.25) + np.float32(0.125)
        close(by(kernels, model, x[:5]), by("ops", model, x[:5]))


class Switch(layers.Layer):
    """A layer of a user's, which reads what no assignment tells of."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def compute(self, x):
        return x * self.state["factor"] if self.state["on"] else ops.tanh(x)


class Looks(layers.Layer):
    def compute(self, x):
        return x if float(np.asarray(x.value).max()) > 0 else x * 2.0


class Scaled(xnn.Op):
    factor = 1.0

    def forward(self, xp, x):
        return x * self.factor, None

    def backward(self, xp, grad, saved):
        return (grad * self.factor,)


class Own(xnn.Sequential):
    def __eq__(self, other):
        return False

    __hash__ = None

    def compute(self, x, training):
        return super().compute(x, training) * FACTOR[0]


FACTOR = [1.0]


def test_code_of_the_users_runs_at_each_call():
    state = {"on": True, "factor": 2.0}
    model = dense(Switch(state))
    first = model.predict(ROWS[:4])
    state["factor"] = 4.0
    assert np.array_equal(model.predict(ROWS[:4]), 2.0 * first)
    state["on"] = False
    np.testing.assert_allclose(model.predict(ROWS[:4]), np.tanh(first / 2.0), rtol=1e-6)

    op = Scaled()
    model = dense(layers.Function(op))
    first = model.predict(ROWS[:4])
    op.factor = 2.0
    assert np.array_equal(model.predict(ROWS[:4]), 2.0 * first)

    model = dense(layers.Lambda(lambda x: x * FACTOR[0]))
    whole = Own(layers.Dense(12, 2), seed=1)
    first, other = model.predict(ROWS[:4]), whole.predict(ROWS[:4])
    FACTOR[0] = 2.0
    assert np.array_equal(model.predict(ROWS[:4]), 2.0 * first)
    assert np.array_equal(whole.predict(ROWS[:4]), 2.0 * other)

    model = dense(layers.ReLU())
    model[1].compute = lambda x, training: x * FACTOR[0]
    first = model.predict(ROWS[:4])
    FACTOR[0] *= 2.0
    assert np.array_equal(model.predict(ROWS[:4]), 2.0 * first)

    lowest = np.full(9, -10.0, np.float32)
    model = dense(layers.Function(ops.clip, min=lowest))
    first = model.predict(ROWS[:4])
    lowest[...] = 0.0
    assert np.array_equal(model.predict(ROWS[:4]), np.maximum(first, 0.0))

    model = xnn.Sequential(Looks())
    assert np.array_equal(model.predict(np.abs(ROWS)), np.abs(ROWS))
    assert np.array_equal(model.predict(-np.abs(ROWS)), -2.0 * np.abs(ROWS))


def test_new_weights_need_no_new_record(monkeypatch):
    model, made = dense(layers.BatchNorm(9)), []
    recorded = prediction._recorded
    monkeypatch.setattr(prediction, "_recorded", lambda *given: made.append(1) or recorded(*given))
    model.predict(ROWS[:5])
    count = len(made)
    assign_weights(model)
    model.predict(ROWS[:5])
    model.predict(ROWS[:5] * 2.0)
    assert len(made) == count == 2
    model[1].epsilon = 1.0
    model.predict(ROWS[:5])
    assert len(made) > count


def test_models_that_share_layers():
    model = dense(layers.ReLU(), layers.Dense(9, 2))
    body = xnn.Sequential(*model[:-1])
    model.predict(ROWS[:5]), body.predict(ROWS[:5])
    write_into_weights(model)
    close(body.predict(ROWS[:5]), by("ops", body, ROWS[:5]))
    close(model.predict(ROWS[:5]), by("ops", model, ROWS[:5]))
