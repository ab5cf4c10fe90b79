"""Permutations of samples, features, hidden units or classes change no bit of exact training.

They change the order of all sums: over samples in a weight's gradient, over inputs in a layer, over classes in a
softmax. In exact numerics the trained weights are the same, permuted, bit for bit. In fast numerics they are not.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from xnn import Trainer, layers, ops
from xnn.backends import get_backend, numerics
from xnn.data import synthetic_digits
from xnn.layers import Sequential
from xnn.losses import SoftmaxCrossEntropy
from xnn.optimizers import SGD, Adam

WIDTHS = (784, 40, 30, 10)
BATCH = 32
IMAGES, LABELS = synthetic_digits(3 * BATCH)
RNG = np.random.default_rng(8)
# Samples are permuted within each batch only, so that every step has the same samples as before.
SAMPLES = np.concatenate([start + RNG.permutation(BATCH) for start in range(0, len(IMAGES), BATCH)])
FEATURES, HIDDEN, CLASSES = (RNG.permutation(width) for width in (784, 40, 10))


def first_weights() -> list[np.ndarray]:
    """Return W0, b0, W1, b1, W2, b2."""
    rng = np.random.default_rng(3)
    pairs = itertools.pairwise(WIDTHS)
    return [
        part.astype(np.float32)
        for m, n in pairs
        for part in (rng.normal(0, (2 / m) ** 0.5, (m, n)), rng.normal(0, 0.1, n))
    ]


def permuted(weights: list[np.ndarray], what: str) -> list[np.ndarray]:
    """Return the weights of the same network with `what` in another order."""
    w0, b0, w1, b1, w2, b2 = weights
    if what == "features":
        w0 = w0[FEATURES]
    if what == "hidden units":
        w0, b0, w1 = w0[:, HIDDEN], b0[HIDDEN], w1[HIDDEN]
    if what == "classes":
        w2, b2 = w2[:, CLASSES], b2[CLASSES]
    return [np.ascontiguousarray(part) for part in (w0, b0, w1, b1, w2, b2)]


def trained(lib, mode, kernels, what, optimizer, pixels) -> tuple[list[np.ndarray], str]:
    """Train six steps with `what` permuted in first weights and data; return the weights and the losses' digest."""
    x, y = IMAGES, LABELS
    if what == "samples":
        x, y = x[SAMPLES], y[SAMPLES]
    if what == "features":
        x = x[:, FEATURES]
    if what == "classes":
        y = np.argsort(CLASSES)[y]
    dense = [layers.Dense(m, n) for m, n in itertools.pairwise(WIDTHS)]
    model = Sequential(
        layers.Rescale(1 / 255, 0.0 if pixels else -0.5),  # with an offset, pixels become float32
        dense[0], layers.ReLU(), dense[1], layers.Tanh(), layers.Function(ops.exp), dense[2],
    )  # fmt: skip
    for parameter, value in zip(model.parameters(), permuted(first_weights(), what), strict=True):
        parameter.value = lib.to_device(value)
    trainer = Trainer(model, SoftmaxCrossEntropy(), optimizer(), kernels=kernels, numerics=mode)
    history = trainer.fit((x, y), epochs=2, batch_size=BATCH, shuffle=False, progress=False)
    return [lib.to_host(p.value) for p in model.parameters()], history.losses_sha256


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


WHAT = ("samples", "features", "hidden units", "classes")
OPTIMIZERS = {
    "sgd": lambda: SGD(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: Adam(0.01, weight_decay=1e-3),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("pixels", [True, False], ids=["integers", "floats"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_exact_training_does_not_depend_on_an_order(lib, optimizer, pixels):
    arguments = OPTIMIZERS[optimizer], pixels
    weights, losses = trained(lib, "exact", "ops", "", *arguments)
    assert not same(weights, first_weights())
    for what in WHAT:
        other, other_losses = trained(lib, "exact", "ops", what, *arguments)
        assert same(other, permuted(weights, what)), what
        assert other_losses == losses, what


@pytest.mark.parametrize("kernels", ["numpy", "compiled"])
@pytest.mark.parametrize("pixels", [True, False], ids=["integers", "floats"])
def test_exact_kernels_do_not_depend_on_an_order(kernels, pixels):
    lib = get_backend("numpy")
    weights, losses = trained(lib, "exact", "ops", "", OPTIMIZERS["sgd"], pixels)
    for what in ("", *WHAT):
        other, other_losses = trained(lib, "exact", kernels, what, OPTIMIZERS["sgd"], pixels)
        assert same(other, permuted(weights, what)), what
        assert other_losses == losses, what


@pytest.mark.parametrize("what", WHAT)
def test_fast_training_depends_on_the_order(lib, what):
    weights, _ = trained(lib, "fast", "ops", "", OPTIMIZERS["sgd"], True)
    other, _ = trained(lib, "fast", "ops", what, OPTIMIZERS["sgd"], True)
    assert not same(other, permuted(weights, what))
    for a, b in zip(other, permuted(weights, what), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4)  # but it is about the same network


def test_predictions_do_not_depend_on_the_rest_of_the_batch():
    model = Sequential(
        layers.Rescale(1 / 255), layers.Dense(784, 50), layers.Tanh(), layers.Dense(50, 10), seed=1
    )
    with numerics("exact"):
        whole = model.predict(IMAGES)
        one_by_one = np.concatenate([model.predict(IMAGES[row : row + 1]) for row in range(len(IMAGES))])
        assert whole.tobytes() == one_by_one.tobytes()
        assert whole[SAMPLES].tobytes() == model.predict(IMAGES[SAMPLES]).tobytes()
    with numerics("fast"):
        fast = model.predict(IMAGES)
    np.testing.assert_allclose(fast, whole, rtol=1e-4, atol=1e-5)
