"""The compiled kernels of sums of branches and of means over images compared with their ops."""

import numpy as np
import pytest
from test_kernels import DTYPES, LIB, Both, close, numbers
from test_pooling_kernels import pass_through

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends.kernels.calls import Call, Slot

pytest.importorskip("numba")


@pytest.fixture
def both():
    return Both(LIB.kernels("compiled"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (19, 3, 5, 7)])
@pytest.mark.parametrize("terms", [1, 2, 5])
@pytest.mark.parametrize("special", [False, True])
def test_sums(both, shape, terms, special, dtype):
    names = [f"x{k}" for k in range(terms)]
    for k, name in enumerate(names):
        both.slot(name, numbers(shape, dtype, k + 1, special and k == 0))
        both.empty(f"d{name}", shape, dtype)
    both.slot("dy", numbers(shape, dtype, 9))
    both.empty("y", shape, dtype)
    both.empty("total", shape, dtype)

    def make(s):
        forward = Call("forward", ops.add, tuple(s[name] for name in names), (s["y"],))
        writes = tuple(s[f"d{name}"] if k != 1 else None for k, name in enumerate(names))
        backward = Call("backward", ops.add, (s["dy"],), writes, forward=forward)
        return [forward, backward, Call("add", None, forward.reads, (s["total"],))]

    found = both.run(make)
    for name in ("y", "total", *(f"d{name}" for k, name in enumerate(names) if k != 1)):
        np.testing.assert_array_equal(*found[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("options", [{"axis": (2, 3)}, {"axis": (-1, 2), "keepdims": True}], ids=str)
@pytest.mark.parametrize("shape", [(3, 2, 1, 1), (17, 5, 7, 9)])
def test_mean(both, shape, options, special, dtype):
    found = pass_through(both, ops.mean, shape, options, numbers(shape, dtype, 1, special), dtype)
    close(*found["y"], 8, special)
    close(*found["dx"], 8, special)


@pytest.mark.parametrize(
    ("op", "shapes", "options"),
    [
        (ops.add, [(4, 3), (3,), (4, 3)], {}),
        (ops.add, [(4,), (4,), (4,)], {}),
        (ops.mean, [(4, 3, 2, 2), (4, 2)], {"axis": (1, 3)}),
        (ops.mean, [(4, 3, 2, 2), ()], {}),
    ],
)
def test_other_shapes_have_no_kernel(op, shapes, options):
    *reads, written = (Slot("x", shape, np.dtype("f4")) for shape in shapes)
    assert not LIB.kernels("compiled").own(Call("forward", op, tuple(reads), (written,), options))


class Twice(layers.Layer):
    """A convolution, ReLU, and the same convolution again."""

    def __init__(self):
        super().__init__()
        self.convolution = layers.Conv2D(8, 8, 3, padding=1, bias=False)

    def compute(self, x, training):
        return self.convolution(ops.relu(self.convolution(x)))


def test_shared_weights_of_as_many_outputs_as_samples():
    """Two gradients of one weight are added after both are there; the weight has as many rows as the batch."""
    x, y = xnn.data.synthetic_digits(16)
    found = []
    for kernels in ("ops", "compiled"):
        net = xnn.Sequential(
            layers.Rescale(1 / 255), layers.Reshape((1, 28, 28)), layers.Conv2D(1, 8, 3, padding=1), Twice(),
            layers.GlobalAvgPool(), layers.Dense(8, 10), seed=1,
        )  # fmt: skip
        trainer = xnn.Trainer(net, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels=kernels)
        trainer.fit((x, y), epochs=2, batch_size=8, progress=False)
        found.append([np.array(p.value) for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
