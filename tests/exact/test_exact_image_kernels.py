"""Exact kernels of images have the bits of the exact ops: also on odd geometries and extreme numbers, and in runs."""

import numpy as np
import pytest
from test_exact_kernels import LIB, numbers, same
from test_image_kernels import CASES, calls_of, net
from test_kernels import Both

import xnn
from xnn import layers, losses, ops, optimizers
from xnn.backends import Purpose, Stream
from xnn.backends.exact import ScaledIntegers
from xnn.backends.kernels.binding import bind, interpret
from xnn.backends.kernels.calls import Call, Slot
from xnn.layers.files import weights_sha256


@pytest.fixture(params=["numpy", "compiled"], autouse=True)
def table(request):
    """A table of exact kernels; the test runs in exact numerics."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    with xnn.numerics("exact"):
        yield LIB.kernels(request.param)


CONVOLUTIONS = [*CASES, ((65, 3, 9, 8), (2, 3, 3, 3), {"padding": 1})]


def both_of(x, w, options, kind, integers=None):
    """The slots of a convolution, twice: the numbers of x are integers if a dtype is given."""
    both = Both(None)
    output = ops.conv2d(np.zeros(x, np.float32), np.zeros(w, np.float32), **options).shape
    if integers is None:
        both.slot("x", numbers(x, 1, kind))
        both.empty("dx", x, "float32")
    else:
        end = np.iinfo(integers)
        pixels = np.floor(np.asarray(Stream(5, Purpose.DIRECTIONS).uniform(x, end.min, end.max + 1.0)))
        scaled = ScaledIntegers(LIB, pixels.astype(integers), 1 / 255)
        for slots in (both.first, both.second):
            slots["x"] = Slot(
                "x", x, np.dtype("f4"), scaled.with_integers(scaled.integers.copy()), scaled=scaled
            )
            slots["x"].fixed = True
            slots["dx"] = None
    both.slot("w", numbers(w, 2, "plain" if kind == "hostile" else kind))
    both.slot("b", numbers(w[:1], 3))
    both.slot("dy", numbers(output, 4, kind))
    for name, shape in (("y", output), ("z", output), ("dz", output), ("dw", w), ("db", w[:1])):
        both.empty(name, shape, "float32")
    return both


def fused(s, options, unwanted):
    """A convolution with its ReLU, forward and backward."""
    convolve, back = calls_of({**s, "y": s["z"], "dy": s["dz"]}, options, unwanted)
    act = Call("forward", ops.relu, (s["z"],), (s["y"],))
    gradient = Call("backward", ops.relu, (s["dy"],), (s["dz"],), forward=act)
    forward = Call(
        "forward", ops.conv2d, convolve.reads, (s["y"],), options, activation=ops.relu, parts=(convolve, act)
    )
    backward = Call("backward", ops.conv2d, (s["dy"],), back.writes, forward=forward, parts=(gradient, back))
    return [forward, backward]


def compare(table, both, make, names):
    """Run both twice, the second time over used buffers."""
    kernel, plain = make(both.first), make(both.second)
    assert all(map(table.own, kernel))
    steps, others = bind(LIB, table, kernel), [interpret(LIB, call) for call in plain]
    given = both.first["dy"].array.copy()
    with np.errstate(all="ignore"):
        for turn in range(2):
            for s in (both.first, both.second):
                np.copyto(s["dy"].array, given[::-1] if turn else given)
            for step in (*steps, *others):
                step()
            for name in names:
                same(both.first[name].array, both.second[name].array)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["plain", "wide", "hostile"])
@pytest.mark.parametrize("activation", [None, ops.relu], ids=["linear", "relu"])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_conv2d(table, case, activation, kind):
    both = both_of(*case, kind)
    make = (lambda s: calls_of(s, case[2], ())) if activation is None else (lambda s: fused(s, case[2], ()))
    compare(table, both, make, ("y", "dx", "dw", "db", "x", "w", "b"))


@pytest.mark.parametrize("kind", ["wide", "hostile"])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_conv2d_in_pieces(table, case, kind, monkeypatch):
    """As for large images: a row of windows, or an image, at a time."""
    monkeypatch.setattr(table.passes.images, "_ROOM", 1)
    compare(table, both_of(*case, kind), lambda s: fused(s, case[2], ()), ("y", "dx", "dw", "db"))


@pytest.mark.parametrize("options", [{}, {"stride": (1, 2)}, {"stride": 2, "dilation": (2, 1)}], ids=str)
@pytest.mark.parametrize("in_pieces", [False, True])
def test_windows_that_overlap_are_added_in_the_order_of_the_op(table, in_pieces, options, monkeypatch):
    """Large gradients cancel each other, so that each other order gives another sum."""
    if in_pieces:
        monkeypatch.setattr(table.passes.images, "_ROOM", 1)
    both = both_of((4, 1, 9, 9), (1, 1, 3, 3), options, "plain")
    for s in (both.first, both.second):
        unit = np.asarray(Stream(3, Purpose.DIRECTIONS).uniform(s["dy"].shape, -1.0, 1.0))
        s["dy"].array[...] = np.sign(unit) * np.where(np.abs(unit) < 0.7, 2.0**60, 1.0)
        s["w"].array[...] = 1.0
    compare(table, both, lambda s: calls_of(s, options, ()), ("dx",))


@pytest.mark.parametrize("unwanted", [("dx",), ("dw",), ("db",), ("dw", "db")], ids=str)
def test_conv2d_without_some_gradients(table, unwanted):
    case = CASES[1]
    both = both_of(*case, "wide")
    compare(table, both, lambda s: calls_of(s, case[2], unwanted), {"y", "dx", "dw", "db"} - {*unwanted})


@pytest.mark.parametrize("integers", ["uint8", "int16"])
@pytest.mark.parametrize("case", CONVOLUTIONS[:4] + CONVOLUTIONS[-1:], ids=str)
def test_conv2d_of_integers(table, case, integers):
    both = both_of(*case, "wide", integers)
    compare(table, both, lambda s: fused(s, case[2], ("dx",)), ("y", "dw", "db"))


POOLS = [
    ((3, 2, 6, 8), {"kernel_size": 2}),
    ((2, 1, 7, 11), {"kernel_size": 2}),
    ((2, 3, 9, 7), {"kernel_size": (3, 2), "stride": (4, 3)}),
    ((1, 1, 1, 1), {"kernel_size": 1}),
]


@pytest.mark.parametrize("kind", ["plain", "ties", "hostile"])
@pytest.mark.parametrize(("shape", "options"), POOLS, ids=str)
def test_max_pool2d(table, shape, options, kind):
    x = numbers(shape, 1, "hostile" if kind == "hostile" else "plain")
    x = np.round(x) + np.float32(0.0) if kind == "ties" else x
    both, output = Both(None), ops.max_pool2d(x, **options).shape
    both.slot("x", x)
    both.slot("dy", numbers(output, 2, kind if kind == "hostile" else "plain"))
    both.empty("y", output, "float32")
    both.empty("dx", shape, "float32")

    def make(s):
        forward = Call("forward", ops.max_pool2d, (s["x"],), (s["y"],), options)
        return [forward, Call("backward", ops.max_pool2d, (s["dy"],), (s["dx"],), forward=forward)]

    compare(table, both, make, ("x", "y", "dx"))


@pytest.mark.parametrize("options", [{"stride": 1}, {"stride": 2, "padding": 1}], ids=str)
def test_windows_that_overlap_are_pooled_by_the_op(table, options):
    """Their gradients are added in float64."""
    options = {"kernel_size": 3, **options}
    x = Slot("x", (2, 1, 7, 7), np.dtype("f4"))
    y = Slot("y", ops.max_pool2d(np.zeros(x.shape, "f4"), **options).shape, np.dtype("f4"))
    assert not table.accepts(Call("forward", ops.max_pool2d, (x,), (y,), options))


@pytest.mark.parametrize("op", [ops.flatten, ops.identity, ops.reshape])
def test_the_shape_changes_and_no_bit(table, op):
    x = numbers((3, 2, 4), 1, "hostile")
    options = {"shape": (4, -1)} if op is ops.reshape else {}
    both, output = Both(None), op(x, **options).shape
    both.slot("x", x)
    both.slot("dy", numbers(output, 2))
    both.empty("y", output, "float32")
    both.empty("dx", x.shape, "float32")

    def make(s):
        forward = Call("forward", op, (s["x"],), (s["y"],), options)
        return [forward, Call("backward", op, (s["dy"],), (s["dx"],), forward=forward)]

    compare(table, both, make, ("x", "y", "dx"))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_has_the_bits_of_the_ops(table, threads):
    x, y = xnn.data.synthetic_digits(150)
    found = []
    for kernels in ("ops", table.name.split()[0]):
        model = net()
        trainer = xnn.Trainer(
            model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.05), kernels=kernels, threads=threads
        )
        history = trainer.fit((x, y), epochs=1, batch_size=32, progress=False)
        found.append((history.losses_sha256, weights_sha256(model)))
    assert found[0] == found[1]


def test_subnormal_samples_and_weights_count_as_zero(table):
    """The trainer rounds what the kernels read to numbers that exact numerics store, as the ops do."""
    unit = np.asarray(Stream(7, Purpose.DIRECTIONS).uniform((40, 1, 12, 12), -1.0, 1.0))
    x = (unit * 2.0**-125 * np.exp2(np.round(5 * unit))).astype(np.float32)
    x[::3, :, ::5] = -0.0
    found = []
    for kernels in ("ops", table.name.split()[0]):
        model = xnn.Sequential(
            layers.MaxPool2D(2), layers.Conv2D(1, 3, 3), layers.MaxPool2D(2), layers.Flatten(), layers.Dense(12, 4),
            seed=1,
        )  # fmt: skip
        weight = model.layers[1].weight
        w = weight.value * np.float32(2.0**120)
        w[:, :, 0] = [1e-40, -0.0, -1e-42]
        weight.value = w
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.1), kernels=kernels)
        history = trainer.fit((x, np.arange(40) % 4), epochs=2, batch_size=16, progress=False)
        found.append((history.losses_sha256, weights_sha256(model), model.predict(x).tobytes()))
    assert found[0] == found[1]
