"""Losses of the user's in a Trainer: what broadcasts by mistake is refused, sums are told from means."""

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.errors import OptionError, ShapeError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(320, 4)).astype(np.float32)
Y = 2.0 * X[:, :1] + 1.0
WEIGHTS = np.linspace(0.0, 1.0, 320)


class Flat(layers.Layer):
    def compute(self, x):
        return x[:, 0]


def trainer(loss, *more, optimizer=None, metrics=()):
    model = xnn.Sequential(layers.Dense(4, 1), *more, seed=0)
    return xnn.Trainer(model, loss, optimizer or optimizers.SGD(0.0), metrics)


def squared(o, t):
    return ops.mean((o - t) ** 2.0)


def absolute(o, t):
    return ops.sum(ops.abs(t - o))


def chosen(o, t):
    return ops.mean(ops.where(t > o, t - o, 0.0))


def cross_entropy(o, t):
    p = ops.sigmoid(o)
    return -ops.mean(t * ops.log(p) + (1.0 - t) * ops.log(1.0 - p))


def weighted(o, t, w):
    return ops.sum(w * (o - t) ** 2.0) / ops.sum(w)


class Unchecked(losses.Loss):
    def compute(self, outputs, targets):
        return squared(outputs, targets)

    def check(self, targets, output_shape):
        pass


BROADCAST = {
    "squared": (squared, [], Y[:, 0], None),
    "absolute": (absolute, [], Y[:, 0], None),
    "chosen": (chosen, [], Y[:, 0], None),
    "cross-entropy": (cross_entropy, [], (Y > 1)[:, 0].astype(np.float32), None),
    "a class": (Unchecked(), [], Y[:, 0], None),
    "outputs (n,)": (squared, [Flat()], Y, None),
    "weights": (weighted, [], Y, WEIGHTS),
    "channels": (squared, [layers.Reshape((1, 1, 1))], Y.reshape(-1, 1, 1), None),
}


@pytest.mark.parametrize("way", ["fit", "one a batch", "evaluate", "by hand", "autograd"])
@pytest.mark.parametrize("case", BROADCAST)
def test_what_broadcasts_every_sample_with_every_other_is_refused(case, way, lib):
    loss, more, y, weights = BROADCAST[case]
    t = trainer(loss, *more)
    t.model.to(lib.name)
    x, *rest = (lib.to_device(part) for part in (X, y, weights) if part is not None)
    outputs = t.model.run(x, training=False)
    run = {
        "fit": lambda: t.fit((X, y), sample_weight=weights, progress=False),
        "one a batch": lambda: t.fit((X, y), sample_weight=weights, batch_size=1, progress=False),
        "evaluate": lambda: t.evaluate((X, y), sample_weight=weights),
        "by hand": lambda: t.loss(outputs, *rest),
        "autograd": lambda: xnn.grad(lambda o: t.loss(o, *rest))(outputs),
    }[way]
    with pytest.raises(ShapeError, match=r"combines .*, every sample with every other: give both one shape"):
        run()


def reshaped(o, t):
    return ops.mean((ops.reshape(o, (-1,)) - t) ** 2.0)


def chosen_columns(o, t):
    return ops.mean((o[:, 0] - t) ** 2.0)


def pairs_of_outputs(o, t):
    """A loss of all pairs, whose (n, n) is meant."""
    flat = ops.reshape(o, (-1,))
    return ops.mean((o - flat - ops.reshape(t, (-1, 1)) + t) ** 2.0)


def labels(o, t):
    return ops.softmax_cross_entropy(ops.concat((o, -o), axis=1), t)


def all_pairs(o, t):
    return ops.mean(ops.abs(o - ops.reshape(t, (1, -1))))


@pytest.mark.parametrize("loss", [reshaped, chosen_columns, pairs_of_outputs, all_pairs])
def test_what_reshapes_or_means_all_pairs_is_taken(loss):
    t = trainer(loss)
    assert np.isfinite(t.fit((X, Y[:, 0]), (X, Y[:, 0]), progress=False)["val_loss"][0])
    assert np.isfinite(t.fit((X[:33], Y[:33, 0]), progress=False)["loss"][0])


def test_class_labels_with_one_output_are_taken():
    assert np.isfinite(trainer(labels).fit((X, (Y[:, 0] > 1).astype(int)), progress=False)["loss"][0])


