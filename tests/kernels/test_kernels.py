"""Every kernel compared with its op, also on NaN, infinities, -0 and subnormal numbers.

Each call is made twice, with slots of its own and equal numbers. `bind` runs one by the kernel, `interpret` the other
by the op. The results must agree to a few roundings, and a kernel must not change its inputs.
"""

import copy
import itertools
import os
import subprocess
import sys
from dataclasses import dataclass, field
from decimal import Decimal, localcontext

import numpy as np
import pytest

from xnn import ops, optimizers
from xnn.backends import Purpose, Stream, get_backend
from xnn.backends import numerics as choose
from xnn.backends.kernels import blas as blas_module
from xnn.backends.kernels.binding import bind, interpret
from xnn.backends.kernels.blas import blas_routine, gemm
from xnn.backends.kernels.calls import Call, Cursor, Slot
from xnn.backends.random import Mask
from xnn.errors import MissingExtraError, OptionError
from xnn.layers import Parameter
from xnn.ops import updates
from xnn.ops.deviances import OF_SCIKIT_LEARN
from xnn.ops.metrics import absolute_error, accuracy, squared_error
from xnn.ops.normalization import running_moments
from xnn.training.parameters import Store

LIB = get_backend("numpy")
TABLES = ["numpy", "compiled"]
DTYPES = ["float32", "float64"]
ACTIVATIONS = [None, ops.relu, ops.sigmoid, ops.tanh]
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52}


@pytest.fixture(params=TABLES)
def table(request):
    if request.param == "compiled":
        pytest.importorskip("numba")
    return LIB.kernels(request.param)


def numbers(shape, dtype, seed=0, special=False):
    x = np.asarray(Stream(seed, Purpose.DIRECTIONS, 900).uniform(shape, -2.0, 2.0)).astype(dtype)
    if special and x.size > 4:
        flat = x.reshape(-1)
        flat[: min(5, x.size)] = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-42])[: min(5, x.size)]
    return x


@dataclass
class Both:
    """The same call twice, in `first` for the kernel and in `second` for the ops: slots by name."""

    table: object
    first: dict = field(default_factory=dict)
    second: dict = field(default_factory=dict)

    def slot(self, name, array):
        for slots in (self.first, self.second):
            slots[name] = Slot(name, array.shape, array.dtype, array.copy())

    def empty(self, name, shape, dtype):
        for slots in (self.first, self.second):
            slots[name] = Slot(name, shape, np.dtype(dtype))

    def run(self, make):
        """Run make(slots), a list of calls, by kernels and by ops; return both arrays of each slot."""
        kernel, plain = make(self.first), make(self.second)
        for call in kernel:
            assert self.table.accepts(call), f"{call} has no kernel"
        with np.errstate(all="ignore"):
            for step in bind(LIB, self.table, kernel):
                step()
            for step in [interpret(LIB, call) for call in plain]:
                step()
        return {n: (self.first[n].array, self.second[n].array) for n in self.first}


def close(kernel, op, terms=1.0, special=False, size=0.0):
    """Check that two arrays differ by at most `terms` roundings of the largest value (or of `size`, if larger).

    Infinities and NaNs must be at the same places.
    """
    op = np.asarray(op)
    assert kernel.shape == op.shape
    assert kernel.dtype == op.dtype
    finite = np.isfinite(op)
    if not special:
        assert finite.all()
    np.testing.assert_array_equal(np.isnan(kernel), np.isnan(op))
    np.testing.assert_array_equal(kernel[~finite], op[~finite])
    scale = np.max(np.abs(op[finite]), initial=max(size, 1e-30))
    assert np.max(np.abs(kernel[finite] - op[finite]), initial=0.0) <= terms * EPSILON[str(op.dtype)] * scale


def dense_calls(s, activation, bias, input_gradient):
    reads = (s["x"], s["w"], *([s["b"]] if bias else []))
    grads = (s["dx"] if input_gradient else None, s["dw"], *([s["db"]] if bias else []))
    forward = Call("forward", ops.dense, reads, (s["z"],))
    backward = Call("backward", ops.dense, (s["dy"],), grads, forward=forward)
    if activation is None:
        return [forward, backward]
    act = Call("forward", activation, (s["z"],), (s["y"],))
    back = Call("backward", activation, (s["dy"],), (s["dz"],), forward=act)
    backward.reads = (s["dz"],)
    fused = Call("forward", ops.dense, reads, (s["y"],), activation=activation, parts=(forward, act))
    return [fused, Call("backward", ops.dense, (s["dy"],), grads, forward=fused, parts=(back, backward))]


