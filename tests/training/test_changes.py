"""What changes between two steps: assignments by callbacks, and buffers that a layer keeps."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

import xnn
from xnn import initializers, layers, losses, ops, optimizers
from xnn.callbacks import Callback
from xnn.errors import DivergenceError, OptionError
from xnn.training.trace import _same


@pytest.fixture(params=["numpy", "compiled"])
def kernels(request):
    if request.param == "compiled":
        pytest.importorskip("numba")
    return request.param


class TestWhatCallbacksAssign:
    """What `on_step` assigns takes effect at the next step, with every table of kernels, as by hand."""

    CHANGES: ClassVar = {
        "value": lambda t: setattr(t.model.layers[1].weight, "value", np.zeros((3, 2), np.float32)),
        "value of a frozen one": lambda t: setattr(t.model.layers[0].weight, "value", np.zeros((4, 3), "f4")),
        "frozen": lambda t: setattr(t.model.layers[1].weight, "frozen", True),
        "thawed": lambda t: setattr(t.model.layers[0].weight, "frozen", False),
        "momentum": lambda t: setattr(t.optimizer, "momentum", 0.9),
        "rate": lambda t: setattr(t.optimizer, "learning_rate", 0.02),
        "decay": lambda t: setattr(t.optimizer, "weight_decay", 0.5),
        "clipping": lambda t: setattr(t.optimizer, "clip_norm", 0.01),
    }

    def parts(self):
        model = xnn.Sequential(layers.Dense(4, 3, seed=2), layers.Dense(3, 2, seed=1))
        for parameter in model.layers[0].parameters():
            parameter.frozen = True
        return model, losses.MSE(), optimizers.SGD(0.1)

    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.usefixtures("one_thread")
    def test_takes_effect_at_the_next_step(self, change, kernels):
        x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
        y = x[:, :2]
        found = {}

        class Changes(Callback):
            def on_step(self, history, epoch, step, loss):
                seen.append(float(loss))
                if len(seen) == 2:
                    TestWhatCallbacksAssign.CHANGES[change](trainer)

        for table in ("ops", kernels):
            seen = []
            trainer = xnn.Trainer(*self.parts(), callbacks=[Changes()], kernels=table)
            trainer.fit((x, y), epochs=2, batch_size=16, shuffle=False, progress=False)
            found[table] = seen, [p.value for p in trainer.model.parameters()]

        seen = []
        by_hand = SimpleNamespace(**dict(zip(("model", "loss", "optimizer"), self.parts(), strict=True)))
        for start in [*range(0, 64, 16)] * 2:
            rows = slice(start, start + 16)
            seen.append(float(by_hand.loss(by_hand.model(x[rows], training=True), y[rows])))
            by_hand.model.backward(by_hand.loss.backward())
            by_hand.optimizer.step(by_hand.model.parameters())
            if len(seen) == 2:
                self.CHANGES[change](by_hand)
        assert found["ops"][0] == seen
        for table in found:
            np.testing.assert_allclose(found[table][0], seen, rtol=1e-5)
            for array, parameter in zip(found[table][1], by_hand.model.parameters(), strict=True):
                np.testing.assert_allclose(array, parameter.value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("made", ["once, and written to", "at each call"])
def test_arrays_that_a_function_reads_count_from_the_next_step(lib, made):
    """Also arrays of the device, which are compared where they are."""
    weights = [1.0]
    held = lib.to_device(np.ones((1, 2), np.float32))
    losses_seen = []

    class Changes(Callback):
        def on_step(self, history, epoch, step, loss):
            losses_seen.append(loss)
            if step == 2:
                weights[0] = held[...] = 0.0

    def weigh(x):
        return x * (
            lib.to_device(np.full((1, 2), weights[0], np.float32)) if made == "at each call" else held
        )

    x = np.ones((4, 3), np.float32)
    model = xnn.Sequential(layers.Dense(3, 2), layers.Lambda(weigh))
    trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.01), callbacks=[Changes()])
    trainer.fit((x, np.ones((4, 2), np.float32)), batch_size=1, progress=False)
    assert losses_seen[0] != losses_seen[1]
    assert losses_seen[2:] == [1.0, 1.0]


def test_a_constant_with_nan_is_no_change(lib):
    compared = [lib.to_device(np.array([1.0, np.nan, last], np.float32)) for last in (2.0, 2.0, 3.0)]
    assert _same(compared[0], compared[1])
    assert not _same(compared[0], compared[2])
    assert not _same(compared[0], lib.to_device(np.array([1.0, np.nan, 2.0])))


def test_a_buffer_changes_at_the_end_of_the_forward_pass(kernels):
    """A compute that reads a buffer after `keep` reads the same array by hand and in a program."""

    class Centred(layers.Layer):
        def __init__(self):
            super().__init__()
            self.mean = layers.Buffer("mean", (4,), initializers.Zeros())

        def compute(self, x, training):
            if training:
                self.keep([self.mean], moved, ops.mean(x, axis=0))
            return x - self.mean

    def moved(xp, mean, batch):
        return (0.5 * mean + 0.5 * batch,)

    x = np.random.default_rng(0).normal(3.0, size=(48, 4)).astype(np.float32)
    y = x[:, :2]
    model, by_hand = (xnn.Sequential(Centred(), layers.Dense(4, 2), seed=1) for _ in range(2))
    trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.1), kernels=kernels)
    trainer.fit((x, y), batch_size=16, shuffle=False, progress=False)
    loss, rule = losses.MSE(), optimizers.SGD(0.1)
    for start in range(0, 48, 16):
        rows = slice(start, start + 16)
        loss(by_hand(x[rows], training=True), y[rows])
        by_hand.backward(loss.backward())
        rule.step(by_hand.parameters())
    np.testing.assert_allclose(model.layers[0].mean.value, by_hand.layers[0].mean.value, rtol=1e-6)
    np.testing.assert_allclose(model.layers[1].weight.value, by_hand.layers[1].weight.value, rtol=1e-5)


def test_a_dropout_added_later_draws_masks_of_its_own(kernels):
    class Blocks(layers.Layer):
        def __init__(self):
            super().__init__()
            self.blocks = [layers.Dropout(0.5)]

        def compute(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    blocks = Blocks()
    model = xnn.Sequential(blocks, layers.Dense(64, 1, seed=1))
    blocks.blocks.append(layers.Dropout(0.5))
    x = np.ones((8, 64), np.float32)
    xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.0), kernels=kernels).fit((x, x[:, :1]), progress=False)
    first, second = blocks.blocks
    assert first.index != second.index
    model.set_stream(0, 0)
    assert (first.forward(x, training=True) != second.forward(x, training=True)).any()


class Steps(Callback):
    """Notes the losses and calls change(step) after each step."""

    def __init__(self, change):
        self.change, self.losses = change, []

    def on_step(self, history, epoch, step, loss):
        self.losses.append(loss)
        self.change(step)


X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)


def fit(model, optimizer, change, kernels):
    steps = Steps(change)
    trainer = xnn.Trainer(model, losses.MSE(), optimizer, callbacks=[steps], kernels=kernels)
    trainer.fit((X, X[:, :2]), batch_size=16, shuffle=False, progress=False)
    return steps.losses


def by_hand(model, optimizer, change):
    loss, found = losses.MSE(), []
    for step in range(4):
        batch = X[16 * step : 16 * step + 16]
        found.append(float(loss.forward(model.forward(batch, training=True), batch[:, :2])))
        model.backward(loss.backward())
        optimizer.step(model.parameters())
        change(step + 1)
    return found


def same(kernels, build):
    """Whether a fit and steps by hand give the same; build() gives model, optimizer and change."""
    (model, optimizer, change), (other, rule, also) = build(), build()
    np.testing.assert_allclose(
        fit(model, optimizer, change, kernels), by_hand(other, rule, also), rtol=1e-5, atol=1e-6
    )
    for (_, a), (_, b) in zip(model.named_state(), other.named_state(), strict=True):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-4, atol=1e-5)
    assert len(optimizer.averages) == len(rule.averages)
    for a, b in zip(optimizer.averages.values(), rule.averages.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", [lambda: optimizers.SGD(0.1, momentum=0.9), lambda: optimizers.Adam(0.1)])
def test_state_and_averages_that_on_step_assigns(kernels, rule):
    def build():
        model, optimizer = xnn.Sequential(layers.Dense(4, 2), seed=0), rule()
        optimizer.average = 0.5

        def change(step):
            if step == 2:
                optimizer.state.clear()
            if step == 3:
                optimizer.averages[model.layers[0].weight] = np.zeros((4, 2), np.float32)

        return model, optimizer, change

    same(kernels, build)


def test_buffers_and_parameters_of_others_that_on_step_assigns(kernels):
    def build():
        teacher = layers.Dense(4, 2, seed=3)
        for parameter in teacher.parameters():
            parameter.frozen = True

        class Difference(layers.Layer):
            def __init__(self):
                super().__init__()
                self.dense, self.norm = layers.Dense(4, 2), layers.BatchNorm(2)

            def compute(self, x):
                return self.norm(self.dense(x)) - teacher(x)

        model = xnn.Sequential(Difference(), seed=0)

        def change(step):
            teacher.weight.value = np.full((4, 2), float(step), np.float32)
            if step == 3:
                model.layers[0].norm.running_mean.value = np.full(2, 50.0, np.float32)

        return model, optimizers.SGD(0.01), change

    same(kernels, build)


def test_layers_that_on_step_replaces(kernels):
    def build():
        model = xnn.Sequential(layers.Dense(4, 3), layers.ReLU(), layers.Dense(3, 2), seed=0)
        tanh, dense = (
            layers.Tanh(),
            layers.Dense(3, 2, seed=9),
        )  # built before, so that nothing is assigned later

        def change(step):
            if step == 1:
                model.layers[1] = tanh
            if step == 2:
                model.layers[2] = dense

        return model, optimizers.SGD(0.1), change

    same(kernels, build)


class Crossed(xnn.Sequential):
    """A model whose layers are not one behind the other, with a parameter of its own."""

    def __init__(self):
        super().__init__(layers.Dense(4, 2), layers.Dense(4, 2), seed=0)
        self.gain = layers.Parameter("gain", (2,), initializers.Ones())

    def compute(self, x):
        return (self.layers[0](x) - self.layers[1](x)) * self.gain


def test_a_model_with_a_compute_of_its_own_is_replayed_as_it_computes(kernels):
    model = Crossed()
    trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(1e30), kernels=kernels)
    with pytest.raises(DivergenceError, match=r"Crossed|loss|gain|weight"):
        trainer.fit((X, X[:, :2]), batch_size=16, epochs=3, progress=False)


def test_a_loss_that_reads_parameters(kernels):
    def build():
        model = xnn.Sequential(layers.Dense(4, 2), seed=0)
        weight = model.layers[0].weight
        return model, losses.Lambda(
            lambda y, t: ops.mean((y - t) * (y - t)) + 1e3 * ops.sum(weight * weight * weight * weight)
        )

    model, loss = build()
    loss.forward(model.forward(X), X[:, :2])
    with pytest.raises(OptionError, match="lost"):
        loss.backward()
    x, y = xnn.graph.Input(), xnn.graph.Input()
    loss(model(x), y)
    with pytest.raises(OptionError, match="lost"):
        xnn.graph.forward_and_backward(xnn.graph.topological_sort({x: X, y: X[:, :2]}))
    # A replay takes the same steps as the program: the weights are those before the step that failed.
    trainer = xnn.Trainer(model, loss, optimizers.SGD(1e-1), kernels=kernels)
    with pytest.raises(DivergenceError) as raised:
        trainer.fit((X, X[:, :2]), batch_size=16, epochs=9, shuffle=False, progress=False)
    assert 0 < raised.value.history.steps == trainer.step < 4
    other, loss = build()
    xnn.Trainer(other, loss, optimizers.SGD(1e-1), kernels="ops").fit(
        (X[: 16 * trainer.step], X[: 16 * trainer.step, :2]), batch_size=16, shuffle=False, progress=False
    )
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-3)


def test_a_frozen_array_in_another_order_that_on_step_writes_to(kernels):
    def build():
        model = xnn.Sequential(layers.Dense(4, 3), layers.Tanh(), layers.Dense(3, 2), seed=0)
        frozen = model.layers[0].weight
        frozen.frozen, frozen.value = True, np.asfortranarray(frozen.value)

        def change(step):
            frozen.value[:] = 0.1 * step

        return model, optimizers.SGD(0.1), change

    same(kernels, build)


@pytest.mark.parametrize("table", ["ops", "numpy", "compiled"])
def test_what_a_schedule_assigns_to_a_layer_counts_from_the_next_step(table):
    """Also the numbers that the layer draws: a mask of one rate and the scale of another would be wrong."""
    if table == "compiled":
        pytest.importorskip("numba")

    def build():
        dropout = layers.Dropout(0.2)
        model = xnn.Sequential(layers.Dense(4, 32, seed=1), dropout, layers.Dense(32, 2, seed=2))

        def schedule(step):
            if step == 1:
                dropout.rate = 0.8
            return 0.1

        return model, optimizers.SGD(schedule), lambda step: None

    same(table, build)
