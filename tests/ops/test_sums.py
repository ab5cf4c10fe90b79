"""Sums of many float32 numbers are right to 1e-6, whatever is summed, over which axis and by which kernels."""

from __future__ import annotations

import numpy as np
import pytest

import xnn
from xnn import layers, losses, metrics, ops, optimizers
from xnn.ops.apply import batch_mean, batch_sum
from xnn.ops.op import unbroadcast
from xnn.ops.sums import LONG, SHORT, pairwise_mean, pairwise_sum, product_over_rows

RNG = np.random.default_rng(0)
ROWS = 300_001
#: Numbers whose sum one after the other is wrong by 1e-3.
LONG_COLUMN = np.full((ROWS, 2), 0.7, np.float32)


def off(found, right):
    """The largest relative error."""
    return float(np.max(np.abs(np.asarray(found, np.float64) / right - 1.0)))


def test_numpys_own_sum_over_rows_is_wrong():
    assert off(np.sum(LONG_COLUMN, axis=0), ROWS * float(np.float32(0.7))) > 1e-4


RIGHT = ROWS * float(np.float32(0.7))
SUMS = {
    "pairwise_sum": lambda x: pairwise_sum(np, x, axis=0),
    "batch_sum": lambda x: batch_sum(np, x, axis=0),
    "unbroadcast": lambda x: unbroadcast(np, x, (2,)),
    "ops.sum": lambda x: ops.sum(x, axis=0),
    "ops.sum of a transposed array": lambda x: ops.sum(np.ascontiguousarray(x).T, axis=1),
    "ops.sum of an inner axis": lambda x: ops.sum(x.reshape(1, ROWS, 2), axis=1)[0],
    "ops.sum of two axes": lambda x: ops.sum(x.reshape(ROWS, 1, 2, 1), axis=(0, 3))[0],
    "ops.sum of all": lambda x: ops.sum(x) / np.float32(2.0),
    "ops.mean": lambda x: ops.mean(x, axis=0) * np.float32(ROWS),
    "pairwise_mean": lambda x: pairwise_mean(np, x, axis=0) * np.float32(ROWS),
    "batch_mean": lambda x: batch_mean(np, x) * np.float32(ROWS),
    "product_over_rows": lambda x: product_over_rows(np, np.ones((ROWS, 1), np.float32), x)[0],
    "one column": lambda x: product_over_rows(np, x, np.ones((ROWS, 1), np.float32))[:, 0],
    "gradient of a bias": lambda x: xnn.grad(lambda b: ops.sum(ops.mul(x + b, x)))(np.zeros(2, np.float32)),
    "dense": lambda x: xnn.grad(lambda b: ops.sum(ops.mul(ops.dense(x, np.eye(2, dtype="f4"), b), x)))(
        np.zeros(2, np.float32)
    ),
    "gradient of a weight": lambda x: xnn.grad(lambda w: ops.sum(ops.dense(x, w, np.zeros(2, np.float32))))(
        np.eye(2, dtype="f4")
    )[0],
    "gradient of a product": lambda x: xnn.grad(lambda w: ops.sum(x @ w))(np.ones((2, 1), np.float32))[:, 0],
    "gradient of an embedding": lambda x: xnn.grad(
        lambda w: ops.sum(ops.mul(ops.embedding(np.zeros(ROWS, int), w), x))
    )(np.zeros((1, 2), np.float32))[0],
    "moments": lambda x: ops.moments(x, axis=(0,))[0, 0] * np.float32(ROWS),
    "sum of losses": lambda x: ops.l1(x, np.zeros_like(x), reduction="sum") / np.float32(2.0),
    "mean of losses": lambda x: ops.l1(x, np.zeros_like(x)) * np.float32(ROWS),
    "metric": lambda x: metrics.MAE.count(np, x, np.zeros_like(x)),
}
#: Sums inside matrix products: the BLAS adds up to LONG rows in its own way.
PRODUCTS = ("product_over_rows", "one column", "gradient of a weight", "gradient of a product")


@pytest.mark.parametrize("name", SUMS)
def test_long_sums(name):
    found = SUMS[name](LONG_COLUMN)
    assert np.asarray(found).dtype == np.float32
    assert off(found, RIGHT) < (2e-5 if name in PRODUCTS else 1e-6)