def loss_calls(s):
    forward = Call("forward", ops.softmax_cross_entropy, (s["z"], s["t"]), (s["loss"],))
    back = Call("backward", ops.softmax_cross_entropy, (s["one"],), (s["g"], None), forward=forward)
    writes = (s["loss"], s["g"])
    return [Call("loss", ops.softmax_cross_entropy, forward.reads, writes, parts=(forward, back))]


SHAPES = [(1, 1, 1), (3, 4, 2), (32, 20, 10), (33, 17, 13), (5, 1, 300), (0, 4, 3)]


@pytest.mark.sampled(6)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a and a.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("input_gradient", [True, False])
def test_dense(table, dtype, shape, activation, bias, input_gradient):
    n, k, m = shape
    both = Both(table)
    both.slot("x", numbers((n, k), dtype, 1))
    both.slot("w", numbers((k, m), dtype, 2))
    both.slot("b", numbers((m,), dtype, 3))
    both.slot("dy", numbers((n, m), dtype, 4))
    for name, extent in (
        ("z", (n, m)),
        ("y", (n, m)),
        ("dz", (n, m)),
        ("dx", (n, k)),
        ("dw", (k, m)),
        ("db", (m,)),
    ):
        both.empty(name, extent, dtype)

    found = both.run(lambda s: dense_calls(s, activation, bias, input_gradient))
    terms = 4 * (max(n, k, m) + 8)
    for name in (
        "y" if activation else "z",
        "dw",
        *(["db"] if bias else []),
        *(["dx"] if input_gradient else []),
    ):
        close(*found[name], terms, size=4.0)  # |x| |w| <= 4: c K eps |A| |B|
    for name in ("x", "w", "b"):
        assert found[name][0].tobytes() == found[name][1].tobytes(), f"{name} was written"


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_with_infinities(table, dtype):
    """Values that are not finite are at the same places as the op's; ReLU of NaN is NaN."""
    both = Both(table)
    both.slot("x", numbers((6, 5), dtype, 1, special=True))
    both.slot("w", numbers((5, 4), dtype, 2))
    both.slot("b", numbers((4,), dtype, 3))
    for name in "zy":
        both.empty(name, (6, 4), dtype)

    def make(s):
        forward = Call("forward", ops.dense, (s["x"], s["w"], s["b"]), (s["z"],))
        act = Call("forward", ops.relu, (s["z"],), (s["y"],))
        return [
            Call("forward", ops.dense, forward.reads, (s["y"],), activation=ops.relu, parts=(forward, act))
        ]

    close(*both.run(make)["y"], 40, special=True)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("activation", ACTIVATIONS[1:], ids=lambda a: a.name)
