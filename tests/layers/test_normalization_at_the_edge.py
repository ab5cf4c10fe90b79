"""Normalization of few rows, and of numbers up to the ends of float32's range."""

import warnings

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.errors import ShapeError
from xnn.layers import BatchNorm, Dense, LayerNorm, Sequential
from xnn.ops.normalization import running_moments


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_a_batch_of_no_rows_moves_no_statistics(lib, numerics):
    with xnn.numerics(numerics):
        layer = BatchNorm(2)
        assert layer.forward(lib.to_device(np.zeros((0, 2), np.float32)), training=True).shape == (0, 2)
        assert [lib.to_host(b.value).tolist() for b in layer.buffers()] == [[0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("shape", [(1, 2), (1, 2, 1), (1, 2, 1, 1)])
def test_one_value_for_each_channel_has_no_variance(shape):
    layer = BatchNorm(2)
    with pytest.raises(ShapeError, match="one value for each channel has no variance"):
        layer.forward(np.ones(shape, np.float32), training=True)
    assert [b.value.tolist() for b in layer.buffers()] == [[0.0, 0.0], [1.0, 1.0]]
    assert layer.forward(np.ones(shape, np.float32)).shape == shape
    assert layer.forward(np.ones((*shape[:2], 2), np.float32), training=True).shape == (*shape[:2], 2)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_running_variances_move_only_by_batches_that_have_one(n):
    mean, variance, moments = np.array([1.0]), np.array([2.0]), np.array([[5.0], [3.0]])
    got = running_moments(np, mean, variance, moments, momentum=0.5, axis=(0,), shape=(n, 1))
    assert [x.item() for x in got] == [[1.0, 2.0], [3.0, 2.0], [3.0, 4.0]][n]


def test_a_last_batch_of_one_row_is_refused_before_training():
    x = np.random.default_rng(0).normal(size=(33, 4)).astype(np.float32) * 3 + 1
    model = Sequential(BatchNorm(4), Dense(4, 1), seed=0)
    trainer = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.05))
    before = [p.value.copy() for p in (*model.parameters(), *model.buffers())]
    for size in (32, 16, 2):
        said = rf"33 rows in batches of {size} leave one row .* another batch_size, such as .*BatchNorm\(4\)"
        with pytest.raises(ShapeError, match=said):
            trainer.fit((x, x[:, :1]), batch_size=size, progress=False)
    with pytest.raises(ShapeError, match="at least two rows"):
        trainer.fit((x, x[:, :1]), batch_size=1, progress=False)
    for now, then in zip((*model.parameters(), *model.buffers()), before, strict=True):
        np.testing.assert_array_equal(now.value, then)
    for size in (31, 33, 64):
        trainer.fit((x, x[:, :1]), epochs=100, batch_size=size, progress=False)
    ratio = model.buffers()[1].value / x.var(0, ddof=1)
    np.testing.assert_allclose(ratio, 1.0, atol=0.2)
    assert trainer.evaluate((x, x[:, :1]), batch_size=32)["loss"] < 0.02  # the last batch has one row


def test_a_last_batch_of_one_image_is_normalized():
    x = np.random.default_rng(0).normal(size=(5, 2, 3, 3)).astype(np.float32)
    model = Sequential(BatchNorm(2), layers.Flatten(), Dense(18, 1), seed=0)
    history = xnn.Trainer(model, losses.MSE(), optimizers.SGD(0.05)).fit(
        (x, x[:, 0, 0, :1]), batch_size=4, progress=False
    )
    assert np.isfinite(history["loss"]).all()


SIZES = [3e38, 1e30, 1e20, 1e10, 1.0, 1e-10, 1e-22, 1e-30]


@pytest.mark.parametrize("epsilon", [1e-5, 1e-24, 0.0])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_any_size_of_numbers_is_normalized(lib, numerics, size, epsilon):
    """LayerNorm's outputs and gradients, and BatchNorm's outputs, against the formula in float64."""
    rng = np.random.default_rng(1)
    x = (np.clip(rng.normal(size=(5, 6)) / 3, -1, 1) * size).astype(np.float32)
    grad = rng.normal(size=(5, 6)).astype(np.float32)
    wide = x.astype(np.float64)
    for axis in (1, 0):
        away = wide - wide.mean(axis, keepdims=True)
        root = 1 / np.sqrt((away**2).mean(axis, keepdims=True) + epsilon)
        z = away * root
        dx = root * (grad - grad.mean(axis, keepdims=True) - z * (grad * z).mean(axis, keepdims=True))
        layer = LayerNorm(6, epsilon=epsilon) if axis else BatchNorm(6, epsilon=epsilon)
        with xnn.numerics(numerics), warnings.catch_warnings():
            if axis == 0:  # the running variance may overflow
                warnings.simplefilter("ignore")
            y = layer.forward(lib.to_device(x), training=True)
            np.testing.assert_allclose(lib.to_host(y), z, rtol=2e-5, atol=2e-6 * abs(z).max())
            got = lib.to_host(layer.backward(lib.to_device(grad)))
        if 1e-37 < abs(dx).max() < 1e38:  # as float32 can hold it
            np.testing.assert_allclose(got, dx, rtol=1e-4, atol=2e-5 * abs(dx).max())


@pytest.mark.parametrize("size", [1e20, 1e-25])
def test_moments_of_any_size(lib, size):
    x = (np.array([[1.0, 3.0], [2.0, 2.0], [5.0, -1.0]]) * size).astype(np.float32)
    y, _ = ops.moments.forward(lib.xp, lib.to_device(x), axis=(1,), scaled=True)
    mean, variance, scale = lib.to_host(y).astype(np.float64)[..., 0]
    np.testing.assert_allclose(mean / size, [2, 2, 2], rtol=1e-6)
    np.testing.assert_allclose(variance / scale**2 / size**2, [1, 0, 9], rtol=1e-6)
    assert np.log2(scale).tolist() == [np.log2(scale[0]).round()] * 3
    same = lib.to_host(ops.moments(lib.to_device(np.ones((2, 3))), axis=(1,)))
    assert same[..., 0].tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("size", [1e17, 1e-17])
def test_sums_of_squares_may_overflow_where_the_variance_does_not(lib, size):
    """The variance of 1e17 is 1e34, but the sum of 100,000 squares is beyond float32."""
    x = np.where(np.arange(100_000) % 2, size, -size).astype(np.float32).reshape(-1, 1)
    layer = BatchNorm(1, momentum=1.0, epsilon=0.0)
    y = lib.to_host(layer.forward(lib.to_device(x), training=True))
    np.testing.assert_allclose(abs(y), 1.0, rtol=1e-5)
    np.testing.assert_allclose(lib.to_host(layer.running_var.value), size**2, rtol=1e-4)
