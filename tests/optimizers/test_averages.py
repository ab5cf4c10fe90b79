"""Exponential moving averages of the weights."""

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers
from xnn.errors import OptionError


def small(seed=1):
    return xnn.Sequential(layers.Dense(5, 6), layers.ReLU(), layers.Dense(6, 3), seed=seed)


def labelled(rows=70):
    rng = np.random.default_rng(2)
    y = rng.integers(0, 3, rows)
    return (rng.normal(size=(rows, 5)) + y[:, None]).astype(np.float32), y


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
@pytest.mark.parametrize("make", [optimizers.SGD, optimizers.Adam, optimizers.AdaDelta])
def test_the_average_of_the_weights_is_kept(make, kernels, numerics):
    if kernels == "compiled":
        pytest.importorskip("numba")
    x, y = labelled()
    model, rule, seen = small(), make(0.05, average=0.9), []

    class Watch(xnn.callbacks.Callback):
        def on_step(self, history, epoch, step, loss):
            seen.append([np.array(p.value, np.float64) for p in model.parameters()])

    start = [np.array(p.value, np.float64) for p in model.parameters()]
    trainer = xnn.Trainer(
        model, losses.SoftmaxCrossEntropy(), rule, kernels=kernels, numerics=numerics, callbacks=[Watch()]
    )
    for _ in range(2):
        trainer.fit((x, y), batch_size=16, progress=False)
    for step in seen:
        start = [0.9 * a + 0.1 * w for a, w in zip(start, step, strict=True)]
    for parameter, wanted in zip(model.parameters(), start, strict=True):
        np.testing.assert_allclose(rule.averages[parameter], wanted, rtol=1e-5, atol=1e-7)
    last = [np.array(p.value) for p in model.parameters()]
    plain = trainer.evaluate((x, y))
    with rule.averaged():
        assert np.array_equal(model.parameters()[0].value, rule.averages[model.parameters()[0]])
        assert trainer.evaluate((x, y)) != plain
    assert trainer.evaluate((x, y)) == plain
    assert all(np.array_equal(p.value, before) for p, before in zip(model.parameters(), last, strict=True))


def test_averages_by_hand_and_in_a_program_are_the_same_bits_in_exact_numerics():
    x, y = labelled()
    with xnn.numerics("exact"):
        averages = []
        model, rule = small(), optimizers.SGD(0.1, average=0.5)
        xnn.Trainer(model, losses.SoftmaxCrossEntropy(), rule).fit(
            (x, y), batch_size=16, epochs=2, progress=False
        )
        averages.append([rule.averages[p].tobytes() for p in model.parameters()])
        model, rule, loss = small(), optimizers.SGD(0.1, average=0.5), losses.SoftmaxCrossEntropy()
        for epoch in range(2):
            for xb, yb in xnn.data.Batches((x, y), 16).epoch(epoch):
                loss.forward(model.forward(xb, training=True), yb)
                model.backward(loss.backward())
                rule.step(model.parameters())
        averages.append([rule.averages[p].tobytes() for p in model.parameters()])
    assert averages[0] == averages[1]


@pytest.mark.parametrize("kernels", ["ops", "numpy"])
@pytest.mark.parametrize(("first", "then"), [(None, 0.5), (0.9, 0.5), (0.9, None)])
def test_an_average_that_a_callback_sets_is_heeded(kernels, first, then):
    """The result is that of a fit that starts with it."""
    x, y = labelled()

    class Change(xnn.callbacks.Callback):
        def on_epoch_end(self, history, entry):
            self.rule.average = then

    found = []
    for epochs in ((3,), (1, 2)):
        model, rule, change = small(), optimizers.SGD(0.1, average=first), Change()
        change.rule = rule
        trainer = xnn.Trainer(
            model, losses.SoftmaxCrossEntropy(), rule, kernels=kernels, callbacks=[change], threads=1
        )
        for count in epochs:
            trainer.fit((x, y), batch_size=16, epochs=count, progress=False)
        assert len(rule.averages) == len(model.parameters())
        found.append([rule.averages[p].tobytes() for p in model.parameters()])
    assert found[0] == found[1]


@pytest.mark.parametrize("kernels", ["ops", "numpy", None])
def test_the_average_of_a_parameter_frozen_since_goes_on_to_its_value(kernels):
    """A parameter that was always frozen has no average."""
    x, y = labelled()
    model, rule, loss = small(), optimizers.SGD(0.1, average=0.8), losses.SoftmaxCrossEntropy()
    trainer = xnn.Trainer(model, loss, rule, kernels=kernels or "auto", threads=1)
    kept, never = model.layers[0].weight, model.layers[2].bias
    never.frozen = True
    trainer.fit((x, y), batch_size=16, progress=False)
    kept.frozen = True
    wanted = np.array(rule.averages[kept], np.float64)
    assert not np.allclose(wanted, kept.value, atol=1e-3)
    if kernels:
        trainer.fit((x, y), batch_size=16, epochs=20, progress=False)
    else:
        for _ in range(100):
            loss.forward(model.forward(x, training=True), y)
            model.backward(loss.backward())
            rule.step(model.parameters())
    np.testing.assert_allclose(rule.averages[kept], kept.value, rtol=1e-5, atol=1e-6)
    assert never not in rule.averages
    with rule.averaged():
        trainer.evaluate((x, y))


def test_there_is_nothing_to_average_before_training():
    with pytest.raises(OptionError, match=r"average=0\.999"), optimizers.SGD(0.1).averaged():
        pass
    with pytest.raises(OptionError, match="average"):
        optimizers.Adam(average=1.5)