@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
@pytest.mark.parametrize("rows", [200, 1000, 50_000])
@pytest.mark.parametrize("activation", [None, layers.ReLU, layers.Sigmoid, layers.Tanh])
def test_gradients_of_biases_and_weights_by_every_kernel(kernels, rows, activation):
    """r14: with weights of 0 each row has the same gradient, and one rounding too many shows."""
    if kernels == "compiled":
        pytest.importorskip("numba")
    x = np.full((rows, 1), 0.7, np.float32)
    y = (RNG.random(rows) < 0.7).astype(int)
    model = xnn.Sequential(
        layers.Dense(1, 3), *([activation()] if activation else []), layers.Dense(3, 2), seed=0
    )
    model.layers[0].weight.value = np.full((1, 3), 1.0)
    last = model.layers[-1]
    last.weight.value, last.bias.value = np.zeros((3, 2)), np.zeros(2)
    trainer = xnn.Trainer(
        model, losses.SoftmaxCrossEntropy(), optimizers.SGD(1.0), metrics=[], kernels=kernels
    )
    hidden = model.layers[0].run(x, training=False)
    hidden = hidden if activation is None else model.layers[1].run(hidden, training=False)
    trainer.fit((x, y), epochs=1, batch_size=rows, progress=False)
    share = 0.5 - np.array([(y == 0).mean(), (y == 1).mean()])
    assert off(-last.bias.value, share) < 2e-6  # the sum, and the roundings of the terms themselves
    assert off(-last.weight.value, np.float64(hidden[0, 0]) * share[None, :]) < 3e-5


@pytest.mark.parametrize("kernels", ["ops", "numpy"])
def test_gradients_of_a_convolution(kernels):
    images = np.full((3000, 1, 4, 4), 0.7, np.float32)
    model = xnn.Sequential(layers.Conv2D(1, 2, 3), layers.Flatten(), seed=0)
    loss = losses.Lambda(lambda outputs, targets: ops.sum(outputs))
    trainer = xnn.Trainer(model, loss, optimizers.SGD(1e-3), metrics=[], kernels=kernels)
    for p in model.parameters():
        p.value = np.zeros(p.shape)
    trainer.fit((images, np.zeros(3000)), epochs=1, batch_size=3000, progress=False)
    for p in model.parameters():
        right = 3000 * 4 * (float(np.float32(0.7)) if len(p.shape) > 1 else 1.0) * 1e-3
        assert off(-p.value, right) < (2e-5 if len(p.shape) > 1 else 2e-6)


@pytest.mark.parametrize("kernels", ["ops", "numpy", "compiled"])
def test_losses_of_many_classes(kernels):
    if kernels == "compiled":
        pytest.importorskip("numba")
    classes = 20_000
    logits = np.log(np.full((2, classes), 0.7)).astype(np.float32)
    logits[:, 0] = 0.0  # the largest, so that all other terms are 0.7
    model = xnn.Sequential(layers.Dense(1, classes), seed=0)
    model.layers[0].weight.value, model.layers[0].bias.value = np.zeros((1, classes)), logits[0]
    trainer = xnn.Trainer(
        model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.0), metrics=[], kernels=kernels
    )
    history = trainer.fit((np.ones((2, 1), "f4"), np.zeros(2, int)), epochs=1, batch_size=2, progress=False)
    right = np.log(np.sum(np.exp(logits[0].astype(np.float64))))
    assert off(history.epochs[-1]["loss"], right) < 1e-6


def test_counts_beyond_2_to_the_24():
    """In float32 1 + 2^24 is 2^24: counting by ones would end there."""
    rows = 2**24 + 4
    outputs, targets = np.zeros((rows, 1), np.float32), np.zeros((rows, 1), bool)
    assert int(ops.metrics.accuracy(np, outputs, targets)[0]) == rows


@pytest.mark.parametrize("shape", [(SHORT, 5), (1, 7), (0, 3), (SHORT,), (4, 3, 5), ()])
@pytest.mark.parametrize("keepdims", [False, True])
def test_short_sums_have_numpys_bits(shape, keepdims):
    x = RNG.normal(size=shape).astype(np.float32)
    for axis in (None, 0, -1) if shape else (None,):
        found, right = pairwise_sum(np, x, axis, keepdims), np.sum(x, axis=axis, keepdims=keepdims)
        assert (found.tobytes(), found.shape) == (right.tobytes(), right.shape)
        if x.size:
            assert (
                pairwise_mean(np, x, axis, keepdims).tobytes()
                == np.mean(x, axis=axis, keepdims=keepdims).tobytes()
            )
    a, b = (RNG.normal(size=(LONG, 3)).astype(np.float32) for _ in "ab")
    assert product_over_rows(np, a, b).tobytes() == np.matmul(a.T, b).tobytes()


@pytest.mark.parametrize(
    "shape", [(1000,), (129, 3), (3, 500, 2), (7, 9, 11, 13), (200, 0), (130, 1), (4, 2000)]
)
def test_every_axis(shape, lib):
    x = RNG.normal(size=shape)
    axes = [None, *range(len(shape)), *((0, a) for a in range(1, len(shape))), tuple(range(len(shape)))]
    for axis in axes:
        for keepdims in (False, True):
            found = lib.to_host(pairwise_sum(lib.xp, lib.to_device(x), axis, keepdims))
            np.testing.assert_allclose(found, x.sum(axis=axis, keepdims=keepdims), rtol=1e-10, atol=1e-10)


def test_integers_are_summed_as_integers():
    x = np.full((1000, 2), 2**30, np.int32)
    assert pairwise_sum(np, x, axis=0).tolist() == [1000 * 2**30] * 2
