"""The kernels of convolution compared with the op, over several steps with the same buffers."""

import numpy as np
import pytest
from test_kernels import LIB, close, numbers

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends.kernels.binding import bind, interpret
from xnn.backends.kernels.calls import Call, Slot
from xnn.layers.files import weights_sha256

TABLE = LIB.kernels("numpy")

CASES = [
    ((2, 1, 5, 5), (3, 1, 3, 3), {}),
    ((3, 2, 6, 7), (4, 2, 2, 3), {"stride": (2, 1), "padding": (1, 2)}),
    ((2, 3, 8, 9), (2, 3, 3, 2), {"dilation": (2, 3), "padding": 2}),
    ((4, 2, 7, 6), (5, 2, 4, 3), {"padding": "same", "dilation": (1, 2)}),
    ((1, 4, 1, 1), (2, 4, 1, 1), {}),
    ((5, 2, 9, 4), (3, 2, 2, 2), {"stride": 3}),
    ((2, 1, 3, 3), (1, 1, 5, 5), {"padding": 3, "stride": 2}),
]


def slots_of(x, w, options, dtype, bias):
    output = ops.conv2d(np.zeros(x, dtype), np.zeros(w, dtype), **options).shape
    names = {"x": x, "w": w, "b": w[:1], "y": output, "dy": output, "dx": x, "dw": w, "db": w[:1]}
    slots = {name: Slot(name, shape, np.dtype(dtype)) for name, shape in names.items()}
    for n, name in enumerate(("x", "w", "b", "dy")):
        slots[name].array = numbers(names[name], dtype, n + 1)
    return slots if bias else {name: slot for name, slot in slots.items() if name not in ("b", "db")}


def calls_of(s, options, unwanted):
    reads = tuple(s[name] for name in ("x", "w", "b") if name in s)
    writes = tuple(None if name in unwanted else s[name] for name in ("dx", "dw", "db") if name in s)
    forward = Call("forward", ops.conv2d, reads, (s["y"],), options)
    return [forward, Call("backward", ops.conv2d, (s["dy"],), writes, forward=forward)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("unwanted", [(), ("dx",), ("dw", "db")], ids=str)
def test_conv2d(case, dtype, bias, unwanted):
    kernel, plain = (slots_of(*case, dtype, bias) for _ in range(2))
    calls = calls_of(kernel, case[2], unwanted)
    assert all(map(TABLE.accepts, calls))
    steps, others = bind(LIB, TABLE, calls), [interpret(LIB, c) for c in calls_of(plain, case[2], unwanted)]
    for turn in range(3):  # the second and third turn write over used buffers
        for s in (kernel, plain):
            for n, name in enumerate(("x", "dy")):
                np.copyto(s[name].array, numbers(s[name].shape, dtype, 10 * turn + n))
        for step in (*steps, *others):
            step()
        terms = 4.0 * kernel["dy"].array.size
        for name in {"y", "dx", "dw", "db"} & kernel.keys() - set(unwanted):
            close(kernel[name].array, plain[name].array, terms=terms)
        for name in ("x", "w", "dy"):
            assert kernel[name].array.tobytes() == plain[name].array.tobytes()


def test_empty_images_have_no_kernel():
    s = {"x": Slot("x", (0, 1, 5, 5), np.dtype("f4")), "w": Slot("w", (3, 1, 3, 3), np.dtype("f4"))}
    s |= {"y": Slot("y", (0, 3, 3, 3), np.dtype("f4"))}
    assert not TABLE.accepts(Call("forward", ops.conv2d, (s["x"], s["w"]), (s["y"],)))


def net():
    return xnn.Sequential(
        layers.Rescale(1 / 255),
        layers.Reshape((1, 28, 28)),
        layers.Conv2D(1, 4, 5, stride=2),
        layers.ReLU(),
        layers.Conv2D(4, 6, 3, padding="same", bias=False),
        layers.MaxPool2D(2),
        layers.Flatten(),
        layers.Dense(216, 10),
        seed=3,
    )


@pytest.mark.parametrize("optimizer", [optimizers.SGD, optimizers.Adam])
def test_training_by_kernels_agrees_with_training_by_ops(optimizer):
    x, y = xnn.data.synthetic_digits(150)
    models = []
    for kernels in ("ops", "numpy"):
        models.append(net())
        trainer = xnn.Trainer(models[-1], losses.SoftmaxCrossEntropy(), optimizer(0.01), kernels=kernels)
        history = trainer.fit((x, y), epochs=2, batch_size=32, progress=False)
    assert history.plan["kernels"] == "numpy"
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-3, atol=1e-5)
    assert weights_sha256(models[0]) != weights_sha256(models[1])  # kernels add in another order
