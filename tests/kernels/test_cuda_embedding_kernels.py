"""The CUDA kernels of embeddings compared with the op, which NumPy runs."""

import numpy as np
import pytest
from test_cuda_image_kernels import both
from test_cuda_kernels import DTYPES, close, numbers, pytestmark

from xnn import ops
from xnn.backends import Purpose, Stream
from xnn.backends.kernels.calls import Call, Slot

__all__ = ["both", "pytestmark"]

#: The shape of the indices, the rows and the width of the table.
CASES = [((1,), 1, 1), ((7, 3), 5, 4), ((300,), 1, 3), ((40, 30), 90, 33), ((5000,), 3, 2), ((20,), 3, 2500)]


def run(both, indices, table, dtype):
    y = (*indices.shape, table[1])
    both.slot("i", indices)
    both.slot("w", numbers(table, dtype, 1))
    both.slot("dy", numbers(y, dtype, 2))
    both.empty("y", y, dtype)
    both.empty("dw", table, dtype)

    def make(s):
        forward = Call("forward", ops.embedding, (s["i"], s["w"]), (s["y"],))
        return [forward, Call("backward", ops.embedding, (s["dy"],), (None, s["dw"]), forward=forward)]

    return both.run(make)


def chosen(shape, count):
    return (np.asarray(Stream(4, Purpose.DIRECTIONS).uniform(shape)) * count).astype(np.int64)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["int64", "uint8", "int16"])
def test_embedding(both, case, dtype, kind):
    shape, count, width = case
    found = run(both, chosen(shape, count).astype(kind), (count, width), dtype)
    np.testing.assert_array_equal(*found["y"])
    close(*found["dw"], 64 + np.prod(shape) ** 0.5, size=4.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [-1, 5, 2**40, -(2**62)])
def test_a_wrong_index_gives_nan_and_no_gradient(both, dtype, wrong):
    indices = chosen((6, 4), 5)
    indices[2, 1] = wrong
    found = run(both, indices, (5, 3), dtype)
    close(*found["y"], 1, special=True)
    close(*found["dw"], 64)
    assert np.isnan(found["y"][0][2, 1]).all()


def test_the_gradient_is_the_same_in_every_run(both):
    """Many places chose the same few rows; 64 sums of float32 in another order would differ."""
    indices = chosen((5000,), 2)
    first, second = (run(both, indices, (2, 3), "float32")["dw"][0].tobytes() for _ in range(2))
    assert first == second


def test_what_has_no_kernel(gpu_table):
    def slot(name, shape, dtype):
        return Slot(name, shape, np.dtype(dtype))

    for indices, weight in (
        (slot("i", (3,), "float32"), slot("w", (3, 2), "float32")),
        (slot("i", (0,), "int64"), slot("w", (3, 2), "float32")),
        (slot("i", (3,), "int64"), slot("w", (3, 2), "float16")),
    ):
        y = slot("y", (*indices.shape, 2), weight.dtype)
        assert not gpu_table.accepts(Call("forward", ops.embedding, (indices, weight), (y,)))


@pytest.fixture
def gpu_table():
    from xnn.backends import get_backend

    return get_backend("cupy").kernels("cuda")
