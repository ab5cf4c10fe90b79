"""Fast numerics by ranks: close to one process, the same weights on all ranks, and one message a step."""

from types import SimpleNamespace

import numpy as np
import pytest
from trainings import NUMBERED, digits, mlp, on_each, outcome, small, steps_and_messages

import xnn
from xnn import callbacks, data, layers, losses, optimizers
from xnn.backends.kernels.calls import Slot
from xnn.backends.ranks.threads import in_threads
from xnn.benchmarks.exactness.networks import SMALL
from xnn.callbacks import Callback
from xnn.errors import RankError
from xnn.training.groups import HEAD
from xnn.training.sharing import Sharing

#: Of these, a bias before a batch normalization has no gradient but rounding errors.
CLOSE = [name for name in SMALL if name not in ("huber, nadam", "softmax of images, averaged sgd")]


def weights(trainer):
    return [np.array(p.value) for p in trainer.model.parameters()]


def assert_close_to_one_process(make, data, epochs=2):
    def train():
        trainer = make()
        trainer.fit(data, epochs=epochs, batch_size=32, progress=False)
        return weights(trainer)

    together = in_threads(2, lambda ranks: train())
    for one, *others in zip(train(), *together, strict=True):
        for other in others:
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("place", "name"), NUMBERED)
def test_a_network_of_the_digest_matrix(place, name):
    alone, found = small(name, "fast")
    together = in_threads((2, 3, 7)[place % 3], lambda ranks: small(name, "fast"))
    assert len({result["weights"] for _, result in together}) == 1
    assert together[0][1]["epochs"][0]["loss"] == pytest.approx(found["epochs"][0]["loss"], rel=1e-5)
    if name in CLOSE:
        for one, other in zip(weights(alone), weights(together[0][0]), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * np.abs(one).max())


@pytest.mark.parametrize("kernels", ["auto", "numpy", "ops"])
def test_a_step_sends_one_message(kernels):
    make = lambda: mlp(optimizer=optimizers.Adam(0.01), kernels=kernels, metrics=[])  # noqa: E731
    steps, messages = steps_and_messages(make, 2, digits(), batch_size=32)
    assert steps == 5
    assert messages["sum"] == steps
    assert messages["maximum"] == 0
    # after the epoch: how long a message is, the message, and whether all numbers are finite if weights are shared
    assert messages["gather"] == (2 if kernels == "ops" else 3)


@pytest.mark.parametrize("kernels", ["auto", "numpy"])
@pytest.mark.parametrize("options", [{}, {"class_weight": [1.0, 2.0, 1.0, 1.0]}], ids=str)
def test_a_loss_without_options_has_a_kernel(kernels, options):
    """With weights of classes, its divisor is a sum over all ranks: ops compute it."""

    def calls(ranks):
        trainer = mlp(kernels=kernels)
        trainer.loss = losses.SoftmaxCrossEntropy(**options)
        program = trainer.stepper(data.Batches(digits(), 32)).program(32)
        return [call.kind for call in program.calls].count("loss")

    assert in_threads(2, calls) == [0 if options else 1] * 2


def test_batch_normalization_sends_three_more():
    make = lambda: mlp(layers.Dense(20, 8), layers.BatchNorm(8), layers.ReLU(), metrics=[])  # noqa: E731
    steps, messages = steps_and_messages(make, 3, digits(), batch_size=32)
    assert messages["sum"] == 4 * steps
    assert messages["maximum"] == 0


def test_counts_are_added_at_checks_and_other_metrics_gather_each_batch():
    def make():
        model = xnn.Sequential(layers.Dense(20, 1), seed=1)
        return xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.01), metrics=["mae"])

    x, y = digits()
    data = (x / 255).astype(np.float32), y.reshape(-1, 1).astype(np.float32)
    steps, messages = steps_and_messages(make, 2, data, batch_size=40)
    assert (messages["sum"], messages["gather"]) == (steps, steps + 3)
    steps, messages = steps_and_messages(lambda: mlp(metrics=["accuracy"]), 2, digits(), batch_size=40)
    assert (messages["sum"], messages["gather"]) == (steps + 1, 3)


