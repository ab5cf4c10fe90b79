"""The CUDA kernels of exact numerics have the bits of the ops, which NumPy runs; on a GPU, or on the emulated one."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from test_cuda_kernels import update_by_kernels
from test_exact_kernels import ACTIVATIONS, numbers, same
from test_kernels import RULES, dense_calls, loss_calls

import xnn
from xnn import ops, optimizers
from xnn.backends import Purpose, Stream, available_backends, get_backend
from xnn.backends.exact import ScaledIntegers
from xnn.backends.kernels.binding import bind, interpret
from xnn.backends.kernels.calls import Call, Cursor, Slot
from xnn.backends.kernels.cuda.loss_kernels import DISTANCES
from xnn.layers import Parameter
from xnn.ops import updates
from xnn.ops.metrics import accuracy

_REASON = available_backends()["cupy"]
pytestmark = pytest.mark.skipif(bool(_REASON), reason=_REASON or "CuPy runs")
HOST = get_backend("numpy")


@pytest.fixture(autouse=True)
def exact():
    with xnn.numerics("exact"):
        yield


@dataclass
class Both:
    """The same calls twice: slots by name in the GPU's memory for the kernels, and on the host for the ops."""

    there: dict = field(default_factory=dict)
    here: dict = field(default_factory=dict)
    collected: list = field(default_factory=list)
    gpu: object = field(default_factory=lambda: get_backend("cupy"))

    def slot(self, name, array):
        self.there[name] = Slot(name, array.shape, array.dtype, self.gpu.to_device(array))
        self.here[name] = Slot(name, array.shape, array.dtype, array.copy())

    def pixels(self, name, integers, scale):
        for slots, lib in ((self.there, self.gpu), (self.here, HOST)):
            scaled = ScaledIntegers(lib, lib.to_device(integers), scale)
            slots[name] = Slot(name, integers.shape, np.dtype("f4"), scaled, fixed=True, scaled=scaled)

    def empty(self, name, shape, dtype="float32"):
        for slots in (self.there, self.here):
            slots[name] = Slot(name, shape, np.dtype(dtype))

    def run(self, make, rows=(0,), groups=(), number=0, seed=0):
        """Run make(slots) by kernels and by ops. Return both arrays of each slot."""
        kernel, plain = make(self.there), make(self.here)
        table = self.gpu.kernels("cuda")
        feed = table.feed(groups, len(rows), self.collected)
        for call in kernel:
            assert table.accepts(call), f"{call} has no kernel"
        steps = bind(self.gpu, table, kernel)
        feed.seed = seed
        feed.put(np.array(rows))
        feed.send(number, len(rows))
        feed.loop(steps)(1)
        self.recorded, self.launches = feed.take(), len(steps)
        with np.errstate(all="ignore"):
            for step in [interpret(HOST, call) for call in plain]:
                step()
        return {name: (self.value(self.there[name]), self.value(self.here[name])) for name in self.here}

    def value(self, slot):
        array = slot.array.materialize() if slot.scaled is not None else slot.array
        return self.gpu.to_host(array) if slot is self.there.get(slot.name) else np.asarray(array)

    def check(self, found, *names):
        for name in names:
            same(*found[name])


def raw(shape, seed, kind):
    """Numbers that exact numerics never store, too: subnormal ones and -0, which count as 0."""
    if kind != "foreign":
        return numbers(shape, seed, kind)
    x = numbers(shape, seed).copy()
    flat = x.reshape(-1)
    flat[::5], flat[1::7] = 1e-42, -0.0
    flat[2::9] *= np.float32(2.0**-125)
    return x


# (0, ...) is run by the ops
SHAPES = [(1, 1, 1), (3, 4, 2), (32, 20, 10), (33, 17, 129), (5, 1, 300), (70, 301, 7)]
KINDS = ["plain", "wide", "hostile", "foreign"]


