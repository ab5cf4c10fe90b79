"""Losses against PyTorch, metrics and splits against scikit-learn, with random options, shapes and weights."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from random_networks import close

from xnn import losses, metrics
from xnn.data.splits import split_rows


def one_of(rng, *choices):
    return choices[int(rng.integers(len(choices)))]


def outputs_of(rng, draw):
    """Outputs (n, classes) or (n, classes, ...) for the loss that `draw` draws."""
    shape = one_of(rng, (), (3,), (2, 4))
    classes = int(rng.integers(2 if draw is cross_entropy else 1, 6))
    return rng.normal(size=(int(rng.integers(1, 8)), classes, *shape)) * one_of(rng, 1.0, 5.0, 40.0)


def probabilities(rng, shape):
    """Probabilities along axis 1; some of them are 0."""
    found = rng.random(shape) * (rng.random(shape) < 0.8) + 1e-3
    return found / found.sum(axis=1, keepdims=True)


def cross_entropy(rng, torch, z):
    classes = z.shape[1]
    smoothing = one_of(rng, 0.0, float(rng.uniform(0.0, 0.9)))
    weights = one_of(rng, None, rng.uniform(0.0, 3.0, classes).tolist())
    given = {
        "label_smoothing": smoothing,
        "weight": None if weights is None else torch.tensor(np.asarray(weights)),
    }
    if one_of(rng, True, False):
        targets, ignored = probabilities(rng, z.shape), None
    else:
        targets, ignored = rng.integers(0, classes, (len(z), *z.shape[2:])), one_of(rng, None, 0, -100)
        if ignored == -100:
            targets[rng.random(targets.shape) < 0.3] = -100
        given["ignore_index"] = -100 if ignored is None else ignored
    loss = {"label_smoothing": smoothing, "class_weight": weights, "ignore_index": ignored}

    def theirs(outputs, aims, reduction):
        return torch.nn.functional.cross_entropy(outputs, aims, reduction=reduction, **given)

    return losses.SoftmaxCrossEntropy, loss, targets, theirs


def binary(rng, torch, z):
    # One number for each output along the last axis.
    weights = one_of(rng, None, float(rng.uniform(0.0, 4.0)), rng.uniform(0.0, 4.0, z.shape[-1]).tolist())
    given = {} if weights is None else {"pos_weight": torch.tensor(np.asarray(weights))}

    def theirs(outputs, aims, reduction):
        function = torch.nn.functional.binary_cross_entropy_with_logits
        return function(outputs, aims, reduction=reduction, **given)

    targets = one_of(rng, rng.random(z.shape), rng.integers(0, 2, z.shape).astype(float))
    return losses.BinaryCrossEntropy, {"pos_weight": weights}, targets, theirs


def distance(rng, torch, z):
    delta = float(rng.uniform(0.1, 4.0))
    kind, options, name, given = one_of(
        rng,
        (losses.MSE, {}, "mse_loss", {}),
        (losses.L1, {}, "l1_loss", {}),
        (losses.Huber, {"delta": delta}, "huber_loss", {"delta": delta}),
    )

    def theirs(outputs, aims, reduction):
        return getattr(torch.nn.functional, name)(outputs, aims, reduction=reduction, **given)

    return kind, options, rng.normal(size=z.shape) * 3.0, theirs


@pytest.mark.fuzz(40)
@pytest.mark.parametrize("draw", [cross_entropy, binary, distance])
def test_loss_is_pytorchs(draw, rng):
    torch = pytest.importorskip("torch")
    z = outputs_of(rng, draw)
    reduction = one_of(rng, "mean", "sum", "none")
    kind, options, targets, theirs = draw(rng, torch, z)
    loss = kind(**options, reduction=reduction)
    given, aims = torch.tensor(z, requires_grad=True), torch.tensor(targets)
    expected = theirs(given, aims, reduction)
    value = loss.forward(z, targets)
    if not torch.isfinite(expected).all():  # PyTorch's 0 / 0, where every sample is ignored or weighs nothing
        assert np.isfinite(np.asarray(value)).all(), repr(loss)
        return
    close(value, expected.detach(), 1e-10, repr(loss))
    expected.sum().backward()
    close(loss.backward(), given.grad, 1e-10, f"the gradient of {loss!r}")


@pytest.mark.fuzz(40)
@pytest.mark.parametrize("draw", [cross_entropy, binary, distance])
def test_sample_weights_multiply_pytorchs_terms(draw, rng):
    """A weighted mean is the sum of the weighted terms, divided by the same sum without the terms."""
    torch = pytest.importorskip("torch")
    z = outputs_of(rng, draw)
    kind, options, targets, theirs = draw(rng, torch, z)
    if options.get("class_weight") is not None or options.get("ignore_index") is not None:
        options = {**options, "class_weight": None, "ignore_index": None}  # these have divisors of their own
        targets = np.abs(targets) % z.shape[1] if targets.dtype.kind == "i" else targets

        def theirs(outputs, aims, reduction):
            smoothing = options["label_smoothing"]
            function = torch.nn.functional.cross_entropy
            return function(outputs, aims, reduction=reduction, label_smoothing=smoothing)

    weights = rng.uniform(0.0, 3.0, len(z)) * (rng.random(len(z)) < 0.8)
    loss = kind(**options)
    terms = theirs(torch.tensor(z), torch.tensor(targets), "none").numpy()
    column = np.broadcast_to(weights.reshape(-1, *[1] * (terms.ndim - 1)), terms.shape)
    expected = (terms * column).sum() / column.sum() if column.sum() else 0.0
    close(loss.forward(z, targets, weights), expected, 1e-10, repr(loss))


AVERAGES = ["macro", "micro", "weighted", None]
SCORES = {"Precision": "precision_score", "Recall": "recall_score", "F1": "f1_score"}


def updated(metric, outputs, targets, rng):
    """The metric's result, counted in batches."""
    cuts = np.sort(rng.integers(0, len(targets) + 1, int(rng.integers(0, 4))))
    for rows in np.split(np.arange(len(targets)), cuts):
        metric.update(outputs[rows], targets[rows])
    return metric.compute()


