"""Losses at infinite, huge and missing numbers: limits where there are any, NaN where not, and no NumPy warnings."""

from __future__ import annotations

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers

INF, NAN = np.inf, np.nan

#: For each loss: outputs, targets, the terms and the gradients for the outputs that are right.
LIMITS = {
    "binary": (
        losses.BinaryCrossEntropy(),
        [-INF, INF, INF, -INF],
        [0, 1, 0, 1],
        [0, 0, INF, INF],
        [0, 0, 1, -1],
    ),
    "binary, half": (losses.BinaryCrossEntropy(), [INF, -INF], [0.5, 0.5], [INF, INF], [0.5, -0.5]),
    "binary, weighed": (
        losses.BinaryCrossEntropy(pos_weight=3.0),
        [-INF, INF, INF, -INF],
        [0, 1, 0, 1],
        [0, 0, INF, INF],
        [0, 0, 1, -3],
    ),
    "binary, weight 0": (
        losses.BinaryCrossEntropy(pos_weight=0.0),
        [-INF, INF, INF, -INF],
        [0, 1, 0, 1],
        [0, 0, INF, 0],
        [0, 0, 1, 0],
    ),
    "focal": (losses.Focal(), [-INF, INF, INF, -INF], [0, 1, 0, 1], [0, 0, INF, INF], [0, 0, 0.75, -0.25]),
    "focal, gamma 0": (
        losses.Focal(gamma=0.0, alpha=None),
        [-INF, INF, INF, -INF],
        [0, 1, 0, 1],
        [0, 0, INF, INF],
        [0, 0, 1, -1],
    ),
    "focal, alpha 1": (losses.Focal(alpha=1.0), [INF, -INF], [0, 1], [0, INF], [0, -1]),
    "hinge": (losses.Hinge(), [INF, -INF, INF, -INF], [1, -1, -1, 1], [0, 0, INF, INF], [0, 0, 1, -1]),
    "mse": (losses.MSE(), [INF, -INF], [0, 0], [INF, INF], [INF, -INF]),
    "l1": (losses.L1(), [INF, -INF, 3e38], [0, 0, 0], [INF, INF, 3e38], [1, -1, 1]),
    "huber": (losses.Huber(), [INF, -INF, 3e38], [0, 0, 0], [INF, INF, 3e38], [1, -1, 1]),
}
CLASSES = {
    "one infinite logit": ([[INF, 0, 1], [INF, 0, 1]], [0, 1], [0, INF], [[0, 0, 0], [1, -1, 0]]),
    "two": ([[INF, INF, 1]], [0], [np.log(2)], [[-0.5, 0.5, 0]]),
    "minus infinity": ([[-INF, 0, 0]], [1], [np.log(2)], [[0, -0.5, 0.5]]),
    "minus infinity is right": ([[-INF, 0, 0]], [0], [INF], [[-1, 0.5, 0.5]]),
}


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with np.errstate(invalid="raise", divide="raise", over="raise"):
        yield


def terms_and_gradient(loss, outputs, targets):
    """The terms, and the gradient of their sum for the outputs."""
    each = type(loss).op
    options = dict(loss.options)

    def total(z):
        return ops.sum(each(z, targets, reduction="none", **options))

    return each(outputs, targets, reduction="none", **options), xnn.grad(total)(outputs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LIMITS)
def test_limits(name, dtype):
    loss, outputs, targets, right, slopes = LIMITS[name]
    z, t = (np.array(x, dtype).reshape(-1, 1) for x in (outputs, targets))
    terms, gradient = terms_and_gradient(loss, z, t)
    np.testing.assert_allclose(terms.ravel(), np.array(right, dtype), rtol=1e-6)
    np.testing.assert_allclose(gradient.ravel(), slopes, rtol=1e-6)
    weights = np.where(np.isfinite(terms.ravel()), 1.0, 0.0)  # what is left out does not count
    value = loss(z, t, weights)
    if weights.any():
        np.testing.assert_allclose(value, terms[np.isfinite(terms)].mean(dtype=np.float64), rtol=1e-6)
    assert np.isfinite(loss.backward()).all()


@pytest.mark.parametrize("form", ["labels", "probabilities", "options"])
@pytest.mark.parametrize("name", CLASSES)
def test_limits_of_classes(name, form):
    z, labels, right, slopes = (np.array(x) for x in CLASSES[name])
    targets = np.eye(3)[labels] if form == "probabilities" else labels
    options = {"class_weight": (1.0, 1.0, 1.0), "ignore_index": 7} if form == "options" else {}
    terms, gradient = terms_and_gradient(losses.SoftmaxCrossEntropy(**options), z, targets)
    np.testing.assert_allclose(terms, right)
    np.testing.assert_allclose(gradient, slopes)


