"""What a fit says and leaves when numbers stop being finite: the true step, and the bits from before it."""

import numpy as np
import pytest

import xnn
from xnn import layers, losses, optimizers
from xnn.callbacks import Callback
from xnn.errors import DivergenceError

TABLES = ["ops", "numpy", "compiled"]


@pytest.fixture(params=TABLES)
def kernels(request):
    if request.param == "compiled":
        pytest.importorskip("numba")
    return request.param


def arrays_of(model, optimizer):
    """Every number that a step changes, by what it is."""
    found = {name: array.value for name, array in model.named_state()}
    for name, parameter in model.named_parameters():
        found |= {f"{name}'s {kind}": array for kind, array in optimizer.kept_for(parameter)}
    return found


def bits(arrays):
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


class Changes(Callback):
    """Calls change(trainer, data, step) after each step; keeps what there was before the step that comes next."""

    def __init__(self, change):
        self.change, self.step, self.before = change, 0, {}

    def on_step(self, history, epoch, step, loss):
        self.step += 1
        self.change(self.trainer, self.data, self.step)
        self.before[self.step] = bits(arrays_of(self.model, self.trainer.optimizer))


RULES = [
    lambda rate: optimizers.SGD(rate),
    lambda rate: optimizers.SGD(rate, momentum=0.9, clip_value=1e20),
    lambda rate: optimizers.Adam(rate, average=0.9),
    lambda rate: optimizers.Nadam(rate),
    lambda rate: optimizers.RMSProp(rate, centered=True, momentum=0.5),
    lambda rate: optimizers.AdaGrad(rate),
    lambda rate: optimizers.AdaDelta(rate),
    lambda rate: optimizers.Lion(rate),
]


def case(number):
    """A small net, data and a change that make numbers infinite after some steps; all from one number."""
    r = np.random.default_rng(number)
    inputs, hidden, rows = int(r.integers(1, 5)), int(r.integers(1, 6)), 48
    x = r.normal(size=(rows, inputs)).astype(np.float32) * np.float32(10.0 ** r.integers(0, 3))
    y = (10.0 ** r.integers(0, 5) * r.normal(size=(rows, 1))).astype(np.float32)
    if r.random() < 0.6:  # one damaged row
        x[r.integers(rows), 0] = 10.0 ** r.integers(10, 37)
    middle = [layers.ReLU(), layers.GELU(), layers.LeakyReLU(0.1), layers.Tanh()][r.integers(4)]
    extra = [layers.BatchNorm(hidden)] if r.random() < 0.3 else []
    model = xnn.Sequential(
        layers.Dense(inputs, hidden), *extra, middle, layers.Dense(hidden, 1), seed=int(r.integers(100))
    )
    rule = RULES[r.integers(len(RULES))](float(10.0 ** r.integers(-3, 2)))
    at, kind = int(r.integers(1, 10)), r.integers(8)

    def change(trainer, data, step):
        if step < at:
            return
        if kind == 0:
            trainer.optimizer.learning_rate = 1e30
        elif kind == 1:
            trainer.model.layers[-1].weight.value[...] *= np.float32(1e12)  # in place
        elif kind == 2:
            trainer.model.layers[-1].weight.value = trainer.model.layers[-1].weight.value * np.float32(1e12)
        elif kind == 3:
            data[0][...] *= np.float32(1e10)
        elif kind == 4:
            trainer.optimizer.weight_decay = 1e20

    return model, rule, (x, y), change


def run(number, kernels, every_step):
    """The error of a fit, its callback, trainer; every_step: whether each step is looked at."""
    model, rule, data, change = case(number)
    watch = Changes(change)
    trainer = xnn.Trainer(model, losses.MSE(), rule, kernels=kernels, threads=1, metrics=[])
    watch.trainer, watch.data = trainer, data
    if every_step:
        trainer.callbacks.append(watch)
    with np.errstate(all="ignore"):
        try:
            trainer.fit(data, epochs=2, batch_size=4, seed=number, progress=False)
        except DivergenceError as error:
            return error, watch, trainer
    return None, watch, trainer


@pytest.mark.parametrize("number", range(40))
def test_the_step_that_is_named_and_the_bits_that_are_kept(kernels, number):
    """With callbacks that change weights, data and options; and, without them, among steps looked at together."""
    error, watch, trainer = run(number, kernels, every_step=True)
    if error is not None:
        assert f"step {watch.step + 1} (" in str(error)
        assert trainer.step == trainer.optimizer.steps == trainer.history.steps == watch.step
        if watch.step:
            assert bits(arrays_of(trainer.model, trainer.optimizer)) == watch.before[watch.step]
    _, rule, data, _ = case(number)
    model, *_ = case(number)
    watch = Changes(lambda *_: None)
    step_by_step = xnn.Trainer(
        model, losses.MSE(), rule, kernels=kernels, threads=1, metrics=[], callbacks=[watch]
    )
    watch.trainer, watch.data = step_by_step, data
    with np.errstate(all="ignore"):
        try:
            step_by_step.fit(data, epochs=2, batch_size=4, seed=number, progress=False)
            true = None
        except DivergenceError as found:
            true = found
    error, _, together = run(number, kernels, every_step=False)
    assert str(error) == str(true)
    assert "not known" not in str(error)
    assert together.step == step_by_step.step
    kept = [bits(arrays_of(t.model, t.optimizer)) for t in (together, step_by_step)]
    assert kept[0] == kept[1]
