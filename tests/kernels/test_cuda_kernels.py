"""Every CUDA kernel compared with its op, which NumPy runs; on a GPU, or on the emulated one."""

import inspect
import itertools
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from test_kernels import (
    ACTIVATIONS,
    DTYPES,
    EPSILON,
    RULES,
    SHAPES,
    check_dropout,
    close,
    dense_calls,
    loss_calls,
    numbers,
)

from xnn import ops, optimizers
from xnn.backends import Purpose, Stream, available_backends, get_backend
from xnn.backends.kernels.binding import bind, interpret
from xnn.backends.kernels.calls import Call, Cursor, Slot
from xnn.backends.kernels.cuda import data_set, dense_kernels, launch, update_kernels
from xnn.backends.kernels.cuda.activation_kernels import CURVES, SOFTMAXES
from xnn.backends.kernels.cuda.activation_kernels import SHAPES as SHAPE_OPS
from xnn.backends.kernels.cuda.loss_kernels import DISTANCES, by_one_block
from xnn.backends.random import Mask
from xnn.layers import Parameter
from xnn.ops import updates
from xnn.ops.metrics import accuracy
from xnn.ops.normalization import running_moments
from xnn.training.parameters import Store

_REASON = available_backends()["cupy"]
pytestmark = pytest.mark.skipif(bool(_REASON), reason=_REASON or "CuPy runs")
HOST = get_backend("numpy")


@pytest.fixture(scope="module")
def gpu():
    return get_backend("cupy")


@pytest.fixture
def both(gpu):
    return Both(gpu)


@dataclass
class Both:
    """The same calls twice: slots by name in the GPU's memory for the kernels, and on the host for the ops."""

    gpu: object
    there: dict = field(default_factory=dict)
    here: dict = field(default_factory=dict)
    collected: list = field(default_factory=list)

    def slot(self, name, array):
        self.there[name] = Slot(name, array.shape, array.dtype, self.gpu.to_device(array))
        self.here[name] = Slot(name, array.shape, array.dtype, array.copy())

    def empty(self, name, shape, dtype):
        for slots in (self.there, self.here):
            slots[name] = Slot(name, shape, np.dtype(dtype))

    def run(self, make, number=0, seed=0):
        """Run make(slots) by kernels and by ops. Return both arrays of each slot, and what was recorded."""
        kernel, plain = make(self.there), make(self.here)
        table = self.gpu.kernels("cuda")
        feed = table.feed((), 1, self.collected)
        for call in kernel:
            assert table.accepts(call), f"{call} has no kernel"
        steps = bind(self.gpu, table, kernel)
        feed.seed = seed
        feed.put(np.zeros(1, np.int64))
        feed.send(number, 1)
        feed.loop(steps)(1)
        self.recorded = feed.take()
        self.launches = len(steps)
        with np.errstate(all="ignore"):
            for step in [interpret(HOST, call) for call in plain]:
                step()
        return {n: (self.gpu.to_host(self.there[n].array), np.asarray(self.here[n].array)) for n in self.here}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a and a.name)