@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
def test_kernels_have_the_limits(kernels):
    """One step of a model whose logits are infinite: its loss is the op's."""
    if kernels == "compiled":
        pytest.importorskip("numba")
    x, y = np.eye(3, dtype=np.float32), np.array([0, 1, 2])
    model = xnn.Sequential(layers.Dense(3, 3, bias=False), seed=0)
    model.layers[0].weight.value = np.where(np.eye(3, dtype=bool), np.float32(3e38), np.float32(-3e38))
    twice = xnn.Sequential(layers.Rescale(2.0), *model.layers)  # 6e38 is infinite in float32
    trainer = xnn.Trainer(twice, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.0), kernels=kernels)
    with np.errstate(all="ignore"):
        history = trainer.fit((x, y), epochs=1, batch_size=3, progress=False)
    assert history.epochs[-1]["loss"] == 0.0
    assert history.epochs[-1]["accuracy"] == 1.0


EVERY = {
    "mse": (losses.MSE(), 0.0),
    "l1": (losses.L1(), 0.0),
    "huber": (losses.Huber(), 0.0),
    "hinge": (losses.Hinge(), 1.0),
    "binary": (losses.BinaryCrossEntropy(), 1.0),
    "binary, weighed": (losses.BinaryCrossEntropy(pos_weight=2.0), 1.0),
    "focal": (losses.Focal(), 1.0),
    "focal, gamma 0": (losses.Focal(gamma=0.0, alpha=None), 1.0),
    "kl": (losses.KLDivergence(), 0.5),
    "probabilities": (losses.SoftmaxCrossEntropy(), 0.5),
    "labels": (losses.SoftmaxCrossEntropy(), None),
    "smoothed": (losses.SoftmaxCrossEntropy(label_smoothing=0.1), None),
    "class weights": (losses.SoftmaxCrossEntropy(class_weight=(1.0, 2.0)), None),
}


def target_of(target, rows=3):
    return np.zeros(rows, int) if target is None else np.full((rows, 2), target)


@pytest.mark.parametrize("name", EVERY)
def test_nan_goes_on(name):
    loss, target = EVERY[name]
    outputs = np.array([[0.5, 0.25], [NAN, 0.5], [0.5, NAN]])
    assert np.isnan(loss(outputs, target_of(target)))
    assert (
        np.isnan(terms_and_gradient(loss, outputs, target_of(target))[0].reshape(3, -1)[1:]).any(axis=1).all()
    )


@pytest.mark.parametrize("missing", [NAN, INF, -INF])
@pytest.mark.parametrize("name", EVERY)
def test_a_weight_of_0_leaves_a_sample_out_whatever_it_holds(name, missing):
    loss, target = EVERY[name]
    outputs = np.array([[0.5, 0.25], [missing, 0.5], [0.5, missing]])
    right = loss(outputs[:1], target_of(target, 1))
    slopes = loss.backward()
    assert loss(outputs, target_of(target), np.array([1.0, 0.0, 0.0])) == right
    np.testing.assert_array_equal(loss.backward(), [*slopes, [0.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize("reduction", ["mean", "sum_over_batch_size", "sum"])
@pytest.mark.parametrize("name", EVERY)
def test_where_no_sample_counts_the_loss_is_0(name, reduction):
    loss, target = EVERY[name]
    loss = type(loss)(reduction=reduction, **loss.options)
    outputs = np.array([[0.5, 0.25], [0.5, 0.5], [0.5, 2.0]])
    assert loss(outputs, target_of(target), np.zeros(3)) == 0.0
    assert not loss.backward().any()
    assert loss(outputs[:0], target_of(target, 0)) == 0.0


@pytest.mark.parametrize("missing", [NAN, INF])
def test_ignored_labels_are_left_out_whatever_their_logits_are(missing):
    loss = losses.SoftmaxCrossEntropy(ignore_index=-1)
    outputs, labels = np.array([[0.5, 0.25], [missing, 0.5]]), np.array([1, -1])
    assert loss(outputs, labels) == losses.SoftmaxCrossEntropy()(outputs[:1], labels[:1])
    assert np.isfinite(loss.backward()).all()
    assert not loss.backward()[1].any()
    assert loss(outputs, np.array([-1, -1])) == 0.0
    assert not loss.backward().any()


def test_divergence_where_a_probability_is_0():
    loss = losses.KLDivergence(reduction="none")
    outputs, targets = np.array([[-INF, 0.0], [np.log(0.5), np.log(0.5)]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(loss(outputs, targets), [0.0, np.log(2)])
    np.testing.assert_array_equal(loss.backward(), [[0.0, -1.0], [-1.0, 0.0]])
