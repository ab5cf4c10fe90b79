"""The kernels of convolution compared with the op, over several steps with the same buffers."""

import numpy as np
import pytest
from test_kernels import LIB, close, numbers

import xnn
from xnn import initializers, layers, losses, ops, optimizers
from xnn.backends.kernels import row_kernels
from xnn.backends.kernels.binding import bind, interpret
from xnn.backends.kernels.calls import Call, Slot
from xnn.layers.files import weights_sha256

TABLE = LIB.kernels("numpy")


@pytest.fixture(params=["windows", "rows", "compiled"])
def table(request, monkeypatch):
    """The kernels of Numba, and the two of NumPy for all cases; rows: also for a few images at a time."""
    if request.param == "compiled":
        pytest.importorskip("numba")
        return LIB.kernels("compiled")
    monkeypatch.setattr(row_kernels, "_has_long_rows", lambda call: request.param == "rows")
    monkeypatch.setattr(row_kernels, "_PLACES", 250)
    return LIB.kernels("numpy")


CASES = [
    ((2, 1, 5, 5), (3, 1, 3, 3), {}),
    ((3, 2, 6, 7), (4, 2, 2, 3), {"stride": (2, 1), "padding": (1, 2)}),
    ((2, 3, 8, 9), (2, 3, 3, 2), {"dilation": (2, 3), "padding": 2}),
    ((4, 2, 7, 6), (5, 2, 4, 3), {"padding": "same", "dilation": (1, 2)}),
    ((1, 4, 1, 1), (2, 4, 1, 1), {}),
    ((5, 2, 9, 4), (3, 2, 2, 2), {"stride": 3}),
    ((2, 1, 3, 3), (1, 1, 5, 5), {"padding": 3, "stride": 2}),
    ((17, 1, 9, 14), (6, 1, 5, 5), {"padding": 2}),
    ((2, 60, 3, 4), (9, 60, 3, 3), {"padding": 1}),
    ((3, 2, 40, 7), (2, 2, 1, 3), {"stride": (2, 3), "dilation": (1, 2)}),
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


@pytest.mark.sampled(7)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("unwanted", [(), ("dx",), ("dw", "db")], ids=str)
def test_conv2d(table, case, dtype, bias, unwanted):
    kernel, plain = (slots_of(*case, dtype, bias) for _ in range(2))
    calls = calls_of(kernel, case[2], unwanted)
    assert all(map(table.own, calls))
    steps, others = bind(LIB, table, calls), [interpret(LIB, c) for c in calls_of(plain, case[2], unwanted)]
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


#: For a number of an array at (i, j, ...), the parts of the results that it may reach; it reaches no other results.
REACHED = {
    "x": lambda i, j: {"y": np.s_[i], "dw": np.s_[:]},
    "w": lambda i, j: {"y": np.s_[:, i], "dx": np.s_[:, j]},
    "dy": lambda i, j: {"dx": np.s_[i], "dw": np.s_[j], "db": np.s_[j]},
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", REACHED)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_finite_is_never_hidden(table, case, dtype, name):
    """Where the op's results are not finite, the kernel's are not. What is finite again leaves nothing behind."""
    kernel, plain = (slots_of(*case, dtype, True) for _ in range(2))
    steps = bind(LIB, table, calls_of(kernel, case[2], ()))
    others = [interpret(LIB, call) for call in calls_of(plain, case[2], ())]
    shape, terms = kernel[name].shape, 4.0 * kernel["dy"].array.size
    for place in ((0,) * 4, tuple(n // 2 for n in shape), tuple(n - 1 for n in shape)):
        before = kernel[name].array[place]
        for value in (np.nan, np.inf, -np.inf, before):
            reached = {} if value is before else REACHED[name](*place[:2])
            for slots in (kernel, plain):
                slots[name].array[place] = value
            for step in (*steps, *others):
                step()
            for result in ("y", "dx", "dw", "db"):
                found, right = kernel[result].array, plain[result].array
                compared = np.isfinite(right)
                assert not np.isfinite(found[~compared]).any()
                if result in reached:
                    compared[reached[result]] &= np.isfinite(found[reached[result]])
                close(found[compared], right[compared], terms=terms)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_nothing_are_zero(table, case, dtype):
    slots = slots_of(*case, dtype, True)
    steps = bind(LIB, table, calls_of(slots, case[2], ()))
    for gradient in (slots["dy"].array.copy(), 0.0):
        slots["dy"].array[...] = gradient
        for step in steps:
            step()
    assert not any(slots[name].array.any() for name in ("dx", "dw", "db"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_in_a_threads_memory_counts_for_nothing(case, monkeypatch):
    image_calls = pytest.importorskip("xnn.backends.kernels.image_calls")
    found, scratch = set(), image_calls._scratch
    for fill in (0, 255):  # 255 in all bytes is NaN

        def filled(size, fill=fill):
            address = scratch(size)
            image_calls._own.memory[...] = fill
            return address

        monkeypatch.setattr(image_calls, "_scratch", filled)
        slots = slots_of(*case, "float32", True)
        for step in bind(LIB, LIB.kernels("compiled"), calls_of(slots, case[2], ())):
            step()
        found.add(b"".join(slots[name].array.tobytes() for name in ("y", "dx", "dw", "db")))
    assert len(found) == 1


def test_sums_over_a_large_image(table):
    """They stay accurate: a hundred thousand float32 numbers are not added one after the other."""
    s = slots_of((1, 16, 500, 400), (1, 16, 1, 1), {}, "float32", True)
    x, dy = (
        1.0 + np.abs(numbers(s["x"].shape, "float32", 1)),
        1.0 + np.abs(numbers(s["dy"].shape, "float32", 2)),
    )
    s["x"].array[...], s["dy"].array[...] = x, dy
    for step in bind(LIB, table, calls_of(s, {}, ())):
        step()
    right = np.einsum("nchw,nohw->oc", x.astype("f8"), dy.astype("f8")).reshape(1, 16, 1, 1)
    np.testing.assert_allclose(s["dw"].array, right, rtol=2e-6)
    np.testing.assert_allclose(s["db"].array, dy.sum(dtype="f8"), rtol=2e-6)


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


class Computed(layers.Layer):
    """A convolution, then a normalization, whose weights are computed in each step."""

    def __init__(self, outputs):
        self.outputs = outputs
        self.w = layers.Parameter("w", (outputs, 2, 3, 3), initializers.Normal(0.3), "float64")
        self.v = layers.Parameter("v", (outputs, 1), initializers.Normal(0.3), "float64")
        super().__init__(self.w, self.v)

    def compute(self, x):
        x = ops.conv2d(x, ops.tanh(ops.gelu(self.w)), padding=1)
        scale, axis = ops.reshape(ops.softplus(self.v), (self.outputs,)), (0, 2, 3)
        return ops.normalize(x, ops.moments(x, axis=axis), scale, scale, axis=axis)


@pytest.mark.parametrize("count", [8, 32])
@pytest.mark.parametrize("kernels", ["numpy", "compiled"])
def test_weights_that_the_step_computes(kernels, count):
    """There are as many of them as images in a batch, but they are not part of the images."""
    if kernels == "compiled":
        pytest.importorskip("numba")
    x, y = numbers((3 * count, 2, 5, 5), "float64"), np.arange(3 * count) % 3
    losses_of = []
    for name in ("ops", kernels):
        head = layers.Flatten(), layers.Dense(25 * count, 3, dtype="float64")
        model = xnn.Sequential(Computed(count), *head, seed=1)
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels=name)
        history = trainer.fit((x, y), epochs=2, batch_size=count, progress=False)
        losses_of.append([epoch["loss"] for epoch in history.epochs])
    np.testing.assert_allclose(*losses_of, rtol=1e-10)
