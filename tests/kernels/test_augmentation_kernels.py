"""The compiled kernels of augmentation compared with the layers' own draws and with the op."""

import numpy as np
import pytest
from test_kernels import DTYPES, LIB, Both, close, numbers

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends import Purpose, Stream
from xnn.backends.kernels.binding import bind
from xnn.backends.kernels.calls import Call, Cursor, Slot
from xnn.backends.random import ElasticField

pytest.importorskip("numba")

LAYERS = {
    "affine": lambda: layers.RandomAffine(shift=2.0, rotation=20.0, scale=0.3),
    "shift": lambda: layers.RandomAffine(shift=1.5),
    "elastic": lambda: layers.ElasticDeformation(),
    "stiff": lambda: layers.ElasticDeformation(alpha=0.5, sigma=0.4),
}


def drawn(recipe, shape, dtype, seed, step):
    cursor = Cursor(np.arange(1), np.array([seed, step], np.uint64))
    target = Slot("field", shape, np.dtype(dtype))
    call = Call("draw", None, (), (target,), {"recipe": recipe, "again": 0, "cursor": cursor})
    table = LIB.kernels("compiled")
    assert table.own(call)
    bind(LIB, table, [call])[0]()
    return target.array


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (32, 28, 28)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("seed", "step", "index"), [(0, 0, 0), (2**64 - 1, 12345678901, 7)])
def test_displacements_are_those_of_the_layer(name, shape, dtype, seed, step, index):
    """The random bits are equal, so only rounding differs."""
    n, *size = shape
    layer = LAYERS[name]()
    layer.index = index
    right = layer.field(LIB, Stream(seed, Purpose.AUGMENT, index, step), n, tuple(size), dtype)
    close(drawn(layer.recipe, (n, 2, *size), dtype, seed, step), right, 64, size=1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_has_the_bits_of_the_generator(dtype):
    """A smoothing that changes nothing shows the noise itself."""
    recipe = ElasticField(Purpose.AUGMENT, 2, 1.0, 1.0, lambda extent, dtype: np.eye(extent, dtype=dtype))
    right = LIB.signed(Stream(9, Purpose.AUGMENT, 2, 4), (3, 2, 5, 7))
    np.testing.assert_array_equal(drawn(recipe, (3, 2, 5, 7), dtype, 9, 4), right.astype(dtype))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 3, 7, 6), (4, 42), (4, 6, 7), (3, 84)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [False, True])
def test_warp(shape, dtype, special):
    """Also far outside the image, and of NaN and infinities in images and displacements."""
    both = Both(LIB.kernels("compiled"))
    size = (1, 1) if shape[-1] == 1 else (7, 6) if shape[0] == 5 else (6, 7)
    field = numbers((shape[0], 2, *size), dtype, 2) * np.dtype(dtype).type(3)
    if special:
        flat, far = field.reshape(-1), [0.0, -7.0, np.nan, np.inf, -np.inf, 1e30, -1e30]
        flat[-7:] = far[-flat.size :]
    both.slot("x", numbers(shape, dtype, 1, special))
    both.slot("field", field)
    both.empty("y", shape, dtype)
    found = both.run(lambda s: [Call("forward", ops.warp, (s["x"], s["field"]), (s["y"],))])
    close(*found["y"], 8, special=special)


def test_training_on_changed_images_is_that_of_the_ops_whatever_the_threads():
    x, y = np.arange(40 * 49).reshape(40, 49) * 37 % 256, np.arange(40) % 3

    def trained(kernels, threads=1):
        stack = [
            layers.Rescale(1 / 255),
            *layers.augmentation((7, 7)),
            layers.Dropout(0.2),
            layers.Dense(49, 3),
        ]
        model = xnn.Sequential(*stack, seed=1)
        how = {"kernels": kernels, "threads": threads}
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.AdamW(0.01), **how)
        trainer.fit((x.astype(np.uint8), y), epochs=2, batch_size=16, progress=False)
        return model.layers[-1].weight.value

    np.testing.assert_allclose(trained("compiled"), trained("ops"), rtol=1e-4, atol=1e-6)
    assert trained("compiled", 2).tobytes() == trained("compiled").tobytes()