@pytest.mark.parametrize("kernels", ["auto", "numpy", "ops"])
def test_metrics_that_need_all_rows_are_those_of_one_process(kernels):
    x, y = digits()
    data = (x / 255).astype(np.float32), (y[:, None] - np.array([0.0, 1.5])).astype(np.float32)

    def train():
        model = xnn.Sequential(layers.Dense(20, 2), seed=1)
        how = {"metrics": ["mae", "mse", "r2"], "kernels": kernels}
        trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.01), **how)
        return trainer.fit(data, epochs=2, batch_size=50, progress=False).epochs

    for one, other in zip(on_each(3, train), train(), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_groups_of_parameters_share_the_message():
    decay = {"weight": 0.1}  # two groups of one dtype
    make = lambda: mlp(optimizer=optimizers.AdamW(0.01, weight_decay=decay), metrics=[])  # noqa: E731
    steps, messages = steps_and_messages(make, 2, digits(), batch_size=32)
    assert messages["sum"] == steps
    assert_close_to_one_process(make, digits())


def test_each_dtype_has_a_message():
    """Layers of two dtypes do not go together so far; a Store takes them."""

    def work(ranks):
        sharing = Sharing(ranks)
        messages = {dtype: sharing.message(HEAD + 2, dtype) for dtype in ("float64", "float32")}
        for message in messages.values():
            message.array[HEAD:] = ranks.rank + 1
        loss = Slot("loss", (), np.dtype("float32"), np.array(0.5, np.float32))
        sharing._adding(SimpleNamespace(messages=messages), loss)()
        added = [message.array[HEAD:].tolist() for message in messages.values()]
        return added, float(loss.array), ranks.messages["sum"]

    assert in_threads(2, work) == [([[3.0, 3.0]] * 2, 1.0, 2)] * 2


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("change", ["freeze", "decay", "negative_slope"])
def test_what_a_callback_changes_on_one_rank_ends_all(numerics, change):
    def work(ranks):
        class Changes(Callback):
            def on_check(self, history, epoch, step, loss, metrics):
                if ranks.rank == 1 and epoch == 1:
                    if change == "freeze":
                        model[1].weight.frozen = True
                    elif change == "decay":
                        trainer.optimizer.weight_decay = 0.1
                    else:
                        model[2].negative_slope = 0.3

        made = layers.Dense(20, 8), layers.LeakyReLU()
        trainer = mlp(*made, optimizer=optimizers.SGD(0.01), numerics=numerics, callbacks=[Changes()])
        model = trainer.model
        trainer.fit(digits(), epochs=4, batch_size=32, progress=False)

    changed = "options of a layer" if change == "negative_slope" else "parameters or options of the optimizer"
    with pytest.raises(
        RankError, match=f"^on rank 1 of 2 callbacks have changed {changed}.*, on rank 0 nothing"
    ):
        in_threads(2, work)


def test_ranks_that_freeze_different_layers_end_all():
    def work(ranks):
        class Freezes(Callback):
            def on_check(self, history, epoch, step, loss, metrics):
                trainer.model[1 + 2 * ranks.rank].weight.frozen = True

        trainer = mlp(callbacks=[Freezes()])
        trainer.fit(digits(), epochs=4, batch_size=32, progress=False)

    with pytest.raises(RankError, match="of the optimizer, on rank 0 them in another way"):
        in_threads(2, work)


def test_all_ranks_freeze_and_thaw_alike():
    """Messages become shorter, and longer again."""

    def make():
        class Freezes(Callback):
            def on_epoch_end(self, history, entry):
                trainer.model[1].weight.frozen = entry["epoch"] == 1

        trainer = mlp(callbacks=[Freezes()])
        return trainer

    assert_close_to_one_process(make, digits(), epochs=4)


class Bar(callbacks.ProgressBar):
    """A user's own: it changes nothing, and only rank 0 shows it."""


def test_a_users_own_bar_on_rank_0():
    assert_close_to_one_process(lambda: mlp(callbacks=[Bar()]), digits(), epochs=3)


def test_a_batch_smaller_than_the_ranks_is_that_of_one_process():
    """With Adam: one process computes gradient and update of SGD in one, which BLAS's kernels round differently."""
    data = digits(12)

    def train():
        trainer = mlp(optimizer=optimizers.Adam(0.01))
        return outcome(trainer, trainer.fit(data, epochs=3, batch_size=4, progress=False), data)

    assert on_each(5, train) == train()


class StepLosses(Callback):
    """Keeps the loss of each step."""

    def on_fit_start(self, history, epochs, steps_per_epoch):
        self.values = []

    def on_step(self, history, epoch, step, loss):
        self.values.append(loss)


@pytest.mark.parametrize("kernels", ["auto", "numpy"])
def test_fifty_steps_of_sgd_stay_close_to_one_process(kernels):
    x = np.random.default_rng(2).random((800, 784), dtype=np.float32)
    y = np.digitize(x[:, :100].sum(axis=1), np.linspace(46, 54, 9))

    def train():
        model = xnn.Sequential(layers.Dense(784, 100), layers.ReLU(), layers.Dense(100, 10), seed=0)
        seen = StepLosses()
        rest = losses.SoftmaxCrossEntropy(), optimizers.SGD(0.05)
        trainer = xnn.Trainer(model, *rest, callbacks=[seen], kernels=kernels)
        trainer.fit((x, y), epochs=2, batch_size=32, progress=False)
        return seen.values

    alone = train()
    assert len(alone) == 50
    for size in (2, 3):
        assert on_each(size, train) == pytest.approx(alone, rel=1e-6, abs=0)


def test_lbfgs_searches_on_rank_0():
    x = np.linspace(-1.0, 1.0, 60).reshape(-1, 1)

    def train():
        model = xnn.Sequential(layers.Dense(1, 6), layers.Tanh(), layers.Dense(6, 1), seed=0)
        trainer = xnn.Trainer(model, losses.MSE(), optimizers.LBFGS())
        return trainer.fit((x, x * x), epochs=6, batch_size=30, progress=False).epochs

    pytest.importorskip("scipy")
    losses_alone = [entry["loss"] for entry in train()]
    assert [entry["loss"] for entry in on_each(3, train)] == pytest.approx(losses_alone, rel=1e-3)