def dense_slots(both, shape, kind):
    n, k, m = shape
    both.slot("w", raw((k, m), 2, "plain" if kind == "hostile" else kind))
    both.slot("b", raw((m,), 3, "foreign" if kind == "foreign" else "plain"))
    both.slot("dy", raw((n, m), 4, kind))
    shapes = {"z": (n, m), "y": (n, m), "dz": (n, m), "dx": (n, k), "dw": (k, m), "db": (m,)}
    for name, extent in shapes.items():
        both.empty(name, extent)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a and a.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense(shape, activation, bias):
    for kind, input_gradient in (*((kind, True) for kind in KINDS), ("plain", False)):
        both = Both()
        both.slot("x", raw(shape[:2], 1, kind))
        dense_slots(both, shape, kind)
        found = both.run(lambda s, g=input_gradient: dense_calls(s, activation, bias, g))
        both.check(found, "y" if activation else "z", "dw", "x", "w", "b", *["db"] * bias)
        both.check(found, *["dx"] * input_gradient)


@pytest.mark.parametrize("frozen", ["dw", "db"])
@pytest.mark.parametrize("input_gradient", [True, False])
def test_dense_with_frozen_weights_or_bias(frozen, input_gradient):
    both = Both()
    both.slot("x", numbers((9, 5), 1))
    dense_slots(both, (9, 5, 7), "plain")
    found = both.run(lambda s: dense_calls({**s, frozen: None}, None, True, input_gradient))
    both.check(found, *({"z", "dw", "db"} - {frozen}), *["dx"] * input_gradient)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_of_integers(shape, dtype):
    n, k, _ = shape
    end = np.iinfo(dtype)
    pixels = np.asarray(Stream(5, Purpose.DIRECTIONS).uniform((n, k), end.min, end.max + 1.0))
    both = Both()
    both.pixels("x", np.floor(pixels).astype(dtype), 1 / 255)
    dense_slots(both, shape, "wide")
    found = both.run(lambda s: dense_calls({**s, "dx": None}, ops.relu, True, True))
    both.check(found, "y", "dw", "db")


def test_two_layers_of_which_one_reads_what_the_other_writes():
    """The weights of the second are the output of the first: their slice is not taken before."""
    both = Both()
    for name, shape in (("x", (6, 5)), ("w", (5, 4)), ("x2", (3, 6))):
        both.slot(name, numbers(shape, len(name)))
    both.empty("w2", (6, 4))
    both.empty("y", (3, 4))
    found = both.run(
        lambda s: [
            Call("forward", ops.dense, (s["x"], s["w"]), (s["w2"],)),
            Call("forward", ops.dense, (s["x2"], s["w2"]), (s["y"],)),
        ]
    )
    both.check(found, "w2", "y")


@pytest.mark.parametrize(("n", "classes"), [(1, 1), (32, 10), (7, 300), (1100, 2)])
@pytest.mark.parametrize("size", [1.0, 300.0, 1e6])
@pytest.mark.parametrize("special", [(), (np.nan,), (np.inf,), (-np.inf,), (-3e38, 3e38), (np.inf, np.inf)])
def test_softmax_cross_entropy(n, classes, size, special):
    """With accuracy, the record and the slices of the gradient, in one launch."""
    z = numbers((n, classes), 1) * np.float32(size)
    z.reshape(-1)[: len(special)] = special[: z.size]
    both = Both(collected=([], []))
    losses_, counts = both.collected
    both.slot("z", z)
    both.slot("t", (np.asarray(Stream(3, Purpose.DIRECTIONS).uniform((n,))) * classes).astype(np.int64))
    both.slot("one", np.ones((), np.float32))
    for name, shape in (("loss", ()), ("g", (n, classes)), ("count", ())):
        both.empty(name, shape)

    def make(s):
        records = [
            Call("collect", None, (s[name],), (), {"into": into})
            for name, into in (("loss", losses_), ("count", counts))
        ]
        return [*loss_calls(s), Call("metric", accuracy, (s["z"], s["t"]), (s["count"],)), *records]

    found = both.run(make)
    both.check(found, "loss", "g", "z", "count")
    assert both.launches == 1
    np.testing.assert_array_equal(both.recorded[0], found["loss"][1])
    np.testing.assert_array_equal(both.recorded[1], found["count"][1])


