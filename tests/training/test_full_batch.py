"""L-BFGS in a Trainer: what callbacks change, and what an exception leaves."""

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers
from xnn.callbacks import Callback
from xnn.errors import DivergenceError, OptionError
from xnn.layers.files import weights_sha256

pytest.importorskip("scipy")
X = np.random.default_rng(0).normal(size=(40, 3))
Y = np.tanh(X @ np.array([[1.0], [2.0], [-1.0]]))


def trainer(callbacks=(), metrics=(), middle=layers.Tanh, loss=losses.MSE, **options):
    model = xnn.Sequential(
        layers.Dense(3, 6, dtype="float64"), middle(), layers.Dense(6, 1, dtype="float64"), seed=1
    )
    return xnn.Trainer(model, loss(), optimizers.LBFGS(**options), metrics, callbacks, threads=1)


def fit(t, epochs, x=X):
    return t.fit((x, Y), epochs=epochs, batch_size=16, progress=False)


def state(t):
    return {name: t.model.backend.to_host(array.value).tobytes() for name, array in t.model.named_state()}


def assign(t, name, value):
    setattr(t, name, value)


CHANGES = {
    "weights": lambda t: assign(t.model.layers[2].weight, "value", 0.5 * t.model.layers[2].weight.value),
    "weights in place": lambda t: t.model.layers[2].weight.value.__imul__(0.5),
    "frozen": lambda t: assign(t.model.layers[0].weight, "frozen", True),
    "weight_decay": lambda t: assign(t.optimizer, "weight_decay", 0.1),
    "memory": lambda t: assign(t.optimizer, "memory", 2),
    "an option of a layer": lambda t: assign(t.model.layers[1], "alpha", 0.2),
    "an option of the loss": lambda t: assign(t.loss, "delta", 0.1),
    "samples in place": lambda t: t.data[0].__imul__(0.5),
    "targets in place": lambda t: t.data[1].__iadd__(0.5),
    "nothing": lambda t: None,
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("hook", ["on_step", "on_check", "on_epoch_end"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_callbacks_change_counts_as_in_two_fits(change, hook, lib):
    options = (
        {"middle": layers.ELU} if "layer" in change else {"loss": losses.Huber} if "loss" in change else {}
    )
    once, twice = trainer(**options), trainer(**options)
    once.data, twice.data = (X.copy(), Y.copy()), (X.copy(), Y.copy())

    def fit(t, epochs):
        return t.fit(t.data, epochs=epochs, batch_size=16, progress=False)

    class Changes(Callback):
        pass

    def changes(self, history, epoch, *arguments):
        if once.epoch == 4 - (hook != "on_epoch_end"):
            CHANGES[change](once)

    setattr(Changes, hook, changes)
    once.callbacks.append(Changes())
    history = fit(once, 9)
    if change == "nothing":
        fit(twice, 9)
    else:
        fit(twice, 4)
        CHANGES[change](twice)
        fit(twice, 5)
    assert len(history.epochs) == once.epoch == twice.epoch == 9
    assert state(once) == state(twice)


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("place", ["on_step", "on_check", "on_epoch_end", "metric", "validation"])
@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt, MemoryError])
def test_an_exception_leaves_the_weights_of_an_iteration(place, error):
    states, left = {}, 30

    def breaks(*arguments):
        nonlocal left
        left -= 12 if place.startswith("on_") else 1
        if left < 0:
            raise error

    def counting(xp, outputs, targets):
        breaks()
        return xp.sum(outputs * 0.0 + 1.0)

    class Notes(Callback):
        def on_step(self, history, epoch, step, loss):
            states[epoch + 1] = state(t)

    notes = Notes()
    t = trainer([notes], middle=lambda: layers.BatchNorm(6, dtype="float64"))
    states[0] = state(t)
    fit(t, 9)
    left = 30
    breaking = Callback()
    if place.startswith("on_"):
        breaking = type("B", (Callback,), {place: lambda self, *arguments: breaks()})()
    t = trainer(
        [breaking],
        [counting] if place == "metric" else [],
        middle=lambda: layers.BatchNorm(6, dtype="float64"),
    )
    validation = None
    if place == "validation":
        t.metrics, validation = [xnn.metrics.get(counting)], (X, Y)
    with pytest.raises(error):
        t.fit((X, Y), validation, epochs=9, batch_size=16, progress=False)
    assert len(t.history.epochs) == t.epoch
    assert t.history.steps == t.step
    done = t.epoch + (place in ("on_step", "on_check"))
    assert state(t) == states[done]


def test_a_trial_that_overflows_leaves_buffers_too():
    """The search tries weights whose loss overflows: running statistics are those of the last iteration."""
    t = trainer(middle=lambda: layers.BatchNorm(6, dtype="float64"))
    fit(t, 2)
    before = state(t)

    class Overflows(losses.MSE):
        def compute(self, outputs, targets):
            return super().compute(outputs, targets) * float(overflow[0])

    overflow = [1.0]
    t.loss = Overflows()

    class Later(Callback):
        def on_step(self, history, epoch, step, loss):
            overflow[0] = np.inf

    t.callbacks.append(Later())
    with (
        np.errstate(all="ignore"),
        pytest.raises(DivergenceError, match="those of the iteration before") as raised,
    ):
        fit(t, 5)
    assert raised.value.history is t.history
    assert len(t.history.epochs) == 1
    after = state(t)
    assert before != after
    assert all(np.isfinite(array.value).all() for _, array in t.model.named_state())


def test_two_fits_and_digests():
    a, b = trainer(), trainer()
    fit(a, 6)
    fit(b, 6)
    assert weights_sha256(a.model) == weights_sha256(b.model)
    with pytest.raises(OptionError, match="epochs"):
        fit(a, 0)
