"""What weights of samples and classes do in the mean, and in the sum over the batch size."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.errors import OptionError, WeightWarning

RNG = np.random.default_rng(5)
X, LABELS, W = RNG.normal(size=(6, 3)).astype(np.float32), np.arange(6) % 2, np.arange(1.0, 7.0)
SIGNS = np.where(RNG.random((6, 2)) < 0.5, -1.0, 1.0)
PARTS = np.full((6, 2), 0.5)
ALL = {
    "labels": (losses.SoftmaxCrossEntropy, {}, LABELS),
    "class weights": (losses.SoftmaxCrossEntropy, {"class_weight": (1.0, 3.0)}, LABELS),
    "ignored": (losses.SoftmaxCrossEntropy, {"ignore_index": 1}, LABELS),
    "probabilities": (losses.SoftmaxCrossEntropy, {"label_smoothing": 0.1}, PARTS),
    "binary": (losses.BinaryCrossEntropy, {"pos_weight": 2.0}, PARTS),
    "focal": (losses.Focal, {}, PARTS),
    "kl": (losses.KLDivergence, {}, PARTS),
    "mse": (losses.MSE, {}, SIGNS),
    "l1": (losses.L1, {}, SIGNS),
    "huber": (losses.Huber, {"delta": 0.5}, SIGNS),
    "hinge": (losses.Hinge, {}, SIGNS),
}
OVER = "sum_over_batch_size"


@pytest.mark.parametrize("weights", [None, W])
@pytest.mark.parametrize("name", ALL)
def test_sum_over_batch_size_is_the_mean_of_the_weighted_terms(name, weights):
    kind, options, targets = ALL[name]
    outputs = RNG.normal(size=(6, 2))
    loss, each = kind(reduction=OVER, **options), kind(reduction="none", **options)
    assert float(loss(outputs, targets, weights)) == pytest.approx(each(outputs, targets, weights).mean())
    each.backward()
    count = each(outputs, targets).size
    np.testing.assert_allclose(loss.backward() * count, (each(outputs, targets, weights), each.backward())[1])


@pytest.mark.parametrize("name", ALL)
def test_gradients_of_weights(name):
    kind, options, targets = ALL[name]
    outputs = RNG.normal(size=(6, 2))

    def value(w):
        return kind.op(outputs, targets, w, reduction=OVER, **options)

    gradient = xnn.grad(value)(W)
    for i in range(6):
        step = np.eye(6)[i] * 1e-4
        assert gradient[i] == pytest.approx((value(W + step) - value(W - step)) / 2e-4, abs=1e-7)


def test_pytorchs_weights_by_hand():
    torch = pytest.importorskip("torch")
    outputs = RNG.normal(size=(6, 2))
    z, w = torch.tensor(outputs, requires_grad=True), torch.tensor(W)
    right = (w * torch.nn.functional.cross_entropy(z, torch.tensor(LABELS), reduction="none")).mean()
    right.backward()
    loss = losses.SoftmaxCrossEntropy(reduction=OVER)
    assert float(loss(outputs, LABELS, W)) == pytest.approx(right.item())
    np.testing.assert_allclose(loss.backward(), z.grad.numpy())


def trained(loss, batch_size, weights=W, kernels="auto", targets=LABELS):
    model = xnn.Sequential(layers.Dense(3, 2), seed=0)
    trainer = xnn.Trainer(model, loss, optimizers.SGD(0.1), metrics=[], kernels=kernels)
    history = trainer.fit(
        (X, targets), epochs=1, batch_size=batch_size, sample_weight=weights, shuffle=False, progress=False
    )
    return model.layers[0].weight.value, history.epochs[-1]["loss"]


def test_weights_cancel_in_batches_of_one_sample_and_that_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, _ = trained(losses.SoftmaxCrossEntropy(), 1, None)
        same, _ = trained(losses.SoftmaxCrossEntropy(reduction=OVER), 1, None)
        kept, _ = trained(losses.SoftmaxCrossEntropy(reduction=OVER), 1)
        by_class, _ = trained(losses.SoftmaxCrossEntropy(class_weight=(1.0, 3.0), reduction=OVER), 1, None)
        trained(losses.SoftmaxCrossEntropy(class_weight=(1.0, 3.0)), 2)
        trained(losses.SoftmaxCrossEntropy(ignore_index=-1), 1, None)
    for loss, weights in (
        (losses.SoftmaxCrossEntropy(), W),
        (losses.SoftmaxCrossEntropy(class_weight=(1.0, 3.0)), None),
    ):
        with pytest.warns(WeightWarning, match="cancel.*sum_over_batch_size") as caught:
            cancelled, _ = trained(loss, 1, weights)
        assert len(caught) == 1
        np.testing.assert_allclose(cancelled, plain, rtol=1e-6)
    np.testing.assert_array_equal(same, plain)
    assert np.abs(kept - plain).max() > 0.05
    assert np.abs(by_class - plain).max() > 0.05


@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
def test_every_kernel_and_each_batch_size_have_one_loss(kernels):
    """The loss of an epoch is the sum of the weighted terms over the number of samples, however they are cut."""
    if kernels == "compiled":
        pytest.importorskip("numba")
    for weights in (None, W):
        found = []
        for batch_size in (1, 4, 6):
            model = xnn.Sequential(layers.Dense(3, 2), seed=0)
            trainer = xnn.Trainer(
                model, losses.SoftmaxCrossEntropy(reduction=OVER), optimizers.SGD(0.0), kernels=kernels
            )
            history = trainer.fit(
                (X, LABELS), epochs=1, batch_size=batch_size, sample_weight=weights, progress=False
            )
            evaluated = trainer.evaluate((X, LABELS), batch_size=batch_size, sample_weight=weights)["loss"]
            found += [history.epochs[-1]["loss"], evaluated]
        each = losses.SoftmaxCrossEntropy(reduction="none")(model.predict(X), LABELS, weights)
        np.testing.assert_allclose(found, each.mean(), rtol=1e-5)


def test_a_graph_and_autograd_have_it_too():
    outputs = RNG.normal(size=(6, 2))
    loss = losses.MSE(reduction=OVER)
    right = float(loss(outputs, SIGNS, W))
    assert float(xnn.value_and_grad(lambda o: loss(o, SIGNS, W))(outputs)[0]) == pytest.approx(right)
    node = xnn.graph.Input()
    cost = loss(node, SIGNS, W)
    assert float(xnn.graph.forward_pass(cost, xnn.graph.topological_sort({node: outputs}))) == pytest.approx(
        right
    )


def test_refused():
    for make in (losses.MSE, losses.SoftmaxCrossEntropy):
        with pytest.raises(
            OptionError, match="'sum_over_batch_size', 'mean', 'sum' or 'none', got 'average'"
        ):
            make(reduction="average")
    with pytest.raises(OptionError, match="reduction"):
        ops.mse(SIGNS, SIGNS, reduction="batchmean")
