"""Orders of samples that a function gives; losses with a penalty beside them; fits with and without callbacks."""

import numpy as np
import pytest

import xnn
from xnn import callbacks, data, layers, losses, ops, optimizers
from xnn.data import Batches
from xnn.errors import OptionError
from xnn.initializers import Zeros
from xnn.schedules import Warmup

X = np.random.default_rng(0).normal(size=(30, 4)).astype("float32")
LABELS = np.arange(30) % 3


def backwards(epoch):
    return np.arange(30)[::-1] if epoch % 2 else np.arange(30)


class Penalized(losses.SoftmaxCrossEntropy):
    """Cross-entropy, and a penalty on the weights of a model."""

    def __init__(self, model):
        super().__init__()
        self._weights = [p for p in model.parameters() if p.name == "weight"]

    def compute(self, outputs, targets):
        squares = [ops.sum(w * w) for w in self._weights]
        return super().compute(outputs, targets) + 0.01 * (squares[0] + squares[1])


def trained(loss=None, watchers=(), kernels="auto", epochs=4, **options):
    model = xnn.Sequential(layers.Dense(4, 5), layers.Tanh(), layers.Dense(5, 3), seed=1)
    loss = losses.SoftmaxCrossEntropy() if loss is None else loss(model)
    trainer = xnn.Trainer(model, loss, optimizers.Adam(0.05), callbacks=watchers, kernels=kernels)
    history = trainer.fit((X, LABELS), epochs=epochs, batch_size=7, progress=False, **options)
    return trainer, history, [p.value.copy() for p in model.parameters()]


def test_a_function_gives_the_order_of_an_epoch():
    batches = Batches((X,), 7, backwards)
    assert np.concatenate(list(batches.numbers(0))).tolist() == [*range(30)]
    assert [len(rows) for rows in batches.numbers(1)] == [7, 7, 7, 7, 2]
    assert batches.order(1).tolist() == [*range(30)][::-1]
    _, _, same = trained(shuffle=lambda epoch: np.arange(30))
    _, _, plain = trained(shuffle=False)
    assert all(np.array_equal(a, b) for a, b in zip(same, plain, strict=True))
    _, _, other = trained(shuffle=backwards)
    assert not np.array_equal(other[0], plain[0])


@pytest.mark.parametrize(
    "order",
    [
        np.arange(29),
        np.arange(31),
        np.zeros(30, int),
        np.arange(30) - 1,
        np.arange(30.0),
        np.arange(30)[:, None],
        None,
    ],
    ids=lambda order: "none" if order is None else f"{order.dtype}{order.shape}",
)
def test_an_order_without_each_row_once_is_refused(order):
    with pytest.raises(OptionError, match="it must return each row number from 0 to 29 once"):
        trained(shuffle=lambda epoch: order)


def test_a_stream_takes_no_function_as_its_order():
    model = xnn.Sequential(layers.Dense(4, 3), seed=1)
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
    stream = data.Stream([(X, LABELS)], 30)
    with pytest.raises(OptionError, match="a stream is shuffled in its windows"):
        trainer.fit(stream, progress=False, shuffle=backwards)


@pytest.mark.parametrize("kernels", ["numpy", "compiled"])
def test_a_loss_and_its_gradient_stay_one_call_beside_a_penalty(kernels):
    if kernels == "compiled":
        pytest.importorskip("numba")
    trainer, history, weights = trained(Penalized, kernels=kernels)
    batches = Batches((X, LABELS), 7)
    calls = [call.kind for call in trainer.stepper(batches).program(7).calls]
    assert calls.count("loss") == 1
    assert calls.index("loss") < calls.index("backward")
    _, slow, expected = trained(Penalized, kernels="ops")
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(history["loss"], slow["loss"], rtol=1e-5)


class OfOutputs(Penalized):
    """Cross-entropy, and a penalty on the outputs and the weights, whose gradients lead to one another."""

    def compute(self, outputs, targets):
        penalty = ops.l2_penalty(outputs, *self._weights, strength=0.1)
        return losses.SoftmaxCrossEntropy.compute(self, outputs, targets) + penalty


@pytest.mark.parametrize("kernels", ["numpy", "compiled"])
def test_the_gradient_of_a_penalty_on_outputs_leads_to_the_weights(kernels):
    if kernels == "compiled":
        pytest.importorskip("numba")
    _, _, weights = trained(OfOutputs, kernels=kernels)
    _, _, expected = trained(OfOutputs, kernels="ops")
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


class Watching(callbacks.Callback):
    """A callback of the user's, which changes nothing."""

    def __init__(self):
        self.kept = []

    def on_epoch_end(self, history, entry):
        self.kept.append(self.model.layers[0].weight.value)


@pytest.mark.parametrize("kernels", ["ops", "numpy"])
def test_a_fit_without_callbacks_has_the_bits_of_one_with_them(kernels):
    watcher = Watching()
    _, plain, weights = trained(kernels=kernels)
    _, watched, others = trained(kernels=kernels, watchers=[watcher])
    assert plain.losses_sha256 == watched.losses_sha256
    assert all(np.array_equal(a, b) for a, b in zip(weights, others, strict=True))
    for n, kept in enumerate(watcher.kept):  # each epoch's weights stay those of that epoch
        assert np.array_equal(kept, trained(kernels=kernels, epochs=n + 1)[2][0])


class Bounded(layers.Layer):
    """y = x + b, written by hand. In validation it brings b back to -0.01 .. 0.01."""

    def __init__(self):
        self.b = layers.Parameter("b", (4,), Zeros())
        super().__init__()

    def forward(self, x, training=False):
        if not training:
            self.b.value = np.clip(self.b.value, -0.01, 0.01)
        return x + self.b.value

    def backward(self, dout, input_gradient=True):
        self.b.grad = dout.sum(axis=0)
        return dout


class Idle(callbacks.Callback):
    """A callback of the user's, which could change anything."""


@pytest.mark.parametrize("kernels", ["ops", "numpy"])
@pytest.mark.parametrize("where", ["a schedule", "a schedule in Warmup", "an order", "a layer"])
def test_what_code_of_the_users_changes_counts_without_a_callback(where, kernels):
    found = []
    for watchers in ([], [Idle()]):
        stack = [Bounded()] if where == "a layer" else []
        model = xnn.Sequential(*stack, layers.Dense(4, 5), layers.Dense(5, 3), seed=1)

        def freeze(number, when, result, weight=model.layers[-1].weight):
            if number >= when and not weight.frozen:
                weight.frozen = True  # counts from the next epoch
            return result

        rate, order = 0.1, True
        if "schedule" in where:
            rate = lambda step: freeze(step, 7, 0.1)  # noqa: E731
        if where == "an order":
            order = lambda epoch: freeze(epoch, 1, np.arange(30))  # noqa: E731
        optimizer = optimizers.SGD(Warmup(rate, 2) if "Warmup" in where else rate)
        trainer = xnn.Trainer(
            model, losses.SoftmaxCrossEntropy(), optimizer, callbacks=watchers, kernels=kernels
        )
        data = X, LABELS
        trainer.fit(data, data, epochs=4, batch_size=7, progress=False, shuffle=order)
        found.append([p.value.tobytes() for p in model.parameters()])
    assert found[0] == found[1]