@pytest.mark.parametrize("shape", [*SHAPES, (70, 3, 130), (600, 4, 40)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense(both, dtype, shape, activation, bias):
    n, k, m = shape
    both.slot("x", numbers((n, k), dtype, 1))
    both.slot("w", numbers((k, m), dtype, 2))
    both.slot("b", numbers((m,), dtype, 3))
    both.slot("dy", numbers((n, m), dtype, 4))
    shapes = {"z": (n, m), "y": (n, m), "dz": (n, m), "dx": (n, k), "dw": (k, m), "db": (m,)}
    for name, extent in shapes.items():
        both.empty(name, extent, dtype)
    # ReLU's gradient at an output that rounding brings to the other side of 0 is another
    found = both.run(lambda s: dense_calls(s, activation, bias, True))
    terms = 4 * (max(n, k, m) + 8)
    for name in ("y" if activation else "z", "dx", "dw", *(["db"] if bias else [])):
        close(*found[name], terms, size=4.0)
    for name in ("x", "w", "b"):
        assert found[name][0].tobytes() == found[name][1].tobytes(), f"{name} was written"


def test_more_rows_than_a_grid_has_blocks(both, monkeypatch):
    """A block then adds up more rows."""
    monkeypatch.setattr(dense_kernels, "MOST_BLOCKS", 2)
    test_dense(both, "float32", (1100, 4, 40), ops.relu, True)


@pytest.mark.parametrize("activation", ACTIVATIONS[1:], ids=lambda a: a.name)
@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (2, 3, 4), (0, 5), (64, 33)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(both, dtype, shape, activation):
    """Also of NaN, infinities and -0; the input is not written."""
    x = numbers(shape, dtype, 1, special=True)
    x[x == 1e-42] = 0.0  # CUDA's compiler flushes subnormal numbers
    both.slot("x", x)
    both.slot("dy", numbers(shape, dtype, 2))
    both.empty("y", shape, dtype)
    both.empty("dx", shape, dtype)

    def make(s):
        forward = Call("forward", activation, (s["x"],), (s["y"],))
        return [forward, Call("backward", activation, (s["dy"],), (s["dx"],), forward=forward)]

    found = both.run(make)
    close(*found["y"], 8, special=True)
    close(*found["dx"], 8, special=True)
    assert found["x"][0].tobytes() == found["x"][1].tobytes()


CURVE_OPTIONS = {
    ops.leaky_relu: [{}, {"negative_slope": 0.3}],
    ops.elu: [{}, {"alpha": 1.7}],
    ops.gelu: [{}, {"approximate": "none"}, {"approximate": "tanh"}],
    ops.softplus: [{}, {"beta": 3.0}, {"beta": 0.01}],
}


@pytest.mark.parametrize("size", [1.0, 30.0, 1e30])
@pytest.mark.parametrize("op", CURVES, ids=lambda op: op.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_by_their_input(both, dtype, op, size):
    """Also far from 0, and of NaN, infinities and -0."""
    x = numbers((64, 33), dtype, 1) * np.dtype(dtype).type(size)
    x[0, :4] = np.nan, np.inf, -np.inf, -0.0
    both.slot("x", x)
    both.slot("dy", numbers((64, 33), dtype, 2))
    both.empty("y", (64, 33), dtype)
    both.empty("dx", (64, 33), dtype)
    for options in CURVE_OPTIONS.get(op, [{}]):

        def make(s, options=options):
            forward = Call("forward", op, (s["x"],), (s["y"],), dict(options))
            return [forward, Call("backward", op, (s["dy"],), (s["dx"],), forward=forward)]

        found = both.run(make)
        close(*found["y"], 8, special=True)
        close(*found["dx"], 16, special=True)


@pytest.mark.parametrize("options", [{"beta": -1.0}, {"beta": np.ones(3)}, {"gamma": 1.0}])
def test_options_that_only_the_op_can_judge_have_no_kernel(gpu, options):
    x, y = (Slot(name, (3,), np.dtype("f4")) for name in "xy")
    assert not gpu.kernels("cuda").accepts(Call("forward", ops.softplus, (x,), (y,), options))


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize(
    ("op", "options", "shape"),
    [
        (ops.flatten, {}, (4, 15)),
        (ops.reshape, {"shape": (4, 3, 5)}, (4, 3, 5)),
        (ops.reshape, {"shape": (-1,)}, (60,)),
        (ops.identity, {}, (4, 5, 3)),
    ],
    ids=str,
)
def test_other_shapes(both, dtype, op, options, shape):
    """The result has the memory of the input, and the gradient that of the result's gradient: nothing is copied."""
    both.slot("x", np.arange(60).astype(dtype).reshape(4, 5, 3))
    both.empty("y", shape, dtype)
    both.slot("dy", np.arange(60)[::-1].astype(dtype).reshape(shape))
    both.empty("dx", (4, 5, 3), dtype)

    def make(s):
        forward = Call("forward", op, (s["x"],), (s["y"],), options)
        return [forward, Call("backward", op, (s["dy"],), (s["dx"],), forward=forward)]

    found = both.run(make)
    assert both.launches == 0
    for name in ("y", "dx"):
        np.testing.assert_array_equal(*found[name])


def test_a_result_with_memory_of_its_own_is_copied(both):
    """Such as the gradient of a parameter that is reshaped."""
    both.slot("x", numbers((4, 3), "float32", 1))
    both.empty("y", (12,), "float32")
    both.empty("dx", (4, 3), "float32")
    both.slot("dy", numbers((12,), "float32", 2))
    both.there["dx"].allocate(both.gpu)
    place = both.there["dx"].array

    def make(s):
        forward = Call("forward", ops.flatten, (s["x"],), (s["y"],))
        return [forward, Call("backward", ops.flatten, (s["dy"],), (s["dx"],), forward=forward)]

    found = both.run(make)
    assert both.launches == 1
    assert both.there["dx"].array is place
    np.testing.assert_array_equal(*found["dx"])


def batch_of(both, n, classes, dtype, labels="int64", size=1.0):
    both.slot("z", numbers((n, classes), dtype, 1) * np.dtype(dtype).type(size))
    both.slot("t", (np.asarray(Stream(3, Purpose.DIRECTIONS).uniform((n,))) * classes).astype(labels))
    both.slot("one", np.ones((), dtype))
    both.empty("loss", (), dtype)
    both.empty("g", (n, classes), dtype)


@pytest.mark.parametrize("labels", ["int64", "int32"])
@pytest.mark.parametrize(("n", "classes"), [(1, 1), (32, 10), (7, 300), (1100, 2), (2000, 10)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_softmax_cross_entropy(both, dtype, n, classes, labels, size):
    """Batches that one block does, and larger ones."""
    batch_of(both, n, classes, dtype, labels, size)
    found = both.run(loss_calls)
    close(*found["loss"], 8 + n)
    kernel, op = found["g"]
    assert np.max(np.abs(kernel - op)) <= 16 * classes**0.5 * EPSILON[dtype] / n
    assert both.launches == (1 if by_one_block(n, classes) else 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_of_logits_that_are_not_finite_and_of_wrong_labels(both, dtype):
    """As the op: an infinite logit has the whole probability, a wrong label makes its row NaN and no other."""
    inf, nan = np.inf, np.nan
    finite = [0, 1, 2]
    z = [
        [inf, 0, 1],
        [-inf, 0, 1],
        [inf, inf, 0],
        [-inf, -inf, -inf],
        [1, nan, 2],
        finite,
        finite,
        [inf, 0, nan],
    ]
    both.slot("z", np.array(z, dtype))
    both.slot("t", np.array([0, 1, 0, 0, 1, 3, -1, 0]))
    both.slot("one", np.ones((), dtype))
    both.empty("loss", (), dtype)
    both.empty("g", (8, 3), dtype)
    found = both.run(loss_calls)
    close(*found["loss"], 8, special=True)
    close(*found["g"], 8, special=True)


@pytest.mark.parametrize("n", [9, 4000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_counts_records_and_adds_the_gradient_of_the_last_bias(both, dtype, n):
    """Five calls are one launch, or two for a large batch, with the numbers of each."""
    classes = 5
    batch_of(both, n, classes, dtype)
    both.slot("x", numbers((n, 3), dtype, 5))
    both.slot("w", numbers((3, classes), dtype, 6))
    both.slot("b", numbers((classes,), dtype, 7))
    both.empty("out", (n, classes), dtype)
    both.empty("count", (), dtype)
    both.empty("dw", (3, classes), dtype)
    both.empty("db", (classes,), dtype)
    both.collected = losses, counts = [], []

    def make(s):
        dense = Call("forward", ops.dense, (s["x"], s["w"], s["b"]), (s["out"],))
        count = Call("metric", accuracy, (s["z"], s["t"]), (s["count"],))
        (loss,) = loss_calls(s)
        back = Call("backward", ops.dense, (s["g"],), (None, s["dw"], s["db"]), forward=dense)
        records = [
            Call("collect", None, (s[name],), (), {"into": into})
            for name, into in (("loss", losses), ("count", counts))
        ]
        return [dense, count, loss, back, *records]

    found = both.run(make)
    assert both.launches == (4 if by_one_block(n, classes) else 7)
    close(*found["loss"], 8 + n)
    close(*found["db"], 8 + n)
    assert found["count"][0] == found["count"][1]
    assert both.recorded[0].tolist() == [found["loss"][0]]
    assert both.recorded[1].tolist() == [found["count"][1]]
    assert len(losses) == len(counts) == 1  # the op's


@pytest.mark.parametrize("op", DISTANCES, ids=lambda op: op.name)
@pytest.mark.parametrize("shape", [(1,), (33, 1), (7, 3, 5), (300, 70)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [False, True])
def test_losses_of_outputs_and_targets(both, op, shape, dtype, special):
    """The loss and its gradient, also of NaN, infinities and outputs that equal their targets."""
    p, t = numbers(shape, dtype, 1, special), numbers(shape, dtype, 2)
    if op is ops.binary_cross_entropy:
        t = (t > 0).astype(dtype)
    p.reshape(-1)[-1] = t.reshape(-1)[-1]
    both.slot("p", p)
    both.slot("t", t)
    both.slot("one", np.ones((), dtype))
    both.empty("loss", (), dtype)
    both.empty("g", shape, dtype)

    def make(s):
        options = {"delta": 0.7} if op is ops.huber else {}
        forward = Call("forward", op, (s["p"], s["t"]), (s["loss"],), options)
        back = Call("backward", op, (s["one"],), (s["g"], None), forward=forward)
        return [Call("loss", op, forward.reads, (s["loss"], s["g"]), options, parts=(forward, back))]

    found = both.run(make)
    close(*found["loss"], 64, special=True)
    close(*found["g"], 8, special=True)


@pytest.mark.parametrize("classes", [1, 5, 40])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [False, True])
def test_accuracy(both, dtype, special, classes):
    outputs = np.round(numbers((60, classes), dtype, 1), 1)  # rounded, so that rows have ties
    if special:
        outputs[3, classes // 2] = outputs[4, 0] = outputs[4, -1] = np.nan
        outputs[5, :], outputs[6, -1] = -np.inf, np.inf
    both.slot("z", outputs)
    both.slot("t", np.argmax(outputs + numbers((60, classes), dtype, 2), axis=1).astype(np.int64))
    both.empty("count", (), dtype)
    kernel, op = both.run(lambda s: [Call("metric", accuracy, (s["z"], s["t"]), (s["count"],))])["count"]
    assert kernel == op
    assert op > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reads", [2, 4])
def test_adding_gradients(both, dtype, reads):
    for n in range(reads):
        both.slot(f"g{n}", numbers((9, 31), dtype, n, special=True))
    both.empty("sum", (9, 31), dtype)
    found = both.run(lambda s: [Call("add", None, tuple(s[f"g{n}"] for n in range(reads)), (s["sum"],))])
    close(*found["sum"], 1, special=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_of_two_and_its_gradients(both, dtype):
    """The same array twice has two gradients; terms of different shapes have no kernel."""
    for n, name in enumerate(("a", "b", "dy")):
        both.slot(name, numbers((9, 31), dtype, n, special=True))
    for name in ("y", "da", "db", "twice", "first", "second"):
        both.empty(name, (9, 31), dtype)

    def make(s):
        made = []
        for reads, y, writes in ((("a", "b"), "y", ("da", "db")), (("a", "a"), "twice", ("first", "second"))):
            forward = Call("forward", ops.add, tuple(s[name] for name in reads), (s[y],))
            made += [
                forward,
                Call("backward", ops.add, (s["dy"],), tuple(s[w] for w in writes), forward=forward),
            ]
        return made

    found = both.run(make)
    for name in ("y", "twice", "da", "db", "first", "second"):
        np.testing.assert_array_equal(*found[name])
    row, whole = Slot("row", (31,), np.dtype(dtype)), Slot("y", (9, 31), np.dtype(dtype))
    assert not both.gpu.kernels("cuda").accepts(Call("forward", ops.add, (whole, row), (whole,)))


SOURCES = ["bool", "int8", "uint8", "int16", "int32", "int64", "float32", "float64"]
RESCALES = {
    "none": {},
    "scale": {"scale": 1 / 255, "offset": 0.0},
    "offset": {"scale": 1 / 255, "offset": -0.25},
    "arrays": {"scale": np.array([0.5, 3.0, 1.0]), "offset": np.array([0.5, -0.25, 0.0])},
    "shift": {"scale": 1 / 60, "offset": 0.25, "shift": 100.1},
    "shifts": {
        "scale": np.array([1 / 60, 3.0, 1e-3]),
        "offset": np.zeros(3),
        "shift": np.array([0.1, 1.7e9, -3.3]),
    },
}


def test_rows_that_are_copied_by_words_begin_at_a_word(gpu):
    """A GPU refuses to read a word elsewhere, and a user's array may be a part of another one."""
    data = gpu.to_device(np.arange(41, dtype=np.uint8))[1:].reshape(10, 4)
    x = Slot("x", (3, 4), np.dtype(np.uint8))
    table = gpu.kernels("cuda")
    feed = table.feed((), 3, ())
    rows = np.array([9, 0, 3])
    (launch,) = steps = bind(
        gpu, table, [Call("gather", None, (), (x,), {"source": data, "cursor": Cursor(rows)})]
    )
    feed.put(rows)
    feed.send(0, 3)
    feed.loop(steps)(1)
    np.testing.assert_array_equal(gpu.to_host(x.array), gpu.to_host(data)[rows])
    sides = [a for a in launch._prepared[0] if type(a).__name__ == "Side"]
    assert any(side.source for side in sides)
    assert all((side.source or 0) % 4 == 0 for side in sides)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("rescale", RESCALES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_has_the_bits_of_the_op(gpu, source, rescale, dtype):
    """Rows of a step, in any order, scaled as the op does it; the data are on the host, on the GPU, or streamed."""
    data = (np.arange(120).reshape(40, 3) * 37 % 120).astype(source)
    given = RESCALES[rescale]
    if "shift" in given and source in ("float64", "int64"):
        data += 1_700_000_000
    rows, wanted = np.array([3, 0, 39, 3, 17]), np.dtype(dtype if given else source)
    cursor, results = Cursor(rows), []
    for lib, there, free in (
        (HOST, data, 0),
        (gpu, data, 10**9),
        (gpu, gpu.to_device(data), 0),
        (gpu, data, 0),
    ):
        raw, out = Slot("raw", (5, 3), np.dtype(source)), Slot("x", (5, 3), wanted)
        options = {"source": there, "cursor": cursor}
        move = {k: lib.to_device(v.astype(dtype if "shift" not in given else float)) if hasattr(v, "shape") else v
                for k, v in given.items()}  # fmt: skip
        parts = (Call("gather", None, (), (raw,), options),)
        if given:
            wide = {"wide": np.float64} if "shift" in given else {}
            parts += (
                Call("forward", ops.rescale, (raw,), (out,), {**move, **wide, "dtype": getattr(np, dtype)}),
            )
        call = Call("gather", None, (), (out,), {**options, **move}, parts=parts) if given else parts[0]
        if not given:
            call.writes = (out,)
        if lib is HOST:
            interpret(lib, call)()
        else:
            table = lib.kernels("cuda")
            feed = table.feed((), 5, (), [there], lambda free=free: free)
            if not table.accepts(call):
                assert data.itemsize * 3 % 4  # rows that are not words of 4 bytes
                return
            steps = bind(lib, table, [call])
            feed.put(rows)
            feed.send(0, 5)
            feed.loop(steps)(1)
        results.append(lib.to_host(out.array))
    for found in results[1:]:
        assert found.dtype == wanted
        assert found.tobytes() == results[0].tobytes()


@pytest.mark.parametrize("free", [10**6, 10**4], ids=["resident", "streamed"])
def test_gathers_of_samples_labels_and_weights_are_one_launch_and_follow_the_step(gpu, monkeypatch, free):
    """Each step of a chunk takes its own rows, also of samples of several axes."""
    monkeypatch.setattr(data_set, "_EIGHTH", 1)
    x = (np.arange(20 * 300) % 251).astype(np.uint8).reshape(20, 3, 100)
    y, weights = np.arange(20) * 7, np.linspace(0, 1, 20).astype(np.float32)
    slots = [Slot("x", (4, 3, 100), np.dtype("f4")), Slot("y", (4,), y.dtype), Slot("w", (4,), weights.dtype)]
    cursor, table = Cursor(np.arange(4)), gpu.kernels("cuda")
    calls = [
        Call("gather", None, (), (slot,), {"source": source, "cursor": cursor} | more)
        for slot, source, more in zip(
            slots, (x, y, weights), ({"scale": 0.5, "offset": 0.0}, {}, {}), strict=True
        )
    ]
    feed = table.feed((), 4, (), (x, y, weights), lambda: free)
    (launch,) = bind(gpu, table, calls)
    assert bool(feed.streaming) == (free < 10**6)
    chunk = np.array([[3, 1, 19, 0], [5, 5, 2, 7], [0, 1, 2, 3]])
    for rows in chunk:
        feed.put(rows)
    feed.send(0, 4)
    for number, rows in enumerate(chunk):
        feed.position.value = number
        launch()
        for slot, right in zip(slots, (x[rows] * np.float32(0.5), y[rows], weights[rows]), strict=True):
            np.testing.assert_array_equal(gpu.to_host(slot.array), right)


def test_gathers_that_have_no_kernel(gpu):
    out, table = Slot("x", (1, 3), np.dtype("f4")), gpu.kernels("cuda")
    for options in (
        {"source": np.ones((2, 1)), "scale": 1.0, "offset": 0.0, "shift": np.ones(3)},  # makes a sample wider
        {"source": np.ones((2, 3), np.float16), "scale": 1.0, "offset": 0.0},
        {"source": np.ones((0, 3)), "scale": 1.0, "offset": 0.0},
    ):
        assert not table.accepts(
            Call("gather", None, (), (out,), {**options, "cursor": Cursor(np.array([0]))})
        )


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (32, 100), (7, 3, 11)])
@pytest.mark.parametrize(("seed", "step", "index"), [(0, 0, 0), (2**64 - 1, 12345678901, 7)])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.999])
def test_dropouts_mask_has_the_bits_of_the_generator(both, shape, seed, step, index, rate):
    both.empty("keep", shape, "bool")
    stream = Stream(seed, Purpose.DROPOUT, index, step)

    def make(s):
        options = {
            "make": lambda: HOST.keep_mask(stream, shape, rate),
            "recipe": Mask(Purpose.DROPOUT, index, rate),
        }
        return [Call("draw", None, (), (s["keep"],), options)]

    kernel, right = both.run(make, number=step, seed=seed)["keep"]
    np.testing.assert_array_equal(kernel, right)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout(both, dtype):
    check_dropout(both, dtype)


def run_with_checks(words, *files):
    """Run the tests of these names once more, in a process of the emulated GPU that checks every access to memory."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", words]
    done = subprocess.run(
        [*command, *map(str, files)],
        env=os.environ | {"XNN_EMULATOR_CHECK": "1"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]


CUDA_RULES = {**RULES, "amsgrad": lambda: optimizers.Adam(0.01, amsgrad=True)}


def update_by_kernels(gpu, optimizer, parameters, fresh, steps):
    """Take a chunk of steps with these gradients by an optimizer's CUDA kernel. Returns the gradients' slots."""
    store = Store(gpu, optimizer, parameters, in_place=True)
    (group,) = store.groups
    values, gradients, *state = (tuple(column) for column in group.slots)
    kept = sum(state, ())
    call = Call("update", type(optimizer).rule, values + gradients + kept, values + kept, rule=group)
    table = gpu.kernels("cuda")
    assert table.accepts(call)
    feed = table.feed(store.groups, 1, ())
    (step,) = bind(gpu, table, [call])
    for slot, gradient in zip(gradients, fresh, strict=True):
        slot.put(gpu.to_device(gradient))
    for _ in range(steps):
        store.advance()
        feed.put(np.zeros(1, np.int64))
    feed.send(0, 1)
    feed.loop([step])(steps)
    store.publish()
    return gradients


@pytest.mark.parametrize("rule", CUDA_RULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [1, 7])
def test_updates(gpu, dtype, rule, steps):
    """Chunks of steps over three parameters equal the optimizer's own steps; gradients are not changed."""
    shapes = [(5, 3), (3,), (40, 50)]
    fresh = [numbers(shape, dtype, 100 + i) for i, shape in enumerate(shapes)]
    results = []
    for lib in (gpu, HOST):
        optimizer = CUDA_RULES[rule]()
        parameters = [
            Parameter(f"p{i}", shape, lambda s, shape: np.zeros(shape), dtype)
            for i, shape in enumerate(shapes)
        ]
        for i, parameter in enumerate(parameters):
            parameter.value = lib.to_device(numbers(shapes[i], dtype, i))
        if lib is gpu:
            for slot, gradient in zip(
                update_by_kernels(gpu, optimizer, parameters, fresh, steps), fresh, strict=True
            ):
                assert gpu.to_host(slot.array).tobytes() == gradient.tobytes()
        for _ in range(0 if lib is gpu else steps):
            for parameter, gradient in zip(parameters, fresh, strict=True):
                parameter.grad = gradient
            optimizer.step(parameters)
        arrays = [
            *(p.value for p in parameters),
            *(a for p in parameters for a in optimizer.state_of(p).arrays),
        ]
        results.append([lib.to_host(array) for array in arrays])
    for kernel, op in zip(*results, strict=True):
        close(kernel, op, 10 * steps)


def test_kernels_read_the_options_in_the_order_of_the_rules():
    """updates.cu names the options of each rule in an enum."""
    source = (Path(update_kernels.__file__).parent / "updates.cu").read_text()
    enums = {
        tuple(name.strip(" _") for name in text.split("}")[0].split(","))
        for text in source.split("enum {")[1:]
    }
    for rule in update_kernels.RULES:
        names = tuple(p.name for p in inspect.signature(rule).parameters.values() if p.kind is p.KEYWORD_ONLY)
        assert names in enums, rule.__name__


@pytest.mark.parametrize("case", ["large", "small", "infinite", "nan", "overflow"])
@pytest.mark.parametrize("rule", [updates.clip_by_norm, updates.clip_by_value], ids=lambda r: r.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping(both, dtype, rule, case):
    """Also of numbers that are not finite, and of a norm that is too large for the dtype."""
    shapes = {"g0": (70, 30), "g1": (30,), "g2": (1,)}
    for seed, (name, shape) in enumerate(shapes.items()):
        both.slot(name, numbers(shape, dtype, seed) * np.dtype(dtype).type(1e-3 if case == "small" else 1))
    bad = {"infinite": np.inf, "nan": np.nan, "overflow": np.finfo(dtype).max / 2}.get(case)
    if bad is not None:
        for slots in (both.there, both.here):
            slots["g1"].array[3] = bad

    def make(s):
        slots = tuple(s[name] for name in shapes)
        return [Call("clip", rule, slots, slots, {"limit": 0.75})]

    found = both.run(make)
    for name in shapes:
        close(*found[name], 16, special=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_averages_of_weights_are_one_launch(both, dtype):
    for n, shape in enumerate([(70, 30), (5,)]):
        both.slot(f"w{n}", numbers(shape, dtype, n))
        both.slot(f"a{n}", numbers(shape, dtype, n + 9))

    def make(s):
        return [
            Call("keep", updates.moving_average, (s[f"a{n}"], s[f"w{n}"]), (s[f"a{n}"],), {"decay": 0.9})
            for n in range(2)
        ]

    found = both.run(make)
    assert both.launches == 1
    for name in ("a0", "a1"):
        close(*found[name], 2)


@pytest.mark.parametrize("place", [None, 0, 4095, 4096, -1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_finite(gpu, dtype, value, place):
    arrays = [np.ones(shape, dtype) for shape in ((3,), (0, 2), (90, 100))]
    if place is not None:
        arrays[2].reshape(-1)[place] = value
    arrays = [gpu.to_device(array) for array in arrays]
    assert gpu.finite(arrays) == (place is None)
    assert gpu.finite([*arrays, gpu.to_device(np.ones((3, 2))).T]) == (place is None)
    assert gpu.finite([])


def test_every_source_is_compiled_for_real_gpus():
    """`test_emulated_cupy.py` has NVRTC compile them for two generations of GPUs."""
    from cuda_emulator.nvrtc import EXACT, SHARED, project_sources

    sources = {path.stem for path in Path(launch.__file__).parent.glob("*.cu")} - {*SHARED, "persistent"}
    exact = {name for name in sources if name.startswith("exact")}
    named = set(project_sources())
    assert sum(name.startswith("persistent ") for name in named) > 2  # it is compiled for networks
    assert {f"{name} ({real})" for name in sources - exact for real in ("float", "double")} <= named
    assert exact <= set(" ".join(EXACT).split())
    assert {f"{name} (exact)" for name in EXACT} <= named


def test_every_kernel_is_tested_here(gpu):
    """A new kernel needs a test, here or in test_cuda_image_kernels.py and the like, and an entry here."""
    assert set(gpu.kernels("cuda").kernels) == {
        ("gather", None), ("draw", None), ("add", None), ("collect", None), ("metric", accuracy),
        ("loss", ops.softmax_cross_entropy), ("keep", updates.moving_average), ("clip", updates.clip_by_norm),
        ("clip", updates.clip_by_value), *(("loss", op) for op in DISTANCES),
        *itertools.product(("forward", "backward"), (ops.dense, ops.dropout, ops.relu, ops.sigmoid, ops.tanh)),
        *itertools.product(("forward", "backward"), (*CURVES, *SHAPE_OPS, *SOFTMAXES)),
        *(("total", op) for op in (ops.softmax_cross_entropy, *DISTANCES)),
        *itertools.product(("forward", "backward"), (ops.conv2d, ops.max_pool2d, ops.avg_pool2d, ops.mean)),
        *itertools.product(("forward", "backward"), (ops.normalize,)), ("forward", ops.moments),
        ("keep", running_moments), ("forward", ops.warp),
        *itertools.product(("forward", "backward"), (ops.embedding, ops.add)),
        *(("update", type(make()).rule) for make in CUDA_RULES.values()),
    }  # fmt: skip
    assert math.isclose(len(CUDA_RULES), len(RULES) + 1)
