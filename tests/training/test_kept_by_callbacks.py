"""Arrays that callbacks keep or pass on stay as they are, with every table of kernels, as they do by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

import xnn
from xnn import initializers, layers, losses, optimizers
from xnn.callbacks import Callback
from xnn.errors import OptionError
from xnn.optimizers import State

X = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
Y = X[:, :3]
TABLES = ("ops", "numpy", "compiled")


@pytest.fixture(params=TABLES)
def kernels(request):
    if request.param == "compiled":
        pytest.importorskip("numba")
    return request.param


class Difference(layers.Layer):
    """A layer that learns to differ from a teacher, which is frozen, less a buffer."""

    def __init__(self, teacher):
        super().__init__()
        self.dense, self.teacher = layers.Dense(4, 3), [teacher]
        self.shift = layers.Buffer("shift", (4, 3), initializers.Zeros())

    def compute(self, x):
        return 2.0 * self.dense(x) - self.teacher[0](x) - x @ self.shift


def parts(rule=optimizers.SGD, **options):
    teacher = layers.Dense(4, 3, seed=3)
    for parameter in teacher.parameters():
        parameter.frozen = True
    model = xnn.Sequential(layers.Dense(4, 4), layers.Tanh(), layers.Dense(4, 4), Difference(teacher), seed=1)
    return SimpleNamespace(model=model, loss=losses.MSE(), optimizer=rule(0.05, **options), kept={})


class Changes(Callback):
    def __init__(self, change):
        self.change, self.losses = change, []

    def on_step(self, history, epoch, step, loss):
        self.losses.append(loss)
        self.change(self.parts, step)


def everything(given):
    found = {name: np.array(array.value) for name, array in given.model.named_state()}
    for name, parameter in given.model.named_parameters():
        found |= {f"{name}'s {kind}": np.array(a) for kind, a in given.optimizer.kept_for(parameter)}
    return found


def pairs(model):
    first, second = model.layers[0].weight, model.layers[2].weight
    return first, second


def swap(held, *keys):
    held[keys[0]], held[keys[1]] = held[keys[1]], held[keys[0]]


def keep(what):
    """Keep arrays after step 1, assign them after step 4."""

    def change(given, step):
        if step == 1:
            given.kept.update(what(given))
        if step == 4:
            for place, array in given.kept.items():
                if isinstance(array, State):
                    given.optimizer.state[place] = array
                else:
                    place.value = array

    return change


def after(step, do):
    return lambda given, now: do(given) if now == step else None


def to_teacher(given):
    """What a target network does in Q-learning."""
    last = given.model.layers[3]
    last.teacher[0].weight.value = last.dense.weight.value
    last.teacher[0].bias.value = last.dense.bias.value


def exchange_values(given):
    first, second = pairs(given.model)
    first.value, second.value = second.value, first.value


def value_into(target):
    def change(given):
        dense = given.model.layers[3].dense
        if target == "buffer":
            given.model.layers[3].shift.value = dense.weight.value
        elif target == "average":
            given.optimizer.averages[dense.weight] = dense.weight.value
        else:
            given.optimizer.state[dense.weight] = State((dense.weight.value,), (), ("velocity",))

    return change


def parameters(given):
    return given.model.parameters()


CASES = {
    "values": (keep(lambda given: {p: p.value for p in parameters(given)}), {}),
    "gradients": (
        keep(lambda given: {p: p.grad for p in parameters(given) if not p.frozen}),
        {"momentum": 0.5},
    ),
    "state": (keep(lambda given: dict(given.optimizer.state)), {"momentum": 0.5}),
    "averages": (keep(lambda given: dict(given.optimizer.averages)), {"average": 0.5}),
    "a teacher": (after(2, to_teacher), {}),
    "a buffer": (after(2, value_into("buffer")), {}),
    "an average": (after(2, value_into("average")), {"average": 0.5}),
    "the velocity": (after(2, value_into("velocity")), {"momentum": 0.5}),
    "values exchanged": (after(2, exchange_values), {}),
    "velocities exchanged": (after(2, lambda g: swap(g.optimizer.state, *pairs(g.model))), {"momentum": 0.5}),
    "averages exchanged": (after(2, lambda g: swap(g.optimizer.averages, *pairs(g.model))), {"average": 0.5}),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("one_thread")
def test_what_callbacks_keep_stays_as_it_was(case, kernels):
    change, options = CASES[case]
    hand, seen = parts(**options), []
    for step in range(5):
        rows = slice(16 * step, 16 * step + 16)
        seen.append(float(hand.loss(hand.model(X[rows], training=True), Y[rows])))
        hand.model.backward(hand.loss.backward())
        hand.optimizer.step(hand.model.parameters())
        change(hand, step + 1)

    given, watch = parts(**options), Changes(change)
    watch.parts, watch.needs_gradients = given, True
    trainer = xnn.Trainer(given.model, given.loss, given.optimizer, [], [watch], kernels=kernels)
    trainer.fit((X, Y), batch_size=16, shuffle=False, progress=False)
    np.testing.assert_allclose(watch.losses, seen, rtol=1e-4)
    found, right = everything(given), everything(hand)
    assert found.keys() == right.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, right[name], rtol=1e-3, atol=1e-5, err_msg=name)


class Keeps(Callback):
    """Keeps weights, gradients and state whenever it is called, and a copy of each."""

    needs_gradients = True

    def __init__(self, optimizer):
        self.optimizer, self.kept = optimizer, []

    def keep(self):
        for p in self.model.parameters():
            arrays = [p.value, p.grad, *(a for _, a in self.optimizer.kept_for(p))]
            self.kept += [(a, np.array(a)) for a in arrays if a is not None]

    def on_fit_start(self, history, epochs, steps_per_epoch):
        self.keep()

    def on_check(self, history, epoch, step, loss, metrics):
        self.keep()

    def on_epoch_end(self, history, entry):
        self.keep()

    def on_fit_end(self, history):
        self.keep()


@pytest.mark.parametrize(
    "rule", [lambda: optimizers.Adam(0.05), lambda: optimizers.LBFGS()], ids=["Adam", "LBFGS"]
)
def test_every_method_of_a_callback_may_keep_arrays(rule, kernels):
    if rule().minimizes:
        pytest.importorskip("scipy")
    optimizer = rule()
    watch, model = Keeps(optimizer), xnn.Sequential(layers.Dense(4, 3), seed=0)
    trainer = xnn.Trainer(model, losses.MSE(), optimizer, [], [watch], kernels=kernels)
    for _ in range(2):
        trainer.fit((X, Y), epochs=2, batch_size=16, progress=False)
    assert len(watch.kept) > 10
    for array, before in watch.kept:
        assert array.tobytes() == before.tobytes()


def test_the_gradient_of_lbfgs_is_that_of_all_rows(kernels):
    pytest.importorskip("scipy")

    class Compares(Callback):
        def on_epoch_end(self, history, entry):
            found = [p.grad for p in self.model.parameters()]
            loss = losses.MSE()
            _, right = xnn.value_and_grad(lambda p: loss(self.model(X), Y))(self.model.parameters())
            for a, b in zip(found, right, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-6)

    model = xnn.Sequential(layers.Dense(4, 3), seed=0)
    trainer = xnn.Trainer(model, losses.MSE(), optimizers.LBFGS(), [], [Compares()], kernels=kernels)
    trainer.fit((X, Y), epochs=2, batch_size=16, progress=False)


def test_an_optimizer_may_keep_the_gradients_and_values_that_it_is_given(kernels):
    class Remembers(optimizers.Optimizer):
        def __init__(self):
            super().__init__(0.05)
            self.before = {}

        def update(self, parameter):
            value, grad = parameter.value, parameter.grad
            last, slope = self.before.get(parameter, (value, grad))
            self.before[parameter] = value, grad
            parameter.value = value - np.float32(0.05) * (grad + slope) + np.float32(0.1) * (value - last)

    hand = xnn.Sequential(layers.Dense(4, 3), seed=0)
    rule, loss = Remembers(), losses.MSE()
    for step in range(5):
        rows = slice(16 * step, 16 * step + 16)
        loss(hand(X[rows], training=True), Y[rows])
        hand.backward(loss.backward())
        rule.step(hand.parameters())
    model = xnn.Sequential(layers.Dense(4, 3), seed=0)
    trainer = xnn.Trainer(model, losses.MSE(), Remembers(), [], kernels=kernels)
    trainer.fit((X, Y), batch_size=16, shuffle=False, progress=False)
    for a, b in zip(model.parameters(), hand.parameters(), strict=True):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-4)


PARTS = {
    "model": xnn.Sequential(layers.Dense(4, 3)),
    "loss": losses.L1(),
    "optimizer": optimizers.SGD(0.5),
    "metrics": ["mae"],
    "callbacks": [],
    "threads": 2,
    "kernels": "ops",
    "numerics": "exact",
}


@pytest.mark.parametrize("method", ["on_fit_start", "on_step", "on_check", "on_epoch_end"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "rule", [lambda: optimizers.SGD(0.1), lambda: optimizers.LBFGS()], ids=["SGD", "LBFGS"]
)
def test_parts_of_the_trainer_are_not_replaced_while_it_trains(part, method, rule):
    if rule().minimizes:
        pytest.importorskip("scipy")
    replaces = type(
        "Replaces", (Callback,), {method: lambda self, *_: setattr(self.trainer, part, PARTS[part])}
    )()
    model = xnn.Sequential(layers.Dense(4, 3), seed=0)
    trainer = xnn.Trainer(model, losses.MSE(), rule(), [], [replaces], threads=1, kernels="numpy")
    replaces.trainer = trainer
    with pytest.raises(OptionError, match=f"replaced the trainer's {part}"):
        trainer.fit((X, Y), epochs=2, batch_size=16, progress=False)


def test_a_reduction_that_leaves_the_terms_is_refused_at_the_next_step(kernels):
    given, watch = parts(), Changes(after(2, lambda g: setattr(g.loss, "reduction", "none")))
    watch.parts = given
    trainer = xnn.Trainer(given.model, given.loss, given.optimizer, [], [watch], kernels=kernels)
    with pytest.raises(OptionError, match="one number a batch"):
        trainer.fit((X, Y), batch_size=16, progress=False)
    assert trainer.step == 2
