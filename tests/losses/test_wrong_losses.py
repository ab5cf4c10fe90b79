"""A user's loss that returns something of another shape is refused: it would be averaged wrongly, without a word."""

from __future__ import annotations

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.errors import GraphError, XnnError

OUT, T = np.ones((4, 2)), np.zeros((4, 2))


def loss_op(
    terms=lambda xp, d: d * d, slopes=lambda xp, share, d: (2.0 * d * share, -2.0 * d * share), pair=True
):
    class Own(ops.LossOp):
        def terms(self, xp, outputs, targets):
            d = outputs - targets
            return (terms(xp, d), d) if pair else terms(xp, d)

        def slopes(self, xp, share, d):
            return slopes(xp, share, d)

    return Own()


def class_of(own):
    class Own(losses.Loss):
        op = own

    return Own


def test_the_right_one():
    assert loss_op()(OUT, T) == 1.0


WRONG_TERMS = {
    "a mean": (lambda xp, d: xp.mean(d * d), r"shape \(\) .*one term for each, \(4, 2\), without averaging"),
    "one for each sample": (lambda xp, d: xp.sum(d * d, axis=1), r"shape \(4,\) .*over_classes"),
    "a column": (lambda xp, d: xp.sum(d * d, axis=1, keepdims=True), r"shape \(4, 1\)"),
    "a number": (lambda xp, d: 1.0, r"shape \(\)"),
}


@pytest.mark.parametrize("weights", [(), (np.ones(4),)])
@pytest.mark.parametrize("name", WRONG_TERMS)
def test_terms(name, weights):
    terms, message = WRONG_TERMS[name]
    with pytest.raises(GraphError, match=message):
        loss_op(terms)(OUT, T, *weights)


def test_terms_that_are_no_pair():
    for rows in (OUT, OUT[:2]):  # an array of two rows could be unpacked as a pair
        with pytest.raises(GraphError, match="pair"):
            loss_op(lambda xp, d: d * d, pair=False)(rows, rows)


WRONG_SLOPES = {
    "one array": (lambda xp, share, d: 2.0 * d * share, "pair"),
    "three": (lambda xp, share, d: (d, d, d), "pair"),
    "a sum": (lambda xp, share, d: (xp.sum(d * share), None), r"shape \(\) for outputs"),
    "one row": (lambda xp, share, d: (d[:1, ...] * share, None), r"shape \(1, 2\) for outputs"),
    "of the targets": (lambda xp, share, d: (d * share, xp.sum(d)), r"shape \(\) for targets"),
}


@pytest.mark.parametrize("door", ["by hand", "grad", "fit"])
@pytest.mark.parametrize("name", WRONG_SLOPES)
def test_slopes(name, door):
    slopes, message = WRONG_SLOPES[name]
    loss = class_of(loss_op(slopes=slopes))()

    def run():
        if door == "grad":
            return xnn.grad(lambda outputs: loss(outputs, T))(OUT)
        if door == "fit":
            return fit(loss)
        loss(OUT, T)
        return loss.backward()

    with pytest.raises(GraphError, match=message):
        run()


def fit(loss):
    x = np.eye(4, 3, dtype=np.float32)
    model = xnn.Sequential(layers.Dense(3, 2), seed=0)
    return (
        xnn.Trainer(model, loss, optimizers.SGD(0.1)).fit((x, T), epochs=1, progress=False).epochs[-1]["loss"]
    )


class ByHand(losses.Loss):
    """A loss by hand, whose results are changed by two functions."""

    def __init__(self, value, gradient=lambda d: d):
        super().__init__()
        self.value, self.gradient = value, gradient

    def forward(self, outputs, targets, sample_weight=None):
        self.difference = outputs - targets
        return self.value(self.difference**2)

    def backward(self):
        return self.gradient(2.0 * self.difference / self.difference.size)


@pytest.mark.parametrize("value", [np.mean, lambda d: float(np.mean(d))], ids=["array", "number"])
def test_by_hand(value):
    assert fit(ByHand(value)) == pytest.approx(fit(losses.MSE()), rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda: ByHand(lambda d: d.mean(axis=1)), r"must be one number a batch, got shape \(4,\)"),
        (lambda: ByHand(lambda d: None), "must be one number a batch, got NoneType"),
        (lambda: ByHand(np.mean, lambda g: None), "backward of ByHand returned NoneType"),
        (lambda: ByHand(np.mean, lambda g: g[:1]), r"gradient of shape \(1, 2\)"),
        (lambda: losses.Lambda(lambda o, t: (o - t) * (o - t)), r"one number a batch, got shape \(4, 2\)"),
        (
            lambda: losses.Lambda(lambda o, t: ops.mean(o - t, axis=1)),
            r"one number a batch, got shape \(4,\)",
        ),
        (lambda: losses.Lambda(lambda o, t: None), "with ops, got NoneType"),
        (lambda: losses.Lambda(lambda o, t: (ops.mean(o), 1.0)), "with ops, got tuple"),
        (lambda: losses.Lambda(lambda o, t: 1.0), "with ops, got float"),
    ],
)
def test_wrong_results(loss, message):
    with pytest.raises(XnnError, match=message):
        fit(loss())


@pytest.mark.parametrize("reduction", ["foo", "", None, 1, "batchmean"])
def test_a_wrong_reduction_is_refused_where_it_is_assigned(reduction):
    loss = losses.Huber()
    with pytest.raises(XnnError, match="reduction must be"):
        loss.reduction = reduction
    assert loss.reduction == "mean"