@pytest.mark.sampled(3)
@pytest.mark.fuzz(60)
def test_metrics_of_classes_are_those_of_scikit_learn(rng):
    sklearn = pytest.importorskip("sklearn.metrics")
    n, classes = int(rng.integers(1, 40)), int(rng.integers(2, 7))
    outputs = np.round(rng.normal(size=(n, classes)), one_of(rng, 1, 9))  # some are equal
    targets = rng.integers(0, int(rng.integers(1, classes + 1)), n)  # some classes never occur
    said, every = outputs.argmax(axis=1), list(range(classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single label
        assert updated(metrics.Accuracy(), outputs, targets, rng) == pytest.approx(
            sklearn.accuracy_score(targets, said)
        )
        assert updated(metrics.ConfusionMatrix(), outputs, targets, rng) == (
            sklearn.confusion_matrix(targets, said, labels=every).tolist()
        )
        for name, theirs in SCORES.items():
            average = one_of(rng, *AVERAGES)
            found = updated(getattr(metrics, name)(average), outputs, targets, rng)
            labels = every if average is None else None
            score = getattr(sklearn, theirs)(targets, said, average=average, labels=labels, zero_division=0)
            np.testing.assert_allclose(found, score, rtol=1e-12, err_msg=f"{name}({average!r})")
        k = int(rng.integers(1, classes + 1))
        ranked = np.argsort(-outputs, axis=1, kind="stable")[:, :k]
        expected = (ranked == targets[:, None]).any(axis=1).mean()
        assert updated(metrics.TopK(k), outputs, targets, rng) == pytest.approx(expected)


@pytest.mark.fuzz(30)
def test_metrics_of_yes_and_no_are_those_of_scikit_learn(rng):
    sklearn = pytest.importorskip("sklearn.metrics")
    n, threshold = int(rng.integers(1, 40)), one_of(rng, 0.0, 0.5)
    outputs, targets = rng.normal(size=(n, 1)), rng.integers(0, 2, (n, 1)).astype(one_of(rng, float, int))
    said, true = (outputs > threshold).ravel(), targets.ravel().astype(bool)
    given = {"binary": True, "threshold": threshold}
    assert updated(metrics.Accuracy(**given), outputs, targets, rng) == pytest.approx((said == true).mean())
    for name, theirs in SCORES.items():
        found = updated(getattr(metrics, name)(**given), outputs, targets, rng)
        assert found == pytest.approx(getattr(sklearn, theirs)(true, said, zero_division=0)), name


@pytest.mark.fuzz(40)
def test_metrics_of_numbers_are_those_of_scikit_learn(rng):
    sklearn = pytest.importorskip("sklearn.metrics")
    n, columns = int(rng.integers(2, 40)), int(rng.integers(1, 4))
    level = one_of(rng, 0.0, 1e6)  # targets far from 0
    targets = level + rng.normal(size=(n, columns))
    outputs = targets + one_of(rng, 0.0, 0.3, 5.0) * rng.normal(size=(n, columns))
    for metric, theirs in (
        (metrics.MAE(), sklearn.mean_absolute_error),
        (metrics.MSE(), sklearn.mean_squared_error),
        (metrics.RMSE(), lambda *pair: np.sqrt(sklearn.mean_squared_error(*pair))),
        (metrics.R2(), sklearn.r2_score),
    ):
        found = updated(metric, outputs, targets, rng)
        assert found == pytest.approx(theirs(targets, outputs), rel=1e-7, abs=1e-9), repr(metric)


@pytest.mark.fuzz(40)
def test_splits_have_the_sizes_of_scikit_learns(rng):
    """Stratified: of each class at most one sample more or less, since scikit-learn breaks ties at random."""
    sklearn = pytest.importorskip("sklearn.model_selection")
    n, classes = int(rng.integers(20, 200)), int(rng.integers(2, 6))
    labels = rng.integers(0, classes, n)
    labels[: 4 * classes] = np.tile(np.arange(classes), 4)
    share = float(rng.uniform((classes + 1) / n, 0.45))  # scikit-learn wants a sample of each class
    split = (1.0 - 2.0 * share, share, share)
    seed = int(rng.integers(1000))
    parts = split_rows("fuzz", n, split, seed, labels)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    sizes = [len(part) for part in split_rows("fuzz", n, split, seed)]
    assert [len(part) for part in parts] == sizes
    _, theirs = sklearn.train_test_split(np.arange(n), test_size=sizes[2], stratify=labels, random_state=seed)
    ours, expected = (np.bincount(labels[rows], minlength=classes) for rows in (parts[2], theirs))
    assert np.abs(ours - expected).max() <= 1
