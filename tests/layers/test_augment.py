"""Augmentation: what a warp does to pixels, whose numbers it depends on, and how it goes into training."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends import Purpose, Stream, backend, get_backend, numerics
from xnn.callbacks import Callback
from xnn.data import load, synthetic_digits
from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.layers.augment import affine_field
from xnn.layers.files import weights_sha256
from xnn.runs.mlp import mlp

NUMPY = get_backend("numpy")
RNG = np.random.default_rng(3)
IMAGES = RNG.standard_normal((6, 2, 7, 9)).astype(np.float32)


def warp(lib, x, field):
    return lib.to_host(ops.warp(lib.to_device(x), lib.to_device(field)))


# ---------------------------------------------------------------- warp


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_no_displacement_is_the_identity(lib, mode):
    with numerics(mode):
        assert warp(lib, IMAGES, np.zeros((6, 2, 7, 9), np.float32)).tobytes() == IMAGES.tobytes()


@pytest.mark.parametrize(("down", "right"), [(0, 1), (2, 0), (-1, 3), (7, 0), (100, 0), (0, -9), (-6, 8)])
def test_whole_pixels_move_exactly(lib, down, right):
    """What moves out is lost, what moves in is 0."""
    field = np.zeros((6, 2, 7, 9), np.float32)
    field[:, 0], field[:, 1] = down, right
    expected = np.zeros_like(IMAGES)
    for i in range(7):
        for j in range(9):
            if 0 <= i + down < 7 and 0 <= j + right < 9:
                expected[:, :, i, j] = IMAGES[:, :, i + down, j + right]
    np.testing.assert_array_equal(warp(lib, IMAGES, field), expected)


def by_definition(x, field):
    """One pixel after the other, in float64."""
    y = np.zeros(x.shape)
    for n, c, i, j in np.ndindex(x.shape):
        row, column = i + float(field[n, 0, i, j]), j + float(field[n, 1, i, j])
        for p in (math.floor(row), math.floor(row) + 1):
            for q in (math.floor(column), math.floor(column) + 1):
                if 0 <= p < x.shape[2] and 0 <= q < x.shape[3]:
                    y[n, c, i, j] += (1 - abs(row - p)) * (1 - abs(column - q)) * float(x[n, c, p, q])
    return y


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_between_four_pixels(n, channels, height, width, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, channels, height, width))
    field = rng.normal(0.0, 3.0, (n, 2, height, width))
    np.testing.assert_allclose(ops.warp(x, field), by_definition(x, field), atol=1e-12)


def test_agrees_with_torch():
    """grid_sample with zeros around, its places from -1 to 1; the gradients too."""
    torch = pytest.importorskip("torch")
    x, field = RNG.standard_normal((3, 2, 5, 4)), RNG.normal(0.0, 2.0, (3, 2, 5, 4))
    seed = RNG.standard_normal(x.shape)
    rows, columns = np.meshgrid(np.arange(5.0), np.arange(4.0), indexing="ij")
    tx, tf = (torch.tensor(a, requires_grad=True) for a in (x, field))
    grid = torch.stack(
        [(tf[:, 1] + torch.tensor(columns)) * (2 / 3) - 1, (tf[:, 0] + torch.tensor(rows)) * (2 / 4) - 1], -1
    )
    y = torch.nn.functional.grid_sample(tx, grid, align_corners=True)
    y.backward(torch.tensor(seed))
    ours, saved = ops.warp.forward(np, x, field)
    dx, df = ops.warp.backward(np, seed, saved)
    np.testing.assert_allclose(ours, y.detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(dx, tx.grad.numpy(), atol=1e-12)
    np.testing.assert_allclose(df, tf.grad.numpy(), atol=1e-11)


@pytest.mark.parametrize("shape", [(6, 126), (6, 14, 9), (6, 2, 7, 9), (6, 2, 63)])
def test_images_of_any_layout(lib, shape):
    field = RNG.normal(0.0, 2.0, (6, 2, 7, 9)).astype(np.float32)
    expected = warp(lib, IMAGES, field).reshape(shape)
    np.testing.assert_array_equal(warp(lib, IMAGES.reshape(shape), field), expected)


@pytest.mark.parametrize(
    ("x", "field"),
    [
        ((2, 12), (2, 2, 3, 5)),
        ((2, 12), (3, 2, 3, 4)),
        ((2, 12), (2, 1, 3, 4)),
        ((2, 12), (2, 2, 12)),
        ((2, 0), (2, 2, 0, 3)),
    ],
)
def test_shapes_that_do_not_fit(lib, x, field):
    with pytest.raises(ShapeError, match="warp of"):
        warp(lib, np.ones(x, np.float32), np.ones(field, np.float32))


def test_a_field_with_nan_makes_nan_and_no_warning(lib):
    field = np.zeros((6, 2, 7, 9), np.float32)
    field[1, 0, 2, 3], field[2, 1, 0, 0], field[3, 0, 0, 0] = np.nan, np.nan, np.inf
    y = warp(lib, IMAGES, field)
    assert np.isnan(y[1, :, 2, 3]).all()
    assert np.isnan(y[2, :, 0, 0]).all()
    assert np.count_nonzero(np.isnan(y)) == 4
    assert (y[3, :, 0, 0] == 0.0).all()


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_the_image_s_gradient_does_not_depend_on_the_rest_of_the_batch(lib, mode):
    """As workers need it: in exact numerics sums would otherwise be cut to the scale of the largest."""
    x = IMAGES * np.float32(10.0) ** np.arange(-6, 6, 2, dtype=np.float32)[:, None, None, None]
    field = RNG.normal(0.0, 2.0, (6, 2, 7, 9)).astype(np.float32)

    def gradient(rows):
        layer = Moved(lib.to_device(field[rows]))
        layer.forward(lib.to_device(x[rows]))
        return lib.to_host(layer.backward(lib.to_device(x[rows])))

    class Moved(layers.Layer):
        op = ops.warp

        def __init__(self, field):
            super().__init__()
            self.field = field

        def compute(self, x, training):
            return ops.warp(x, self.field)

    with numerics(mode):
        whole = gradient(slice(None))
        parts = np.concatenate([gradient(slice(0, 1)), gradient(slice(1, 4)), gradient(slice(4, 6))])
    assert whole.tobytes() == parts.tobytes()


# ---------------------------------------------------------------- maps and fields


def moved(degrees=0.0, factor=1.0, shift=(0.0, 0.0), image=IMAGES, lib=NUMPY):
    n, _, height, width = image.shape
    field = affine_field(
        lib, np.full(n, degrees), np.full(n, factor), np.tile(shift, (n, 1)), (height, width), "float32"
    )
    return lib.to_host(ops.warp(lib.to_device(image), field))


SQUARE = RNG.standard_normal((2, 1, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("turns", [1, 2, 3, -1])
@pytest.mark.parametrize("size", [8, 5])
def test_quarter_turns(lib, turns, size):
    image = SQUARE[:, :, :size, :size]
    expected = np.rot90(image, turns, axes=(2, 3))
    np.testing.assert_allclose(moved(90.0 * turns, image=image, lib=lib), expected, atol=1e-5)


def test_a_shift_moves_down_and_right():
    expected = np.zeros_like(IMAGES)
    expected[:, :, 2:, 3:] = IMAGES[:, :, :-2, :-3]
    np.testing.assert_array_equal(moved(shift=(2.0, 3.0)), expected)


def test_a_factor_makes_things_larger():
    y, x = np.meshgrid(np.arange(28) - 13.5, np.arange(28) - 13.5, indexing="ij")
    disc = (np.hypot(y, x) < 6.0).astype(np.float32)[None, None]
    for factor in (0.5, 1.5):
        assert moved(factor=factor, image=disc).sum() == pytest.approx(factor**2 * disc.sum(), rel=0.05)


def test_elastic_fields_are_smoothed_noise():
    """Against the convolution written out."""
    layer = layers.ElasticDeformation(5.0, 1.3)
    stream = Stream(4, Purpose.AUGMENT, 1, 2)
    field = layer.field(NUMPY, stream, 2, (6, 9), "float64")
    noise = NUMPY.signed(stream, (2, 2, 6, 9)).astype(float)
    total = sum(math.exp(-k * k / (2 * 1.3**2)) for k in range(-40, 41))
    expected = np.zeros_like(noise)
    for i, j, p, q in np.ndindex(6, 9, 6, 9):
        weight = math.exp(-((i - p) ** 2 + (j - q) ** 2) / (2 * 1.3**2)) / total**2
        expected[:, :, i, j] += 5.0 * weight * noise[:, :, p, q]
    np.testing.assert_allclose(field, expected, atol=1e-13)


def test_the_usual_fields_are_of_a_usual_size():
    elastic, affine = layers.augmentation((28, 28))
    field = elastic.field(NUMPY, Stream(0, Purpose.AUGMENT), 200, (28, 28), "float32")
    assert 1.0 < field.std() < 1.6
    assert abs(field.mean()) < 0.1
    corner = affine.field(NUMPY, Stream(0, Purpose.AUGMENT), 2000, (28, 28), "float32")[:, :, 0, 0]
    assert 4.0 < np.abs(corner).max() < 7.0
    large, _ = layers.augmentation((56, 56))
    assert (large.alpha, large.sigma) == (4 * elastic.alpha, 2 * elastic.sigma)


# ---------------------------------------------------------------- layers

LAYERS = [
    layers.RandomAffine(shift=2, rotation=30, scale=0.2, shape=(7, 9), seed=5),
    layers.ElasticDeformation(8.0, 1.5, shape=(7, 9), seed=5),
]
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)


def at(layer, lib, x, seed=5, step=3, row=0):
    layer.set_stream(seed, step, row)
    return lib.to_host(layer.forward(lib.to_device(x), training=True))


@each_layer
def test_inference_is_the_identity(lib, layer):
    x = lib.to_device(IMAGES)
    assert layer.forward(x) is x
    assert layer.backward(x) is x


@each_layer
def test_it_depends_on_seed_step_layer_and_row_alone(lib, layer):
    first = at(layer, lib, IMAGES)
    assert not np.array_equal(first, IMAGES)
    assert first.tobytes() == at(layer, lib, IMAGES).tobytes()
    for other in ({"seed": 6}, {"step": 4}, {"row": 1}):
        assert not np.array_equal(first, at(layer, lib, IMAGES, **other))
    same = np.repeat(IMAGES[:1], 6, axis=0)
    assert len(np.unique(at(layer, lib, same).reshape(6, -1), axis=0)) == 6  # each row in its own way
    layer.index = 1
    try:
        assert not np.array_equal(first, at(layer, lib, IMAGES))
    finally:
        layer.index = 0


@each_layer
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_any_split_of_a_batch_and_any_backend(lib, layer, mode):
    """The same bits in exact numerics, the same but for rounding in fast ones."""
    with numerics(mode):
        with backend("numpy"):
            whole = at(layer, NUMPY, IMAGES)
        parts = np.concatenate([at(layer, lib, IMAGES[a:b], row=a) for a, b in ((0, 1), (1, 4), (4, 6))])
    if mode == "exact":
        assert whole.tobytes() == parts.tobytes()
    np.testing.assert_allclose(whole, parts, atol=1e-5)


@each_layer
def test_successive_steps_by_hand(layer):
    layer.set_stream(5, 0)
    one, two = (layer.forward(IMAGES, training=True) for _ in range(2))
    assert not np.array_equal(one, two)
    assert np.array_equal(two, at(layer, NUMPY, IMAGES, step=1))


@each_layer
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtypes_stay(lib, layer, dtype):
    x = IMAGES.astype(dtype)
    y = at(layer, lib, x)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y, at(layer, lib, IMAGES), atol=1e-5)
    assert at(layer, lib, x[:0]).shape == (0, 2, 7, 9)


@each_layer
def test_a_backward_pass_through_the_same_field(lib, layer):
    x = IMAGES.astype(np.float64)
    y = at(layer, lib, x)
    seed = RNG.standard_normal(y.shape)
    dx = lib.to_host(layer.backward(lib.to_device(seed)))
    direction = RNG.standard_normal(x.shape)  # it is linear in x
    assert np.sum(at(layer, lib, direction) * seed) == pytest.approx(np.sum(dx * direction))


@pytest.mark.parametrize("idle", [layers.RandomAffine(), layers.ElasticDeformation(alpha=0.0)])
def test_nothing_asked_for_is_nothing_done(idle):
    assert idle.forward(IMAGES, training=True) is IMAGES


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.RandomAffine(shift=-1), "shift"),
        (lambda: layers.RandomAffine(rotation=math.inf), "rotation"),
        (lambda: layers.RandomAffine(scale=1.0), "scale"),
        (lambda: layers.RandomAffine(scale="0.1"), "scale"),
        (lambda: layers.RandomAffine(1, shape=28), "shape"),
        (lambda: layers.RandomAffine(1, shape=(28, 0)), "height and width"),
        (lambda: layers.RandomAffine(1, shape=(1, 28, 28)), "shape"),
        (lambda: layers.ElasticDeformation(alpha=-1), "alpha"),
        (lambda: layers.ElasticDeformation(sigma=0), "sigma"),
        (lambda: layers.ElasticDeformation(sigma=math.nan), "sigma"),
        (lambda: layers.augmentation(28), "shape"),
        (lambda: layers.augmentation((28, 28), -1), "strength"),
        (lambda: layers.augmentation((28, 28), 50), r"strength must be .* in \[0, 10\)"),
    ],
)
def test_options_that_are_none(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_inputs_that_are_none(lib):
    layer = layers.RandomAffine(1)
    for shape in ((4,), (4, 784)):
        with pytest.raises(ShapeError, match="shape="):
            layer.forward(lib.to_device(np.ones(shape, np.float32)), training=True)
    with pytest.raises(ShapeError, match="not images of that size"):
        layers.RandomAffine(1, shape=(5, 5)).forward(lib.to_device(IMAGES), training=True)
    with pytest.raises(DTypeError, match="Rescale"):
        layer.forward(lib.to_device(np.ones((2, 1, 4, 4), np.uint8)), training=True)
    with pytest.raises(ShapeError, match="not images of that size"):
        xnn.Sequential(layers.RandomAffine(1, shape=(5, 5)), layers.Dense(784, 2)).predict(np.ones((1, 784)))


# ---------------------------------------------------------------- in training


def build(extra=()):
    front = layers.RandomAffine(2, 15, 0.1, (28, 28)), layers.ElasticDeformation(34, 4, (28, 28))
    return xnn.Sequential(
        layers.Rescale(1 / 255), *front, layers.Dense(784, 16), layers.ReLU(), *extra, layers.Dense(16, 10)
    )


def train(model, mode, kernels="auto", rows=96, epochs=1, batch_size=32):
    x, y = synthetic_digits(rows)
    trainer = xnn.Trainer(
        model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels=kernels, numerics=mode
    )
    return trainer.fit((x, y), epochs=epochs, batch_size=batch_size, seed=7, progress=False)


def test_the_same_bits_with_any_kernels_and_on_any_backend_in_exact_numerics(other):
    runs = set()
    kinds = [("numpy", "ops"), ("numpy", "numpy"), ("numpy", "auto"), (other.name, "ops")]
    for name, kernels in kinds:
        with backend(name):
            model = build()
            history = train(model, "exact", kernels)
            runs.add((weights_sha256(model), history.losses_sha256))
    assert len(runs) == 1


def test_a_program_trains_as_the_layers_do_by_hand():
    """The same fields in the same steps; and two epochs see every image twice, never the same way."""
    model, by_hand = build(), build()
    history = train(model, "fast", rows=32, epochs=2, batch_size=32)
    x, y = synthetic_digits(32)
    loss, optimizer = losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1)
    found = []
    for step in range(2):
        order = Stream(7, Purpose.SHUFFLE, 0, step).permutation(32)
        by_hand.set_stream(7, step)
        found.append(float(loss.forward(by_hand.forward(x[order], training=True), y[order])))
        by_hand.backward(loss.backward(), input_gradient=False)
        optimizer.step(by_hand.parameters())
    np.testing.assert_allclose(history["loss"], found, rtol=1e-5)
    for a, b in zip(model.parameters(), by_hand.parameters(), strict=True):
        np.testing.assert_allclose(a.value, b.value, atol=1e-5)


def test_two_fits_of_one_epoch_are_one_of_two():
    whole, parts = build(), build()
    train(whole, "exact", epochs=2)
    x, y = synthetic_digits(96)
    trainer = xnn.Trainer(parts, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), numerics="exact")
    for _ in range(2):
        trainer.fit((x, y), seed=7, progress=False)
    assert weights_sha256(whole) == weights_sha256(parts)


def test_behind_a_layer_with_weights():
    """Then its gradient is asked for, in a program as by hand."""

    class Gradients(Callback):
        needs_gradients = True

    def fit(kernels):
        model = xnn.Sequential(
            layers.Dense(36, 36, seed=1), layers.RandomAffine(1, 20, 0.1, (6, 6)), layers.Dense(36, 2)
        )
        trainer = xnn.Trainer(
            model, losses.MSE(), optimizers.SGD(0.05), [], [Gradients()], kernels=kernels, numerics="exact"
        )
        x = np.random.default_rng(0).standard_normal((20, 36)).astype(np.float32)
        trainer.fit((x, x[:, :2]), batch_size=8, progress=False)
        return weights_sha256(model)

    assert fit("ops") == fit("numpy")


def test_a_saved_model_has_the_layers(tmp_path):
    model = build()
    train(model, "fast")
    model.save(tmp_path / "m.safetensors")
    again = xnn.load(tmp_path / "m.safetensors")
    assert repr(again) == repr(model)
    x, _ = synthetic_digits(20)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    again.set_stream(1, 2)
    model.set_stream(1, 2)
    np.testing.assert_array_equal(again.forward(x, training=True), model.forward(x, training=True))


def test_a_model_of_images_not_flat_takes_bytes():
    """Integers become the model's dtype where a Rescale does not come first."""
    x, y = synthetic_digits(64)
    model = xnn.Sequential(layers.RandomAffine(1), layers.Flatten(), layers.Dense(784, 10))
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(1e-4))
    history = trainer.fit((x.reshape(-1, 1, 28, 28), y), progress=False)
    assert np.isfinite(history["loss"]).all()


@pytest.mark.slow
@pytest.mark.data
def test_mnist_with_augmentation_learns():
    data = load("mnist")
    model = mlp(784, (100, 200), 10, rescale=(1 / 255, 0.0), augment=layers.augmentation((28, 28), 0.5))
    trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1))
    trainer.fit((data.x_train, data.y_train), epochs=2, batch_size=32, progress=False)
    assert trainer.evaluate((data.x_test, data.y_test))["accuracy"] > 0.93
