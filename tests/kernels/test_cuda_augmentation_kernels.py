"""The CUDA kernels of augmentation compared with the layers' own draws and with the op, which NumPy runs."""

import numpy as np
import pytest
from test_cuda_image_kernels import both
from test_cuda_kernels import DTYPES, HOST, close, numbers, pytestmark

from xnn import layers, ops
from xnn.backends import Purpose, Stream
from xnn.backends.kernels.calls import Call
from xnn.backends.random import ElasticField

__all__ = ["both", "pytestmark"]

LAYERS = {
    "affine": lambda: layers.RandomAffine(shift=2.0, rotation=20.0, scale=0.3),
    "shift": lambda: layers.RandomAffine(shift=1.5),
    "elastic": lambda: layers.ElasticDeformation(),
    "stiff": lambda: layers.ElasticDeformation(alpha=0.5, sigma=0.4),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (32, 28, 28)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("seed", "step", "index"), [(0, 0, 0), (2**64 - 1, 12345678901, 7)])
def test_displacements_are_those_of_the_layer(both, name, shape, dtype, seed, step, index):
    """The random bits are equal, so only rounding differs."""
    n, *size = shape
    layer = LAYERS[name]()
    layer.index = index
    both.empty("field", (n, 2, *size), dtype)

    def make(s):
        stream = Stream(seed, Purpose.AUGMENT, index, step)
        options = {"make": lambda: layer.field(HOST, stream, n, tuple(size), dtype), "recipe": layer.recipe}
        return [Call("draw", None, (), (s["field"],), options)]

    kernel, right = both.run(make, number=step, seed=seed)["field"]
    close(kernel, right, 64, size=1.0)
    assert both.launches == (1 if "RandomAffine" in type(layer).__name__ else 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_has_the_bits_of_the_generator(both, dtype):
    """A smoothing that changes nothing shows the noise itself."""
    recipe = ElasticField(Purpose.AUGMENT, 2, 1.0, 1.0, lambda extent, dtype: np.eye(extent, dtype=dtype))
    both.empty("field", (3, 2, 5, 7), dtype)

    def make(s):
        stream = Stream(9, Purpose.AUGMENT, 2, 4)
        options = {"make": lambda: HOST.signed(stream, (3, 2, 5, 7)), "recipe": recipe}
        return [Call("draw", None, (), (s["field"],), options)]

    kernel, right = both.run(make, number=4, seed=9)["field"]
    np.testing.assert_array_equal(kernel, right.astype(dtype))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 3, 7, 6), (4, 42), (4, 6, 7), (3, 84)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [False, True])
def test_warp(both, shape, dtype, special):
    """Also far outside the image, and of NaN and infinities in images and displacements."""
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


@pytest.mark.parametrize("base", [layers.Dropout, layers.RandomAffine, layers.ElasticDeformation])
def test_a_subclass_that_draws_otherwise_has_no_recipe(base):
    assert base().recipe is not None

    class Other(base):
        def draw(self, lib, stream, x):
            return super().draw(lib, stream, x)

    assert Other().recipe is None


def test_a_sigma_that_is_assigned_takes_effect():
    """Also after a field was drawn with another one."""
    layer, stream = layers.ElasticDeformation(), Stream(1, Purpose.AUGMENT)
    layer.field(HOST, stream, 2, (6, 5), "float32")
    layer.sigma = 1.0
    fresh = layers.ElasticDeformation(sigma=1.0).field(HOST, stream, 2, (6, 5), "float32")
    np.testing.assert_array_equal(layer.field(HOST, stream, 2, (6, 5), "float32"), fresh)
