"""Calls with masks or integers among floating-point arrays: a kernel computes what the op does, or refuses."""

import numpy as np
import pytest

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends import available_backends, get_backend
from xnn.backends.kernels.binding import bind, interpret
from xnn.backends.kernels.calls import Call, Slot

HOST = get_backend("numpy")


@pytest.fixture(params=["numpy", "compiled", "cuda"])
def table(request):
    """The backend, its table of kernels, and the name of that."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    if request.param == "cuda" and (reason := available_backends()["cupy"]):
        pytest.skip(reason)
    lib = get_backend("cupy" if request.param == "cuda" else "numpy")
    return lib, lib.kernels(request.param), request.param


CALLS = {
    "dense": (ops.dense, [(4, 3), (3, 2), (2,)], (4, 2)),
    "dense without bias": (ops.dense, [(4, 3), (3, 2)], (4, 2)),
    "add": (ops.add, [(4, 3), (4, 3)], (4, 3)),
    **{op.name: (op, [(4, 3)], (4, 3)) for op in (ops.relu, ops.sigmoid, ops.tanh, ops.gelu, ops.silu)},
    "flatten": (ops.flatten, [(4, 3)], (4, 3)),
    "dropout": (ops.dropout, [(4, 3), (4, 3)], (4, 3)),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("other", ["bool", "uint8", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_kernel_reads_no_array_of_another_dtype(table, name, other, dtype):
    lib, kernels, _ = table
    op, shapes, shape = CALLS[name]
    rng = np.random.default_rng(1)
    for place in range(len(shapes)):
        given = [
            (rng.integers(0, 2, extents) if n == place else rng.normal(size=extents)).astype(
                other if n == place else dtype
            )
            for n, extents in enumerate(shapes)
        ]
        options = {"rate": 0.5} if op is ops.dropout else {}
        here = tuple(Slot(f"in {n}", x.shape, x.dtype, x) for n, x in enumerate(given))
        expected = Slot("out", shape, None)
        try:
            with np.errstate(all="ignore"):
                interpret(HOST, Call("forward", op, here, (expected,), options))()
        except TypeError:  # the op refuses masks
            continue
        there = tuple(Slot(slot.name, slot.shape, slot.dtype, lib.to_device(slot.array)) for slot in here)
        out = Slot("out", shape, expected.array.dtype)
        call = Call("forward", op, there, (out,), options)
        if not kernels.accepts(call):
            continue
        feed = kernels.feed((), 4, ())
        steps = bind(lib, kernels, [call])
        if feed is not None:
            feed.put(np.arange(4))
            feed.send(0, 4)
        for step in steps:
            step()
        np.testing.assert_allclose(lib.to_host(out.array), expected.array, rtol=1e-5, atol=1e-6)


class Positive(layers.Layer):
    """A dense layer of which inputs are positive."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(6, 5, seed=3)

    def compute(self, x, training):
        return ops.dense(x > 0.0, self.dense.weight, self.dense.bias)


def test_a_product_with_a_mask_trains_as_by_the_ops(table):
    lib, _, own = table
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 6)).astype(np.float32), rng.integers(0, 3, 8)

    def weights(name):
        with xnn.backend(lib.name):
            model = xnn.Sequential(Positive(), layers.Dense(5, 3, seed=2))
            trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels=name)
            trainer.fit((x, y), epochs=2, batch_size=4, progress=False)
            return np.concatenate([lib.to_host(p.value).ravel() for p in model.parameters()])

    np.testing.assert_allclose(weights(own), weights("ops"), rtol=1e-4, atol=1e-6)
