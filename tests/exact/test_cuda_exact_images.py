"""Exact numerics' CUDA kernels of convolution and pooling have the bits of the ops, which NumPy runs."""

import numpy as np
import pytest
from test_cuda_exact import HOST, Both, exact, pytestmark, raw
from test_cuda_image_kernels import LARGER, POOLS, conv_calls
from test_exact_kernels import Y, numbers
from test_image_kernels import CASES

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends.kernels.calls import Call
from xnn.layers.files import weights_sha256

__all__ = ["exact", "pytestmark"]


def slots(both, x, w, options, kind):
    y = ops.conv2d(np.zeros(x, "f4"), np.zeros(w, "f4"), **options).shape
    for number, (name, shape) in enumerate({"w": w, "b": w[:1], "dy": y}.items()):
        both.slot(name, raw(shape, number, kind if name == "dy" else "plain"))
    for name, shape in {"z": y, "y": y, "dz": y, "dx": x, "dw": w, "db": w[:1]}.items():
        both.empty(name, shape)


@pytest.mark.parametrize("case", [*CASES, LARGER[0]], ids=str)
@pytest.mark.parametrize(("activation", "bias"), [(None, True), (ops.relu, True), (ops.tanh, False)], ids=str)
def test_conv2d(case, activation, bias):
    x, w, options = case
    for kind in ("hostile", "foreign" if activation is None else "wide"):
        both = Both()
        both.slot("x", raw(x, 1, kind))
        slots(both, x, w, options, kind)
        found = both.run(lambda s: conv_calls(s, options, activation, bias))
        both.check(found, "y" if activation else "z", "dx", "dw", "x", "w", "dy", *["db"] * bias)


@pytest.mark.parametrize("unwanted", [("dx",), ("dx", "dw"), ("dx", "db")], ids=str)
@pytest.mark.parametrize("pixels", [True, False])
def test_conv2d_of_pixels_and_gradients_that_nothing_needs(unwanted, pixels):
    x, w, options = (3, 2, 9, 8), (5, 2, 3, 2), {"stride": (2, 1), "padding": 1}
    both = Both()
    if pixels:
        both.pixels("x", (np.arange(432) * 7919 % 251).astype(np.uint8).reshape(x), 1 / 255)
    else:
        both.slot("x", numbers(x, 1))
    slots(both, x, w, options, "wide")
    found = both.run(lambda s: conv_calls(s, options, ops.relu, True, unwanted))
    both.check(found, "y", *({"dw", "db"} - set(unwanted)))


@pytest.mark.parametrize(
    "case", [*POOLS, ((2, 3, 9, 8), {"kernel_size": 2, "dilation": 3, "stride": 1})], ids=str
)
@pytest.mark.parametrize("op", [ops.max_pool2d, ops.avg_pool2d], ids=lambda op: op.name)
@pytest.mark.parametrize("kind", ["plain", "hostile", "foreign"])
def test_pooling(case, op, kind):
    """Also of NaN, infinities and windows with several largest elements."""
    shape, options = case
    if op is ops.avg_pool2d and "dilation" in options:
        pytest.skip("average pooling has no dilation")
    x = raw(shape, 1, kind)
    with np.errstate(over="ignore"):
        x = x if kind == "foreign" else np.asarray(HOST.exact.leave(np.round(x, 1)))
    y = op(np.zeros(shape, "f4"), **options).shape
    both = Both()
    both.slot("x", x)
    both.slot("dy", raw(y, 2, "wide"))
    both.empty("y", y)
    both.empty("dx", shape)

    def make(s):
        forward = Call("forward", op, (s["x"],), (s["y"],), options)
        return [forward, Call("backward", op, (s["dy"],), (s["dx"],), forward=forward)]

    both.check(both.run(make), "y", "dx", "x")


@pytest.mark.parametrize("floats", [False, True])
def test_a_network_of_images_has_the_bits_of_numpy(floats, capsys):
    """Every call of it has a kernel."""
    x, found = (np.arange(150 * 64) * 7919 % 251).astype(np.uint8).reshape(150, 1, 8, 8), []
    x = (x / 255).astype(np.float32) if floats else x
    for name in ("numpy", "cupy"):
        with xnn.backends.backend(name):
            first = [] if floats else [layers.Rescale(1 / 255)]
            model = xnn.Sequential(
                *first, layers.Conv2D(1, 4, 3, padding=1), layers.ReLU(), layers.MaxPool2D(2), layers.Conv2D(4, 6, 3),
                layers.Tanh(), layers.AvgPool2D(2), layers.Flatten(), layers.Dense(6, 10), seed=1,
            )  # fmt: skip
            trainer = xnn.Trainer(
                model, losses.SoftmaxCrossEntropy(), optimizers.Adam(0.01), metrics=["accuracy"]
            )
            history = trainer.fit((x, Y), epochs=2, batch_size=40, progress=False)
            found.append((history.losses_sha256, weights_sha256(model), history.epochs))
    assert found[0] == found[1]
    assert "no CUDA kernel" not in capsys.readouterr().err