@pytest.mark.parametrize("op", DISTANCES, ids=lambda op: op.name)
@pytest.mark.parametrize("shape", [(1,), (33, 1), (7, 3, 5), (300, 70)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_outputs_and_targets(op, shape, kind):
    """The loss and its gradient, also of NaN, infinities and outputs that equal their targets."""
    p, t = raw(shape, 1, kind).copy(), raw(shape, 2, "foreign" if kind == "foreign" else "plain")
    if op is ops.binary_cross_entropy:
        t = (t > 0).astype(np.float32)
    p.reshape(-1)[-1] = t.reshape(-1)[-1]
    both = Both(collected=([],))
    both.slot("p", p)
    both.slot("t", t)
    both.slot("one", np.ones((), np.float32))
    both.empty("loss", ())
    both.empty("g", shape)

    def make(s):
        options = {"delta": 0.7} if op is ops.huber else {}
        forward = Call("forward", op, (s["p"], s["t"]), (s["loss"],), options)
        back = Call("backward", op, (s["one"],), (s["g"], None), forward=forward)
        fused = Call("loss", op, forward.reads, (s["loss"], s["g"]), options, parts=(forward, back))
        return [fused, Call("collect", None, (s["loss"],), (), {"into": both.collected[0]})]

    found = both.run(make)
    both.check(found, "loss", "g", "p")
    assert both.launches == 1
    np.testing.assert_array_equal(both.recorded[0], found["loss"][1])


def test_cross_entropy_of_wrong_labels_and_all_infinite_rows():
    inf = np.inf
    rows = [[0, 1, 2], [0, 1, 2], [-inf, -inf, -inf], [inf, -inf, 0], [1e-42, -0.0, 0.0]]
    for labels in ([3, -1, 0, 0, 1], [0, 2, 1, 2, 0], [0, 1, 2, 0, 2]):
        both = Both()
        both.slot("z", np.array(rows, np.float32))
        both.slot("t", np.array(labels))
        both.slot("one", np.ones((), np.float32))
        both.empty("loss", ())
        both.empty("g", (5, 3))
        both.check(both.run(loss_calls), "loss", "g")


@pytest.mark.parametrize("width", [3, 4, 30])
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_gather_copies_pixels_and_labels_in_one_launch(dtype, width):
    source = np.arange(20 * width).reshape(20, width).astype(dtype)
    labels, rows = np.arange(20) % 7, (7, 0, 19, 7)
    both = Both()
    both.pixels("x", source[:4] * 0, 0.5)
    both.empty("t", (4,), "int64")
    cursor = Cursor(np.array(rows))

    def make(s):
        options = {"source": source, "cursor": cursor, "scale": 0.5, "offset": 0.0}
        gather = Call("gather", None, (), (s["x"],), options)
        plain = Call(
            "gather",
            None,
            (),
            (Slot("p", source[:4].shape, source.dtype),),
            {"source": source, "cursor": cursor},
        )
        rescale = Call("forward", ops.rescale, plain.writes, (s["x"],), {"scale": 0.5, "offset": 0.0})
        gather.parts = (plain, rescale)
        return [gather, Call("gather", None, (), (s["t"],), {"source": labels, "cursor": cursor})]

    found = both.run(make, rows)
    both.check(found, "x", "t")
    assert both.launches == 1


RESCALES = {
    "scale": {"scale": 1 / 3, "offset": 0.25},
    "shift": {"scale": 1 / 60, "offset": 0.25, "shift": 100.1},
    "no shift": {"scale": 1e38, "offset": 0.0, "shift": 0.0},
    "shifts": {
        "scale": np.array([1 / 60, 3.0, 1e-3]),
        "offset": np.zeros(3),
        "shift": np.array([0.1, 1.7e9, -3.3]),
    },
}


@pytest.mark.parametrize("rescale", RESCALES)
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
def test_gather_rescales_as_the_op(dtype, rescale):
    """Subnormal samples count as they are where Rescale computes in float64, and as 0 elsewhere."""
    source, rows, options = (raw((20, 3), 1, "foreign") * 70).astype(dtype), (7, 0, 19, 7), RESCALES[rescale]
    if dtype == "float64" and "shift" not in options:
        return  # refused by the op
    both, cursor = Both(), Cursor(np.array(rows))
    both.empty("x", (4, 3))

    def make(s):
        given = {"source": source, "cursor": cursor}
        plain = Call("gather", None, (), (Slot("p", (4, 3), source.dtype),), given)
        double = {"wide": np.float64} if "shift" in options else {}
        rescale = Call(
            "forward", ops.rescale, plain.writes, (s["x"],), {**options, "dtype": np.dtype("f4"), **double}
        )
        return [Call("gather", None, (), (s["x"],), {**given, **options}, parts=(plain, rescale))]

    both.check(both.run(make, rows), "x")


CUDA_RULES = {
    **RULES,
    "amsgrad": lambda: optimizers.Adam(0.01, amsgrad=True, weight_decay=1e-3),
}


@pytest.mark.parametrize("kind", ["plain", "wide", "hostile"])
@pytest.mark.parametrize("rule", CUDA_RULES)
def test_updates(rule, kind):
    shapes, steps = [(5, 3), (3,), (40, 50)], 3
    fresh = [numbers(shape, 100 + i, kind) for i, shape in enumerate(shapes)]
    results = []
    for name in ("cupy", "numpy"):
        lib, optimizer = get_backend(name), CUDA_RULES[rule]()
        parameters = [
            Parameter(f"p{i}", shape, lambda s, shape: np.zeros(shape), "float32")
            for i, shape in enumerate(shapes)
        ]
        for i, parameter in enumerate(parameters):
            parameter.value = lib.to_device(numbers(shapes[i], i))
        if name == "cupy":
            update_by_kernels(lib, optimizer, parameters, fresh, steps)
        for _ in range(0 if name == "cupy" else steps):
            for parameter, gradient in zip(parameters, fresh, strict=True):
                parameter.grad = gradient
            with np.errstate(all="ignore"):
                optimizer.step(parameters)
        arrays = [p.value for p in parameters]
        arrays += [a for p in parameters for a in optimizer.state_of(p).arrays]
        results.append([lib.to_host(array) for array in arrays])
    for kernel, op in zip(*results, strict=True):
        same(kernel, op)


@pytest.mark.parametrize("case", ["large", "small", "infinite", "nan", "huge"])
@pytest.mark.parametrize("rule", [updates.clip_by_norm, updates.clip_by_value], ids=lambda r: r.__name__)
def test_clipping(rule, case):
    shapes = {"g0": (70, 30), "g1": (30,), "g2": (1,)}
    both = Both()
    for seed, (name, shape) in enumerate(shapes.items()):
        g = numbers(shape, seed, "wide") * np.float32(1e-3 if case == "small" else 1)
        if name == "g1":
            g[3] = {"infinite": np.inf, "nan": np.nan, "huge": 3e38}.get(case, 1.0)
        both.slot(name, np.asarray(HOST.exact.leave(g)))

    def make(s):
        slots = tuple(s[name] for name in shapes)
        return [Call("clip", rule, slots, slots, {"limit": 0.75})]

    both.check(both.run(make), *shapes)


def test_averages_of_weights_are_one_launch():
    both = Both()
    for n, shape in enumerate([(70, 30), (5,)]):
        both.slot(f"w{n}", numbers(shape, n, "wide"))
        both.slot(f"a{n}", numbers(shape, n + 9, "wide"))

    def make(s):
        return [
            Call("keep", updates.moving_average, (s[f"a{n}"], s[f"w{n}"]), (s[f"a{n}"],), {"decay": 0.9})
            for n in range(2)
        ]

    both.check(both.run(make), "a0", "a1")
    assert both.launches == 1
