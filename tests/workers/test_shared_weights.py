"""Ranks of one machine have weights and the optimizer's state in the same memory, and each updates its part.

Here ranks wait at random before each call of a step, and before whatever else reads or writes this memory.
"""

import random
import time

import numpy as np
import pytest
from trainings import digits, mlp, on_each, outcome

from xnn import callbacks, data, layers, optimizers
from xnn.backends.ranks.threads import in_threads
from xnn.errors import DivergenceError, GraphError, RankError
from xnn.training import program
from xnn.training.parameters import Store


def late(work):
    """The same function, sometimes a moment later."""

    def wrapped(*arguments, **options):
        if random.random() < 0.3:
            time.sleep(random.random() * 0.002)
        return work(*arguments, **options)

    return wrapped


@pytest.fixture
def uneven(monkeypatch):
    bind = program.bind
    monkeypatch.setattr(program, "bind", lambda *parts: [late(run) for run in bind(*parts)])
    for name in ("attach", "hand_out", "is_finite", "publish", "restore", "snapshot", "_take"):
        monkeypatch.setattr(Store, name, late(getattr(Store, name)))


class Halves(callbacks.Callback):
    """Changes weights and state after each step: by assignment, and in the array that it was given."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step(self, history, epoch, batch, loss):
        time.sleep(random.random() * 0.002)
        first, *others = self.trainer.model.parameters()
        first.value = first.value * np.float32(0.5)
        others[0].value *= np.float32(0.75)
        time.sleep(random.random() * 0.002)
        for state in self.trainer.optimizer.state.values():
            for array in state.arrays:
                array *= np.float32(0.5)


OPTIMIZERS = {
    "sgd": lambda: optimizers.SGD(0.1),
    "momentum": lambda: optimizers.SGD(0.05, momentum=0.9, weight_decay={"weight": 0.01}),
    "adam": lambda: optimizers.Adam(0.01, clip_norm=0.1, average=0.9),
    "amsgrad": lambda: optimizers.Adam(0.01, amsgrad=True),
    "lion": lambda: optimizers.Lion(0.001),
}


@pytest.mark.parametrize("kernels", ["auto", "numpy"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("disturbed", [False, True])
def test_a_rank_that_is_late_changes_nothing(name, kernels, disturbed, uneven):
    """The last batch has two rows, which each of three ranks computes whole."""
    given = digits(98)

    def train():
        trainer = mlp(
            layers.Dense(20, 8), layers.BatchNorm(8), layers.ReLU(),
            optimizer=OPTIMIZERS[name](), numerics="exact", kernels=kernels,
        )  # fmt: skip
        if disturbed:
            trainer.callbacks.append(Halves(trainer))
        history = trainer.fit(given, validation=given, epochs=2, batch_size=32, progress=False)
        return outcome(trainer, history, given)

    assert on_each(3, train) == train()


def test_memory_is_shared_and_each_updates_a_part():
    def look(ranks):
        trainer = mlp(optimizer=optimizers.Adam(0.01))
        store = trainer.stepper(data.Batches(digits(), 32)).store
        (group,) = store.groups
        assert store.is_shared
        address = group.changing_memory.__array_interface__["data"][0]
        return address, group.part.start, group.part.stop, group.length

    first, second = in_threads(2, look)
    assert first[0] == second[0]
    assert (first[1], first[2], second[2]) == (0, second[1], first[3])
    assert 0 < first[2] < first[3]


def test_a_rule_of_users_is_not_cut_in_parts(uneven):
    """It need not work element by element."""

    def normalized(xp, parameter, gradient, *, learning_rate):
        size = xp.sqrt(xp.sum(gradient * gradient)) + 1e-6
        return (parameter - learning_rate * gradient / size,)

    class Normalized(optimizers.Optimizer):
        rule = staticmethod(normalized)

    given = digits()

    def train():
        trainer = mlp(optimizer=Normalized(0.05))
        history = trainer.fit(given, epochs=1, batch_size=32, progress=False)
        return trainer.stepper(data.Batches(given, 32)).store.is_shared, history.epochs[0]["loss"]

    shared, loss = on_each(3, train)
    assert not shared
    assert loss == pytest.approx(train()[1], rel=1e-5)


@pytest.mark.parametrize("turn", range(4))
def test_ranks_agree_on_what_diverged_and_go_back(turn, uneven):
    """The last update makes weights infinite: losses do not show it. Each rank updates some of them."""
    given = digits()

    def train():
        trainer = mlp(optimizer=optimizers.SGD(lambda step: 1e45 if step == 4 else 0.1, momentum=0.9))
        with pytest.raises(DivergenceError) as found:
            trainer.fit(given, epochs=1, batch_size=32, progress=False)
        return str(found.value), [p.value.tobytes() for p in trainer.model.parameters()]

    said, weights = on_each(3, train)
    assert said.split(":")[0] == train()[0].split(":")[0] == "step 5 (epoch 1, batch 5)"
    assert all(np.isfinite(np.frombuffer(w, np.float32)).all() for w in weights)


def test_a_rank_that_fails_alone_goes_back_alone():
    """Another one may just be writing a checkpoint."""

    def train(ranks):
        trainer = mlp(optimizer=optimizers.Adam(0.01))
        batches = data.Batches(digits(), 32)
        stepper = trainer.stepper(batches)
        stepper.refresh()
        stepper.step(np.arange(32), 0)
        stepper.take()
        ranks.wait()
        if ranks.rank:
            stepper.restore(alone=True)
        ranks.wait()
        store = stepper.store
        arrays = [slot.array for group in store.groups for slots in group.changing() for slot in slots]
        published = [p.value for p in trainer.model.parameters()]
        return [array.tobytes() for array in arrays], [array.tobytes() for array in published]

    first = [p.value.tobytes() for p in mlp().model.parameters()]
    (one, stepped), (other, back) = in_threads(2, train)
    assert back == first == other[: len(first)]
    assert stepped == one[: len(first)]
    assert all(a != b for a, b in zip(one, other, strict=True))


class Gradients(callbacks.Callback):
    """Keeps the first gradient of the first weights."""

    def __init__(self, needs):
        self.needs_gradients, self.found = needs, None

    def on_step(self, history, epoch, batch, loss):
        if self.found is None:
            self.found = self.weight.grad.copy()


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_callbacks_read_the_whole_gradient_or_are_told_how(numerics):
    given = digits()

    def train(needs, optimizer=None):
        watcher = Gradients(needs)
        trainer = mlp(callbacks=[watcher], numerics=numerics, optimizer=optimizer)
        watcher.weight = trainer.model.parameters()[0]
        trainer.fit(given, epochs=1, batch_size=32, progress=False)
        return watcher.found

    for optimizer in (optimizers.SGD, optimizers.Adam):
        for found in in_threads(3, lambda ranks: train(True, optimizer(0.01))):  # noqa: B023
            np.testing.assert_allclose(found, train(True, optimizer(0.01)), rtol=1e-4, atol=1e-7)
    if numerics == "fast":
        with pytest.raises(GraphError, match="needs_gradients"):
            in_threads(3, lambda ranks: train(False))


def test_a_fit_leaves_each_rank_arrays_of_its_own():
    def train(ranks):
        trainer = mlp()
        trainer.fit(digits(), epochs=1, batch_size=32, progress=False)
        first = trainer.model.parameters()[0]
        before = first.value.copy()
        ranks.wait()
        first.value[...] = ranks.rank
        ranks.wait()
        return before.tobytes(), float(first.value.max())

    (one, zero), (other, last) = in_threads(2, train)
    assert one == other
    assert (zero, last) == (0.0, 1.0)


def test_gradients_are_kept_on_all_ranks_if_one_reads_them():
    given = digits()

    def train(watching):
        watcher = callbacks.GradientNorm()
        trainer = mlp(callbacks=[watcher] if watching else [])
        history = trainer.fit(given, epochs=1, batch_size=32, progress=False)
        return history.epochs[0]["loss"], history.epochs[0].get("gradient_norm")

    (loss, norm), (other, _) = in_threads(2, lambda ranks: train(ranks.rank == 0))
    assert loss == other
    assert (loss, norm) == pytest.approx(train(True), rel=1e-5)


@pytest.mark.parametrize("what", ["weights", "state"])
def test_a_change_on_one_rank_ends_the_training(what):
    class Changes(callbacks.Callback):
        def __init__(self, trainer, rank):
            self.trainer, self._rank = trainer, rank

        def on_step(self, history, epoch, batch, loss):
            if batch == 2 and self._rank == 0:
                parameter = self.trainer.model.parameters()[0]
                if what == "weights":
                    parameter.value = parameter.value * np.float32(0.5)
                else:
                    self.trainer.optimizer.state[parameter].arrays[0][...] = 0.0

    def train(ranks):
        trainer = mlp(optimizer=optimizers.Adam(0.01))
        trainer.callbacks.append(Changes(trainer, ranks.rank))
        trainer.fit(digits(), epochs=1, batch_size=32, progress=False)

    said = "rank 1 of 2 callbacks have changed nothing, on rank 0 weights or the optimizer's state"
    with pytest.raises(RankError, match=said):
        in_threads(2, train)


class Begins(callbacks.Callback):
    """Changes the array that it finds before the first step."""

    def __init__(self, model, then=None):
        self.model, self.then = model, then

    def on_fit_start(self, history, epochs, steps_per_epoch):
        self.model.parameters()[0].value[...] *= np.float32(0.5)
        if self.then is not None:
            raise self.then


def test_what_measuring_threads_leaves_is_not_shared(monkeypatch):
    monkeypatch.setattr("xnn.training.thread_choice.threads_of_rank", lambda ranks: 2)
    for module in ("training.thread_choice", "backends.threads"):  # ranks that are threads share one BLAS
        monkeypatch.setattr(f"xnn.{module}.blas_threads", lambda: 2)
    given = digits()

    def train(then=None):
        trainer = mlp(numerics="exact", threads="auto")
        trainer.callbacks.append(Begins(trainer.model, then))
        try:
            history = trainer.fit(given, epochs=1, batch_size=32, progress=False)
        except ZeroDivisionError:
            return trainer.model.parameters()[0].value
        return history.losses_sha256

    assert on_each(2, train) == train()
    first, second = in_threads(2, lambda ranks: train(ZeroDivisionError()))
    assert not np.shares_memory(first, second)


def test_a_schedule_of_users_may_write_to_weights(uneven):
    given = digits()

    def train():
        trainer = mlp(numerics="exact", kernels="numpy")
        weight = trainer.model.parameters()[0]

        def schedule(step):
            if step == 2:
                weight.value[...] = np.float32(0.125)
            return 0.1

        trainer.optimizer.learning_rate = schedule
        return trainer.fit(given, epochs=1, batch_size=32, progress=False).losses_sha256

    assert on_each(2, train) == train()