def by_sample(o, t):
    return (o[:, 0] - t[:, 0]) ** 2.0


class SumByHand(losses.Loss):
    def forward(self, outputs, targets, sample_weight=None):
        self.difference = outputs - targets
        return np.sum(self.difference**2)

    def backward(self):
        return 2.0 * self.difference


class SumOfCompute(losses.Loss):
    def compute(self, outputs, targets):
        return ops.sum((outputs - targets) ** 2.0)


LIKE = {
    "sum": (lambda o, t: ops.sum((o - t) ** 2.0), "sum", None),
    "minus a sum": (lambda o, t: -ops.sum(-((o - t) ** 2.0)), "sum", None),
    "sum, a class": (SumOfCompute(), "sum", None),
    "sum, by hand": (SumByHand(), "sum", None),
    "mean": (squared, "mean", None),
    "weighted sum": (lambda o, t, w: ops.sum(w * by_sample(o, t)), "sum", WEIGHTS),
    "sum of weighted terms, divided by n": (
        lambda o, t, w: ops.mean(w * by_sample(o, t)),
        "sum_over_batch_size",
        WEIGHTS,
    ),
    "weighted mean": (lambda o, t, w: ops.sum(w * by_sample(o, t)) / ops.sum(w), "mean", WEIGHTS),
}


@pytest.mark.parametrize("case", LIKE)
def test_a_sum_and_a_mean_are_combined_as_those_of_mse(case):
    """Batches of 32 and 7 in training, of 1024 or 100 in evaluation: all give one number for one data set."""
    loss, reduction, weights = LIKE[case]
    x, y, w = X[:263], Y[:263], None if weights is None else weights[:263]
    validation = (x, y) if w is None else (x, y, w)
    found = []
    for kind in (loss, losses.MSE(reduction=reduction)):
        t = trainer(kind)
        history = t.fit((x, y), validation, sample_weight=w, progress=False)
        found.append((history["loss"][0], history["val_loss"][0]))
        found.append((t.evaluate((x, y), 100, w)["loss"], found[0][0]))
        assert t.loss.over_batches == reduction
    np.testing.assert_allclose(found, found[0][0], rtol=1e-5)


@pytest.mark.parametrize("kind", [SumOfCompute, lambda: losses.MSE("sum_over_batch_size"), losses.MSE])
def test_lbfgs_takes_the_gradient_of_all_batches(kind):
    pytest.importorskip("scipy")
    t = trainer(kind(), optimizer=optimizers.LBFGS())
    t.fit((X[:263], Y[:263]), epochs=20, batch_size=32, progress=False)
    assert t.evaluate((X, Y))["loss"] < 1e-3


def test_the_reduction_is_found_again_after_an_option_changed():
    class Either(losses.Loss):
        def __init__(self, adds):
            super().__init__()
            self.adds = adds

        def compute(self, outputs, targets):
            squares = (outputs - targets) ** 2.0
            return ops.sum(squares) if self.adds else ops.mean(squares)

    t = trainer(Either(True))
    added = t.evaluate((X, Y), batch_size=64)["loss"]
    t.loss.adds = False
    assert added == pytest.approx(320 * t.evaluate((X, Y), batch_size=64)["loss"])


def test_a_loss_of_zero_tells_nothing_and_of_one_size_is_a_mean():
    t = trainer(lambda o, t: ops.sum(ops.abs(o - t)))
    t.evaluate((X, t.model.predict(X)))
    assert t.evaluate((X, Y), batch_size=32)["loss"] == pytest.approx(t.evaluate((X, Y))["loss"])
    fixed = trainer(lambda o, t: ops.mean(ops.reshape(o - t, (32,)) ** 2.0))
    assert fixed.fit((X, Y), batch_size=32, progress=False)["loss"][0] == pytest.approx(
        trainer(losses.MSE()).evaluate((X, Y))["loss"], rel=1e-5
    )


def test_over_batches_by_hand():
    with pytest.raises(OptionError, match="needs a Loss"):
        losses.LossOverBatches(3)
    loss = losses.Lambda(lambda o, t: ops.sum(o - t))
    over = losses.LossOverBatches(loss)
    for part in (X[:100], X[100:]):
        loss.recognize(part, np.zeros_like(part))
        over.add(loss(part, np.zeros_like(part)), len(part))
    assert over.value == pytest.approx(float(X.sum()), rel=1e-4)
