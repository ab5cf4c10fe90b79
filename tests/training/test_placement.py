"""Models that move between backends, and arrays that a user assigns from another one."""

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers
from xnn.backends import available_backends, get_backend
from xnn.callbacks import Callback
from xnn.errors import MixedArraysError
from xnn.layers.files import weights_sha256

X = (np.arange(60 * 6) % 7 / 7).astype(np.float32).reshape(60, 6)
Y = np.arange(60) % 3
_REASONS = available_backends()
_NAMES = ["numpy", *(name for name in ("cupy", "array-api-strict") if not _REASONS[name])]
if "cupy" in _NAMES and get_backend("cupy").cupy.cuda.runtime.getDeviceCount() > 1:
    _NAMES.append("cupy:1")
MOVES = [(one, other) for one in _NAMES for other in _NAMES if one != other]
RULES = {
    "Adam": lambda: optimizers.Adam(0.01),
    "average": lambda: optimizers.SGD(0.1, momentum=0.9, average=0.9),
    "by hand": lambda: _Momentum(0.1),
}


class _Momentum(optimizers.Optimizer):
    """An optimizer with a step of its own, which keeps bare arrays."""

    def step(self, parameters):
        self.steps += 1
        for p in parameters:
            kept = self.state.get(p)
            self.state[p] = p.grad if kept is None else 0.5 * kept + p.grad
            p.value = p.value - self.rate * self.state[p]


def made(name, rule=RULES["Adam"], callbacks=()):
    with xnn.backends.backend(name):
        model = xnn.Sequential(
            layers.BatchNorm(6), layers.Dense(6, 5), layers.ReLU(), layers.Dense(5, 3), seed=2
        )
    return xnn.Trainer(model, losses.SoftmaxCrossEntropy(), rule(), callbacks=callbacks)


def fit(trainer, epochs=1):
    return trainer.fit((X, Y), epochs=epochs, batch_size=8, progress=False)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("one", "other"), MOVES)
def test_a_fit_goes_on_where_the_model_is(one, other, rule):
    """What the optimizer keeps moves with the model: the numbers are those of one fit."""
    stays, moves = made(one, RULES[rule]), made(one, RULES[rule])
    fit(stays, 2)
    fit(moves)
    moves.model.to(other)
    fit(moves)
    assert moves.model.backend is get_backend(other)
    assert moves.history.epochs[0]["loss"] == pytest.approx(stays.history.epochs[1]["loss"], rel=1e-3)
    for p, q in zip(stays.model.parameters(), moves.model.parameters(), strict=True):
        for (_, a), (_, b) in zip(
            [("value", p.value), *stays.optimizer.kept_for(p)],
            [("value", q.value), *moves.optimizer.kept_for(q)],
            strict=True,
        ):
            assert xnn.backends.backend_of(b) is get_backend(other)
            there = get_backend(other).to_host(b)
            np.testing.assert_allclose(there, get_backend(one).to_host(a), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("one", "other"), MOVES)
def test_a_model_in_parts_is_one_clear_error(one, other):
    """A parameter that was assigned from another backend: every use says so, and `to` mends it."""
    trainer = made(one)
    whole = weights_sha256(trainer.model)
    weight = trainer.model.layers[3].weight
    there = get_backend(other).to_device(get_backend(one).to_host(weight.value))
    weight.value = there
    with pytest.raises(MixedArraysError, match=rf"3\.weight of the model is .* model\.to\('{one}"):
        fit(trainer)
    for use in (lambda: trainer.evaluate((X, Y)), lambda: trainer.model.predict(X)):
        with pytest.raises(MixedArraysError, match="one operation got arrays of"):
            use()
    assert weights_sha256(trainer.model) == whole
    trainer.model.to(one)
    fit(trainer)


@pytest.mark.parametrize(("one", "other"), MOVES)
@pytest.mark.parametrize("kernels", ["ops", "auto"])
def test_a_callback_that_assigns_from_another_backend_is_refused(one, other, kernels):
    class Assigns(Callback):
        def on_epoch_end(self, history, results):
            weight = self.model.layers[1].weight
            weight.value = get_backend(other).to_device(np.ones(weight.shape, np.float32))

    trainer = made(one, callbacks=[Assigns()])
    trainer.kernels = kernels
    with pytest.raises(
        MixedArraysError, match=r"weight's value was replaced by an array of .*: assign an array"
    ):
        fit(trainer, 3)
    assert trainer.epoch == 1
    trainer.model.to(one)
    trainer.callbacks.clear()
    fit(trainer)