@pytest.mark.parametrize("shape", [(1,), (7, 3), (2, 3, 4), (0, 5), (64, 33)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [False, True])
def test_activations(table, dtype, shape, activation, special):
    both = Both(table)
    both.slot("x", numbers(shape, dtype, 1, special))
    both.slot("dy", numbers(shape, dtype, 2))
    both.empty("y", shape, dtype)
    both.empty("dx", shape, dtype)

    def make(s):
        forward = Call("forward", activation, (s["x"],), (s["y"],))
        return [forward, Call("backward", activation, (s["dy"],), (s["dx"],), forward=forward)]

    found = both.run(make)
    close(*found["y"], 8, special)
    close(*found["dx"], 8, special)
    assert found["x"][0].tobytes() == found["x"][1].tobytes()


def compiled_curve(function, x):
    """Compute a function by the compiled loops. They have no loop of `exp` alone, so one is made here."""
    numba = pytest.importorskip("numba")
    if function != "exp":
        out = Slot("y", x.shape, x.dtype)
        call = Call("forward", getattr(ops, function), (Slot("x", x.shape, x.dtype, x),), (out,))
        bind(LIB, LIB.kernels("compiled"), [call])[0]()
        return out.array
    from xnn.backends.kernels.intrinsics import exp_parts

    @numba.njit
    def exp(x, y):
        for i in range(x.size):
            power, rest = exp_parts(x[i])
            y[i] = power + power * rest

    y = np.empty_like(x)
    exp(x, y)
    return y


EXACT = {  # the right values: for float32 in float64, for float64 in 60 digits
    "exp": (np.exp, Decimal.exp),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), lambda x: 1 / (1 + (-x).exp())),
    "tanh": (np.tanh, lambda x: 1 - 2 / ((2 * x).exp() + 1)),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("function", "bound"), [("exp", 1.3), ("sigmoid", 2.7), ("tanh", 3.0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_accuracy_of_compiled_functions(dtype, function, bound):
    """The error in units in the last place of the right value, or of the smallest normal number if that is larger."""
    real, least = np.dtype(dtype).type, np.finfo(dtype).tiny
    n, end = (60_000, 90.0) if dtype == "float32" else (600, 715.0)
    near = np.logspace(-30, 1, n // 2)  # there tanh x = x
    x = np.concatenate([np.linspace(0, end, n), np.linspace(0, 2, n // 2), near])
    x = (-x if function == "exp" else np.concatenate([x, -x])).astype(dtype)
    y = compiled_curve(function, x)
    assert y.dtype == dtype
    fast, slow = EXACT[function]
    if dtype == "float32":
        right = fast(x.astype("f8"))
        error = np.abs(y - right) / np.spacing(np.maximum(np.abs(right), least).astype(dtype))
    else:
        with localcontext(prec=60):  # 1 - 2 / (e^2x + 1) loses 30 digits
            right = [slow(Decimal(float(v))) for v in x]
            places = np.spacing(np.maximum(np.abs([float(v) for v in right]), least))
            error = [abs(float(Decimal(float(a)) - b)) / u for a, b, u in zip(y, right, places, strict=True)]
    normal = np.abs(np.asarray(right, "f8")) >= least
    assert np.max(error, where=normal, initial=0.0) <= bound
    assert np.all(np.abs(y[~normal]) <= 1.01 * least)  # subnormal results: 0, or about right
    assert len(set(compiled_curve(function, np.full(37, real(-0.7))))) == 1  # at every place


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_functions_of_special_numbers(dtype):
    tiny, huge = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    for function, x, expected in (
        ("exp", [0.0, -0.0, -tiny, -huge, -np.inf, np.nan], [1, 1, 1, 0, 0, np.nan]),
        ("sigmoid", [-0.0, tiny, huge, -huge, np.inf, -np.inf, np.nan], [0.5, 0.5, 1, 0, 1, 0, np.nan]),
        ("tanh", [0.0, -0.0, tiny, -tiny, huge, -huge, np.inf, -np.inf, np.nan],
                 [0.0, -0.0, tiny, -tiny, 1, -1, 1, -1, np.nan]),
    ):  # fmt: skip
        for times in (1, 9):  # a single number, and one in the vectorized part of the loop
            y = compiled_curve(function, np.repeat(np.array(x, dtype), times))
            right = np.repeat(np.array(expected, dtype), times)
            np.testing.assert_array_equal(y, right)
            known = ~np.isnan(right)
            np.testing.assert_array_equal(np.signbit(y[known]), np.signbit(right[known]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_relus_gradient_where_the_output_is_0(table, dtype):
    """Where the output is 0, the gradient is 0 for any dy; where it is NaN, dy goes on."""
    both = Both(table)
    both.slot("x", np.array([[-1.0, 2.0, -1.0, np.nan]], dtype))
    both.slot("dy", np.array([[np.inf, np.inf, np.nan, 1.0]], dtype))
    both.empty("y", (1, 4), dtype)
    both.empty("dx", (1, 4), dtype)

    def make(s):
        forward = Call("forward", ops.relu, (s["x"],), (s["y"],))
        return [forward, Call("backward", ops.relu, (s["dy"],), (s["dx"],), forward=forward)]

    kernel, op = both.run(make)["dx"]
    np.testing.assert_array_equal(op, [[0, np.inf, 0, 1]])
    np.testing.assert_array_equal(kernel, op)


@pytest.mark.parametrize(("n", "classes"), [(1, 1), (32, 10), (7, 300), (1024, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_softmax_cross_entropy(table, dtype, n, classes, size):
    both = Both(table)
    both.slot("z", numbers((n, classes), dtype, 1) * np.dtype(dtype).type(size))
    both.slot("t", (np.asarray(Stream(3, Purpose.DIRECTIONS).uniform((n,))) * classes).astype(np.int64))
    both.slot("one", np.ones((), dtype))
    both.empty("loss", (), dtype)
    both.empty("g", (n, classes), dtype)

    found = both.run(loss_calls)
    close(*found["loss"], 8 + n)
    # g is a difference of numbers up to 1/n: its error is measured in roundings of 1/n.
    kernel, op = found["g"]
    assert np.max(np.abs(kernel - op)) <= 16 * classes**0.5 * EPSILON[dtype] / n
    for name in "zt":
        assert found[name][0].tobytes() == found[name][1].tobytes()


def test_softmax_cross_entropy_of_logits_that_are_not_finite(table):
    both = Both(table)
    both.slot("z", np.array([[1.0, np.nan, 2.0], [np.inf, 0.0, 1.0], [-np.inf, 0.0, 1.0]], np.float32)[:2])
    both.slot("t", np.array([0, 1]))
    both.slot("one", np.ones((), np.float32))
    both.empty("loss", (), np.float32)
    both.empty("g", (2, 3), np.float32)

    found = both.run(loss_calls)
    assert np.isnan(found["loss"][0]) == np.isnan(found["loss"][1]) == True  # noqa: E712
    assert np.isnan(found["g"][0]).any(axis=1).tolist() == np.isnan(found["g"][1]).any(axis=1).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_cross_entropy_of_minus_infinity_and_of_labels_out_of_range(dtype):
    """A class with logit -inf has probability 0; a wrong label makes the loss and its own row NaN, no other row."""
    pytest.importorskip("numba")
    z = np.array([[-np.inf, 0.0, 1.0], [2.0, -200.0, 0.5], [1.0, -1.0, 0.0]], dtype)
    for labels in ([1, 0, 2], [1, 3, 2], [-1, 0, 2], [0, 0, 2]):
        s = {"z": Slot("z", z.shape, z.dtype, z), "t": Slot("t", (3,), np.dtype("i8"), np.array(labels))}
        loss, g = Slot("loss", (), z.dtype), Slot("g", z.shape, z.dtype)
        call = Call("loss", ops.softmax_cross_entropy, (s["z"], s["t"]), (loss, g))
        bind(LIB, LIB.kernels("compiled"), [call])[0]()
        right, saved = ops.softmax_cross_entropy.forward(np, z, s["t"].array)
        close(loss.array, right, 8, special=True)
        gradient = ops.softmax_cross_entropy.backward(np, np.ones((), dtype), saved)[0]
        close(g.array, gradient, 8, special=True)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "source", [np.uint8, np.float32, np.float64, np.int64, np.int32], ids=lambda d: d.__name__
)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shape", [(40, 7), (40,), (40, 3, 2)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, -0.25])
def test_gather(table, dtype, shape, source, scaled, offset):
    data = (np.arange(np.prod(shape)).reshape(shape) * 37 % 256).astype(source)
    rows = np.array([3, 0, 39, 3, 17])
    results = []
    for run_by_kernel in (True, False):
        out = Slot("x", (5, *shape[1:]), np.dtype(dtype if scaled else source))
        raw = Slot("raw", (5, *shape[1:]), np.dtype(source))
        options = {"source": data, "cursor": Cursor(rows.copy())}
        call = Call("gather", None, (), (raw if scaled else out,), options)
        if scaled:
            numbers = {"scale": 1 / 255, "offset": offset}
            rescale = {**numbers, "dtype": getattr(np, dtype)}
            parts = (call, Call("forward", ops.rescale, (raw,), (out,), rescale))
            call = Call("gather", None, (), (out,), {**options, **numbers}, parts=parts)
        if run_by_kernel:
            assert table.accepts(call)
            bind(LIB, table, [call])[0]()
        else:
            interpret(LIB, call)()
        results.append(out.array)
    if scaled:
        close(*results, 1)
    else:
        assert results[0].tobytes() == results[1].tobytes()
    expected = data[rows] / 255 + offset if scaled else data[rows]
    np.testing.assert_allclose(results[1], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("source", [np.uint8, np.float32, np.float64, np.int64], ids=lambda d: d.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, np.array([0.5, -0.25, 0.0])], ids=["0", "array"])
@pytest.mark.parametrize("shift", [100.1, np.array([0.1, 1.7e9, -3.3])], ids=["number", "array"])
def test_gather_with_a_shift_has_the_bits_of_the_op(table, source, dtype, offset, shift):
    """The batch is rescaled in float64 and rounded at the end."""
    data = (np.arange(120).reshape(40, 3) * 37 % 251).astype(source)
    if source in (np.float64, np.int64):
        data += 1_700_000_000
    numbers = {"scale": np.array([1 / 60, 3.0, 1e-40]), "offset": offset, "shift": shift}
    options = {"source": data, "cursor": Cursor(np.array([3, 0, 39, 3, 17]))}
    raw, out = Slot("raw", (5, 3), np.dtype(source)), Slot("x", (5, 3), np.dtype(dtype))
    rescale = {**numbers, "dtype": getattr(np, dtype), "wide": np.float64}
    parts = (Call("gather", None, (), (raw,), options), Call("forward", ops.rescale, (raw,), (out,), rescale))
    call = Call("gather", None, (), (out,), {**options, **numbers}, parts=parts)
    assert table.accepts(call)
    bind(LIB, table, [call])[0]()
    found = out.array.copy()
    interpret(LIB, call)()
    assert found.dtype == out.array.dtype == np.dtype(dtype)
    assert found.tobytes() == out.array.tobytes()
    expected = (data[options["cursor"].rows].astype(float) - shift) * numbers["scale"] + offset
    np.testing.assert_array_equal(found, expected.astype(dtype))


def test_gathers_that_have_no_kernel(table):
    cursor = Cursor(np.array([0]))
    out = Slot("x", (1, 3), np.dtype("f4"))
    for options in (
        {"source": np.ones((2, 3), np.uint8), "scale": np.ones(3), "offset": 0.0},
        {"source": np.ones((2, 3), np.uint8), "scale": 1.0, "offset": np.ones(3)},
        {"source": np.ones((3, 2), np.uint8).T, "scale": 1.0, "offset": 0.0},
        {"source": np.ones((2, 1)), "scale": 1.0, "offset": 0.0, "shift": np.ones(3)},  # makes a sample wider
        {"source": np.ones((3, 2)).T, "scale": 1.0, "offset": 0.0, "shift": np.ones(3)},
    ):
        assert not table.accepts(Call("gather", None, (), (out,), {**options, "cursor": cursor}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [False, True])
def test_accuracy(table, dtype, special):
    both = Both(table)
    outputs = np.round(numbers((60, 5), dtype, 1), 1)  # rounded, so that rows have ties
    if special:
        outputs[3, 2] = outputs[4, 0] = outputs[4, 3] = np.nan
    both.slot("z", outputs)
    both.slot("t", np.argmax(outputs + numbers((60, 5), dtype, 2), axis=1).astype(np.int64))
    both.empty("count", (), dtype)
    kernel, op = both.run(lambda s: [Call("metric", accuracy, (s["z"], s["t"]), (s["count"],))])["count"]
    assert kernel == op
    assert 0 < op < 60


def check_dropout(both, dtype):
    """Compare a table's kernels of dropout with the op."""
    both.slot("x", numbers((9, 7), dtype, 1, special=True))
    both.slot("keep", numbers((9, 7), dtype, 2) > 0)
    both.slot("dy", numbers((9, 7), dtype, 3))
    both.empty("y", (9, 7), dtype)
    both.empty("dx", (9, 7), dtype)

    def make(s):
        forward = Call("forward", ops.dropout, (s["x"], s["keep"]), (s["y"],), {"rate": 0.3})
        return [forward, Call("backward", ops.dropout, (s["dy"],), (s["dx"], None), forward=forward)]

    found = both.run(make)
    close(*found["y"], 1, special=True)
    close(*found["dx"], 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout(table, dtype):
    check_dropout(Both(table), dtype)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1 - 2.0**-30])
@pytest.mark.parametrize("shape", [(1,), (0, 3), (7,), (8,), (33, 17)], ids=str)
def test_drawn_masks_have_the_ops_bits(shape, rate):
    pytest.importorskip("numba")
    table, cursor = LIB.kernels("compiled"), Cursor(np.arange(1))
    for seed, step, index, again in ((0, 0, 0, 0), (2**64 - 1, 7, 3, 0), (5, 2**40, 2**20, 2)):
        target = Slot("mask", shape, np.dtype(bool))
        options = {"recipe": Mask(Purpose.DROPOUT, index, rate), "again": again, "cursor": cursor}
        call = Call("draw", None, (), (target,), options)
        assert table.own(call)
        (draw,) = bind(LIB, table, [call])
        cursor.stream[:] = seed, step
        draw()
        stream = Stream(seed, Purpose.DROPOUT, index, step + again)
        np.testing.assert_array_equal(target.array, LIB.keep_mask(stream, shape, rate))


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "added to gradients"])
@pytest.mark.parametrize("sizes", [(1,), (31, 1), (33,), (7, 5000)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_l2_penalty(table, dtype, sizes, beside):
    both = Both(table)
    both.slot("grad", np.asarray(0.5, dtype))
    both.empty("y", (), dtype)
    for number, size in enumerate(sizes):
        both.slot(f"w{number}", numbers((size,), dtype, number))
        both.slot(f"g{number}", numbers((size,), dtype, 10 + number))
        both.empty(f"d{number}", (size,), dtype)
        both.empty(f"sum{number}", (size,), dtype)

    def calls(s):
        names = range(len(sizes))
        forward = Call(
            "forward", ops.l2_penalty, tuple(s[f"w{n}"] for n in names), (s["y"],), {"strength": 0.3}
        )
        slopes = tuple(s[f"d{n}"] for n in names)
        back = Call("backward", ops.l2_penalty, (s["grad"],), slopes, forward=forward)
        if not beside:
            return [forward, back]
        others, sums = tuple(s[f"g{n}"] for n in names), tuple(s[f"sum{n}"] for n in names)
        added = [
            Call("add", None, (g, d), (total,)) for g, d, total in zip(others, slopes, sums, strict=True)
        ]
        fused = (back, *added)
        return [
            forward,
            Call("backward", ops.l2_penalty, (s["grad"], *others), sums, forward=forward, parts=fused),
        ]

    found = both.run(calls)
    close(*found["y"], 40)
    for number in range(len(sizes)):
        close(*found[f"{'sum' if beside else 'd'}{number}"], 2)
        assert found[f"w{number}"][0].tobytes() == found[f"w{number}"][1].tobytes()


@pytest.mark.parametrize("kind", ["forward", "add"])
@pytest.mark.parametrize("shape", [(), (3, 7), (0, 2)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_two_arrays_have_the_ops_bits(table, dtype, shape, kind):
    both = Both(table)
    for number, name in enumerate("ab"):
        both.slot(name, numbers(shape, dtype, number, special=True))
    both.empty("y", shape, dtype)
    op = ops.add if kind == "forward" else None
    found = both.run(lambda s: [Call(kind, op, (s["a"], s["b"]), (s["y"],))])
    np.testing.assert_array_equal(*found["y"])


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int16", "uint8", "bool"])
def test_rows_of_an_array_that_is_a_part_of_another(dtype):
    pytest.importorskip("numba")
    source = np.arange(60).reshape(6, 10).astype(dtype)[::2, 1:8]
    target = Slot("x", (4, 7), np.dtype(dtype))
    call = Call("gather", None, (), (target,), {"source": source, "cursor": Cursor(np.array([2, 0, 2, 1]))})
    table = LIB.kernels("compiled")
    assert table.own(call)
    for step in bind(LIB, table, [call]):
        step()
    np.testing.assert_array_equal(target.array, source[[2, 0, 2, 1]])


RULES = {
    "sgd": lambda: optimizers.SGD(0.1),
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9),
    "nesterov": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "decay": lambda: optimizers.SGD(0.1, weight_decay=0.05),
    "all of sgd": lambda: optimizers.SGD(0.1, momentum=0.8, nesterov=True, weight_decay=0.05),
    "adam": lambda: optimizers.Adam(0.01),
    "adam decay": lambda: optimizers.Adam(0.01, (0.8, 0.99), 1e-6, weight_decay=0.1),
    "adadelta": lambda: optimizers.AdaDelta(weight_decay=0.1),
    "adagrad": lambda: optimizers.AdaGrad(),
    "adamw": lambda: optimizers.AdamW(weight_decay=0.1),
    "lion": lambda: optimizers.Lion(0.01),
    "nadam": lambda: optimizers.Nadam(),
    "rmsprop": lambda: optimizers.RMSProp(),
    "all of rmsprop": lambda: optimizers.RMSProp(centered=True, momentum=0.9),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [1, 7])
def test_updates(table, dtype, rule, steps):
    """Steps over three parameters in one buffer equal the optimizer's own steps; gradients are not changed."""
    shapes = [(5, 3), (3,), (400, 50)]  # more than a block of `update_kernels`
    results = []
    for way in ("kernel", "optimizer"):
        optimizer = RULES[rule]()
        parameters = [
            Parameter(f"p{i}", shape, lambda s, shape: np.zeros(shape), dtype)
            for i, shape in enumerate(shapes)
        ]
        for i, parameter in enumerate(parameters):
            parameter.value = numbers(shapes[i], dtype, i)
        if way == "kernel":
            store = Store(LIB, optimizer, parameters, in_place=True)
            (group,) = store.groups
            values, gradients, *state = (tuple(column) for column in group.slots)
            kept = sum(state, ())
            call = Call("update", type(optimizer).rule, values + gradients + kept, values + kept, rule=group)
            assert table.accepts(call)
            (step,) = bind(LIB, table, [call])
            assert len(group.stretches(call)) == 1  # the three parameters are one stretch
        for n in range(steps):
            fresh = [numbers(shape, dtype, 100 * n + i) for i, shape in enumerate(shapes)]
            if way == "kernel":
                for slot, gradient in zip(gradients, fresh, strict=True):
                    slot.put(gradient)
                store.advance()
                step()
                assert all(s.array.tobytes() == g.tobytes() for s, g in zip(gradients, fresh, strict=True))
            else:
                for parameter, gradient in zip(parameters, fresh, strict=True):
                    parameter.grad = gradient
                optimizer.step(parameters)
        if way == "kernel":
            store.publish()
        results.append(
            [*(p.value for p in parameters), *(a for p in parameters for a in optimizer.state_of(p).arrays)]
        )
        assert all(
            optimizer.state_of(p).numbers == optimizer.state_of(parameters[0]).numbers for p in parameters
        )
    for kernel, op in zip(*results, strict=True):
        close(kernel, op, 10 * steps)


@pytest.mark.parametrize("activation", [None, ops.relu], ids=lambda a: a and a.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sgd_folded_into_the_products(table, dtype, activation):
    """dx comes from the old weights; the new weights and bias are those of the gradient and the rule."""
    results = []
    for way in ("kernel", "ops"):
        w, b = (
            Parameter(n, s, lambda s, shape: np.zeros(shape), dtype) for n, s in (("w", (6, 4)), ("b", (4,)))
        )
        w.value, b.value = numbers((6, 4), dtype, 1), numbers((4,), dtype, 2)
        store = Store(LIB, optimizers.SGD(0.1), [w, b], in_place=way == "kernel")
        (group,) = store.groups
        x, z, y, dy = (
            Slot(n, s, np.dtype(dtype))
            for n, s in (("x", (9, 6)), ("z", (9, 4)), ("y", (9, 4)), ("dy", (9, 4)))
        )
        dz, dx = Slot("dz", (9, 4), np.dtype(dtype)), Slot("dx", (9, 6), np.dtype(dtype))
        x.array, dy.array = numbers((9, 6), dtype, 3), numbers((9, 4), dtype, 4)
        (vw, vb), (gw, gb) = group.slots[0], group.slots[1]
        forward = Call("forward", ops.dense, (x, vw, vb), (z,))
        backward = Call("backward", ops.dense, (dy,), (dx, gw, gb), forward=forward)
        parts, target = (backward,), forward
        if activation is not None:
            act = Call("forward", activation, (z,), (y,))
            back = Call("backward", activation, (dy,), (dz,), forward=act)
            backward.reads = (dz,)
            parts = (back, backward)
            target = Call(
                "forward", ops.dense, forward.reads, (y,), activation=activation, parts=(forward, act)
            )
        update = Call("update", updates.sgd, (vw, vb, gw, gb), (vw, vb), rule=group)
        fused = Call(
            "backward", ops.dense, (dy,), (dx, vw, vb), forward=target, rule=group, parts=(*parts, update)
        )
        if way == "kernel":
            assert table.accepts(target)
            assert table.accepts(fused)
        store.advance()
        run = (
            bind(LIB, table, [target, fused])
            if way == "kernel"
            else [interpret(LIB, target), interpret(LIB, fused)]
        )
        for step in run:
            step()
        store.publish()
        results.append((w.value, b.value, dx.array))
    for kernel, op in zip(*results, strict=True):
        close(kernel, op, 60)


def test_every_kernel_of_every_table_is_tested_here():
    """A new kernel needs a test above and an entry here."""
    tested = {
        ("gather", None), ("forward", ops.dense), ("backward", ops.dense), ("loss", ops.softmax_cross_entropy),
        ("metric", accuracy), ("update", updates.sgd), ("update", updates.adam),
        *itertools.product(("forward", "backward"), (ops.relu, ops.sigmoid, ops.tanh, ops.l2_penalty)),
        ("forward", ops.add), ("add", None),
    }  # fmt: skip
    by_rule = {
        ("update", updates.adadelta), ("update", updates.adagrad), ("update", updates.adamw),
        ("update", updates.lion), ("update", updates.nadam), ("update", updates.rmsprop),
    }  # fmt: skip
    # tested in test_image_kernels.py, test_pooling_kernels.py and test_normalization_kernels.py
    images = set(itertools.product(("forward", "backward"), (ops.conv2d, ops.max_pool2d, ops.avg_pool2d)))
    images |= {("forward", ops.moments), ("forward", ops.normalize), ("backward", ops.normalize)}
    others = set(itertools.product(("forward", "backward"), (ops.gelu, ops.silu)))  # in test_bell_kernels.py
    others |= set(
        itertools.product(("forward", "backward"), (ops.dropout, ops.flatten, ops.reshape, ops.identity))
    )
    assert set(LIB.kernels("numpy").kernels) == tested | by_rule | images | others
    pytest.importorskip("numba")
    table = LIB.kernels("compiled")
    others = (  # tested here, and in test_image_kernels.py, test_*_kernels.py
        ops.dropout, ops.conv2d, ops.max_pool2d, ops.avg_pool2d, ops.flatten, ops.reshape,
        ops.identity, ops.softplus, ops.softmax, ops.log_softmax, ops.embedding, ops.normalize,
        ops.gelu, ops.silu, ops.elu, ops.selu, ops.leaky_relu,
        ops.add, ops.mean,
    )  # fmt: skip
    of_losses = (  # in test_loss_kernels.py
        ops.mse, ops.l1, ops.huber, ops.hinge, ops.binary_cross_entropy, ops.focal, ops.kl_divergence,
        ops.softmax_cross_entropy, *OF_SCIKIT_LEARN.values(),
    )  # fmt: skip
    assert {*table.kernels, *table.other.kernels} == {
        *tested, ("forward", ops.moments), *itertools.product(("forward", "backward"), others),
        *itertools.product(("loss", "total"), of_losses), ("metric", absolute_error), ("metric", squared_error),
        *by_rule, ("clip", updates.clip_by_norm), ("clip", updates.clip_by_value), ("keep", updates.moving_average),
        ("keep", running_moments), ("draw", None), ("forward", ops.warp),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", list(itertools.product("CF", repeat=2)))
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 1), (7, 1, 3), (4, 5, 6), (0, 3, 2), (3, 0, 2)])
@pytest.mark.parametrize("routine", ["blas", "matmul"])
def test_gemm(monkeypatch, dtype, order, shape, routine):
    """alpha a b + beta c by BLAS and by matmul, for plain, transposed and strided operands."""
    if routine == "matmul":
        monkeypatch.setattr(blas_module, "blas_routine", lambda dtype: None)
    m, k, n = shape
    a, b = numbers((m, k), dtype, 1), numbers((k, n), dtype, 2)
    wide = numbers((m, 2 * k), dtype, 1)[:, :k]
    for left in (np.asarray(a, order=order[0]), wide, a[::-1]):
        right = np.asarray(b, order=order[1])
        for accumulate, alpha in ((False, 1.0), (True, 1.0), (True, -0.5), (False, 2.0)):
            c = numbers((m, n), dtype, 3)
            expected = alpha * (left.astype("f8") @ right.astype("f8")) + (c if accumulate else 0.0)
            gemm(left, right, c, accumulate)(alpha)
            assert np.max(np.abs(c - expected), initial=0.0) <= 8 * (k + 2) * EPSILON[dtype] * 4


def test_blas_routines_have_the_right_names():
    routine = blas_routine("float32")
    if routine is None:
        pytest.skip("this NumPy has no BLAS that can be called")
    assert "sgemm" in routine.name
    assert "dgemm" in blas_routine("float64").name


def test_a_routine_that_computes_wrongly_is_not_used(monkeypatch):
    blas_routine.cache_clear()
    monkeypatch.setattr(blas_module, "_works", lambda routine, dtype: False)
    try:
        assert blas_routine("float32") is None
        out = np.zeros((2, 2), np.float32)
        gemm(np.ones((2, 3), np.float32), np.ones((3, 2), np.float32), out, True)(2.0)
        np.testing.assert_array_equal(out, np.full((2, 2), 6.0))
    finally:
        blas_routine.cache_clear()


def test_tables_by_name(monkeypatch):
    assert LIB.kernels("ops").name == "ops"
    assert LIB.kernels("numpy").name == "numpy"
    with pytest.raises(OptionError, match="choose auto"):
        LIB.kernels("fastest")
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert LIB.kernels("auto").name == "numpy"


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_ctrl_c_while_numba_is_imported_does_not_choose_other_kernels(monkeypatch, numerics):
    """Extension modules make an ImportError of it."""

    def interrupted(name):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("numpy.core.multiarray failed to import") from error

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.import_module", interrupted)
    with choose(numerics), pytest.raises(KeyboardInterrupt):
        LIB.kernels("auto")


def test_compiled_without_numba_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "xnn.backends.kernels.compiled_kernels", None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[fast\]"'):
        LIB.kernels("compiled")
    assert LIB.kernels("auto").name == "numpy"  # auto does without a Numba that cannot be imported


def test_buffers_begin_at_a_cache_line():
    for shape in ((), (3,), (5, 7), (0, 2)):
        for dtype in ("f4", "f8", "i8", "?"):
            like = np.ones(shape, dtype)
            buffer = LIB.buffer(shape, dtype, like)
            assert buffer.size == 0 or buffer.ctypes.data % 64 == 0
            assert buffer.dtype == dtype
            np.testing.assert_array_equal(buffer, like)
            assert not np.shares_memory(buffer, copy.copy(like))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_damaged_cache_is_replaced(tmp_path, suffix):
    """A full disk or a killed process can leave a damaged cache file, and Numba alone fails on it."""
    pytest.importorskip("numba")
    command = [
        sys.executable,
        "-m",
        "xnn",
        "train",
        "--dataset",
        "synthetic",
        "--epochs",
        "1",
        "--kernels",
        "compiled",
    ]
    for damaged in (False, True):
        files = list(tmp_path.rglob(f"*.{suffix}"))
        assert bool(files) == damaged
        for file in files:
            file.write_bytes(file.read_bytes()[:20])
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "test accuracy" in done.stdout
