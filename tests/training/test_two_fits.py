"""Two fits of one trainer, optimizer or model at the same time: refused, not mixed up."""

import threading

import numpy as np
import pytest

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.errors import OptionError

X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
Y = X[:, :1]


def model():
    return xnn.Sequential(layers.Dense(3, 4), layers.Tanh(), layers.Dense(4, 1), seed=0)


def other_trainer(trainer, shared):
    """Another trainer with this part of the first: the first itself for "trainer"."""
    if shared == "trainer":
        return trainer
    net = trainer.model if shared == "model" else model()
    return xnn.Trainer(
        net, losses.MSE(), trainer.optimizer if shared == "optimizer" else optimizers.SGD(0.05)
    )


class Calls(callbacks.Callback):
    """Calls a function once, at this moment of a fit."""

    def __init__(self, moment, function):
        self.function, self.done = function, False
        setattr(self, moment, self.once)

    def once(self, *_):
        if not self.done:
            self.done = True
            self.function()


class CallsInSteps(Calls):
    def on_step(self, *_):
        self.once()


def fit(trainer, epochs=2):
    return trainer.fit((X, Y), epochs=epochs, batch_size=8, progress=False)


def build(moment, function):
    """A trainer with a callback that calls function(trainer)."""
    kind = CallsInSteps if moment == "on_step" else Calls
    callback = kind(moment, lambda: function(trainer))
    trainer = xnn.Trainer(model(), losses.MSE(), optimizers.SGD(0.1, momentum=0.9), callbacks=[callback])
    return trainer


@pytest.mark.parametrize("moment", ["on_fit_start", "on_step", "on_check", "on_epoch_end", "on_fit_end"])
@pytest.mark.parametrize("shared", ["trainer", "optimizer"])
def test_a_callback_does_not_fit_again(moment, shared):
    refused = []

    def again(trainer):
        with pytest.raises(OptionError, match=f"inside a callback.*same {shared}") as caught:
            fit(other_trainer(trainer, shared))
        refused.append(caught.value)

    trainer = build(moment, again)
    history = fit(trainer)
    plain = xnn.Trainer(model(), losses.MSE(), optimizers.SGD(0.1, momentum=0.9))
    assert fit(plain).losses_sha256 == history.losses_sha256
    assert len(refused) == 1
    assert (trainer.epoch, trainer.step) == (2, 8)
    assert trainer.history is history
    assert fit(trainer)["loss"]  # the trainer is free again


@pytest.mark.parametrize("moment", ["on_step", "on_epoch_end"])
@pytest.mark.parametrize("kernels", ["ops", "auto"])
def test_a_callback_trains_the_model_by_another_trainer(moment, kernels):
    """The outer fit goes on with the weights that the inner one gives, as with weights that are assigned."""

    def outer(function):
        trainer = build(moment, function)
        trainer.kernels = kernels
        fit(trainer)
        return [parameter.value for parameter in trainer.model.parameters()]

    def assigned(trainer):
        copy = model()
        for mine, its in zip(copy.parameters(), trainer.model.parameters(), strict=True):
            mine.value = np.array(its.value)
        fit(xnn.Trainer(copy, losses.MSE(), optimizers.SGD(0.05), kernels=kernels))
        for mine, its in zip(copy.parameters(), trainer.model.parameters(), strict=True):
            its.value = mine.value

    def trained(trainer):
        inner = other_trainer(trainer, "model")
        inner.kernels = kernels
        fit(inner)

    for one, two in zip(outer(trained), outer(assigned), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("shared", ["trainer", "optimizer", "model"])
def test_two_threads_do_not_fit_at_once(shared):
    errors = []

    def elsewhere(trainer):
        def run():
            try:
                fit(other_trainer(trainer, shared))
            except OptionError as error:
                errors.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    trainer = build("on_epoch_end", elsewhere)
    fit(trainer)
    assert len(errors) == 1
    assert f"in another thread while another fit with the same {shared}" in errors[0]
    fit(other_trainer(trainer, shared))  # afterwards it may
